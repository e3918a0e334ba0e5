"""
`HeldResponseMixin`: a response leaves when what was changed before it is committed.

Tornado calls the method, and `finish`; that calls `flush`, which builds the headers,
then the connection's `finish`, then `_log` and `on_finish`. So `flush` is where it is
decided whether the response must wait; Tornado's call of `on_finish` is where the save
starts; and what watches, the access log and the handler's own `on_finish`, is told when
it is known what leaves.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import weakref
from functools import partial
from typing import Any

from tornado.concurrent import Future, future_set_result_unless_cancelled
from tornado.httputil import HTTPHeaders

from tornado_compas_session.core.session import Session
from tornado_compas_session.exceptions import StoreError
from tornado_compas_session.web.caching import keep_private, may_be_shared, vary
from tornado_compas_session.web.failed import FailedResponseMixin, status_of
from tornado_compas_session.web.held import HeldConnection

logger = logging.getLogger("tornado_compas_session")

#: Seconds after which a client may try again.
_RETRY_AFTER = "2"
_SENT = (
    "the headers of the response have left, and the cookie goes with them only; "
    "begin a session, sign in and regenerate before flush()"
)
_FINISHED = (
    "the response has been finished, so the session can no longer change; change it "
    "before finish(), and what happens later by the store"
)


class HeldResponseMixin(FailedResponseMixin):
    """Holds responses until the commit; the part of `SessionMixin` that answers."""

    # ── Tornado's hooks ──────────────────────────────────────────────────────────

    def _execute(self, transforms: Any, *args: bytes, **kwargs: bytes) -> Any:
        # The commit runs in the same context as the handler: who watches is told there,
        # and takes off what it has attached at the beginning, as opentelemetry does.
        # Weakly, since a handler that stands in its own context would be a circle.
        context = contextvars.copy_context()
        self._session_context = weakref.ref(context)
        return asyncio.get_running_loop().create_task(
            super()._execute(transforms, *args, **kwargs), context=context
        )

    def flush(self, include_footers: bool = False) -> Future[None]:
        """
        Sends what was written; the first time, the session's cookies with it.

        What needs a new cookie is committed before the headers leave, so the returned
        future may wait for the commit; the end of a response waits for all the rest.
        Inside of `lock()` it does not wait: the response leaves after the block.
        """
        session, held = self._session, self._session_held
        if held is not None and held.failed is not None and not self._finished:
            raise held.failed
        if not self._headers_written:
            if isinstance(self._session_error, StoreError):
                self.set_header("Retry-After", _RETRY_AFTER)
            if session is not None:
                self._session_before_headers(session, final=include_footers)
        elif include_footers and held is not None and held.failed is None:
            held.end_comes()
        future = super().flush(include_footers)
        held = self._session_held
        if held is not None and held.holding and session is not None and session.locked:
            # It would wait for the end of the block that waits for it.
            future = Future()
            future.set_result(None)
        return future

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> Future[None]:
        """Ends the response; it leaves when the session is committed."""
        session, held = self._session, self._session_held
        if session is None or self._finished:
            return super().finish(chunk)
        if held is not None and held.failed is not None:
            # Of a flush() that nobody awaited. Raised here it might reach nobody.
            error = held.failed
            self.send_error(status_of(error), exc_info=(type(error), error, None))
            future: Future[None] = Future()
            future.set_result(None)
            return future
        self._session_ending = True
        if held is not None and held.holding:
            self._session_mute()
        ui = self.ui
        try:
            future = super().finish(chunk)
        except BaseException:
            self._session_ending = False
            self._session_unmute()
            raise
        if self._status_code != 101:
            session.life.finish(_FINISHED)
        if self._session_muted:
            self.ui = ui  # an error page may follow, and want it
        return future

    # ── before the headers ───────────────────────────────────────────────────────

    def _session_before_headers(self, session: Session, *, final: bool) -> None:
        """Decides, before the headers are built, whether the response must wait."""
        life, headers = session.life, self._headers
        if self._status_code == 101:
            self._session_headers_leave(headers)
            life.headers_left("the handshake of the WebSocket is over")
            self._session_watch_over(session)
            return
        if final and life.blank and session.untouched:
            if session.used:
                keep_private(headers)
                vary(headers)
            return
        if self._session_discard or self._status_code >= 500:
            self._session_discard = True
            self._session_headers_leave(headers)
            return
        if hasattr(self, "_new_cookie") and session_key(self) in self._new_cookie:
            life.no_cookie("")  # the handler sets or clears it itself, and that wins
        waits = self._session_manager.pending(session)
        planned = session.planned
        if (
            planned is not None
            and planned.renews_cookie
            and self._session_keeps_quiet()
        ):
            life.no_renewal()
            waits = self._session_manager.pending(session)
            planned = session.planned
        if waits and not final and planned is not None and planned.verb == "save":
            waits = False  # data alone is saved at the end; a cookie goes before it
        if waits:
            held = self._session_hold(holding=True)
            if final:
                self._session_mute()
                self._session_hold_body(held)
            else:
                self._session_begin()
        elif final:
            self._session_headers_leave(headers)
        else:
            self._session_hold(holding=False)

    def _session_keeps_quiet(self) -> bool:
        """No renewed cookie for a cache to keep, or for a page that nobody has seen."""
        return (
            self._status_code == 304
            or may_be_shared(self._headers)
            or "prefetch" in self.request.headers.get("Sec-Purpose", "")
        )

    def _session_headers_leave(self, headers: HTTPHeaders) -> None:
        """Adds the cookies of what is committed now, and what caches must know."""
        session = self._session
        assert session is not None
        cookies = self._session_manager.cookies(session, failed=self._session_discard)
        for cookie in cookies:
            if "Set-Cookie" in headers:
                headers.add("Set-Cookie", cookie)
            else:  # the same, and does not check again what we made
                headers["Set-Cookie"] = cookie
        if cookies or session.used:
            keep_private(headers, cookie_of=type(self) if cookies else None)
            vary(headers)
        if not self._session_ending:
            session.life.headers_left(_SENT)

    def _session_watch_over(self, session: Session) -> None:
        raise NotImplementedError

    # ── while it is held ─────────────────────────────────────────────────────────

    def _session_hold(self, *, holding: bool) -> HeldConnection:
        before = self._session_held
        self._session_held = held = HeldConnection(
            self.request.connection if before is None else before.connection,
            self._session_headers_leave,
            self._session_before_end,
            holding=holding,
        )
        self.request.connection = held.face
        return held

    def _session_before_end(self) -> bool:
        """Whether the end of the response must wait; the headers have left."""
        session = self._session
        assert session is not None
        if self._session_discard or not self._session_manager.pending(session):
            return False
        if self._session_ending:
            self._session_mute()
            held = self._session_held
            assert held is not None
            self._session_hold_body(held)
        else:
            self._session_begin()
        return True

    def _session_begin(self) -> None:
        """Starts the commit, if it has not started."""
        session, held = self._session, self._session_held
        assert session is not None
        if self._session_committing or held is None or held.broken:
            return
        self._session_committing = True
        try:
            self._session_manager.begin(
                session, partial(self._session_committed, held), self._session_context()
            )
        except Exception as error:
            self._session_committed(held, error)

    def _session_committed(self, held: HeldConnection, error: Exception | None) -> None:
        self._session_committing = False
        if error is None:
            self._session_release(held)
        else:
            self._session_fail(error, held)

    def _session_release(self, held: HeldConnection) -> None:
        try:
            held.release()
        except Exception:
            # Tornado refused it, which the handler can no longer be told.
            self.log_exception(*sys.exc_info())
            held.connection.close()
        if self._finished:
            held.forget()
            if self._session_muted:
                self._session_tell()
            self._break_cycles()  # Tornado's; `finish` had undone it

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


def session_key(handler: HeldResponseMixin) -> str:
    """The name of the session cookie."""
    return handler._session_manager.options.key


def _ignore(chunk: bytes) -> None:
    """Receives the rest of a body that nobody wants any more."""
