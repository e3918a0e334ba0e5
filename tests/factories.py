"""
What tests build things with: plain functions with defaults, a browser's cookie jar, and
stores that are slow, fail, or count.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.netutil import bind_sockets
from tornado.web import Application

from tornado_compas_session import (
    MemorySessionStore as MemorySessionStore,
)
from tornado_compas_session import (
    Session,
    StoreUnavailable,
    session_settings,
)
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.cookie_only import CookieSessionManager
from tornado_compas_session.core.ids import hash_secret
from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.types import SessionRecord
from tornado_compas_session.settings import Environment, SessionOptions
from tornado_compas_session.testing import browser, jar

KEY = "a-key-for-the-tests-and-nothing-else"
NEWER_KEY = "another-key-for-tests-that-is-newer"
OLDER_KEY = "some-key-for-tests-that-is-older-yet"
#: The cookie's name in the environment that conftest.py sets up.
NAME = "counter.sess"

DEVELOPMENT = {"APP_NAME": "counter", "APP_ENV": "development", "APP_KEYS": KEY}
PRODUCTION = {"APP_NAME": "counter", "APP_KEYS": KEY}


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def rewrite(
    store: MemorySessionStore, handle: str | None = None, **values: Any
) -> None:
    """Another hand than the library's has written to a session; to the only one."""
    if handle is None:
        [handle] = store._rows
    row = store._rows[handle]
    store._rows[handle] = row._replace(record=row.record._replace(**values))


def make_environment(**values: Any) -> Environment:
    return Environment(
        **{"app_name": "counter", "keys": (KEY,), "production": False, **values}
    )


async def load_session(manager: SessionManager, cookie_lines: list[str]) -> Session:
    """The session that a request with these Cookie headers has."""
    presented = manager.find(cookie_lines)
    session = await manager.load(presented) if presented else manager.session()
    return session.open()


def make_options(**options: Any) -> SessionOptions:
    has_store = options.pop("has_store", True)
    environment = options.pop("environment", None) or make_environment()
    return SessionOptions.build(environment, has_store=has_store, **options)


def make_manager(
    store: Any = None, keys: tuple[str, ...] = (KEY,), **options: Any
) -> SessionManager:
    extra = {
        name: options.pop(name)
        for name in ("draw_handle", "draw_secret", "on_event", "on_reuse")
        if name in options
    }
    return SessionManager(
        make_options(**options),
        KeyRing(keys),
        MemorySessionStore() if store is None else store,
        **extra,
    )


def make_cookie_manager(clock: Clock, **options: Any) -> CookieSessionManager:
    return CookieSessionManager(
        make_options(has_store=False, **options),
        KeyRing([KEY], clock=clock),
        clock=clock,
    )


def make_record(data: str = "{}", **values: Any) -> SessionRecord:
    fields: dict[str, Any] = {
        "handle": "a" * 12,
        "data": data,
        "secret_hash": hash_secret("b" * 24),
        "former_hash": None,
        "epoch": 0,
        "created": 1000.0,
        "used": 1000.0,
        "expires": 1000.0 + 6 * 86400,
        "now": 1000.0,
        "turned": 1000.0,
        "shown": 1000.0,
    }
    return SessionRecord(**{**fields, **values})


def make_session(data: str | None = None, **options: Any) -> Session:
    """A new session, or a stored one with this JSON text."""
    session = make_manager(**options).session()
    if data is not None:
        record = make_record(data)
        session.start(record)
        session.life.found(record, record.secret_hash)
    return session.open()


# -- stores ----------------------------------------------------------------------------


