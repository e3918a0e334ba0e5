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
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any, TypeVar

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
    Home,
    begin,
    cut_socket,
    left,
    limited,
)
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
        self.momoko = pool
        self._timeout = timeout
        self._home = Home(lambda: getattr(pool.ioloop, "asyncio_loop", None))
        self._under_way: set[asyncio.Task[Any]] = set()
        self._opening: set[Any] = set()
        #: One asks for all why no connection can be opened; and how long it is news.
        self._probe: asyncio.Task[str] | None = None
        self._news_until = 0.0

    @property
    def size(self) -> int:
        """The most connections that it has."""
        return int(self.momoko.max_size)

    @property
    def in_use(self) -> int:
        """How many of them are in use now."""
        return len(self.momoko.conns.busy)

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        until = self.until(timeout)
        connection = _Connection(self)
        work = connection.alone(statement, values, until)
        return await self.wait(connection, self.start(work), until)

    @asynccontextmanager
    async def transaction(
        self, *, lock_timeout: float | None = None, timeout: float | None = None
    ) -> AsyncIterator[_InTransaction]:
        """One connection and one transaction."""
        until = self.until(timeout)
        connection = _Connection(self)
        beginning = self.start(connection.begin(begin(lock_timeout), until))
        try:
            await self.wait(connection, beginning, until)
        except BaseException:
            # It may come after we have stopped waiting.
            beginning.add_done_callback(lambda task: self._end_late(task, connection))
            raise
        try:
            yield _InTransaction(self, connection)
        except BaseException:
            with suppress(StoreError):
                await self._end(connection, "ROLLBACK", GRACE)
            raise
        check_commit(await self._end(connection, "COMMIT", self._timeout))

    async def expire(self) -> None:
        """Drops the idle connections; they are opened anew when they are taken."""
        for driver in self.momoko.conns.free:
            driver.close()

    async def close(self) -> None:
        """Closes the pool, when what is under way has ended or used up its time."""
        self._home.enter()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._timeout)
        if self.momoko.closed:
            return
        for driver in self.momoko.conns.pending:  # momoko forgets them as they open
            if not driver.closed:
                self.momoko.ioloop.remove_handler(driver.fileno)
                driver.close()
        self.momoko.close()

    def until(self, timeout: float | None) -> float:
        """The loop's time when a call that begins now is over."""
        if self.momoko.closed:
            raise StoreUnavailable(CLOSED)
        seconds = self._timeout if timeout is None else timeout
        return self._home.enter().time() + seconds

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begins work that nobody's leaving cancels."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)

        def ended(task: asyncio.Task[T]) -> None:
            self._under_way.discard(task)
            if not task.cancelled():
                task.exception()  # whoever waited may have left

        task.add_done_callback(ended)
        return task

    async def wait(
        self, connection: _Connection, task: asyncio.Task[T], until: float
    ) -> T:
        """Waits for such work: to the limit, or until what it sent has ended."""
        await asyncio.wait({task}, timeout=max(0.0, left(until)))
        if not task.done() and connection.is_sending:
            await asyncio.wait({task}, timeout=3 * GRACE)
        if not task.done():
            connection.give_up()
            if len(self.momoko.conns.busy) >= self.size:
                raise none_free(self.size)
            raise self.unreachable("no answer in time")
        return task.result()

    def getconn(self) -> asyncio.Future[Any]:
        """One of momoko's connections, which waits for ever for one to open."""
        asking: asyncio.Future[Any] = self.momoko.getconn(ping=False)
        for driver in self.momoko.conns.pending - self._opening:
            if not driver.closed:
                self._opening.add(driver)
                asyncio.get_running_loop().call_later(
                    self._timeout, self._end_opening, driver, driver.fileno
                )
        return asking

    def putconn(self, driver: Any) -> None:
        """Gives one back; where it was closed, opened anew, for nobody waits for it."""
        if driver.closed and not self.momoko.closed:
            self.start(self._reopen(driver))
        else:
            self.momoko.putconn(driver)

    async def _reopen(self, driver: Any) -> None:
        """momoko itself would leave it dead for half a second."""
        limit = asyncio.get_running_loop().call_later(self._timeout, _cut, driver)
        try:
            with suppress(psycopg2.Error):
                await driver.connect()
        finally:
            limit.cancel()
            if self.momoko.closed:
                driver.close()
            else:
                self.momoko.putconn(driver)

    def _end_opening(self, driver: Any, fileno: int) -> None:
        self._opening.discard(driver)
        if driver in self.momoko.conns.pending and driver.fileno == fileno:
            _cut(driver)

    async def why(self) -> StoreUnavailable:
        """Why no connection can be opened: momoko knows that there is none."""
        now = asyncio.get_running_loop().time()
        if self._probe is None or (self._probe.done() and now >= self._news_until):
            self._probe = self.start(_reason_of_failing(self.momoko))
            self._news_until = now + 1
        return self.unreachable(await asyncio.shield(self._probe))

    def unreachable(self, reason: str) -> StoreUnavailable:
        """The error for a connection that was not to be had."""
        given: dict[str, str] = {}
        with suppress(psycopg2.Error):  # which would quote it
            given = parse_dsn(self.momoko.dsn)
        return unreachable(addresses_in(given), reason, given.get("sslrootcert"))

    async def _end(self, connection: _Connection, verb: str, seconds: float) -> str:
        until = asyncio.get_running_loop().time() + seconds
        task = self.start(connection.end(verb, until))
        return await self.wait(connection, task, until)

    def _end_late(self, beginning: asyncio.Task[None], connection: _Connection) -> None:
        if not beginning.cancelled() and beginning.exception() is None:
            until = asyncio.get_running_loop().time() + GRACE
            self.start(connection.end("ROLLBACK", until))


