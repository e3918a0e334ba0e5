"""Batches: who goes with whom, and whose trouble is whose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tornado_compas_session.exceptions import SessionGone, StoreError, StoreUnavailable
from tornado_compas_session.stores.batching import Batcher, Each, time_for


class Database:
    """Answers each batch when it is told to: `sent[n]` and `answer(n)`."""

    def __init__(self) -> None:
        self.sent: list[dict[Any, Any]] = []
        #: For each batch, the seconds that it may take.
        self.limits: list[float] = []
        self._answers: list[asyncio.Future[Any]] = []

    async def __call__(self, items: dict[Any, Any], seconds: float) -> Any:
        self.sent.append(items)
        self.limits.append(seconds)
        self._answers.append(asyncio.get_running_loop().create_future())
        return await self._answers[-1]

    def answer(self, number: int, outcome: Any = None) -> None:
        if isinstance(outcome, Exception):
            self._answers[number].set_exception(outcome)
        else:
            told = {key: f"{key}!" for key in self.sent[number]}
            self._answers[number].set_result(told | (outcome or {}))

    async def batches(self, count: int) -> None:
        """Waits until so many have been sent."""
        async with asyncio.timeout(20):
            while len(self.sent) < count:
                await asyncio.sleep(0.001)


@pytest.fixture
def database() -> Database:  # not the one of conftest.py: no PostgreSQL is needed
    return Database()


Maker = Callable[..., Batcher[Any, Any]]


@pytest.fixture
def make(database: Database) -> Maker:
    def make(**options: Any) -> Batcher[Any, Any]:
        limits = {"lanes": 1, "max_batch": 100, "max_waiting": 100, "timeout": 20.0}
        return Batcher(
            database, **{"join": lambda one, other: None, **limits, **options}
        )

    return make


def submit(
    batcher: Batcher[Any, Any], *keys: str, deadline: float | None = None
) -> list[asyncio.Future[Any]]:
    return [batcher.submit(key, f"item {key}", deadline) for key in keys]


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_an_idle_server_sends_at_once(make: Maker, database: Database):
    """With nothing under way nobody waits for company."""
    (one,) = submit(make(), "a")
    await database.batches(1)
    assert [{"a": "item a"}] == database.sent
    database.answer(0)
    assert "a!" == await one


async def test_what_comes_in_the_same_moment_goes_together(
    make: Maker, database: Database
):
    """Requests that arrive in one turn of the loop share the first query."""
    tasks = submit(make(), "a", "b", "c")
    await database.batches(1)
    assert ["a", "b", "c"] == list(database.sent[0])
    database.answer(0)
    assert ["a!", "b!", "c!"] == await asyncio.gather(*tasks)


async def test_batches_grow_under_load(make: Maker, database: Database):
    """What arrives while a query is under way waits, and leaves as one."""
    batcher = make()
    tasks = submit(batcher, "a")
    await database.batches(1)
    tasks += submit(batcher, *"bcdef")
    await asyncio.sleep(0)
    assert 1 == len(database.sent)
    database.answer(0)
    await database.batches(2)
    assert list("bcdef") == list(database.sent[1])
    database.answer(1)
    await asyncio.gather(*tasks)
    assert 2 == len(database.sent)


async def test_a_batch_has_a_limit(make: Maker, database: Database):
    """The rest goes with the next one, in the order in which it came."""
    tasks = submit(make(max_batch=2), *"abcde")
    for number, keys in enumerate(("ab", "cd", "e")):
        await database.batches(number + 1)
        assert list(keys) == list(database.sent[number])
        database.answer(number)
    await asyncio.gather(*tasks)


async def test_a_key_is_never_twice_in_a_batch(make: Maker, database: Database):
    """PostgreSQL would apply one of two writes of a row and drop the other."""
    batcher = make()
    one, neighbour, two, three = submit(batcher, "a", "b", "a", "a")
    for number, keys in enumerate((["a", "b"], ["a"], ["a"])):
        await database.batches(number + 1)
        assert keys == list(database.sent[number])
        assert [one, two, three][number].done() is False
        database.answer(number)
        await [one, two, three][number]
    assert "b!" == await neighbour


async def test_equal_items_share(make: Maker, database: Database):
    """Several loads of one session are one row of the query."""
    tasks = submit(make(join=lambda one, other: one), "a", "a", "a")
    await database.batches(1)
    database.answer(0)
    assert ["a!"] * 3 == await asyncio.gather(*tasks)
    assert [{"a": "item a"}] == database.sent


async def test_items_that_join_are_one(make: Maker, database: Database):
    """Increments of one key add up to one write, and each hears its own sum."""
    batcher = make(join=lambda one, other: f"{one} + {other}")
    tasks = submit(batcher, "a", "b", "a", "a")
    await database.batches(1)
    assert {"a": "item a + item a + item a", "b": "item b"} == database.sent[0]
    database.answer(0, {"a": Each((1, SessionGone(), 3))})
    one, neighbour, gone, three = tasks
    assert (1, "b!", 3) == (await one, await neighbour, await three)
    with pytest.raises(SessionGone):
        await gone


async def test_what_cannot_join_waits_for_the_next(make: Maker, database: Database):
    """In the order in which it came, behind none that came later."""
    tasks = submit(make(max_batch=2), "a", "a", "b", "a", "c")
    for number, keys in enumerate((["a", "b"], ["a", "c"], ["a"])):
        await database.batches(number + 1)
        assert keys == list(database.sent[number])
        database.answer(number)
    assert ["a!", "a!", "b!", "a!", "c!"] == await asyncio.gather(*tasks)


async def test_who_leaves_keeps_its_place_in_a_sum(make: Maker, database: Database):
    """The others' sums are theirs all the same."""
    batcher = make(join=lambda one, other: one)
    one, leaves, three = submit(batcher, "a", "a", "a")
    await database.batches(1)
    leaves.cancel()
    database.answer(0, {"a": Each((1, 2, 3))})
    assert (1, 3) == (await one, await three)


