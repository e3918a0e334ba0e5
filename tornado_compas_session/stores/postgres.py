"""
`PostgresSessionStore`: sessions in one table, a row each, found by their handle.

What waits at the same moment shares a query (batches.py), loads with loads, writes with
writes; what comes alone is sent as the shorter statement for one row. Nobody waits for
a row that somebody else has locked but in the queue for it (onerow.py). Secrets are
hashed before they get here, so no statement, log or error ever sees one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tornado_compas_session.core.protocols import Connection, Row
from tornado_compas_session.core.types import (
    Identity,
    Incremented,
    NewSecret,
    Saved,
    SessionChange,
    SessionRecord,
)
from tornado_compas_session.exceptions import (
    HandleTaken,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.batches import (
    Creates,
    Loads,
    NewSession,
    Save,
    Saves,
    Sum,
    Sums,
)
from tornado_compas_session.stores.batching import Batcher, time_for
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.onerow import RowWrite, RowWriter
from tornado_compas_session.stores.rows import new, one, record_of, saved_of, turned
from tornado_compas_session.stores.signins import end_surplus
from tornado_compas_session.stores.users import PostgresUserSessions


class PostgresSessionStore(PostgresUserSessions):
    """
    Keeps sessions in PostgreSQL (13 or newer), through a pool of yours.

    `pool` is an `asyncpg.Pool`, a `psycopg_pool.AsyncConnectionPool`, a `momoko.Pool`
    or anything with the `Pool` protocol; `connect(dsn)` makes a good one. The table is
    made by `tornado-compas-session migrate`.

    `timeout` bounds every query, in seconds; `lanes` is the number of batches of loads
    (and of writes) under way at once; `max_waiting` the number of requests that may
    wait for them, beyond which they get `StoreUnavailable` at once. Requests that wait
    for a locked row use at most half of the pool's connections.
    """

    def __init__(
        self,
        pool: Any,
        *,
        timeout: float = 5.0,
        lanes: int = 2,
        max_batch: int = 256,
        max_waiting: int = 2000,
    ) -> None:
        database = Database(pool, timeout=timeout, max_waiting=max_waiting)
        self._database = database
        self.timeout = timeout
        limits = {"lanes": lanes, "max_batch": max_batch, "max_waiting": max_waiting}
        self._loads = Loads(database, limits)
        self._rows = RowWriter(
            database, lambda handle, until: self._loads.submit(handle, handle, until)
        )
        self._creates = Creates(database, limits)
        self._saves = Saves(database, self._rows, limits)
        self._sums = Sums(database, self._rows, limits)
        self._batchers: dict[str, Batcher[Any, Any]] = {
            "load": self._loads.batcher,
            "create": self._creates.batcher,
            "save": self._saves.batcher,
            "increment": self._sums.batcher,
        }
        self.trouble = database.trouble
        self._reads = self.trouble.watch("reads")
        self._writes = self.trouble.watch("writes")

    @classmethod
    async def connect(
        cls,
        dsn: str,
        *,
        min_size: int = 0,
        max_size: int = 10,
        timeout: float = 5.0,
        **options: Any,
    ) -> PostgresSessionStore:
        """
        A store on an asyncpg pool of its own, set as "Pools" in the documentation says.

        Does not need the database yet: while it is away, requests get a 503. `options`
        are those of the constructor. Close it with `await store.close()`.
        """
        from tornado_compas_session.stores.pools.asyncpg import open_pool

        pool = await open_pool(
            dsn, min_size=min_size, max_size=max_size, timeout=timeout
        )
        return cls(pool, timeout=timeout, **options)

    async def close(self) -> None:
        """Closes the pool, once what is under way has ended."""
        await self._database.pool.close()

    def __repr__(self) -> str:
        return f"<PostgresSessionStore on {type(self._database.pool).__name__}>"

    @property
    def problem(self) -> StoreError | None:
        """What ails the database, until it answers again; `/_health` logs it."""
        return self.trouble.now

    def metrics(self) -> dict[str, float]:
        """
        How it goes, in flat numbers, for a collector to ask for at any time.

        For loads, creates, saves and increments (`load_waiting` and so on): requests
        that are `waiting`, batches `under_way`, and since the start the `batches`, the
        `items` in them and the `seconds` they took. `pool_size` is how many connections
        there may be, and `pool_in_use` how many are used by anybody, where the pool
        tells.
        """
        found: dict[str, float] = {}
        for kind, batcher in self._batchers.items():
            for name in ("waiting", "under_way", "batches", "items", "seconds"):
                found[f"{kind}_{name}"] = getattr(batcher, name)
        found["pool_size"] = self._database.size
        if (in_use := getattr(self._database.pool, "in_use", None)) is not None:
            found["pool_in_use"] = in_use
        return found

    def listen(self, tell: Callable[..., None]) -> None:
        """Tells of every batch from now on: what `on_event` asks for."""

        def listener(kind: str) -> Callable[[int, float, BaseException | None], None]:
            return lambda size, seconds, error: tell(
                "store.batch",
                kind=kind,
                size=size,
                seconds=seconds,
                error=None if error is None else type(error).__name__,
            )

        for kind, batcher in self._batchers.items():
            batcher.on_batch = listener(kind)

    # ── SessionStore ─────────────────────────────────────────────────────────────

    def load(
        self, handle: str, *, deadline: float | None = None
    ) -> Awaitable[SessionRecord | None]:
        """The live session; see `SessionStore.load`."""
        return self._loads.submit(handle, handle, deadline)

    def create(
        self,
        handle: str,
        secret_hash: bytes,
        change: SessionChange,
        identity: Identity | None = None,
        *,
        deadline: float | None = None,
    ) -> Awaitable[Saved]:
        """Makes a session; see `SessionStore.create`."""
        item = NewSession(secret_hash, change, identity)
        if identity is None or identity.allowed is None:
            return self._creates.submit(handle, item, deadline)
        return self._sign_in(handle, item, identity, deadline)

    async def _sign_in(
        self,
        handle: str,
        item: NewSession,
        identity: Identity,
        deadline: float | None,
    ) -> Saved:
        until = self._until(deadline)
        with self._writes:
            row = await self._rows.send(
                RowWrite("create_session", handle, until, new(*item), identity)
            )
        if row is None:
            raise HandleTaken
        return saved_of(row)

    def save(
        self,
        handle: str,
        epoch: int,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Awaitable[Saved | None]:
        """Merges the change into the live session; see `SessionStore.save`."""
        return self._saves.submit(handle, Save(epoch, change), deadline)

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
        values = {"epoch": epoch, **turned(secret, change)}
        until = self._until(deadline)
        with self._writes:
            row = await self._rows.write(
                RowWrite("regenerate_session", handle, until, values, secret.identity)
            )
        return None if row is None else saved_of(row)

    def increment(
        self,
        handle: str,
        epoch: int,
        key: str,
        by: str,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Awaitable[Incremented | None]:
        """Adds to a number; see `SessionStore.increment`."""
        return self._sums.submit(handle, Sum(epoch, change, key, (by,)), deadline)

    async def delete(
        self, handle: str, epoch: int, *, deadline: float | None = None
    ) -> bool:
        """Ends the session; see `SessionStore.delete`."""
        until = self._until(deadline)
        with self._writes:
            row = await self._rows.write(
                RowWrite("delete_session", handle, until, {"epoch": epoch})
            )
        return row is not None

    @asynccontextmanager
    async def lock(
        self, handle: str, epoch: int, timeout: float
    ) -> AsyncIterator[_Locked | None]:
        """Locks the row for the length of the block; see `SessionStore.lock`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        with self._writes:
            # A silent database gets so much longer; one that answers keeps to the limit
            # itself, and says it better.
            grace = min(self.timeout, 1.0)
            await self._database.is_distributed(until + grace)
            async with self._rows.queue.turn(handle, until):
                left = max(0.001, until - loop.time())
                seconds = min(self.timeout, max(left, grace))
                begun = self._database.transaction(seconds, lock=left)
                async with begun as connection:
                    rows = await connection.fetch(
                        self._database.sql["lock_session"],
                        timeout=max(0.0, until - loop.time()) + grace,
                        handle=handle,
                    )
                    locked = None
                    if rows:
                        record = record_of(await self._database.own(rows, handle))
                        if record.epoch == epoch:
                            locked = _Locked(self._database, connection, record)
                    yield locked

    def _until(self, deadline: float | None) -> float:
        """By when a statement has to end for a caller with this deadline."""
        now = asyncio.get_running_loop().time()
        _, ends = time_for(now, self.timeout, deadline)
        if ends <= now:
            raise StoreUnavailable("there is no time left for the session store")
        return ends


class _Locked:
    """A session whose row is locked; see the protocol `Locked`."""

    def __init__(
        self,
        database: Database,
        connection: Connection,
        record: SessionRecord,
    ) -> None:
        self._database = database
        self._connection = connection
        self.record = record

    async def save(self, change: SessionChange) -> Saved:
        return saved_of(await self._write("save_session_waiting", one(change)))

    async def regenerate(self, secret: NewSecret, change: SessionChange) -> Saved:
        values = turned(secret, change)
        row = await self._write("regenerate_session_waiting", values)
        if secret.identity is not None:
            await end_surplus(
                self._database, self._connection, self.record.handle, secret.identity
            )
        return saved_of(row)

    async def delete(self) -> None:
        await self._write("delete_session_waiting", {})

    async def _write(self, name: str, values: Mapping[str, Any]) -> Row:
        handle, epoch = self.record.handle, self.record.epoch
        rows = await self._database.on(
            self._connection, name, handle=handle, epoch=epoch, **values
        )
        if not rows:  # it expired inside the block
            raise SessionGone
        return await self._database.own(rows, handle)
