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
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from tornado_compas_session.core.guard import as_store_error
from tornado_compas_session.core.trouble import Trouble
from tornado_compas_session.exceptions import (
    SessionError,
    StoreError,
    StoreUnavailable,
)

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


#: What is no result for all who share an item.
_OTHERWISE = (asyncio.Task, Exception, Each)
#: Its key, the item, who waits, by when it is answered, and by when its query is over.
Entry = tuple[Hashable, Any, Waiter, float, float]


def time_for(now: float, timeout: float, deadline: float | None) -> tuple[float, float]:
    """
    By when a caller is answered, who has `timeout` seconds and none after its deadline;
    and by when its query has to be over. What lies between is kept for the cancelling:
    a 503 is answered once it is known that the write does not happen any more.
    """
    until = now + timeout
    if deadline is not None and deadline < until:
        until = deadline
    kept = (until - now) / 10
    return until, until - (kept if kept < 0.5 else 0.5)


class Batcher(Generic[Item, Result]):
    """
    Collects items by key and hands them to `send` in batches.

    - A key is never twice in one batch: items that `join` makes one of share, others
      wait for the next.
    - A waiter that goes away (cancelled, out of time) does not touch its neighbours,
      and nothing is sent for it.
    - If `send` raises, exactly the waiters of that batch get the exception, which is a
      `StoreError` where it was none of ours; if it takes longer than the first of their
      deadlines they get `StoreUnavailable`, and its lane is free.
    - With `max_waiting` items in the queue a further one gets `StoreUnavailable`.
    """

    #: One query after the other makes the largest batches and costs the least, but a
    #: slow one must not hold up the others.
    patience = 0.02
    #: How many queries have ended, the items in them, and the seconds they took.
    batches = items = 0
    seconds = 0.0
    #: Called with the size of a batch, its seconds, and what it met.
    on_batch: Callable[[int, float, BaseException | None], None] | None = None

    def __init__(
        self,
        send: Send[Item],
        *,
        join: Callable[[Item, Item], Item | None],
        lanes: int,
        max_batch: int,
        max_waiting: int,
        timeout: float,
        trouble: Trouble | None = None,
        kind: str = "reads",
    ) -> None:
        self._send = send
        self._join = join
        self.lanes = lanes
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.timeout = timeout
        #: Hears how it goes, as this kind of work.
        self._trouble = Trouble() if trouble is None else trouble
        self._kind = kind
        self._apart = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start_anew()
        # Tasks that were given up: kept until they end, or they would be collected.
        self._abandoned: set[asyncio.Task[None]] = set()

    def _start_anew(self) -> None:
        self._queue: deque[Entry] = deque()
        self._looked_at: Waiter | None = None
        self._patience: asyncio.TimerHandle | None = None
        #: The queries under way: who waits for each, and until when.
        self._under_way: dict[asyncio.Task[None], tuple[list[Waiter], float]] = {}
        #: One timer for all deadlines, at the first of them; and when that is.
        self._clock: asyncio.TimerHandle | None = None
        self._rings = math.inf

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
        """
        The outcome for this item; or what its batch, or it alone, met.

        It is there by the deadline (by the loop's clock), and `timeout` seconds from
        now: at the latest `StoreUnavailable` is.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the application's earlier one has ended
            self._loop = loop
            self._start_anew()
        waiter: Waiter = loop.create_future()
        if len(self._queue) >= self.max_waiting:
            many = f"{len(self._queue)} requests are waiting for the session store"
            self._fail([waiter], StoreUnavailable(f"{many} already"))
            return waiter
        until, ends = time_for(loop.time(), self.timeout, deadline)
        if until < self._rings:
            self._ring_at(until, loop)
        self._queue.append((key, item, waiter, until, ends))
        if len(self._under_way) < self.lanes:
            if self._apart or not self._under_way:
                self._start(loop)
            elif self._patience is None:
                self._watch(loop)
        return waiter

    def keep_apart(self, lanes: int) -> None:
        """From now on one item a query, and so many queries side by side."""
        self._apart, self.lanes, self.max_batch = True, lanes, 1

    # ── what is late ─────────────────────────────────────────────────────────────

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks after a while whether the first in the queue is still waiting."""
        self._looked_at = self._queue[0][2]
        self._patience = loop.call_later(self.patience, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._patience = None
        if self._queue and self._queue[0][2] is self._looked_at:
            self._start(loop)
        self._looked_at = None
        if self._queue and len(self._under_way) < self.lanes:
            self._watch(loop)

    def _ring_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._clock is not None:
            self._clock.cancel()
        self._rings, self._clock = when, loop.call_at(when, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answers those whose deadline has come."""
        now, self._rings, self._clock = loop.time(), math.inf, None
        for task, (waiters, until) in list(self._under_way.items()):
            if until <= now:
                self._fail(waiters, _too_late())
                # Not awaited: a driver may take long to cancel. The lane is free
                # meanwhile, and the pool's size bounds what is stuck.
                self._abandoned.add(task)
                task.cancel()
                self._free(task, loop)
        self._fail([entry[2] for entry in self._queue if entry[3] <= now], _too_late())
        untils = [until for _, until in self._under_way.values()]
        untils += [entry[3] for entry in self._queue if entry[3] > now]
        first = min(untils, default=math.inf)
        if first < math.inf:
            self._ring_at(first, loop)

    # ── a batch ──────────────────────────────────────────────────────────────────

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Opens a lane for the next batch."""
        task = loop.create_task(self._run(loop))
        self._under_way[task] = [], math.inf
        task.add_done_callback(self._ended)

    def _next(
        self, now: float
    ) -> tuple[dict[Hashable, Item], dict[Hashable, list[Waiter]], float, float]:
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
            key, item, waiter, until, ends = entry
            if waiter.done():  # gone: cancelled, or out of time, while it waited
                continue
            if ends <= now:
                self._fail([waiter], _too_late())
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
            if until < first:
                first = until
            if ends < over:
                over = ends
        queue.extendleft(reversed(later))
        return items, waiters, first, over

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        # Not before this task's turn: what else came in by then goes with it.
        items, waiters, until, over = self._next(now)
        if not items:
            return
        task = asyncio.current_task(loop)
        assert task is not None
        everyone = [waiter for group in waiters.values() for waiter in group]
        self._under_way[task] = everyone, until
        try:
            outcomes = await self._send(items, over - now)
        except BaseException as error:
            self._count(len(items), loop.time() - now, error)
            if isinstance(error, asyncio.CancelledError):
                # Ours after the time limit, or a driver's whose other caller left.
                error = StoreUnavailable("the query of the session store was cancelled")
            self._fail(everyone, error)
            if not isinstance(error, Exception):
                raise
            return
        self._count(len(items), loop.time() - now)
        self._trouble.worked(self._kind)
        for key, group in waiters.items():
            self._tell(group, outcomes.get(key))

    def _count(
        self, size: int, seconds: float, error: BaseException | None = None
    ) -> None:
        self.batches += 1
        self.items += size
        self.seconds += seconds
        if self.on_batch is not None:
            self.on_batch(size, seconds, error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._abandoned.discard(task)
        if task in self._under_way:
            self._free(task, task.get_loop())

    def _free(self, task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
        del self._under_way[task]
        if self._queue:
            self._start(loop)

    def _tell(self, group: list[Waiter], outcome: Any) -> None:
        if not isinstance(outcome, _OTHERWISE):
            for waiter in group:
                if not waiter.done():
                    waiter.set_result(outcome)
        elif isinstance(outcome, asyncio.Task):
            outcome.add_done_callback(partial(self._relay, group))
        elif isinstance(outcome, Exception):
            self._fail(group, outcome)
        else:
            for waiter, own in zip(group, outcome, strict=True):
                self._tell([waiter], own)

    def _relay(self, group: list[Waiter], task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            cancelled = "the query of the session store was cancelled"
            self._fail(group, StoreUnavailable(cancelled))
        elif error := task.exception():
            self._fail(group, error)
        else:
            self._trouble.worked(self._kind)
            self._tell(group, task.result())

    def _fail(self, group: list[Waiter], error: BaseException) -> None:
        left = [waiter for waiter in group if not waiter.done()]
        if not left:
            return
        if isinstance(error, Exception) and not isinstance(error, SessionError):
            error = as_store_error(error)
        if isinstance(error, StoreError):
            self._trouble.failed(self._kind, error, len(left))
        for waiter in left:
            # Each waiter raises its own, or their tracebacks would run together.
            own = error
            if isinstance(error, StoreError):
                own = type(error)(str(error))
                own.__cause__ = error.__cause__
            waiter.set_exception(own)


def _too_late() -> StoreUnavailable:
    return StoreUnavailable("the session store did not answer in time")
