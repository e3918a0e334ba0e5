"""asyncpg, the default driver: a thin adapter, and a well-set pool."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import asyncpg

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    ConnectionLost,
    SettingsError,
    StoreUnavailable,
)
from tornado_compas_session.stores.pools import errors
from tornado_compas_session.stores.pools.base import (
    IS_SERVERS,
    NOT_SERVERS,
    DriverConnection,
    DriverPool,
    Loop,
    logger,
)
from tornado_compas_session.stores.pools.dsn import read_dsn, target_of
from tornado_compas_session.stores.pools.limits import GRACE
from tornado_compas_session.stores.pools.queries import Statement

_RAISED = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    ValueError,
)


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
    network link, even while nothing is asked. Takes a DSN as libpq has it, and raises
    `SettingsError` for one that cannot be meant.
    """
    about = read_dsn(dsn)
    prepares: bool | None = None

    async def connect(*args: Any, **options: Any) -> Any:
        nonlocal prepares
        if prepares is False:
            options["statement_cache_size"] = 0
        connection = await asyncpg.connect(*args, **options)
        if prepares is None:
            try:
                pid = connection.get_server_pid()
                tag = await connection.execute(IS_SERVERS.format(pid))
            except BaseException:
                connection.terminate()
                raise
            if tag == NOT_SERVERS:
                if prepares is None:  # else another one has said it meanwhile
                    logger.info(
                        "a PgBouncer was noticed: sessions do without prepared SQL"
                    )
                prepares = False
                await connection.close()
                return await connect(*args, **options)
            prepares = True
        _watch_link(connection, timeout, about.link)
        return connection

    return await asyncpg.create_pool(
        about.url,
        min_size=min_size,
        max_size=max_size,
        command_timeout=timeout,
        connect=connect,
        reset=_no_reset,
        **{"timeout": timeout, **about.options},
    )


def _watch_link(connection: Any, timeout: float, wanted: Mapping[str, int]) -> None:
    """Lets the kernel give up a connection whose other end is silent."""
    transport = getattr(connection, "_transport", None)
    link = transport and transport.get_extra_info("socket")
    if link is None or link.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = {
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": int(timeout * 1000),
        **wanted,
    }
    alive = int(bool(options.pop("SO_KEEPALIVE", 1)))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, alive)
    for name, value in options.items():
        if hasattr(socket, name):  # not on every system
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class AsyncpgPool(DriverPool):
    """
    A `Pool` over an asyncpg pool.

    Taking a connection and giving it back costs more than a short statement does. So
    a few are kept for the next calls, never more than half of the pool; each goes back
    after a second, so that the pool's own upkeep sees it.
    """

    keep_seconds = 1.0
    keep_most = 4
    way_out = "pass statement_cache_size=0 to asyncpg.create_pool"

    def __init__(self, pool: asyncpg.Pool[Any], *, timeout: float) -> None:
        size = int(pool.get_max_size())
        loop: Loop | None = getattr(pool, "_loop", None)
        super().__init__(size, timeout, _target(pool), lambda: loop)
        self._pool = pool
        self._kept: list[_Connection] = []
        self._keeps = min(self.keep_most, size // 2)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        return self._taken - len(self._kept)

    @property
    def _taken(self) -> int:
        return int(self._pool.get_size() - self._pool.get_idle_size())

    async def close(self) -> None:
        """Closes the pool; connections that do not come back in time are cut."""
        self._enter()
        self._keeps = 0
        self._return_kept()
        try:
            async with asyncio.timeout(self.timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _take(self, until: float) -> _Connection:
        while self._kept:
            kept = self._kept.pop()
            if not kept.is_closed:
                return kept
        if self._pool.is_closing():
            raise StoreUnavailable(errors.CLOSED)
        try:
            async with asyncio.timeout_at(until):
                return _Connection(self, await self._pool.acquire())
        except TimeoutError:
            if self._taken >= self.size:
                raise self.none_free() from None
            raise self.unreachable("no answer in time") from None
        except asyncpg.PostgresError as error:
            ours = errors.ours(error)
            if isinstance(ours, ConnectionLost):  # it never was one
                ours = self.unreachable(str(ours))
            raise ours from None
        except (*_RAISED, OverflowError) as error:
            raise self.unreachable(errors.reason_of(error)) from None

    async def _put(self, connection: _Connection) -> None:
        with suppress(*_RAISED):  # it has been ended
            await self._pool.release(connection.driver, timeout=self.timeout)

    async def _drop(self) -> None:
        await self._pool.expire_connections()
        self._return_kept()

    def _keep(self, connection: _Connection) -> bool:
        until = connection.since + self.keep_seconds
        if (
            len(self._kept) >= self._keeps
            or connection.age != self.age
            or asyncio.get_running_loop().time() >= until
        ):
            return False
        connection.began = False
        self._kept.append(connection)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(until, self._return_kept)
        return True

    def _return_kept(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kept, self._kept = self._kept, []
        for connection in kept:
            self.start(self._put(connection))


class _Connection(DriverConnection):
    """asyncpg itself ends on the server what is cancelled, or too late."""

    #: Whether it is a transaction's.
    began = False

    def __init__(self, pool: DriverPool, driver: Any) -> None:
        super().__init__(pool, driver)
        self.since = asyncio.get_running_loop().time()
        config = getattr(driver, "_config", None)
        if getattr(config, "statement_cache_size", 0):
            self.pid = driver.get_server_pid()

    @property
    def is_closed(self) -> bool:
        try:
            return bool(self.driver.is_closed())
        except asyncpg.InterfaceError:  # it broke, and the pool has taken it back
            return True

    async def ask(
        self, statement: Statement, values: dict[str, Any], seconds: float
    ) -> Sequence[Row]:
        given = [values[name] for name in statement.parameters]
        try:
            rows: Sequence[Row] = await self.driver.fetch(
                statement.numbered, *given, timeout=seconds
            )
        except _RAISED as error:
            raise errors.ours(error) from None
        return rows

    async def run(self, sql: str, seconds: float) -> str:
        self.began = True
        try:
            return str(await self.driver.execute(sql, timeout=seconds))
        except _RAISED as error:
            raise errors.ours(error) from None

    async def clean(self) -> None:
        try:
            # Once what was cancelled has ended; whether that was a BEGIN, a COMMIT or
            # anything between. Left between preparing and executing, the server is in
            # the middle of a statement, in a transaction or not.
            async with asyncio.timeout(GRACE):
                await self.driver.execute("ROLLBACK" if self.began else "SELECT 1")
        except (*_RAISED, asyncio.CancelledError):
            # Nobody cancels us: asyncpg before 0.31 says so of a former one.
            with suppress(asyncpg.InterfaceError):  # the pool has taken it back
                self.driver.terminate()


def _target(pool: Any) -> tuple[str, str | None]:
    """Where a pool connects to, and what certificates it trusts, for people."""
    options: dict[str, Any] = getattr(pool, "_connect_kwargs", {})
    where, trusted = "the database", None
    for dsn in filter(None, getattr(pool, "_connect_args", ())):
        try:
            about = read_dsn(dsn)
            where, trusted = about.where, about.trusted
        except SettingsError as error:
            where += f" ({error})"
    if options.get("host"):
        where, _ = target_of(options)
    if isinstance(options.get("ssl"), ssl.SSLContext):
        trusted = trusted or "the given ssl.SSLContext"
    return where, trusted
