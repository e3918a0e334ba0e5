"""When a session ends by itself."""

from __future__ import annotations

import asyncio

import pytest

from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.testing.conformance.bench import (
    HOUR,
    Bench,
    change,
    created,
    data_of,
    signed_in,
    some_hash,
    turned,
)


class LifetimesSuite:
    """When a session ends by itself."""

    async def test_reading_is_no_use(self, bench: Bench) -> None:
        """Loading never extends a session (LC-8)."""
        handle = await created(bench.store)
        bench.pass_time(HOUR / 2)
        await bench.store.load(handle)
        bench.pass_time(HOUR / 2 + 1)
        assert await bench.store.load(handle) is None

    async def test_a_renewal_extends_the_session(self, bench: Bench) -> None:
        """A change without data moves the expiry and the last use, and nothing else."""
        handle = await created(bench.store, {"n": 1})
        bench.pass_time(HOUR - 60)
        before = await bench.store.load(handle)

        saved = await bench.store.save(handle, 0, change())

        assert HOUR == pytest.approx(saved.expires - saved.now, abs=0.01)
        after = await bench.store.load(handle)
        assert saved.now == pytest.approx(after.used, abs=0.01)
        times = {"used": 0.0, "expires": 0.0, "now": 0.0}
        assert before._replace(**times) == after._replace(**times)
        bench.pass_time(HOUR - 60)
        assert {"n": 1} == await data_of(bench.store, handle)

    async def test_without_an_idle_time_the_expiry_stays(self, bench: Bench) -> None:
        """A fixed lifetime is not extended by writes."""
        handle = await created(bench.store)
        before = (await bench.store.load(handle)).expires
        saved = await bench.store.save(handle, 0, change({"n": 2}, idle=None))
        assert before == saved.expires
        done = await bench.store.increment(handle, 0, "n", "1", change(idle=None))
        assert before == done.saved.expires
        saved = await turned(bench.store, handle, idle=None)
        assert before == saved.expires

    async def test_the_absolute_lifetime_bounds_every_renewal(
        self, bench: Bench
    ) -> None:
        """However often a session is used, and whoever signs in to it (LC-7)."""
        store, absolute = bench.store, 2 * HOUR
        handle = await created(store, absolute=absolute)
        bench.pass_time(HOUR / 2)
        await store.save(handle, 0, change(absolute=absolute))
        bench.pass_time(HOUR / 2)
        await store.increment(handle, 0, "n", "1", change(absolute=absolute))
        bench.pass_time(HOUR / 2)
        signed = await signed_in(store, handle, "ada", absolute=absolute)
        saved = await store.save(handle, 1, change(absolute=absolute))

        record = await store.load(handle)
        assert absolute == pytest.approx(saved.expires - record.created, abs=0.01)
        assert signed.expires == saved.expires
        bench.pass_time(HOUR / 2 + 1)
        assert await store.save(handle, 1, change(absolute=absolute)) is None

    async def test_a_session_can_have_lifetimes_of_its_own(self, bench: Bench) -> None:
        """They win over those of a change, also of one that does not know them."""
        handle = await created(bench.store, own=True, own_idle=60)
        bench.pass_time(30)
        saved = await bench.store.save(handle, 0, change({"n": 1}))
        assert 60 == pytest.approx(saved.expires - saved.now, abs=0.01)
        done = await bench.store.increment(handle, 0, "n", "1", change())
        assert 60 == pytest.approx(done.saved.expires - done.saved.now, abs=0.01)

        # Negative: the same lifetime, and a cookie that ends with the browser.
        own = change(own=True, own_idle=-90, own_absolute=100)
        saved = await bench.store.save(handle, 0, own)
        assert 70 == pytest.approx(saved.expires - saved.now, abs=3)
        record = await bench.store.load(handle)
        assert (-90, 100) == (record.own_idle, record.own_absolute)
        saved = await turned(bench.store, handle)
        assert 70 == pytest.approx(saved.expires - saved.now, abs=3)

        saved = await bench.store.save(handle, 0, change(own=True))
        assert HOUR == pytest.approx(saved.expires - saved.now, abs=0.01)

    async def test_expired_is_not_there(self, bench: Bench) -> None:
        """For no verb, and no write brings it back (LC-3)."""
        store = bench.store
        handle = await created(store, {"user_id": "ada"})
        mine = (await store.load(handle)).secret_hash
        bench.pass_time(HOUR + 1)

        assert await store.load(handle) is None
        assert await store.save(handle, 0, change({"n": 1})) is None
        for identity in (None, Identity("ada"), Identity("ada", 3)):
            secret = NewSecret(mine, some_hash(), identity)
            assert await store.regenerate(handle, 0, secret, change()) is None
        assert await store.increment(handle, 0, "n", "1", change()) is None
        assert not await store.delete(handle, 0)
        async with store.lock(handle, 0, 5) as locked:
            assert locked is None
        assert await store.load(handle) is None

    async def test_an_expiry_in_a_batch_is_of_one_session(self, bench: Bench) -> None:
        """Of what goes out together, some is there and some is not."""
        store = bench.store
        short = [await created(store) for _ in range(3)]
        long = [await created(store, idle=2 * HOUR) for _ in range(3)]
        bench.pass_time(HOUR + 1)

        for ask in (
            store.load,
            lambda handle: store.save(handle, 0, change({"n": 1})),
            lambda handle: store.increment(handle, 0, "n", "1", change()),
        ):
            answers = await asyncio.gather(*map(ask, short + long))
            assert [False] * 3 + [True] * 3 == [each is not None for each in answers]
