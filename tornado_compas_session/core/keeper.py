"""
What a session can be told that needs a store: `save()`, `increment()`, `lock()`, and
whatever else is not left to the end of the request.
"""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from typing import cast

from tornado_compas_session.core.commit import Committer
from tornado_compas_session.core.guard import Guard
from tornado_compas_session.core.jsondata import check_key, encode
from tornado_compas_session.core.lifetimes import Lifetimes
from tornado_compas_session.core.locking import Blocks
from tornado_compas_session.core.protocols import SessionStore, UserSessions
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import (
    SessionInfo,
    SessionRecord,
    known_user,
)
from tornado_compas_session.exceptions import (
    SessionDataError,
    SessionError,
    SessionGone,
)


class SessionKeeper:
    """Does for the sessions of an application what they promise."""

    def __init__(
        self,
        store: SessionStore,
        lifetimes: Lifetimes,
        committer: Committer,
        guard: Guard,
    ) -> None:
        self._store = store
        self._lifetimes = lifetimes
        self._committer = committer
        self._guard = guard
        self._blocks = Blocks(store, committer, lifetimes.options.timeout)
        #: The idle and the absolute lifetime of a session, its own ones first; and
        #: whether its cookie has none.
        self.lifetime = lifetimes.of
        self.ends_with_browser = lifetimes.ends_with_browser

    async def load(self, handle: str) -> SessionRecord | None:
        """The row of a handle, unless it has ended."""
        guard = self._guard
        work = self._store.load(handle, deadline=guard.deadline)
        record = await guard(work, "reads")
        if record is not None and self._lifetimes.is_over(record):
            return None
        return record

    def lock(
        self, session: Session, timeout: float | None
    ) -> AbstractAsyncContextManager[None]:
        """Locks the session for the length of the block; see `Session.lock`."""
        return self._blocks.open(session, timeout)

    async def save(self, session: Session) -> None:
        """Commits what changed so far; see `Session.save`."""
        await self._blocks.outside(session, "save()")
        await self._committer.commit(session, automatic=False)

    async def reload(self, session: Session) -> None:
        """Takes the session afresh; see `Session.reload`."""
        await self._blocks.outside(session, "reload()")
        async with session.turn():
            life = session.life
            record = life.record
            session.planned = None
            if record is None:
                session.start(None)
                return
            found = await self.load(record.handle)
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
            raise SessionDataError(key, f"a {type(by).__name__} is no number", "add to")
        text = encode(by, key)
        if self._blocks.is_inside(session) or (
            life.record is None and not life.strange
        ):
            return _add(session, key, by)
        await self._blocks.outside(session, "increment()")
        async with session.turn():
            if not session.ledger.untouched:
                changed = session.ledger.difference(session)
                if key in changed.changed or key in changed.removed or changed.exact:
                    await self._committer.all(session, automatic=False)
            record = life.record
            if record is None:
                raise SessionGone
            session.planned = None
            ledger = session.ledger
            change = self._lifetimes.of_change(session)
            done = await self._guard(
                self._store.increment(
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
            raise SessionDataError("user_id", "nobody is signed in", "look for")
        return known_user(session.user)

    def _user_sessions(self, call: str) -> UserSessions:
        if not isinstance(self._store, UserSessions):
            raise SessionError(
                f"{call} needs a store that can find the sessions of a user; "
                f"{type(self._store).__name__} cannot"
            )
        return self._store


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _add(session: Session, key: str, by: float) -> int | float:
    value = session.get(key, 0)
    if not _is_number(value):
        raise SessionDataError(key, f"it holds a {type(value).__name__}", "add to")
    session[key] = value + by
    return cast(float, session[key])
