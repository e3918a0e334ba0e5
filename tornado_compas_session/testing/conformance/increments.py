"""Numbers that many add to at once."""

from __future__ import annotations

import asyncio
import json

import pytest

from tornado_compas_session.core.types import Incremented
from tornado_compas_session.exceptions import SessionDataError
from tornado_compas_session.testing.conformance.bench import (
    AWKWARD_KEYS,
    HOUR,
    Bench,
    change,
    created,
    data_of,
)


class IncrementsSuite:
    """Numbers that many add to at once."""

    async def test_an_increment_adds(self, bench: Bench) -> None:
        """Absent counts as 0; the sum comes back, and the times with it."""
        store = bench.store
        handle = await created(store, {"kept": 1})
        bench.pass_time(HOUR / 2)

        done = await store.increment(handle, 0, "n", "5", change())

        assert isinstance(done, Incremented)
        assert "5" == done.text
        assert HOUR == pytest.approx(done.saved.expires - done.saved.now, abs=0.01)
        assert done.saved.expires == (await store.load(handle)).expires
        assert "3" == (await store.increment(handle, 0, "n", "-2", change())).text
        assert "0" == (await store.increment(handle, 0, "m", "0", change())).text
        assert {"kept": 1, "n": 3, "m": 0} == await data_of(store, handle)

    async def test_increments_at_once_are_all_counted(self, bench: Bench) -> None:
        """No count is lost, and each gets a sum of its own."""
        handle = await created(bench.store, {"n": 0})

        results = await asyncio.gather(
            *[
                store.increment(handle, 0, "n", "1", change())
                for _ in range(50)
                for store in (bench.store, bench.elsewhere)
            ]
        )

        assert list(range(1, 101)) == sorted(int(done.text) for done in results)
        assert {"n": 100} == await data_of(bench.store, handle)

    async def test_increments_at_once_by_different_numbers(self, bench: Bench) -> None:
        """Each sum is one that was there between two additions."""
        handle = await created(bench.store, {"n": 0})
        parts = [2**n * (-1) ** n for n in range(30)]

        results = await asyncio.gather(
            *[
                bench.store.increment(handle, 0, "n", str(part), change())
                for part in parts
            ]
        )

        # The order that the store took them in, told by the sums themselves.
        added = {
            int(done.text): part for part, done in zip(parts, results, strict=True)
        }
        assert len(parts) == len(added)
        reached = 0
        while added:
            [reached] = [total for total in added if total - added[total] == reached]
            del added[reached]
        assert {"n": reached} == await data_of(bench.store, handle)

    async def test_increments_of_several_keys_at_once(self, bench: Bench) -> None:
        """And saves of others beside them."""
        handle = await created(bench.store, {"a": 1})

        await asyncio.gather(
            *[
                bench.store.increment(handle, 0, key, str(n), change())
                for n in range(10)
                for key in ("a", "b", "c")
            ],
            *[bench.store.save(handle, 0, change({f"k{n}": n})) for n in range(5)],
        )

        assert {"a": 46, "b": 45, "c": 45, **{f"k{n}": n for n in range(5)}} == (
            await data_of(bench.store, handle)
        )

    async def test_increments_take_floats(self, bench: Bench) -> None:
        """Of a float, by a float, and both at once; ints stay ints."""
        store = bench.store
        handle = await created(store, {"f": 0.1, "i": 1})

        done = await store.increment(handle, 0, "f", "0.2", change())
        assert 0.3 == pytest.approx(json.loads(done.text))
        done = await store.increment(handle, 0, "f", "1", change())
        assert 1.3 == pytest.approx(json.loads(done.text))
        done = await store.increment(handle, 0, "i", "1.5e-3", change())
        assert 1.0015 == pytest.approx(json.loads(done.text))
        await asyncio.gather(
            *[store.increment(handle, 0, "sum", "0.1", change()) for _ in range(10)]
        )
        assert 1.0 == pytest.approx((await data_of(store, handle))["sum"])
        done = await store.increment(handle, 0, "n", "2", change())
        assert 2 == json.loads(done.text)
        assert isinstance(json.loads(done.text), int)

    async def test_increments_take_integers_of_any_size(self, bench: Bench) -> None:
        """Beyond what fits into a machine word or a float."""
        store, big = bench.store, 2**200
        handle = await created(store, {"n": big, "m": -big})

        assert big + 1 == int(
            (await store.increment(handle, 0, "n", "1", change())).text
        )
        done = await store.increment(handle, 0, "m", str(big + 1), change())
        assert "1" == done.text
        results = await asyncio.gather(
            *[store.increment(handle, 0, "k", str(big), change()) for _ in range(5)]
        )
        assert [big * n for n in range(1, 6)] == sorted(
            int(each.text) for each in results
        )
        data = await data_of(store, handle)
        assert {"n": big + 1, "m": 1, "k": 5 * big} == data

    async def test_only_numbers_can_be_added_to(self, bench: Bench) -> None:
        """Anything else is an error that names the key, and stays."""
        values = {
            "text": "5",
            "empty": "",
            "null": None,
            "true": True,
            "list": [1],
            "object": {"n": 1},
        }
        handle = await created(bench.store, values)

        for key in values:
            with pytest.raises(SessionDataError) as raised:
                await bench.store.increment(handle, 0, key, "1", change())
            assert key == raised.value.path
        # Those who come with it at the same moment are told each, or get their sum.
        results = await asyncio.gather(
            *[
                bench.store.increment(handle, 0, key, "1", change())
                for _ in range(3)
                for key in ("text", "n")
            ],
            return_exceptions=True,
        )

        assert 3 == sum(isinstance(each, SessionDataError) for each in results)
        assert values | {"n": 3} == await data_of(bench.store, handle)

    async def test_awkward_keys_are_keys(self, bench: Bench) -> None:
        """Neither a path nor a pattern nor a placeholder."""
        handle = await created(bench.store, {"a": {"b": 7}, "kept": [1]})

        for key in AWKWARD_KEYS:
            done = await bench.store.increment(handle, 0, key, "1", change())
            assert "1" == done.text
        await asyncio.gather(
            *[
                bench.store.increment(handle, 0, key, "1", change())
                for key in AWKWARD_KEYS
            ]
        )

        counted = dict.fromkeys(AWKWARD_KEYS, 2)
        assert {"a": {"b": 7}, "kept": [1], **counted} == await data_of(
            bench.store, handle
        )

    async def test_an_increment_waits_for_the_lock(self, bench: Bench) -> None:
        """It adds to what the block has left."""
        handle = await created(bench.store, {"n": 0})
        async with bench.store.lock(handle, 0, 5) as locked:
            other = asyncio.ensure_future(
                bench.elsewhere.increment(handle, 0, "n", "1", change())
            )
            await asyncio.sleep(0.05)
            assert not other.done()
            await locked.save(change({"n": 10}))
        assert "11" == (await other).text