class CountingStore(MemorySessionStore):
    """Notes the name of each call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[str] = []

    async def load(self, handle, **options):
        self.calls.append("load")
        return await super().load(handle, **options)

    async def create(self, *args, **options):
        self.calls.append("create")
        return await super().create(*args, **options)

    async def save(self, handle, epoch, change, **options):
        self.calls.append("renew" if change.only_renews else "save")
        return await super().save(handle, epoch, change, **options)

    async def regenerate(self, *args, **options):
        self.calls.append("regenerate")
        return await super().regenerate(*args, **options)

    async def increment(self, *args, **options):
        self.calls.append("increment")
        return await super().increment(*args, **options)

    async def delete(self, *args, **options):
        self.calls.append("delete")
        return await super().delete(*args, **options)


class TroubledStore(CountingStore):
    """Waits before each write until `gate` is open; fails while `failing`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = asyncio.Event()
        self.gate.set()
        self.writing = asyncio.Event()
        self.failing: str = ""

    async def _write(self, verb: str) -> None:
        self.writing.set()
        await self.gate.wait()
        self._fail(verb)

    def _fail(self, verb: str) -> None:
        if verb in self.failing.split():
            raise StoreUnavailable("no route to the host of the database")

    async def load(self, *args, **options):
        self._fail("load")
        return await super().load(*args, **options)

    async def create(self, *args, **options):
        await self._write("create")
        return await super().create(*args, **options)

    async def save(self, *args, **options):
        await self._write("save")
        return await super().save(*args, **options)

    async def regenerate(self, *args, **options):
        await self._write("regenerate")
        return await super().regenerate(*args, **options)

    async def increment(self, *args, **options):
        await self._write("increment")
        return await super().increment(*args, **options)

    async def delete(self, *args, **options):
        await self._write("delete")
        return await super().delete(*args, **options)


# -- a browser -------------------------------------------------------------------------


class Jar(jar.Jar):
    """A browser's, with the session cookie at hand."""

    def get(self, name: str = NAME) -> str | None:
        found = [cookie.value for cookie in self.live() if cookie.name == name]
        assert len(found) <= 1, f"{len(found)} cookies are called {name}"
        return found[0] if found else None

    def names(self) -> list[str]:
        return sorted(cookie.name for cookie in self.live())

    def put(self, value: str, name: str = NAME) -> None:
        self.take(f"{name}={value}; Path=/")


class Browser(browser.Browser):
    """One at a URL; with a jar as above, and without a word about XSRF."""

    def __init__(
        self, url: str, *, seen_as: str | None = None, clock: Any = time.time
    ) -> None:
        super().__init__(url=url, seen_as=seen_as or "", clock=clock)
        self.jar: Jar = Jar(seen_as or url, clock)

    async def ask(self, path: str, *args: Any, **options: Any) -> HTTPResponse:
        options = {"request_timeout": 30, "xsrf": False, **options}
        return await super().ask(path, *args, **options)


def set_cookies(response: HTTPResponse, name: str | None = NAME) -> list[str]:
    """The Set-Cookie headers of this name; of every name with None."""
    return [
        header
        for header in response.headers.get_list("Set-Cookie")
        if name is None or header.startswith(name + "=")
    ]


# -- a server --------------------------------------------------------------------------


def make_app(
    routes: list[Any],
    store: Any = None,
    *,
    environ: Any = None,
    tornado: Any = None,
    **options: Any,
) -> Application:
    """An application with sessions; `tornado` are settings of Tornado's own."""
    settings = session_settings(store=store, environ=environ, **options)
    return Application(
        routes, **{**settings, "log_function": _quiet, **(tornado or {})}
    )


def _quiet(handler: object) -> None:
    """No access log."""


@contextlib.contextmanager
def serve(app: Application, **options: Any) -> Iterator[str]:
    """Serves the application in this process; gives its URL."""
    [listening] = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(app, **options)
    server.add_socket(listening)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.stop()


class Raw:
    """A connection on which bytes are sent as they are."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> Raw:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(
        self, *lines: bytes, method: bytes = b"GET", path: bytes = b"/"
    ) -> tuple[int, HTTPHeaders, bytes]:
        """One request with these header lines, and its answer."""
        head = b"\r\n".join((method + b" " + path + b" HTTP/1.1", b"Host: x", *lines))
        await self.send(head + b"\r\n\r\n")
        return await self.answer(head=method == b"HEAD")

    async def answer(self, *, head: bool = False) -> tuple[int, HTTPHeaders, bytes]:
        """The next answer: status, headers, body."""
        async with asyncio.timeout(30):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            start, _, rest = text.partition("\r\n")
            headers = HTTPHeaders.parse(rest)
            status = int(start.split()[1])
            body = b""
            if not head and status not in (204, 304):
                body = await self.reader.readexactly(
                    int(headers.get("Content-Length", 0))
                )
            return status, headers, body

    async def end(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(30):
            return await self.reader.read()


def silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing has arrived that was not read."""
    return not reader._buffer  # type: ignore[attr-defined]


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(url)), timeout=30)
