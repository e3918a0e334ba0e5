"""
What the three drivers' pools have in common: a connection is taken, used and given back
clean, whatever happens in between. What a driver does its own way is in its own file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import ConnectionLost, StoreUnavailable
from tornado_compas_session.stores.pools import errors
from tornado_compas_session.stores.pools.limits import Loop, begin, left
from tornado_compas_session.stores.pools.queries import Statement

logger = logging.getLogger("tornado_compas_session")
T = TypeVar("T")


class DriverConnection:
    """A connection from when it is taken until it is given back."""

    #: `async ask(statement, values, seconds)`: the rows.
    ask: Any
    #: `async run(sql, seconds)`: runs what has no rows; returns the server's tag.
    run: Any
    #: How often the pool's had been dropped when it was taken.
    age = 0

    def __init__(self, driver: Any, timeout: float) -> None:
        self.driver = driver
        self.timeout = timeout

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """Runs one statement; see `Connection.fetch`."""
        seconds = self.timeout if timeout is None else timeout
        given = [values[name] for name in statement.parameters]
        rows: Sequence[Row] = await self.ask(statement, given, seconds)
        return rows


class DriverPool:
    """
    A `Pool` over the pool of a driver; gives every connection back.

    `loop` tells the event loop that the driver's works in, None while it has none.
    """

    #: `async _take(until)`: one of the driver's connections.
    _take: Any
    #: `async _put(connection, error)`: gives it back, in no transaction; never raises.
    _put: Any
    #: `async _drop()`: ends those that are idle.
    _drop: Any
    #: `_target()`: where it connects to, and what certificates it trusts, for people.
    _target: Any

    def __init__(
        self, size: int, timeout: float, loop: Callable[[], Loop | None]
    ) -> None:
        #: The most connections that it has.
        self.size = size
        self._timeout = timeout
        self._find_loop = loop
        self._loop = loop()
        self._pid = os.getpid()
        self._age = 0  # how often the connections were dropped
        self._checked = False
        self._under_way: set[asyncio.Task[Any]] = set()

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """Runs one statement in its own transaction."""
        until = self._until(timeout)
        connection = await self._taken(until)
        try:
            await self._ready(connection, until)
            given = [values[name] for name in statement.parameters]
            rows: Sequence[Row] = await connection.ask(statement, given, left(until))
        except BaseException as error:
            await self._give_back(connection, error)
            raise
        await self._give_back(connection)
        return rows

    @asynccontextmanager
    async def transaction(
        self, *, lock_timeout: float | None = None, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """One connection and one transaction."""
        until = self._until(timeout)
        connection = await self._taken(until)
        try:
            await self._ready(connection, until)
            await connection.run(begin(lock_timeout), left(until))
            yield connection
            errors.check_commit(await connection.run("COMMIT", self._timeout))
        except BaseException as error:
            await self._give_back(connection, error)
            raise
        await self._give_back(connection)

    async def expire(self) -> None:
        """Drops the connections."""
        self._age += 1
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
        """The error for a connection that was not to be had."""
        where, trusted = self._target()
        return errors.unreachable(where, reason, trusted)

    async def _taken(self, until: float) -> DriverConnection:
        age = self._age
        try:
            connection: DriverConnection = await self._take(until)
        except ConnectionLost:
            await self._lost(age)
            raise
        connection.age = age
        return connection

    async def _give_back(
        self, connection: Any, error: BaseException | None = None
    ) -> None:
        # To its end even if we are cancelled: else it is lost, or in a transaction.
        await asyncio.shield(self.start(self._put(connection, error)))
        if isinstance(error, ConnectionLost):
            await self._lost(connection.age)

    async def _lost(self, age: int) -> None:
        """The others are stale as well, and each would be handed out once."""
        if age == self._age:  # else they are fresh already
            await self.expire()

    async def _ready(self, connection: Any, until: float) -> None:
        """Before anything else is sent."""
        if not self._checked:
            self._checked = True
            await self._check(connection, left(until))

    async def _check(self, connection: Any, seconds: float) -> None:
        """Notices what is dangerous in a pool that the application made."""

    def _until(self, timeout: float | None) -> float:
        """The loop's time when a call that begins now is over."""
        return self._enter().time() + (self._timeout if timeout is None else timeout)

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


def warn_of_pgbouncer(driver: str, way_out: str) -> None:
    """Prepared statements belong to one of its servers, and it has several."""
    logger.warning(
        "the database is behind a PgBouncer and %s prepares statements: with a "
        "PgBouncer older than 1.21 answers get mixed up; %s "
        '(see "PgBouncer" in the documentation)',
        driver,
        way_out,
    )
