"""
Many requests, one query: what waits at the same moment goes out together.

With nothing under way an item leaves at once, alone; while a query is under way, what
arrives waits for the next. So batches grow with the load by themselves, and an idle
server's latency does not. Only when something has waited for `patience` seconds, as a
query is slow, does a further one go beside it, up to `lanes` of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from tornado_compas_session.exceptions import StoreError, StoreUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Waiter = asyncio.Future[Any]

#: Outcomes by key: a result, an exception for this key alone, or a task that will tell.
Outcomes = Mapping[Any, Any]


class Batcher(Generic[Item, Result]):
    """
    Collects items by key and hands them to `send` in batches.

    - A key is never twice in one batch: equal items share (`share`), others wait.
    - A waiter that goes away (cancelled, out of time) does not touch its neighbours.
    - If `send` raises, exactly the waiters of that batch get the exception; if it takes
      longer than `timeout` seconds they get `StoreUnavailable`, and its lane is free.
    - Beyond `max_waiting` items, `submit` raises `StoreUnavailable` at once.
    """

    #: One query after the other makes the largest batches and costs the least, but a
    #: slow one must not hold up the others.
    patience = 0.02

    __slots__ = (
        "_abandoned",
        "_looked_at",
        "_patience_timer",
        "_queue",
        "_send",
        "_share",
        "_under_way",
        "lanes",
        "max_batch",
        "max_waiting",
        "timeout",
    )

    def __init__(
        self,
        send: Callable[[dict[Any, Item]], Awaitable[Outcomes]],
        *,
        share: Callable[[Item, Item], bool],
        lanes: int,
        max_batch: int,
        max_waiting: int,
        timeout: float,
    ) -> None:
        self._send = send
        self._share = share
        self.lanes = lanes
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.timeout = timeout
        self._queue: deque[tuple[Hashable, Item, Waiter]] = deque()
        self._looked_at: Waiter | None = None
        self._patience_timer: asyncio.TimerHandle | None = None
        self._under_way: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        # Tasks that were given up: kept until they end, or they would be collected.
        self._abandoned: set[asyncio.Task[None]] = set()

    def submit(self, key: Hashable, item: Item) -> asyncio.Future[Result]:
        """The outcome for this item; or what its batch, or it alone, met."""
        if len(self._queue) >= self.max_waiting:
            raise StoreUnavailable(
                f"{len(self._queue)} requests are waiting for the session store already"
            )
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._queue.append((key, item, waiter))
        if not self._under_way:
            self._start()
        elif self._patience_timer is None and len(self._under_way) < self.lanes:
            self._watch()
        return waiter

    def _watch(self) -> None:
        """Looks after a while whether the first in the queue is still waiting."""
        self._looked_at = self._queue[0][2]
        self._patience_timer = asyncio.get_running_loop().call_later(
            self.patience, self._look
        )

    def _look(self) -> None:
        self._patience_timer = None
        if self._queue and self._queue[0][2] is self._looked_at:
            self._start()
        self._looked_at = None
        if self._queue and len(self._under_way) < self.lanes:
            self._watch()

    def _start(self) -> None:
        """Opens a lane for the next batch."""
        loop = asyncio.get_running_loop()
        waiters: dict[Hashable, list[Waiter]] = {}
        task = loop.create_task(self._run(waiters))
        self._under_way[task] = loop.call_later(
            self.timeout, self._give_up, task, waiters
        )
        task.add_done_callback(self._ended)

    def _next(self, waiters: dict[Hashable, list[Waiter]]) -> dict[Hashable, Item]:
        """Takes the next batch from the queue: its items, and who waits for each."""
        items: dict[Hashable, Item] = {}
        queue, later = self._queue, []
        while queue and len(items) < self.max_batch:
            entry = queue.popleft()
            key, item, waiter = entry
            if waiter.done():  # gone: cancelled while it waited
                continue
            if key not in items:
                items[key] = item
                waiters[key] = [waiter]
            elif self._share(items[key], item):
                waiters[key].append(waiter)
            else:
                later.append(entry)
        queue.extendleft(reversed(later))
        return items

    async def _run(self, waiters: dict[Hashable, list[Waiter]]) -> None:
        # Not before this task's turn: what else came in by then goes with it.
        items = self._next(waiters)
        if not items:
            return
        try:
            outcomes = await self._send(items)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                # Ours after the time limit, or a driver's whose other caller left.
                error = StoreUnavailable("the query of the session store was cancelled")
            for group in waiters.values():
                _fail(group, error)
            if not isinstance(error, Exception):
                raise
            return
        for key, group in waiters.items():
            outcome = outcomes.get(key)
            if isinstance(outcome, asyncio.Task):
                outcome.add_done_callback(partial(_relay, group))
            elif isinstance(outcome, Exception):
                _fail(group, outcome)
            else:
                _tell(group, outcome)

    def _give_up(
        self, task: asyncio.Task[None], waiters: dict[Hashable, list[Waiter]]
    ) -> None:
        error = StoreUnavailable(
            f"the session store did not answer within {self.timeout:g} seconds"
        )
        for group in waiters.values():
            _fail(group, error)
        # Not awaited: a driver may take long to cancel. The lane is free meanwhile, and
        # the pool's size bounds what is stuck.
        self._abandoned.add(task)
        task.cancel()
        self._free(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._abandoned.discard(task)
        self._free(task)

    def _free(self, task: asyncio.Task[None]) -> None:
        timer = self._under_way.pop(task, None)
        if timer is not None:
            timer.cancel()
            if self._queue:
                self._start()


def _tell(group: list[Waiter], outcome: Any) -> None:
    for waiter in group:
        if not waiter.done():
            waiter.set_result(outcome)


def _fail(group: list[Waiter], error: BaseException) -> None:
    for waiter in group:
        if not waiter.done():
            # Each waiter raises its own, or their tracebacks would run together.
            own = error
            if isinstance(error, StoreError):
                own = type(error)(str(error))
                own.__cause__ = error.__cause__
            waiter.set_exception(own)


def _relay(group: list[Waiter], task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        _fail(group, StoreUnavailable("the query of the session store was cancelled"))
    elif error := task.exception():
        _fail(group, error)
    else:
        _tell(group, task.result())
