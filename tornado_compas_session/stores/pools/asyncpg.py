"""asyncpg, the default driver: a thin adapter, and a well-set pool."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import asyncpg

from tornado_compas_session.core.deadlines import Deadlines
from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    ConnectionLost,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.pools.errors import error_of
from tornado_compas_session.stores.pools.queries import Statement

logger = logging.getLogger("tornado_compas_session")
_PID = "SELECT pg_backend_pid()"


async def _no_reset(connection: Any) -> None:
    """
    Instead of asyncpg's reset query, which doubles the round trips: our statements
    leave nothing behind on a connection. An open transaction is rolled back anyway.
    """


async def open_pool(
    dsn: str, *, min_size: int, max_size: int, timeout: float
) -> asyncpg.Pool[Any]:
    """
    A pool that needs no database to be there yet; `timeout` bounds each query.

    Notices a PgBouncer, and does without prepared statements then. Notices a dead
    network link, even while nothing is asked.
    """
    prepares: bool | None = None

    async def connect(*args: Any, **options: Any) -> Any:
        nonlocal prepares
        if not prepares:
            # Until it is known: behind an old PgBouncer they mix up other statements.
            options["statement_cache_size"] = 0
        connection = await asyncpg.connect(*args, **options)
        if prepares is None:
            try:
                proxied = await _is_proxied(connection)
            except BaseException:
                connection.terminate()
                raise
            if proxied and prepares is None:  # another one may have said it meanwhile
                logger.info("a PgBouncer was noticed: sessions do without prepared SQL")
            prepares = not proxied
            if prepares:
                await connection.close()
                return await connect(*args, **options | {"statement_cache_size": 100})
        _watch_link(connection, timeout)
        return connection

    return await asyncpg.create_pool(
        dsn,
        min_size=min_size,
        max_size=max_size,
        timeout=timeout,
        command_timeout=timeout,
        connect=connect,
        reset=_no_reset,
    )


async def _is_proxied(connection: Any) -> bool:
    """A PgBouncer tells a pid of its own at the start, and not the server's."""
    return bool(connection.get_server_pid() != await connection.fetchval(_PID))


def _is_closed(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # it broke, and the pool has taken it back
        return True


def _watch_link(connection: Any, timeout: float) -> None:
    """Lets the kernel give up a connection whose other end is silent."""
    transport = getattr(connection, "_transport", None)
    link = transport and transport.get_extra_info("socket")
    if link is None or link.family not in (socket.AF_INET, socket.AF_INET6):
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(timeout * 1000)),
    ):
        if hasattr(socket, name):  # not on every system
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _Taken(NamedTuple):
    connection: Any
    #: When it was taken from the pool, and how often they had been dropped by then.
    since: float
    age: int


