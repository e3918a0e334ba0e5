"""`RowQueue`: who waits for a locked row waits here, without a connection."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tornado_compas_session import SessionError
from tornado_compas_session.exceptions import LockTimeout
from tornado_compas_session.stores.rowqueue import RowQueue


def soon(seconds=20.0):
    return asyncio.get_running_loop().time() + seconds


class Visitor:
    """A task that has a turn with a row until it is told to go."""

    def __init__(self, queue, handle, seconds=20.0):
        self.inside, self.go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.ensure_future(self._visit(queue, handle, seconds))

    async def _visit(self, queue, handle, seconds):
        async with queue.turn(handle, soon(seconds)):
            self.inside.set()
            await self.go.wait()

    async def leave(self):
        self.go.set()
        await self.task


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_at_a_time_for_each_row_in_order():
    """The others of the row queue up; other rows are not disturbed."""
    queue = RowQueue(10)
    first, second, third = (Visitor(queue, "a") for _ in range(3))
    other = Visitor(queue, "b")
    await settled()
    assert first.inside.is_set()
    assert other.inside.is_set()
    assert not second.inside.is_set()
    assert 2 == len(queue)
    await first.leave()
    await settled()
    assert second.inside.is_set()
    assert not third.inside.is_set()
    for visitor in (second, third, other):
        await visitor.leave()

    assert 0 == len(queue)


async def test_never_more_than_so_many_in_all():
    """Half of the connections: the rest are for those who wait for nobody."""
    queue = RowQueue(2)
    visitors = [Visitor(queue, name) for name in "abc"]
    waiting = Visitor(queue, "a")
    await settled()
    assert [True, True, False] == [each.inside.is_set() for each in visitors]
    await visitors[1].leave()
    await settled()
    assert visitors[2].inside.is_set()
    assert not waiting.inside.is_set()
    for visitor in (visitors[0], visitors[2], waiting):
        await visitor.leave()

    assert 0 == len(queue)
    async with AsyncExitStack() as stack:  # all places are free again
        for name in "de":
            await stack.enter_async_context(queue.turn(name, soon(1)))


@pytest.mark.parametrize("most", [1, 10])
async def test_a_turn_that_does_not_come_in_time(most):
    """`LockTimeout`: for the row, or for a place; and nothing is left behind."""
    queue = RowQueue(most)
    holder = Visitor(queue, "a")
    await settled()
    for handle in "a" if most == 10 else "ab":
        for seconds in (0.02, 0.0, -1.0):
            with pytest.raises(LockTimeout):
                async with queue.turn(handle, soon(seconds)):
                    pytest.fail("inside")
    await holder.leave()

    assert 0 == len(queue)
    async with queue.turn("a", soon()):
        assert 1 == len(queue)


async def test_a_free_turn_is_had_without_any_time():
    """As `lock(timeout=0)` has it."""
    async with RowQueue(1).turn("a", soon(0)):
        pass


async def test_one_who_is_cancelled_leaves_no_gap():
    """In the queue or inside: the next one has the turn."""
    queue = RowQueue(1)
    first, second, third = (Visitor(queue, "a") for _ in range(3))
    await settled()
    second.task.cancel()
    first.task.cancel()
    await settled()
    assert third.inside.is_set()
    await third.leave()
    for visitor in (first, second):
        with pytest.raises(asyncio.CancelledError):
            await visitor.task

    assert 0 == len(queue)


async def test_one_who_is_cancelled_while_it_waits_for_a_place():
    """The row is free for others then."""
    queue = RowQueue(1)
    holder, waits = Visitor(queue, "a"), Visitor(queue, "b")
    await settled()
    waits.task.cancel()
    await settled()
    again = Visitor(queue, "b")
    await holder.leave()
    await settled()
    assert again.inside.is_set()
    await again.leave()

    assert 0 == len(queue)


async def test_an_exception_in_a_turn_ends_it():
    """As leaving it does."""
    queue = RowQueue(1)
    with pytest.raises(ZeroDivisionError):
        async with queue.turn("a", soon()):
            raise ZeroDivisionError
    async with queue.turn("a", soon(0.1)):
        assert 1 == len(queue)


async def test_whoever_has_the_row_cannot_wait_for_it():
    """It would wait for itself; of other rows it may."""
    queue = RowQueue(2)
    async with queue.turn("a", soon()):
        with pytest.raises(SessionError, match="cannot be waited for"):
            async with queue.turn("a", soon()):
                pytest.fail("inside")
        async with queue.turn("b", soon()):
            assert 2 == len(queue)

    assert 0 == len(queue)
