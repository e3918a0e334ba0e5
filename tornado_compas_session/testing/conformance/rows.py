"""What is kept is found again, as it was, and nothing else is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tornado_compas_session.core.ids import new_handle
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.core.types import Identity
from tornado_compas_session.exceptions import HandleTaken, StoreUnavailable
from tornado_compas_session.testing.conformance import ways
from tornado_compas_session.testing.conformance.bench import (
    HOUR,
    Bench,
    change,
    some_hash,
)

#: Values that a careless statement, driver or JSON parser trips over.
AWKWARD: dict[str, Any] = {
    "": "an empty key",
    "quotes": 'it\'s "quoted" \\ back\\\\slashed \\u0041',
    "placeholders": "%s %(a)s %% $1 :name ::text ? {} ${x}",
    "unicode": "Grüße, 世界, \U0001f36a, \u2028",
    "key 'with' \"quotes\" %s": 1,
    "big": 2**80,
    "small": -(2**63),
    "float": 0.1,
    "exponent": 1.5e-30,
    "nothing": None,
    "nested": {"list": [1, [2, {"three": [True, False, None]}]], "empty": {}},
    "long": "x" * 20_000,
}
#: Of the length of a handle, and not of its characters.
HOSTILE_HANDLES = ("' OR '1'='1'", "%s %(a)s %%s", "$1 $2 :id ::", "-- ; \\ \"' {}")
#: No handles at all.
NO_HANDLES = ("", "x", "x" * 100_000, "ü" * 12, "g" * 32, "0" * 64)


class KeepingSuite:
    """What is kept is found again, as it was, and nothing else is."""

    async def test_it_is_a_store(self, bench: Bench) -> None:
        """The protocol is there."""
        assert isinstance(bench.store, SessionStore)

    async def test_what_is_created_is_loaded(self, bench: Bench) -> None:
        """
        The data come back as they were, with times of the store's clock; and whoever
        makes a session shows its secret, without a second request.
        """
        store = bench.store
        handle, secret_hash = new_handle(), some_hash()

        saved = await store.create(handle, secret_hash, change({"cart": [1, 2]}))

        record = await store.load(handle)
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
        assert record.created == record.turned == record.shown
        assert record.authenticated is None is saved.authenticated

    async def test_awkward_data_come_back_unchanged(self, bench: Bench) -> None:
        """Neither placeholders, quotes nor numbers are touched (ID-5, ST-2)."""
        handle = await bench.created(AWKWARD)
        again = {f"{key}, saved": value for key, value in AWKWARD.items()}
        await bench.store.save(handle, 0, change(again))

        assert AWKWARD | again == await bench.data_of(handle)
        await bench.store.save(handle, 0, change({}, removed=tuple(AWKWARD)))
        assert again == await bench.data_of(handle)

    async def test_a_hostile_handle_is_a_value_and_nothing_else(
        self, bench: Bench
    ) -> None:
        """Handles find what was kept under them, whatever they look like (ID-5)."""
        store = bench.store
        kept = await bench.loaded()
        for handle in HOSTILE_HANDLES + NO_HANDLES:
            assert await store.load(handle) is None
            for way in (ways.save, ways.end):
                assert not await way(store, kept._replace(handle=handle), change())
        for handle in HOSTILE_HANDLES:
            await store.create(handle, some_hash(), change({"mine": handle}))
        for handle in HOSTILE_HANDLES:
            assert {"mine": handle} == await bench.data_of(handle)
        assert {"n": 0} == await bench.data_of(kept.handle)

    async def test_create_never_overwrites(self, bench: Bench) -> None:
        """
        A taken handle is an error, and the session that has it stays (ID-6); of many
        that come with one at the same moment, one has it.
        """
        handle = new_handle()
        before = None
        identities = None, Identity("ada"), Identity("ada", 1)

        async def create(n: int) -> None:
            store, identity = bench.stores[n % 2], identities[n % 3]
            await store.create(handle, some_hash(), change({"n": n}), identity)

        for taken in (11, 12):
            before = await bench.state(handle)
            tries = await asyncio.gather(
                *map(create, range(12)), return_exceptions=True
            )
            assert taken == sum(isinstance(each, HandleTaken) for each in tries)
        assert before == await bench.state(handle)

    @pytest.mark.parametrize(
        "why", ["never made", "expired", "ended", "before a sign-in", "no such epoch"]
    )
    async def test_absent_is_none_everywhere(self, bench: Bench, why: str) -> None:
        """
        No way to write finds what is not there, or is another visitor's by now; none
        changes it, and none brings it back: only `create` makes a session (ID-3, LC-3).
        """
        store = bench.store
        record = await bench.loaded({"n": 0, "user_id": "ada"})
        if why == "never made":
            record = record._replace(handle=new_handle())
        elif why == "expired":
            bench.pass_time(HOUR + 1)
        elif why == "ended":
            assert await store.delete(record.handle, 0)
        elif why == "before a sign-in":
            await bench.signed_in(record.handle, "eve")
            record = (await store.load(record.handle))._replace(epoch=0)
        else:
            record = record._replace(epoch=1)
        before = await bench.state(record.handle)

        for name, way in ways.ALL.items():
            for late in (change(), change({"late": 1})):
                assert not await way(store, record, late), name

        there = why in ("before a sign-in", "no such epoch")
        assert there == (before is not None)
        assert before == await bench.state(record.handle)

    @ways.each(ways.SAVES | ways.TURNS)
    async def test_a_write_merges_by_key(self, bench: Bench, way: ways.Way) -> None:
        """Set, removed and untouched keys; or it replaces everything, if it says so."""
        handle = await bench.created({"kept": 1, "set": 1, "removed": 1})
        for written, left in (
            (change(), {"kept": 1, "set": 1, "removed": 1}),
            (
                change({"set": 2, "new": {"a": 1}}, removed=("removed", "none")),
                {"kept": 1, "set": 2, "new": {"a": 1}},
            ),
            (change({"n": 1}, replace=True), {"n": 1}),
            (change({}, replace=True), {}),
        ):
            assert await way(bench.store, await bench.store.load(handle), written)
            assert left == await bench.data_of(handle)

    async def test_parallel_writers_keep_each_others_keys(self, bench: Bench) -> None:
        """Whoever sets another key at the same moment, or adds to one (R2)."""
        handle = await bench.created({"a": 1})

        await asyncio.gather(
            *[
                store.save(handle, 0, change({f"key {n} {place}": n}))
                for n in range(20)
                for place, store in enumerate(bench.stores)
            ],
            *[
                bench.store.increment(handle, 0, key, str(n), change())
                for n in range(10)
                for key in ("a", "b", "c")
            ],
        )

        keys = {f"key {n} {place}": n for n in range(20) for place in range(2)}
        assert {"a": 46, "b": 45, "c": 45, **keys} == await bench.data_of(handle)

    async def test_many_sessions_at_once_stay_apart(self, bench: Bench) -> None:
        """What shares a query shares nothing else: neither data nor an end (R12)."""
        store = bench.store
        handles = [new_handle() for _ in range(60)]
        hashes = [some_hash() for _ in handles]

        async def at_once(ask: Callable[[int, str], Awaitable[Any]]) -> list[Any]:
            return await asyncio.gather(*map(ask, range(60), handles))

        # Of each four one is still there; one had another visitor, and two are over.
        idles = [2 * HOUR, HOUR, 2 * HOUR, HOUR] * 15
        await at_once(
            lambda n, each: store.create(
                each, hashes[n], change({"mark": each}, idle=idles[n])
            )
        )
        bench.pass_time(HOUR + 1)
        for each in handles[2::4]:
            await bench.signed_in(each, "ada")
        saved = await at_once(
            lambda n, each: store.save(each, 0, change({"again": each, "n": 0}))
        )
        sums = await at_once(
            lambda n, each: store.increment(each, 0, "n", str(n), change())
        )
        records = await at_once(lambda n, each: store.load(each))

        assert [True, False, False, False] * 15 == [each is not None for each in saved]
        assert [str(n) for n in range(0, 60, 4)] == [each.text for each in sums if each]
        assert [True, False, True, False] * 15 == [bool(each) for each in records]
        for n, each in enumerate(handles[::4]):
            record = records[n * 4]
            assert (each, hashes[n * 4]) == (record.handle, record.secret_hash)
            data = {"mark": each, "again": each, "n": n * 4}
            assert data == json.loads(record.data)

    @ways.each(ways.ENDS)
    async def test_an_end_is_for_good(self, bench: Bench, way: ways.Way) -> None:
        """However often the secret has changed; a second time is fine (LC-2)."""
        store = bench.store
        record = await bench.loaded()
        await bench.turned(record.handle)

        assert [True, False] == [await way(store, record, change()) for _ in range(2)]
        assert await store.load(record.handle) is None

    async def test_a_deleted_session_never_comes_back(self, bench: Bench) -> None:
        """Whatever was being written at the same moment (LC-3, R3)."""
        store = bench.store
        for _ in range(10):
            record = await bench.loaded()
            await asyncio.gather(
                *[ways.save(store, record, change({"n": n})) for n in range(5)],
                store.increment(record.handle, 0, "n", "1", change()),
                ways.end(bench.elsewhere.store, record, change()),
                ways.turn(store, record, change()),
                *[ways.save(store, record, change({"m": n})) for n in range(5)],
            )
            assert await store.load(record.handle) is None

    async def test_what_cannot_end_by_its_deadline_is_not_begun(
        self, bench: Bench
    ) -> None:
        """It is `StoreUnavailable`, and never happens; a quick store may do it."""
        store = bench.store
        now = asyncio.get_running_loop().time()
        for name, way in ways.ALL.items():
            if not name.startswith("locked"):
                record = await bench.loaded()
                before = await bench.state(record.handle)
                try:
                    assert await way(store, record, change({"n": 1}), deadline=now)
                except StoreUnavailable:
                    assert before == await bench.state(record.handle), name
                record = await bench.loaded()
                assert await way(store, record, change(), deadline=now + 60), name
