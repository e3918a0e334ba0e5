"""A new secret, what becomes of the one before, and who the visitor is."""

from __future__ import annotations

import asyncio
import json

import pytest

from tornado_compas_session.core.ids import new_handle
from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.testing.conformance import ways
from tornado_compas_session.testing.conformance.bench import (
    Bench,
    change,
    some_hash,
)


class SecretsSuite:
    """A new secret, what becomes of the one before, and who the visitor is."""

    @ways.each(ways.TURNS)
    async def test_a_new_secret_is_one_for_the_same_session(
        self, bench: Bench, way: ways.Way
    ) -> None:
        """The same data plus the change; the secret before is still known."""
        before = await bench.loaded({"cart": 1})
        bench.pass_time(10)

        saved = await way(bench.store, before, change({"page": 2}))

        after = await bench.store.load(before.handle)
        assert after.secret_hash != before.secret_hash == after.former_hash
        assert 0 == after.epoch
        assert {"cart": 1, "page": 2} == json.loads(after.data)
        assert saved.expires == after.expires
        assert after.used == after.turned == pytest.approx(saved.now, abs=0.01)
        assert after.authenticated is None is saved.authenticated
        assert after.shown is None
        assert after.created < after.turned

    @ways.each(ways.TURNS)
    async def test_a_change_of_who_the_visitor_is_is_counted(
        self, bench: Bench, way: ways.Way
    ) -> None:
        """Signing in, out, and in as somebody else; and no former secret is left."""
        store = bench.store
        handle = await bench.created()
        for epoch, user in enumerate(("ada", None, "eve"), start=1):
            await bench.turned(handle)
            record = await store.load(handle)
            assert record.former_hash is not None
            saved = await way(store, record, change({"user_id": user}), Identity(user))
            record = await store.load(handle)
            assert (epoch, None, None) == (
                record.epoch,
                record.former_hash,
                record.shown,
            )
            assert saved.authenticated == record.authenticated
            assert (user is None) == (record.authenticated is None)

    async def test_signing_in_is_dated(self, bench: Bench) -> None:
        """By a creation or a new secret that says so, and by nothing else."""
        store = bench.store
        record = await bench.loaded({"user_id": "ada"})
        assert record.authenticated == record.created
        bench.pass_time(10)
        for way in (ways.save, ways.increment, ways.turn, ways.locked_save):
            record = await store.load(record.handle)
            saved = await way(store, record, change({"n": 1}))
            assert saved.authenticated == record.authenticated
            assert 10 == pytest.approx(saved.now - saved.authenticated, abs=2)
        saved = await bench.turned(record.handle, signed_in=True)
        assert saved.authenticated == pytest.approx(saved.now, abs=0.01)

        nobody = new_handle()
        await store.create(nobody, some_hash(), change({"n": 1}), Identity(None))
        assert (await store.load(nobody)).authenticated is None

    @ways.each(ways.NEW_SECRETS)
    async def test_a_new_secret_needs_the_current_one(
        self, bench: Bench, way: ways.Way
    ) -> None:
        """Neither that of before nor any other will do, and then nothing changes."""
        record = await bench.loaded()
        await bench.turned(record.handle)
        before = await bench.state(record.handle)

        for mine in (record.secret_hash, some_hash()):
            wrong = record._replace(secret_hash=mine)
            assert await way(bench.store, wrong, change({"late": True})) is None

        assert before == await bench.state(record.handle)

    async def test_a_secret_that_was_lost_is_superseded(self, bench: Bench) -> None:
        """By whoever has the one before, which stays the former one; not once shown."""
        store = bench.store
        before = await bench.loaded()
        handle = before.handle
        await bench.turned(handle)
        lost = (await store.load(handle)).secret_hash

        secret = NewSecret(lost, some_hash(), former=before.secret_hash)
        assert await store.regenerate(handle, 0, secret, change())
        record = await store.load(handle)
        assert (secret.new, secret.former) == (record.secret_hash, record.former_hash)

        await store.save(handle, 0, change(shown=secret.new))
        late = secret._replace(mine=secret.new, new=some_hash())
        assert await store.regenerate(handle, 0, late, change()) is None

    @ways.each(ways.SAVES | {"increment": ways.increment})
    @pytest.mark.parametrize("data", [{}, {"m": 1}], ids=["renews", "writes"])
    async def test_a_new_secret_has_yet_to_be_shown(
        self, bench: Bench, way: ways.Way, data: dict[str, int]
    ) -> None:
        """The first write of somebody who came with it dates that, and no other."""
        store = bench.store
        first = await bench.loaded()
        await bench.turned(first.handle)
        record = await store.load(first.handle)
        for other in (None, first.secret_hash, some_hash()):
            await way(store, record, change(data, shown=other))
            assert (await store.load(first.handle)).shown is None

        for seconds in (0, 10):
            bench.pass_time(10)
            await way(store, record, change(data, shown=record.secret_hash))
            after = await store.load(first.handle)
            assert seconds == pytest.approx(after.used - after.shown, abs=1)

    async def test_what_goes_out_together_shows_secrets_of_its_own(
        self, bench: Bench
    ) -> None:
        """Another session's, shown at the same moment, is none."""
        store = bench.store
        handles = [await bench.created() for _ in range(6)]
        for handle in handles:
            await bench.turned(handle)
        hashes = [(await store.load(handle)).secret_hash for handle in handles]
        await asyncio.gather(
            *[
                store.save(handle, 0, change({"n": n}, shown=hashes[n // 2 * 2]))
                for n, handle in enumerate(handles)
            ]
        )
        records = [await store.load(handle) for handle in handles]
        assert [True, False] * 3 == [record.shown is not None for record in records]

    @ways.each(ways.NEW_SECRETS)
    async def test_of_many_regenerations_one_wins(
        self, bench: Bench, way: ways.Way
    ) -> None:
        """The others are told, and have written nothing (R4)."""
        mine = await bench.loaded()

        results = await asyncio.gather(
            *[way(bench.stores[n % 2], mine, change({f"k{n}": n})) for n in range(8)]
        )

        [winner] = [n for n, result in enumerate(results) if result is not None]
        assert {"n": 0, f"k{winner}": winner} == await bench.data_of(mine.handle)

    @pytest.mark.parametrize("user", [None, "ada"])
    async def test_writes_and_a_regeneration_at_once_lose_nothing(
        self, bench: Bench, user: str | None
    ) -> None:
        """
        Where nobody changes, all that is under way still finds the session (R4). Beside
        a sign-in what is acknowledged is there, and nothing else is.
        """
        store = bench.store
        identity = None if user is None else Identity(user)
        for _ in range(5):
            handle = await bench.created()
            saves = [store.save(handle, 0, change({f"s{n}": 1})) for n in range(6)]
            adds = [
                store.increment(handle, 0, f"a{n}", "1", change()) for n in range(6)
            ]
            _, *results = await asyncio.gather(
                bench.elsewhere.turned(handle, identity=identity), *saves, *adds
            )
            names = [f"{kind}{n}" for kind in "sa" for n in range(6)]
            there = [each for each, done in zip(names, results, strict=True) if done]
            assert {"n", *there} == set(await bench.data_of(handle))
            assert user or names == there