class AsyncpgPool:
    """
    A `Pool` over an asyncpg pool: maps its errors, and limits its waits.

    Taking a connection and giving it back costs more than a short statement does. So
    `fetch` keeps a few, never more than half of the pool, for its next calls; each goes
    back after a second, so that the pool's own upkeep sees it.
    """

    keep_seconds = 1.0
    keep_most = 4

    def __init__(self, pool: asyncpg.Pool[Any], *, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._acquiring = Deadlines(timeout)
        self._age = 0  # how often the connections were dropped
        self._checked = False
        self._kept: list[_Taken] = []
        self._keeps = min(self.keep_most, pool.get_max_size() // 2)
        self._timer: asyncio.TimerHandle | None = None
        self._returning: set[asyncio.Task[None]] = set()

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        taken = await self._take()
        try:
            with _translated():
                rows: Sequence[Row] = await taken.connection.fetch(
                    statement.numbered,
                    *[values[name] for name in statement.parameters],
                    timeout=self._timeout,
                )
        except BaseException as error:
            await self._give_back(taken, error)
            raise
        if not self._keep(taken):
            await self._give_back(taken)
        return rows

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[_Connection]:
        """One connection and one transaction."""
        taken = await self._take()
        try:
            transaction = taken.connection.transaction()
            with _translated():
                await transaction.start()
            try:
                yield _Connection(taken.connection, self._timeout)
            except BaseException:
                with contextlib.suppress(StoreError), _translated():
                    await transaction.rollback()
                raise
            with _translated():
                await transaction.commit()
        except BaseException as error:
            await self._give_back(taken, error)
            raise
        await self._give_back(taken)

    async def expire(self) -> None:
        """Drops the connections."""
        self._age += 1
        await self._pool.expire_connections()
        self._return_kept()

    async def close(self) -> None:
        """Closes the pool; connections that do not come back in time are cut."""
        self._keeps = 0
        self._return_kept()
        try:
            async with asyncio.timeout(self._timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _take(self) -> _Taken:
        while self._kept:
            taken = self._kept.pop()
            if not _is_closed(taken.connection):
                return taken
        age = self._age
        try:
            with _translated():
                connection = await self._acquiring.run(self._pool.acquire())
        except ConnectionLost:
            await self._lost(age)
            raise
        taken = _Taken(connection, asyncio.get_running_loop().time(), age)
        if not self._checked:
            self._checked = True
            try:
                with _translated():
                    await self._check(connection)
            except BaseException as error:
                await self._give_back(taken, error)
                raise
        return taken

    def _keep(self, taken: _Taken) -> bool:
        """Whether it stays for the next call, instead of going back to the pool."""
        loop = asyncio.get_running_loop()
        until = taken.since + self.keep_seconds
        if (
            len(self._kept) >= self._keeps
            or taken.age != self._age
            or loop.time() >= until
        ):
            return False
        self._kept.append(taken)
        if self._timer is None:
            self._timer = loop.call_at(until, self._return_kept)
        return True

    def _return_kept(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kept, self._kept = self._kept, []
        for taken in kept:
            task = asyncio.get_running_loop().create_task(self._give_back(taken))
            self._returning.add(task)
            task.add_done_callback(self._returned)

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._returning.discard(task)
        if not task.cancelled():
            task.exception()  # the connection broke; the next call hears of it

    async def _give_back(
        self, taken: _Taken, error: BaseException | None = None
    ) -> None:
        """Gives it back to the pool, clean; after a loss the others go as well."""
        try:
            with _translated():
                await self._pool.release(taken.connection, timeout=self._timeout)
        except ConnectionLost:
            await self._lost(taken.age)
            raise
        if isinstance(error, ConnectionLost):
            await self._lost(taken.age)

    async def _lost(self, age: int) -> None:
        if age == self._age:  # else they are fresh already
            await self.expire()

    async def _check(self, connection: Any) -> None:
        """Warns of a dangerous combination in a pool that the application made."""
        config = getattr(connection, "_config", None)
        if not getattr(config, "statement_cache_size", 0):
            return
        try:
            proxied = await _is_proxied(connection)
        except asyncpg.PostgresError:
            proxied = True  # the question itself was mixed up
        if proxied:
            logger.warning(
                "the database is behind a PgBouncer and asyncpg prepares statements: "
                "with a PgBouncer older than 1.21 answers get mixed up; pass "
                "statement_cache_size=0 to asyncpg.create_pool (docs/pools.md)"
            )


class _Connection:
    def __init__(self, driver: Any, timeout: float) -> None:
        self.driver = driver
        self._timeout = timeout

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        with _translated():
            rows: Sequence[Row] = await self.driver.fetch(
                statement.numbered,
                *[values[name] for name in statement.parameters],
                timeout=self._timeout,
            )
            return rows

    async def run_script(self, sql: str) -> None:
        with _translated():
            await self.driver.execute(sql)


@contextmanager
def _translated() -> Iterator[None]:
    """Ours for the driver's; without its cause, which quotes the data in places."""
    try:
        yield
    except TimeoutError:
        raise StoreUnavailable("the database did not answer in time") from None
    except asyncpg.PostgresError as error:
        name = type(error).__name__
        raise error_of(error.sqlstate, name, error.args[0]) from None
    except ValueError:
        # `DataError` and `ClientConfigurationError` are InterfaceErrors too, and say
        # what was wrong by showing it.
        raise StoreError(
            "asyncpg refused a value or the DSN; is the password in it percent-encoded?"
        ) from None
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise error_of(None, type(error).__name__, None) from None
