"""One time limit for many calls, on one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class _Call:
    __slots__ = ("over", "task", "until")

    def __init__(self, task: asyncio.Task[Any], until: float) -> None:
        self.task = task
        self.until = until
        self.over = False


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
        self._calls: dict[_Call, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Awaitable[T]) -> T:
        """Awaits; raises `TimeoutError` if it takes longer, and cancels the work."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the application's earlier one has ended
            self._loop, self._calls, self._timer = loop, {}, None
        task = asyncio.current_task()
        assert task is not None
        call = _Call(task, loop.time() + self.seconds)
        self._calls[call] = None
        if self._timer is None:
            self._timer = loop.call_at(call.until, self._look)
        cancelling = task.cancelling()
        try:
            return await work
        except asyncio.CancelledError:
            if call.over and task.cancelling() - 1 <= cancelling:
                raise TimeoutError from None
            raise
        finally:
            if call.over:
                task.uncancel()
            else:
                self._calls.pop(call, None)

    def _look(self) -> None:
        assert self._loop is not None
        self._timer = None
        now = self._loop.time()
        while self._calls:
            call = next(iter(self._calls))
            if call.until > now:
                self._timer = self._loop.call_at(call.until, self._look)
                return
            del self._calls[call]
            call.over = True
            call.task.cancel()