async def test_each_waiter_learns_its_own_outcome(make: Maker, database: Database):
    """An exception among the outcomes is for its key alone."""
    good, gone = submit(make(), "a", "b")
    await database.batches(1)
    database.answer(0, {"b": SessionGone()})
    assert "a!" == await good
    with pytest.raises(SessionGone):
        await gone


async def test_an_outcome_may_come_later(make: Maker, database: Database):
    """A row that somebody has locked is waited for outside of the batch."""

    async def slow() -> str:
        await released.wait()
        return "late"

    released = asyncio.Event()
    batcher = make()
    late, early = submit(batcher, "a", "b")
    await database.batches(1)
    database.answer(0, {"a": asyncio.ensure_future(slow())})
    assert "b!" == await early
    (other,) = submit(batcher, "c")  # the lane is free meanwhile
    await database.batches(2)
    database.answer(1)
    assert "c!" == await other
    assert not late.done()
    released.set()
    assert "late" == await late


async def test_a_failing_batch_fails_only_its_own(make: Maker, database: Database):
    """Each waiter gets an error of its own, and the next batch is sent."""
    batcher = make()
    failing = submit(batcher, "a", "b")
    await database.batches(1)
    following = submit(batcher, "c")
    database.answer(0, StoreError("no"))
    errors = await asyncio.gather(*failing, return_exceptions=True)
    assert ["no", "no"] == [str(error) for error in errors]
    assert errors[0] is not errors[1]
    await database.batches(2)
    database.answer(1)
    assert ["c!"] == await asyncio.gather(*following)


