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

from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.protocols import SessionStore, UserSessions
from tornado_compas_session.core.types import (
    Identity,
    Incremented,
    NewSecret,
    Saved,
    SessionChange,
    user_text,
)
from tornado_compas_session.exceptions import (
    HandleTaken,
    LockTimeout,
    SessionDataError,
)

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

#: Keys that a path, a pattern or a placeholder would take for something else.
AWKWARD_KEYS = (
    *("", "a.b", "{a,b}", "0", "-1", "$.n", "%s", ":key", "?", "a\"b'c", "Grüße", "\\"),
)

#: Of the length of a handle, and not of its characters.
HOSTILE_HANDLES = ("' OR '1'='1'", "%s %(a)s %%s", "$1 $2 :id ::", "-- ; \\ \"' {}")
#: No handles at all.
NO_HANDLES = ("", "x", "x" * 100_000, "ü" * 12, "g" * 32, "0" * 64)


@dataclass
class Bench:
    """A store, and a hand on its clock."""

    store: Any
    #: Lets so many seconds pass for everything that is in the store.
    pass_time: Callable[[float], None]
    #: A second store on the same sessions, as another process has it, where there is
    #: such a thing.
    other: Any = None

    @property
    def elsewhere(self) -> Any:
        """The store of another process, or this one where there is no other."""
        return self.store if self.other is None else self.other


def change(
    data: dict[str, Any] | None = None, *, idle: float | None = HOUR, **fields: Any
) -> SessionChange:
    """A change as a session makes it: its keys as JSON text."""
    changed = {key: json.dumps(value) for key, value in (data or {}).items()}
    return SessionChange(changed, idle=idle, **fields)


async def data_of(store: Any, handle: str) -> Any:
    """What the session holds; None if it is not there."""
    record = await store.load(handle)
    return None if record is None else json.loads(record.data)


async def created(
    store: Any,
    data: dict[str, Any] | None = None,
    *,
    allowed: int | None = None,
    **fields: Any,
) -> str:
    """The handle of a new session; with a `user_id` it is that user's."""
    data = data or {"n": 0}
    handle = new_handle()
    user = user_text(data.get("user_id"))
    identity = None if user is None else Identity(user, allowed)
    await store.create(handle, some_hash(), change(data, **fields), identity)
    return handle


def some_hash() -> bytes:
    """That of a new secret."""
    return hash_secret(new_secret())


async def turned(
    store: Any,
    handle: str,
    data: dict[str, Any] | None = None,
    *,
    identity: Identity | None = None,
    signed_in: bool | None = None,
    **fields: Any,
) -> Saved:
    """Gives the session a new secret, as whoever has the current one."""
    record = await store.load(handle)
    secret = NewSecret(record.secret_hash, some_hash(), identity, signed_in)
    saved = await store.regenerate(handle, record.epoch, secret, change(data, **fields))
    assert isinstance(saved, Saved)
    return saved


async def signed_in(store: Any, handle: str, user: str, **fields: Any) -> Saved:
    """Signs a user in to a session that is there."""
    allowed = fields.pop("allowed", None)
    identity = Identity(user, allowed)
    data = {"user_id": user}
    return await turned(
        store, handle, data, identity=identity, signed_in=True, **fields
    )


async def live(store: Any, *handles: str) -> list[bool]:
    """Which of the sessions are there."""
    return [await store.load(handle) is not None for handle in handles]


