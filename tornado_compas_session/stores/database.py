"""Sends the named statements through a pool, and looks twice at what comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tornado_compas_session.core.protocols import Connection, Pool, Row
from tornado_compas_session.exceptions import (
    SessionDataError,
    StoreError,
    StoreUnavailable,
    UnstorableText,
    WriteConflict,
)
from tornado_compas_session.stores.pools import as_pool
from tornado_compas_session.stores.pools.queries import statements

logger = logging.getLogger("tornado_compas_session")
T = TypeVar("T")

#: How often a statement is sent that loses to another transaction (SQLSTATE 40…).
_TRIES = 5


class Database:
    """The statements of `queries.sql` on a pool of the application's."""

    def __init__(self, pool: Any, *, timeout: float) -> None:
        self.pool: Pool = as_pool(pool, timeout=timeout)
        self.sql = statements()
        self.timeout = timeout
        #: How many connections the pool has at most.
        self.size: int = getattr(self.pool, "size", 4)
        self._abandoned: set[asyncio.Future[Any]] = set()

    async def ask(
        self, name: str, seconds: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """
        Runs a statement; again if another transaction was in its way, which is certain
        to have changed nothing.
        """
        statement = self.sql[name]
        limit = self.timeout if seconds is None else seconds
        until = asyncio.get_running_loop().time() + limit
        try:
            for _ in range(_TRIES - 1):
                with suppress(WriteConflict):
                    return await self.pool.fetch(statement, timeout=limit, **values)
                limit = until - asyncio.get_running_loop().time()
            return await self.pool.fetch(statement, timeout=limit, **values)
        except UnstorableText as error:
            raise SessionDataError("all of it", str(error)) from None

    async def on(
        self, connection: Connection, name: str, **values: Any
    ) -> Sequence[Row]:
        """Runs a statement inside of a transaction."""
        try:
            return await connection.fetch(self.sql[name], **values)
        except UnstorableText as error:
            raise SessionDataError("all of it", str(error)) from None

    async def alone(
        self, name: str, seconds: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """A statement of its own, with a limit that holds for any pool."""
        limit = self.timeout if seconds is None else seconds
        return await self.within(limit + 0.5, self.ask(name, limit, **values))

    async def within(self, seconds: float, work: Awaitable[T]) -> T:
        """
        Awaits, but no longer than so many seconds; then raises `StoreUnavailable`.

        In a task of its own, whose cancellation is not awaited: drivers may take long
        to cancel.
        """
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=max(0.0, seconds))
        except asyncio.CancelledError:
            task.cancel()
            self.keep(task)
            raise
        if done:
            return task.result()
        task.cancel()
        self.keep(task)
        raise StoreUnavailable(
            f"the session store did not answer within {seconds:.3g} seconds"
        )

    def deadline(self) -> float:
        """The loop's time by which a statement that is sent now is over."""
        return asyncio.get_running_loop().time() + self.timeout

    def left(self, deadline: float) -> float:
        """The seconds until then."""
        return deadline - asyncio.get_running_loop().time()

    def keep(self, task: asyncio.Future[Any]) -> None:
        """Holds a task that was given up until it ends, and takes its exception."""
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def foreign_row(self) -> StoreError:
        """
        A row came back that nobody asked for, as when statements of several clients are
        mixed up on one connection (prepared statements behind an old PgBouncer).
        """
        logger.critical(
            "the database answered with another session's row; the connections are "
            "dropped and the request is refused. Is there a PgBouncer in transaction "
            'mode? Switch prepared statements off (see "PgBouncer" in the '
            "documentation)"
        )
        await self.pool.expire()
        return StoreError("the database answered with a row that was not asked for")
