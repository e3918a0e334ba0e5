"""
The web application of the reliability tests, in this process or in one of its own:

    python -m tests.apps.web PORT DSN STORE
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tornado.web import Application, HTTPError, RequestHandler

from tests.apps.wrong_stores import STORES
from tests.ports import free_port
from tornado_compas_session import SessionMixin, session_settings

ROOT = Path(__file__).parents[2]
ENVIRON = {
    "APP_NAME": "counter",
    "APP_ENV": "development",
    "APP_KEYS": "a-key-for-the-tests-and-nothing-else",
}


class Base(SessionMixin, RequestHandler):
    """Answers with the content of the session; 401 if there is none."""

    starts = False

    async def prepare(self) -> None:
        await super().prepare()
        if self.session.is_new and not self.starts:
            raise HTTPError(401)

    async def pause(self) -> None:
        """The handler is at work for so many milliseconds."""
        if wait := self.get_query_argument("wait", ""):
            await asyncio.sleep(float(wait) / 1000)

    def answer(self) -> None:
        self.write({"content": dict(self.session)})


class Read(Base):
    async def get(self) -> None:
        await self.pause()
        self.answer()


class Put(Base):
    starts = True

    async def post(self, key: str, value: str) -> None:
        await self.pause()
        self.session[key] = value
        self.answer()


class Set(Put):
    starts = False


class PutWhole(Put):
    """Writes the whole document, as most libraries do."""

    async def post(self, key: str, value: str) -> None:
        whole = dict(self.session)
        await self.pause()
        self.session = {**whole, key: value}
        self.answer()


class Drop(Base):
    def post(self, key: str) -> None:
        self.session.pop(key, None)
        self.answer()


class Add(Base):
    async def post(self) -> None:
        async with self.session.lock():
            self.session["n"] = self.session.get("n", 0) + 1
            await self.pause()
        self.write({"n": self.session["n"]})


class Increment(Base):
    async def post(self) -> None:
        self.write({"n": await self.session.increment("n")})


class AddUnlocked(Base):
    async def post(self) -> None:
        self.session["n"] = self.session.get("n", 0) + 1
        self.write({"n": self.session["n"]})


class Regenerate(Base):
    async def post(self) -> None:
        await self.pause()
        self.session.regenerate()
        self.answer()


class SignIn(Base):
    starts = True

    def post(self) -> None:
        self.session["user_id"] = "anna"
        self.session.regenerate()
        self.redirect("/read")


class SignOut(Base):
    async def post(self) -> None:
        await self.pause()
        self.session = None
        self.write({})


class Up(RequestHandler):
    def get(self) -> None:
        self.write("up")


def make_app(store: Any, **options: Any) -> Application:
    word = "/([a-z0-9-]+)"
    return Application(
        [
            ("/up", Up),
            ("/read", Read),
            (f"/put{word}{word}", Put),
            (f"/set{word}{word}", Set),
            (f"/put-whole{word}{word}", PutWhole),
            (f"/drop{word}", Drop),
            ("/add", Add),
            ("/increment", Increment),
            ("/add-unlocked", AddUnlocked),
            ("/regenerate", Regenerate),
            ("/sign-in", SignIn),
            ("/sign-out", SignOut),
        ],
        log_function=lambda handler: None,
        **session_settings(store, environ=ENVIRON, **options),
    )


# -- processes -------------------------------------------------------------------------


class WebProcess:
    """The application as a child of the test, on a port that outlives it."""

    def __init__(self, dsn: str, store: str = "right") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments = [str(self.port), dsn, store]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.apps.web", *self.arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            limit = time.monotonic() + 60
            while self.process.poll() is None and time.monotonic() < limit:
                with contextlib.suppress(urllib.error.URLError, OSError):
                    urllib.request.urlopen(f"{self.url}/up", timeout=2).close()
                    return
                time.sleep(0.02)
            log.seek(0)
            said = log.read().decode(errors="replace")
            self.kill()
            raise AssertionError(f"the web process did not start:\n{said}")

    def kill(self) -> None:
        """kill -9, by its id, and wait for its end."""
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


@contextlib.contextmanager
def web_process(dsn: str, store: str = "right") -> Iterator[WebProcess]:
    """A running process, killed in the end."""
    web = WebProcess(dsn, store)
    web.start()
    try:
        yield web
    finally:
        web.kill()


async def main() -> None:
    port, dsn, name = sys.argv[1:]
    store = await STORES[name].connect(dsn, timeout=5)
    make_app(store, regenerate_grace=300).listen(int(port), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