class SessionStoreSuite:
    """What every store promises."""

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

    # ── lifetimes ────────────────────────────────────────────────────────────────

    async def test_reading_is_no_use(self, bench: Bench) -> None:
        """Loading never extends a session (LC-8)."""
        handle = await created(bench.store)
        bench.pass_time(HOUR / 2)
        await bench.store.load(handle)
        bench.pass_time(HOUR / 2 + 1)
        assert await bench.store.load(handle) is None

    async def test_a_renewal_extends_the_session(self, bench: Bench) -> None:
        """A change without data moves the expiry and the last use, and nothing else."""
        handle = await created(bench.store, {"n": 1})
        bench.pass_time(HOUR - 60)
        before = await bench.store.load(handle)

        saved = await bench.store.save(handle, 0, change())

        assert HOUR == pytest.approx(saved.expires - saved.now, abs=0.01)
        after = await bench.store.load(handle)
        assert saved.now == pytest.approx(after.used, abs=0.01)
        times = {"used": 0.0, "expires": 0.0, "now": 0.0}
        assert before._replace(**times) == after._replace(**times)
        bench.pass_time(HOUR - 60)
        assert {"n": 1} == await data_of(bench.store, handle)

    async def test_without_an_idle_time_the_expiry_stays(self, bench: Bench) -> None:
        """A fixed lifetime is not extended by writes."""
        handle = await created(bench.store)
        before = (await bench.store.load(handle)).expires
        saved = await bench.store.save(handle, 0, change({"n": 2}, idle=None))
        assert before == saved.expires
        done = await bench.store.increment(handle, 0, "n", "1", change(idle=None))
        assert before == done.saved.expires
        saved = await turned(bench.store, handle, idle=None)
        assert before == saved.expires

    async def test_the_absolute_lifetime_bounds_every_renewal(
        self, bench: Bench
    ) -> None:
        """However often a session is used, and whoever signs in to it (LC-7)."""
        store, absolute = bench.store, 2 * HOUR
        handle = await created(store, absolute=absolute)
        bench.pass_time(HOUR / 2)
        await store.save(handle, 0, change(absolute=absolute))
        bench.pass_time(HOUR / 2)
        await store.increment(handle, 0, "n", "1", change(absolute=absolute))
        bench.pass_time(HOUR / 2)
        signed = await signed_in(store, handle, "ada", absolute=absolute)
        saved = await store.save(handle, 1, change(absolute=absolute))

        record = await store.load(handle)
        assert absolute == pytest.approx(saved.expires - record.created, abs=0.01)
        assert signed.expires == saved.expires
        bench.pass_time(HOUR / 2 + 1)
        assert await store.save(handle, 1, change(absolute=absolute)) is None

    async def test_a_session_can_have_lifetimes_of_its_own(self, bench: Bench) -> None:
        """They win over those of a change, also of one that does not know them."""
        handle = await created(bench.store, own=True, own_idle=60)
        bench.pass_time(30)
        saved = await bench.store.save(handle, 0, change({"n": 1}))
        assert 60 == pytest.approx(saved.expires - saved.now, abs=0.01)
        done = await bench.store.increment(handle, 0, "n", "1", change())
        assert 60 == pytest.approx(done.saved.expires - done.saved.now, abs=0.01)

        # Negative: the same lifetime, and a cookie that ends with the browser.
        own = change(own=True, own_idle=-90, own_absolute=100)
        saved = await bench.store.save(handle, 0, own)
        assert 70 == pytest.approx(saved.expires - saved.now, abs=3)
        record = await bench.store.load(handle)
        assert (-90, 100) == (record.own_idle, record.own_absolute)
        saved = await turned(bench.store, handle)
        assert 70 == pytest.approx(saved.expires - saved.now, abs=3)

        saved = await bench.store.save(handle, 0, change(own=True))
        assert HOUR == pytest.approx(saved.expires - saved.now, abs=0.01)

    async def test_expired_is_not_there(self, bench: Bench) -> None:
        """For no verb, and no write brings it back (LC-3)."""
        store = bench.store
        handle = await created(store, {"user_id": "ada"})
        mine = (await store.load(handle)).secret_hash
        bench.pass_time(HOUR + 1)

        assert await store.load(handle) is None
        assert await store.save(handle, 0, change({"n": 1})) is None
        for identity in (None, Identity("ada"), Identity("ada", 3)):
            secret = NewSecret(mine, some_hash(), identity)
            assert await store.regenerate(handle, 0, secret, change()) is None
        assert await store.increment(handle, 0, "n", "1", change()) is None
        assert not await store.delete(handle, 0)
        async with store.lock(handle, 0, 5) as locked:
            assert locked is None
        assert await store.load(handle) is None

    # ── a new secret ─────────────────────────────────────────────────────────────

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

    # ── who the visitor is ───────────────────────────────────────────────────────

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

    # ── increment ────────────────────────────────────────────────────────────────

    async def test_an_increment_adds(self, bench: Bench) -> None:
        """Absent counts as 0; the sum comes back, and the times with it."""
        store = bench.store
        handle = await created(store, {"kept": 1})
        bench.pass_time(HOUR / 2)

        done = await store.increment(handle, 0, "n", "5", change())

        assert isinstance(done, Incremented)
        assert "5" == done.text
        assert HOUR == pytest.approx(done.saved.expires - done.saved.now, abs=0.01)
        assert done.saved.expires == (await store.load(handle)).expires
        assert "3" == (await store.increment(handle, 0, "n", "-2", change())).text
        assert "0" == (await store.increment(handle, 0, "m", "0", change())).text
        assert {"kept": 1, "n": 3, "m": 0} == await data_of(store, handle)

    async def test_increments_at_once_are_all_counted(self, bench: Bench) -> None:
        """No count is lost, and each gets a sum of its own."""
        handle = await created(bench.store, {"n": 0})

        results = await asyncio.gather(
            *[
                store.increment(handle, 0, "n", "1", change())
                for _ in range(50)
                for store in (bench.store, bench.elsewhere)
            ]
        )

        assert list(range(1, 101)) == sorted(int(done.text) for done in results)
        assert {"n": 100} == await data_of(bench.store, handle)

    async def test_increments_at_once_by_different_numbers(self, bench: Bench) -> None:
        """Each sum is one that was there between two additions."""
        handle = await created(bench.store, {"n": 0})
        parts = [2**n * (-1) ** n for n in range(30)]

        results = await asyncio.gather(
            *[
                bench.store.increment(handle, 0, "n", str(part), change())
                for part in parts
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
        assert {"n": reached} == await data_of(bench.store, handle)

    async def test_increments_of_several_keys_at_once(self, bench: Bench) -> None:
        """And saves of others beside them."""
        handle = await created(bench.store, {"a": 1})

        await asyncio.gather(
            *[
                bench.store.increment(handle, 0, key, str(n), change())
                for n in range(10)
                for key in ("a", "b", "c")
            ],
            *[bench.store.save(handle, 0, change({f"k{n}": n})) for n in range(5)],
        )

        assert {"a": 46, "b": 45, "c": 45, **{f"k{n}": n for n in range(5)}} == (
            await data_of(bench.store, handle)
        )

    async def test_increments_take_floats(self, bench: Bench) -> None:
        """Of a float, by a float, and both at once; ints stay ints."""
        store = bench.store
        handle = await created(store, {"f": 0.1, "i": 1})

        done = await store.increment(handle, 0, "f", "0.2", change())
        assert 0.3 == pytest.approx(json.loads(done.text))
        done = await store.increment(handle, 0, "f", "1", change())
        assert 1.3 == pytest.approx(json.loads(done.text))
        done = await store.increment(handle, 0, "i", "1.5e-3", change())
        assert 1.0015 == pytest.approx(json.loads(done.text))
        await asyncio.gather(
            *[store.increment(handle, 0, "sum", "0.1", change()) for _ in range(10)]
        )
        assert 1.0 == pytest.approx((await data_of(store, handle))["sum"])
        done = await store.increment(handle, 0, "n", "2", change())
        assert 2 == json.loads(done.text)
        assert isinstance(json.loads(done.text), int)

    async def test_increments_take_integers_of_any_size(self, bench: Bench) -> None:
        """Beyond what fits into a machine word or a float."""
        store, big = bench.store, 2**200
        handle = await created(store, {"n": big, "m": -big})

        assert big + 1 == int(
            (await store.increment(handle, 0, "n", "1", change())).text
        )
        done = await store.increment(handle, 0, "m", str(big + 1), change())
        assert "1" == done.text
        results = await asyncio.gather(
            *[store.increment(handle, 0, "k", str(big), change()) for _ in range(5)]
        )
        assert [big * n for n in range(1, 6)] == sorted(
            int(each.text) for each in results
        )
        data = await data_of(store, handle)
        assert {"n": big + 1, "m": 1, "k": 5 * big} == data

    async def test_only_numbers_can_be_added_to(self, bench: Bench) -> None:
        """Anything else is an error that names the key, and stays."""
        values = {
            "text": "5",
            "empty": "",
            "null": None,
            "true": True,
            "list": [1],
            "object": {"n": 1},
        }
        handle = await created(bench.store, values)

        for key in values:
            with pytest.raises(SessionDataError) as raised:
                await bench.store.increment(handle, 0, key, "1", change())
            assert key == raised.value.path
        # Those who come with it at the same moment are told each, or get their sum.
        results = await asyncio.gather(
            *[
                bench.store.increment(handle, 0, key, "1", change())
                for _ in range(3)
                for key in ("text", "n")
            ],
            return_exceptions=True,
        )

        assert 3 == sum(isinstance(each, SessionDataError) for each in results)
        assert values | {"n": 3} == await data_of(bench.store, handle)

    async def test_awkward_keys_are_keys(self, bench: Bench) -> None:
        """Neither a path nor a pattern nor a placeholder."""
        handle = await created(bench.store, {"a": {"b": 7}, "kept": [1]})

        for key in AWKWARD_KEYS:
            done = await bench.store.increment(handle, 0, key, "1", change())
            assert "1" == done.text
        await asyncio.gather(
            *[
                bench.store.increment(handle, 0, key, "1", change())
                for key in AWKWARD_KEYS
            ]
        )

        counted = dict.fromkeys(AWKWARD_KEYS, 2)
        assert {"a": {"b": 7}, "kept": [1], **counted} == await data_of(
            bench.store, handle
        )

    async def test_an_increment_waits_for_the_lock(self, bench: Bench) -> None:
        """It adds to what the block has left."""
        handle = await created(bench.store, {"n": 0})
        async with bench.store.lock(handle, 0, 5) as locked:
            other = asyncio.ensure_future(
                bench.elsewhere.increment(handle, 0, "n", "1", change())
            )
            await asyncio.sleep(0.05)
            assert not other.done()
            await locked.save(change({"n": 10}))
        assert "11" == (await other).text

    # ── delete ───────────────────────────────────────────────────────────────────

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

    # ── lock ─────────────────────────────────────────────────────────────────────

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


class UserSessionsSuite:
    """What a store promises that finds and ends the sessions of a user."""

    async def test_it_finds_users(self, bench: Bench) -> None:
        """The protocol is there."""
        assert isinstance(bench.store, UserSessions)

    async def test_a_users_sessions_are_listed(self, bench: Bench) -> None:
        """Last used first, without ids or data, and marked which one asks (LC-10)."""
        handles = [
            await created(
                bench.store, {"user_id": 7}, user_agent=f"agent {n}", address=f"::{n}"
            )
            for n in range(3)
        ]
        await created(bench.store, {"user_id": "other"})
        await created(bench.store)
        bench.pass_time(10)
        await bench.store.save(handles[1], 0, change())
        mine = handles[0]

        found = await bench.store.sessions_of(7, current=mine)

        assert handles[1] == found[0].handle
        assert set(handles) == {info.handle for info in found}
        assert [mine] == [info.handle for info in found if info.current]
        assert {("agent 0", "::0"), ("agent 1", "::1"), ("agent 2", "::2")} == {
            (info.user_agent, info.address) for info in found
        }
        assert {"7"} == {info.user_id for info in found}
        assert found == await bench.store.sessions_of("7", current=mine)
        assert 2 == len(await bench.store.sessions_of(7, limit=2))

    async def test_a_list_shows_the_client_of_the_last_sign_in(
        self, bench: Bench
    ) -> None:
        """A new secret without a word of the client leaves what is recorded."""
        store = bench.store
        handle = await created(store, user_agent="Netscape", address="::1")
        await signed_in(store, handle, "ada")
        [info] = await store.sessions_of("ada")
        assert ("Netscape", "::1") == (info.user_agent, info.address)
        await turned(store, handle, user_agent="Mosaic", address="::2")
        [info] = await store.sessions_of("ada")
        assert ("Mosaic", "::2") == (info.user_agent, info.address)

    async def test_a_session_is_revoked_by_its_handle(self, bench: Bench) -> None:
        """However often its secret and its visitor have changed since it was told."""
        one, two = await created(bench.store), await created(bench.store)

        assert await bench.store.revoke(one)
        assert not await bench.store.revoke(one)
        assert await bench.store.load(one) is None

        await turned(bench.store, two)
        await signed_in(bench.store, two, "ada")
        assert await bench.store.revoke(two)
        assert await bench.store.load(two) is None

    async def test_a_wrong_handle_revokes_nothing(self, bench: Bench) -> None:
        """Whatever it is; an expired session's is one."""
        old = await created(bench.store)
        bench.pass_time(HOUR + 1)
        handle = await created(bench.store)
        for wrong in (*HOSTILE_HANDLES, *NO_HANDLES, new_handle(), old):
            assert not await bench.store.revoke(wrong)
        assert {"n": 0} == await data_of(bench.store, handle)

    async def test_all_sessions_of_a_user_but_one_are_revoked(
        self, bench: Bench
    ) -> None:
        """As after a change of the password (LC-10)."""
        handles = [await created(bench.store, {"user_id": "ada"}) for _ in range(4)]
        other = await created(bench.store, {"user_id": "eve"})
        kept = handles[2]

        await turned(bench.store, kept)
        assert 3 == await bench.store.revoke_user("ada", except_handle=kept)
        assert [kept] == [i.handle for i in await bench.store.sessions_of("ada")]
        assert 1 == await bench.store.revoke_user("ada")
        assert {"user_id": "eve"} == await data_of(bench.store, other)
        assert 1 == await bench.store.revoke_all()
        assert await bench.store.load(other) is None

    async def test_nobody_is_no_user(self, bench: Bench) -> None:
        """Neither None nor what prints in two ways; "None" is a name like any other."""
        handle = await created(bench.store)
        named = await created(bench.store, {"user_id": "None"})
        for user in (None, True, 1e22, 2**64, "", "x" * 256, ["ada"]):
            with pytest.raises(SessionDataError):
                await bench.store.sessions_of(user)
            with pytest.raises(SessionDataError):
                await bench.store.revoke_user(user)
        assert [True, True] == await live(bench.store, handle, named)
        assert 1 == await bench.store.revoke_user("None")
        assert [True, False] == await live(bench.store, handle, named)

    async def test_expired_sessions_are_in_no_list(self, bench: Bench) -> None:
        """And are ended by nobody."""
        await created(bench.store, {"user_id": "ada"})
        bench.pass_time(HOUR + 1)
        assert [] == await bench.store.sessions_of("ada")
        assert 0 == await bench.store.revoke_user("ada")
        assert 0 == await bench.store.revoke_all()

    # ── who a session is of ──────────────────────────────────────────────────────

    async def test_who_a_session_is_of_changes_with_its_secret_only(
        self, bench: Bench
    ) -> None:
        """A save of `user_id` alone signs nobody in, and nobody out."""
        store = bench.store
        handle = await created(store)
        await store.save(handle, 0, change({"user_id": "ada"}))
        await turned(store, handle, {"user_id": "ada"})
        assert [] == await store.sessions_of("ada")
        await signed_in(store, handle, "ada")
        await store.save(handle, 1, change({}, removed=("user_id",)))
        await store.save(handle, 1, change({"user_id": "eve"}))
        await turned(store, handle)
        assert [handle] == [info.handle for info in await store.sessions_of("ada")]
        assert [] == await store.sessions_of("eve")

    async def test_signing_out_takes_a_session_off_the_list(self, bench: Bench) -> None:
        """And signing in as somebody else puts it on another."""
        store = bench.store
        handle = await created(store, {"user_id": "ada"})
        await turned(store, handle, identity=Identity(None), removed=("user_id",))
        assert [] == await store.sessions_of("ada")
        await signed_in(store, handle, "eve")
        assert [handle] == [info.handle for info in await store.sessions_of("eve")]

    async def test_surplus_sessions_end_with_a_sign_in(self, bench: Bench) -> None:
        """Those longest unused, over the allowed number; and nobody else's."""
        store = bench.store
        other = await created(store, {"user_id": "eve"})
        handles = []
        for _ in range(4):
            handles.append(await created(store, {"user_id": "ada"}))
            bench.pass_time(10)
        await store.save(handles[0], 0, change())
        bench.pass_time(10)

        new = await created(store, {"user_id": "ada"}, allowed=3)
        assert [True, False, False, True] == await live(store, *handles)

        bench.pass_time(10)
        anonymous = await created(store)
        await signed_in(store, anonymous, "ada", allowed=3)
        assert [True, False, True, True, True] == await live(
            store, handles[0], handles[3], new, anonymous, other
        )

    async def test_a_sign_in_never_ends_its_own_session(self, bench: Bench) -> None:
        """Though it were the one unused longest, and the only one allowed."""
        store = bench.store
        for signs_in in ("regenerate", "lock"):
            mine = await created(store, {"user_id": "ada"})
            bench.pass_time(10)
            others = [await created(store, {"user_id": "ada"}) for _ in range(3)]
            if signs_in == "regenerate":
                await signed_in(store, mine, "ada", allowed=1)
            else:
                async with store.lock(mine, 0, 5) as locked:
                    current = locked.record.secret_hash
                    secret = NewSecret(current, some_hash(), Identity("ada", 1), True)
                    await locked.regenerate(secret, change({"user_id": "ada"}))
            assert [True, False, False, False] == await live(store, mine, *others)
            await store.revoke_user("ada")

    async def test_a_sign_in_that_fails_ends_nothing(self, bench: Bench) -> None:
        """With a wrong secret, a taken handle, or in a block that fails."""
        store = bench.store
        old = [await created(store, {"user_id": "ada"}) for _ in range(2)]
        mine = await created(store)
        current = (await store.load(mine)).secret_hash
        identity = Identity("ada", 1)

        wrong = NewSecret(some_hash(), some_hash(), identity, True)
        assert await store.regenerate(mine, 0, wrong, change()) is None
        assert (
            await store.regenerate(mine, 7, wrong._replace(mine=current), change())
            is None
        )
        with pytest.raises(HandleTaken):
            await store.create(mine, some_hash(), change({"n": 1}), identity)
        with pytest.raises(OSError, match="mine"):
            async with store.lock(mine, 0, 5) as locked:
                await locked.regenerate(wrong._replace(mine=current), change())
                raise OSError("mine")

        assert [True, True, True] == await live(store, *old, mine)

    async def test_sign_ins_at_once_keep_the_bound(self, bench: Bench) -> None:
        """Exactly so many are left, all of them live; and no sign-in fails."""
        for allowed in (1, 3):
            stores = (bench.store, bench.elsewhere)
            old = [await created(bench.store) for _ in range(6)]
            results = await asyncio.gather(
                *[
                    created(stores[n % 2], {"user_id": "ada"}, allowed=allowed)
                    for n in range(6)
                ],
                *[
                    signed_in(stores[n % 2], handle, "ada", allowed=allowed)
                    for n, handle in enumerate(old)
                ],
            )
            assert None not in results
            found = await bench.store.sessions_of("ada")
            assert allowed == len(found)
            assert [True] * allowed == await live(
                bench.store, *[info.handle for info in found]
            )
            await bench.store.revoke_user("ada")

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
