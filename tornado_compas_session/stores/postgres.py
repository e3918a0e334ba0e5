"""
`PostgresSessionStore`: sessions in one table, one statement a verb.

What waits at the same moment shares a query (`batching.py`), loads with loads, writes
with writes. Ids are hashed here, so no statement, log or error ever sees one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from tornado_compas_session.core.ids import (
    handle_of,
    handle_range,
    hash_id,
    seal,
    unseal,
)
from tornado_compas_session.core.jsondata import encode, join_object
from tornado_compas_session.core.protocols import Connection, Pool, Row
from tornado_compas_session.core.types import (
    RetiredId,
    Saved,
    SessionChange,
    SessionInfo,
    SessionRecord,
)
from tornado_compas_session.exceptions import (
    ConnectionLost,
    LockTimeout,
    RowExists,
    SchemaMissing,
    SessionGone,
    SessionIdTaken,
    StoreError,
    StoreUnavailable,
    WriteConflict,
)
from tornado_compas_session.stores.batching import Batcher
from tornado_compas_session.stores.pools import as_pool
from tornado_compas_session.stores.pools.queries import statements

logger = logging.getLogger("tornado_compas_session")
T = TypeVar("T")

Loaded = SessionRecord | RetiredId | None
Write = tuple[str, SessionChange]
Transaction = AbstractAsyncContextManager[Connection]

#: How often a statement is sent that loses to another transaction (SQLSTATE 40…).
_TRIES = 5


class PostgresSessionStore:
    """
    Keeps sessions in PostgreSQL (13 or newer), through a pool of yours.

    `pool` is an `asyncpg.Pool`, a `psycopg_pool.AsyncConnectionPool`, a `momoko.Pool`
    or anything with the `Pool` protocol; `connect(dsn)` makes a good one. The table is
    made by `tornado-compas-session migrate`.

    `timeout` bounds every query, in seconds; `lanes` is the number of batches of loads
    (and of writes) under way at once; `max_waiting` the number of requests that may
    wait for them, beyond which they get `StoreUnavailable` at once.
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
        self._pool: Pool = as_pool(pool, timeout=timeout)
        self._sql = statements()
        self.timeout = timeout
        limits: dict[str, Any] = {
            "lanes": lanes,
            "max_batch": max_batch,
            "max_waiting": max_waiting,
            "timeout": timeout,
        }
        self._loads: Batcher[str, Loaded] = Batcher(
            self._load_batch, share=lambda one, other: True, **limits
        )
        self._saves: Batcher[Write, Saved | None] = Batcher(
            self._save_batch, share=_both_renew, **limits
        )
        self._creates: Batcher[Write, Saved] = Batcher(
            self._create_batch, share=lambda one, other: False, **limits
        )
        # Writes that go alone, because their row is locked or gone: few at once, so
        # that they leave connections to the others.
        self._alone = asyncio.Semaphore(4)
        self._local_locks: dict[bytes, list[Any]] = {}
        self._abandoned: set[asyncio.Future[Any]] = set()
        #: What ails the database, until it answers again; shown by `/_health`'s log.
        self.problem: StoreError | None = None

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
        A store on an asyncpg pool of its own, set as the docs advise (docs/pools.md).

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
        await self._pool.close()

    def __repr__(self) -> str:
        return f"<PostgresSessionStore on {type(self._pool).__name__}>"

    # ── SessionStore ─────────────────────────────────────────────────────────────

    async def load(self, session_id: str) -> Loaded:
        """The live session; see `SessionStore.load`."""
        return await self._loads.submit(hash_id(session_id), session_id)

    async def create(self, session_id: str, change: SessionChange) -> Saved:
        """Makes a session; see `SessionStore.create`."""
        return await self._creates.submit(hash_id(session_id), (session_id, change))

    async def save(self, session_id: str, change: SessionChange) -> Saved | None:
        """Merges the change into the live session; see `SessionStore.save`."""
        return await self._saves.submit(hash_id(session_id), (session_id, change))

    async def regenerate(
        self, session_id: str, new_id: str, change: SessionChange, grace: float
    ) -> Saved | None:
        """Moves the session to a new id; see `SessionStore.regenerate`."""
        try:
            rows = await self._fetch(
                "regenerate_session",
                id=hash_id(session_id),
                new_id=hash_id(new_id),
                grace=grace,
                successor=seal(new_id, session_id),
                change=_change_json(change),
            )
        except RowExists:
            raise SessionIdTaken from None
        return await self._saved(rows[0], session_id) if rows else None

    async def delete(self, session_id: str) -> bool:
        """Ends the session; see `SessionStore.delete`."""
        return bool(await self._fetch("delete_session", id=hash_id(session_id)))

    @asynccontextmanager
    async def lock(
        self, session_id: str, timeout: float
    ) -> AsyncIterator[_Locked | None]:
        """Locks the row for the length of the block; see `SessionStore.lock`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        async with self._only_one(hash_id(session_id), timeout):
            transaction, connection, rows = await self._open_lock(session_id, deadline)
            error: BaseException | None = None
            try:
                if rows:
                    row = rows[0]
                    current = await self._current_id(row[1:3], session_id)
                    record = SessionRecord(current, row[4], *row[5:11])
                    yield _Locked(self, connection, record)
                else:
                    yield None
            except BaseException as raised:
                error = raised
                raise
            finally:
                ended = self._within(self.timeout, _end(transaction, error))
                if error is None:
                    await ended
                else:
                    with suppress(StoreError):  # the block's own error says more
                        await ended

    async def _open_lock(
        self, session_id: str, deadline: float
    ) -> tuple[Transaction, Connection, Sequence[Row]]:
        """A transaction that has locked the row; without rows if there is none."""
        loop = asyncio.get_running_loop()
        while True:
            transaction = self._pool.transaction()
            opening = asyncio.ensure_future(transaction.__aenter__())
            try:
                connection = await self._within(deadline - loop.time(), opening)
            except BaseException:
                # It may have opened at the very moment that it was given up.
                opening.add_done_callback(partial(self._end_unused, transaction))
                raise
            try:
                rows = await self._within(
                    # A little more than the database's own limit, which says it better.
                    deadline - loop.time() + 0.25,
                    self._lock_row(connection, session_id, deadline - loop.time()),
                )
            except BaseException as error:
                self._keep(asyncio.ensure_future(_end(transaction, error)))
                if not isinstance(error, WriteConflict):
                    raise
                # The row moved to another partition while we waited for it.
                if loop.time() >= deadline:
                    raise LockTimeout from None
            else:
                return transaction, connection, rows

    def _end_unused(
        self, transaction: Transaction, opening: asyncio.Future[Any]
    ) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._keep(asyncio.ensure_future(_end(transaction, StoreUnavailable())))

    async def _lock_row(
        self, connection: Connection, session_id: str, seconds: float
    ) -> Sequence[Row]:
        # Zero would mean no limit.
        await connection.run_script(
            f"SET LOCAL lock_timeout = '{max(1, int(seconds * 1000))}ms'"
        )
        return await connection.fetch(self._sql["lock_session"], id=hash_id(session_id))

    @asynccontextmanager
    async def _only_one(self, id_hash: bytes, timeout: float) -> AsyncIterator[None]:
        """
        One at a time within this process, before a connection is taken: waiting for a
        row must not use up the pool.
        """
        entry = self._local_locks.setdefault(id_hash, [asyncio.Lock(), 0])
        entry[1] += 1
        try:
            try:
                async with asyncio.timeout(timeout):
                    await entry[0].acquire()
            except TimeoutError:
                raise LockTimeout from None
            try:
                yield
            finally:
                entry[0].release()
        finally:
            entry[1] -= 1
            if not entry[1]:
                self._local_locks.pop(id_hash, None)

    # ── UserSessions ─────────────────────────────────────────────────────────────

    async def sessions_of(
        self, user_id: str | int, *, limit: int = 50, current: str | None = None
    ) -> list[SessionInfo]:
        """
        The live sessions of a user, last used first; see `UserSessions.sessions_of`.

        `user_id` is what the application keeps under `user_id` in its sessions.
        """
        rows = await self._fetch("sessions_of", user_id=str(user_id), limit=limit)
        return [
            SessionInfo(
                handle=(handle := handle_of(bytes(row[0]))),
                user_id=row[1],
                created_at=_datetime(row[2]),
                last_used_at=_datetime(row[6]),
                expires=_datetime(row[3]),
                user_agent=row[7],
                address=row[8],
                current=handle == current,
            )
            for row in rows
        ]

    async def revoke(self, handle: str) -> bool:
        """Ends the session with this handle; False if there is none."""
        bounds = handle_range(handle)
        if bounds is None:
            return False
        rows = await self._fetch("revoke", low=bounds[0], high=bounds[1])
        if rows:
            logger.info("session %s revoked", handle[:12])
        return any(row[0] for row in rows)

    async def revoke_user(
        self, user_id: str | int, *, except_handle: str | None = None
    ) -> int:
        """Ends all sessions of a user but one; returns how many."""
        # No hash lies between these two, so nothing is excepted.
        low, high = handle_range(except_handle or "") or (b"\xff", b"")
        rows = await self._fetch(
            "revoke_user", user_id=str(user_id), low=low, high=high
        )
        return int(rows[0][0])

    async def revoke_oldest(self, user_id: str | int, *, allowed: int) -> int:
        """Ends the user's sessions over the allowed number, longest unused first."""
        rows = await self._fetch("revoke_oldest", user_id=str(user_id), allowed=allowed)
        return len(rows)

    async def revoke_all(self) -> int:
        """Ends every session; returns how many."""
        return int((await self._fetch("revoke_all"))[0][0])

    async def delete_expired(self, *, limit: int = 1000) -> int:
        """
        Deletes up to `limit` expired rows; returns how many.

        Never touches a live one, and leaves out rows that another cleaner works on.
        """
        return int((await self._fetch("delete_expired", limit=limit))[0][0])

    async def stats(self) -> dict[str, Any]:
        """Counts: live, expired, anonymous, users, the age of the oldest, bytes."""
        row = (await self._fetch("stats"))[0]
        names = ("live", "expired", "anonymous", "users")
        return {
            **dict(zip(names, (int(n) for n in row[:4]), strict=True)),
            "oldest_seconds": None if row[4] is None else row[5] - row[4],
            "bytes": int(row[6]),
        }

    async def top_users(self, *, limit: int = 5) -> list[tuple[str, int]]:
        """The users with the most live sessions."""
        rows = await self._fetch("top_users", limit=limit)
        return [(row[0], int(row[1])) for row in rows]

    async def check(self) -> None:
        """Raises `SchemaMissing` or `StoreUnavailable` if sessions cannot be kept."""
        await self._fetch("check_session_table")

    # ── batches ──────────────────────────────────────────────────────────────────

    async def _load_batch(self, ids: dict[bytes, str]) -> dict[bytes, Loaded]:
        try:
            rows = await self._ask("load_sessions", ids=list(ids))
        except ConnectionLost:
            # Reading can be repeated; the pool has noticed and connects anew.
            rows = await self._ask("load_sessions", ids=list(ids))
        found: dict[bytes, Loaded] = {}
        for row in rows:
            asked = bytes(row[0])
            session_id = ids.get(asked)
            if session_id is None:
                raise await self._foreign_row()
            if row[1] is None:
                found[asked] = SessionRecord(session_id, row[4], *row[5:11])
            elif asked not in found:
                if row[3]:
                    new_id = await self._current_id(row[1:3], session_id)
                    found[asked] = SessionRecord(new_id, row[4], *row[5:11])
                else:
                    found[asked] = RetiredId(handle_of(bytes(row[1])), row[11])
        return found

    async def _create_batch(self, items: dict[bytes, Write]) -> dict[bytes, Any]:
        outcomes = await self._write("create_sessions", items)
        for id_hash in items:
            outcomes.setdefault(id_hash, SessionIdTaken())
        return outcomes

    async def _save_batch(self, items: dict[bytes, Write]) -> dict[bytes, Any]:
        outcomes = await self._write("save_sessions", items)
        loop = asyncio.get_running_loop()
        for id_hash, item in items.items():
            if id_hash not in outcomes:
                # Locked, gone, or moved to another id. It waits outside of the batch.
                outcomes[id_hash] = task = loop.create_task(
                    self._within(self.timeout, self._save_alone(id_hash, *item))
                )
                self._keep(task)
        return outcomes

    async def _write(self, name: str, items: dict[bytes, Write]) -> dict[bytes, Any]:
        """Sends the writes as one statement; the outcomes of the rows that it met."""
        try:
            rows = await self._ask(
                name,
                ids=list(items),
                changes=[_change_json(change) for _, change in items.values()],
            )
        except StoreUnavailable:
            raise  # it may have been applied, so it is not sent again
        except StoreError as error:
            if len(items) == 1 or isinstance(error, SchemaMissing):
                raise
            # One of them is bad, and its neighbours are not: each for itself.
            outcomes: dict[bytes, Any] = {}
            for id_hash, item in items.items():
                try:
                    outcomes |= await self._write(name, {id_hash: item})
                except StoreError as own:
                    outcomes[id_hash] = own
            return outcomes
        saved: dict[bytes, Any] = {}
        for row in rows:
            id_hash = bytes(row[0])
            if id_hash not in items:
                raise await self._foreign_row()
            saved[id_hash] = Saved(items[id_hash][0], *row[2:6])
        return saved

    async def _save_alone(
        self, id_hash: bytes, session_id: str, change: SessionChange
    ) -> Saved | None:
        """Waits for the row, and finds it by the id that the session had before."""
        async with self._alone:
            rows = await self._ask(
                "save_session", id=id_hash, change=_change_json(change)
            )
            return await self._saved(rows[0], session_id) if rows else None

    # ── rows ─────────────────────────────────────────────────────────────────────

    async def _saved(self, row: Row, session_id: str) -> Saved:
        """What a write returned, if it is about the session that was asked for."""
        return Saved(await self._current_id(row, session_id), *row[2:6])

    async def _current_id(self, row: Row, session_id: str) -> str:
        """The id of a row that was found by this id: itself, or its successor."""
        if bytes(row[0]) == hash_id(session_id):
            return session_id
        if row[1] is not None:
            new_id = unseal(bytes(row[1]), session_id)
            if hash_id(new_id) == bytes(row[0]):
                return new_id
        raise await self._foreign_row()

    async def _foreign_row(self) -> StoreError:
        """
        A row came back that nobody asked for, as when statements of several clients are
        mixed up on one connection (prepared statements behind an old PgBouncer).
        """
        logger.critical(
            "the database answered with another session's row; the connections are "
            "dropped and the request is refused. Is there a PgBouncer in transaction "
            "mode? Switch prepared statements off (docs/pools.md)"
        )
        await self._pool.expire()
        return StoreError("the database answered with a row that was not asked for")

    # ── asking ───────────────────────────────────────────────────────────────────

    async def _fetch(self, name: str, **values: Any) -> Sequence[Row]:
        """A statement of its own, within the time limit."""
        return await self._within(self.timeout, self._ask(name, **values))

    async def _ask(self, name: str, **values: Any) -> Sequence[Row]:
        """
        Runs a statement, again if another transaction was in its way, and says so once
        when the database goes or comes back.
        """
        try:
            for _ in range(_TRIES - 1):
                with suppress(WriteConflict):
                    rows = await self._pool.fetch(self._sql[name], **values)
                    break
            else:
                rows = await self._pool.fetch(self._sql[name], **values)
        except StoreError as error:
            if isinstance(error, StoreUnavailable | SchemaMissing):
                if self.problem is None:
                    logger.error("the session store is away: %s", error)
                    self.problem = error
            elif not isinstance(error, RowExists):
                logger.error("%s: %s", name, error)
            raise
        if self.problem is not None:
            logger.warning("the session store is back")
            self.problem = None
        return rows

    async def _within(self, seconds: float, work: Awaitable[T]) -> T:
        """
        Awaits, but no longer than so many seconds; then raises `StoreUnavailable`.

        In a task of its own, whose cancellation is not awaited: drivers may take long
        to cancel.
        """
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=max(0.0, seconds))
        except asyncio.CancelledError:
            task.cancel()
            self._keep(task)
            raise
        if done:
            return task.result()
        task.cancel()
        self._keep(task)
        raise StoreUnavailable(
            f"the session store did not answer within {seconds:.3g} seconds"
        )

    def _keep(self, task: asyncio.Future[Any]) -> None:
        """Holds a task that was given up until it ends, and takes its exception."""
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())


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
        store, record = self._store, self.record
        rows = await store._within(
            store.timeout,
            self._connection.fetch(
                store._sql["save_session"],
                id=hash_id(record.id),
                change=_change_json(change),
            ),
        )
        if not rows:  # it expired inside the block
            raise SessionGone
        return await store._saved(rows[0], record.id)


def _change_json(change: SessionChange) -> str:
    """The change as the statements expect it; what is not set is left out."""
    parts: list[str] = []
    if change.changed or change.replace:
        parts.append(f'"set":{join_object(change.changed)}')
    if change.removed:
        parts.append(f'"remove":{encode(change.removed)}')
    if change.replace:
        parts.append('"replace":true')
    if change.own:
        parts.append('"own":true')
    for name, number in (
        ("idle", change.idle),
        ("absolute", change.absolute),
        ("own_idle", change.own_idle),
        ("own_absolute", change.own_absolute),
    ):
        if number is not None:
            parts.append(f'"{name}":{number!r}')
    for name, text in ("user_agent", change.user_agent), ("address", change.address):
        if text is not None:
            parts.append(f'"{name}":{encode(text)}')
    return "{" + ",".join(parts) + "}"


async def _end(transaction: Transaction, error: BaseException | None) -> None:
    """Commits, or rolls back for an error, which is for the caller to raise."""
    if error is None:
        await transaction.__aexit__(None, None, None)
    else:
        await transaction.__aexit__(type(error), error, error.__traceback__)


def _both_renew(one: Write, other: Write) -> bool:
    return one[1].only_renews and one[1] == other[1]


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
