"""psycopg 3: a thin adapter over its `AsyncConnectionPool`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    ConnectionLost,
    SettingsError,
    StoreError,
    StoreUnavailable,
    UnstorableText,
)
from tornado_compas_session.stores.pools.dsn import addresses_in
from tornado_compas_session.stores.pools.errors import (
    CLOSED,
    check_commit,
    error_of,
    none_free,
    reason_of,
    unreachable,
)
from tornado_compas_session.stores.pools.libpq import cancel, libpq_of
from tornado_compas_session.stores.pools.limits import (
    GRACE,
    Cancellation,
    Home,
    Loop,
    begin,
    cut_socket,
    left,
    limited,
)
from tornado_compas_session.stores.pools.queries import Statement

logger = logging.getLogger("tornado_compas_session")
T = TypeVar("T")
_PID = "SELECT pg_backend_pid()"


class _Reasons(logging.Filter):
    """Why pools cannot connect: psycopg tells that to its log, and not to who waits."""

    def __init__(self) -> None:
        super().__init__()
        #: The last reason of each pool, by its name.
        self.last: dict[str, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        match record.args:
            case (str(name), psycopg.ProgrammingError()):
                self.last[name] = "psycopg refused the DSN"
            case (str(name), psycopg.Error() as error):
                self.last[name] = reason = reason_of(str(error))
                if "@" in str(error):  # half a password, taken for a host's name
                    record.args = (name, reason)
        return True


_reasons = _Reasons()
logging.getLogger("psycopg.pool").addFilter(_reasons)


class PsycopgPool:
    """A `Pool` over an `AsyncConnectionPool`; gives every connection back."""

    def __init__(
        self, pool: psycopg_pool.AsyncConnectionPool[Any], *, timeout: float
    ) -> None:
        if not hasattr(pool, "drain"):
            raise SettingsError(
                f"psycopg_pool {psycopg_pool.__version__} cannot drop its connections; "
                'run `pip install "psycopg-pool>=3.3"`'
            )
        self._pool = pool
        self._timeout = timeout
        self._home = Home(self._loop)
        self._age = 0  # how often the connections were dropped
        self._in_use = 0
        self._returning: set[asyncio.Future[None]] = set()
        #: None leaves it to psycopg; False behind a PgBouncer, where it mixes up.
        self._prepare: bool | None = None
        self._checked = False

    @property
    def size(self) -> int:
        """The most connections that it has."""
        return self._pool.max_size

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        stats = self._pool.get_stats()
        return stats["pool_size"] - stats["pool_available"]

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        until = self._until(timeout)
        async with self._connection(until) as connection:
            return await connection.fetch(statement, timeout=left(until), **values)

    @asynccontextmanager
    async def transaction(
        self, *, lock_timeout: float | None = None, timeout: float | None = None
    ) -> AsyncIterator[_Connection]:
        """One connection and one transaction."""
        until = self._until(timeout)
        async with self._connection(until) as connection:
            await connection.run(begin(lock_timeout), left(until))
            yield connection  # an exception rolls it back when the connection returns
            check_commit(await connection.run("COMMIT", self._timeout))

    async def expire(self) -> None:
        """Drops the connections."""
        self._age += 1
        with _translated():
            await self._pool.drain()

    async def close(self) -> None:
        """Closes the pool."""
        self._home.enter()
        await self._pool.close(timeout=self._timeout)

    def _loop(self) -> Loop | None:
        runner = getattr(self._pool, "_sched_runner", None)  # None until it is opened
        return runner and runner.get_loop()

    def _until(self, timeout: float | None) -> float:
        seconds = self._timeout if timeout is None else timeout
        return self._home.enter().time() + seconds

    @asynccontextmanager
    async def _connection(self, until: float) -> AsyncIterator[_Connection]:
        age = self._age
        try:
            driver = await self._take(until)
            autocommit = driver.autocommit
            encoding = driver.info.parameter_status("client_encoding")
            connection = _Connection(driver, self._timeout)
            try:
                with _translated():
                    if not autocommit:
                        await driver.set_autocommit(True)
                if encoding not in (None, "UTF8"):
                    await connection.run(_encode("UTF8"), left(until))
                if not self._checked:
                    self._checked = True
                    await self._check(connection, left(until))
                connection.prepare = self._prepare
                yield connection
            finally:
                # Shielded: a return that is cancelled loses the connection for good.
                task = asyncio.ensure_future(
                    self._put(connection, autocommit, encoding)
                )
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)
                await asyncio.shield(task)
        except ConnectionLost:
            if age == self._age:
                # The others are stale as well, and each would be handed out once.
                await self.expire()
            raise

    async def _take(self, until: float) -> Any:
        pool = self._pool
        if pool.closed:
            raise StoreUnavailable(CLOSED)
        try:
            with _translated():
                driver = await pool.getconn(timeout=left(until))
        except (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests):
            reason = _reasons.last.get(pool.name)
            if reason is None and self._in_use:
                raise none_free(self.size) from None
            raise self._unreachable(
                reason or "none came free or could be opened in time"
            ) from None
        _reasons.last.pop(pool.name, None)
        self._in_use += 1
        return driver

    def _unreachable(self, reason: str) -> StoreUnavailable:
        given: dict[str, Any] = {}
        info, options = self._pool.conninfo, self._pool.kwargs
        with suppress(psycopg.Error):
            given |= {} if callable(info) else conninfo_to_dict(info or "")
            given |= {} if callable(options) else options or {}
        return unreachable(addresses_in(given), reason, given.get("sslrootcert"))

    async def _put(
        self, connection: _Connection, autocommit: bool, encoding: str | None
    ) -> None:
        driver = connection.driver
        try:
            if driver.info.transaction_status != TransactionStatus.IDLE:
                await connection.run("ROLLBACK", GRACE)
            if encoding not in (None, "UTF8"):
                await connection.run(_encode(encoding), self._timeout)
            if driver.autocommit != autocommit:
                await driver.set_autocommit(autocommit)
        except (psycopg.Error, StoreError):
            await driver.close()  # the pool opens another one instead
        if connection.is_cut:
            await driver.close()
        self._in_use -= 1
        await self._pool.putconn(driver)

    async def _check(self, connection: _Connection, seconds: float) -> None:
        """Notices a PgBouncer: it tells a pid of its own, and not the server's."""
        driver = connection.driver
        [(pid,)], _ = await connection.ask(_PID, None, seconds, prepare=False)
        if pid != driver.info.backend_pid:
            self._prepare = False
            if driver.prepare_threshold is not None:
                logger.warning(
                    "the database is behind a PgBouncer and psycopg prepares "
                    "statements: with a PgBouncer older than 1.21 answers get mixed "
                    "up; sessions do without, and for the rest of the application "
                    'pass kwargs={"prepare_threshold": None} to the pool '
                    '(see "PgBouncer" in the documentation)'
                )


