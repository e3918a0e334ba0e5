"""Who the visitor is, and how a change of that is counted."""

from __future__ import annotations

import asyncio

import pytest

from tornado_compas_session.core.ids import new_handle
from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.testing.conformance.bench import (
    Bench,
    change,
    created,
    data_of,
    signed_in,
    some_hash,
    turned,
)


class VisitorsSuite:
    """Who the visitor is, and how a change of that is counted."""

    async def test_a_change_of_who_the_visitor_is_is_counted(
        self, bench: Bench
    ) -> None:
        """Signing in, out, and in as somebody else; and no former secret is left."""
        store = bench.store
        handle = await created(store)
        for epoch, user in enumerate(("ada", None, "eve"), start=1):
            await turned(store, handle)
            assert (await store.load(handle)).former_hash is not None
            await turned(store, handle, {"user_id": user}, identity=Identity(user))
            record = await store.load(handle)
            assert (epoch, None, None) == (
                record.epoch,
                record.former_hash,
                record.shown,
            )

    async def test_what_began_before_finds_nothing(self, bench: Bench) -> None:
        """A request writes, counts, locks and ends under the epoch of its load."""
        store = bench.store
        handle = await created(store, {"n": 0})
        await signed_in(store, handle, "ada")
        before = await store.load(handle)
        for epoch in (0, 2, -1):
            assert await store.save(handle, epoch, change({"late": 1})) is None
            assert await store.save(handle, epoch, change()) is None
            for identity in (None, Identity("eve"), Identity("eve", 1)):
                secret = NewSecret(before.secret_hash, some_hash(), identity)
                late = change({"late": 1})
                assert await store.regenerate(handle, epoch, secret, late) is None
            assert await store.increment(handle, epoch, "n", "1", change()) is None
            assert not await store.delete(handle, epoch)
            async with store.lock(handle, epoch, 5) as locked:
                assert locked is None

        assert before._replace(now=0.0) == (await store.load(handle))._replace(now=0.0)
        assert await store.save(handle, 1, change({"n": 1})) is not None
        assert await store.delete(handle, 1)

    async def test_writes_beside_a_sign_in_come_before_it_or_not_at_all(
        self, bench: Bench
    ) -> None:
        """What is acknowledged is there, and nothing else is."""
        store = bench.store
        for _ in range(5):
            handle = await created(store, {"n": 0})
            results = await asyncio.gather(
                *[store.save(handle, 0, change({f"a{n}": n})) for n in range(4)],
                signed_in(bench.elsewhere, handle, "ada"),
                *[store.save(handle, 0, change({f"b{n}": n})) for n in range(4)],
            )
            names = [f"a{n}" for n in range(4)] + ["user_id"]
            names += [f"b{n}" for n in range(4)]
            there = {n for n, done in zip(names, results, strict=True) if done}
            assert there | {"n"} == set(await data_of(store, handle))
            assert await store.save(handle, 0, change({"late": 1})) is None

    async def test_an_epoch_in_a_batch_is_of_one_session(self, bench: Bench) -> None:
        """Of writes that go out together, some are let in and some are not."""
        store = bench.store
        handles = [await created(store) for _ in range(8)]
        for handle in handles[::2]:
            await signed_in(store, handle, "ada")

        saved = await asyncio.gather(
            *[store.save(handle, 0, change({"n": 1})) for handle in handles]
        )
        added = await asyncio.gather(
            *[store.increment(handle, 0, "n", "1", change()) for handle in handles]
        )

        assert [False, True] * 4 == [each is not None for each in saved]
        assert [False, True] * 4 == [each is not None for each in added]
        assert [0, 2] * 4 == [(await data_of(store, each))["n"] for each in handles]

    async def test_signing_in_is_dated(self, bench: Bench) -> None:
        """By a creation or a new secret that says so; a False takes the date away."""
        store = bench.store
        handle = await created(store)
        saved = await turned(store, handle)
        assert saved.authenticated is None
        saved = await signed_in(store, handle, "ada")
        assert saved.authenticated == pytest.approx(saved.now, abs=0.01)
        bench.pass_time(10)
        for saved in (
            await store.save(handle, 1, change({"user_id": "ada", "n": 1})),
            (await store.increment(handle, 1, "n", "1", change())).saved,
            await turned(store, handle),
            await store.save(handle, 1, change()),
        ):
            assert saved.authenticated is not None
            assert 10 == pytest.approx(saved.now - saved.authenticated, abs=2)
            record = await store.load(handle)
            assert saved.authenticated == record.authenticated
        saved = await turned(store, handle, signed_in=True)
        assert saved.authenticated == pytest.approx(saved.now, abs=0.01)
        saved = await turned(store, handle, identity=Identity(None), signed_in=False)
        assert saved.authenticated is None
        assert (await store.load(handle)).authenticated is None

        record = await store.load(await created(store, {"user_id": "ada"}))
        assert record.authenticated == record.created
        nobody = new_handle()
        await store.create(nobody, some_hash(), change({"n": 1}), Identity(None))
        assert (await store.load(nobody)).authenticated is None
