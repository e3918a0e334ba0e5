"""
What the drivers' pools have in common: a connection is taken, used and given back
clean, whatever happens in between.

A driver fills in two small classes. `DriverConnection`: ask a statement and run a
script within so many seconds, and leave no transaction behind. `DriverPool`: take a
connection, put it back, drop the idle ones, close. asyncpg has its own means for a time
limit; the two drivers on libpq have none, and share those of `libpq.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import (
    ConnectionLost,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.pools.limits import begin, left
from tornado_compas_session.stores.pools.queries import Statement

logger = logging.getLogger("tornado_compas_session")
T = TypeVar("T")
Loop = asyncio.AbstractEventLoop

#: A PgBouncer tells a pid of its own at the start, and not the server's. Without a
#: parameter, so that nothing is prepared; the answer is in the server's tag.
IS_SERVERS = "SELECT 1 WHERE pg_backend_pid() = {}"
NOT_SERVERS = "SELECT 0"


class DriverConnection(ABC):
    """
    A connection from when it is taken until it is given back.

    None of its methods raises a driver's error, nor waits longer than it is told.
    """

    #: Whether all is set that has to be before the first statement.
    is_ready = False
    #: The pid that it was told, where statements are prepared on it.
    pid: int | None = None

    def __init__(self, pool: DriverPool, driver: Any) -> None:
        self.pool = pool
        self.driver = driver
        #: How often the pool's had been dropped when it was taken.
        self.age = pool.age

    @abstractmethod
    async def ask(
        self, statement: Statement, values: dict[str, Any], seconds: float
    ) -> Sequence[Row]:
        """The rows; when the time is over, the statement has ended, or it has."""

    @abstractmethod
    async def run(self, sql: str, seconds: float) -> str:
        """The same for what has no rows: the server's tag."""

    @abstractmethod
    async def clean(self) -> None:
        """
        After an error: leaves nothing under way and no transaction open, or the
        connection closed. Takes no longer than `GRACE` for each.
        """

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """Runs one statement; see `Connection.fetch`."""
        seconds = self.pool.timeout if timeout is None else timeout
        return await self.ask(statement, values, seconds)

    async def run_script(self, sql: str) -> None:
        """Runs several statements, within the pool's limit."""
        await self.run(sql, self.pool.timeout)


class DriverPool(ABC):
    """
    A `Pool` over the pool of a driver; gives every connection back.

    `target` is where it connects to and what certificates it trusts, for people; `loop`
    tells the event loop that the driver's works in, None while it has none.
    """

    #: How to switch prepared statements off, for behind a PgBouncer they mix up.
    way_out = ""

    def __init__(
        self,
        size: int,
        timeout: float,
        target: tuple[str, str | None],
        loop: Callable[[], Loop | None],
    ) -> None:
        #: The most connections that it has.
        self.size = size
        self.timeout = timeout
        #: How often the connections were dropped.
        self.age = 0
        self.is_proxied: bool | None = None
        self._target = target
        self._find_loop = loop
        self._loop = loop()
        self._pid = os.getpid()
        self._under_way: set[asyncio.Task[Any]] = set()

    @abstractmethod
    async def _take(self, until: float) -> Any:
        """One of its connections; raises `StoreUnavailable` where none is to be had."""

    @abstractmethod
    async def _put(self, connection: Any) -> None:
        """Takes a clean one back; never raises."""

    @abstractmethod
    async def _drop(self) -> None:
        """Ends those that are idle, and later those of an earlier `age`."""

    @abstractmethod
    async def close(self) -> None:
        """Closes the pool; what is under way has until the pool's limit."""

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        until = self._until(timeout)
        connection = await self._take(until)
        try:
            if not connection.is_ready:
                await self._ready(connection, until)
            rows: Sequence[Row] = await connection.ask(statement, values, left(until))
        except BaseException as error:
            await self._give_back(connection, error)
            raise
        if not self._keep(connection):
            await self._give_back(connection)
        return rows

    @asynccontextmanager
    async def transaction(
        self, *, lock_timeout: float | None = None, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """One connection and one transaction."""
        until = self._until(timeout)
        connection = await self._take(until)
        try:
            if not connection.is_ready:
                await self._ready(connection, until)
            await connection.run(begin(lock_timeout), left(until))
            yield connection
            # What PostgreSQL answers is not always yes, and never an error.
            if await connection.run("COMMIT", self.timeout) != "COMMIT":
                raise StoreError(
                    "the transaction was rolled back: a statement in it had failed"
                )
        except BaseException as error:
            await self._give_back(connection, error)
            raise
        if not self._keep(connection):
            await self._give_back(connection)

    async def expire(self) -> None:
        """Drops the connections."""
        self.age += 1
        await self._drop()

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

    def unreachable(self, reason: str) -> StoreUnavailable:
        """The error for a connection that was not to be had, so nothing was sent."""
        where, trusted = self._target
        if trusted and "certificate" in reason:
            reason += f"; checked against {trusted}"
        return StoreUnavailable(f"no connection to {where}: {reason}")

    def none_free(self) -> StoreUnavailable:
        """The error for all of them being in use, so nothing was sent."""
        return StoreUnavailable(
            f"none of the {self.size} connections to the database came free in time"
        )

    def _keep(self, connection: Any) -> bool:
        """Whether it stays for the next call, instead of going back."""
        return False

    async def _give_back(
        self, connection: Any, error: BaseException | None = None
    ) -> None:
        # To its end even if we are cancelled: else it is lost, or in a transaction.
        await asyncio.shield(self.start(self._return(connection, error)))

    async def _return(self, connection: Any, error: BaseException | None) -> None:
        # If it was lost, the others are stale as well, and each would be handed out
        # once; unless they are fresh already.
        stale = isinstance(error, ConnectionLost) and connection.age == self.age
        self.age += stale
        if error is not None:
            await connection.clean()
        await self._put(connection)
        if stale:
            await self._drop()

    async def _ready(self, connection: Any, until: float) -> None:
        """Before anything else is sent."""
        if self.is_proxied is None and connection.pid is not None:
            self.is_proxied = False  # the others need not ask
            tag = await connection.run(IS_SERVERS.format(connection.pid), left(until))
            if tag == NOT_SERVERS:
                self.is_proxied = True
                logger.warning(
                    "the database is behind a PgBouncer, and statements are prepared: "
                    "with one older than 1.21 answers get mixed up; %s "
                    '(see "PgBouncer" in the documentation)',
                    self.way_out,
                )
        connection.is_ready = True

    def _until(self, timeout: float | None) -> float:
        """The loop's time when a call that begins now is over."""
        return self._enter().time() + (self.timeout if timeout is None else timeout)

    def _enter(self) -> Loop:
        """
        The running loop; raises `StoreUnavailable` where it is not the pool's: after a
        fork two processes would read each other's answers from one connection.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._pid = self._find_loop(), os.getpid()
        if self._loop in (loop, None) and os.getpid() == self._pid:
            return loop
        raise StoreUnavailable(
            "the pool was made in another event loop (or before the fork); make it, "
            'and the store, in the loop that serves (see "Processes and fork" in the '
            "documentation)"
        )
