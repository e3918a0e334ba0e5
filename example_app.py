"""
The counter of the Compas documentation: an API, and a page to try it.

    make run                  then open http://127.0.0.1:8888

A handler with `SessionMixin` has `self.session`, a dict that outlives the request. It
is loaded before the handler runs; the response leaves when its changes are committed.
"""

from __future__ import annotations

from typing import Any

from tornado.escape import json_decode
from tornado.web import Application, RequestHandler

import example_server
from tornado_compas_session import AppError, PostgresSessionStore, SessionMixin, get_app


class InitHandler(SessionMixin, RequestHandler):
    def post(self) -> None:
        self.session["counter"] = 0  # The first value makes the session and its cookie.
        self.write({"value": 0})


class IncrementHandler(SessionMixin, RequestHandler):
    async def post(self) -> None:
        counter_of(self)
        # Added in the store: of requests at the same time, each counts.
        self.write({"value": await self.session.increment("counter")})


class DestroyHandler(SessionMixin, RequestHandler):
    def post(self) -> None:
        self.session = None  # Row and cookie are gone, and do not come back.
        self.write({"success": True})


def counter_of(handler: SessionMixin) -> int:
    if "counter" not in handler.session:
        info = {"message": "Please call /counter/init first"}
        raise AppError.validation_error("error.sessionNotInitialized", info)
    return int(handler.session["counter"])


class CounterHandler(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.write({"value": counter_of(self)})


class SignInHandler(SessionMixin, RequestHandler):
    def post(self) -> None:
        name = text_of(self, "name")
        if not 0 < len(name) <= 40:
            info = {"name": "1 to 40 characters"}
            raise AppError.validation_error("error.nameInvalid", info)
        self.session["user_id"] = name  # Sessions can be found by their user_id.
        self.session.regenerate()  # Whoever knew the session's id knows it no longer.
        self.write({"user_id": name})


class SignOutHandler(SessionMixin, RequestHandler):
    def post(self) -> None:
        self.session = None
        self.set_header("Clear-Site-Data", '"cache", "storage"')
        self.write({"success": True})


class SessionHandler(SessionMixin, RequestHandler):
    """What the server keeps about this visitor, for them to see."""

    def get(self) -> None:
        session = self.session
        self.write(
            {
                "is_new": session.is_new,
                "created_at": session.created_at and session.created_at.isoformat(),
                "expires": session.expires and session.expires.isoformat(),
                "data": dict(session),
            }
        )


class YourSessionsHandler(SessionMixin, RequestHandler):
    """The sessions of whoever is signed in, on all their devices."""

    def initialize(self, store: PostgresSessionStore) -> None:
        self.store = store

    def user(self) -> str:
        if "user_id" not in self.session:
            raise AppError("error.notSignedIn", 401)
        return str(self.session["user_id"])

    async def get(self) -> None:
        current = (
            self.session.handle
        )  # Names the session, and is of no use as a cookie.
        sessions = await self.store.sessions_of(self.user(), current=current)
        self.write(
            {
                "sessions": [
                    {
                        "handle": info.handle,
                        "current": info.current,
                        "last_used_at": info.last_used_at.isoformat(),
                        "user_agent": info.user_agent,
                    }
                    for info in sessions
                ]
            }
        )


class SignOutThereHandler(YourSessionsHandler):
    async def post(self) -> None:
        sessions = await self.store.sessions_of(self.user())
        handle = text_of(self, "handle")
        # A handle is no secret: only the user's own sessions may be ended by it.
        if handle not in [info.handle for info in sessions]:
            raise AppError.not_found({"handle": handle})
        await self.store.revoke(handle)
        self.write({"ended": 1})


class SignOutElsewhereHandler(YourSessionsHandler):
    async def post(self) -> None:
        ended = await self.store.revoke_user(
            self.user(), except_handle=self.session.handle
        )
        self.write({"ended": ended})


class PageHandler(RequestHandler):
    """The page; without `SessionMixin`, so it costs no query and sets no cookie."""

    def initialize(self, api: str) -> None:
        self.api = api

    def get(self) -> None:
        page, policy = example_server.page(self.api)
        self.set_header("Content-Security-Policy", policy)
        self.set_header("Cache-Control", "no-cache")
        self.write(page)

    head = get


def text_of(handler: RequestHandler, name: str) -> str:
    """A text in the JSON body. A form of another site cannot send that type."""
    content_type = handler.request.headers.get("Content-Type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise AppError("error.jsonExpected", 415)
    try:
        return str(json_decode(handler.request.body)[name]).strip()
    except (LookupError, TypeError, ValueError):
        info = {name: "expected in the JSON body"}
        raise AppError.validation_error("error.bodyInvalid", info) from None


def make_app(store: PostgresSessionStore, api: str = "", **options: Any) -> Application:
    """The application; `api` is the API's origin where it is not the page's own."""
    mine = {"store": store}
    routes = [
        ("/", PageHandler, {"api": api}),
        ("/counter", CounterHandler),
        ("/counter/init", InitHandler),
        ("/counter/increment", IncrementHandler),
        ("/counter/destroy", DestroyHandler),
        ("/sign-in", SignInHandler),
        ("/sign-out", SignOutHandler),
        ("/session", SessionHandler),
        ("/sessions", YourSessionsHandler, mine),
        ("/sessions/sign-out-there", SignOutThereHandler, mine),
        ("/sessions/sign-out-elsewhere", SignOutElsewhereHandler, mine),
    ]
    return get_app(
        routes,
        store=store,
        headers=example_server.HEADERS,
        keep_public_cookie=True,  # So that the page knows whether to ask.
        record_client=True,  # So that "Your sessions" can tell the devices apart.
        **options,
    )


if __name__ == "__main__":
    example_server.main(make_app)