async def test_who_leaves_does_not_touch_the_neighbours(
    make: Maker, database: Database
):
    """Cancelled in a batch or in the queue: the others get their answers."""
    batcher = make()
    leaves, stays = submit(batcher, "a", "b")
    await database.batches(1)
    queued, waits = submit(batcher, "c", "d")
    await asyncio.sleep(0)
    leaves.cancel()
    queued.cancel()
    await asyncio.sleep(0)
    database.answer(0)
    assert "b!" == await stays
    await database.batches(2)
    assert ["d"] == list(database.sent[1])  # for the other nobody waits any more
    database.answer(1)
    assert "d!" == await waits
    assert leaves.cancelled()
    assert queued.cancelled()


async def test_if_all_leave_nothing_is_sent(make: Maker, database: Database):
    """And the batcher is as ready as before."""
    batcher = make()
    (first,) = submit(batcher, "a")
    await database.batches(1)
    left = submit(batcher, "b", "c")
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    await asyncio.sleep(0)
    database.answer(0)
    await first
    (next_one,) = submit(batcher, "d")
    await database.batches(2)
    assert ["d"] == list(database.sent[1])
    database.answer(1)
    await next_one


async def test_a_driver_that_cancels_is_a_failure(make: Maker, database: Database):
    """The waiters hear that the store failed, not that they were cancelled."""
    tasks = submit(make(), "a")
    await database.batches(1)
    database._answers[0].cancel()
    with pytest.raises(StoreUnavailable, match="was cancelled"):
        await asyncio.gather(*tasks)


async def test_the_queue_is_bounded(make: Maker, database: Database):
    """Beyond `max_waiting` a request is refused at once, instead of waiting in vain."""
    batcher = make(max_waiting=3)
    tasks = submit(batcher, "a")
    await database.batches(1)
    tasks += submit(batcher, "b", "c", "d")
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="3 requests are waiting"):
        await batcher.submit("e", "item e")
    database.answer(0)
    await database.batches(2)
    database.answer(1)
    await asyncio.gather(*tasks)


# -- deadlines -------------------------------------------------------------------------


async def test_a_batch_is_told_how_long_it_may_take(make: Maker, database: Database):
    """Until the first of its deadlines, less what cancelling it may need."""
    batcher = make()
    tasks = submit(batcher, "a") + submit(batcher, "b", deadline=now() + 5)
    await database.batches(1)
    database.answer(0)
    await asyncio.gather(*tasks)
    tasks = submit(batcher, "c")
    await database.batches(2)
    database.answer(1)
    await asyncio.gather(*tasks)
    first, second = database.limits

    assert 5 - 0.5 == pytest.approx(first, abs=0.3)
    assert 20 - 0.5 == pytest.approx(second, abs=0.3)
    assert (20, 19.5) == time_for(0, 20, None)
    assert (1, 0.9) == time_for(0, 20, 1)


async def test_a_short_limit_of_the_caller_is_time_enough(
    make: Maker, database: Database
):
    """It is the caller's own time, and not the batcher's, that some is kept of."""
    tasks = submit(make(), "a", deadline=now() + 0.4)
    await database.batches(1)
    database.answer(0)
    await asyncio.gather(*tasks)

    assert 0.3 < database.limits[0] <= 0.36


async def test_what_cannot_end_in_time_is_not_begun(make: Maker, database: Database):
    """It is refused when its turn comes; the others of the queue go on."""
    batcher = make()
    first = submit(batcher, "a")
    await database.batches(1)
    late = submit(batcher, "b", deadline=now() + 0.02)
    (other,) = submit(batcher, "c")
    await asyncio.sleep(0.019)
    database.answer(0)
    await asyncio.gather(*first)
    for task in late:
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await task
    await database.batches(2)
    assert ["c"] == list(database.sent[1])
    database.answer(1)
    assert "c!" == await other


async def test_a_deadline_is_never_later_than_the_batchers_own(
    make: Maker, database: Database
):
    """Whoever asks for longer gets no more."""
    batcher = make(timeout=0.05)
    (task,) = submit(batcher, "a", deadline=now() + 100)
    with pytest.raises(StoreUnavailable):
        await task
    assert database.limits[0] < 0.05


