"""asyncpg, the default driver: a thin adapter, and a well-set pool."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    ConnectionLost,
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.pools import errors
from tornado_compas_session.stores.pools.base import (
    DriverConnection,
    DriverPool,
    logger,
    warn_of_pgbouncer,
)
from tornado_compas_session.stores.pools.dsn import addresses, read_dsn
from tornado_compas_session.stores.pools.limits import GRACE
from tornado_compas_session.stores.pools.queries import Statement

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
    network link, even while nothing is asked. Takes a DSN as libpq has it, and raises
    `SettingsError` for one that cannot be meant.
    """
    about = read_dsn(dsn)
    prepares: bool | None = None

    async def connect(*args: Any, **options: Any) -> Any:
        nonlocal prepares
        if not prepares:
            # Until it is known: behind an old PgBouncer they mix up other statements.
            options["statement_cache_size"] = 0
        connection = await asyncpg.connect(*args, **options)
        if prepares is None:
            try:
                proxied = await _is_proxied(connection, timeout)
            except BaseException:
                connection.terminate()
                raise
            if proxied and prepares is None:  # another one may have said it meanwhile
                logger.info("a PgBouncer was noticed: sessions do without prepared SQL")
            prepares = not proxied
            if prepares:
                await connection.close()
                return await connect(*args, **options | {"statement_cache_size": 100})
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


async def _is_proxied(connection: Any, timeout: float) -> bool:
    """A PgBouncer tells a pid of its own at the start, and not the server's."""
    pid = await connection.fetchval(_PID, timeout=timeout)
    return bool(connection.get_server_pid() != pid)


