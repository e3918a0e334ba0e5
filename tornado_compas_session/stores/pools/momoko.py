"""
momoko 2.2.5.1, for applications that have it: a thin adapter.

momoko never gets a connection back whose caller was cancelled, knows no time limits,
and sends a statement again when its reply was lost. So each call runs in a task that
nobody cancels, on a connection taken for it; what takes too long is cancelled on the
server, or has its connection cut; and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import momoko
import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, parse_dsn
from psycopg2.extensions import cursor as tuple_cursor

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    ConnectionLost,
    SettingsError,
    StoreError,
    StoreUnavailable,
    UnstorableText,
)
from tornado_compas_session.stores.pools import errors
from tornado_compas_session.stores.pools.base import DriverConnection, DriverPool
from tornado_compas_session.stores.pools.dsn import target_in
from tornado_compas_session.stores.pools.libpq import cancel, libpq_of
from tornado_compas_session.stores.pools.limits import GRACE, cut_socket, left, limited
from tornado_compas_session.stores.pools.queries import Statement

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
        loop = pool.ioloop
        super().__init__(
            int(pool.max_size), timeout, lambda: getattr(loop, "asyncio_loop", None)
        )
        self._pool = pool
        self._opening: set[Any] = set()
        #: One asks for all why no connection can be opened; and how long it is news.
        self._probe: asyncio.Task[str] | None = None
        self._news_until = 0.0

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        return len(self._pool.conns.busy)

    async def close(self) -> None:
        """Closes the pool, when what is under way has ended or used up its time."""
        self._enter()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._timeout)
        if self._pool.closed:
            return
        for driver in self._pool.conns.pending:  # momoko forgets them as they open
            if not driver.closed:
                self._pool.ioloop.remove_handler(driver.fileno)
                driver.close()
        self._pool.close()

    async def _drop(self) -> None:
        """They are opened anew when they are taken."""
        for driver in self._pool.conns.free:
            driver.close()

    async def _take(self, until: float) -> DriverConnection:
        if self._pool.closed:
            raise StoreUnavailable(errors.CLOSED)
        connection = _Connection(self, self._timeout)
        taking = self.start(connection.take(until))
        try:
            await asyncio.wait({taking}, timeout=max(0.0, left(until)))
            if taking.done():
                taking.result()
                return connection
        except asyncio.CancelledError:
            taking.add_done_callback(connection.give_back)
            raise
        taking.add_done_callback(connection.give_back)
        if len(self._pool.conns.busy) >= self.size:
            raise errors.none_free(self.size)
        raise self.unreachable("no answer in time")

    async def _give_back(
        self, connection: _Connection, error: BaseException | None = None
    ) -> None:
        if error is None:
            connection.give_back()  # at once: there is nothing to wait for
        elif isinstance(error, asyncio.CancelledError):
            # Whoever is cancelled does not wait for the end of what is under way.
            self.start(self._put(connection, error))
        else:
            await super()._give_back(connection, error)

    async def _put(self, connection: _Connection, error: BaseException | None) -> None:
        async with connection.busy:
            pass
        driver = connection.driver
        if not (connection.is_cut or driver.closed or _is_idle(driver)):
            with suppress(StoreError):
                await connection.run("ROLLBACK", GRACE)
        connection.give_back()

    def _target(self) -> tuple[str, str | None]:
        given: dict[str, str] = {}
        with suppress(psycopg2.Error):  # which would quote it
            given = parse_dsn(self._pool.dsn)
        return target_in(given)

    def getconn(self) -> asyncio.Future[Any]:
        """One of momoko's connections, which waits for ever for one to open."""
        asking: asyncio.Future[Any] = self._pool.getconn(ping=False)
        for driver in self._pool.conns.pending - self._opening:
            if not driver.closed:
                self._opening.add(driver)
                asyncio.get_running_loop().call_later(
                    self._timeout, self._end_opening, driver, driver.fileno
                )
        return asking

    def putconn(self, driver: Any) -> None:
        """Gives one back; where it was closed, opened anew, for nobody waits for it."""
        if driver.closed and not self._pool.closed:
            self.start(self._reopen(driver))
        else:
            self._pool.putconn(driver)

    async def _reopen(self, driver: Any) -> None:
        """momoko itself would leave it dead for half a second."""
        limit = asyncio.get_running_loop().call_later(self._timeout, _cut, driver)
        try:
            with suppress(psycopg2.Error):
                await driver.connect()
        finally:
            limit.cancel()
            if self._pool.closed:
                driver.close()
            else:
                self._pool.putconn(driver)

    def _end_opening(self, driver: Any, fileno: int) -> None:
        self._opening.discard(driver)
        if driver in self._pool.conns.pending and driver.fileno == fileno:
            _cut(driver)

    async def why(self) -> StoreUnavailable:
        """Why no connection can be opened: momoko knows that there is none."""
        now = asyncio.get_running_loop().time()
        if self._probe is None or (self._probe.done() and now >= self._news_until):
            self._probe = self.start(_reason_of_failing(self._pool))
            self._news_until = now + 1
        return self.unreachable(await asyncio.shield(self._probe))


