"""
momoko 2.2.5.1, for applications that have it: a thin adapter.

momoko never gets a connection back whose caller was cancelled, knows no time limits,
and sends a statement again when its reply was lost. So of its pool only the books are
used, which never change any more: who has which connection, and who waits for one. What
is closed is opened by whoever takes it, in its time; and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import momoko
import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, parse_dsn
from psycopg2.extensions import cursor as tuple_cursor

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    SettingsError,
    StoreError,
    StoreUnavailable,
    UnstorableText,
)
from tornado_compas_session.stores.pools import errors
from tornado_compas_session.stores.pools.base import DriverPool
from tornado_compas_session.stores.pools.dsn import target_of
from tornado_compas_session.stores.pools.libpq import LibpqConnection, cancel
from tornado_compas_session.stores.pools.limits import left

_VERSION = "2.2.5.1"


class MomokoPool(DriverPool):
    """A `Pool` over a `momoko.Pool`."""

    def __init__(self, pool: momoko.Pool, *, timeout: float) -> None:
        installed = version("momoko")
        if installed != _VERSION:
            raise SettingsError(
                f"momoko {installed} does not run on this Tornado; run "
                f"`pip install --no-deps momoko=={_VERSION} psycopg2-binary`"
            )
        given: dict[str, str] = {}
        with suppress(psycopg2.Error):  # which would quote it
            given = parse_dsn(pool.dsn)
        loop = getattr(pool.ioloop, "asyncio_loop", None)
        super().__init__(int(pool.max_size), timeout, target_of(given), lambda: loop)
        self._pool = pool
        #: Why the last connection could not be opened, and how long that is news.
        self._news, self._news_until = "", 0.0

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        return len(self._pool.conns.busy)

    async def close(self) -> None:
        """Closes the pool, when what is under way has ended or used up its time."""
        self._enter()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self.timeout)
        if not self._pool.closed:
            self._pool.close()

    async def _take(self, until: float) -> _Connection:
        if self._pool.closed:
            raise StoreUnavailable(errors.CLOSED)
        driver = await self._place(until)
        if driver.closed or _has_ended(driver):
            try:
                await self._open(driver, until)
            except BaseException:
                self._free(driver)
                raise
        return _Connection(self, driver)

    async def _place(self, until: float) -> Any:
        """One that is free, open or not; or a new one; or the next that comes free."""
        pool, conns = self._pool, self._pool.conns
        while not (conns.free or conns.dead or conns.total < self.size):
            waiter = conns.acquire()
            try:
                async with asyncio.timeout_at(until):
                    return await asyncio.shield(waiter)
            except momoko.Pool.DatabaseNotAvailable:
                continue  # all of them have died
            except (TimeoutError, asyncio.CancelledError) as error:
                if waiter in conns.waiting_queue:
                    conns.waiting_queue.remove(waiter)
                elif waiter.done() and not waiter.exception():  # a moment too late
                    self._free(waiter.result())
                if isinstance(error, TimeoutError):
                    raise self.none_free() from None
                raise
        if conns.free or conns.dead:
            driver = (conns.free or conns.dead).pop()
        else:
            driver = momoko.Connection(
                pool.dsn,
                connection_factory=pool.connection_factory,
                cursor_factory=pool.cursor_factory,
                ioloop=pool.ioloop,
                setsession=pool.setsession,
            )
            driver.connection, driver.fileno = None, -1
        conns.busy.add(driver)
        return driver

    async def _open(self, driver: Any, until: float) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._news_until:
            raise self.unreachable(self._news)
        driver.close()
        opening = driver.connect()
        try:
            await asyncio.wait({opening}, timeout=max(0.0, left(until)))
            if not opening.done():
                raise self.unreachable("no answer in time")
            opening.result()
        except psycopg2.Error as error:
            self._news = errors.reason_of(error)
            # As often as momoko itself would try: libpq looks names up in the loop.
            self._news_until = loop.time() + self._pool.reconnect_interval
            raise self.unreachable(self._news) from None
        finally:
            if not opening.done():
                self._pool.ioloop.remove_handler(driver.fileno)
                driver.close()

    async def _put(self, connection: _Connection) -> None:
        driver = connection.driver
        if connection.age != self.age or not connection.is_clean:
            driver.close()
        self._free(driver)

    def _free(self, driver: Any) -> None:
        """For whoever waits, or comes next; who opens it anew if it is closed."""
        conns = self._pool.conns
        conns.busy.discard(driver)
        if self._pool.closed:
            driver.close()
        elif driver.closed and not conns.waiting_queue:
            conns.dead.add(driver)
        else:
            conns.add_free(driver)

    async def _drop(self) -> None:
        for driver in self._pool.conns.free:
            driver.close()


class _Connection(LibpqConnection):
    raised = (psycopg2.Error, OSError)
    is_ready = True

    @property
    def is_idle(self) -> bool:
        if self.driver.closed:
            return False
        status = self.driver.connection.get_transaction_status()
        return bool(status == TRANSACTION_STATUS_IDLE)

    @property
    def fileno(self) -> int:
        return int(self.driver.fileno)

    async def send(self, sql: str, values: dict[str, Any]) -> tuple[Sequence[Row], str]:
        given = {name: _adapted(value) for name, value in values.items()}
        try:
            # The application's own cursors may make dicts.
            sending = self.driver.execute(sql, given, tuple_cursor)
        except UnicodeError:
            raise UnstorableText(
                "psycopg2 has no place for a character of the data in the encoding "
                "that it speaks; put client_encoding=utf8 into the DSN of the pool"
            ) from None
        except ValueError:  # as for a NUL
            raise StoreError("psycopg2 refused a value") from None
        cursor = await sending
        rows = cursor.fetchall() if cursor.description else []
        return rows, str(cursor.statusmessage)

    async def cancel(self) -> None:
        if not self.driver.closed:
            pgconn = self.driver.connection.pgconn_ptr
            await cancel(psycopg2._psycopg.__file__, pgconn)


def _has_ended(driver: Any) -> bool:
    """Whether the server has closed an idle connection, as far as can be told."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    # Elsewhere than on Linux: it has something to say, and that will be it.
    poll.register(driver.fileno, getattr(select, "POLLRDHUP", select.POLLIN))
    return bool(poll.poll(0))


def _adapted(value: Any) -> Any:
    if isinstance(value, bytes):
        return psycopg2.Binary(value)
    return [_adapted(each) for each in value] if isinstance(value, list) else value
