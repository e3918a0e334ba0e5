"""asyncpg, the default driver: a thin adapter, and a well-set pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from tornado_compas_session.exceptions import (
    ConnectionLost,
    LockTimeout,
    SchemaMissing,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.protocols import Row
from tornado_compas_session.queries import Statement


async def _no_reset(connection: Any) -> None:
    """
    Instead of asyncpg's reset query, which doubles the round trips: our statements
    leave nothing behind on a connection.
    """


async def open_pool(
    dsn: str, *, min_size: int, max_size: int, timeout: float
) -> asyncpg.Pool[Any]:
    """A pool that needs no database to be there yet; `timeout` bounds each query."""
    return await asyncpg.create_pool(
        dsn,
        min_size=min_size,
        max_size=max_size,
        timeout=timeout,
        command_timeout=timeout,
        reset=_no_reset,
    )


class AsyncpgPool:
    """A `Pool` over an asyncpg pool: maps its errors, and limits its waits."""

    repeats = False

    def __init__(self, pool: asyncpg.Pool[Any], *, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        with _translated():
            async with self._pool.acquire(timeout=self._timeout) as connection:
                rows: Sequence[Row] = await connection.fetch(
                    statement.numbered,
                    *[values[name] for name in statement.parameters],
                    timeout=self._timeout,
                )
                return rows

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[_Connection]:
        """One connection and one transaction."""
        with _translated():
            async with (
                self._pool.acquire(timeout=self._timeout) as connection,
                connection.transaction(),
            ):
                yield _Connection(connection, self._timeout)

    async def expire(self) -> None:
        """Drops the connections."""
        await self._pool.expire_connections()

    async def close(self) -> None:
        """Closes the pool."""
        await self._pool.close()


class _Connection:
    def __init__(self, connection: Any, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        with _translated():
            rows: Sequence[Row] = await self._connection.fetch(
                statement.numbered,
                *[values[name] for name in statement.parameters],
                timeout=self._timeout,
            )
            return rows

    async def run_script(self, sql: str) -> None:
        with _translated():
            await self._connection.execute(sql)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise SchemaMissing from error
    except asyncpg.LockNotAvailableError as error:
        raise LockTimeout from error
    except TimeoutError as error:
        raise StoreUnavailable("the database did not answer in time") from error
    except (
        asyncpg.PostgresConnectionError,
        asyncpg.InterfaceError,
        asyncpg.exceptions.OperatorInterventionError,
        asyncpg.CannotConnectNowError,
        OSError,
    ) as error:
        raise ConnectionLost from error
    except asyncpg.PostgresError as error:
        # Not the details, nor the cause that has them: they quote the data.
        raise StoreError(
            f"the database refused a statement: {error.args[0]} ({error.sqlstate})"
        ) from None
    except asyncpg.InternalClientError as error:
        raise StoreError("asyncpg failed") from error
