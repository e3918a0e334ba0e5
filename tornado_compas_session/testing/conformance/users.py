"""A user's sessions, who a session is of, and the upkeep."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tornado_compas_session.core.ids import new_handle
from tornado_compas_session.core.protocols import UserSessions
from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.exceptions import HandleTaken, SessionDataError
from tornado_compas_session.testing.conformance import ways
from tornado_compas_session.testing.conformance.bench import (
    HOUR,
    Bench,
    change,
    some_hash,
)
from tornado_compas_session.testing.conformance.rows import HOSTILE_HANDLES, NO_HANDLES


async def _of(store: Any, user: str | int) -> list[str]:
    """The handles of a user's sessions, as they are listed."""
    return [info.handle for info in await store.sessions_of(user)]


class UserSessionsSuite:
    """What a store promises that finds and ends the sessions of a user."""

    async def test_it_finds_users(self, bench: Bench) -> None:
        """The protocol is there."""
        assert isinstance(bench.store, UserSessions)

    async def test_a_users_sessions_are_listed(self, bench: Bench) -> None:
        """Last used first, without ids or data, and marked which one asks (LC-10)."""
        store = bench.store
        handles = [
            await bench.created(
                {"user_id": 7}, user_agent=f"agent {n}", address=f"::{n}"
            )
            for n in range(3)
        ]
        await bench.created({"user_id": "other"})
        await bench.created()
        bench.pass_time(10)
        await store.save(handles[1], 0, change())
        mine = handles[0]

        found = await store.sessions_of(7, current=mine)

        assert handles[1] == found[0].handle
        assert [mine] == [info.handle for info in found if info.current]
        assert {
            (handle, "7", f"agent {n}", f"::{n}") for n, handle in enumerate(handles)
        } == {
            (info.handle, info.user_id, info.user_agent, info.address) for info in found
        }
        assert found == await store.sessions_of("7", current=mine)
        assert 2 == len(await store.sessions_of(7, limit=2))

    async def test_a_list_shows_the_client_of_the_last_sign_in(
        self, bench: Bench
    ) -> None:
        """A new secret without a word of the client leaves what is recorded."""
        handle = await bench.created(user_agent="Netscape", address="::1")
        await bench.signed_in(handle, "ada")
        [info] = await bench.store.sessions_of("ada")
        assert ("Netscape", "::1") == (info.user_agent, info.address)
        await bench.turned(handle, user_agent="Mosaic", address="::2")
        [info] = await bench.store.sessions_of("ada")
        assert ("Mosaic", "::2") == (info.user_agent, info.address)

    async def test_a_session_is_revoked_by_its_handle(self, bench: Bench) -> None:
        """However often its secret and its visitor have changed; by no other handle."""
        store = bench.store
        old = await bench.created()
        bench.pass_time(HOUR + 1)
        one, two = await bench.created(), await bench.created()
        await bench.turned(one)
        await bench.signed_in(one, "ada")

        assert await store.revoke(one)
        for wrong in (one, old, new_handle(), *HOSTILE_HANDLES, *NO_HANDLES):
            assert not await store.revoke(wrong)
        assert [False, True] == await bench.live(one, two)

    async def test_all_sessions_of_a_user_but_one_are_revoked(
        self, bench: Bench
    ) -> None:
        """As after a change of the password (LC-10)."""
        store = bench.store
        handles = [await bench.created({"user_id": "ada"}) for _ in range(4)]
        other = await bench.created({"user_id": "eve"})
        kept = handles[2]

        await bench.turned(kept)
        assert 3 == await store.revoke_user("ada", except_handle=kept)
        assert [kept] == await _of(store, "ada")
        assert 1 == await store.revoke_user("ada")
        assert {"user_id": "eve"} == await bench.data_of(other)
        assert 1 == await store.revoke_all()
        assert await store.load(other) is None

    async def test_nobody_is_no_user(self, bench: Bench) -> None:
        """Neither None nor what prints in two ways; "None" is a name like any other."""
        store = bench.store
        handle = await bench.created()
        named = await bench.created({"user_id": "None"})
        for user in (None, True, 1e22, 2**64, "", "x" * 256, ["ada"]):
            for ask in (store.sessions_of, store.revoke_user):
                with pytest.raises(SessionDataError):
                    await ask(user)
        assert [True, True] == await bench.live(handle, named)
        assert 1 == await store.revoke_user("None")
        assert [True, False] == await bench.live(handle, named)

    async def test_who_a_session_is_of_changes_with_its_secret_only(
        self, bench: Bench
    ) -> None:
        """A save of `user_id` alone signs nobody in, out, or in as somebody else."""
        store = bench.store
        handle = await bench.created()
        await store.save(handle, 0, change({"user_id": "ada"}))
        await bench.turned(handle, {"user_id": "ada"})
        assert [] == await _of(store, "ada")
        await bench.signed_in(handle, "ada")
        await store.save(handle, 1, change({}, removed=("user_id",)))
        await store.save(handle, 1, change({"user_id": "eve"}))
        await bench.turned(handle)
        assert ([handle], []) == (await _of(store, "ada"), await _of(store, "eve"))
        await bench.signed_in(handle, "eve")
        assert ([], [handle]) == (await _of(store, "ada"), await _of(store, "eve"))
        await bench.turned(handle, identity=Identity(None), removed=("user_id",))
        assert [] == await _of(store, "eve")

    async def test_surplus_sessions_end_with_a_sign_in(self, bench: Bench) -> None:
        """Those longest unused, over the allowed number; and nobody else's."""
        store = bench.store
        other = await bench.created({"user_id": "eve"})
        handles = []
        for _ in range(4):
            handles.append(await bench.created({"user_id": "ada"}))
            bench.pass_time(10)
        await store.save(handles[0], 0, change())
        bench.pass_time(10)

        new = await bench.created({"user_id": "ada"}, allowed=3)
        assert [True, False, False, True] == await bench.live(*handles)

        bench.pass_time(10)
        anonymous = await bench.created()
        await bench.signed_in(anonymous, "ada", allowed=3)
        assert [True, False, True, True, True] == await bench.live(
            handles[0], handles[3], new, anonymous, other
        )

    @ways.each(ways.TURNS)
    async def test_a_sign_in_never_ends_its_own_session(
        self, bench: Bench, way: ways.Way
    ) -> None:
        """Though it were the one unused longest, and the only one allowed."""
        store = bench.store
        mine = await bench.loaded({"user_id": "ada"})
        bench.pass_time(10)
        others = [await bench.created({"user_id": "ada"}) for _ in range(3)]

        await way(store, mine, change(), Identity("ada", 1))

        assert [True, False, False, False] == await bench.live(mine.handle, *others)

    async def test_a_sign_in_that_fails_ends_nothing(self, bench: Bench) -> None:
        """With a wrong secret, a taken handle, or in a block that fails."""
        store = bench.store
        old = [await bench.created({"user_id": "ada"}) for _ in range(2)]
        record = await bench.loaded()
        mine, identity = record.handle, Identity("ada", 1)

        right = NewSecret(record.secret_hash, some_hash(), identity, True)
        wrong = right._replace(mine=some_hash())
        assert await store.regenerate(mine, 0, wrong, change()) is None
        assert await store.regenerate(mine, 7, right, change()) is None
        with pytest.raises(HandleTaken):
            await store.create(mine, some_hash(), change({"n": 1}), identity)
        with pytest.raises(OSError, match="mine"):
            async with store.lock(mine, 0, 5) as locked:
                await locked.regenerate(right, change())
                raise OSError("mine")

        assert [True, True, True] == await bench.live(*old, mine)

    @pytest.mark.parametrize("allowed", [1, 3])
    async def test_sign_ins_at_once_keep_the_bound(
        self, bench: Bench, allowed: int
    ) -> None:
        """Exactly so many are left, all of them live; and no sign-in fails."""
        both = bench, bench.elsewhere
        old = [await bench.created() for _ in range(6)]
        results = await asyncio.gather(
            *[
                both[n % 2].created({"user_id": "ada"}, allowed=allowed)
                for n in range(6)
            ],
            *[
                both[n % 2].signed_in(handle, "ada", allowed=allowed)
                for n, handle in enumerate(old)
            ],
        )
        assert None not in results
        found = await _of(bench.store, "ada")
        assert [True] * allowed == await bench.live(*found)

    async def test_expired_sessions_are_nobodys(self, bench: Bench) -> None:
        """In no list, ended by nobody, and in nobody's place, though used last."""
        store = bench.store
        alive = await bench.created({"user_id": "ada"}, idle=2 * HOUR)
        bench.pass_time(10)
        await bench.created({"user_id": "ada"})
        await bench.created({"user_id": "eve"})
        bench.pass_time(HOUR + 1)

        new = await bench.created({"user_id": "ada"}, allowed=2)

        assert [new, alive] == await _of(store, "ada")
        assert (2, 0) == (await store.revoke_user("ada"), await store.revoke_all())

    async def test_expired_sessions_are_deleted(self, bench: Bench) -> None:
        """As many as asked for, and never a live one (ST-7)."""
        store = bench.store
        for _ in range(5):
            await bench.created()
        bench.pass_time(25 * HOUR)
        kept = await bench.created({"n": 1})

        assert 5 == (await store.stats())["expired"]
        assert [3, 2, 0] == [await store.delete_expired(limit=n) for n in (3, 100, 100)]
        assert {"n": 1} == await bench.data_of(kept)

    async def test_it_counts(self, bench: Bench) -> None:
        """Live, expired, anonymous, users, the age of the oldest, bytes."""
        store = bench.store
        for data in ({"user_id": "eve"}, {"n": 0}):
            assert (await store.stats())["oldest_seconds"] is None
            await bench.created(data, own=True, own_idle=5)
            bench.pass_time(10)
        for data in ({"user_id": "ada"}, {"user_id": "ada"}, {"n": 0}):
            await bench.created(data)
        bench.pass_time(10)

        stats = await store.stats()

        assert (3, 2, 1, 1) == tuple(
            stats[name] for name in ("live", "expired", "anonymous", "users")
        )
        assert 10 == pytest.approx(stats["oldest_seconds"], abs=5)
        assert stats["bytes"] > 0
