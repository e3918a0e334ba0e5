"""Sessions that are ended, and sessions that are held."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.exceptions import LockTimeout
from tornado_compas_session.testing.conformance.bench import (
    Bench,
    change,
    created,
    data_of,
    live,
    signed_in,
    some_hash,
    turned,
)


class LocksSuite:
    """Sessions that are ended, and sessions that are held."""

    async def test_delete_ends_the_session(self, bench: Bench) -> None:
        """For good; a second time is fine (LC-2)."""
        handle = await created(bench.store)

        assert await bench.store.delete(handle, 0)
        assert not await bench.store.delete(handle, 0)
        assert await bench.store.load(handle) is None
        assert await bench.store.save(handle, 0, change({"n": 1})) is None

    async def test_delete_needs_no_secret(self, bench: Bench) -> None:
        """A slow sign-out ends the session, however often its id was renewed."""
        handle = await created(bench.store)
        for _ in range(3):
            await turned(bench.store, handle)
        assert await bench.store.delete(handle, 0)
        assert await bench.store.load(handle) is None

    async def test_a_deleted_session_never_comes_back(self, bench: Bench) -> None:
        """Whatever was being written at the same moment (LC-3, R3)."""
        store = bench.store
        handles = []
        for _ in range(10):
            handles.append(await created(store))
            secret = NewSecret((await store.load(handles[-1])).secret_hash, some_hash())
            await asyncio.gather(
                *[store.save(handles[-1], 0, change({"n": n})) for n in range(5)],
                store.increment(handles[-1], 0, "n", "1", change()),
                bench.elsewhere.delete(handles[-1], 0),
                store.regenerate(handles[-1], 0, secret, change()),
                *[store.save(handles[-1], 0, change({"m": n})) for n in range(5)],
            )
            assert await store.load(handles[-1]) is None
        assert [False] * 10 == await live(store, *handles)

    async def test_a_lock_shows_the_session_as_it_is(self, bench: Bench) -> None:
        """All that a load shows."""
        handle = await created(bench.store, {"n": 1}, own=True, own_idle=60)
        await signed_in(bench.store, handle, "ada")
        found = await bench.store.load(handle)
        async with bench.store.lock(handle, 1, 5) as locked:
            assert found._replace(now=0.0) == locked.record._replace(now=0.0)

    async def test_locked_increments_add_up(self, bench: Bench) -> None:
        """Of parallel requests, each sees what the one before has written (R1)."""
        handle = await created(bench.store, {"n": 0})

        async def increment(store: Any) -> None:
            async with store.lock(handle, 0, 20) as locked:
                number = json.loads(locked.record.data)["n"]
                await locked.save(change({"n": number + 1}))

        await asyncio.gather(
            *[
                increment(store)
                for _ in range(10)
                for store in (bench.store, bench.elsewhere)
            ]
        )

        assert {"n": 20} == await data_of(bench.store, handle)

    async def test_a_lock_that_does_not_come_is_a_timeout(self, bench: Bench) -> None:
        """And changes nothing, wherever it was asked for; the holder goes on."""
        handle = await created(bench.store)
        async with bench.store.lock(handle, 0, 5) as locked:
            for store in (bench.store, bench.elsewhere):
                with pytest.raises(LockTimeout):
                    # In a task of its own, as another request is.
                    await asyncio.ensure_future(_hold(store, handle, 0.1))
            await locked.save(change({"n": 1}))
        assert {"n": 1} == await data_of(bench.store, handle)

    async def test_a_lock_with_no_time_is_had_at_once_or_not_at_all(
        self, bench: Bench
    ) -> None:
        """`timeout=0` works where nobody holds it, and does not wait elsewhere."""
        handle = await created(bench.store)
        for store in (bench.store, bench.elsewhere):
            async with store.lock(handle, 0, 0) as locked:
                await locked.save(change({"n": 1}))
        loop = asyncio.get_running_loop()
        async with bench.store.lock(handle, 0, 5):
            for store in (bench.store, bench.elsewhere):
                began = loop.time()
                with pytest.raises(LockTimeout):
                    await asyncio.ensure_future(_hold(store, handle, 0))
                assert loop.time() - began < 1
        assert {"n": 1} == await data_of(bench.store, handle)

    async def test_a_lock_that_has_time_is_waited_for(self, bench: Bench) -> None:
        """With as many seconds as it is given."""
        handle = await created(bench.store)
        async with bench.store.lock(handle, 0, 5):
            waiting = asyncio.ensure_future(_hold(bench.elsewhere, handle, 15))
            await asyncio.sleep(0.2)
            assert not waiting.done()
        assert await waiting

    async def test_an_epoch_is_looked_at_once_the_lock_is_had(
        self, bench: Bench
    ) -> None:
        """Who waited while somebody signed in finds nothing."""
        handle = await created(bench.store)
        async with bench.store.lock(handle, 0, 5) as locked:
            waiting = asyncio.ensure_future(_hold(bench.elsewhere, handle, 15))
            await asyncio.sleep(0.05)
            mine = locked.record.secret_hash
            secret = NewSecret(mine, some_hash(), Identity("ada"), signed_in=True)
            await locked.regenerate(secret, change({"user_id": "ada"}))
        assert not await waiting
        assert {"n": 0, "user_id": "ada"} == await data_of(bench.store, handle)

    async def test_a_save_waits_for_the_lock(self, bench: Bench) -> None:
        """Nothing slips in between the reading and the writing of a block."""
        handle = await created(bench.store, {"n": 0})
        async with bench.store.lock(handle, 0, 5) as locked:
            others = [
                asyncio.ensure_future(store.save(handle, 0, change({f"k{n}": True})))
                for n, store in enumerate((bench.store, bench.elsewhere))
            ]
            await asyncio.sleep(0.05)
            assert not any(other.done() for other in others)
            await locked.save(change({"n": 1}))
        await asyncio.gather(*others)
        assert {"n": 1, "k0": True, "k1": True} == await data_of(bench.store, handle)

    async def test_an_end_waits_for_the_lock(self, bench: Bench) -> None:
        """It comes after what the block writes; after a sign-in it finds nothing."""
        for signs_in in (False, True):
            handle = await created(bench.store, {"n": 0})
            async with bench.store.lock(handle, 0, 5) as locked:
                others = [
                    asyncio.ensure_future(store.delete(handle, 0))
                    for store in (bench.store, bench.elsewhere)
                ]
                await asyncio.sleep(0.05)
                assert not any(other.done() for other in others)
                mine = locked.record.secret_hash
                identity = Identity("ada") if signs_in else None
                secret = NewSecret(mine, some_hash(), identity)
                await locked.regenerate(secret, change({"n": 1}))
            assert (0 if signs_in else 1) == sum(await asyncio.gather(*others))
            assert [signs_in] == await live(bench.store, handle)

    async def test_a_block_can_give_a_new_secret(self, bench: Bench) -> None:
        """A sign-in inside of a lock, as one outside."""
        handle = await created(bench.store, {"n": 0})
        new = some_hash()
        async with bench.store.lock(handle, 0, 5) as locked:
            secret = NewSecret(locked.record.secret_hash, new, Identity("ada"), True)
            saved = await locked.regenerate(secret, change({"user_id": "ada"}))
        record = await bench.store.load(handle)
        assert (new, 1, None) == (record.secret_hash, record.epoch, record.shown)
        assert saved.authenticated == record.authenticated is not None

    async def test_a_block_can_end_the_session(self, bench: Bench) -> None:
        """And one that fails has not."""
        handle = await created(bench.store)
        with pytest.raises(OSError, match="mine"):
            async with bench.store.lock(handle, 0, 5) as locked:
                await locked.delete()
                raise OSError("mine")
        assert {"n": 0} == await data_of(bench.store, handle)
        async with bench.store.lock(handle, 0, 5) as locked:
            await locked.delete()
        assert await bench.store.load(handle) is None

    async def test_a_block_that_fails_has_written_nothing(self, bench: Bench) -> None:
        """And its own error comes out, not one about the database."""
        handle = await created(bench.store, {"n": 0})
        before = await bench.store.load(handle)

        for error in (OSError, TimeoutError, ValueError, KeyError):
            with pytest.raises(error, match="mine"):
                async with bench.store.lock(handle, 0, 5) as locked:
                    await locked.save(change({"n": 1}))
                    secret = NewSecret(before.secret_hash, some_hash(), Identity("a"))
                    await locked.regenerate(secret, change({"user_id": "a"}))
                    raise error("mine")

        after = await bench.store.load(handle)
        assert before._replace(now=0.0) == after._replace(now=0.0)
        async with bench.store.lock(handle, 0, 5) as locked:
            assert locked is not None

    async def test_a_cancelled_block_frees_the_lock(self, bench: Bench) -> None:
        """The next one gets it, and finds nothing of the first."""
        handle = await created(bench.store, {"n": 0})
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


async def _hold(store: Any, handle: str, timeout: float) -> bool:
    """Whether the lock was had, on a session that is there."""
    async with store.lock(handle, 0, timeout) as locked:
        return locked is not None
