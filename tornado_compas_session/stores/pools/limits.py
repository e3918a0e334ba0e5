"""The time limit of a call, which holds on the server too, for every driver."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from tornado_compas_session.exceptions import StoreUnavailable
from tornado_compas_session.stores.pools.errors import TOO_LATE

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop

#: How long after its limit a cancellation may take; then the connection is cut.
GRACE = 0.5


async def limited(
    start: Callable[[], Awaitable[T]],
    seconds: float,
    cancel: Callable[[], Awaitable[None]],
    cut: Callable[[], None],
) -> T:
    """
    Runs a statement under a time limit that holds on the server too.

    When it is over, `cancel` asks the server to end the statement, and once that has
    ended, however it did, `StoreUnavailable` is raised. If it takes too long, `cut` has
    to end the connection, and with it the wait. Without any time nothing is sent.
    """
    if seconds <= 0:
        raise StoreUnavailable(TOO_LATE)
    loop = asyncio.get_running_loop()
    asked: list[Cancellation] = []  # none, or one
    timer: asyncio.TimerHandle

    def end() -> None:
        nonlocal timer
        asked.append(Cancellation(cancel))
        timer = loop.call_later(GRACE, cut)

    timer = loop.call_later(seconds, end)
    try:
        result = await start()
        if not asked:
            return result
    except Exception:
        if not asked:
            raise
    finally:
        timer.cancel()
        for cancellation in asked:
            await cancellation.settle(timer.when() - loop.time(), cut)
    raise StoreUnavailable(TOO_LATE)


class Cancellation:
    """Asks the server to end a statement, until it has ended."""

    def __init__(self, cancel: Callable[[], Awaitable[None]]) -> None:
        self._ended = asyncio.Event()
        self._asking = asyncio.ensure_future(self._ask(cancel))

    async def _ask(self, cancel: Callable[[], Awaitable[None]]) -> None:
        while not self._ended.is_set():
            await cancel()
            # Again: while the statement waits in a PgBouncer, that drops the request.
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE / 5):
                    await self._ended.wait()

    async def settle(self, seconds: float, cut: Callable[[], None]) -> None:
        """A request still on its way would end the connection's next statement."""
        self._ended.set()
        try:
            await asyncio.wait({self._asking}, timeout=max(0.0, seconds))
        finally:
            if not self._asking.done():
                self._asking.cancel()
                cut()
            elif not self._asking.cancelled():
                self._asking.exception()  # the statement ended all the same


def cut_socket(fileno: int) -> None:
    """Ends a connection below its driver, which then hears of it as of any loss."""
    with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as link:
        link.shutdown(socket.SHUT_RDWR)


def begin(lock_timeout: float | None) -> str:
    """The script that begins a transaction, in one trip."""
    return "BEGIN" if lock_timeout is None else f"BEGIN; {lock_limit(lock_timeout)}"


def lock_limit(seconds: float) -> str:
    """The script that bounds, in a transaction, each wait for a row."""
    # Zero would mean no limit.
    return f"SET LOCAL lock_timeout = '{max(1, int(seconds * 1000))}ms'"


def left(until: float) -> float:
    """The seconds until this time of the loop."""
    return until - asyncio.get_running_loop().time()
