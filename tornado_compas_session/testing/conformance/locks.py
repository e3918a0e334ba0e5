"""Sessions that are held."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.exceptions import LockTimeout
from tornado_compas_session.testing.conformance import ways
from tornado_compas_session.testing.conformance.bench import (
    Bench,
    change,
    some_hash,
)


async def _add(store: Any, handle: str, timeout: float) -> None:
    """Counts, as a block that reads and writes."""
    async with store.lock(handle, 0, timeout) as locked:
        number = json.loads(locked.record.data)["n"]
        await locked.save(change({"n": number + 1}))


class LocksSuite:
    """Sessions that are held."""

    async def test_a_lock_shows_the_session_as_it_is(self, bench: Bench) -> None:
        """All that a load shows."""
        handle = await bench.created({"n": 1}, own=True, own_idle=60)
        await bench.signed_in(handle, "ada")
        found = await bench.state(handle)
        async with bench.store.lock(handle, 1, 5) as locked:
            assert found == locked.record._replace(now=0.0)

    async def test_locked_increments_add_up(self, bench: Bench) -> None:
        """Of parallel requests, each sees what the one before has written (R1)."""
        handle = await bench.created()

        await asyncio.gather(*[_add(each, handle, 20) for each in bench.stores * 10])

        assert {"n": 20} == await bench.data_of(handle)

    @pytest.mark.parametrize("timeout", [0, 0.1])
    async def test_a_lock_that_does_not_come_is_a_timeout(
        self, bench: Bench, timeout: float
    ) -> None:
        """
        And changes nothing, wherever it was asked for; the holder goes on. Where nobody
        holds it, no time is enough.
        """
        handle = await bench.created()
        loop = asyncio.get_running_loop()
        async with bench.store.lock(handle, 0, 5) as locked:
            for store in bench.stores:
                began = loop.time()
                with pytest.raises(LockTimeout):
                    # In a task of its own, as another request is.
                    await asyncio.ensure_future(_add(store, handle, timeout))
                assert loop.time() - began < 1 + timeout
            await locked.save(change({"n": 10}))
        for store in bench.stores:
            await _add(store, handle, timeout)
        assert {"n": 12} == await bench.data_of(handle)

    @ways.each(ways.ALL)
    async def test_a_save_waits_for_the_lock(self, bench: Bench, way: ways.Way) -> None:
        """
        And whatever else writes: nothing slips in between the reading and the writing
        of a block. It comes after what the block has left; after a sign-in it finds
        nothing, though it began before.
        """
        for identity in (None, Identity("ada")):
            record = await bench.loaded({"n": 0})
            async with bench.store.lock(record.handle, 0, 5) as locked:
                others = [
                    asyncio.ensure_future(way(store, record, change({"late": True})))
                    for store in bench.stores
                ]
                await asyncio.sleep(0.05)
                assert not any(other.done() for other in others)
                if identity is None:
                    await locked.save(change({"n": 10}))
                else:
                    secret = NewSecret(record.secret_hash, some_hash(), identity)
                    await locked.regenerate(secret, change({"n": 10}))
            found = await asyncio.gather(*others)
            left = await bench.data_of(record.handle)
            if identity is not None:
                assert not any(found)
                assert {"n": 10} == left
            else:
                assert any(found)
                assert left in (None, {"n": 10, "late": True}, {"n": 12})

    async def test_a_block_that_fails_has_written_nothing(self, bench: Bench) -> None:
        """And its own error comes out, not one about the database."""
        before = await bench.loaded()
        secret = NewSecret(before.secret_hash, some_hash(), Identity("a"))

        for error in (OSError, TimeoutError, ValueError, KeyError):
            with pytest.raises(error, match="mine"):
                async with bench.store.lock(before.handle, 0, 5) as locked:
                    await locked.save(change({"n": 1}))
                    await locked.regenerate(secret, change({"user_id": "a"}))
                    raise error("mine")
            with pytest.raises(error, match="mine"):
                async with bench.store.lock(before.handle, 0, 5) as locked:
                    await locked.delete()
                    raise error("mine")

        assert before._replace(now=0.0) == await bench.state(before.handle)
        assert await ways.locked_end(bench.store, before, change())

    async def test_a_cancelled_block_frees_the_lock(self, bench: Bench) -> None:
        """The next one gets it, and finds nothing of the first."""
        handle = await bench.created({"n": 0})
        inside = asyncio.Event()

        async def hold() -> None:
            async with bench.store.lock(handle, 0, 5) as locked:
                await locked.save(change({"n": 1}))
                inside.set()
                await asyncio.sleep(60)

        holder = asyncio.ensure_future(hold())
        await inside.wait()
        holder.cancel()
        async with bench.store.lock(handle, 0, 10) as locked:
            assert {"n": 0} == json.loads(locked.record.data)
