"""asyncpg, the default driver: a thin adapter, and a well-set pool."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple

import asyncpg

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    ConnectionLost,
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.pools.dsn import addresses, read_dsn
from tornado_compas_session.stores.pools.errors import (
    CLOSED,
    TOO_LATE,
    check_commit,
    error_of,
    none_free,
    unreachable,
)
from tornado_compas_session.stores.pools.limits import GRACE, Home, begin, left
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
        self._home = Home(lambda: getattr(pool, "_loop", None))
        self._age = 0  # how often the connections were dropped
        self._checked = False
        self._kept: list[_Taken] = []
        self._keeps = min(self.keep_most, self.size // 2)
        self._timer: asyncio.TimerHandle | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def size(self) -> int:
        """The most connections that it has."""
        return int(self._pool.get_max_size())

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        pool = self._pool
        return int(pool.get_size() - pool.get_idle_size()) - len(self._kept)

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        until = self._until(timeout)
        taken = await self._take(until)
        try:
            rows = await _fetch(taken.connection, statement, values, left(until))
        except BaseException as error:
            # Only once what was cancelled has ended, or the connection has.
            await self._give_back(taken, error, GRACE)
            raise
        if not self._keep(taken):
            await self._give_back(taken)
        return rows

    @asynccontextmanager
    async def transaction(
        self, *, lock_timeout: float | None = None, timeout: float | None = None
    ) -> AsyncIterator[_Connection]:
        """One connection and one transaction."""
        until = self._until(timeout)
        taken = await self._take(until)
        connection = taken.connection
        try:
            with _translated:
                await connection.execute(begin(lock_timeout), timeout=left(until))
            yield _Connection(connection, self._timeout)
            with _translated:
                tag = await connection.execute("COMMIT", timeout=self._timeout)
        except BaseException as error:
            # To its end even if we are cancelled: it must not go back inside of a
            # transaction.
            await asyncio.shield(self._start(self._roll_back(taken, error)))
            raise
        if not self._keep(taken):
            await self._give_back(taken)
        check_commit(tag)

    async def expire(self) -> None:
        """Drops the connections."""
        self._age += 1
        await self._pool.expire_connections()
        self._return_kept()

    async def close(self) -> None:
        """Closes the pool; connections that do not come back in time are cut."""
        self._home.enter()
        self._keeps = 0
        self._return_kept()
        try:
            async with asyncio.timeout(self._timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    def _until(self, timeout: float | None) -> float:
        seconds = self._timeout if timeout is None else timeout
        return self._home.enter().time() + seconds

    async def _take(self, until: float) -> _Taken:
        while self._kept:
            taken = self._kept.pop()
            if not _is_closed(taken.connection):
                return taken
        age = self._age
        if self._pool.is_closing():
            raise StoreUnavailable(CLOSED)
        try:
            with _translated, self._connecting():
                async with asyncio.timeout_at(until):
                    connection = await self._pool.acquire()
        except ConnectionLost:
            await self._lost(age)
            raise
        taken = _Taken(connection, asyncio.get_running_loop().time(), age)
        if not self._checked:
            self._checked = True
            try:
                with _translated:
                    await self._check(connection, left(until))
            except BaseException as error:
                await self._give_back(taken, error, GRACE)
                raise
        return taken

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        """Says which connection was not to be had, and why."""
        pool = self._pool
        try:
            yield
        except TimeoutError:
            if pool.get_size() - pool.get_idle_size() >= self.size:
                raise none_free(self.size) from None
            raise self._unreachable("no answer in time") from None
        except asyncpg.PostgresError as error:
            ours = _error(error)
            if isinstance(ours, ConnectionLost):  # it never was one
                raise self._unreachable(str(ours)) from None
            raise ours from None
        except asyncpg.TargetServerAttributeNotMatched:
            raise self._unreachable("no server of the wanted kind") from None
        except (OSError, OverflowError, ValueError) as error:
            raise self._unreachable(_reason(error)) from None

    def _unreachable(self, reason: str) -> StoreUnavailable:
        where, trusted = _target(self._pool)
        return unreachable(where, reason, trusted)

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
            self._start(self._give_back(taken))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _give_back(
        self,
        taken: _Taken,
        error: BaseException | None = None,
        seconds: float | None = None,
    ) -> None:
        """
        Gives it back to the pool, clean; after a loss the others go as well.

        asyncpg waits so long for the end of what was cancelled, and else closes it.
        """
        try:
            with _translated:
                await self._pool.release(
                    taken.connection,
                    timeout=self._timeout if seconds is None else seconds,
                )
        except StoreError as failed:
            error = failed if isinstance(failed, ConnectionLost) else error
        if isinstance(error, ConnectionLost):
            await self._lost(taken.age)

    async def _roll_back(self, taken: _Taken, error: BaseException) -> None:
        connection = taken.connection
        try:
            with _translated:
                async with asyncio.timeout(GRACE):
                    # Once what was cancelled has ended; whether that was a BEGIN, a
                    # COMMIT or anything between.
                    await connection.execute("ROLLBACK")
        except (StoreError, asyncio.CancelledError):
            # Nobody cancels us: asyncpg before 0.31 says so of a former cancellation.
            with suppress(asyncpg.InterfaceError):  # the pool has taken it back
                connection.terminate()
        await self._give_back(taken, error)

    async def _lost(self, age: int) -> None:
        if age == self._age:  # else they are fresh already
            await self.expire()

    async def _check(self, connection: Any, timeout: float) -> None:
        """Warns of a dangerous combination in a pool that the application made."""
        config = getattr(connection, "_config", None)
        if not getattr(config, "statement_cache_size", 0):
            return
        try:
            proxied = await _is_proxied(connection, timeout)
        except asyncpg.PostgresError:
            proxied = True  # the question itself was mixed up
        if proxied:
            logger.warning(
                "the database is behind a PgBouncer and asyncpg prepares statements: "
                "with a PgBouncer older than 1.21 answers get mixed up; pass "
                "statement_cache_size=0 to asyncpg.create_pool "
                '(see "PgBouncer" in the documentation)'
            )


class _Connection:
    def __init__(self, driver: Any, timeout: float) -> None:
        self.driver = driver
        self._timeout = timeout

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        seconds = self._timeout if timeout is None else timeout
        try:
            return await _fetch(self.driver, statement, values, seconds)
        except StoreUnavailable as error:
            if type(error) is StoreUnavailable:  # it was cancelled, and may yet end
                with suppress(StoreError), _translated:
                    async with asyncio.timeout(GRACE):
                        await self.driver.execute("SELECT 1")
            raise

    async def run_script(self, sql: str) -> None:
        with _translated:
            await self.driver.execute(sql)


async def _fetch(
    connection: Any, statement: Statement, values: dict[str, Any], seconds: float
) -> Sequence[Row]:
    with _translated:
        rows: Sequence[Row] = await connection.fetch(
            statement.numbered,
            *[values[name] for name in statement.parameters],
            timeout=seconds,  # when it is over, asyncpg asks for the cancellation
        )
        return rows


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
        where = addresses(*(_words(options.get(name)) for name in ("host", "port")))
    if isinstance(options.get("ssl"), ssl.SSLContext):
        trusted = trusted or "the given ssl.SSLContext"
    return where, trusted


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(each) for each in (value if isinstance(value, list) else [value])]


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
    return error_of(
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
            raise StoreUnavailable(TOO_LATE) from None
        except asyncpg.PostgresError as error:
            raise _error(error) from None
        except ValueError:
            # `DataError` is an InterfaceError too, and says what was wrong by showing
            # it.
            raise StoreError("asyncpg refused a value") from None
        except asyncpg.InternalClientError:
            # "cannot switch to state …": the server's last word came while it was idle.
            raise error_of(None, "the server had ended it", None) from None
        except (asyncpg.InterfaceError, OSError) as error:
            raise error_of(None, type(error).__name__, None) from None


#: Keeps nothing, so that one is enough for all.
_translated = _Translated()