def _is_closed(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # it broke, and the pool has taken it back
        return True


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
    A `Pool` over an asyncpg pool: maps its errors, and limits its waits.

    Taking a connection and giving it back costs more than a short statement does. So
    a few are kept for the next calls, never more than half of the pool; each goes back
    after a second, so that the pool's own upkeep sees it.
    """

    keep_seconds = 1.0
    keep_most = 4

    def __init__(self, pool: asyncpg.Pool[Any], *, timeout: float) -> None:
        size = int(pool.get_max_size())
        super().__init__(size, timeout, lambda: getattr(pool, "_loop", None))
        self._pool = pool
        self._kept: list[_Connection] = []
        self._keeps = min(self.keep_most, size // 2)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        pool = self._pool
        return int(pool.get_size() - pool.get_idle_size()) - len(self._kept)

    async def close(self) -> None:
        """Closes the pool; connections that do not come back in time are cut."""
        self._enter()
        self._keeps = 0
        self._return_kept()
        try:
            async with asyncio.timeout(self._timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _take(self, until: float) -> DriverConnection:
        while self._kept:
            kept = self._kept.pop()
            if not _is_closed(kept.driver):
                return kept
        if self._pool.is_closing():
            raise StoreUnavailable(errors.CLOSED)
        with _translated, self._connecting():
            async with asyncio.timeout_at(until):
                return _Connection(await self._pool.acquire(), self._timeout)

    async def _give_back(
        self, connection: _Connection, error: BaseException | None = None
    ) -> None:
        if error is not None or not self._keep(connection):
            await super()._give_back(connection, error)

    async def _put(self, connection: _Connection, error: BaseException | None) -> None:
        driver = connection.driver
        if error is not None and connection.began:
            try:
                with _translated:
                    async with asyncio.timeout(GRACE):
                        # Once what was cancelled has ended; whether that was a BEGIN, a
                        # COMMIT or anything between.
                        await driver.execute("ROLLBACK")
            except (StoreError, asyncio.CancelledError):
                # Nobody cancels us: asyncpg before 0.31 says so of a former one.
                with suppress(asyncpg.InterfaceError):  # the pool has taken it back
                    driver.terminate()
        # asyncpg waits so long for the end of what was cancelled, and else closes it.
        seconds = self._timeout if error is None else GRACE
        try:
            with _translated:
                await self._pool.release(driver, timeout=seconds)
        except ConnectionLost:
            await self._lost(connection.age)
        except StoreError:
            pass

    async def _drop(self) -> None:
        await self._pool.expire_connections()
        self._return_kept()

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        """Says which connection was not to be had, and why."""
        pool = self._pool
        try:
            yield
        except TimeoutError:
            if pool.get_size() - pool.get_idle_size() >= self.size:
                raise errors.none_free(self.size) from None
            raise self.unreachable("no answer in time") from None
        except asyncpg.PostgresError as error:
            ours = _error(error)
            if isinstance(ours, ConnectionLost):  # it never was one
                raise self.unreachable(str(ours)) from None
            raise ours from None
        except asyncpg.TargetServerAttributeNotMatched:
            raise self.unreachable("no server of the wanted kind") from None
        except (OSError, OverflowError, ValueError) as error:
            raise self.unreachable(_reason(error)) from None

    def _target(self) -> tuple[str, str | None]:
        return _target(self._pool)

    def _keep(self, connection: _Connection) -> bool:
        """Whether it stays for the next call, instead of going back to the pool."""
        loop = asyncio.get_running_loop()
        until = connection.since + self.keep_seconds
        if (
            len(self._kept) >= self._keeps
            or connection.age != self._age
            or loop.time() >= until
        ):
            return False
        connection.began = False
        self._kept.append(connection)
        if self._timer is None:
            self._timer = loop.call_at(until, self._return_kept)
        return True

    def _return_kept(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kept, self._kept = self._kept, []
        for connection in kept:
            self.start(self._put(connection, None))

    async def _check(self, connection: _Connection, seconds: float) -> None:
        config = getattr(connection.driver, "_config", None)
        if not getattr(config, "statement_cache_size", 0):
            return
        try:
            with _translated:
                proxied = await _is_proxied(connection.driver, seconds)
        except StoreUnavailable:
            raise
        except StoreError:
            proxied = True  # the question itself was mixed up
        if proxied:
            warn_of_pgbouncer(
                "asyncpg", "pass statement_cache_size=0 to asyncpg.create_pool"
            )


class _Connection(DriverConnection):
    #: Whether it is a transaction's.
    began = False

    def __init__(self, driver: Any, timeout: float) -> None:
        super().__init__(driver, timeout)
        self.since = asyncio.get_running_loop().time()

    async def ask(
        self, statement: Statement, values: list[Any], seconds: float
    ) -> Sequence[Row]:
        try:
            with _translated:
                # When the time is over, asyncpg asks for the cancellation.
                rows: Sequence[Row] = await self.driver.fetch(
                    statement.numbered, *values, timeout=seconds
                )
                return rows
        except StoreUnavailable as error:
            if self.began and type(error) is StoreUnavailable:
                # It was cancelled, and may yet end.
                with suppress(StoreError), _translated:
                    async with asyncio.timeout(GRACE):
                        await self.driver.execute("SELECT 1")
            raise

    async def run(self, sql: str, seconds: float) -> str:
        self.began = True
        with _translated:
            return str(await self.driver.execute(sql, timeout=seconds))

    async def run_script(self, sql: str) -> None:
        with _translated:
            await self.driver.execute(sql)


def _target(pool: Any) -> tuple[str, str | None]:
    """Where a pool connects to, and what certificates it trusts, for people."""
    options: dict[str, Any] = getattr(pool, "_connect_kwargs", {})
    dsn = next(iter(getattr(pool, "_connect_args", ())), None)
    where, trusted = "the database", None
    if dsn:
        try:
            about = read_dsn(dsn)
            where, trusted = about.where, about.trusted
        except SettingsError as error:
            where += f" ({error})"
    if options.get("host"):
        given = {name: options.get(name) or "" for name in ("host", "port")}
        each = [v if isinstance(v, list) else [v] for v in given.values()]
        where = addresses(*([str(one) for one in some if one] for some in each))
    if isinstance(options.get("ssl"), ssl.SSLContext):
        trusted = trusted or "the given ssl.SSLContext"
    return where, trusted


def _reason(error: Exception) -> str:
    """Why there is no connection; nothing that a DSN might have in it."""
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        return f"the server's certificate is not trusted: {said}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "unknown host name"
    if f"[Errno {errno.ECONNREFUSED}]" in text:  # perhaps of several addresses
        return "connection refused"
    if "rejected SSL upgrade" in text:
        return "the server speaks no TLS"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket, or no such certificate file"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()  # asyncio's own has the address in it
    if isinstance(error, OSError):
        return type(error).__name__
    if found := re.match(r"root certificate file \S+ does not exist", text):
        return found[0]
    return "asyncpg refused the DSN"


def _error(error: Any) -> StoreError:
    return errors.error_of(
        error.sqlstate,
        type(error).__name__,
        error.args[0],
        error.server_source_function,
    )


class _Translated:
    """Ours for the driver's; without its cause, which quotes the data in places."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        try:
            raise error
        except TimeoutError:
            raise StoreUnavailable(errors.TOO_LATE) from None
        except asyncpg.PostgresError as error:
            raise _error(error) from None
        except ValueError:
            # `DataError` is an InterfaceError too, and says what was wrong by showing
            # it.
            raise StoreError("asyncpg refused a value") from None
        except asyncpg.InternalClientError:
            # "cannot switch to state …": the server's last word came while it was idle.
            raise errors.error_of(None, "the server had ended it", None) from None
        except (asyncpg.InterfaceError, OSError) as error:
            raise errors.error_of(None, type(error).__name__, None) from None


#: Keeps nothing, so that one is enough for all.
_translated = _Translated()
