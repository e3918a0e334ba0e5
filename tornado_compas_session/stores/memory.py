"""
`MemorySessionStore`: sessions in a dict, with the same contract as the real store.

For users' own tests, and for the shared suite that both stores pass. Public and honest:
it keeps hashes, merges, expires and refuses like the other one, by a clock of yours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tornado_compas_session.core.ids import handle_of, handle_range, hash_id
from tornado_compas_session.core.jsondata import decode_object, encode, join_object
from tornado_compas_session.core.types import (
    RetiredId,
    Saved,
    SessionChange,
    SessionInfo,
    SessionRecord,
)
from tornado_compas_session.exceptions import LockTimeout, SessionIdTaken


@dataclass(slots=True)
class _Row:
    id: str
    data: dict[str, str]  # key to JSON text
    created: float
    updated: float
    expires: float
    authenticated: float | None = None
    own_idle: int | None = None
    own_absolute: int | None = None
    previous: bytes | None = None
    previous_until: float = 0.0
    user_agent: str | None = None
    address: str | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def user_id(self) -> str | None:
        value = decode_object(join_object(self.data)).get("user_id")
        return value if value is None or isinstance(value, str) else encode(value)


class MemorySessionStore:
    """
    Keeps sessions in this process, for tests; they end with it.

    `clock` gives seconds since the epoch; move it to see sessions expire.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._rows: dict[bytes, _Row] = {}

    def __len__(self) -> int:
        """How many sessions are live."""
        return sum(row.expires > self._clock() for row in self._rows.values())

    # ── SessionStore ─────────────────────────────────────────────────────────────

    async def load(self, session_id: str) -> SessionRecord | RetiredId | None:
        """The live session; see `SessionStore.load`."""
        id_hash, now = hash_id(session_id), self._clock()
        row = self._live(id_hash)
        if row is None:
            row = self._moved(id_hash)
            if row is None:
                return None
            if row.previous_until <= now:
                return RetiredId(handle_of(hash_id(row.id)), row.user_id)
        return self._record(row)

    async def create(self, session_id: str, change: SessionChange) -> Saved:
        """Makes a session; see `SessionStore.create`."""
        id_hash, now = hash_id(session_id), self._clock()
        if id_hash in self._rows:
            raise SessionIdTaken
        row = _Row(session_id, {}, created=now, updated=now, expires=now)
        row.user_agent, row.address = change.user_agent, change.address
        self._merge(row, replace_own(change))
        self._rows[id_hash] = row
        return self._saved(row)

    async def save(self, session_id: str, change: SessionChange) -> Saved | None:
        """Merges the change into the live session; see `SessionStore.save`."""
        row = self._found(hash_id(session_id))
        if row is None:
            return None
        async with row.lock:
            row = self._found(hash_id(session_id))
            if row is None:
                return None
            self._merge(row, change)
            return self._saved(row)

    async def regenerate(
        self, session_id: str, new_id: str, change: SessionChange, grace: float
    ) -> Saved | None:
        """Moves the session to a new id; see `SessionStore.regenerate`."""
        id_hash = hash_id(session_id)
        if hash_id(new_id) in self._rows:
            raise SessionIdTaken
        row = self._live(id_hash)
        if row is None:
            return None
        self._merge(row, change)
        del self._rows[id_hash]
        row.id = new_id
        row.previous, row.previous_until = id_hash, self._clock() + grace
        row.authenticated = self._clock()
        row.user_agent = change.user_agent or row.user_agent
        row.address = change.address or row.address
        self._rows[hash_id(new_id)] = row
        return self._saved(row)

    async def delete(self, session_id: str) -> bool:
        """Ends the session; see `SessionStore.delete`."""
        row = self._found(hash_id(session_id))
        return row is not None and self._rows.pop(hash_id(row.id), None) is not None

    @asynccontextmanager
    async def lock(
        self, session_id: str, timeout: float
    ) -> AsyncIterator[_MemoryLocked | None]:
        """Locks the session for the length of the block; see `SessionStore.lock`."""
        row = self._found(hash_id(session_id))
        if row is None:
            yield None
            return
        lock = row.lock
        try:
            async with asyncio.timeout(timeout):
                await lock.acquire()
        except TimeoutError:
            raise LockTimeout from None
        try:
            if self._found(hash_id(row.id)) is None:
                yield None
                return
            locked = _MemoryLocked(self, row)
            yield locked
            locked.commit()
        finally:
            lock.release()

    # ── UserSessions ─────────────────────────────────────────────────────────────

    async def sessions_of(
        self, user_id: str | int, *, limit: int = 50, current: str | None = None
    ) -> list[SessionInfo]:
        """The live sessions of a user; see `UserSessions.sessions_of`."""
        rows = sorted(self._of_user(user_id), key=lambda row: -row.updated)[:limit]
        return [
            SessionInfo(
                handle=(handle := handle_of(hash_id(row.id))),
                user_id=row.user_id,
                created_at=_datetime(row.created),
                last_used_at=_datetime(row.updated),
                expires=_datetime(row.expires),
                user_agent=row.user_agent,
                address=row.address,
                current=handle == current,
            )
            for row in rows
        ]

    async def revoke(self, handle: str) -> bool:
        """Ends the session with this handle."""
        bounds = handle_range(handle)
        if bounds is None:
            return False
        low, high = bounds
        found = [
            (id_hash, row)
            for id_hash, row in self._rows.items()
            if low <= id_hash <= high or (row.previous and low <= row.previous <= high)
        ]
        for id_hash, _ in found:
            del self._rows[id_hash]
        return any(row.expires > self._clock() for _, row in found)

    async def revoke_user(
        self, user_id: str | int, *, except_handle: str | None = None
    ) -> int:
        """Ends all sessions of a user but one; returns how many."""
        ended = 0
        for row in self._of_user(user_id):
            if handle_of(hash_id(row.id)) != except_handle:
                del self._rows[hash_id(row.id)]
                ended += 1
        return ended

    async def revoke_oldest(self, user_id: str | int, *, allowed: int) -> int:
        """Ends the user's sessions over the allowed number, longest unused first."""
        rows = sorted(self._of_user(user_id), key=lambda row: -row.updated)[allowed:]
        for row in rows:
            del self._rows[hash_id(row.id)]
        return len(rows)

    async def revoke_all(self) -> int:
        """Ends every session; returns how many."""
        ended = len(self)
        self._rows.clear()
        return ended

    async def delete_expired(self, *, limit: int = 1000) -> int:
        """Deletes up to `limit` expired rows; returns how many."""
        now = self._clock()
        expired = [key for key, row in self._rows.items() if row.expires <= now]
        for id_hash in expired[:limit]:
            del self._rows[id_hash]
        return len(expired[:limit])

    async def stats(self) -> dict[str, Any]:
        """Counts of what is there; see `UserSessions.stats`."""
        now = self._clock()
        live = [row for row in self._rows.values() if row.expires > now]
        users = {row.user_id for row in live}
        return {
            "live": len(live),
            "expired": len(self._rows) - len(live),
            "anonymous": sum(row.user_id is None for row in live),
            "users": len(users - {None}),
            "oldest_seconds": max((now - row.created for row in live), default=None),
            "bytes": sum(len(join_object(row.data)) for row in self._rows.values()),
        }

    # ── inside ───────────────────────────────────────────────────────────────────

    def _live(self, id_hash: bytes) -> _Row | None:
        row = self._rows.get(id_hash)
        return row if row is not None and row.expires > self._clock() else None

    def _moved(self, id_hash: bytes) -> _Row | None:
        return next(
            (
                row
                for row in self._rows.values()
                if row.previous == id_hash and row.expires > self._clock()
            ),
            None,
        )

    def _found(self, id_hash: bytes) -> _Row | None:
        """The session with this id, or with this one until a moment ago."""
        row = self._live(id_hash)
        if row is None:
            row = self._moved(id_hash)
            if row is not None and row.previous_until <= self._clock():
                return None
        return row

    def _of_user(self, user_id: str | int) -> list[_Row]:
        now, wanted = self._clock(), str(user_id)
        return [
            row
            for row in self._rows.values()
            if row.expires > now and row.user_id == wanted
        ]

    def _merge(self, row: _Row, change: SessionChange) -> None:
        now = self._clock()
        user = row.data.get("user_id")
        if change.replace:
            row.data = {}
        for key in change.removed:
            row.data.pop(key, None)
        row.data.update(change.changed)
        if change.own:
            row.own_idle, row.own_absolute = change.own_idle, change.own_absolute
        if change.idle is not None:
            idle = change.idle if row.own_idle is None else abs(row.own_idle)
            absolute = change.absolute if row.own_absolute is None else row.own_absolute
            ends = float("inf") if absolute is None else row.created + absolute
            row.expires = min(now + idle, ends)
        row.updated = now
        new_user = row.data.get("user_id")
        if new_user not in (None, "null", user) and "user_id" in change.changed:
            row.authenticated = now

    def _record(self, row: _Row) -> SessionRecord:
        return SessionRecord(
            row.id,
            join_object(row.data),
            row.created,
            row.expires,
            self._clock(),
            row.authenticated,
            row.own_idle,
            row.own_absolute,
        )

    def _saved(self, row: _Row) -> Saved:
        return Saved(row.id, row.created, row.expires, self._clock(), row.authenticated)


class _MemoryLocked:
    def __init__(self, store: MemorySessionStore, row: _Row) -> None:
        self._store, self._row = store, row
        self._pending: _Row | None = None
        self.record = store._record(row)

    async def save(self, change: SessionChange) -> Saved:
        pending = replace(self._row, data=dict(self._row.data))
        self._store._merge(pending, change)
        self._pending = pending
        return self._store._saved(pending)

    def commit(self) -> None:
        """Takes effect at the end of the block, unless the session ended meanwhile."""
        key = hash_id(self._row.id)
        if self._pending is not None and key in self._store._rows:
            for name in self._row.__slots__:
                setattr(self._row, name, getattr(self._pending, name))


def replace_own(change: SessionChange) -> SessionChange:
    """A new session has the lifetimes of the change, whether marked or not."""
    return change._replace(own=True)


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