class _Connection:
    def __init__(self, driver: Any, timeout: float) -> None:
        self.driver = driver
        self.prepare: bool | None = False
        self.is_cut = False
        self._timeout = timeout

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        given = tuple(values[name] for name in statement.parameters)
        rows, _ = await self.ask(
            statement.formatted,
            statement.spread(given),
            self._timeout if timeout is None else timeout,
            prepare=self.prepare,
        )
        return rows

    async def run_script(self, sql: str) -> None:
        with _translated():
            await self.driver.execute(sql, prepare=False)

    async def run(self, sql: str, seconds: float) -> str:
        """Runs what has no rows; returns the server's tag."""
        return (await self.ask(sql, None, seconds, prepare=False))[1]

    async def ask(
        self,
        sql: str,
        values: list[object] | None,
        seconds: float,
        *,
        prepare: bool | None,
    ) -> tuple[Sequence[Row], str]:
        async def execute() -> tuple[Sequence[Row], str]:
            # The application's own row factory may make dicts.
            cursor = self.driver.cursor(row_factory=tuple_row)
            await cursor.execute(sql, values, prepare=prepare)
            rows = await cursor.fetchall() if cursor.description else []
            return rows, cursor.statusmessage

        with _translated():
            return await limited(
                lambda: self._unharmed(execute()), seconds, self._cancel, self._cut
            )

    async def _unharmed(self, work: Awaitable[T]) -> T:
        """
        Work that is not cancelled where psycopg would then stop all of Python, until
        the server answers.
        """
        if _cancels_safely():
            return await work
        task = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            cancellation = Cancellation(self._cancel)
            await asyncio.wait({task}, timeout=GRACE)
            if not task.done():
                self._cut()
            elif not task.cancelled():
                task.exception()  # that it was cancelled
            await cancellation.settle(GRACE, self._cut)
            raise

    async def _cancel(self) -> None:
        if _cancels_safely():
            await self.driver.cancel_safe(timeout=GRACE)
        elif not self.driver.closed:
            pgconn = self.driver.pgconn
            module = sys.modules[type(pgconn).__module__]
            await cancel(libpq_of(str(module.__file__)), pgconn.pgconn_ptr)

    def _cut(self) -> None:
        self.is_cut = True
        with suppress(psycopg.Error):  # it is closed already
            cut_socket(self.driver.pgconn.socket)


def _cancels_safely() -> bool:
    """Whether libpq is new enough, or called in a way that does not hold Python."""
    return psycopg.capabilities.has_cancel_safe() or psycopg.pq.__impl__ == "python"


def _encode(encoding: str | None) -> str:
    return f"SET client_encoding TO '{encoding}'"


@contextmanager
def _translated() -> Iterator[None]:
    """Ours for the driver's; without its cause, which quotes the data in places."""
    try:
        yield
    except (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests):
        raise  # `_take` knows more about it
    except psycopg.Error as error:
        name = type(error).__name__
        if isinstance(error, psycopg.DataError) and error.sqlstate is None:
            raise error_of("22000", name, None) from None  # refused by psycopg itself
        raise error_of(
            error.sqlstate,
            name,
            error.diag.message_primary,
            error.diag.source_function,
        ) from None
    except UnicodeError:
        raise UnstorableText from None
    except (OSError, ValueError) as error:
        raise error_of(None, type(error).__name__, None) from None