class _InTransaction:
    def __init__(self, pool: MomokoPool, connection: _Connection) -> None:
        self._pool = pool
        self._connection = connection

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        until = self._pool.until(timeout)
        work = self._connection.fetch(statement, values, until)
        return await self._pool.wait(self._connection, self._pool.start(work), until)

    async def run_script(self, sql: str) -> None:
        until = self._pool.until(None)
        work = self._connection.run(sql, until)
        await self._pool.wait(self._connection, self._pool.start(work), until)


class _Connection:
    """One of momoko's connections, from when it is asked for until it is given back."""

    def __init__(self, pool: MomokoPool) -> None:
        self._pool = pool
        self._driver: Any = None
        #: Nobody waits for it any more, so nothing is sent on it.
        self._is_given_up = False
        self._is_cut = False
        #: Whether something that it was sent has not ended yet.
        self.is_sending = False
        # A statement may be running whose caller has left.
        self._busy = asyncio.Lock()

    def give_up(self) -> None:
        """Ends what is under way on it: momoko notices, and has its way of going on."""
        self._is_given_up = True
        if self._driver is not None:
            self._is_cut = True
            _cut(self._driver)

    async def alone(
        self, statement: Statement, values: dict[str, Any], until: float
    ) -> list[Row]:
        await self._take()
        try:
            return await self.fetch(statement, values, until)
        finally:
            self._give_back()

    async def begin(self, script: str, until: float) -> None:
        await self._take()
        try:
            await self.run(script, until)
        except BaseException:
            self._give_back()
            raise

    async def end(self, verb: str, until: float) -> str:
        try:
            return await self.run(verb, until)
        finally:
            self._give_back()

    async def fetch(
        self, statement: Statement, values: dict[str, Any], until: float
    ) -> list[Row]:
        given = tuple(_adapted(values[name]) for name in statement.parameters)
        cursor = await self._send(
            until,
            # Without values psycopg2 leaves a doubled percent sign as it is.
            statement.formatted if given else statement.numbered,
            statement.spread(given),
            tuple_cursor,  # the application's own may make dicts
        )
        return cursor.fetchall() if cursor.description else []

    async def run(self, sql: str, until: float) -> str:
        return str((await self._send(until, sql)).statusmessage)

    async def _send(self, until: float, *arguments: Any) -> Any:
        async with self._busy:
            self.is_sending = True
            try:
                return await limited(
                    lambda: self._ask(self._driver.execute, *arguments),
                    left(until),
                    lambda: _cancel(self._driver),
                    self.give_up,
                )
            finally:
                self.is_sending = False

    async def _take(self) -> None:
        self._driver = driver = await self._ask(self._pool.getconn)
        try:
            if driver.closed or _has_ended(driver):
                driver.close()
                await self._open(driver)
            if self._is_given_up:
                raise none_free(self._pool.size)
        except BaseException:
            self._give_back()
            raise

    async def _open(self, driver: Any) -> None:
        try:
            await driver.connect()
        except psycopg2.Error as error:
            raise self._pool.unreachable(reason_of(str(error))) from None

    def _give_back(self) -> None:
        driver, self._driver = self._driver, None  # no longer ours to cut
        if self._is_cut or not _is_idle(driver):
            driver.close()
        self._pool.putconn(driver)

    async def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return await call(*args)
        except momoko.Pool.DatabaseNotAvailable:
            raise await self._pool.why() from None
        except psycopg2.Error as error:
            lost = isinstance(
                error, psycopg2.OperationalError | psycopg2.InterfaceError
            )
            ours = error_of(
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
            ours = error_of(kind, type(error).__name__, None)
        if isinstance(ours, ConnectionLost):
            await self._pool.expire()
            if self._driver is not None:
                self._driver.close()  # it may only have become read-only
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
        return reason_of(str(error))
    probe.close()
    return "it was away a moment ago"


def _adapted(value: Any) -> Any:
    if isinstance(value, bytes):
        return psycopg2.Binary(value)
    return [_adapted(each) for each in value] if isinstance(value, list) else value
