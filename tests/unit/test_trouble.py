"""Trouble with the store is said once when it begins, changes, and is over."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.factories import TroubledStore, load_session, make_manager
from tornado_compas_session import SessionGone, StoreError, StoreUnavailable
from tornado_compas_session.core import trouble as module
from tornado_compas_session.core.events import Events
from tornado_compas_session.core.guard import Guard
from tornado_compas_session.core.trouble import Trouble
from tornado_compas_session.exceptions import LockTimeout

QUIET = 0.03


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """The quiet second that it takes to be over, in less."""
    monkeypatch.setattr(module, "_QUIET", QUIET)


@pytest.fixture
def trouble():
    return Trouble()


def away(text="no route to the host"):
    return StoreUnavailable(text)


async def over(trouble):
    async with asyncio.timeout(10):
        while trouble.now is not None:
            await asyncio.sleep(0.001)


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


async def test_one_line_when_it_begins_and_one_when_it_is_over(trouble, caplog):
    """However many requests meet it; the last says how long it took, and how many."""
    for _ in range(100):
        trouble.failed("writes", away())
    assert isinstance(trouble.now, StoreUnavailable)
    await asyncio.sleep(0.2)
    trouble.failed("writes", away(), requests=20)
    trouble.worked("writes")
    trouble.worked("writes")
    assert trouble.now is not None
    await over(trouble)
    begins, ends = lines(caplog)

    assert "the session store is in trouble: writes fail: no route to the host" == (
        begins
    )
    assert ["ERROR", "WARNING"] == [record.levelname for record in caplog.records]
    seconds, count = re.findall(r"after ([\d.]+) seconds; (\d+) requests", ends)[0]
    assert "120" == count
    assert 0.1 <= float(seconds) <= 2


async def test_all_is_well_costs_nothing(trouble, caplog):
    """Success without trouble is not counted, and starts no timer."""
    for kind in ("reads", "writes", "locks"):
        trouble.worked(kind)

    assert trouble.now is None
    assert trouble._timer is None
    assert [] == lines(caplog)


async def test_another_reason_is_said_once(trouble, caplog):
    """Numbers make none (a port, a count); and two that take turns are two lines."""
    for number in range(50):
        trouble.failed("writes", away(f"port {number} refused"))
        trouble.failed("writes", away(f"no answer within 0.{number} seconds"))
        trouble.failed("writes", StoreError(f"port {number} refused"))

    assert [
        "the session store is in trouble: writes fail: port 0 refused",
        "the session store is in trouble: writes fail: no answer within 0.0 seconds",
        "the session store is in trouble: writes fail: port 0 refused",
    ] == lines(caplog)


async def test_reads_that_work_while_writes_fail_end_nothing(trouble, caplog):
    """A full disk, a server that is read-only: no line that takes turns."""
    for _ in range(5):
        trouble.failed("writes", away("read-only"))
        trouble.worked("reads")
        await asyncio.sleep(QUIET)
    assert trouble.now is not None
    assert 1 == len(lines(caplog))
    trouble.worked("writes")
    await over(trouble)

    assert 2 == len(lines(caplog))


async def test_it_is_over_when_all_kinds_work(trouble, caplog):
    """Not when the first of them does."""
    trouble.failed("reads", away())
    trouble.failed("writes", away())
    trouble.worked("reads")
    await asyncio.sleep(3 * QUIET)
    assert trouble.now is not None
    assert 2 == len(lines(caplog))
    trouble.worked("writes")
    await over(trouble)

    assert 3 == len(lines(caplog))
    assert "2 requests" in lines(caplog)[-1]


@pytest.mark.slow
async def test_it_is_not_over_while_it_fails_now_and_then(trouble, caplog, monkeypatch):
    """A quiet second is needed, or each success would be an end."""
    monkeypatch.setattr(module, "_QUIET", 0.25)  # a busy machine pauses for long
    for _ in range(30):
        trouble.failed("writes", away())
        trouble.worked("writes")
        await asyncio.sleep(0.01)
    assert trouble.now is not None
    await over(trouble)

    assert 2 == len(lines(caplog))


async def test_a_failure_after_a_success_waits_for_the_next_success(trouble, caplog):
    """Silence alone is no end: perhaps nobody asks."""
    trouble.failed("writes", away())
    trouble.worked("writes")
    trouble.failed("writes", away())
    await asyncio.sleep(3 * QUIET)
    assert trouble.now is not None
    trouble.worked("writes")
    await over(trouble)

    assert 2 == len(lines(caplog))


async def test_a_lock_that_did_not_come_is_over_with_the_next_write(trouble):
    """A read says nothing about it."""
    with pytest.raises(LockTimeout), trouble.watch("writes"):
        raise LockTimeout
    trouble.worked("reads")
    await asyncio.sleep(2 * QUIET)
    assert isinstance(trouble.now, LockTimeout)
    trouble.worked("writes")
    await over(trouble)


async def test_the_next_trouble_is_another(trouble, caplog):
    """Said anew, and counted from its own beginning."""
    for count in (3, 2):
        for _ in range(count):
            trouble.failed("reads", away())
        trouble.worked("reads")
        await over(trouble)

    assert ["3 requests", "2 requests"] == re.findall(r"\d requests", caplog.text)
    assert 4 == len(lines(caplog))


async def test_whoever_watches_hears_of_it(trouble):
    """The beginning, each change, and the end: for a metric or an alarm of yours."""
    heard: list[tuple[str, Any]] = []
    trouble.tell = Events(lambda name, info: heard.append((name, info)))
    for _ in range(3):
        trouble.failed("reads", away())
        trouble.failed("reads", away("too many connections"))
    trouble.worked("reads")
    await over(trouble)

    assert ["store.trouble", "store.trouble", "store.works"] == [
        name for name, _ in heard
    ]
    assert {
        "kind": "reads",
        "error": "StoreUnavailable",
        "message": "no route to the host",
    } == heard[0][1]
    assert 6 == heard[2][1]["requests"]


async def test_a_block_that_is_watched(trouble):
    """What works and what fails in it; what is no trouble of the store passes."""
    for error in (SessionGone(), ValueError(), asyncio.CancelledError()):
        with pytest.raises(type(error)), trouble.watch("writes"):
            raise error
    assert not trouble._now
    with pytest.raises(StoreUnavailable), trouble.watch("writes"):
        raise away()
    assert {"writes"} == trouble._now.keys()
    watch = trouble.watch("writes")
    with watch, watch:
        pass
    await over(trouble)


# -- the guard -------------------------------------------------------------------------


async def test_a_store_that_tells_nothing_is_told_of(caplog):
    """A store of one's own, the one in memory: the manager says what it meets."""
    store = TroubledStore()
    manager = make_manager(store)
    session = await load_session(manager, [])
    session["a"] = 1
    await session.save()
    [cookie] = manager.cookies(session)
    store.failing = "load save"
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await load_session(manager, [cookie.partition(";")[0]])
        session["a"] += 1
        with pytest.raises(StoreUnavailable):
            await session.save()
    assert 2 == len(lines(caplog))
    store.failing = ""
    await load_session(manager, [cookie.partition(";")[0]])
    await session.save()
    await over(manager._committer._guard.trouble)

    assert 3 == len(lines(caplog))
    assert "10 requests were refused" in lines(caplog)[-1]


async def test_a_store_that_tells_is_not_told_of_twice(trouble, caplog):
    """But for what it cannot know: that it did not answer, or failed in another way."""
    guard = Guard(0.02, trouble)

    async def fails(error):
        raise error

    with pytest.raises(StoreUnavailable):
        await guard(fails(away()))
    assert trouble.now is None
    with pytest.raises(StoreUnavailable, match="did not answer within"):
        await guard(asyncio.sleep(60), "reads")
    with pytest.raises(StoreError, match="ValueError"):
        await guard(fails(ValueError("hunter2")))

    assert 2 == len(lines(caplog))
    assert "hunter2" not in caplog.text
