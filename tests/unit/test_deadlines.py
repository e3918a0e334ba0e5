"""One timer for many time limits."""

from __future__ import annotations

import asyncio

import pytest

from tornado_compas_session.core.deadlines import Deadlines


async def value() -> int:
    await asyncio.sleep(0)
    return 7


async def test_what_is_done_in_time_is_untouched():
    """The outcome comes through, an exception as well, and nothing stays behind."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("own")

    deadlines = Deadlines(20)
    assert 7 == await deadlines.run(value())
    with pytest.raises(KeyError, match="own"):
        await deadlines.run(fails())
    assert not deadlines._calls


async def test_what_takes_too_long_is_cancelled():
    """The caller gets a TimeoutError, and is not cancelled itself."""
    deadlines = Deadlines(0.02)
    stuck = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await deadlines.run(stuck)
    assert stuck.cancelled()
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()
    assert 7 == await deadlines.run(value())


async def test_each_call_has_its_own_limit():
    """A later call ends later, by the same timer."""
    deadlines = Deadlines(0.2)
    loop = asyncio.get_running_loop()
    ended: list[str] = []

    async def call(name: str) -> None:
        with pytest.raises(TimeoutError):
            await deadlines.run(loop.create_future())
        ended.append(name)

    first = asyncio.ensure_future(call("first"))
    await asyncio.sleep(0.1)
    second = asyncio.ensure_future(call("second"))
    await first
    assert not second.done()
    await second
    assert ["first", "second"] == ended


async def test_a_cancellation_from_outside_stays_one():
    """Only its own cancellation becomes a TimeoutError."""
    deadlines = Deadlines(20)
    task = asyncio.ensure_future(
        deadlines.run(asyncio.get_running_loop().create_future())
    )
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not deadlines._calls


def test_it_outlives_a_loop():
    """An application that is started again, as in tests, has its limits again."""
    deadlines = Deadlines(0.02)

    async def waits() -> None:
        with pytest.raises(TimeoutError):
            await deadlines.run(asyncio.get_running_loop().create_future())

    assert 7 == asyncio.run(deadlines.run(value()))
    asyncio.run(waits())


async def test_a_call_within_a_call_ends_with_the_outer_one():
    """The limit of the outer one is never put off, and both are cleared away."""
    deadlines = Deadlines(0.02)
    stuck = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await deadlines.run(deadlines.run(stuck))
    assert stuck.cancelled()
    assert 7 == await deadlines.run(deadlines.run(value()))
    assert not deadlines._calls
