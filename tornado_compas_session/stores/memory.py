"""
`MemorySessionStore`: sessions in a dict, with the same contract as the real store.

For users' own tests, and for the shared suite that both stores pass. Public and honest:
it keeps hashes, merges, expires and refuses like the other one, by a clock of yours.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from tornado_compas_session.core.jsondata import add_numbers, join_object
from tornado_compas_session.core.types import (
    Identity,
    Incremented,
    NewSecret,
    Saved,
    SessionChange,
    SessionInfo,
    SessionRecord,
    known_user,
)
from tornado_compas_session.exceptions import (
    HandleTaken,
    LockTimeout,
    SessionDataError,
    SessionGone,
)
from tornado_compas_session.stores.rows import info_of


class _Row(NamedTuple):
    """A session as it is kept; a write puts another one in its place."""

    #: All of it but its data.
    record: SessionRecord
    #: The data: each key with its JSON text. Never changed.
    data: dict[str, str]
    user_id: str | None
    user_agent: str | None
    address: str | None


class MemorySessionStore:
    """
    Keeps sessions in this process, for tests; they end with it.

    `clock` gives seconds since the epoch; move it to see sessions expire. A `deadline`
    is taken and not looked at: nothing here takes time.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        #: Of the sessions that somebody has locked, or waits for.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        """How many sessions are live."""
        return len(self._all_live())

    # ── SessionStore ─────────────────────────────────────────────────────────────

    async def load(self, handle: str, **deadline: float | None) -> SessionRecord | None:
        """The live session; see `SessionStore.load`."""
        row = self._live(handle)
        return None if row is None else self._record(row)

    async def create(
        self,
        handle: str,
        secret_hash: bytes,
        change: SessionChange,
        identity: Identity | None = None,
        **deadline: float | None,
    ) -> Saved:
        """Makes a session; see `SessionStore.create`."""
        if handle in self._rows:
            raise HandleTaken
        now = self._clock()
        user_id = None if identity is None else identity.user_id
        saved = Saved(math.inf, now, None if user_id is None else now)
        made = SessionRecord.made(handle, secret_hash, change, saved)
        row = _Row(made, {}, user_id, change.user_agent, change.address)
        return self._keep(self._merge(row, change), identity)

    async def save(
        self, handle: str, epoch: int, change: SessionChange, **deadline: float | None
    ) -> Saved | None:
        """Merges the change into the live session; see `SessionStore.save`."""
        row = await self._unlocked(handle, epoch)
        return None if row is None else self._keep(self._merge(row, change))

    async def regenerate(
        self,
        handle: str,
        epoch: int,
        secret: NewSecret,
        change: SessionChange,
        **deadline: float | None,
    ) -> Saved | None:
        """Gives the session a new secret; see `SessionStore.regenerate`."""
        row = await self._unlocked(handle, epoch)
        if row is None or row.record.secret_hash != secret.mine:
            return None
        if secret.former is not None and row.record.shown is not None:
            return None
        return self._keep(self._turn(row, secret, change), secret.identity)

    async def increment(
        self,
        handle: str,
        epoch: int,
        key: str,
        by: str,
        change: SessionChange,
        **deadline: float | None,
    ) -> Incremented | None:
        """Adds to a number; see `SessionStore.increment`."""
        row = await self._unlocked(handle, epoch)
        if row is None:
            return None
        try:
            text = add_numbers(row.data.get(key, "0"), by)
        except ValueError:
            raise SessionDataError(key, "it holds no number", "add to") from None
        change = change._replace(changed={key: text})
        return Incremented(text, self._keep(self._merge(row, change)))

    async def delete(self, handle: str, epoch: int, **deadline: float | None) -> bool:
        """Ends the session; see `SessionStore.delete`."""
        if await self._unlocked(handle, epoch) is None:
            return False
        del self._rows[handle]
        return True

    @asynccontextmanager
    async def lock(
        self, handle: str, epoch: int, timeout: float
    ) -> AsyncIterator[_MemoryLocked | None]:
        """Locks the session for the length of the block; see `SessionStore.lock`."""
        lock = self._lock_of(handle)
        try:
            async with asyncio.timeout(max(0.001, timeout)):
                await lock.acquire()
        except TimeoutError:
            raise LockTimeout from None
        try:
            row = self._live(handle, epoch)
            locked = None if row is None else _MemoryLocked(self, row)
            yield locked
            if locked is not None:
                locked.commit()
        finally:
            lock.release()

    def metrics(self) -> dict[str, float]:
        """How many sessions there are, in the manner of `PostgresSessionStore`."""
        return {"sessions": len(self)}

    # ── UserSessions ─────────────────────────────────────────────────────────────

    async def sessions_of(
        self, user_id: str | int, *, limit: int = 50, current: str | None = None
    ) -> list[SessionInfo]:
        """The live sessions of a user; see `UserSessions.sessions_of`."""
        found = []
        for record, _, user, user_agent, address in self._of_user(user_id)[:limit]:
            times = record.created, record.used, record.expires
            values = record.handle, user, *times, user_agent, address
            found.append(info_of(values, current))
        return found

    async def revoke(self, handle: str) -> bool:
        """Ends the session with this handle."""
        is_live = self._live(handle) is not None
        self._rows.pop(handle, None)
        return is_live

    async def revoke_user(
        self, user_id: str | int, *, except_handle: str | None = None
    ) -> int:
        """Ends all sessions of a user but one; returns how many."""
        return self._end(self._of_user(user_id, except_handle))

    async def revoke_all(self) -> int:
        """Ends every session; returns how many."""
        return self._end(self._all_live())

    async def delete_expired(self, *, limit: int = 1000) -> int:
        """Deletes up to `limit` expired rows; returns how many."""
        now = self._clock()
        expired = [row for row in self._rows.values() if row.record.expires <= now]
        return self._end(expired[:limit])

    async def stats(self) -> dict[str, Any]:
        """Counts of what is there; see `UserSessions.stats`."""
        now, live = self._clock(), self._all_live()
        ages = [now - row.record.created for row in live]
        return {
            "live": len(live),
            "expired": len(self._rows) - len(live),
            "anonymous": sum(row.user_id is None for row in live),
            "users": len({row.user_id for row in live} - {None}),
            "oldest_seconds": max(ages, default=None),
            "bytes": sum(len(join_object(row.data)) for row in self._rows.values()),
        }

    # ── inside ───────────────────────────────────────────────────────────────────

    def _live(self, handle: str, epoch: int | None = None) -> _Row | None:
        row = self._rows.get(handle)
        if row is None or row.record.expires <= self._clock():
            return None
        return row if epoch is None or row.record.epoch == epoch else None

    def _all_live(self) -> list[_Row]:
        now = self._clock()
        return [row for row in self._rows.values() if row.record.expires > now]

    def _of_user(self, user_id: str | int, other_than: str | None = None) -> list[_Row]:
        """The live sessions of a user but one, last used first."""
        wanted = known_user(user_id)
        rows = [
            row
            for row in self._all_live()
            if row.user_id == wanted and row.record.handle != other_than
        ]
        return sorted(rows, key=lambda row: (-row.record.used, -row.record.created))

    def _lock_of(self, handle: str) -> asyncio.Lock:
        return self._locks.setdefault(handle, asyncio.Lock())

    async def _unlocked(self, handle: str, epoch: int) -> _Row | None:
        """The live session, once nobody has it locked."""
        async with self._lock_of(handle):
            return self._live(handle, epoch)

    def _keep(self, row: _Row, identity: Identity | None = None) -> Saved:
        """The row is this from now on."""
        self._rows[row.record.handle] = row
        if identity is not None:
            self._end_surplus(row, identity)
        return _saved(row)

    def _end(self, rows: list[_Row]) -> int:
        for row in rows:
            del self._rows[row.record.handle]
        return len(rows)

    def _end_surplus(self, row: _Row, identity: Identity) -> None:
        if identity.user_id is not None and identity.allowed is not None:
            others = self._of_user(identity.user_id, row.record.handle)
            self._end(others[identity.allowed - 1 :])

    def _merge(self, row: _Row, change: SessionChange) -> _Row:
        """The row once the change is written to it."""
        record, now = row.record, self._clock()
        data = {} if change.replace else dict(row.data)
        for key in change.removed:
            data.pop(key, None)
        data.update(change.changed)
        if change.own:
            record = record._replace(
                own_idle=change.own_idle, own_absolute=change.own_absolute
            )
        if record.shown is None and change.shown == record.secret_hash:
            record = record._replace(shown=now)
        saved = Saved(_expires(record, change, now), now, record.authenticated)
        return row._replace(record=record.saved(saved), data=data)

    def _turn(self, row: _Row, secret: NewSecret, change: SessionChange) -> _Row:
        """The same, and with a new secret."""
        row = self._merge(row, change)
        saved, identity = _saved(row), secret.identity
        if secret.signed_in is not None:
            saved = saved._replace(
                authenticated=saved.now if secret.signed_in else None
            )
        return _Row(
            row.record.turned_to(secret, saved),
            row.data,
            row.user_id if identity is None else identity.user_id,
            change.user_agent or row.user_agent,
            change.address or row.address,
        )

    def _record(self, row: _Row) -> SessionRecord:
        return row.record._replace(data=join_object(row.data), now=self._clock())


