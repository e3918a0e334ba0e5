"""
`SessionMixin`: a session for Tornado's handlers. Loaded in `prepare()`, saved in
`on_finish()`, the response held back until the commit is known.

    class Counter(SessionMixin, tornado.web.RequestHandler):
        def post(self):
            self.session["counter"] = self.session.get("counter", 0) + 1

Tornado calls `prepare`, the method, and `finish`; that calls `flush`, which builds the
headers, then the connection's `finish`, then `on_finish`. So `flush` is where it is
decided what there is to save and whether the response must wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import tornado
from tornado.concurrent import Future, future_set_result_unless_cancelled
from tornado.web import HTTPError, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketHandler

from tornado_compas_session.core.manager import Plan, SessionManager
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import JSON
from tornado_compas_session.exceptions import (
    SessionError,
    SessionGone,
    SessionNotLoaded,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.web.held import HeldConnection

logger = logging.getLogger("tornado_compas_session")

#: Seconds after which a client may try again.
_RETRY_AFTER = "2"
_SENT = "the headers of the response have left"

# What the loop runs it holds weakly; these are held until they end.
_commits: set[asyncio.Task[None]] = set()


class SessionMixin(RequestHandler):
    """
    Gives a handler `self.session`. To stand before `RequestHandler` in the bases.

    - A response that was sent means that the session is committed. If the commit
      fails, the client gets a 503 with Retry-After instead, and no cookie; if another
      request ended the session meanwhile, a 409.
    - A response with a status of 500 or more discards the request's changes, a
      destruction included; one with 4xx saves them.
    - OPTIONS does no session work.

    A handler that overrides `prepare` begins it with `await super().prepare()`.
    """

    _session_manager: SessionManager
    _session: Session | None = None
    _session_error: SessionError | None = None
    _session_discard = False
    _session_plan: Plan | None = None
    _session_held: HeldConnection | None = None
    _session_watch: asyncio.TimerHandle | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, StaticFileHandler):
            raise TypeError(
                f"{cls.__name__}: SessionMixin does not go with StaticFileHandler; "
                "files that caches keep for ten years would carry session cookies. "
                "Serve files that need a session by a handler of your own"
            )

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
            if self.request.method == "OPTIONS":
                raise SessionNotLoaded("OPTIONS requests do no session work")
            raise SessionNotLoaded(f"{type(self).__name__}: {SessionNotLoaded()}")
        session._used = True
        return session

    @session.setter
    def session(self, value: Mapping[str, JSON] | None) -> None:
        if value is None:
            self.session.destroy()
        elif value is not self._session:
            self.session.replace(value)

    def get_current_user(self) -> Any:
        """The session's `user_id`; override it as with Tornado."""
        return None if self._session is None else self.session.get("user_id")

    def require_fresh(self, seconds: float) -> None:
        """
        For what is sensitive: raises a 401 unless the user signed in so recently.

        See `Session.auth_time`. Sign in again (and `regenerate()`) to go on.
        """
        if not self.session.is_fresh(seconds):
            raise HTTPError(401, "the sign-in is older than %s seconds", seconds)

    # ── Tornado's hooks ──────────────────────────────────────────────────────────

    async def prepare(self) -> None:
        """Loads the session. Costs no query without a valid session cookie."""
        result = super().prepare()
        if result is not None:
            await result
        request = self.request
        if self._finished or request.method == "OPTIONS":
            return
        manager = self._session_manager = self._session_find_manager()
        options = manager.options
        lines = request.headers.get_list("Cookie")
        presented = manager.find(lines) if lines else None
        if presented is None:
            session = Session(manager)
        else:
            try:
                session = await manager.load(presented)
                if isinstance(self, WebSocketHandler):
                    # The handshake is not held, so what it has to save is saved here.
                    await manager.commit(session, manager.plan(session))
            except SessionError as error:
                self._session_error = error
                raise
        # Weakly: a circle of references would leave the whole request, and with it a
        # tenth of the time, to the garbage collector.
        session._handler = weakref.ref(self)
        if options.secure:
            session._insecure = request.protocol != "https"
        if options.record_client:
            agent = request.headers.get("User-Agent", "")[:256]
            session._client = agent, request.remote_ip
        self._session = session
        self._session_changed()  # whoever asked before did not know yet

    def flush(self, include_footers: bool = False) -> Future[None]:
        """
        Sends what was written; the first time, the session's cookies with it.

        What needs a new cookie is committed before the headers leave, so the returned
        future may wait for the commit; the end of a response waits for all the rest.
        """
        session, error, held = self._session, self._session_error, self._session_held
        if held is not None and held.failed is not None and not self._finished:
            raise held.failed
        if error is not None:
            if not self._headers_written and isinstance(error, StoreError):
                self.set_header("Retry-After", _RETRY_AFTER)
        elif session is not None:
            if not self._headers_written:
                self._session_headers(session, final=include_footers)
            elif include_footers:
                self._session_end(session)
        return super().flush(include_footers)

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> Future[None]:
        """Ends the response; it leaves when the session is committed."""
        ui = self.ui
        future = super().finish(chunk)
        held = self._session_held
        if held is not None:
            # If `on_finish` was overridden without calling super().
            self._session_start_commit()
            if held.holding:
                self.ui = ui  # an error page may follow, and want it
        return future

    def on_finish(self) -> None:
        """Starts the save."""
        if self._session_plan is not None:
            self._session_start_commit()
        if self._status_code == 101 and self._session is not None:
            self._session_watch_over(self._session)
        super().on_finish()

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """
        As Tornado's, with 503 for a store that failed and 409 for a session that ended.

        From 500 on, the request's changes are discarded. If a part of the response has
        left and there were changes, the connection is closed instead of ending it well.
        """
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, SessionError):
            self._session_error = self._session_error or error
            status_code = _status(error, status_code)
        if self._session is not None and status_code < 500:
            try:
                self._session_manager.plan(self._session)
            except SessionError as unsaved:
                # Found while the error page is built, it would leave no answer at all.
                self.log_exception(type(unsaved), unsaved, unsaved.__traceback__)
                kwargs["exc_info"] = (type(unsaved), unsaved, unsaved.__traceback__)
                status_code = 500
        self._session_discard = self._session_discard or status_code >= 500
        held = self._session_held
        if held is not None and held.failed is not None:
            # Nothing has left yet: the headers were dropped.
            self._session_start_over()
        elif (
            self._headers_written
            and not self._finished
            and self._session_discard
            and self._session is not None
            and self._session.modified
            and not (held is not None and held.broken)  # Tornado's to say and to close
        ):
            self._session_cut(error)
            return
        super().send_error(status_code, **kwargs)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """As Tornado's; trouble with the store is logged once by the store."""
        if isinstance(value, SessionGone):
            logger.info("%s: %s", self._request_summary(), value)
        elif isinstance(value, StoreError):
            cause = value.__cause__ if type(value) is StoreError else None
            logger.log(
                logging.ERROR if cause else logging.DEBUG,
                "%s: %s",
                self._request_summary(),
                value,
                exc_info=cause,
            )
        else:
            super().log_exception(typ, value, tb)

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

    def on_connection_close(self) -> None:
        """Stops watching over a WebSocket's session."""
        if self._session_watch is not None:
            self._session_watch.cancel()
        super().on_connection_close()

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

    def _session_find_manager(self) -> SessionManager:
        manager = self.application.settings.get("session_manager")
        if manager is None:
            raise SessionNotLoaded(
                "the application has no sessions; make it with "
                "Application(routes, **session_settings(store=store))"
            )
        return manager  # type: ignore[no-any-return]

    def _session_changed(self) -> None:
        # Tornado caches it; who the visitor is may just have changed.
        # Not by `__dict__`: asking for that makes every attribute slower from then on.
        if hasattr(self, "_current_user"):
            del self._current_user

    def _session_headers(self, session: Session, *, final: bool) -> None:
        """Decides, before the headers are built, what is saved and what is held."""
        if self._status_code == 101:
            session._sealed = "the handshake of the WebSocket is over"
            self._session_add_headers(self._headers)
            return
        if final and session._blank:
            if session._used:
                _vary(self._headers)
            return
        if self._session_discard or self._status_code >= 500:
            self._session_discard = True
            if session._fresh and session._record is not None:
                # `save()` has committed: the browser must learn the id of that.
                self._session_add_headers(self._headers)
            elif session._used:
                _vary(self._headers)
            return
        plan = self._session_manager.plan(session)
        if not final and plan is not None and plan.verb == "save":
            plan = None  # data alone is saved at the end; a cookie goes before it
        if plan is not None:
            held = self._session_hold(plan)
            if final:
                self._session_hold_body(held)
            else:
                self._session_start_commit()
        else:
            self._session_add_headers(self._headers)
        if not final:
            session._sealed = _SENT

    def _session_end(self, session: Session) -> None:
        """The headers have left; the end of the body waits for what changed since."""
        held = self._session_held
        if self._session_discard or (held is not None and held.holding):
            return  # in the second case, the commit under way looks again at its end
        plan = self._session_manager.plan(session)
        if plan is not None:
            self._session_hold_body(self._session_hold(plan))

    def _session_hold(self, plan: Plan) -> HeldConnection:
        self._session_plan = plan
        connection: Any = self.request.connection
        if isinstance(connection, HeldConnection):
            connection = connection.connection
        self.request.connection = self._session_held = held = HeldConnection(
            connection, self._session_add_headers, headers_left=self._headers_written
        )
        return held

    def _session_hold_body(self, held: HeldConnection) -> None:
        """
        For a handler that streams its body and has answered before its end: Tornado
        would read on, and call the handler, because it has not seen the answer's end.
        """
        prepared: Any = self._prepared_future
        if prepared is None:
            return
        if not prepared.done():
            self._prepared_future = Future()  # type: ignore[assignment]
            held.on_decided = lambda: future_set_result_unless_cancelled(prepared, None)
        else:
            self.data_received = _ignore  # type: ignore[method-assign]
            self.request._body_future = Future()

    def _session_start_commit(self) -> None:
        plan, self._session_plan = self._session_plan, None
        held = self._session_held
        if plan is not None and held is not None and not held.broken:
            _commits.add(
                asyncio.get_running_loop().create_task(self._session_commit(plan, held))
            )

    async def _session_commit(self, plan: Plan | None, held: HeldConnection) -> None:
        session, manager = self._session, self._session_manager
        assert session is not None
        early = not self._finished
        try:
            if session._locked is not None:
                # The response was finished inside of lock(): its block comes first.
                await self._session_unlocked(session._locked)
                plan = manager.plan(session)
            await manager.commit(session, plan)
            if early and self._finished and not self._session_discard:
                # It came to its end meanwhile, perhaps with more to save.
                await manager.commit(session, manager.plan(session))
        except asyncio.CancelledError:
            self._session_fail(StoreUnavailable("the save was cancelled"), held)
            raise
        except Exception as error:
            self._session_fail(error, held)
        else:
            try:
                held.release()
            except Exception:
                # Tornado refused it, which the handler can no longer be told.
                self.log_exception(*sys.exc_info())
                held.close()
            if self._finished:
                self._break_cycles()  # Tornado's; `finish` had undone it
        finally:
            _commits.discard(asyncio.current_task())

    async def _session_unlocked(self, locked: asyncio.Future[None]) -> None:
        await asyncio.wait({locked})
        if locked.exception() is not None:
            raise SessionError(
                "the response was finished inside of lock(), and the block failed then"
            )

    def _session_fail(self, error: Exception, held: HeldConnection) -> None:
        """The commit failed: an error page leaves instead of the response."""
        if not isinstance(error, SessionError):
            logger.error("a bug in the session library", exc_info=error)
            error = StoreError("the session could not be saved")
        status = _status(error, 500)
        logger.log(
            logging.INFO if status == 409 else logging.ERROR,
            "%s %s: the session could not be saved, so a %d leaves instead of the "
            "response: %s",
            self.request.method,
            self.request.path,
            status,
            error,
        )
        held.drop(error)
        if held.headers_left:
            self._session_cut(error)
        elif self._finished:
            self._session_start_over()
            # They ran for the response that was dropped.
            self.on_finish = self._log = _nothing  # type: ignore[method-assign]
            self._finished = False
            self._session_error = error
            try:
                self.send_error(status, exc_info=(type(error), error, None))
            except Exception:
                logger.error("the error page failed", exc_info=True)
                held.close()
        # Else the handler is at work still: it hears of it from flush() or finish().

    def _session_start_over(self) -> None:
        """Makes the handler as if it had not sent anything."""
        held, self._session_held = self._session_held, None
        assert held is not None
        self.request.connection = held.connection
        self._headers_written = False
        self._transforms = []
        if hasattr(self, "_new_cookie"):
            self._new_cookie.clear()

    def _session_cut(self, error: BaseException | None) -> None:
        """Closes the connection in the middle: the client must not think it is done."""
        self._session_discard = True
        logger.error(
            "%s %s: the session was not saved and a part of the response has left; "
            "the connection is closed",
            self.request.method,
            self.request.path,
        )
        connection = self.request.connection
        assert connection is not None
        connection.close()  # type: ignore[attr-defined]
        if not self._finished:
            self._finished = True
            self.on_finish()

    def _session_watch_over(self, session: Session) -> None:
        """Looks now and then whether the session of an open WebSocket still lives."""
        if session._record is not None:
            seconds = self._session_manager.options.websocket_check
            loop = asyncio.get_running_loop()
            # Not all sockets of a restarted server at the same moment.
            self._session_watch = loop.call_later(
                seconds * random.uniform(0.5, 0.9), self._session_look, session
            )

    def _session_look(self, session: Session) -> None:
        task = asyncio.get_running_loop().create_task(self._session_check(session))
        _commits.add(task)
        task.add_done_callback(_commits.discard)

    async def _session_check(self, session: Session) -> None:
        assert isinstance(self, WebSocketHandler)
        if self.ws_connection is None:
            return
        if await self._session_manager.is_live(session):
            self._session_watch_over(session)
        else:
            self.close(1008, "the session has ended")

    def _session_add_headers(self, headers: Any) -> None:
        """Adds the cookies of what is committed now, and what caches must know."""
        session = self._session
        assert session is not None
        cookies = self._session_manager.cookies(session)
        if cookies:
            for cookie in cookies:
                if "Set-Cookie" in headers:
                    headers.add("Set-Cookie", cookie)
                else:  # the same, and does not check again what we made
                    headers["Set-Cookie"] = cookie
            if "Cache-Control" not in headers:
                # No shared cache may keep it; the browser may, and asks again.
                headers["Cache-Control"] = "private, no-cache"
        if cookies or session._used:
            _vary(headers)


def _vary(headers: Any) -> None:
    """The answer depends on the cookie, so caches must tell them apart."""
    if "Vary" not in headers:
        headers["Vary"] = "Cookie"
    else:
        vary = headers["Vary"]
        named = {name.strip() for name in vary.lower().split(",")}
        if named.isdisjoint({"cookie", "*"}):
            headers["Vary"] = f"{vary}, Cookie" if vary else "Cookie"


def _status(error: SessionError, default: int) -> int:
    if isinstance(error, StoreError):
        return 503
    return 409 if isinstance(error, SessionGone) else default


def _ignore(chunk: bytes) -> None:
    """Receives the rest of a body that nobody wants any more."""


def _nothing() -> None:
    """Stands in for a hook that has run already."""
