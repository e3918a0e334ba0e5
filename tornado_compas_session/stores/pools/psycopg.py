"""psycopg 3: a thin adapter over its `AsyncConnectionPool`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    SettingsError,
    StoreError,
    StoreUnavailable,
    UnstorableText,
)
from tornado_compas_session.stores.pools import errors
from tornado_compas_session.stores.pools.base import (
    DriverConnection,
    DriverPool,
    warn_of_pgbouncer,
)
from tornado_compas_session.stores.pools.dsn import target_in
from tornado_compas_session.stores.pools.libpq import cancel, libpq_of
from tornado_compas_session.stores.pools.limits import (
    GRACE,
    Cancellation,
    Loop,
    cut_socket,
    left,
    limited,
)
from tornado_compas_session.stores.pools.queries import Statement

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
                self.last[name] = reason = errors.reason_of(str(error))
                if "@" in str(error):  # half a password, taken for a host's name
                    record.args = (name, reason)
        return True


_reasons = _Reasons()
logging.getLogger("psycopg.pool").addFilter(_reasons)


class PsycopgPool(DriverPool):
    """A `Pool` over an `AsyncConnectionPool`."""

    def __init__(
        self, pool: psycopg_pool.AsyncConnectionPool[Any], *, timeout: float
    ) -> None:
        if not hasattr(pool, "drain"):
            raise SettingsError(
                f"psycopg_pool {psycopg_pool.__version__} cannot drop its connections; "
                'run `pip install "psycopg-pool>=3.3"`'
            )
        self._pool = pool
        super().__init__(pool.max_size, timeout, self._pools_loop)
        self._in_use = 0
        #: None leaves it to psycopg; False behind a PgBouncer, where it mixes up.
        self._prepare: bool | None = None

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        stats = self._pool.get_stats()
        return stats["pool_size"] - stats["pool_available"]

    async def close(self) -> None:
        """Closes the pool."""
        self._enter()
        await self._pool.close(timeout=self._timeout)

    def _pools_loop(self) -> Loop | None:
        runner = getattr(self._pool, "_sched_runner", None)  # None until it is opened
        return runner and runner.get_loop()

    async def _drop(self) -> None:
        with _translated():
            await self._pool.drain()

    async def _take(self, until: float) -> DriverConnection:
        pool = self._pool
        if pool.closed:
            raise StoreUnavailable(errors.CLOSED)
        try:
            with _translated():
                driver = await pool.getconn(timeout=left(until))
        except (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests):
            reason = _reasons.last.get(pool.name)
            if reason is None and self._in_use:
                raise errors.none_free(self.size) from None
            raise self.unreachable(
                reason or "none came free or could be opened in time"
            ) from None
        _reasons.last.pop(pool.name, None)
        self._in_use += 1
        return _Connection(driver, self._timeout)

    async def _ready(self, connection: _Connection, until: float) -> None:
        with _translated():
            if not connection.autocommit:
                await connection.driver.set_autocommit(True)
        if connection.encoding not in (None, "UTF8"):
            await connection.run(_encode("UTF8"), left(until))
        await super()._ready(connection, until)
        connection.prepare = self._prepare

    async def _put(self, connection: _Connection, error: BaseException | None) -> None:
        driver, encoding = connection.driver, connection.encoding
        try:
            if driver.info.transaction_status != TransactionStatus.IDLE:
                await connection.run("ROLLBACK", GRACE)
            if encoding not in (None, "UTF8"):
                await connection.run(_encode(encoding), self._timeout)
            if driver.autocommit != connection.autocommit:
                await driver.set_autocommit(connection.autocommit)
        except (psycopg.Error, StoreError):
            await driver.close()  # the pool opens another one instead
        if connection.is_cut:
            await driver.close()
        self._in_use -= 1
        await self._pool.putconn(driver)

    def _target(self) -> tuple[str, str | None]:
        given: dict[str, Any] = {}
        info, options = self._pool.conninfo, self._pool.kwargs
        with suppress(psycopg.Error):
            given |= {} if callable(info) else conninfo_to_dict(info or "")
            given |= {} if callable(options) else options or {}
        return target_in(given)

    async def _check(self, connection: _Connection, seconds: float) -> None:
        """Notices a PgBouncer: it tells a pid of its own, and not the server's."""
        driver = connection.driver
        [(pid,)], _ = await connection.execute(_PID, None, seconds, prepare=False)
        if pid != driver.info.backend_pid:
            self._prepare = False
            if driver.prepare_threshold is not None:
                warn_of_pgbouncer(
                    "psycopg",
                    "sessions do without, and for the rest of the application pass "
                    'kwargs={"prepare_threshold": None} to the pool',
                )


class _Connection(DriverConnection):
    prepare: bool | None = False
    is_cut = False

    def __init__(self, driver: Any, timeout: float) -> None:
        super().__init__(driver, timeout)
        #: What is the application's own, to be set back.
        self.autocommit: bool = driver.autocommit
        self.encoding: str | None = driver.info.parameter_status("client_encoding")

    async def ask(
        self, statement: Statement, values: list[Any], seconds: float
    ) -> Sequence[Row]:
        given = statement.spread(tuple(values))
        rows, _ = await self.execute(
            statement.formatted, given, seconds, prepare=self.prepare
        )
        return rows

    async def run(self, sql: str, seconds: float) -> str:
        return (await self.execute(sql, None, seconds, prepare=False))[1]

    async def run_script(self, sql: str) -> None:
        with _translated():
            await self.driver.execute(sql, prepare=False)

    async def execute(
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
            # refused by psycopg itself
            raise errors.error_of("22000", name, None) from None
        raise errors.error_of(
            error.sqlstate,
            name,
            error.diag.message_primary,
            error.diag.source_function,
        ) from None
    except UnicodeError:
        raise UnstorableText from None
    except (OSError, ValueError) as error:
        raise errors.error_of(None, type(error).__name__, None) from None
