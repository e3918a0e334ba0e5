"""
What the two drivers on libpq share, psycopg and psycopg2: neither ends a statement in
time, nor survives that its caller leaves in the middle of one.

So each statement is a task that nobody cancels. When its time is over, or its caller
has left, the server is asked to end it, again and again until it has; and if that takes
too long, the connection is cut.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import threading
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import StoreError, StoreUnavailable
from tornado_compas_session.stores.pools import errors
from tornado_compas_session.stores.pools.base import DriverConnection
from tornado_compas_session.stores.pools.limits import GRACE
from tornado_compas_session.stores.pools.queries import Statement


class LibpqConnection(DriverConnection):
    """The driver says how to send a statement, and how to ask for its end."""

    #: The driver's errors.
    raised: tuple[type[Exception], ...]
    #: Nothing is sent on it any more.
    is_cut = False
    _work: asyncio.Task[Any] | None = None
    _ending: asyncio.Task[None] | None = None

    @abstractmethod
    async def send(self, sql: str, values: dict[str, Any]) -> tuple[Sequence[Row], str]:
        """Rows and tag of a statement with `%(name)s`; of a script if no values."""

    @abstractmethod
    async def cancel(self) -> None:
        """Asks the server to end what it does; returns when it has taken note."""

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether it is open, and in no transaction."""

    @property
    @abstractmethod
    def fileno(self) -> int:
        """The socket of an open connection."""

    async def ask(
        self, statement: Statement, values: dict[str, Any], seconds: float
    ) -> Sequence[Row]:
        # Without values psycopg2 leaves a doubled percent sign as it is.
        sql = statement.named if values else statement.numbered
        return (await self._sent(sql, values, seconds))[0]

    async def run(self, sql: str, seconds: float) -> str:
        return (await self._sent(sql, {}, seconds))[1]

    async def clean(self) -> None:
        await self._end()
        if not (self.is_idle or self.is_cut or self.driver.closed):
            with suppress(StoreError):
                await self.run("ROLLBACK", GRACE)

    @property
    def is_clean(self) -> bool:
        """Whether another may have it."""
        return self.is_idle and not self.is_cut

    async def _sent(
        self, sql: str, values: dict[str, Any], seconds: float
    ) -> tuple[Sequence[Row], str]:
        if seconds <= 0:
            raise StoreUnavailable(errors.TOO_LATE)
        await self._end()  # what its caller has left
        self._work = work = self.pool.start(self.send(sql, values))
        await asyncio.wait({work}, timeout=seconds)
        if is_late := not work.done():
            await self._end()
        try:
            return work.result()  # it may have come through at the last moment
        except self.raised as error:
            late = StoreUnavailable(errors.TOO_LATE)
            raise (late if is_late else errors.ours(error)) from None

    async def _end(self) -> None:
        """Until what is under way has ended, whatever becomes of who waits for it."""
        if self._ending is None and self._work is not None and not self._work.done():
            self._ending = self.pool.start(self._ended(self._work))
        if self._ending is not None:
            await asyncio.shield(self._ending)
            self._ending = None

    async def _ended(self, work: asyncio.Task[Any]) -> None:
        asking = self.pool.start(self._ask_for_end(work))
        await asyncio.wait({asking}, timeout=GRACE)
        if not asking.done():
            # A request still on its way would end the connection's next statement; it
            # goes on, for the server has not heard that the connection is cut.
            self.is_cut = True
            if not self.driver.closed:
                cut_socket(self.fileno)
            await asyncio.wait({work})

    async def _ask_for_end(self, work: asyncio.Task[Any]) -> None:
        while not work.done():
            with suppress(*self.raised):  # the statement ends all the same
                async with asyncio.timeout(self.pool.timeout):
                    await self.cancel()
            # Again: while the statement waits in a PgBouncer, that drops the request.
            await asyncio.wait({work}, timeout=GRACE / 5)


def cut_socket(fileno: int) -> None:
    """Ends a connection below its driver, which then hears of it as of any loss."""
    with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as link:
        link.shutdown(socket.SHUT_RDWR)


@cache
def _libpq_of(extension: str) -> ctypes.CDLL | None:
    """
    The libpq that an extension module is linked with; None where it is inside of the
    module, as in psycopg2's wheel for Windows.
    """
    try:
        libpq = ctypes.CDLL(extension)
        libpq.PQgetCancel.argtypes = libpq.PQfreeCancel.argtypes = [ctypes.c_void_p]
        libpq.PQgetCancel.restype = ctypes.c_void_p
        libpq.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    except (AttributeError, OSError):
        return None
    return libpq


async def cancel(extension: str | None, connection: int) -> None:
    """
    Asks the server to end what runs on the connection, a `PGconn *`.

    psycopg2's `cancel()`, and that of psycopg on a libpq older than 17, hold all of
    Python until the server answers, which a frozen one does not. So libpq itself is
    asked, in a thread; and in one of its own, which keeps neither the executor's
    workers nor the end of the process waiting.
    """
    libpq = _libpq_of(str(extension))
    if libpq is None:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    request = libpq.PQgetCancel(connection)

    def ask() -> None:
        libpq.PQcancel(request, ctypes.create_string_buffer(256), 256)
        libpq.PQfreeCancel(request)
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=ask, name="cancel", daemon=True).start()
    await done.wait()
