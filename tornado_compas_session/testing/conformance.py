"""
The contract of `SessionStore` and `UserSessions` (protocols.py) as tests for pytest:
for those who write a store of their own, and for ours.

    class TestMyStore(StoreSuite):
        @pytest.fixture
        def bench(self):
            clock = Clock()
            return Bench(MyStore(clock=clock), clock.move)

A store that cannot list a user's sessions passes `SessionStoreSuite` alone. The tests
are coroutines: a plugin has to run them (pytest-asyncio with `asyncio_mode = auto`,
pytest-tornado).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tornado_compas_session.core.ids import handle_of, hash_id, new_id
from tornado_compas_session.core.protocols import SessionStore, UserSessions
from tornado_compas_session.core.types import RetiredId, SessionChange, SessionRecord
from tornado_compas_session.exceptions import LockTimeout, SessionIdTaken

HOUR = 3600.0

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

HOSTILE_IDS = ("", "' OR '1'='1", "%s", "$1", "ü" * 10, "x" * 100_000, ":id", "--")


@dataclass
class Bench:
    """A store, and a hand on its clock."""

    store: Any
    #: Lets so many seconds pass for everything that is in the store.
    pass_time: Callable[[float], None]


def change(
    data: dict[str, Any] | None = None, *, idle: float | None = HOUR, **fields: Any
) -> SessionChange:
    """A change as a session makes it: its keys as JSON text."""
    changed = {key: json.dumps(value) for key, value in (data or {}).items()}
    return SessionChange(changed, idle=idle, **fields)


async def data_of(store: Any, session_id: str) -> Any:
    """What the session holds; None if it is not there."""
    record = await store.load(session_id)
    return json.loads(record.data) if isinstance(record, SessionRecord) else None


async def created(store: Any, data: dict[str, Any] | None = None, **fields: Any) -> str:
    """The id of a new session."""
    session_id = new_id()
    await store.create(session_id, change(data or {"n": 0}, **fields))
    return session_id


class SessionStoreSuite:
    """What every store promises."""

    async def test_it_is_a_store(self, bench: Bench) -> None:
        """The protocol is there."""
        assert isinstance(bench.store, SessionStore)

    async def test_what_is_created_is_loaded(self, bench: Bench) -> None:
        """The data come back as they were, with times of the store's clock."""
        session_id = new_id()

        saved = await bench.store.create(session_id, change({"cart": [1, 2]}))

        record = await bench.store.load(session_id)
        assert session_id == saved.id == record.id
        assert {"cart": [1, 2]} == json.loads(record.data)
        assert saved.expires == record.expires
        assert HOUR == pytest.approx(record.expires - record.created, abs=0.01)
        assert record.created <= record.now < record.expires
        assert record.authenticated is None

    async def test_awkward_data_come_back_unchanged(self, bench: Bench) -> None:
        """Neither placeholders, quotes nor numbers are touched (ID-5, ST-2)."""
        session_id = await created(bench.store, AWKWARD)
        again = {f"{key}, saved": value for key, value in AWKWARD.items()}
        await bench.store.save(session_id, change(again))

        assert AWKWARD | again == await data_of(bench.store, session_id)
        await bench.store.save(session_id, change({}, removed=tuple(AWKWARD)))
        assert again == await data_of(bench.store, session_id)

    async def test_a_hostile_id_is_a_value_and_nothing_else(self, bench: Bench) -> None:
        """Ids find what was kept under them, whatever they look like (ID-5)."""
        await created(bench.store)
        for session_id in HOSTILE_IDS:
            assert await bench.store.load(session_id) is None
            assert await bench.store.save(session_id, change({"n": 1})) is None
            assert not await bench.store.delete(session_id)
            await bench.store.create(session_id, change({"id": session_id[:5]}))
        for session_id in HOSTILE_IDS:
            kept = await data_of(bench.store, session_id)
            assert {"id": session_id[:5]} == kept

    async def test_create_never_overwrites(self, bench: Bench) -> None:
        """A taken id is an error, and the session that has it stays (ID-6)."""
        session_id = await created(bench.store, {"whose": "first"})

        with pytest.raises(SessionIdTaken):
            await bench.store.create(session_id, change({"whose": "second"}))

        assert {"whose": "first"} == await data_of(bench.store, session_id)

    async def test_of_many_creates_with_one_id_one_succeeds(self, bench: Bench) -> None:
        """Also when they come at the same moment."""
        session_id = new_id()

        results = await asyncio.gather(
            *[bench.store.create(session_id, change({"n": n})) for n in range(10)],
            return_exceptions=True,
        )

        assert 9 == sum(isinstance(result, SessionIdTaken) for result in results)

    async def test_absent_is_none_everywhere(self, bench: Bench) -> None:
        """Only `create` makes a session (ID-3)."""
        session_id = new_id()

        assert await bench.store.load(session_id) is None
        assert await bench.store.save(session_id, change({"n": 1})) is None
        assert (
            await bench.store.regenerate(session_id, new_id(), change({"n": 1}), 30)
            is None
        )
        assert not await bench.store.delete(session_id)
        async with bench.store.lock(session_id, 5) as locked:
            assert locked is None
        assert await bench.store.load(session_id) is None
        assert 0 == (await bench.store.stats())["live"]

    async def test_a_save_merges_by_key(self, bench: Bench) -> None:
        """Set, removed and untouched keys."""
        session_id = await created(bench.store, {"kept": 1, "set": 1, "removed": 1})

        await bench.store.save(
            session_id, change({"set": 2, "new": {"a": 1}}, removed=("removed", "none"))
        )

        assert {"kept": 1, "set": 2, "new": {"a": 1}} == await data_of(
            bench.store, session_id
        )

    async def test_a_save_can_replace_everything(self, bench: Bench) -> None:
        """As after `session.clear()`."""
        session_id = await created(bench.store, {"old": 1})
        await bench.store.save(session_id, change({"new": 2}, replace=True))
        assert {"new": 2} == await data_of(bench.store, session_id)
        await bench.store.save(session_id, change({}, replace=True))
        assert {} == await data_of(bench.store, session_id)

    async def test_parallel_writers_keep_each_others_keys(self, bench: Bench) -> None:
        """Whoever writes another key at the same moment (R2)."""
        session_id = await created(bench.store, {"n": 0})

        await asyncio.gather(
            *[bench.store.save(session_id, change({f"key {n}": n})) for n in range(40)]
        )

        assert {"n": 0, **{f"key {n}": n for n in range(40)}} == await data_of(
            bench.store, session_id
        )

    async def test_many_sessions_at_once_stay_apart(self, bench: Bench) -> None:
        """What shares a query shares nothing else (R12)."""
        ids = [new_id() for _ in range(100)]
        await asyncio.gather(
            *[bench.store.create(each, change({"mark": each})) for each in ids]
        )
        await asyncio.gather(
            *[bench.store.save(each, change({"again": each})) for each in ids]
        )
        found = await asyncio.gather(*[data_of(bench.store, each) for each in ids * 3])

        assert [{"mark": each, "again": each} for each in ids * 3] == found

    async def test_reading_is_no_use(self, bench: Bench) -> None:
        """Loading never extends a session (LC-8)."""
        session_id = await created(bench.store)
        bench.pass_time(HOUR / 2)
        await bench.store.load(session_id)
        bench.pass_time(HOUR / 2 + 1)
        assert await bench.store.load(session_id) is None

    async def test_a_renewal_extends_the_session(self, bench: Bench) -> None:
        """A change without data moves the expiry, and nothing else."""
        session_id = await created(bench.store, {"n": 1})
        bench.pass_time(HOUR - 60)

        saved = await bench.store.save(session_id, change())

        assert HOUR == pytest.approx(saved.expires - saved.now, abs=0.01)
        bench.pass_time(HOUR - 60)
        assert {"n": 1} == await data_of(bench.store, session_id)

    async def test_without_an_idle_time_the_expiry_stays(self, bench: Bench) -> None:
        """A fixed lifetime is not extended by writes."""
        session_id = await created(bench.store)
        before = (await bench.store.load(session_id)).expires
        saved = await bench.store.save(session_id, change({"n": 2}, idle=None))
        assert before == saved.expires

    async def test_the_absolute_lifetime_bounds_every_renewal(
        self, bench: Bench
    ) -> None:
        """However often a session is used (LC-7)."""
        session_id = await created(bench.store, absolute=2 * HOUR)
        saved: Any = None
        for _ in range(3):
            bench.pass_time(HOUR / 2)
            saved = await bench.store.save(session_id, change(absolute=2 * HOUR))
        assert 2 * HOUR == pytest.approx(saved.expires - saved.created, abs=0.01)
        bench.pass_time(HOUR / 2 + 1)
        assert await bench.store.save(session_id, change(absolute=2 * HOUR)) is None

    async def test_a_session_can_have_lifetimes_of_its_own(self, bench: Bench) -> None:
        """They win over those of a change, also of one that does not know them."""
        session_id = await created(bench.store, own=True, own_idle=60)
        bench.pass_time(30)
        saved = await bench.store.save(session_id, change({"n": 1}))
        assert 60 == pytest.approx(saved.expires - saved.now, abs=0.01)

        # Negative: the same lifetime, and a cookie that ends with the browser.
        own = change(own=True, own_idle=-90, own_absolute=100)
        saved = await bench.store.save(session_id, own)
        assert 70 == pytest.approx(saved.expires - saved.now, abs=0.1)
        record = await bench.store.load(session_id)
        assert (-90, 100) == (record.own_idle, record.own_absolute)

        saved = await bench.store.save(session_id, change(own=True))
        assert HOUR == pytest.approx(saved.expires - saved.now, abs=0.01)

    async def test_expired_is_not_there(self, bench: Bench) -> None:
        """For no verb, and no write brings it back (LC-3)."""
        session_id = await created(bench.store, {"user_id": "ada"})
        bench.pass_time(HOUR + 1)

        assert await bench.store.load(session_id) is None
        assert await bench.store.save(session_id, change({"n": 1})) is None
        assert await bench.store.regenerate(session_id, new_id(), change(), 30) is None
        async with bench.store.lock(session_id, 5) as locked:
            assert locked is None
        assert [] == await bench.store.sessions_of("ada")
        assert await bench.store.load(session_id) is None

    # ── regenerate ───────────────────────────────────────────────────────────────

    async def test_regenerate_moves_the_session(self, bench: Bench) -> None:
        """New id, same data plus the change; the old id finds it for the grace."""
        old, new = await created(bench.store, {"cart": 1}), new_id()

        saved = await bench.store.regenerate(old, new, change({"user_id": "ada"}), 30)

        assert new == saved.id
        assert saved.authenticated is not None
        for session_id in (new, old):
            record = await bench.store.load(session_id)
            assert new == record.id
            assert {"cart": 1, "user_id": "ada"} == json.loads(record.data)
        assert 1 == (await bench.store.stats())["live"]

    async def test_after_the_grace_the_old_id_is_retired(self, bench: Bench) -> None:
        """It finds nothing, and tells which session it was of (LC-1)."""
        old, new = await created(bench.store, {"user_id": "ada"}), new_id()
        await bench.store.regenerate(old, new, change(), 30)
        bench.pass_time(31)

        assert RetiredId(handle_of(hash_id(new)), "ada") == await bench.store.load(old)
        assert await bench.store.save(old, change({"n": 1})) is None
        assert not await bench.store.delete(old)
        async with bench.store.lock(old, 5) as locked:
            assert locked is None
        assert {"user_id": "ada"} == await data_of(bench.store, new)

    async def test_in_the_grace_the_old_id_still_writes(self, bench: Bench) -> None:
        """A request that was under way keeps its changes, and learns the new id."""
        old, new = await created(bench.store), new_id()
        await bench.store.regenerate(old, new, change({"n": 1}), 30)

        saved = await bench.store.save(old, change({"late": True}))

        assert new == saved.id
        assert {"n": 1, "late": True} == await data_of(bench.store, new)
        async with bench.store.lock(old, 5) as locked:
            assert new == locked.record.id
            await locked.save(change({"locked": True}))
        assert {"n": 1, "late": True, "locked": True} == await data_of(bench.store, new)
        assert await bench.store.delete(old)
        assert await bench.store.load(new) is None

    async def test_of_many_regenerations_one_wins(self, bench: Bench) -> None:
        """One live session is left, and the others are told (R4)."""
        old = await created(bench.store)

        results = await asyncio.gather(
            *[
                bench.store.regenerate(old, new_id(), change({f"k{n}": n}), 30)
                for n in range(8)
            ]
        )

        winners = [result for result in results if result is not None]
        assert 1 == len(winners)
        assert winners[0].id == (await bench.store.load(old)).id
        assert 1 == (await bench.store.stats())["live"]

    async def test_regenerate_never_overwrites(self, bench: Bench) -> None:
        """A taken new id is an error that changes neither session (ID-6)."""
        first = await created(bench.store, {"whose": "first"})
        second = await created(bench.store, {"whose": "second"})

        with pytest.raises(SessionIdTaken):
            await bench.store.regenerate(first, second, change({"n": 1}), 30)

        assert {"whose": "first"} == await data_of(bench.store, first)
        assert {"whose": "second"} == await data_of(bench.store, second)

    async def test_writes_and_a_regeneration_at_once_lose_nothing(
        self, bench: Bench
    ) -> None:
        """Committed keys are there under the new id, and nobody meets an error (R4)."""
        for _ in range(5):
            session_id = await created(bench.store, {"n": 0})
            written: dict[str, Any] = {"n": 0}
            for round_ in range(3):
                new = new_id()
                keys = {f"{round_}.{n}": n for n in range(6)}
                results = await asyncio.gather(
                    bench.store.regenerate(session_id, new, change(), 30),
                    *[
                        bench.store.save(session_id, change({key: value}))
                        for key, value in keys.items()
                    ],
                    bench.store.load(session_id),
                )
                assert None not in results
                session_id = results[0].id
                written |= keys
            assert written == await data_of(bench.store, session_id)

    # ── delete ───────────────────────────────────────────────────────────────────

    async def test_delete_ends_the_session(self, bench: Bench) -> None:
        """For good; a second time is fine (LC-2)."""
        session_id = await created(bench.store)

        assert await bench.store.delete(session_id)
        assert not await bench.store.delete(session_id)
        assert await bench.store.load(session_id) is None
        assert await bench.store.save(session_id, change({"n": 1})) is None

    async def test_a_deleted_session_never_comes_back(self, bench: Bench) -> None:
        """Whatever was being written at the same moment (LC-3, R3)."""
        for _ in range(10):
            session_id = await created(bench.store)
            await asyncio.gather(
                *[bench.store.save(session_id, change({"n": n})) for n in range(5)],
                bench.store.delete(session_id),
                *[bench.store.save(session_id, change({"m": n})) for n in range(5)],
            )
            assert await bench.store.load(session_id) is None
        assert 0 == (await bench.store.stats())["live"]

    # ── lock ─────────────────────────────────────────────────────────────────────

    async def test_locked_increments_add_up(self, bench: Bench) -> None:
        """Of parallel requests, each sees what the one before has written (R1)."""
        session_id = await created(bench.store, {"n": 0})

        async def increment() -> None:
            async with bench.store.lock(session_id, 20) as locked:
                number = json.loads(locked.record.data)["n"]
                await locked.save(change({"n": number + 1}))

        await asyncio.gather(*[increment() for _ in range(20)])

        assert {"n": 20} == await data_of(bench.store, session_id)

    async def test_a_lock_that_does_not_come_is_a_timeout(self, bench: Bench) -> None:
        """And changes nothing; the holder goes on."""
        session_id = await created(bench.store)
        async with bench.store.lock(session_id, 5) as locked:
            with pytest.raises(LockTimeout):
                async with bench.store.lock(session_id, 0.1):
                    pytest.fail("granted twice")
            await locked.save(change({"n": 1}))
        assert {"n": 1} == await data_of(bench.store, session_id)

    async def test_a_save_waits_for_the_lock(self, bench: Bench) -> None:
        """Nothing slips in between the reading and the writing of a block."""
        session_id = await created(bench.store, {"n": 0})
        async with bench.store.lock(session_id, 5) as locked:
            other = asyncio.ensure_future(
                bench.store.save(session_id, change({"other": True}))
            )
            await asyncio.sleep(0.05)
            assert not other.done()
            await locked.save(change({"n": 1}))
        await other
        assert {"n": 1, "other": True} == await data_of(bench.store, session_id)

    async def test_a_block_that_fails_has_written_nothing(self, bench: Bench) -> None:
        """And its own error comes out, not one about the database."""
        session_id = await created(bench.store, {"n": 0})

        for error in (OSError, TimeoutError, ValueError, KeyError):
            with pytest.raises(error, match="mine"):
                async with bench.store.lock(session_id, 5) as locked:
                    await locked.save(change({"n": 1}))
                    raise error("mine")

        assert {"n": 0} == await data_of(bench.store, session_id)
        async with bench.store.lock(session_id, 5) as locked:
            assert locked is not None

    async def test_a_cancelled_block_frees_the_lock(self, bench: Bench) -> None:
        """The next one gets it, and finds nothing of the first."""
        session_id = await created(bench.store, {"n": 0})
        inside = asyncio.Event()

        async def hold() -> None:
            async with bench.store.lock(session_id, 5) as locked:
                await locked.save(change({"n": 1}))
                inside.set()
                await asyncio.sleep(60)

        holder = asyncio.ensure_future(hold())
        await inside.wait()
        holder.cancel()
        async with bench.store.lock(session_id, 10) as locked:
            assert {"n": 0} == json.loads(locked.record.data)

    # ── the sessions of a user ───────────────────────────────────────────────────


