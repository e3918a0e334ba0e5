"""
What leaves when the commit fails, and when those who watch are told.

The access log, `log_function` and the handler's own `on_finish` hear of a response when
it is known what leaves, once. A commit that failed puts an error page in its place, or
cuts the connection where a part of it has left.
"""

from __future__ import annotations

import contextvars
import logging
import weakref
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.session import Session
from tornado_compas_session.exceptions import (
    SessionError,
    SessionGone,
    SessionNotLoaded,
    StoreError,
)
from tornado_compas_session.web.held import HeldConnection

logger = logging.getLogger("tornado_compas_session")


class FailedResponseMixin(RequestHandler):
    """The part of `SessionMixin` that answers when the session could not be saved."""

    _session_manager: SessionManager
    _session: Session | None = None
    _session_error: SessionError | None = None
    #: An error page from 500 on: the request's changes are not saved.
    _session_discard = False
    _session_held: HeldConnection | None = None
    _session_context: weakref.ref[contextvars.Context]
    _session_committing = False
    #: Within `finish()`; and whether its watchers are yet to be told.
    _session_ending = False
    _session_muted = False

    # ── Tornado's hooks ──────────────────────────────────────────────────────────

    def __init__(self, application: Any, request: Any, **kwargs: Any) -> None:
        try:
            super().__init__(application, request, **kwargs)
        except SessionNotLoaded as error:
            if not hasattr(self, "_reason"):  # so it was not initialize() that raised
                raise
            # Tornado would close the connection without an answer.
            self._session_error = error
            self.prepare = self._session_refuse  # type: ignore[method-assign]

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """
        As Tornado's, with 503 for a store that failed and 409 for a session that ended.

        From 500 on, the request's changes are discarded. If a part of the response has
        left and there were changes, the connection is closed instead of ending it well.
        A client that left in the middle of it discards nothing.
        """
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, SessionError):
            self._session_error = self._session_error or error
            status_code = status_of(error, status_code)
        session, held = self._session, self._session_held
        gone = isinstance(error, StreamClosedError) and self._headers_written
        if status_code >= 500 and not gone:
            self._session_discard = True
        if held is not None and held.failed is not None:
            # Nothing has left yet: the headers were dropped.
            self._session_start_over(held)
        elif (
            self._headers_written
            and not self._finished
            and self._session_discard
            and session is not None
            and session.modified
            and not (held is not None and held.broken)  # Tornado's to say and to close
        ):
            self._session_cut()
            return
        super().send_error(status_code, **kwargs)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """As Tornado's; trouble with the store is logged once by the store."""
        if isinstance(value, AttributeError) and isinstance(value.obj, Session):
            # Here, since a `__getattr__` would make each attribute slower.
            value.add_note(f"what a session holds is in session[{value.name!r}]")
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

    async def _session_refuse(self) -> None:
        assert self._session_error is not None
        raise self._session_error

    # ── who watches ──────────────────────────────────────────────────────────────

    def _session_mute(self) -> None:
        """Whoever watches hears of it when it is known what leaves, once."""
        if not self._session_muted:
            self._session_muted = True
            self._log = _nothing  # type: ignore[method-assign]
            self.on_finish = self._session_begin  # type: ignore[method-assign]

    def _session_unmute(self) -> None:
        if self._session_muted:
            self._session_muted = False
            del self._log, self.on_finish

    def _session_tell(self) -> None:
        """It is known what leaves."""
        self._session_unmute()
        for watcher in (self._log, self.on_finish):
            try:
                watcher()
            except Exception:
                # The response is out already, and its connection serves the next.
                logger.exception("%s failed", getattr(watcher, "__name__", watcher))

    def _session_begin(self) -> None:
        raise NotImplementedError

    # ── the commit has failed ────────────────────────────────────────────────────

    def _session_fail(self, error: Exception, held: HeldConnection) -> None:
        """The commit failed: an error page leaves instead of the response."""
        if not isinstance(error, SessionError):
            logger.error("a bug in the session library", exc_info=error)
            error = StoreError("the session could not be saved")
        status = status_of(error)
        # Of trouble with the store there is one line where it begins.
        level = {409: logging.INFO, 503: logging.DEBUG}.get(status, logging.ERROR)
        logger.log(
            level,
            "%s %s: the session could not be saved, so a %d leaves instead of the "
            "response: %s",
            self.request.method,
            self.request.path,
            status,
            error,
        )
        # Nor is what the error page changes: its failure would need a page as well.
        self._session_discard = True
        held.drop(error)
        if held.headers_left:
            self._session_cut()
        elif self._finished:
            self._session_start_over(held)
            self._finished = False
            self._session_error = error
            try:
                self.send_error(status, exc_info=(type(error), error, None))
            except Exception:
                logger.exception("the error page failed")
                held.connection.close()
        # Else the handler is at work still: it hears of it from flush() or finish().

    def _session_start_over(self, held: HeldConnection) -> None:
        """Makes the handler as if it had not sent anything."""
        self.request.connection = held.connection
        self._session_held = None
        self._session_ending = False
        self._session_unmute()
        self._headers_written = False
        self._transforms = []
        if hasattr(self, "_new_cookie"):
            self._new_cookie.clear()
        if self._session is not None:
            self._session.life.reopen()

    def _session_cut(self) -> None:
        """Closes the connection in the middle: the client must not think it is done."""
        self._session_discard = True
        logger.error(
            "%s %s: the session was not saved and a part of the response has left; "
            "the connection is closed",
            self.request.method,
            self.request.path,
        )
        connection: Any = self.request.connection
        connection.close()
        if not self._finished:
            self._finished = True
            self._session_tell()
        elif self._session_muted:
            self._session_tell()


def status_of(error: BaseException, default: int = 500) -> int:
    status = error.status_code if isinstance(error, SessionError) else 500
    return default if status == 500 else status


def _nothing() -> None:
    """Stands in for what is called later."""
