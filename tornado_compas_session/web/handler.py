"""
`SessionMixin`: a session for Tornado's handlers. Loaded in `prepare()`, saved in
`on_finish()`, the response held back until the commit is known.

    class Counter(SessionMixin, tornado.web.RequestHandler):
        def post(self):
            self.session["counter"] = self.session.get("counter", 0) + 1

What a handler has is here; how its response waits is in response.py, and how long its
WebSocket stays open in sockets.py.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine, Mapping
from typing import Any

import tornado
from tornado.web import HTTPError, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketHandler

from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import JSON
from tornado_compas_session.exceptions import (
    SessionError,
    SessionNotLoaded,
    SettingsError,
)
from tornado_compas_session.settings import MANAGER, SessionOptions
from tornado_compas_session.web.sockets import WatchedSocketMixin

_INSECURE = (
    "a session was not saved, because its cookie is Secure and the request came over "
    "plain http; behind a proxy that speaks https, start the server with xheaders=True "
    '(see "Behind a proxy" in the documentation)'
)
_STATIC = (
    "a session was not saved, because a StaticFileHandler sends no session cookie: "
    "caches keep what it serves for years; serve what needs one by your own handler"
)


class SessionMixin(WatchedSocketMixin):
    """
    Gives a handler `self.session`. To stand before `RequestHandler` in the bases.

    - A response that was sent means that the session is committed. If the commit
      fails, the client gets a 503 with Retry-After instead; if another request ended
      the session meanwhile, or somebody else has signed in to it, a 409.
    - A response with a status of 500 or more discards the request's changes, a
      destruction included; one with 4xx saves them.
    - The access log and the handler's own `on_finish` are told what the client gets.
    - OPTIONS does no session work.

    A handler that overrides `prepare` begins it with `await super().prepare()`.
    """

    #: Whether our `prepare` was called, and how `current_user` came about.
    _session_prepared = False
    _session_computed_user = False

    # ── for the application ──────────────────────────────────────────────────────

    @property
    def session(self) -> Session:
        """
        The visitor's session: a mapping, empty and `is_new` for a visitor without one.

        Assigning a dict starts it or replaces its content; assigning None ends it.
        Raises `SessionNotLoaded` before `prepare`, and `StoreError` on the error page
        of a request whose session could not be loaded.
        """
        session = self._session
        if session is None:
            if self._session_error is not None:
                raise self._session_error
            raise SessionNotLoaded(f"{type(self).__name__}: {self._session_why_not()}")
        session.used = True
        return session if session.opened else session.open()

    @session.setter
    def session(self, value: Mapping[str, JSON] | None) -> None:
        if value is None:
            self.session.destroy()
        elif value is not self._session:
            self.session.replace(value)

    def _session_why_not(self) -> str:
        if self.request.method == "OPTIONS":
            return "OPTIONS requests do no session work"
        if (
            getattr(self, "_transforms", None) is None
        ):  # Tornado's, from the first hook on
            return (
                "initialize() runs before the session is loaded; use self.session from "
                "prepare() on, after `await super().prepare()`"
            )
        if self._session_prepared:
            return (
                "its prepare() does not await what ours returned, so the session was "
                "not loaded; write `await super().prepare()` (in an `async def "
                "prepare(self)`)"
            )
        return (
            "the session was not loaded: the request ended before prepare(), or a "
            "prepare() does not call ours; it must begin with `await super().prepare()`"
            " (in an `async def prepare(self)`)"
        )

    def get_current_user(self) -> Any:
        """The session's `user_id`, unless the handler's classes say otherwise."""
        theirs = super().get_current_user
        if getattr(theirs, "__func__", None) is not RequestHandler.get_current_user:
            return theirs()
        return None if self._session is None else self.session.get("user_id")

    @property
    def current_user(self) -> Any:
        """As Tornado's; what was computed is so anew when the session changes."""
        if not hasattr(self, "_current_user"):
            self._session_computed_user = True
            self._current_user = self.get_current_user()
        return self._current_user

    @current_user.setter
    def current_user(self, value: Any) -> None:
        self._session_computed_user = False
        self._current_user = value

    def require_fresh(self, seconds: float) -> None:
        """
        For what is sensitive: raises a 401 unless the user signed in so recently.

        See `Session.auth_time`. Sign in again (and `regenerate()`) to go on.
        """
        if not self.session.is_fresh(seconds):
            raise HTTPError(401, "the sign-in is older than %s seconds", seconds)

    # ── Tornado's hooks ──────────────────────────────────────────────────────────

    def prepare(self) -> Coroutine[Any, Any, None]:
        """
        Loads the session; to be awaited. Costs no query without a valid session cookie.
        """
        self._session_prepared = True
        return self._session_load()

    def detach(self) -> Any:
        """
        As Tornado's. Raises `SessionError` if there are changes that nobody would save.
        """
        session = self._session
        if session is not None and self._status_code != 101 and session.modified:
            raise SessionError(
                "detach() ends the request without saving the session; "
                "call `await self.session.save()` before it"
            )
        return super().detach()

    if tornado.version_info < (6, 6):

        async def _execute(
            self, transforms: Any, *args: bytes, **kwargs: bytes
        ) -> None:
            try:
                await super()._execute(transforms, *args, **kwargs)
            except asyncio.CancelledError:
                # Tornado leaves the client waiting for ever.
                if not self._finished:
                    self.send_error(500)
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise

    # ── inside ───────────────────────────────────────────────────────────────────

    async def _session_load(self) -> None:
        result = super().prepare()
        if result is not None:
            await result
        request = self.request
        if self._finished or request.method == "OPTIONS":
            return
        manager = self.application.settings.get(MANAGER)
        if not isinstance(manager, SessionManager):
            raise _no_manager(manager)
        self._session_manager = manager
        options = manager.options
        lines = request.headers.get_list("Cookie")
        presented = manager.find(lines) if lines else ()
        try:
            if presented:
                session = await manager.load(presented, request.request_time())
            else:
                session = manager.session()
            unreachable = self._session_unreachable(options)
            if unreachable is not None:
                session.life.no_cookie(unreachable)
            if options.record_client:
                agent = request.headers.get("User-Agent", "")[:256]
                session.client = agent, request.remote_ip
            if isinstance(self, WebSocketHandler) and manager.pending(session):
                # The handshake is not held, so what it has to save is saved here.
                await manager.commit(session)
        except SessionError as error:
            self._session_error = error
            raise
        # Weakly: a circle of references would leave the whole request, and with it a
        # tenth of the time, to the garbage collector.
        session.bind(weakref.ref(self))
        self._session = session
        if self._session_computed_user:  # whoever asked before did not know yet
            self._session_changed()

    def _session_unreachable(self, options: SessionOptions) -> str | None:
        """Why no cookie of ours can reach this visitor, if none can."""
        request = self.request
        if options.secure and request.protocol != "https":
            return _INSECURE
        path = options.path
        if path != "/" and not (
            request.path == path or request.path.startswith(path.rstrip("/") + "/")
        ):
            return (
                f"a session was not saved, because its cookie has the path {path} and "
                f"the request was for {request.path}, where browsers do not send it; "
                "widen the option `path`, or move the handler"
            )
        return _STATIC if isinstance(self, StaticFileHandler) else None

    def _session_changed(self) -> None:
        # Who the visitor is may just have changed; what the handler set stays.
        # Not by `__dict__`: asking for that makes every attribute slower from then on.
        if self._session_computed_user and hasattr(self, "_current_user"):
            del self._current_user


def _no_manager(found: object) -> SessionError:
    if found is None:
        return SessionNotLoaded(
            "the application has no sessions; make it with "
            "Application(routes, **session_settings(store=store))"
        )
    return SettingsError(
        f"the application's setting {MANAGER!r} is ours, and not for a "
        f"{type(found).__name__}; what session_settings() returned belongs there"
    )