class UserSessionsSuite:
    """What a store promises that finds and ends the sessions of a user."""

    async def test_it_finds_users(self, bench: Bench) -> None:
        """The protocol is there."""
        assert isinstance(bench.store, UserSessions)

    async def test_a_users_sessions_are_listed(self, bench: Bench) -> None:
        """Last used first, without ids or data, and marked which one asks (LC-10)."""
        ids = [
            await created(
                bench.store, {"user_id": 7}, user_agent=f"agent {n}", address=f"::{n}"
            )
            for n in range(3)
        ]
        await created(bench.store, {"user_id": "other"})
        await created(bench.store)
        bench.pass_time(10)
        await bench.store.save(ids[1], change())
        mine = handle_of(hash_id(ids[0]))

        found = await bench.store.sessions_of(7, current=mine)

        assert handle_of(hash_id(ids[1])) == found[0].handle
        assert {handle_of(hash_id(each)) for each in ids} == {i.handle for i in found}
        assert [mine] == [info.handle for info in found if info.current]
        assert {("agent 0", "::0"), ("agent 1", "::1"), ("agent 2", "::2")} == {
            (info.user_agent, info.address) for info in found
        }
        assert {"7"} == {info.user_id for info in found}
        assert 2 == len(await bench.store.sessions_of(7, limit=2))
        assert not any(session_id in repr(found) for session_id in ids)

    async def test_a_session_is_revoked_by_its_handle(self, bench: Bench) -> None:
        """Also by the handle that it had before it was regenerated."""
        one, two = await created(bench.store), await created(bench.store)

        assert await bench.store.revoke(handle_of(hash_id(one)))
        assert not await bench.store.revoke(handle_of(hash_id(one)))
        assert await bench.store.load(one) is None

        new = new_id()
        await bench.store.regenerate(two, new, change(), 30)
        assert await bench.store.revoke(handle_of(hash_id(two)))
        assert await bench.store.load(new) is None

    async def test_a_wrong_handle_revokes_nothing(self, bench: Bench) -> None:
        """Whatever it is."""
        session_id = await created(bench.store)
        for handle in ("", "x", "00", "g" * 32, "' OR 1=1 --", "0" * 64):
            assert not await bench.store.revoke(handle)
        assert {"n": 0} == await data_of(bench.store, session_id)

    async def test_all_sessions_of_a_user_but_one_are_revoked(
        self, bench: Bench
    ) -> None:
        """As after a change of the password (LC-10)."""
        ids = [await created(bench.store, {"user_id": "ada"}) for _ in range(4)]
        other = await created(bench.store, {"user_id": "eve"})
        kept = handle_of(hash_id(ids[2]))

        assert 3 == await bench.store.revoke_user("ada", except_handle=kept)
        assert [kept] == [i.handle for i in await bench.store.sessions_of("ada")]
        assert 1 == await bench.store.revoke_user("ada")
        assert {"user_id": "eve"} == await data_of(bench.store, other)
        assert 1 == await bench.store.revoke_all()
        assert await bench.store.load(other) is None

    async def test_the_oldest_sessions_of_a_user_are_ended(self, bench: Bench) -> None:
        """Those longest unused, over the allowed number."""
        ids = []
        for _ in range(4):
            ids.append(await created(bench.store, {"user_id": "ada"}))
            bench.pass_time(10)
        await bench.store.save(ids[0], change())

        assert 2 == await bench.store.revoke_oldest("ada", allowed=2)

        assert {handle_of(hash_id(each)) for each in (ids[0], ids[3])} == {
            info.handle for info in await bench.store.sessions_of("ada")
        }

    async def test_the_user_follows_the_data(self, bench: Bench) -> None:
        """Signing out by removing the key takes the session off the list."""
        session_id = await created(bench.store, {"user_id": "ada"})
        await bench.store.save(session_id, change({}, removed=("user_id",)))
        assert [] == await bench.store.sessions_of("ada")

    async def test_signing_in_is_dated(self, bench: Bench) -> None:
        """Setting `user_id` to somebody else, and nothing else."""
        session_id = await created(bench.store)
        saved = await bench.store.save(session_id, change({"user_id": "ada"}))
        first = saved.authenticated
        assert first is not None
        bench.pass_time(10)
        saved = await bench.store.save(session_id, change({"user_id": "ada", "n": 1}))
        assert first - 10 <= saved.authenticated + 0.01 <= first + 0.02
        saved = await bench.store.save(session_id, change({"user_id": "eve"}))
        assert saved.authenticated == pytest.approx(saved.now, abs=0.01)

    # ── upkeep ───────────────────────────────────────────────────────────────────

    async def test_expired_sessions_are_deleted(self, bench: Bench) -> None:
        """As many as asked for, and never a live one (ST-7)."""
        for _ in range(5):
            await created(bench.store)
        bench.pass_time(25 * HOUR)
        live = await created(bench.store, {"n": 1})

        assert 5 == (await bench.store.stats())["expired"]
        assert 3 == await bench.store.delete_expired(limit=3)
        assert 2 == await bench.store.delete_expired(limit=100)
        assert 0 == await bench.store.delete_expired(limit=100)
        assert {"n": 1} == await data_of(bench.store, live)

    async def test_it_counts(self, bench: Bench) -> None:
        """Live, expired, anonymous, users, the age of the oldest, bytes."""
        assert (await bench.store.stats())["oldest_seconds"] is None
        await created(bench.store, {"user_id": "ada"})
        await created(bench.store, {"user_id": "ada"})
        await created(bench.store)
        bench.pass_time(10)

        stats = await bench.store.stats()

        assert (3, 0, 1, 1) == tuple(
            stats[name] for name in ("live", "expired", "anonymous", "users")
        )
        assert 10 == pytest.approx(stats["oldest_seconds"], abs=5)
        assert stats["bytes"] > 0


class StoreSuite(SessionStoreSuite, UserSessionsSuite):
    """All of it."""
