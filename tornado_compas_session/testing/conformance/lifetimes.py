"""When a session ends by itself."""

from __future__ import annotations

from typing import Any

import pytest

from tornado_compas_session.testing.conformance import ways
from tornado_compas_session.testing.conformance.bench import (
    HOUR,
    Bench,
    change,
)

#: What a session is made with, what a write says half an hour later, and how many
#: seconds it lives from then on.
LIFETIMES: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    ({}, {}, 3600),
    ({}, {"idle": 60}, 60),
    # Fixed; and bounded, however often it is used (LC-7).
    ({}, {"idle": None}, 1800),
    ({}, {"absolute": 4000}, 2200),
    # One's own win over those of a change, also of one that does not know them.
    ({"own": True, "own_idle": 3000}, {}, 3000),
    ({"own": True, "own_idle": 3000}, {"idle": None}, 1200),
    ({"own": True, "own_absolute": 4000}, {"absolute": 90_000}, 2200),
    ({}, {"own": True, "own_idle": 60}, 60),
    # Negative: the same lifetime, and a cookie that ends with the browser.
    ({}, {"own": True, "own_idle": -60}, 60),
    ({"own": True, "own_idle": -3000, "own_absolute": 4000}, {}, 2200),
    ({"own": True, "own_idle": 3000, "own_absolute": 3000}, {"own": True}, 3600),
]


class LifetimesSuite:
    """When a session ends by itself."""

    async def test_reading_is_no_use(self, bench: Bench) -> None:
        """Loading never extends a session (LC-8)."""
        handle = await bench.created()
        bench.pass_time(HOUR / 2)
        await bench.store.load(handle)
        bench.pass_time(HOUR / 2 + 1)
        assert await bench.store.load(handle) is None

    @ways.each(ways.WRITES)
    async def test_a_session_can_have_lifetimes_of_its_own(
        self, bench: Bench, way: ways.Way
    ) -> None:
        """Else it has those of the write; each write says how long it lives now."""
        store = bench.store
        records = [await bench.loaded(**made) for made, _, _ in LIFETIMES]
        bench.pass_time(HOUR / 2)

        for before, (_, said, seconds) in zip(records, LIFETIMES, strict=True):
            saved = await way(store, before, change(**said))

            after = await store.load(before.handle)
            assert saved.expires == after.expires, said
            assert seconds == pytest.approx(saved.expires - saved.now, abs=3), said
            assert saved.now == pytest.approx(after.used, abs=0.01)
            own = before.own_idle, before.own_absolute
            if said.get("own"):
                own = said.get("own_idle"), said.get("own_absolute")
            assert own == (after.own_idle, after.own_absolute)
