"""
Runs Tornado's own tests with a session in front of every handler.

    python with_sessions.py [--plain] MODULE…

Every request comes with a valid session cookie and changes its session, and every save
takes 2 ms, so every response is held. Prints one JSON object: how many tests ran, and
the names of those that failed. `--plain`: without sessions, for comparison.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import unittest
from typing import Any

from tornado.web import Application, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketHandler

from tornado_compas_session import MemorySessionStore, SessionMixin, session_settings
from tornado_compas_session.core.ids import hash_secret
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.settings import MANAGER

HANDLE, SECRET = "abcdefghijkl", "mnopqrstuvwxyzABCDEFGHIJ"
ENVIRON = {"APP_NAME": "suite", "APP_KEYS": "a-key-for-the-tests-and-nothing-else"}
saves = 0


class SlowStore(MemorySessionStore):
    """Every save takes 2 ms."""

    async def save(self, *args: Any, **options: Any) -> Any:
        global saves
        saves += 1
        await asyncio.sleep(0.002)
        return await super().save(*args, **options)


class _Between(RequestHandler):
    """Keeps the mixin from running the handler's own `prepare` before the load."""

    def prepare(self) -> None:
        pass


def mixed(handler: type[RequestHandler]) -> type[RequestHandler]:
    """The handler with a session, as if its author had called `super().prepare()`."""
    if issubclass(handler, SessionMixin | StaticFileHandler):
        return handler  # for files of caches the mixin declines
    if handler not in _mixed:

        async def prepare(self: Any) -> None:
            # Not in the request's headers for longer: some tests compare them.
            headers = self.request.headers
            self.request.headers = headers.copy()
            self.request.headers.add("Cookie", self.settings["suite_cookie"])
            await SessionMixin.prepare(self)
            self.request.headers = headers
            if self.request.method != "OPTIONS":
                self.session["count"] = self.session.get("count", 0) + 1
                if _is_never_held(handler):
                    await self.session.save()
            result = handler.prepare(self)
            if result is not None:
                await result

        own: dict[str, Any] = {"prepare": prepare}
        if handler.get_current_user is not RequestHandler.get_current_user:
            own["get_current_user"] = handler.get_current_user  # it is the author's
        _mixed[handler] = type(handler.__name__, (SessionMixin, _Between, handler), own)
    return _mixed[handler]


def _is_never_held(handler: type[RequestHandler]) -> bool:
    """WebSockets, and what takes the connection away from Tornado."""
    code = getattr(handler.get, "__code__", None)
    return issubclass(handler, WebSocketHandler) or (
        code is not None and "detach" in code.co_names
    )


_mixed: dict[type[RequestHandler], type[RequestHandler]] = {}


def install() -> None:
    """Puts the mixin in front of every handler, and a cookie into every request."""
    make, find = Application.__init__, Application.get_handler_delegate

    def init(self: Any, *args: Any, **settings: Any) -> None:
        make(self, *args, **settings)
        store = SlowStore()
        ours = session_settings(store, environ=ENVIRON, secure=False)
        change = SessionChange({"count": "0"}, idle=3600.0)
        with contextlib.suppress(StopIteration):  # it has nothing to wait for
            store.create(HANDLE, hash_secret(SECRET), change).send(None)
        manager = self.settings[MANAGER] = ours[MANAGER]
        name = manager.options.key
        cookie = f"{name}={manager.keys.sign(name, HANDLE + SECRET)}"
        self.settings["suite_cookie"] = cookie

    def delegate(
        self: Any, request: Any, target: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return find(self, request, mixed(target), *args, **kwargs)

    Application.__init__ = init  # type: ignore[method-assign]
    Application.get_handler_delegate = delegate  # type: ignore[assignment,method-assign]


def main() -> None:
    names = sys.argv[1:]
    if plain := "--plain" in names:
        names.remove("--plain")
    else:
        install()
    logging.getLogger("tornado_compas_session").setLevel(logging.CRITICAL)
    # As tornado.test.runtests does.
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    result = unittest.TextTestRunner(verbosity=2, stream=sys.stderr).run(suite)
    failed = {test.id() for test, _ in (*result.failures, *result.errors)}
    print(
        json.dumps(
            {
                "ran": result.testsRun,
                "failed": sorted(failed),
                "saves": saves,
                "plain": plain,
            }
        )
    )


if __name__ == "__main__":
    main()
