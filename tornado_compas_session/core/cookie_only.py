"""
`CookieSessionManager`: sessions without a store, their data in the signed cookie.

The same verbs as `SessionManager`; a commit is a header. What this cannot do is said
when it is asked for: end a session elsewhere, lock, list. The cookie is signed and not
encrypted: visitors can read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from tornado_compas_session.cookies.signing import KeyRing, Signed
from tornado_compas_session.core.jsondata import encode
from tornado_compas_session.core.manager import Plan, Presented, SessionManager
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import Saved, SessionChange, SessionRecord
from tornado_compas_session.exceptions import (
    ResponseAlreadySent,
    SessionDataError,
    SessionError,
)
from tornado_compas_session.settings import SessionOptions

#: What browsers keep of name and value together (RFC 6265bis, section 5.6).
MAX_COOKIE = 4096


class CookieSessionManager(SessionManager):
    """Keeps sessions in their cookies."""

    def __init__(
        self,
        options: SessionOptions,
        keys: KeyRing,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(options, keys, None)  # type: ignore[arg-type]
        self._clock = clock

    def _presented(self, signed: Signed) -> Presented | None:
        try:
            return Presented(signed.value.decode("utf-8"), signed.old_key)
        except UnicodeDecodeError:  # signed by the application, for itself
            return None

    async def load(self, presented: Presented) -> Session:
        """The session in the cookie, if it has not expired; else a new one."""
        record = _read(presented.id, self._clock())
        if record is None:
            return Session(self)
        if record.expires <= record.now or self._ended(record):
            return Session(self, None, presented)
        return Session(self, record, presented)

    def plan(self, session: Session, *, automatic: bool = True) -> Plan | None:
        """
        Commits, which needs no waiting; so there is never anything left to do.

        Raises `SessionDataError` if the cookie would be too large for browsers.
        """
        manual = automatic and not self.options.auto_commit
        change = SessionChange() if manual else session.change()
        record = session._record
        session._doomed = ()
        if record is None and not change.changed:
            return None
        if change.only_renews and not self._renewal(session):
            return None
        if session._sealed:
            if change.only_renews:
                return None
            raise ResponseAlreadySent(session._sealed)
        if session._insecure and session.cookie is None:
            return super().plan(session, automatic=automatic)  # says why not
        now = self._clock()
        created = record.created if record else now
        idle, absolute = self.lifetime(session)
        fixed = record is not None and self.options.renew is None and not change.own
        expires = record.expires if record and fixed else now + idle
        if absolute is not None:
            expires = min(expires, created + absolute)
        # What is only renewed is written as it was, unsaved changes or not.
        kept = record.data if record and change.only_renews else None
        text = encode(session._content) if kept is None else kept
        renewed = SessionRecord(
            "",
            text,
            created,
            expires,
            now,
            None,
            session._own_idle,
            session._own_absolute,
        )
        size = len(self.options.key) + 1 + len(self._value(renewed))
        if size > MAX_COOKIE:
            raise SessionDataError(
                "all of it",
                f"its cookie would have {size} bytes, and browsers keep {MAX_COOKIE}; "
                "keep less in it, or give session_settings() a store",
            )
        if not change.only_renews:
            self._check_size(session, change)
            session.committed(
                Saved("", created, expires, now), change, session._replaced
            )
        session._raw, session._record, session._fresh = text, renewed, True
        return None

    def _value(self, record: SessionRecord) -> str:
        fields = [record.created, record.expires, record.own_idle, record.own_absolute]
        text = f"[{json.dumps(fields)[1:-1]},{record.data}]".encode()
        # A multiple of three: base64 then ends without "=", and needs no quotes.
        text += b" " * (-len(text) % 3)
        return self.keys.sign(self.options.key, text)

    async def commit(self, session: Session, plan: Plan | None) -> None:
        """Nothing is left to do: `plan` has done it."""

    async def save(self, session: Session) -> None:
        """Decides on the cookie of this response."""
        self.plan(session, automatic=False)

    async def reload(self, session: Session) -> None:
        """Drops what has changed since the last save."""
        session._begin(session._record)

    def lock(
        self, session: Session, timeout: float | None
    ) -> AbstractAsyncContextManager[None]:
        """Cannot be: the browser holds the data."""
        raise SessionError("lock() needs a store; give session_settings() one")

    def handle(self, session: Session) -> str | None:
        """There is none: nothing can be revoked."""
        return None


def _read(text: str, now: float) -> SessionRecord | None:
    """The record in a verified value, or None if it is not of this kind."""
    try:
        created, expires, own_idle, own_absolute, data = json.loads(text)
        if not isinstance(data, dict):
            return None
        return SessionRecord(
            text,
            encode(data),
            float(created),
            float(expires),
            now,
            None,
            own_idle,
            own_absolute,
        )
    except (ValueError, TypeError, RecursionError):
        return None
