"""psycopg 3: a thin adapter over its `AsyncConnectionPool`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import ConnectionLost, StoreUnavailable
from tornado_compas_session.stores.pools.errors import error_of
from tornado_compas_session.stores.pools.queries import Statement

logger = logging.getLogger("tornado_compas_session")


class PsycopgPool:
    """A `Pool` over an `AsyncConnectionPool`; gives every connection back."""

    def __init__(
        self, pool: psycopg_pool.AsyncConnectionPool[Any], *, timeout: float
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._age = 0  # how often the connections were dropped
        self._returning: set[asyncio.Future[None]] = set()
        #: None leaves it to psycopg; False behind a PgBouncer, where it mixes up.
        self._prepare: bool | None = None
        self._checked = False

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        async with self._connection() as connection:
            return await connection.fetch(statement, **values)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[_Connection]:
        """One connection and one transaction."""
        async with self._connection() as connection:
            await connection.run_script("BEGIN")
            yield connection  # an exception rolls it back when the connection returns
            await connection.run_script("COMMIT")

    async def expire(self) -> None:
        """Drops the connections."""
        self._age += 1
        with _translated():
            await self._pool.drain()

    async def close(self) -> None:
        """Closes the pool."""
        await self._pool.close(timeout=self._timeout)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        age = self._age
        try:
            with _translated():
                driver = await self._pool.getconn(timeout=self._timeout)
            autocommit = driver.autocommit
            try:
                with _translated():
                    if not autocommit:
                        await driver.set_autocommit(True)
                    if not self._checked:
                        self._checked = True
                        await self._check(driver)
                yield _Connection(driver, self._prepare)
            finally:
                # Shielded: a return that is cancelled loses the connection for good.
                task = asyncio.ensure_future(self._put(driver, autocommit))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)
                await asyncio.shield(task)
        except ConnectionLost:
            if age == self._age:
                # The others are stale as well, and each would be handed out once.
                await self.expire()
            raise

    async def _put(self, driver: Any, autocommit: bool) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                if driver.info.transaction_status != TransactionStatus.IDLE:
                    await driver.rollback()
                if driver.autocommit != autocommit:
                    await driver.set_autocommit(autocommit)
        except (psycopg.Error, TimeoutError):
            await driver.close()  # the pool opens another one instead
        await self._pool.putconn(driver)

    async def _check(self, driver: Any) -> None:
        """Notices a PgBouncer: it tells a pid of its own, and not the server's."""
        cursor = driver.cursor(row_factory=tuple_row)
        await cursor.execute("SELECT pg_backend_pid()", prepare=False)
        if (await cursor.fetchone())[0] != driver.info.backend_pid:
            self._prepare = False
            if driver.prepare_threshold is not None:
                logger.warning(
                    "the database is behind a PgBouncer and psycopg prepares "
                    "statements: with a PgBouncer older than 1.21 answers get mixed "
                    "up; sessions do without, and for the rest of the application "
                    'pass kwargs={"prepare_threshold": None} to the pool '
                    "(docs/pools.md)"
                )


class _Connection:
    def __init__(self, driver: Any, prepare: bool | None) -> None:
        self._driver = driver
        self._prepare = prepare

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        given = tuple(values[name] for name in statement.parameters)
        with _translated():
            # The application's own row factory may make dicts.
            cursor = self._driver.cursor(row_factory=tuple_row)
            await cursor.execute(
                statement.formatted, statement.spread(given), prepare=self._prepare
            )
            rows: Sequence[Row] = await cursor.fetchall() if cursor.description else []
            return rows

    async def run_script(self, sql: str) -> None:
        with _translated():
            await self._driver.execute(sql, prepare=False)


@contextmanager
def _translated() -> Iterator[None]:
    """Ours for the driver's; without its cause, which quotes the data in places."""
    try:
        yield
    except (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests):
        raise StoreUnavailable("no connection to the database came free") from None
    except psycopg.Error as error:
        name = type(error).__name__
        if isinstance(error, psycopg.DataError) and error.sqlstate is None:
            raise error_of("22000", name, None) from None  # refused by psycopg itself
        raise error_of(error.sqlstate, name, error.diag.message_primary) from None
    except (OSError, ValueError) as error:
        raise error_of(None, type(error).__name__, None) from None
