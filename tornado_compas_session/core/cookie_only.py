"""
`CookieSessionManager`: sessions without a store, their data in the signed cookie.

The same verbs as `SessionManager`; a commit is a header. What this cannot do is said
when it is asked for: end a session elsewhere, lock, count, list. A copy of the cookie
is good until it expires, whatever happens to the original: there is no row to tell. The
cookie is signed and not encrypted: visitors can read it.

It leaves with what this request has written, and with nothing else. So reading does not
extend the lifetime here: the late answer of a read would bring a session back that was
signed out meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import cast

from tornado_compas_session.browsers import MAX_MAX_AGE
from tornado_compas_session.cookies.signing import KeyRing, RecentSignatures, Signed
from tornado_compas_session.cookies.text import cookie_reader
from tornado_compas_session.core.arrival import Presented
from tornado_compas_session.core.commit import Begun, Committer
from tornado_compas_session.core.guard import Guard
from tornado_compas_session.core.jsondata import encode
from tornado_compas_session.core.keeper import SessionKeeper
from tornado_compas_session.core.lifetimes import Lifetimes
from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.plan import Planner, Step
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import (
    Saved,
    SessionChange,
    SessionInfo,
    SessionRecord,
)
from tornado_compas_session.exceptions import SessionDataError, SessionError
from tornado_compas_session.settings import SessionOptions

#: What browsers keep of name and value together (RFC 6265bis, section 5.6).
MAX_COOKIE = 4096
#: Nothing here takes time.
_NO_GUARD = Guard(1.0)


class CookieSessionManager(SessionManager):
    """Keeps sessions in their cookies."""

    def __init__(
        self,
        options: SessionOptions,
        keys: KeyRing,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        super().__init__(options, keys, cast(SessionStore, None))
        self._planner = _CookiePlanner(options, self.lifetimes)
        self._committer = _CookieCommitter(self, self._planner)
        self._keeper = _CookieKeeper(self._committer, self.lifetimes)

    @property
    def keys(self) -> KeyRing:
        """What cookies are signed with; others may be set while requests come in."""
        return self._keys

    @keys.setter
    def keys(self, keys: KeyRing) -> None:
        self._keys = keys
        # What is in it says when it ends; a session's own lifetime may be longer.
        longest = MAX_MAX_AGE + 86400.0
        self._readers = [
            (cookie_reader(name), RecentSignatures(keys, name, longest, _read))
            for name in self.options.cookie_names
        ]
        self._signatures = self._readers[0][1]

    def find(self, cookie_lines: Iterable[str]) -> tuple[Presented, ...]:
        """The verified sessions in the Cookie headers; each stands for itself."""
        for values, signatures in self._readers:
            found = tuple(filter(None, map(signatures.verify, values(cookie_lines))))
            if found:
                return cast("tuple[Presented, ...]", found)
        return ()

    async def load(
        self, presented: Sequence[Presented], waited: float = 0.0
    ) -> Session:
        """The session in the cookie, if it has not expired; else a new one."""
        session = self.session()
        life = session.life
        life.came_with(len(presented))
        if len(set(presented)) != 1:
            return session  # which one is the visitor's cannot be known
        now = self._clock()
        record = cast("SessionRecord", presented[0])._replace(now=now, turned=now)
        if record.expires <= record.now or self.lifetimes.is_over(record):
            life.found_nothing()
            return session
        session.start(record)
        life.found(record, record.secret_hash)
        life.kept_in_cookie()
        return session

    def cookies(self, session: Session, *, failed: bool = False) -> list[str]:
        """The Set-Cookie headers of a response that has written its session."""
        life = session.life
        if life.unreachable is not None:
            return []
        if life.record is not None and life.secret is not None:
            return self._departures.set(session, self.value(life.record))
        clears = life.clears if failed else life.clears_cookie
        return self._departures.clear(session) if clears else []

    def value(self, record: SessionRecord) -> str:
        """The cookie's value."""
        fields = [
            record.created,
            record.used,
            record.expires,
            record.own_idle,
            record.own_absolute,
        ]
        text = f"[{json.dumps(fields)[1:-1]},{record.data}]".encode()
        # A multiple of three: base64 then ends without "=", and needs no quotes.
        text += b" " * (-len(text) % 3)
        return self._signatures.sign(text.decode())

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()


