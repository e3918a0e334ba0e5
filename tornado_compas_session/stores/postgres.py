"""
`PostgresSessionStore`: sessions in one table, a row each, found by their handle.

What waits at the same moment shares a query (batching.py), loads with loads, writes
with writes; what comes alone is sent as the shorter statement for one row. Nobody waits
for a row that somebody else has locked but in the queue for it (rowqueue.py). Secrets
are hashed before they get here, so no statement, log or error ever sees one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from tornado_compas_session.core.jsondata import add_numbers
from tornado_compas_session.core.protocols import Connection, Row
from tornado_compas_session.core.trouble import Trouble
from tornado_compas_session.core.types import (
    Identity,
    Incremented,
    NewSecret,
    Saved,
    SessionChange,
    SessionRecord,
)
from tornado_compas_session.exceptions import (
    ConnectionLost,
    HandleTaken,
    SchemaMissing,
    SessionDataError,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.batching import Batcher, Each, reserve
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.rowqueue import RowQueue
from tornado_compas_session.stores.rows import (
    lifetime,
    many,
    new,
    one,
    record_of,
    saved_of,
)
from tornado_compas_session.stores.users import PostgresUserSessions

logger = logging.getLogger("tornado_compas_session")


class _Save(NamedTuple):
    epoch: int
    change: SessionChange


class _New(NamedTuple):
    secret_hash: bytes
    change: SessionChange
    identity: Identity | None


class _Sum(NamedTuple):
    epoch: int
    key: str
    #: What each of those who share it adds.
    parts: tuple[str, ...]
    change: SessionChange


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
        self._database = database = Database(pool, timeout=timeout)
        self.timeout = timeout
        limits: dict[str, Any] = {
            "lanes": lanes,
            "max_batch": max_batch,
            "max_waiting": max_waiting,
            "timeout": timeout,
        }
        self._loads: Batcher[str, SessionRecord | None] = Batcher(
            self._load_batch, join=lambda one, other: one, **limits
        )
        self._saves: Batcher[_Save, Saved | None] = Batcher(
            self._save_batch, join=_both_renew, **limits
        )
        self._creates: Batcher[_New, Saved] = Batcher(
            self._create_batch, join=lambda one, other: None, **limits
        )
        self._sums: Batcher[_Sum, Incremented | None] = Batcher(
            self._sum_batch, join=_added, **limits
        )
        self._rows = RowQueue(max(1, database.size // 2))
        #: Where the sessions of a user are bounded, one sign-in of each at a time.
        self._users = RowQueue(database.size)
        #: Knows what ails the database, and logs its beginning and its end.
        self.trouble = Trouble()
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

    # ── SessionStore ─────────────────────────────────────────────────────────────

    async def load(
        self, handle: str, *, deadline: float | None = None
    ) -> SessionRecord | None:
        """The live session; see `SessionStore.load`."""
        with self._reads:
            return await self._loads.submit(handle, handle, deadline)

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
        item = _New(secret_hash, change, identity)
        with self._writes:
            if identity is None or identity.allowed is None:
                return await self._creates.submit(handle, item, deadline)
            until = asyncio.get_running_loop().time() + self._left(deadline)
            async with self._signing_in(identity, until) as connection:
                values = new(secret_hash, change, identity)
                rows = await self._database.on(
                    connection, "create_session", handle=handle, **values
                )
                if rows:
                    await self._end_surplus(connection, handle, identity)
                    return saved_of(await self._own(rows[0], handle))
        raise HandleTaken

    async def save(
        self,
        handle: str,
        epoch: int,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Saved | None:
        """Merges the change into the live session; see `SessionStore.save`."""
        with self._writes:
            return await self._saves.submit(handle, _Save(epoch, change), deadline)

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
        values = _turned(secret, change)
        identity = secret.identity
        seconds = self._left(deadline)
        with self._writes:
            if identity is not None and identity.allowed is not None:
                until = asyncio.get_running_loop().time() + seconds
                args = handle, epoch, identity, values, until
                row = await self._sign_in("regenerate_session", *args)
                if row is None and await self._is_there(
                    handle, epoch, until, secret.mine
                ):
                    row = await self._sign_in("regenerate_session_waiting", *args)
            else:
                row = await self._one_row(
                    "regenerate_session",
                    handle,
                    epoch,
                    seconds,
                    values,
                    secret_hash=secret.mine,
                )
        return None if row is None else saved_of(row)

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
        item = _Sum(epoch, key, (by,), change)
        with self._writes:
            return await self._sums.submit(handle, item, deadline)

    async def delete(
        self, handle: str, epoch: int, *, deadline: float | None = None
    ) -> bool:
        """Ends the session; see `SessionStore.delete`."""
        seconds = self._left(deadline)
        with self._writes:
            row = await self._one_row("delete_session", handle, epoch, seconds, {})
        return row is not None

    @asynccontextmanager
    async def lock(
        self, handle: str, epoch: int, timeout: float
    ) -> AsyncIterator[_Locked | None]:
        """Locks the row for the length of the block; see `SessionStore.lock`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        with self._writes:
            async with self._rows.turn(handle, until):
                left = max(0.001, until - loop.time())
                # A silent database gets so much longer; one that answers keeps to the
                # limit itself, and says it better.
                grace = min(self.timeout, 1.0)
                seconds = min(self.timeout, max(left, grace))
                async with self._transaction(seconds, lock=left) as connection:
                    rows = await connection.fetch(
                        self._database.sql["lock_session"],
                        timeout=max(0.0, until - loop.time()) + grace,
                        handle=handle,
                    )
                    locked = None
                    if rows:
                        record = record_of(await self._own(rows[0], handle))
                        if record.epoch == epoch:
                            locked = _Locked(self, connection, record)
                    yield locked

    # ── one row ──────────────────────────────────────────────────────────────────

    async def _one_row(
        self,
        name: str,
        handle: str,
        epoch: int,
        seconds: float,
        values: Mapping[str, Any],
        *,
        secret_hash: bytes | None = None,
    ) -> Row | None:
        """
        Writes to a row that nobody else has locked; or else takes a turn in waiting for
        it. None if it is not there, under this epoch (and with this secret).
        """
        until = asyncio.get_running_loop().time() + seconds
        rows = await self._database.alone(
            name, seconds, handle=handle, epoch=epoch, **values
        )
        if rows:
            return await self._own(rows[0], handle)
        return await self._waiting(
            name, handle, epoch, until, values, secret_hash=secret_hash
        )

    async def _waiting(
        self,
        name: str,
        handle: str,
        epoch: int,
        until: float,
        values: Mapping[str, Any],
        *,
        secret_hash: bytes | None = None,
    ) -> Row | None:
        """The same, for a row that is locked by somebody, or gone."""
        if not await self._is_there(handle, epoch, until, secret_hash):
            return None
        loop = asyncio.get_running_loop()
        async with self._rows.turn(handle, until):
            rows = await self._database.alone(
                name + "_waiting",
                until - loop.time(),
                handle=handle,
                epoch=epoch,
                **values,
            )
        return await self._own(rows[0], handle) if rows else None

    async def _is_there(
        self, handle: str, epoch: int, until: float, secret_hash: bytes | None
    ) -> bool:
        """Whether a row that was not found is there, so that somebody has it locked."""
        found = await self._loads.submit(handle, handle, until)
        return (
            found is not None
            and found.epoch == epoch
            and secret_hash in (None, found.secret_hash)
        )

    async def _sign_in(
        self,
        name: str,
        handle: str,
        epoch: int,
        identity: Identity,
        values: Mapping[str, Any],
        until: float,
    ) -> Row | None:
        """A new secret, and the end of the user's sessions that are one too many."""
        row = handle if name.endswith("_waiting") else None
        async with self._signing_in(identity, until, row) as connection:
            rows = await self._database.on(
                connection, name, handle=handle, epoch=epoch, **values
            )
            if not rows:
                return None
            await self._end_surplus(connection, handle, identity)
            return await self._own(rows[0], handle)

    @asynccontextmanager
    async def _signing_in(
        self, identity: Identity, until: float, row: str | None = None
    ) -> AsyncIterator[Connection]:
        """
        A transaction that ends with `_end_surplus`: one at a time for each user, and
        with a turn of its own if `row` may have to be waited for.
        """
        async with AsyncExitStack() as turns:
            enter = turns.enter_async_context
            await enter(self._users.turn(str(identity.user_id), until))
            if row is not None:
                await enter(self._rows.turn(row, until))
            left = until - asyncio.get_running_loop().time()
            async with self._transaction(left, lock=left) as connection:
                yield connection

    async def _end_surplus(
        self, connection: Connection, handle: str, identity: Identity
    ) -> None:
        """
        Ends those of the user's other sessions that are over the number.

        Of sign-ins of one user at once, in several processes, each sees here what the
        one before has made. Whoever has a row locked comes here after that, so that no
        two wait for each other.
        """
        database, user = self._database, identity.user_id
        if identity.allowed is None or user is None:
            return
        await database.on(connection, "queue_for_user", user_id=user)
        surplus = await database.on(
            connection,
            "surplus_sessions",
            user_id=user,
            handle=handle,
            others=identity.allowed - 1,
        )
        left = {row[0] for row in surplus}
        for pause in (0.01, 0.1, None):
            if not left:
                return
            if len(left) == 1:
                [other] = left
                ended = await database.on(
                    connection, "end_surplus_one", handle=other, user_id=user
                )
            else:
                ended = await database.on(
                    connection, "end_surplus", handles=list(left), user_id=user
                )
            left -= {row[0] for row in ended}
            if left and pause is not None:
                await asyncio.sleep(pause)  # one that is being saved, and not for long

    @asynccontextmanager
    async def _transaction(
        self, seconds: float, *, lock: float | None = None
    ) -> AsyncIterator[Connection]:
        pool = self._database.pool
        async with pool.transaction(lock_timeout=lock, timeout=seconds) as connection:
            yield connection

    def _left(self, deadline: float | None) -> float:
        """The seconds that a statement may take for a caller with this deadline."""
        seconds = self.timeout
        if deadline is not None:
            seconds = min(seconds, deadline - asyncio.get_running_loop().time())
        seconds -= reserve(self.timeout)
        if seconds <= 0:
            raise StoreUnavailable("there is no time left for the session store")
        return seconds

    async def _own(self, row: Row, handle: str) -> Row:
        """What came back, if it is the row that was asked for."""
        if row[0] != handle:
            raise await self._database.foreign_row()
        return row

    # ── batches ──────────────────────────────────────────────────────────────────

    async def _load_batch(
        self, handles: dict[str, str], seconds: float
    ) -> dict[str, SessionRecord | None]:
        try:
            rows = await self._loaded(list(handles), seconds)
        except ConnectionLost:
            # Reading can be repeated; the pool has noticed and connects anew.
            rows = await self._loaded(list(handles), seconds)
        found: dict[str, SessionRecord | None] = {}
        for row in rows:
            if row[0] not in handles:
                raise await self._database.foreign_row()
            found[row[0]] = record_of(row)
        return found

    async def _loaded(self, handles: list[str], seconds: float) -> Sequence[Row]:
        ask = self._database.ask
        if len(handles) == 1:
            return await ask("load_session", seconds, handle=handles[0])
        return await ask("load_sessions", seconds, handles=handles)

    async def _create_batch(
        self, items: dict[str, _New], seconds: float
    ) -> dict[str, Any]:
        async def send(items: dict[str, _New], seconds: float) -> Sequence[Row]:
            each = {handle: new(*item) for handle, item in items.items()}
            if len(items) == 1:
                [(handle, values)] = each.items()
                return await self._database.ask(
                    "create_session", seconds, handle=handle, **values
                )
            columns = {
                _PLURALS[name]: [values[name] for values in each.values()]
                for name in _PLURALS
            }
            return await self._database.ask(
                "create_sessions", seconds, handles=list(each), **columns
            )

        outcomes = await self._write(send, items, seconds)
        taken = {handle: HandleTaken() for handle in items if handle not in outcomes}
        saved = {
            handle: row if isinstance(row, Exception) else saved_of(row)
            for handle, row in outcomes.items()
        }
        return saved | taken

    async def _save_batch(
        self, items: dict[str, _Save], seconds: float
    ) -> dict[str, Any]:
        async def send(items: dict[str, _Save], seconds: float) -> Sequence[Row]:
            if len(items) == 1:
                [(handle, (epoch, change))] = items.items()
                return await self._database.ask(
                    "save_session", seconds, handle=handle, epoch=epoch, **one(change)
                )
            return await self._database.ask(
                "save_sessions",
                seconds,
                handles=list(items),
                epochs=[item.epoch for item in items.values()],
                **many(item.change for item in items.values()),
            )

        until = asyncio.get_running_loop().time() + seconds
        outcomes = await self._write(send, items, seconds)
        for handle, item in items.items():
            row = outcomes.get(handle)
            if row is None:
                outcomes[handle] = self._later(self._save_alone(handle, item, until))
            elif not isinstance(row, Exception):
                outcomes[handle] = saved_of(row)
        return outcomes

    async def _save_alone(self, handle: str, item: _Save, until: float) -> Saved | None:
        row = await self._waiting(
            "save_session", handle, item.epoch, until, one(item.change)
        )
        return None if row is None else saved_of(row)

    async def _sum_batch(
        self, items: dict[str, _Sum], seconds: float
    ) -> dict[str, Any]:
        async def send(items: dict[str, _Sum], seconds: float) -> Sequence[Row]:
            if len(items) == 1:
                [(handle, item)] = items.items()
                return await self._database.ask(
                    "increment_session",
                    seconds,
                    handle=handle,
                    epoch=item.epoch,
                    **_summed(item),
                )
            changes = many(item.change for item in items.values())
            return await self._database.ask(
                "increment_sessions",
                seconds,
                handles=list(items),
                epochs=[item.epoch for item in items.values()],
                keys=[item.key for item in items.values()],
                bys=[add_numbers(*item.parts) for item in items.values()],
                **changes,
            )

        until = asyncio.get_running_loop().time() + seconds
        outcomes = await self._write(send, items, seconds)
        for handle, item in items.items():
            row = outcomes.get(handle)
            if row is None:
                outcomes[handle] = self._later(self._sum_alone(handle, item, until))
            elif not isinstance(row, Exception):
                outcomes[handle] = _sums(row, item)
        return outcomes

    async def _sum_alone(self, handle: str, item: _Sum, until: float) -> Each | None:
        row = await self._waiting(
            "increment_session", handle, item.epoch, until, _summed(item)
        )
        return None if row is None else _sums(row, item)

    def _later(self, work: Any) -> asyncio.Task[Any]:
        """What waits for a row does so outside of the batch that left it out."""
        task = asyncio.get_running_loop().create_task(work)
        self._database.keep(task)
        return task

    async def _write(
        self, send: Any, items: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Sends the writes as one statement; the rows that it met, by handle."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        try:
            rows = await send(items, seconds)
        except StoreUnavailable:
            raise  # it may have been applied, so it is not sent again
        except (StoreError, SessionDataError) as error:
            if len(items) == 1 or isinstance(error, SchemaMissing):
                raise
            # One of them is bad, and its neighbours are not: each for itself.
            outcomes: dict[str, Any] = {}
            for handle, item in items.items():
                try:
                    alone = {handle: item}
                    outcomes |= await self._write(send, alone, until - loop.time())
                except (StoreError, SessionDataError) as own:
                    outcomes[handle] = own
            return outcomes
        for row in rows:
            if row[0] not in items:
                raise await self._database.foreign_row()
        return {row[0]: row for row in rows}


class _Locked:
    """A session whose row is locked; see the protocol `Locked`."""

    def __init__(
        self,
        store: PostgresSessionStore,
        connection: Connection,
        record: SessionRecord,
    ) -> None:
        self._store = store
        self._connection = connection
        self.record = record

    async def save(self, change: SessionChange) -> Saved:
        return saved_of(await self._write("save_session_waiting", one(change)))

    async def regenerate(self, secret: NewSecret, change: SessionChange) -> Saved:
        values = _turned(secret, change)
        row = await self._write("regenerate_session_waiting", values)
        if secret.identity is not None:
            await self._store._end_surplus(
                self._connection, self.record.handle, secret.identity
            )
        return saved_of(row)

    async def delete(self) -> None:
        await self._write("delete_session_waiting", {})

    async def _write(self, name: str, values: Mapping[str, Any]) -> Row:
        store, record = self._store, self.record
        rows = await store._database.on(
            self._connection,
            name,
            handle=record.handle,
            epoch=record.epoch,
            **values,
        )
        if not rows:  # it expired inside the block
            raise SessionGone
        return await store._own(rows[0], record.handle)


#: The parameters of `create_sessions`, by those of `create_session`.
_PLURALS = {
    "secret_hash": "secret_hashes",
    "set": "sets",
    "user_id": "user_ids",
    "idle": "idles",
    "absolute": "absolutes",
    "signs_in": "sign_ins",
    "own_idle": "own_idles",
    "own_absolute": "own_absolutes",
    "user_agent": "user_agents",
    "address": "addresses",
}


def _turned(secret: NewSecret, change: SessionChange) -> dict[str, Any]:
    values = one(change)
    del values["shown"]
    identity = secret.identity
    return {
        **values,
        "mine": secret.mine,
        "new_hash": secret.new,
        "former": secret.former,
        "identity": identity is not None,
        "user_id": None if identity is None else identity.user_id,
        "keeps_sign_in": secret.signed_in is None,
        "signs_in": 1.0 if secret.signed_in else None,
        "user_agent": change.user_agent,
        "address": change.address,
    }


def _summed(item: _Sum) -> dict[str, Any]:
    return {"key": item.key, "by": add_numbers(*item.parts), **lifetime(item.change)}


def _sums(row: Row, item: _Sum) -> Each:
    """The sum of each of those who shared the statement, in their order."""
    saved, (text, kind) = saved_of(row), row[4:6]
    if kind != "number":
        error = SessionDataError(
            item.key, f"it holds a {kind}, and no number to add to"
        )
        return Each([error] * len(item.parts))
    values = []
    for part in reversed(item.parts):
        values.append(Incremented(text, saved))
        text = add_numbers(text, "-" + part if part[0] != "-" else part[1:])
    return Each(reversed(values))


def _both_renew(one: _Save, other: _Save) -> _Save | None:
    return one if one.change.only_renews and one == other else None


def _added(one: _Sum, other: _Sum) -> _Sum | None:
    if (one.epoch, one.key, one.change) != (other.epoch, other.key, other.change):
        return None
    return one._replace(parts=one.parts + other.parts)
