"""Whoever is cut off at any moment takes nothing along: no place, no lock, no write."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.drivers import DRIVERS, make_store
from tests.factories import load_session, make_manager
from tests.reliability.load import settled
from tornado_compas_session import SessionGone, StoreError
from tornado_compas_session.stores.rowqueue import RowQueue

pytestmark = pytest.mark.slow

POOL = 6
SESSIONS = 3


class Site:
    """Two processes, and what their requests know to have done."""

    def __init__(self, stores: list[Any], seed: int) -> None:
        self.stores = stores
        self.managers = [make_manager(each, timeout=3) for each in stores]
        self.chance = random.Random(seed)
        self.cookies: list[str] = []
        #: For each session: the keys that are kept, and the sums that were answered.
        self.kept: list[set[str]] = [set() for _ in range(SESSIONS)]
        self.sums: list[list[int]] = [[] for _ in range(SESSIONS)]
        #: How many additions it is not known of whether they happened.
        self.unknown = [0] * SESSIONS
        self.seen: Counter[str] = Counter()

    async def start(self) -> None:
        manager = self.managers[0]
        for _ in range(SESSIONS):
            session = await load_session(manager, [])
            session["first"] = True
            await manager.commit(session)
            self.cookies.append(manager.cookies(session)[0].partition(";")[0])

    async def request(self, key: str) -> None:
        """One request, which writes a key, and adds one in either way."""
        place = self.chance.randrange(SESSIONS)
        manager = self.chance.choice(self.managers)
        verb = self.chance.choice(["save", "increment", "lock", "regenerate", "lock"])
        pause = self.chance.random() * 0.004
        adds = verb in ("increment", "lock")
        number = 0
        self.unknown[place] += adds
        session = await load_session(manager, [self.cookies[place]])
        assert not session.is_new
        if verb == "increment":
            number = int(await session.increment("n"))
        elif verb == "lock":
            async with session.lock():
                number = session["n"] = session.get("n", 0) + 1
                await asyncio.sleep(pause)
                session[key] = True
        else:
            session[key] = True
            if verb == "regenerate":
                session.regenerate()
        if adds:
            self.unknown[place] -= 1
            self.sums[place].append(number)
        if verb == "lock":
            self.kept[place].add(key)
        session[key] = True
        try:
            await manager.commit(session)
        finally:
            # As the answer would: the cookie may arrive whatever becomes of the rest.
            for cookie in manager.cookies(session):
                self.cookies[place] = cookie.partition(";")[0]
        self.kept[place].add(key)

    async def one(self, key: str) -> None:
        """A request that is cut off, or not."""
        task = asyncio.ensure_future(self.request(key))
        if self.chance.random() < 0.6:
            seconds = self.chance.random() * self.chance.choice([0.002, 0.02, 0.2])
            asyncio.get_running_loop().call_later(seconds, task.cancel)
        try:
            await task
            self.seen["done"] += 1
        except asyncio.CancelledError:
            self.seen["cut off"] += 1
        except (StoreError, SessionGone) as error:
            self.seen[type(error).__name__] += 1

    async def content(self, place: int) -> dict[str, Any]:
        manager = self.managers[0]
        session = await load_session(manager, [self.cookies[place]])
        async with session.lock(timeout=1):
            return dict(session)


async def trial(driver: str, dsn: str, rounds: int) -> list[str]:
    """What is wrong after so many rounds of 30 requests at once."""
    stores = [await make_store(driver, dsn, size=POOL, timeout=3) for _ in range(2)]
    site = Site(stores, seed=12)
    wrong: list[str] = []
    try:
        await site.start()
        for number in range(rounds):
            await asyncio.gather(*(site.one(f"k{number}x{n}") for n in range(30)))
        async with asyncio.timeout(10):
            while any(store._database._abandoned for store in stores):
                await asyncio.sleep(0.02)
        for store in stores:
            if (
                len(store._rows.queue)
                or store._rows.queue.most != store._rows.queue._places._value
            ):
                wrong.append("a place is lost")
            for one in (store._loads, store._saves, store._creates, store._sums):
                if one.batcher.waiting or one.batcher.under_way:
                    wrong.append("a lane is lost")
        for place in range(SESSIONS):
            content = await site.content(place)
            sums = site.sums[place]
            if site.kept[place] - content.keys():
                wrong.append("a key is lost")
            if len(set(sums)) < len(sums):
                wrong.append("a sum was answered twice")
            if not 0 <= content.get("n", 0) - len(sums) <= site.unknown[place]:
                wrong.append("an addition is lost, or happened twice")
        if set(await settled(dsn, most=2 * POOL)) - {"idle"}:
            wrong.append("a transaction is open")
        print(f"{driver}: {dict(site.seen)}")
        wrong += site.seen.keys() - {"cut off", "done"}
        assert site.seen["cut off"] > 5 * rounds
        assert site.seen["done"] > 5 * rounds
    except StoreError as error:
        wrong.append(str(error))
    finally:
        for store in stores:
            with contextlib.suppress(StoreError):
                await store.close()
    return wrong


@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_no_place_is_lost_and_no_write(database: str, driver: str, long: bool):
    """
    Requests of two processes are cut off while they load, save, count, and wait for
    `lock()` or have it. Afterwards every place is free, no transaction is open, what
    was acknowledged is there, and no sum was answered twice.
    """
    assert [] == await trial(driver, database, 100 if long else 12)


async def test_control_a_place_that_is_kept(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    """Where who is cut off keeps its place in the queue for a row, that is found."""
    turn = RowQueue.turn
    kept: list[Any] = []

    @contextlib.asynccontextmanager
    async def forgetful(self: Any, handle: str, deadline: float) -> AsyncIterator[None]:
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(turn(self, handle, deadline))
        try:
            yield
        except asyncio.CancelledError:
            if not kept:
                self._places._value -= 1  # it is not given back
                kept.append(handle)
            raise
        finally:
            await stack.aclose()

    monkeypatch.setattr(RowQueue, "turn", forgetful)

    assert "a place is lost" in await trial("connect", database, 12)
