"""
`SessionManager`: sessions without HTTP. Which session a cookie means (arrival.py), how
its changes are committed (commit.py), and which cookies follow (departure.py).

The mixin only translates: request to `find` and `load`, response to `commit` and
`cookies`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.arrival import (
    CookieJarReader,
    Doorkeeper,
    Presented,
    ReuseHook,
)
from tornado_compas_session.core.change import Difference
from tornado_compas_session.core.commit import Committer
from tornado_compas_session.core.departure import Departures
from tornado_compas_session.core.guard import Guard
from tornado_compas_session.core.ids import new_handle, new_secret
from tornado_compas_session.core.jsondata import (
    check_key,
    decode_object,
    encode,
    join_object,
)
from tornado_compas_session.core.lifetimes import Lifetimes
from tornado_compas_session.core.protocols import SessionStore, UserSessions
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import (
    SessionChange,
    SessionInfo,
    SessionRecord,
    known_user,
)
from tornado_compas_session.exceptions import (
    LockTimeout,
    SessionDataError,
    SessionError,
    SessionGone,
    StoreError,
)
from tornado_compas_session.settings import SessionOptions

logger = logging.getLogger("tornado_compas_session")

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
        draw_handle: Callable[[], str] = new_handle,
        draw_secret: Callable[[], str] = new_secret,
    ) -> None:
        self.options = options
        self.keys = keys
        self.store = store
        self.lifetimes = Lifetimes(options)
        self._guard = Guard(options.timeout, getattr(store, "trouble", None))
        self._door = Doorkeeper(options, on_reuse)
        self._departures = Departures(options, self.lifetimes)
        self._committer = Committer(
            options,
            store,
            self.lifetimes,
            self._guard,
            draw_handle=draw_handle,
            draw_secret=draw_secret,
        )

    @property
    def keys(self) -> KeyRing:
        """What cookies are signed with; others may be set while requests come in."""
        return self._keys

    @keys.setter
    def keys(self, keys: KeyRing) -> None:
        self._keys = keys
        self._reader = CookieJarReader(self.options, keys)

    # ── the beginning of a request ───────────────────────────────────────────────

    def find(self, cookie_lines: Iterable[str]) -> tuple[Presented, ...]:
        """The verified session ids in the Cookie headers."""
        return self._reader.find(cookie_lines)

    async def load(
        self, presented: Sequence[Presented], waited: float = 0.0
    ) -> Session:
        """
        The session of a request: that which its cookies open, else a new one.

        An id that the store does not know is never adopted. `waited` is how many
        seconds ago the request began to come in. Raises `StoreError`.
        """
        handles = list(dict.fromkeys(each.handle for each in presented))
        if len(handles) == 1:
            records = {handles[0]: await self._load(handles[0])}
        else:
            found = await asyncio.gather(*map(self._load, handles))
            records = dict(zip(handles, found, strict=True))
        session = Session(self)
        await self._door.admit(session, presented, records, waited)
        return session

    async def _load(self, handle: str) -> SessionRecord | None:
        guard = self._guard
        work = self.store.load(handle, deadline=guard.deadline)
        record = await guard(work, "reads")
        if record is not None and self.lifetimes.is_over(record):
            return None
        return record

    async def why_ended(self, session: Session) -> str | None:
        """
        Why an open WebSocket is to be closed: its session has ended, or is another
        visitor's. None while it lives, and while that is not known.
        """
        record = session.life.record
        if record is None:
            return "the session has ended"
        try:
            found = await self._load(record.handle)
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
            session.planned = self._committer.next(session, automatic=automatic)
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
        async with session.busy():
            if session.block_error is not None:
                raise SessionError(
                    "the response was finished inside of lock(), and the block failed "
                    "then"
                ) from session.block_error
            await self._committer.all(session, automatic=automatic)

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

    # ── for the session (its `Keeper`) ───────────────────────────────────────────

    async def save(self, session: Session) -> None:
        """Commits what changed so far; see `Session.save`."""
        await self._outside(session, "save()")
        await self.commit(session, automatic=False)

    async def reload(self, session: Session) -> None:
        """Takes the session afresh; see `Session.reload`."""
        await self._outside(session, "reload()")
        async with session.busy():
            life = session.life
            record = life.record
            session.planned = None
            if record is None:
                session.start(None)
                return
            found = await self._load(record.handle)
            if found is None or found.epoch != record.epoch:
                life.lost()
                session.start(None)
                raise SessionGone
            life.seen(found)
            session.start(found)
            session.open()

    async def increment(self, session: Session, key: str, by: float) -> int | float:
        """Adds to a number in the store; see `Session.increment`."""
        check_key(key)
        life = session.life
        life.check_open()
        if key == "user_id":
            raise SessionDataError(key, "it says who the visitor is; it is no counter")
        if not _is_number(by):
            raise SessionDataError(key, f"a {type(by).__name__} cannot be added")
        text = encode(by, key)
        if self._is_inside(session) or (life.record is None and not life.strange):
            return _add(session, key, by)
        await self._outside(session, "increment()")
        async with session.busy():
            if not session.ledger.untouched:
                changed = session.ledger.difference(session)
                if key in changed.changed or key in changed.removed or changed.exact:
                    await self._committer.all(session, automatic=False)
            record = life.record
            if record is None:
                raise SessionGone
            session.planned = None
            ledger = session.ledger
            change = self.lifetimes.of_change(session, SessionChange())
            done = await self._guard(
                self.store.increment(
                    record.handle,
                    record.epoch,
                    key,
                    text,
                    change,
                    deadline=self._guard.deadline,
                )
            )
            if done is None:
                life.lost()
                session.start(None)
                raise SessionGone
            life.saved(done.saved)
            value = cast(float, json.loads(done.text))
            if session.ledger is ledger:  # else it was ended meanwhile
                dict.__setitem__(session.open(), key, value)
                ledger.holds(key, encode(value))
            return value

    async def end_others(self, session: Session) -> int:
        """Ends the user's other sessions; see `Session.end_others`."""
        user = self._user(session)
        if session.is_new or session.modified:
            await self.save(session)
        store = self._user_sessions("end_others()")
        work = store.revoke_user(user, except_handle=session.handle)
        return await self._guard(work)

    async def devices(self, session: Session) -> list[SessionInfo]:
        """The user's live sessions; see `Session.devices`."""
        user = self._user(session)
        store = self._user_sessions("devices()")
        work = store.sessions_of(user, current=session.handle)
        return await self._guard(work, "reads")

    def _user(self, session: Session) -> str:
        if session.user is None:
            raise SessionDataError("user_id", "nobody is signed in to this session")
        return known_user(session.user)

    def _user_sessions(self, call: str) -> UserSessions:
        if not isinstance(self.store, UserSessions):
            raise SessionError(
                f"{call} needs a store that can find the sessions of a user; "
                f"{type(self.store).__name__} cannot"
            )
        return self.store

    def lock(
        self, session: Session, timeout: float | None
    ) -> AbstractAsyncContextManager[None]:
        """Locks the session for the length of the block; see `Session.lock`."""
        return self._lock(session, self.options.timeout if timeout is None else timeout)

    @asynccontextmanager
    async def _lock(self, session: Session, timeout: float) -> AsyncIterator[None]:
        if self._is_inside(session):
            raise SessionError("lock() is open already; it cannot be nested")
        if session.locked and not await self._block_ends(session, timeout):
            raise LockTimeout
        async with session.busy():
            session.planned = None
            session.locked, session.busy_task = True, asyncio.current_task()
            try:
                if session.life.record is None:
                    async with self._alone(session):
                        yield
                else:
                    async with self._row_locked(session, timeout):
                        yield
            except BaseException as error:
                if session.life.is_finished:
                    session.block_error = error
                raise
            finally:
                session.locked, session.busy_task = False, None

    @asynccontextmanager
    async def _alone(self, session: Session) -> AsyncIterator[None]:
        """Nobody else knows an id of a new session, so there is nobody to keep out."""
        if session.life.strange:
            raise SessionGone
        before = encode(dict(dict.items(session)))
        untouched = session.ledger.untouched
        try:
            yield
            await self._committer.all(session, automatic=False)
        except BaseException:
            if session.life.record is None:
                session.start(None)
                dict.update(session, decode_object(before))
                session.ledger.untouched = untouched
            raise

    @asynccontextmanager
    async def _row_locked(
        self, session: Session, timeout: float
    ) -> AsyncIterator[None]:
        life = session.life
        record = life.record
        assert record is not None
        before = _Unsaved(session)
        checkpoint: dict[str, Any] | None = None
        try:
            async with self.store.lock(record.handle, record.epoch, timeout) as locked:
                if locked is None:
                    life.lost()
                    session.start(None)
                    raise SessionGone
                record = locked.record
                life.seen(record)
                checkpoint = life.checkpoint()
                before.put_on(record)
                yield
                committed = await self._committer.locked(session, locked)
        except BaseException:
            # Of the block's own, of its save, or of the COMMIT.
            if checkpoint is not None:
                life.roll_back(checkpoint, record)
                before.put_on(record)
            raise
        if committed is not None:
            committed()

    def _is_inside(self, session: Session) -> bool:
        """Whether the caller is inside of the block of `lock()` that is open now."""
        return session.locked and session.busy_task is asyncio.current_task()

    async def _outside(self, session: Session, call: str) -> None:
        """Waits for the end of a block of `lock()`, if it is not the caller's own."""
        if self._is_inside(session):
            raise SessionError(
                f"inside lock() the session is saved at the end of the block; leave "
                f"the call of {call} out"
            )
        seconds = self.options.timeout
        if session.locked and not await self._block_ends(session, seconds):
            raise SessionError(
                f"{call} has waited {seconds:g} seconds for the end of a block of "
                "lock() of this request; does the block wait for this task?"
            )

    async def _block_ends(self, session: Session, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds), session.busy():
                return True
        except TimeoutError:
            return False

    def lifetime(self, session: Session) -> tuple[int, int | None]:
        """The idle and the absolute lifetime of a session, its own ones first."""
        return self.lifetimes.of(session)

    def ends_with_browser(self, session: Session) -> bool:
        """Whether the cookie of a session has no lifetime of its own."""
        return self.lifetimes.ends_with_browser(session)


class _Unsaved:
    """What a session has changed so far, to be put on a row that was read afresh."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._difference: Difference = session.ledger.difference(session)
        self._own = session.own_set, session.own_idle, session.own_absolute

    def put_on(self, record: SessionRecord) -> None:
        session, difference = self._session, self._difference
        session.start(record)
        session.open()
        if self._own[0]:
            session.own_set, session.own_idle, session.own_absolute = self._own
        fresh = decode_object(join_object(difference.changed))
        if difference.exact is not None:
            session.ledger.replace()
            dict.clear(session)
        for key in (*fresh, *difference.removed):
            session.ledger.note(key, session)
        dict.update(session, fresh)
        for key in difference.removed:
            dict.pop(session, key, None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _add(session: Session, key: str, by: float) -> int | float:
    value = session.get(key, 0)
    if not _is_number(value):
        raise SessionDataError(key, f"a {type(value).__name__} is no number to add to")
    session[key] = value + by
    return cast(float, session[key])
