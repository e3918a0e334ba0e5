"""
Many requests, one query: what waits at the same moment goes out together.

With nothing under way an item leaves at once, alone; while a query is under way, what
arrives waits for the next. So batches grow with the load by themselves, and an idle
server's latency does not. Only when something has waited for `patience` seconds, as a
query is slow, does a further one go beside it, up to `lanes` of them.

Every item has a deadline: the moment when its request wants to know. What cannot end by
then is not begun, and what is begun is told how long it may take; so what was answered
503 does not happen later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from tornado_compas_session.exceptions import StoreError, StoreUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Waiter = asyncio.Future[Any]

#: Outcomes by key: a result, an exception for this key alone, or a task that will tell.
Outcomes = Mapping[Any, Any]
#: Sends a batch, which may take so many seconds.
Send = Callable[[dict[Any, Item], float], Awaitable[Outcomes]]


class Each(tuple[Any, ...]):
    """An outcome for each of those who share an item, in their order."""

    __slots__ = ()


class _Entry(NamedTuple):
    key: Hashable
    item: Any
    waiter: Waiter
    deadline: float
    #: By when its query has to be over, so that its waiter hears of that in time.
    ends: float


def time_for(now: float, timeout: float, deadline: float | None) -> tuple[float, float]:
    """
    By when a caller is answered, who has `timeout` seconds and none after its deadline;
    and by when its query has to be over. What lies between is kept for the cancelling:
    a 503 is answered once it is known that the write does not happen any more.
    """
    until = now + timeout
    if deadline is not None:
        until = min(until, deadline)
    return until, until - min(0.5, (until - now) / 10)


class Batcher(Generic[Item, Result]):
    """
    Collects items by key and hands them to `send` in batches.

    - A key is never twice in one batch: items that `join` makes one of share, others
      wait for the next.
    - A waiter that goes away (cancelled, out of time) does not touch its neighbours,
      and nothing is sent for it.
    - If `send` raises, exactly the waiters of that batch get the exception; if it takes
      longer than the first of their deadlines they get `StoreUnavailable`, and its lane
      is free.
    - Beyond `max_waiting` items, `submit` raises `StoreUnavailable` at once.
    """

    #: One query after the other makes the largest batches and costs the least, but a
    #: slow one must not hold up the others.
    patience = 0.02

    __slots__ = (
        "_abandoned",
        "_apart",
        "_join",
        "_looked_at",
        "_patience_timer",
        "_queue",
        "_send",
        "_under_way",
        "batches",
        "items",
        "lanes",
        "max_batch",
        "max_waiting",
        "on_batch",
        "seconds",
        "timeout",
    )

    def __init__(
        self,
        send: Send[Item],
        *,
        join: Callable[[Item, Item], Item | None],
        lanes: int,
        max_batch: int,
        max_waiting: int,
        timeout: float,
    ) -> None:
        self._send = send
        self._join = join
        self.lanes = lanes
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.timeout = timeout
        self._apart = False
        #: How many queries have ended, the items in them, and the seconds they took.
        self.batches, self.items, self.seconds = 0, 0, 0.0
        #: Called with the size of a batch, its seconds, and what it met.
        self.on_batch: Callable[[int, float, BaseException | None], None] | None = None
        self._queue: deque[_Entry] = deque()
        self._looked_at: Waiter | None = None
        self._patience_timer: asyncio.TimerHandle | None = None
        self._under_way: dict[asyncio.Task[None], asyncio.TimerHandle | None] = {}
        # Tasks that were given up: kept until they end, or they would be collected.
        self._abandoned: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many items are waiting for a query."""
        return len(self._queue)

    @property
    def under_way(self) -> int:
        """How many queries are under way."""
        return len(self._under_way)

    def submit(
        self, key: Hashable, item: Item, deadline: float | None = None
    ) -> asyncio.Future[Result]:
        """The outcome for this item; or what its batch, or it alone, met."""
        if len(self._queue) >= self.max_waiting:
            raise StoreUnavailable(
                f"{len(self._queue)} requests are waiting for the session store already"
            )
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        until, ends = time_for(loop.time(), self.timeout, deadline)
        self._queue.append(_Entry(key, item, waiter, until, ends))
        if len(self._under_way) < self.lanes:
            if self._apart or not self._under_way:
                self._start()
            elif self._patience_timer is None:
                self._watch()
        return waiter

    def keep_apart(self, lanes: int) -> None:
        """From now on one item a query, and so many queries side by side."""
        self._apart, self.lanes, self.max_batch = True, lanes, 1

    def _watch(self) -> None:
        """Looks after a while whether the first in the queue is still waiting."""
        self._looked_at = self._queue[0].waiter
        self._patience_timer = asyncio.get_running_loop().call_later(
            self.patience, self._look
        )

    def _look(self) -> None:
        self._patience_timer = None
        if self._queue and self._queue[0].waiter is self._looked_at:
            self._start()
        self._looked_at = None
        if self._queue and len(self._under_way) < self.lanes:
            self._watch()

    def _start(self) -> None:
        """Opens a lane for the next batch."""
        task = asyncio.get_running_loop().create_task(self._run())
        self._under_way[task] = None
        task.add_done_callback(self._ended)

    def _next(
        self, now: float
    ) -> tuple[dict[Hashable, Item], dict[Any, Any], float, float]:
        """
        The next batch: its items, who waits for each, their first deadline, and by when
        its query has to be over.
        """
        items: dict[Hashable, Item] = {}
        waiters: dict[Hashable, list[Waiter]] = {}
        queue, later = self._queue, []
        first = over = now + self.timeout
        while queue and len(items) < self.max_batch:
            entry = queue.popleft()
            key, item, waiter, deadline, ends = entry
            if waiter.done():  # gone: cancelled while it waited
                continue
            if ends <= now:
                _fail([waiter], _too_late())
                continue
            if key not in items:
                items[key] = item
                waiters[key] = [waiter]
            else:
                joined = self._join(items[key], item)
                if joined is None:
                    later.append(entry)
                    continue
                items[key] = joined
                waiters[key].append(waiter)
            first, over = min(first, deadline), min(over, ends)
        queue.extendleft(reversed(later))
        return items, waiters, first, over

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        # Not before this task's turn: what else came in by then goes with it.
        items, waiters, until, over = self._next(now)
        if not items:
            return
        task = asyncio.current_task()
        assert task is not None
        self._under_way[task] = loop.call_at(until, self._give_up, task, waiters)
        try:
            outcomes = await self._send(items, over - now)
        except BaseException as error:
            self._count(len(items), loop.time() - now, error)
            if isinstance(error, asyncio.CancelledError):
                # Ours after the time limit, or a driver's whose other caller left.
                error = StoreUnavailable("the query of the session store was cancelled")
            for group in waiters.values():
                _fail(group, error)
            if not isinstance(error, Exception):
                raise
            return
        self._count(len(items), loop.time() - now)
        for key, group in waiters.items():
            outcome = outcomes.get(key)
            if isinstance(outcome, asyncio.Task):
                outcome.add_done_callback(partial(_relay, group))
            elif isinstance(outcome, Exception):
                _fail(group, outcome)
            else:
                _tell(group, outcome)

    def _count(
        self, size: int, seconds: float, error: BaseException | None = None
    ) -> None:
        self.batches += 1
        self.items += size
        self.seconds += seconds
        if self.on_batch is not None:
            self.on_batch(size, seconds, error)

    def _give_up(
        self, task: asyncio.Task[None], waiters: dict[Hashable, list[Waiter]]
    ) -> None:
        error = _too_late()
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
        if task in self._under_way:
            timer = self._under_way.pop(task)
            if timer is not None:
                timer.cancel()
            if self._queue:
                self._start()


def _too_late() -> StoreUnavailable:
    return StoreUnavailable("the session store did not answer in time")


def _tell(group: list[Waiter], outcome: Any) -> None:
    each = outcome if isinstance(outcome, Each) else (outcome,) * len(group)
    for waiter, own in zip(group, each, strict=True):
        if waiter.done():
            continue
        if isinstance(own, Exception):
            _fail([waiter], own)
        else:
            waiter.set_result(own)


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
