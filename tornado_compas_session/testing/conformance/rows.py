"""What is kept is found again, as it was, and nothing else is."""

from __future__ import annotations

import asyncio
import json

import pytest

from tornado_compas_session.core.ids import new_handle
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.exceptions import HandleTaken
from tornado_compas_session.testing.conformance.bench import (
    AWKWARD,
    HOSTILE_HANDLES,
    HOUR,
    NO_HANDLES,
    Bench,
    change,
    created,
    data_of,
    some_hash,
)


class KeepingSuite:
    """What is kept is found again, as it was, and nothing else is."""

    async def test_it_is_a_store(self, bench: Bench) -> None:
        """The protocol is there."""
        assert isinstance(bench.store, SessionStore)

    async def test_what_is_created_is_loaded(self, bench: Bench) -> None:
        """The data come back as they were, with times of the store's clock."""
        handle, secret_hash = new_handle(), some_hash()

        saved = await bench.store.create(handle, secret_hash, change({"cart": [1, 2]}))

        record = await bench.store.load(handle)
        assert (handle, secret_hash, None, 0) == (
            record.handle,
            record.secret_hash,
            record.former_hash,
            record.epoch,
        )
        assert {"cart": [1, 2]} == json.loads(record.data)
        assert saved.expires == record.expires
        assert HOUR == pytest.approx(record.expires - record.created, abs=0.01)
        assert record.created == record.used <= record.now < record.expires
        assert record.authenticated is None is saved.authenticated

    async def test_who_makes_a_session_shows_its_secret(self, bench: Bench) -> None:
        """What is new needs no second request to be in use."""
        record = await bench.store.load(await created(bench.store))
        assert record.created == record.turned == record.shown

    async def test_awkward_data_come_back_unchanged(self, bench: Bench) -> None:
        """Neither placeholders, quotes nor numbers are touched (ID-5, ST-2)."""
        handle = await created(bench.store, AWKWARD)
        again = {f"{key}, saved": value for key, value in AWKWARD.items()}
        await bench.store.save(handle, 0, change(again))

        assert AWKWARD | again == await data_of(bench.store, handle)
        await bench.store.save(handle, 0, change({}, removed=tuple(AWKWARD)))
        assert again == await data_of(bench.store, handle)

    async def test_a_hostile_handle_is_a_value_and_nothing_else(
        self, bench: Bench
    ) -> None:
        """Handles find what was kept under them, whatever they look like (ID-5)."""
        kept = await created(bench.store)
        for handle in HOSTILE_HANDLES + NO_HANDLES:
            assert await bench.store.load(handle) is None
            assert await bench.store.save(handle, 0, change({"n": 1})) is None
            assert not await bench.store.delete(handle, 0)
        for handle in HOSTILE_HANDLES:
            await bench.store.create(handle, some_hash(), change({"mine": handle}))
        for handle in HOSTILE_HANDLES:
            assert {"mine": handle} == await data_of(bench.store, handle)
        assert {"n": 0} == await data_of(bench.store, kept)

    async def test_create_never_overwrites(self, bench: Bench) -> None:
        """A taken handle is an error, and the session that has it stays (ID-6)."""
        handle = await created(bench.store, {"whose": "first"})
        before = await bench.store.load(handle)

        for identity in (None, Identity("ada"), Identity("ada", 1)):
            with pytest.raises(HandleTaken):
                await bench.store.create(
                    handle, some_hash(), change({"whose": "second"}), identity
                )

        after = await bench.store.load(handle)
        assert {"whose": "first"} == json.loads(after.data)
        assert before.secret_hash == after.secret_hash

    async def test_of_many_creates_with_one_handle_one_succeeds(
        self, bench: Bench
    ) -> None:
        """Also when they come at the same moment."""
        handle = new_handle()

        results = await asyncio.gather(
            *[
                store.create(handle, some_hash(), change({"n": n}))
                for n in range(5)
                for store in (bench.store, bench.elsewhere)
            ],
            return_exceptions=True,
        )

        assert 9 == sum(isinstance(result, HandleTaken) for result in results)

    async def test_absent_is_none_everywhere(self, bench: Bench) -> None:
        """Only `create` makes a session (ID-3)."""
        handle = new_handle()
        secret = NewSecret(some_hash(), some_hash())
        signs_in = secret._replace(identity=Identity("ada", 3), signed_in=True)

        assert await bench.store.load(handle) is None
        assert await bench.store.save(handle, 0, change({"n": 1})) is None
        assert await bench.store.regenerate(handle, 0, secret, change()) is None
        assert await bench.store.regenerate(handle, 0, signs_in, change()) is None
        assert await bench.store.increment(handle, 0, "n", "1", change()) is None
        assert not await bench.store.delete(handle, 0)
        async with bench.store.lock(handle, 0, 5) as locked:
            assert locked is None
        assert await bench.store.load(handle) is None

    async def test_a_save_merges_by_key(self, bench: Bench) -> None:
        """Set, removed and untouched keys."""
        handle = await created(bench.store, {"kept": 1, "set": 1, "removed": 1})

        await bench.store.save(
            handle,
            0,
            change({"set": 2, "new": {"a": 1}}, removed=("removed", "none")),
        )

        assert {"kept": 1, "set": 2, "new": {"a": 1}} == await data_of(
            bench.store, handle
        )

    async def test_a_save_can_replace_everything(self, bench: Bench) -> None:
        """As after `session.clear()`."""
        handle = await created(bench.store, {"old": 1})
        await bench.store.save(handle, 0, change({"new": 2}, replace=True))
        assert {"new": 2} == await data_of(bench.store, handle)
        await bench.store.save(handle, 0, change({}, replace=True))
        assert {} == await data_of(bench.store, handle)

    async def test_parallel_writers_keep_each_others_keys(self, bench: Bench) -> None:
        """Whoever writes another key at the same moment (R2)."""
        handle = await created(bench.store, {"n": 0})

        await asyncio.gather(
            *[
                store.save(handle, 0, change({f"key {n} {place}": n}))
                for n in range(20)
                for place, store in enumerate((bench.store, bench.elsewhere))
            ]
        )

        keys = {f"key {n} {place}": n for n in range(20) for place in range(2)}
        assert {"n": 0, **keys} == await data_of(bench.store, handle)

    async def test_many_sessions_at_once_stay_apart(self, bench: Bench) -> None:
        """What shares a query shares nothing else (R12)."""
        handles = [new_handle() for _ in range(100)]
        hashes = {handle: some_hash() for handle in handles}
        await asyncio.gather(
            *[
                bench.store.create(each, hashes[each], change({"mark": each}))
                for each in handles
            ]
        )
        await asyncio.gather(
            *[
                bench.store.save(each, 0, change({"again": each, "n": 0}))
                for each in handles
            ]
        )
        sums = await asyncio.gather(
            *[
                bench.store.increment(each, 0, "n", str(n), change())
                for n, each in enumerate(handles)
            ]
        )
        records = await asyncio.gather(*map(bench.store.load, handles * 3))

        assert [str(n) for n in range(100)] == [each.text for each in sums]
        assert [(each, hashes[each]) for each in handles * 3] == [
            (record.handle, record.secret_hash) for record in records
        ]
        assert [
            {"mark": each, "again": each, "n": n} for n, each in enumerate(handles)
        ] * 3 == [json.loads(record.data) for record in records]