class _MemoryLocked:
    """What it writes takes effect at the end of the block."""

    def __init__(self, store: MemorySessionStore, row: _Row) -> None:
        self._store, self._before = store, row
        self._after: _Row | None = row
        self._identity: Identity | None = None
        self.record = store._record(row)

    async def save(self, change: SessionChange) -> Saved:
        self._after = self._store._merge(self._row(), change)
        return _saved(self._after)

    async def regenerate(self, secret: NewSecret, change: SessionChange) -> Saved:
        self._identity = secret.identity or self._identity
        self._after = self._store._turn(self._row(), secret, change)
        return _saved(self._after)

    async def delete(self) -> None:
        self._after = None

    def _row(self) -> _Row:
        live = self._store._live(self.record.handle)
        if self._after is None or live is not self._before:
            raise SessionGone
        return self._after

    def commit(self) -> None:
        """Takes effect, unless the session ended meanwhile."""
        if self._store._rows.get(self.record.handle) is not self._before:
            return
        if self._after is None:
            self._store._end([self._before])
        else:
            self._store._keep(self._after, self._identity)


def _expires(record: SessionRecord, change: SessionChange, now: float) -> float:
    if change.idle is None:
        return record.expires
    idle = change.idle if record.own_idle is None else abs(record.own_idle)
    absolute = change.absolute if record.own_absolute is None else record.own_absolute
    return min(now + idle, math.inf if absolute is None else record.created + absolute)


def _saved(row: _Row) -> Saved:
    record = row.record
    return Saved(record.expires, record.used, record.authenticated)
