"""One time limit for many calls, on one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlines:
    """
    `asyncio.timeout` for calls that all have the same limit.

    That sets and cancels a timer for each call, a good part of what a request with a
    session costs. Here the calls stand in the order of their deadlines, and one timer
    watches the first.
    """

    __slots__ = ("_calls", "_loop", "_timer", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        #: The tasks that wait, the first to be over first, and until when.
        self._calls: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Awaitable[T]) -> T:
        """Awaits; raises `TimeoutError` if it takes longer, and cancels the work."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the application's earlier one has ended
            self._loop, self._calls, self._timer = loop, {}, None
        task = asyncio.current_task(loop)
        assert task is not None
        if task in self._calls:  # a call within a call: the outer one is over first
            return await work
        self._calls[task] = until = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(until, self._look)
        cancelling = task.cancelling()
        try:
            return await work
        except asyncio.CancelledError:
            if task not in self._calls and task.cancelling() - 1 <= cancelling:
                raise TimeoutError from None
            raise
        finally:
            if self._calls.pop(task, None) is None:  # `_look` has cancelled it
                task.uncancel()

    def _look(self) -> None:
        assert self._loop is not None
        self._timer = None
        now = self._loop.time()
        while self._calls:
            task, until = next(iter(self._calls.items()))
            if until > now:
                self._timer = self._loop.call_at(until, self._look)
                return
            del self._calls[task]
            task.cancel()