class _CookiePlanner(Planner):
    def next(self, session: Session, *, automatic: bool) -> Step | None:
        """What the request has written; a renewal alone is nothing."""
        session.life.no_renewal()
        step = super().next(session, automatic=automatic)
        if step is None or step.verb == "delete":
            return step
        if not (step.difference or step.change.own or step.signed_in):
            return None
        # Data too is a cookie here, which leaves with the headers.
        return step._replace(verb="create")


class _CookieCommitter(Committer):
    """Writes the session's cookie instead of a row."""

    def __init__(self, manager: CookieSessionManager, planner: Planner) -> None:
        super().__init__(planner, manager.store, _NO_GUARD)
        self._manager = manager

    async def _write(
        self, session: Session, step: Step, begun: Begun | None = None
    ) -> None:
        life = session.life
        if step.verb == "delete":
            life.ended(done=True)
            return
        life.check_cookie()
        options, now = self._manager.options, self._manager.now()
        record = life.record
        created = record.created if record else now
        idle, absolute = self._manager.lifetimes.of(session)
        fixed = not step.change.own and (
            options.renew is None or not (options.overwrite or step.signed_in)
        )
        expires = record.expires if record and fixed else now + idle
        if absolute is not None:
            expires = min(expires, created + absolute)
        saved = Saved(expires, now)
        written = SessionRecord.made("", b"", step.change, saved)._replace(
            data=encode(dict(dict.items(session.open()))), created=created
        )
        size = len(options.key) + 1 + len(self._manager.value(written))
        if size > MAX_COOKIE:
            raise SessionDataError(
                "all of it",
                f"its cookie would have {size} bytes, and browsers keep {MAX_COOKIE}; "
                "keep less in it, or give session_settings() a store",
            )
        life.draw(str, str)
        life.created(written)
        life.kept_in_cookie()
        self._written(session, step, session.ledger)


class _CookieKeeper(SessionKeeper):
    def __init__(self, committer: Committer, lifetimes: Lifetimes) -> None:
        super().__init__(cast(SessionStore, None), lifetimes, committer, _NO_GUARD)

    async def reload(self, session: Session) -> None:
        """Drops what has changed since the last save."""
        session.start(session.life.record)
        session.open()

    async def increment(self, session: Session, key: str, by: float) -> int | float:
        """Cannot be: two requests at once would each count for itself."""
        raise SessionError("increment() needs a store; give session_settings() one")

    async def end_others(self, session: Session) -> int:
        """Cannot be: nobody knows of the others."""
        raise SessionError("end_others() needs a store; give session_settings() one")

    async def devices(self, session: Session) -> list[SessionInfo]:
        """Cannot be: nobody knows of the others."""
        raise SessionError("devices() needs a store; give session_settings() one")

    def lock(
        self, session: Session, timeout: float | None
    ) -> AbstractAsyncContextManager[None]:
        """Cannot be: the browser holds the data."""
        raise SessionError("lock() needs a store; give session_settings() one")


def _read(signed: Signed) -> SessionRecord | None:
    """
    The session in a verified value, as a row would have it but for the time of now;
    None if the value is not of this kind.
    """
    try:
        created, used, expires, own_idle, own_absolute, data = json.loads(signed.value)
        if not isinstance(data, dict):
            return None
        change = SessionChange(own_idle=own_idle, own_absolute=own_absolute)
        made = SessionRecord.made("", b"", change, Saved(float(expires), float(used)))
        return made._replace(data=encode(data), created=float(created))
    except (ValueError, TypeError, RecursionError):  # signed by the application
        return None
