"""
`SessionManager`: sessions without HTTP. Which session a cookie means (arrival.py), how
its changes are committed (commit.py), and which cookies follow (departure.py).

The mixin only translates: request to `find` and `load`, response to `commit` and
`cookies`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable, Sequence

from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.arrival import (
    CookieJarReader,
    Doorkeeper,
    Presented,
    ReuseHook,
    opens,
)
from tornado_compas_session.core.commit import Committer, Done
from tornado_compas_session.core.departure import Departures
from tornado_compas_session.core.events import EventHook, Events
from tornado_compas_session.core.guard import Guard
from tornado_compas_session.core.ids import new_handle, new_secret
from tornado_compas_session.core.keeper import SessionKeeper
from tornado_compas_session.core.lifetimes import Lifetimes
from tornado_compas_session.core.plan import Planner
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import SessionRecord
from tornado_compas_session.exceptions import SessionError, StoreError
from tornado_compas_session.settings import SessionOptions

__all__ = ["Presented", "ReuseHook", "SessionManager"]


class SessionManager:
    """Loads, commits and ends the sessions of one application."""

    def __init__(
        self,
        options: SessionOptions,
        keys: KeyRing,
        store: SessionStore,
        *,
        on_reuse: ReuseHook | None = None,
        on_event: EventHook | None = None,
        draw_handle: Callable[[], str] = new_handle,
        draw_secret: Callable[[], str] = new_secret,
    ) -> None:
        self.options = options
        self._tell = tell = None if on_event is None else Events(on_event)
        self.keys = keys
        self.store = store
        self.lifetimes = Lifetimes(options)
        self._door = Doorkeeper(options, on_reuse)
        self._departures = Departures(options, self.lifetimes)
        self._planner = Planner(options, self.lifetimes)
        guard = Guard(options.timeout, getattr(store, "trouble", None))
        self._committer = Committer(
            self._planner,
            store,
            guard,
            draw_handle=draw_handle,
            draw_secret=draw_secret,
        )
        self._keeper = SessionKeeper(store, self.lifetimes, self._committer, guard)
        if tell is not None:
            self._door.tell = guard.trouble.tell = tell
            self._committer.told(tell)
            if (listen := getattr(store, "listen", None)) is not None:
                listen(tell)

    @property
    def keys(self) -> KeyRing:
        """What cookies are signed with; others may be set while requests come in."""
        return self._keys

    @keys.setter
    def keys(self, keys: KeyRing) -> None:
        self._keys = keys
        self._reader = CookieJarReader(self.options, keys)
        self._reader.tell = self._tell

    # ── the beginning of a request ───────────────────────────────────────────────

    def find(self, cookie_lines: Iterable[str]) -> tuple[Presented, ...]:
        """The verified session ids in the Cookie headers."""
        return self._reader.find(cookie_lines)

    def session(self, record: SessionRecord | None = None) -> Session:
        """The session of a row, or a new one."""
        return Session(self._keeper, record)

    async def load(
        self, presented: Sequence[Presented], waited: float = 0.0
    ) -> Session:
        """
        The session of a request: that which its cookies open, else a new one.

        An id that the store does not know is never adopted. `waited` is how many
        seconds ago the request began to come in. Raises `StoreError`.
        """
        load = self._keeper.load
        if len(presented) == 1:
            [each] = presented
            record = await load(each.handle)
            if record is not None and opens(each, record):  # as nearly always
                session = Session(self._keeper, record)
                self._door.let_in(session, record, each, waited)
                return session
            records = {each.handle: record}
        else:
            handles = list(dict.fromkeys(each.handle for each in presented))
            found = await asyncio.gather(*map(load, handles))
            records = dict(zip(handles, found, strict=True))
        session = self.session()
        await self._door.admit(session, presented, records, waited)
        return session

    async def why_ended(self, session: Session) -> str | None:
        """
        Why an open WebSocket is to be closed: its session has ended, or is another
        visitor's. None while it lives, and while that is not known.
        """
        record = session.life.record
        if record is None:
            return "the session has ended"
        try:
            found = await self._keeper.load(record.handle)
        except StoreError:
            return None
        if found is None:
            return "the session has ended"
        if found.epoch != record.epoch:
            return "the visitor has signed in or out"
        session.life.seen(found)
        return None

    # ── the end of a request ─────────────────────────────────────────────────────

    def pending(self, session: Session, *, automatic: bool = True) -> bool:
        """
        Whether a response has anything to wait for: a write, a due renewal, a block of
        `lock()`, or an error that `commit` will raise.
        """
        session.planned = None
        if session.locked or session.block_error is not None:
            return True
        try:
            session.planned = self._planner.next(session, automatic=automatic)
        except SessionError:
            return True
        return session.planned is not None

    async def commit(self, session: Session, *, automatic: bool = True) -> None:
        """
        Makes durable whatever is pending, what comes meanwhile included, or raises.

        Raises `StoreError`, `SessionDataError`, `ResponseAlreadySent`, or `SessionGone`
        if another request ended the session, or signed somebody else in, whose data
        this one changed.
        """
        await self._committer.commit(session, automatic=automatic)

    def begin(
        self, session: Session, done: Done, context: contextvars.Context | None = None
    ) -> None:
        """
        The same without waiting: `done` is called, in this context, when it is over,
        with what it met or None. To be called right after `pending`.
        """
        self._committer.begin(session, done, context)

    def cookies(self, session: Session, *, failed: bool = False) -> list[str]:
        """
        The Set-Cookie headers of a response, for the session as it is committed now.

        A session that got a new secret has its cookie set; one that this request has
        ended has it cleared, and so has one that it found gone a moment ago, unless it
        `failed`. Nothing else touches it.
        """
        life = session.life
        record, secret = life.record, life.secret
        if life.unreachable is not None:
            return []
        if record is not None and secret is not None:
            text = record.handle + secret
            if self.options.signed:
                text = self._reader.signatures.sign(text)
            return self._departures.set(session, text)
        clears = life.clears if failed else life.clears_cookie
        return self._departures.clear(session) if clears else []
