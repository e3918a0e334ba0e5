"""
`MemorySessionStore`: sessions in a dict, with the same contract as the real store.

For users' own tests, and for the shared suite that both stores pass. Public and honest:
it keeps hashes, merges, expires and refuses like the other one, by a clock of yours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

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


@dataclass(slots=True)
class _Row:
    handle: str
    secret_hash: bytes
    created: float
    used: float
    expires: float
    turned: float
    shown: float | None
    former_hash: bytes | None = None
    epoch: int = 0
    data: dict[str, str] = field(default_factory=dict)  # key to JSON text
    user_id: str | None = None
    authenticated: float | None = None
    own_idle: int | None = None
    own_absolute: int | None = None
    user_agent: str | None = None
    address: str | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemorySessionStore:
    """
    Keeps sessions in this process, for tests; they end with it.

    `clock` gives seconds since the epoch; move it to see sessions expire.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._rows: dict[str, _Row] = {}

    def __len__(self) -> int:
        """How many sessions are live."""
        return sum(row.expires > self._clock() for row in self._rows.values())

    # ── SessionStore ─────────────────────────────────────────────────────────────

    async def load(
        self, handle: str, *, deadline: float | None = None
    ) -> SessionRecord | None:
        """The live session; see `SessionStore.load`."""
        row = self._live(handle)
        return None if row is None else self._record(row)

    async def create(
        self,
        handle: str,
        secret_hash: bytes,
        change: SessionChange,
        identity: Identity | None = None,
        *,
        deadline: float | None = None,
    ) -> Saved:
        """Makes a session; see `SessionStore.create`."""
        if handle in self._rows:
            raise HandleTaken
        now = self._clock()
        row = _Row(handle, secret_hash, now, now, now, turned=now, shown=now)
        row.user_agent, row.address = change.user_agent, change.address
        self._rows[handle] = row
        # A new session has the lifetimes of the change, whether marked or not.
        self._merge(row, change._replace(own=True))
        if identity is not None:
            row.user_id = identity.user_id
            row.authenticated = None if identity.user_id is None else now
            self._end_surplus(row, identity)
        return self._saved(row)

    async def save(
        self,
        handle: str,
        epoch: int,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Saved | None:
        """Merges the change into the live session; see `SessionStore.save`."""
        row = await self._unlocked(handle, epoch)
        if row is None:
            return None
        self._merge(row, change)
        return self._saved(row)

    async def regenerate(
        self,
        handle: str,
        epoch: int,
        secret: NewSecret,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Saved | None:
        """Gives the session a new secret; see `SessionStore.regenerate`."""
        row = await self._unlocked(handle, epoch)
        if (
            row is None
            or row.secret_hash != secret.mine
            or (secret.former is not None and row.shown is not None)
        ):
            return None
        self._turn(row, secret, change)
        if secret.identity is not None:
            self._end_surplus(row, secret.identity)
        return self._saved(row)

    async def increment(
        self,
        handle: str,
        epoch: int,
        key: str,
        by: str,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Incremented | None:
        """Adds to a number; see `SessionStore.increment`."""
        row = await self._unlocked(handle, epoch)
        if row is None:
            return None
        try:
            text = add_numbers(row.data.get(key, "0"), by)
        except ValueError:
            raise SessionDataError(key, "it holds no number", "add to") from None
        self._merge(row, change._replace(changed={key: text}))
        return Incremented(text, self._saved(row))

    async def delete(
        self, handle: str, epoch: int, *, deadline: float | None = None
    ) -> bool:
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
        row = self._live(handle)
        if row is None:
            yield None
            return
        lock = row.lock
        try:
            async with asyncio.timeout(max(0.001, timeout)):
                await lock.acquire()
        except TimeoutError:
            raise LockTimeout from None
        try:
            if self._live(handle, epoch) is not row:
                yield None
                return
            locked = _MemoryLocked(self, row)
            yield locked
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
        rows = sorted(self._of_user(user_id), key=lambda row: -row.used)[:limit]
        return [
            SessionInfo(
                handle=row.handle,
                user_id=row.user_id,
                created_at=_datetime(row.created),
                last_used_at=_datetime(row.used),
                expires=_datetime(row.expires),
                user_agent=row.user_agent,
                address=row.address,
                current=row.handle == current,
            )
            for row in rows
        ]

    async def revoke(self, handle: str) -> bool:
        """Ends the session with this handle."""
        row = self._rows.pop(handle, None)
        return row is not None and row.expires > self._clock()

    async def revoke_user(
        self, user_id: str | int, *, except_handle: str | None = None
    ) -> int:
        """Ends all sessions of a user but one; returns how many."""
        return self._end(
            row for row in self._of_user(user_id) if row.handle != except_handle
        )

    async def revoke_all(self) -> int:
        """Ends every session; returns how many."""
        ended = len(self)
        self._rows.clear()
        return ended

    async def delete_expired(self, *, limit: int = 1000) -> int:
        """Deletes up to `limit` expired rows; returns how many."""
        now = self._clock()
        expired = [row for row in self._rows.values() if row.expires <= now]
        return self._end(expired[:limit])

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

    def _live(self, handle: str, epoch: int | None = None) -> _Row | None:
        row = self._rows.get(handle)
        if row is None or row.expires <= self._clock():
            return None
        return row if epoch is None or row.epoch == epoch else None

    async def _unlocked(self, handle: str, epoch: int) -> _Row | None:
        """The live session, once nobody has it locked."""
        row = self._live(handle, epoch)
        if row is not None and row.lock.locked():
            async with row.lock:
                row = self._live(handle, epoch)
        return row

    def _of_user(self, user_id: str | int) -> list[_Row]:
        now, wanted = self._clock(), known_user(user_id)
        return [
            row
            for row in self._rows.values()
            if row.expires > now and row.user_id == wanted
        ]

    def _end(self, rows: Iterable[_Row]) -> int:
        handles = [row.handle for row in rows]
        for handle in handles:
            del self._rows[handle]
        return len(handles)

    def _merge(self, row: _Row, change: SessionChange) -> None:
        now = self._clock()
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
        if row.shown is None and change.shown == row.secret_hash:
            row.shown = now
        row.used = now

    def _turn(self, row: _Row, secret: NewSecret, change: SessionChange) -> None:
        now = self._clock()
        self._merge(row, change)
        former = secret.former or row.secret_hash
        row.former_hash = None if secret.identity else former
        row.secret_hash, row.turned, row.shown = secret.new, now, None
        row.user_agent = change.user_agent or row.user_agent
        row.address = change.address or row.address
        if secret.signed_in is not None:
            row.authenticated = now if secret.signed_in else None
        if secret.identity is not None:
            row.epoch += 1
            row.user_id = secret.identity.user_id

    def _end_surplus(self, row: _Row, identity: Identity) -> None:
        if identity.user_id is not None and identity.allowed is not None:
            others = [
                other
                for other in self._of_user(identity.user_id)
                if other.handle != row.handle
            ]
            others.sort(key=lambda other: -other.used)
            self._end(others[identity.allowed - 1 :])

    def _record(self, row: _Row) -> SessionRecord:
        return SessionRecord(
            row.handle,
            join_object(row.data),
            row.secret_hash,
            row.former_hash,
            row.epoch,
            row.created,
            row.used,
            row.expires,
            self._clock(),
            row.turned,
            row.shown,
            row.authenticated,
            row.own_idle,
            row.own_absolute,
        )

    def _saved(self, row: _Row) -> Saved:
        return Saved(row.expires, self._clock(), row.authenticated)


class _MemoryLocked:
    """Writes to a copy, which takes effect at the end of the block."""

    def __init__(self, store: MemorySessionStore, row: _Row) -> None:
        self._store, self._row = store, row
        self._copy = replace(row, data=dict(row.data))
        self._identity: Identity | None = None
        self._ended = False
        self.record = store._record(row)

    async def save(self, change: SessionChange) -> Saved:
        self._check()
        self._store._merge(self._copy, change)
        return self._store._saved(self._copy)

    async def regenerate(self, secret: NewSecret, change: SessionChange) -> Saved:
        self._check()
        self._store._turn(self._copy, secret, change)
        self._identity = secret.identity or self._identity
        return self._store._saved(self._copy)

    async def delete(self) -> None:
        self._ended = True

    def _check(self) -> None:
        if self._store._live(self._row.handle) is not self._row:
            raise SessionGone

    def commit(self) -> None:
        """Takes effect, unless the session ended meanwhile."""
        rows, handle = self._store._rows, self._row.handle
        if rows.get(handle) is not self._row:
            return
        if self._ended:
            del rows[handle]
            return
        for name in self._row.__slots__:
            setattr(self._row, name, getattr(self._copy, name))
        if self._identity is not None:
            self._store._end_surplus(self._row, self._identity)


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