async def test_a_time_limit_frees_the_lane(make: Maker, database: Database):
    """Who waits in vain is told so; the next batch does not wait for the stuck one."""
    batcher = make(timeout=0.05)
    stuck = submit(batcher, "a", "b")
    for error in await asyncio.gather(*stuck, return_exceptions=True):
        assert isinstance(error, StoreUnavailable)
    batcher.timeout = 20.0
    tasks = submit(batcher, "c")
    await database.batches(2)
    database.answer(1)
    assert ["c!"] == await asyncio.gather(*tasks)


async def test_a_slow_query_gets_company(make: Maker, database: Database):
    """A second lane opens when something has waited for a while; no third one does."""
    batcher = make(lanes=2)
    tasks = submit(batcher, "a")
    await database.batches(1)
    tasks += submit(batcher, "b", "c")
    await database.batches(2)  # the first has not been answered
    assert ["b", "c"] == list(database.sent[1])
    tasks += submit(batcher, "d")
    await asyncio.sleep(5 * Batcher.patience)
    assert 2 == len(database.sent)
    database.answer(1)
    await database.batches(3)
    database.answer(0)
    database.answer(2)
    assert ["a!", "b!", "c!", "d!"] == await asyncio.gather(*tasks)


async def test_they_can_be_kept_apart(make: Maker, database: Database):
    """Then each goes out by itself, at once, and so many side by side."""
    batcher = make(lanes=1)
    batcher.keep_apart(3)
    tasks = submit(batcher, "a", "b", "c", "d")
    await database.batches(3)
    assert [["a"], ["b"], ["c"]] == [list(sent) for sent in database.sent]
    database.answer(1)
    await database.batches(4)
    for number in (0, 2, 3):
        database.answer(number)
    assert ["a!", "b!", "c!", "d!"] == await asyncio.gather(*tasks)


async def test_nothing_is_left_behind(make: Maker, database: Database):
    """When all is answered there is no task and no waiter any more."""
    batcher = make(lanes=2)
    tasks = submit(batcher, "a")
    await database.batches(1)
    tasks += submit(batcher, "b")
    database.answer(0)
    await database.batches(2)
    database.answer(1)
    await asyncio.gather(*tasks)
    await asyncio.sleep(2 * Batcher.patience)
    assert not batcher._queue
    assert not batcher._under_way
    assert not batcher._abandoned
    assert batcher._patience is None


async def test_what_waits_in_the_queue_is_answered_by_its_own_deadline(
    make: Maker, database: Database
):
    """However long the queries before it may take, and whoever came first."""
    batcher = make(lanes=1)
    loop = asyncio.get_running_loop()
    first = batcher.submit("a", "a")
    await database.batches(1)
    patient = batcher.submit("b", "b", loop.time() + 10)
    hasty = batcher.submit("c", "c", loop.time() + 0.05)

    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable, match="in time"):
            await hasty
    assert not first.done()
    assert not patient.done()

    database.answer(0)
    await database.batches(2)
    assert {"b": "b"} == database.sent[1]
    database.answer(1)
    assert ["a!", "b!"] == [await first, await patient]


def test_another_loop_starts_anew():
    """As in tests that run one program after the other: deadlines hold in each."""

    async def hangs(items: dict[Any, Any], seconds: float) -> Any:
        await asyncio.Event().wait()

    limits: dict[str, Any] = {"lanes": 1, "max_batch": 9, "max_waiting": 9}
    batcher: Batcher[Any, Any] = Batcher(
        hangs, join=lambda one, other: None, timeout=0.05, **limits
    )

    async def program() -> None:
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailable):
                await batcher.submit("a", "a")
        batcher.submit("b", "b")  # left behind

    for _ in range(2):
        asyncio.run(program())
