"""psycopg 3: a thin adapter over its `AsyncConnectionPool`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

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
)
from tornado_compas_session.stores.pools import errors
from tornado_compas_session.stores.pools.base import DriverPool, Loop
from tornado_compas_session.stores.pools.dsn import target_of
from tornado_compas_session.stores.pools.libpq import LibpqConnection, cancel
from tornado_compas_session.stores.pools.limits import left


class _Reasons(logging.Filter):
    """Why pools cannot connect: psycopg tells that to its log, and not to who waits."""

    def __init__(self) -> None:
        super().__init__()
        #: The last reason of each pool, by its name.
        self.last: dict[str, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        match record.args:
            case (str(name), psycopg.Error() as error):
                self.last[name] = reason = errors.reason_of(error)
                if "@" in str(error):  # half a password, taken for a host's name
                    record.args = (name, reason)
        return True


_reasons = _Reasons()
logging.getLogger("psycopg.pool").addFilter(_reasons)


class PsycopgPool(DriverPool):
    """A `Pool` over an `AsyncConnectionPool`."""

    way_out = (
        "sessions do without, and for the rest of the application pass "
        'kwargs={"prepare_threshold": None} to the pool'
    )

    def __init__(
        self, pool: psycopg_pool.AsyncConnectionPool[Any], *, timeout: float
    ) -> None:
        if not hasattr(pool, "drain"):
            raise SettingsError(
                f"psycopg_pool {psycopg_pool.__version__} cannot drop its connections; "
                'run `pip install "psycopg-pool>=3.3"`'
            )
        self._pool = pool
        self._in_use = 0
        given: dict[str, Any] = {}
        with suppress(psycopg.Error):
            if isinstance(pool.conninfo, str):
                given |= conninfo_to_dict(pool.conninfo)
            if isinstance(pool.kwargs, dict):
                given |= pool.kwargs
        super().__init__(pool.max_size, timeout, target_of(given), self._pools_loop)

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        stats = self._pool.get_stats()
        return stats["pool_size"] - stats["pool_available"]

    async def close(self) -> None:
        """Closes the pool."""
        self._enter()
        await self._pool.close(timeout=self.timeout)

    def _pools_loop(self) -> Loop | None:
        runner = getattr(self._pool, "_sched_runner", None)  # None until it is opened
        return runner and runner.get_loop()

    async def _take(self, until: float) -> _Connection:
        pool = self._pool
        if pool.closed:
            raise StoreUnavailable(errors.CLOSED)
        try:
            driver = await pool.getconn(timeout=left(until))
        except (psycopg.Error, OSError):
            reason = _reasons.last.get(pool.name)
            if reason is None and self._in_use:
                raise self.none_free() from None
            raise self.unreachable(
                reason or "none came free or could be opened in time"
            ) from None
        _reasons.last.pop(pool.name, None)
        self._in_use += 1
        return _Connection(self, driver)

    async def _ready(self, connection: _Connection, until: float) -> None:
        await connection.belong(to_us=True, seconds=left(until))
        await super()._ready(connection, until)
        connection.prepare = False if self.is_proxied else None

    async def _put(self, connection: _Connection) -> None:
        driver = connection.driver
        try:
            if not connection.is_clean:
                raise StoreError
            await connection.belong(to_us=False, seconds=self.timeout)
        except (psycopg.Error, StoreError):
            await driver.close()  # the pool opens another one instead
        self._in_use -= 1
        await self._pool.putconn(driver)

    async def _drop(self) -> None:
        with suppress(psycopg.Error):
            await self._pool.drain()


class _Connection(LibpqConnection):
    raised = (psycopg.Error, OSError, ValueError)
    #: None leaves it to psycopg; False behind a PgBouncer, where it mixes up.
    prepare: bool | None = False

    def __init__(self, pool: DriverPool, driver: Any) -> None:
        super().__init__(pool, driver)
        #: What is the application's own, to be set back.
        self.autocommit: bool = driver.autocommit
        self.encoding: str | None = driver.info.parameter_status("client_encoding")
        if driver.prepare_threshold is not None:
            self.pid = driver.info.backend_pid

    @property
    def is_idle(self) -> bool:
        return bool(self.driver.info.transaction_status == TransactionStatus.IDLE)

    @property
    def fileno(self) -> int:
        return int(self.driver.pgconn.socket)

    async def belong(self, *, to_us: bool, seconds: float) -> None:
        """Is set as our statements need it, or as the application had it."""
        if self.encoding not in (None, "UTF8"):
            await self.driver.set_autocommit(True)  # or a transaction begins
            encoding = "UTF8" if to_us else self.encoding
            await self.run(f"SET client_encoding TO '{encoding}'", seconds)
        if not self.autocommit:
            await self.driver.set_autocommit(to_us)

    async def send(self, sql: str, values: dict[str, Any]) -> tuple[Sequence[Row], str]:
        # The application's own row factory may make dicts.
        cursor = self.driver.cursor(row_factory=tuple_row)
        await cursor.execute(
            sql, values or None, prepare=self.prepare if values else False
        )
        rows = await cursor.fetchall() if cursor.description else []
        return rows, cursor.statusmessage

    async def cancel(self) -> None:
        pgconn = self.driver.pgconn
        if psycopg.capabilities.has_cancel_safe() or psycopg.pq.__impl__ == "python":
            await self.driver.cancel_safe()
        elif not self.driver.closed:
            module = sys.modules[type(pgconn).__module__]
            await cancel(module.__file__, pgconn.pgconn_ptr)
