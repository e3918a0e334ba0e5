"""
momoko 2.2.5.1, for applications that have it: a thin adapter.

momoko never gets a connection back whose caller was cancelled, knows no time limits,
and sends a statement again when its reply was lost. So each call runs in a task that
nobody cancels, on a connection taken for it; one that takes too long has its connection
cut, which ends it; and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any, TypeVar

import momoko
import psycopg2
from psycopg2.extensions import cursor as tuple_cursor

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    ConnectionLost,
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.pools.errors import error_of
from tornado_compas_session.stores.pools.queries import Statement

T = TypeVar("T")
_VERSION = "2.2.5.1"


class MomokoPool:
    """A `Pool` over a `momoko.Pool`."""

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
        connection = _Connection(self._pool)
        return await self._unharmed(connection, connection.alone(statement, values))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[_InTransaction]:
        """One connection and one transaction."""
        connection = _Connection(self._pool)
        beginning = self._start(connection, connection.begin())
        try:
            await self._wait(beginning)
        except BaseException:
            # It may come after we have stopped waiting.
            beginning.add_done_callback(lambda task: self._end_late(task, connection))
            raise
        try:
            yield _InTransaction(self, connection)
        except BaseException:
            with suppress(StoreError):
                await self._unharmed(connection, connection.end("ROLLBACK"))
            raise
        await self._unharmed(connection, connection.end("COMMIT"))

    async def expire(self) -> None:
        """Drops the idle connections; they are opened anew when they are taken."""
        _expire(self._pool)

    async def close(self) -> None:
        """Closes the pool, when what is under way has ended or used up its time."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._timeout)
        if not self._pool.closed:
            self._pool.close()

    async def _unharmed(
        self, connection: _Connection, work: Coroutine[Any, Any, T]
    ) -> T:
        """Waits, within the limit, for work that nobody's leaving cancels."""
        return await self._wait(self._start(connection, work))

    def _start(
        self, connection: _Connection, work: Coroutine[Any, Any, T]
    ) -> asyncio.Task[T]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        limit = loop.call_later(self._timeout, connection.cut)
        self._under_way.add(task)

        def ended(task: asyncio.Task[T]) -> None:
            limit.cancel()
            self._under_way.discard(task)
            if not task.cancelled():
                task.exception()  # whoever waited may have left

        task.add_done_callback(ended)
        return task

    async def _wait(self, task: asyncio.Task[T]) -> T:
        done, _ = await asyncio.wait({task}, timeout=self._timeout)
        if not done:
            raise StoreUnavailable("the database did not answer in time")
        return task.result()

    def _end_late(self, beginning: asyncio.Task[None], connection: _Connection) -> None:
        if not beginning.cancelled() and beginning.exception() is None:
            self._start(connection, connection.end("ROLLBACK"))


class _InTransaction:
    def __init__(self, pool: MomokoPool, connection: _Connection) -> None:
        self._pool = pool
        self._connection = connection

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        work = self._connection.fetch(statement, values)
        return await self._pool._unharmed(self._connection, work)

    async def run_script(self, sql: str) -> None:
        await self._pool._unharmed(self._connection, self._connection.run(sql))


class _Connection:
    """One of momoko's connections, from when it is asked for until it is given back."""

    def __init__(self, pool: momoko.Pool) -> None:
        self._pool = pool
        self._driver: Any = None
        self._is_cut = False
        # If none of these has opened by the time limit, none of them will.
        self._opening = list(pool.conns.pending)
        # A statement may be running whose caller has left.
        self._busy = asyncio.Lock()

    def cut(self) -> None:
        """Ends what is under way on it: momoko notices, and has its way of going on."""
        self._is_cut = True
        if self._driver is not None:
            _cut(self._driver)
            return
        for driver in self._opening:
            if driver in self._pool.conns.pending:
                _cut(driver)

    async def alone(self, statement: Statement, values: dict[str, Any]) -> list[Row]:
        await self._take()
        try:
            return await self.fetch(statement, values)
        finally:
            await self._give_back()

    async def begin(self) -> None:
        await self._take()
        try:
            await self.run("BEGIN")
        except BaseException:
            await self._give_back()
            raise

    async def end(self, verb: str) -> None:
        try:
            await self.run(verb)
        finally:
            await self._give_back()

    async def fetch(self, statement: Statement, values: dict[str, Any]) -> list[Row]:
        given = tuple(_adapted(values[name]) for name in statement.parameters)
        async with self._busy:
            cursor = await self._ask(
                self._driver.execute,
                statement.formatted,
                statement.spread(given),
                # The application's own may make dicts.
                cursor_factory=tuple_cursor,
            )
        return cursor.fetchall() if cursor.description else []

    async def run(self, sql: str) -> None:
        async with self._busy:
            await self._ask(self._driver.execute, sql)

    async def _take(self) -> None:
        self._driver = driver = await self._ask(self._pool.getconn, ping=False)
        try:
            if self._is_cut:  # too late: nobody waits for it any more
                raise StoreUnavailable("the database did not answer in time")
            if driver.closed or _has_ended(driver):
                driver.close()
                await self._ask(driver.connect)
        except BaseException:
            await self._give_back()
            raise

    async def _give_back(self) -> None:
        driver = self._driver
        if driver.closed and not self._is_cut:
            # momoko itself would leave it dead for half a second.
            with suppress(psycopg2.Error):
                await driver.connect()
        self._driver = None  # no longer ours to cut
        self._pool.putconn(driver)

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
        if self._is_cut:
            raise StoreUnavailable("the database did not answer in time")
        if isinstance(ours, ConnectionLost):
            _expire(self._pool)
            if self._driver is not None:
                self._driver.close()  # it may only have become read-only
        raise ours


def _expire(pool: momoko.Pool) -> None:
    for driver in pool.conns.free:
        driver.close()


def _has_ended(driver: Any) -> bool:
    """Whether the server has closed an idle connection, as far as can be told."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    # Elsewhere than on Linux: it has something to say, and that will be it.
    poll.register(driver.fileno, getattr(select, "POLLRDHUP", select.POLLIN))
    return bool(poll.poll(0))


def _cut(driver: Any) -> None:
    """Ends the connection below psycopg2, so that momoko hears of it, and not we."""
    if not driver.closed:
        with suppress(OSError), socket.socket(fileno=os.dup(driver.fileno)) as link:
            link.shutdown(socket.SHUT_RDWR)


def _adapted(value: Any) -> Any:
    if isinstance(value, bytes):
        return psycopg2.Binary(value)
    return [_adapted(each) for each in value] if isinstance(value, list) else value
