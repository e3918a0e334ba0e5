"""Numbers that many add to at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tornado_compas_session.exceptions import SessionDataError
from tornado_compas_session.testing.conformance.bench import (
    Bench,
    change,
)

BIG = 2**200  # beyond a machine word and what a float has digits for
#: Under each key what is there (None: nothing), and what is added. Keys that a path, a
#: pattern or a placeholder would take for something else are keys as well.
SUMS: dict[str, tuple[Any, Any]] = {
    "absent": (None, 5),
    "down": (3, -2),
    "nothing": (0, 0),
    "big": (BIG, 1),
    "across": (-BIG, BIG + 1),
    "bigger": (None, BIG),
    "floats": (0.1, 0.2),
    "a float and an int": (0.1, 1),
    "an int and a float": (1, 1.5e-3),
    **dict.fromkeys(
        ("", "a.b", "{a,b}", "0", "-1", "$.n", "%s", ":key", "?", "a\"b'c", "Grüße"),
        (None, 1),
    ),
    "\\": (None, 1),
}


class IncrementsSuite:
    """Numbers that many add to at once."""

    async def test_any_number_can_be_added_under_any_key(self, bench: Bench) -> None:
        """Alone, and at the same moment as others; ints stay ints, of any size."""
        kept = {"a": {"b": 7}, "kept": [1]}
        there = {key: old for key, (old, _) in SUMS.items() if old is not None}
        handle = await bench.created(kept | there)

        async def add(key: str) -> Any:
            by = json.dumps(SUMS[key][1])
            return json.loads(
                (await bench.store.increment(handle, 0, key, by, change())).text
            )

        alone = [await add(key) for key in SUMS]
        together = await asyncio.gather(*map(add, list(SUMS) * 2))

        expected = {key: (old or 0) + 3 * by for key, (old, by) in SUMS.items()}
        got = await bench.data_of(handle)
        assert kept == {key: got.pop(key) for key in kept}
        assert expected.keys() == got.keys()
        for n, (key, (old, by)) in enumerate(SUMS.items()):
            sums = [alone[n], *sorted(together[n :: len(SUMS)], reverse=by < 0)]
            for times, each in enumerate([*sums, got[key]], start=1):
                total = (old or 0) + min(times, 3) * by
                assert isinstance(total, int) == isinstance(each, int), key
                exactly = total if isinstance(total, int) else pytest.approx(total)
                assert exactly == each, key

    @pytest.mark.parametrize(
        "parts", [[1] * 60, [2**n * (-1) ** n for n in range(30)]], ids=["same", "many"]
    )
    async def test_increments_at_once_are_all_counted(
        self, bench: Bench, parts: list[int]
    ) -> None:
        """No count is lost, and each sum is one that was there between two others."""
        handle = await bench.created({"n": 0})
        stores = bench.stores

        results = await asyncio.gather(
            *[
                stores[n % 2].increment(handle, 0, "n", str(part), change())
                for n, part in enumerate(parts)
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
        assert {"n": reached} == await bench.data_of(handle)

    async def test_only_numbers_can_be_added_to(self, bench: Bench) -> None:
        """Anything else is an error that names the key, and stays."""
        no_numbers = "5", "", None, True, [1], {"n": 1}
        values = {f"k{n}": value for n, value in enumerate(no_numbers)}
        handle = await bench.created(values)

        for key in values:
            with pytest.raises(SessionDataError) as raised:
                await bench.store.increment(handle, 0, key, "1", change())
            assert key == raised.value.path
        # Those who come with it at the same moment are told each, or get their sum.
        results = await asyncio.gather(
            *[
                bench.store.increment(handle, 0, key, "1", change())
                for _ in range(3)
                for key in ("k0", "n")
            ],
            return_exceptions=True,
        )

        assert 3 == sum(isinstance(each, SessionDataError) for each in results)
        assert values | {"n": 3} == await bench.data_of(handle)
