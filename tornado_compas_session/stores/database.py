"""Sends the named statements through a pool, and looks twice at what comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from tornado_compas_session.core.protocols import Connection, Pool, Row
from tornado_compas_session.core.trouble import Trouble
from tornado_compas_session.exceptions import (
    ConnectionLost,
    SessionDataError,
    StoreError,
    StoreUnavailable,
    UnstorableText,
    WriteConflict,
)
from tornado_compas_session.stores.batching import Batcher
from tornado_compas_session.stores.pools import as_pool
from tornado_compas_session.stores.pools.limits import left, lock_limit
from tornado_compas_session.stores.pools.queries import (
    Statement,
    compile_statement,
    statements,
)

logger = logging.getLogger("tornado_compas_session")

#: Whether the table is there, and Citus, which may have spread it (distributed.py).
LAYOUT = compile_statement(
    "layout",
    "SELECT to_regclass('compas_session') IS NOT NULL,"
    " to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL",
)
IS_SPREAD = compile_statement(
    "is_spread",
    "SELECT 1 FROM pg_dist_partition"
    " WHERE logicalrelid = to_regclass('compas_session') AND partkey IS NOT NULL",
)

#: How often a statement is sent that loses to another transaction (SQLSTATE 40…).
_TRIES = 5


class Database:
    """The statements of `queries.sql` on a pool of the application's."""

    def __init__(self, pool: Any, *, timeout: float, max_waiting: int) -> None:
        self.pool: Pool = as_pool(pool, timeout=timeout)
        self.sql = statements()
        self.timeout = timeout
        #: Knows what ails the database, and logs its beginning and its end.
        self.trouble = Trouble()
        #: How many connections the pool has at most.
        self.size: int = getattr(self.pool, "size", 4)
        self._abandoned: set[asyncio.Future[Any]] = set()
        self._distributed: bool | None = None
        self._notices: Batcher[str, None] = Batcher(
            self._notice,
            join=lambda one, other: one,
            lanes=1,
            max_batch=2,  # there is but one: all who wait share it
            max_waiting=max_waiting,
            timeout=timeout,
            trouble=self.trouble,
        )

    @property
    def is_whole(self) -> bool:
        """Whether the table is known to be on one server."""
        return self._distributed is False

    async def is_distributed(self, deadline: float | None = None) -> bool:
        """Whether the table is spread over several servers; asked for once."""
        if self._distributed is None:
            await self._notices.submit("layout", "", deadline)
        return bool(self._distributed)

    def look_again(self) -> None:
        """Asks for it once more, as what it was may have changed."""
        self._distributed = None

    async def _notice(self, items: dict[str, str], seconds: float) -> dict[str, None]:
        if self._distributed is not None:  # while this one waited
            return {}
        [(there, has_citus)] = await self.read(LAYOUT, seconds)
        spread = bool(has_citus and await self.read(IS_SPREAD, seconds))
        if there:
            self._distributed = spread
        if spread:
            logger.info(
                "the sessions are spread over several servers (Citus): statements go "
                "out one by one, up to %d side by side",
                self.size,
            )
        return {}

    async def read(
        self, name: str | Statement, seconds: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """
        The same for what only reads: once more if the connection was lost, which the
        pool has noticed by then.
        """
        try:
            return await self.ask(name, seconds, **values)
        except ConnectionLost:
            return await self.ask(name, seconds, **values)

    async def ask(
        self, name: str | Statement, seconds: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """
        Runs a statement; again if another transaction was in its way, which is certain
        to have changed nothing.
        """
        statement = self.sql[name] if isinstance(name, str) else name
        limit = self.timeout if seconds is None else seconds
        until = asyncio.get_running_loop().time() + limit
        try:
            for _ in range(_TRIES - 1):
                with suppress(WriteConflict):
                    return await self.pool.fetch(statement, timeout=limit, **values)
                limit = left(until)
            return await self.pool.fetch(statement, timeout=limit, **values)
        except UnstorableText as error:
            raise SessionDataError("all of it", str(error)) from None

    @asynccontextmanager
    async def transaction(
        self, seconds: float, *, lock: float | None = None
    ) -> AsyncIterator[Connection]:
        """
        A transaction that has to begin within so many seconds, and whose statements
        wait for a row for `lock` seconds at most, wherever it is.
        """
        begun = self.pool.transaction(lock_timeout=lock, timeout=seconds)
        async with begun as connection:
            if lock is not None and self._distributed:
                # On every server, and not on this one alone.
                everywhere = "SET LOCAL citus.propagate_set_commands = 'local'"
                await connection.run_script(f"{everywhere}; {lock_limit(lock)}")
            yield connection

    async def on(
        self, connection: Connection, name: str | Statement, **values: Any
    ) -> Sequence[Row]:
        """Runs a statement inside of a transaction."""
        statement = self.sql[name] if isinstance(name, str) else name
        try:
            return await connection.fetch(statement, **values)
        except UnstorableText as error:
            raise SessionDataError("all of it", str(error)) from None

    async def alone(
        self, name: str | Statement, seconds: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """
        A statement of its own, with a limit that holds for any pool: its cancellation
        is not awaited, for a driver may take long to cancel.
        """
        limit = self.timeout if seconds is None else seconds
        task = asyncio.ensure_future(self.ask(name, limit, **values))
        self.keep(task)
        try:
            await asyncio.wait({task}, timeout=max(0.0, limit + 0.5))
            if task.done():
                return task.result()
        finally:
            task.cancel()
        raise StoreUnavailable(
            f"the session store did not answer within {limit:.3g} seconds"
        )

    def deadline(self) -> float:
        """The loop's time by which a statement that is sent now is over."""
        return asyncio.get_running_loop().time() + self.timeout

    def keep(self, task: asyncio.Future[Any]) -> None:
        """Holds a task that was given up until it ends, and takes its exception."""
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def own(self, rows: Sequence[Row], handle: str) -> Row:
        """What came back, if it is the row that was asked for."""
        await self.check_rows(rows, {handle})
        return rows[0]

    async def check_rows(self, rows: Sequence[Row], handles: Container[str]) -> None:
        """Raises `StoreError` if a row came back that was not asked for."""
        for row in rows:
            if row[0] not in handles:
                raise await self._foreign_row()

    async def _foreign_row(self) -> StoreError:
        """
        A row came back that nobody asked for, as when statements of several clients are
        mixed up on one connection (prepared statements behind an old PgBouncer).
        """
        logger.critical(
            "the database answered with another session's row; the connections are "
            "dropped and the request is refused. Is there a PgBouncer in transaction "
            'mode? Switch prepared statements off (see "PgBouncer" in the '
            "documentation)"
        )
        await self.pool.expire()
        return StoreError("the database answered with a row that was not asked for")
