"""A user's sessions, who a session is of, and the upkeep."""

from __future__ import annotations

import asyncio

import pytest

from tornado_compas_session.core.ids import new_handle
from tornado_compas_session.core.protocols import UserSessions
from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.exceptions import HandleTaken, SessionDataError
from tornado_compas_session.testing.conformance.bench import (
    HOSTILE_HANDLES,
    HOUR,
    NO_HANDLES,
    Bench,
    change,
    created,
    data_of,
    live,
    signed_in,
    some_hash,
    turned,
)


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

    async def test_an_expired_session_takes_no_place(self, bench: Bench) -> None:
        """Though it was used last, the live ones alone are counted."""
        store = bench.store
        alive = await created(store, {"user_id": "ada"})
        bench.pass_time(10)
        await created(store, {"user_id": "ada"}, own=True, own_idle=60)
        bench.pass_time(70)

        new = await created(store, {"user_id": "ada"}, allowed=2)

        assert [True, True] == await live(store, alive, new)

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
        for data in ({"user_id": "eve"}, {"n": 0}):
            await created(bench.store, data, own=True, own_idle=5)
        bench.pass_time(10)
        assert (await bench.store.stats())["oldest_seconds"] is None
        await created(bench.store, {"user_id": "ada"})
        await created(bench.store, {"user_id": "ada"})
        await created(bench.store)
        bench.pass_time(10)

        stats = await bench.store.stats()

        assert (3, 2, 1, 1) == tuple(
            stats[name] for name in ("live", "expired", "anonymous", "users")
        )
        assert 10 == pytest.approx(stats["oldest_seconds"], abs=5)
        assert stats["bytes"] > 0