class _Connection(DriverConnection):
    """Nobody's leaving ends what it was sent."""

    #: Nothing is sent on it any more.
    is_cut = False

    def __init__(self, pool: MomokoPool, timeout: float) -> None:
        super().__init__(None, timeout)
        self._pool = pool
        # A statement may be running whose caller has left.
        self.busy = asyncio.Lock()

    async def take(self, until: float) -> None:
        self.driver = driver = await self._asked(self._pool.getconn)
        if driver.closed or _has_ended(driver):
            driver.close()
            limit = asyncio.get_running_loop().call_at(until, _cut, driver)
            try:
                await driver.connect()
            except BaseException as error:
                self.give_back()
                if isinstance(error, psycopg2.Error):
                    reason = errors.reason_of(str(error))
                    raise self._pool.unreachable(reason) from None
                raise
            finally:
                limit.cancel()

    def give_back(self, taken: object = None) -> None:
        driver, self.driver = self.driver, None  # no longer ours to cut
        if driver is None:  # none was to be had
            return
        if self.is_cut or not _is_idle(driver):
            driver.close()
        self._pool.putconn(driver)

    def cut(self) -> None:
        """Ends what is under way on it: momoko notices, and has its way of going on."""
        self.is_cut = True
        _cut(self.driver)

    async def ask(
        self, statement: Statement, values: list[Any], seconds: float
    ) -> Sequence[Row]:
        cursor = await self._sent(
            seconds,
            # Without values psycopg2 leaves a doubled percent sign as it is.
            statement.formatted if values else statement.numbered,
            statement.spread(tuple(map(_adapted, values))),
            tuple_cursor,  # the application's own may make dicts
        )
        return cursor.fetchall() if cursor.description else []

    async def run(self, sql: str, seconds: float) -> str:
        return str((await self._sent(seconds, sql)).statusmessage)

    async def run_script(self, sql: str) -> None:
        await self._sent(self.timeout, sql)

    async def _sent(self, seconds: float, *arguments: Any) -> Any:
        async def send() -> Any:
            async with self.busy:
                return await limited(
                    lambda: self._asked(self.driver.execute, *arguments),
                    left(until),
                    lambda: _cancel(self.driver),
                    self.cut,
                )

        until = asyncio.get_running_loop().time() + seconds
        return await asyncio.shield(self._pool.start(send()))

    async def _asked(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return await call(*args)
        except momoko.Pool.DatabaseNotAvailable:
            raise await self._pool.why() from None
        except psycopg2.Error as error:
            lost = isinstance(
                error, psycopg2.OperationalError | psycopg2.InterfaceError
            )
            ours = errors.error_of(
                error.pgcode or (None if lost else "XX000"),
                type(error).__name__,
                error.diag.message_primary or str(error),
                error.diag.source_function,
            )
        except UnicodeError:
            raise UnstorableText(
                "psycopg2 has no place for a character of the data in the encoding "
                "that it speaks; put client_encoding=utf8 into the DSN of the pool"
            ) from None
        except (OSError, ValueError, momoko.PoolError) as error:
            # psycopg2 has no NUL in a text, and says so with a ValueError.
            kind = "22000" if isinstance(error, ValueError) else None
            ours = errors.error_of(kind, type(error).__name__, None)
        if isinstance(ours, ConnectionLost) and self.driver is not None:
            self.driver.close()  # it may only have become read-only
        raise ours


def _is_idle(driver: Any) -> bool:
    """Whether it is in no transaction, where one ended too soon."""
    return bool(
        not driver.closed
        and driver.connection.get_transaction_status() == TRANSACTION_STATUS_IDLE
    )


def _has_ended(driver: Any) -> bool:
    """Whether the server has closed an idle connection, as far as can be told."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    # Elsewhere than on Linux: it has something to say, and that will be it.
    poll.register(driver.fileno, getattr(select, "POLLRDHUP", select.POLLIN))
    return bool(poll.poll(0))


def _cut(driver: Any) -> None:
    if not driver.closed:
        cut_socket(driver.fileno)


async def _cancel(driver: Any) -> None:
    if not driver.closed:
        # Not by psycopg2's `cancel()`, which stops all of Python meanwhile.
        libpq = libpq_of(psycopg2._psycopg.__file__)
        await cancel(libpq, driver.connection.pgconn_ptr)


async def _reason_of_failing(pool: momoko.Pool) -> str:
    """Tries to connect, to learn why momoko could not."""
    probe = momoko.Connection(pool.dsn, ioloop=pool.ioloop)
    opening = probe.connect()
    await asyncio.wait({opening}, timeout=GRACE)
    if not opening.done():
        _cut(probe)
        return "no answer in time"
    error = opening.exception()
    if error is not None:
        return errors.reason_of(str(error))
    probe.close()
    return "it was away a moment ago"


def _adapted(value: Any) -> Any:
    if isinstance(value, bytes):
        return psycopg2.Binary(value)
    return [_adapted(each) for each in value] if isinstance(value, list) else value
