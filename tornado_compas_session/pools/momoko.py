"""
momoko 2.2.5.1, for applications that have it: a thin adapter.

momoko never gets a connection back whose caller was cancelled, and knows no time
limits. So each of its calls runs in a task that nobody cancels, and who waits for it
waits no longer than the limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any, TypeVar

import momoko
import psycopg2
from psycopg2.extensions import cursor as tuple_cursor

from tornado_compas_session.exceptions import (
    ConnectionLost,
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.pools.errors import error_of
from tornado_compas_session.protocols import Row
from tornado_compas_session.queries import Statement

T = TypeVar("T")
_VERSION = "2.2.5.1"


class MomokoPool:
    """A `Pool` over a `momoko.Pool`, which may send a statement twice."""

    repeats = True

    def __init__(self, pool: momoko.Pool, *, timeout: float) -> None:
        installed = version("momoko")
        if installed != _VERSION:
            raise SettingsError(
                f"momoko {installed} does not run on this Tornado; run "
                f"`pip install --no-deps momoko=={_VERSION} psycopg2-binary`"
            )
        self._pool = pool
        self._timeout = timeout
        self._under_way: set[asyncio.Task[Any]] = set()

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        return await self._unharmed(self._execute(self._pool, statement, values))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[_Connection]:
        """One connection and one transaction."""
        acquiring = asyncio.ensure_future(self._begin())
        try:
            driver = await self._unharmed(acquiring)
        except BaseException:
            # It may come after we have stopped waiting.
            acquiring.add_done_callback(self._give_back_late)
            raise
        connection = _Connection(self, driver)
        try:
            yield connection
        except BaseException:
            with suppress(StoreError):
                await self._unharmed(self._end(connection, "ROLLBACK"))
            raise
        await self._unharmed(self._end(connection, "COMMIT"))

    async def expire(self) -> None:
        """Drops the idle connections; momoko opens them anew."""
        for connection in self._pool.conns.free:
            connection.close()

    async def close(self) -> None:
        """Closes the pool, when what is under way has ended or used up its time."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._timeout)
        if not self._pool.closed:
            self._pool.close()

    async def _unharmed(self, work: Awaitable[T]) -> T:
        """Waits, within the limit, for work that nobody's leaving cancels."""
        task: asyncio.Task[T] = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=self._timeout)
        if not done:
            raise StoreUnavailable("the database did not answer in time")
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited may have left

    async def _execute(
        self, driver: Any, statement: Statement, values: dict[str, Any]
    ) -> Sequence[Row]:
        given = tuple(_adapted(values[name]) for name in statement.parameters)
        cursor = await self._ask(
            driver.execute,
            statement.formatted,
            statement.spread(given),
            # The application's own may make dicts.
            cursor_factory=tuple_cursor,
        )
        rows: Sequence[Row] = cursor.fetchall() if cursor.description else []
        return rows

    async def _ask(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return await call(*args, **options)
        except psycopg2.Error as error:
            lost = isinstance(
                error, psycopg2.OperationalError | psycopg2.InterfaceError
            )
            own = isinstance(error, momoko.Pool.DatabaseNotAvailable)
            code = error.pgcode or (None if lost or own else "XX000")
            ours = error_of(code, type(error).__name__, error.diag.message_primary)
        except (OSError, ValueError, momoko.PoolError) as error:
            # psycopg2 has no NUL in a text, and says so with a ValueError.
            kind = "22000" if isinstance(error, ValueError) else None
            ours = error_of(kind, type(error).__name__, None)
        if isinstance(ours, ConnectionLost):
            await self.expire()
        raise ours

    async def _begin(self) -> Any:
        driver = await self._ask(self._pool.getconn)
        try:
            await self._ask(driver.execute, "BEGIN")
        except BaseException:
            self._pool.putconn(driver)
            raise
        return driver

    async def _end(self, connection: _Connection, verb: str) -> None:
        async with connection.busy:  # a statement may be running whose caller has left
            try:
                await self._ask(connection.driver.execute, verb)
            finally:
                self._pool.putconn(connection.driver)

    def _give_back_late(self, acquiring: asyncio.Future[Any]) -> None:
        if not acquiring.cancelled() and acquiring.exception() is None:
            connection = _Connection(self, acquiring.result())
            task = asyncio.ensure_future(self._end(connection, "ROLLBACK"))
            self._under_way.add(task)
            task.add_done_callback(self._ended)


class _Connection:
    def __init__(self, pool: MomokoPool, driver: Any) -> None:
        self._pool = pool
        self.driver = driver
        self.busy = asyncio.Lock()

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        return await self._pool._unharmed(self._fetch(statement, values))

    async def run_script(self, sql: str) -> None:
        await self._pool._unharmed(self._run(sql))

    async def _fetch(
        self, statement: Statement, values: dict[str, Any]
    ) -> Sequence[Row]:
        async with self.busy:
            return await self._pool._execute(self.driver, statement, values)

    async def _run(self, sql: str) -> None:
        async with self.busy:
            await self._pool._ask(self.driver.execute, sql)


def _adapted(value: Any) -> Any:
    if isinstance(value, bytes):
        return psycopg2.Binary(value)
    return [_adapted(each) for each in value] if isinstance(value, list) else value
