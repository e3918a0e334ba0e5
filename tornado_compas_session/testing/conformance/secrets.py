"""A new secret, and what becomes of the one before."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.testing.conformance.bench import (
    Bench,
    change,
    created,
    data_of,
    some_hash,
    turned,
)


class SecretsSuite:
    """A new secret, and what becomes of the one before."""

    async def test_regenerate_changes_the_secret_and_not_the_name(
        self, bench: Bench
    ) -> None:
        """The same data plus the change; the secret before is still known."""
        handle = await created(bench.store, {"cart": 1})
        before = await bench.store.load(handle)
        bench.pass_time(10)
        new = some_hash()

        saved = await bench.store.regenerate(
            handle, 0, NewSecret(before.secret_hash, new), change({"page": 2})
        )

        after = await bench.store.load(handle)
        assert (handle, new, before.secret_hash, 0) == (
            after.handle,
            after.secret_hash,
            after.former_hash,
            after.epoch,
        )
        assert {"cart": 1, "page": 2} == json.loads(after.data)
        assert saved.expires == after.expires
        assert after.used == after.turned == pytest.approx(saved.now, abs=0.01)
        assert after.authenticated is None is saved.authenticated
        assert after.created < after.turned

    async def test_regenerate_can_replace_everything(self, bench: Bench) -> None:
        """As after `session.clear()` of somebody who was signed in."""
        handle = await created(bench.store, {"user_id": "ada", "cart": 1})
        await turned(
            bench.store, handle, {"n": 1}, identity=Identity(None), replace=True
        )
        assert {"n": 1} == await data_of(bench.store, handle)

    async def test_regenerate_needs_the_current_secret(self, bench: Bench) -> None:
        """Neither that of before nor any other will do, and then nothing changes."""
        store = bench.store
        handle = await created(store)
        former = (await store.load(handle)).secret_hash
        await turned(store, handle)
        before = await store.load(handle)

        for mine in (former, some_hash()):
            for identity in (None, Identity("eve"), Identity("eve", 3)):
                secret = NewSecret(mine, some_hash(), identity, signed_in=True)
                late = change({"late": True})
                assert await store.regenerate(handle, 0, secret, late) is None

        assert before._replace(now=0.0) == (await store.load(handle))._replace(now=0.0)

    async def test_a_secret_that_was_lost_is_superseded(self, bench: Bench) -> None:
        """By whoever has the one before, which stays the former one; not once shown."""
        handle = await created(bench.store)
        before = (await bench.store.load(handle)).secret_hash
        await turned(bench.store, handle)
        lost = (await bench.store.load(handle)).secret_hash

        secret = NewSecret(lost, some_hash(), former=before)
        assert await bench.store.regenerate(handle, 0, secret, change())
        record = await bench.store.load(handle)
        assert (secret.new, before) == (record.secret_hash, record.former_hash)

        await bench.store.save(handle, 0, change(shown=secret.new))
        late = NewSecret(secret.new, some_hash(), former=before)
        assert await bench.store.regenerate(handle, 0, late, change()) is None

    async def test_a_new_secret_has_yet_to_be_shown(self, bench: Bench) -> None:
        """The first write of somebody who came with it dates that, and no other."""
        store = bench.store
        handle = await created(store)
        former = (await store.load(handle)).secret_hash
        await turned(store, handle)
        record = await store.load(handle)
        assert record.shown is None

        await store.save(handle, 0, change({"n": 1}))
        await store.save(handle, 0, change(shown=former))
        await store.increment(handle, 0, "n", "1", change(shown=some_hash()))
        assert (await store.load(handle)).shown is None

        bench.pass_time(10)
        saved = await store.save(handle, 0, change(shown=record.secret_hash))
        shown = (await store.load(handle)).shown
        assert saved.now == pytest.approx(shown, abs=0.01)
        bench.pass_time(10)
        await store.save(handle, 0, change({"n": 2}, shown=record.secret_hash))
        after = await store.load(handle)
        assert 10 == pytest.approx(after.used - after.shown, abs=1)

    async def test_every_kind_of_write_shows_a_secret(self, bench: Bench) -> None:
        """A renewal, a save with data, an increment, one inside of a lock."""
        store = bench.store
        for kind in range(4):
            handle = await created(store)
            await turned(store, handle)
            shown = (await store.load(handle)).secret_hash
            if kind == 0:
                await store.save(handle, 0, change(shown=shown))
            elif kind == 1:
                await store.save(handle, 0, change({"n": 1}, idle=None, shown=shown))
            elif kind == 2:
                await store.increment(handle, 0, "n", "1", change(shown=shown))
            else:
                async with store.lock(handle, 0, 5) as locked:
                    await locked.save(change(shown=shown))
            assert (await store.load(handle)).shown is not None
        # Many at once, of which each shows its own.
        handles = [await created(store) for _ in range(6)]
        for handle in handles:
            await turned(store, handle)
        hashes = [(await store.load(handle)).secret_hash for handle in handles]
        await asyncio.gather(
            *[
                store.save(handle, 0, change({"n": n}, shown=hashes[n // 2 * 2]))
                for n, handle in enumerate(handles)
            ]
        )
        records = [await store.load(handle) for handle in handles]
        assert [True, False] * 3 == [record.shown is not None for record in records]

    async def test_of_many_regenerations_one_wins(self, bench: Bench) -> None:
        """The others are told, and have written nothing (R4)."""
        for identity in (None, Identity("ada"), Identity("ada", 3)):
            handle = await created(bench.store)
            mine = (await bench.store.load(handle)).secret_hash
            new = [some_hash() for _ in range(8)]

            results = await asyncio.gather(
                *[
                    (bench.store, bench.elsewhere)[n % 2].regenerate(
                        handle, 0, NewSecret(mine, each, identity), change({f"k{n}": n})
                    )
                    for n, each in enumerate(new)
                ]
            )

            [winner] = [n for n, result in enumerate(results) if result is not None]
            record = await bench.store.load(handle)
            assert new[winner] == record.secret_hash
            assert {"n": 0, f"k{winner}": winner} == json.loads(record.data)

    async def test_writes_and_a_regeneration_at_once_lose_nothing(
        self, bench: Bench
    ) -> None:
        """Where nobody changes, all that is under way still finds the session (R4)."""
        store = bench.store
        for _ in range(5):
            handle = await created(store, {"n": 0})
            written: dict[str, Any] = {"n": 0}
            for round_ in range(3):
                keys = {f"{round_}.{n}": n for n in range(6)}
                results = await asyncio.gather(
                    *[
                        store.save(handle, 0, change({key: value}))
                        for key, value in keys.items()
                    ],
                    turned(bench.elsewhere, handle),
                    store.increment(handle, 0, "n", "1", change()),
                    store.load(handle),
                )
                assert None not in results
                written |= keys | {"n": round_ + 1}
            assert written == await data_of(store, handle)
