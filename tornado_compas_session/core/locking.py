"""
`lock()`: a block in which no other request changes the session, and what else of the
same request has to wait for its end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tornado_compas_session.core.change import Difference
from tornado_compas_session.core.commit import Committer
from tornado_compas_session.core.jsondata import decode_object, encode, join_object
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import SessionRecord
from tornado_compas_session.exceptions import LockTimeout, SessionError, SessionGone


class Blocks:
    """The blocks of `lock()` of an application's sessions."""

    def __init__(
        self, store: SessionStore, committer: Committer, seconds: float
    ) -> None:
        self._store = store
        self._committer = committer
        self._seconds = seconds

    @asynccontextmanager
    async def open(
        self, session: Session, timeout: float | None
    ) -> AsyncIterator[None]:
        """Locks the session for the length of the block; see `Session.lock`."""
        timeout = self._seconds if timeout is None else timeout
        if type(timeout) not in (int, float) or not 0 <= timeout < math.inf:
            raise ValueError(
                "the timeout of lock() is a number of seconds from 0 on, or None for "
                "the option's"
            )
        if self.is_inside(session):
            raise SessionError("lock() is open already; it cannot be nested")
        if session.locked and not await self._ends(session, timeout):
            raise LockTimeout
        async with session.turn():
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
            async with self._store.lock(record.handle, record.epoch, timeout) as locked:
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

    def is_inside(self, session: Session) -> bool:
        """Whether the caller is inside of the block of `lock()` that is open now."""
        return session.locked and session.busy_task is asyncio.current_task()

    async def outside(self, session: Session, call: str) -> None:
        """Waits for the end of a block of `lock()`, if it is not the caller's own."""
        if self.is_inside(session):
            raise SessionError(
                f"inside lock() the session is saved at the end of the block; leave "
                f"the call of {call} out"
            )
        seconds = self._seconds
        if session.locked and not await self._ends(session, seconds):
            raise SessionError(
                f"{call} has waited {seconds:g} seconds for the end of a block of "
                "lock() of this request; does the block wait for this task?"
            )

    async def _ends(self, session: Session, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds), session.turn():
                return True
        except TimeoutError:
            return False


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
