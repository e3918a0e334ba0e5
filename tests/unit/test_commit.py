"""The loop that commits: one step after the other, until nothing is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.factories import (
    Clock,
    TroubledStore,
    load_session,
    make_manager,
    make_record,
)
from tornado_compas_session import (
    MemorySessionStore,
    ResponseAlreadySent,
    Session,
    SessionDataError,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.core.ids import hash_secret
from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.types import NewSecret, SessionChange

DAY = 86400
WRITES = ("create", "save", "regenerate", "delete")


class Wire(TroubledStore):
    """Does what it is told, and then loses the reply of what is in `loses`, once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loses = ""

    def _reply(self, verb: str, reply: Any) -> Any:
        if verb == self.loses:
            self.loses = ""
            raise StoreUnavailable("the connection was lost")
        return reply

    async def create(self, *args, **options):
        return self._reply("create", await super().create(*args, **options))

    async def save(self, *args, **options):
        return self._reply("save", await super().save(*args, **options))

    async def regenerate(self, *args, **options):
        return self._reply("regenerate", await super().regenerate(*args, **options))

    async def delete(self, *args, **options):
        return self._reply("delete", await super().delete(*args, **options))

    def rows(self) -> list[dict[str, Any]]:
        return [
            {key: json.loads(text) for key, text in row.data.items()}
            for row in self._rows.values()
        ]

    def took(self) -> list[str]:
        """What was called since this was asked last."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return Wire(clock=clock)


@pytest.fixture
def manager(store):
    return make_manager(store)


def new(manager: SessionManager, **data: Any) -> Session:
    session = manager.session()
    session.update(data)
    return session


async def visit(manager: SessionManager, cookie: str) -> Session:
    return await load_session(manager, [cookie])


def cookie_of(manager: SessionManager, session: Session) -> str:
    [header] = manager.cookies(session)
    assert "Max-Age=0" not in header
    return header.partition(";")[0]


async def started(manager: SessionManager, **data: Any) -> str:
    """The cookie of a stored session."""
    session = new(manager, **(data or {"a": 1}))
    await manager.commit(session)
    manager.store.took()  # type: ignore[attr-defined]
    return cookie_of(manager, session)


def next_of(manager: SessionManager, session: Session, **options: Any) -> Any:
    return manager._planner.next(session, **{"automatic": True, **options})


async def under_way(store: Wire, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Begins a commit, whose first write waits until the gate is opened."""
    store.gate.clear()
    store.writing.clear()
    task = asyncio.create_task(work)
    async with asyncio.timeout(10):
        await store.writing.wait()
    return task


async def finished(store: Wire, task: asyncio.Task[Any]) -> None:
    store.gate.set()
    async with asyncio.timeout(10):
        await task


# -- what there is to do ---------------------------------------------------------------


async def test_nothing_to_do_is_nothing(manager, store):
    """Untouched and empty new, and read: no step, no call, no cookie (LC-5)."""
    cookie = await started(manager)
    for session in (new(manager), await visit(manager, cookie)):
        dict(session)
        store.took()
        assert next_of(manager, session) is None
        assert not manager.pending(session)
        await manager.commit(session)
        assert [] == store.took()
        assert [] == manager.cookies(session)


@pytest.mark.parametrize(
    ("edit", "verbs"),
    [
        (lambda s: s.update(b=1), ["save"]),
        (lambda s: s["list"].append(1), ["save"]),
        (lambda s: s.replace({"b": 1}), ["save"]),
        (lambda s: s.clear(), ["save"]),
        (lambda s: setattr(s, "max_age", 60), ["regenerate"]),
        (lambda s: setattr(s, "absolute_max_age", 60), ["regenerate"]),
        (lambda s: s.regenerate(), ["regenerate"]),
        (lambda s: [s.regenerate(), s.regenerate(), s.update(b=1)], ["regenerate"]),
        (lambda s: s.update(user_id=7, b=1), ["regenerate"]),
        (lambda s: [s.regenerate(), s.update(user_id=7)], ["regenerate"]),
        (lambda s: s.destroy(), ["delete"]),
        (lambda s: [s.update(b=1), s.destroy()], ["delete"]),
        (lambda s: [s.destroy(), s.update(b=1)], ["delete", "create"]),
        (lambda s: [s.destroy(), s.update(user_id=7)], ["delete", "create"]),
        (lambda s: [s.destroy(), s.regenerate()], ["delete"]),
    ],
)
async def test_what_each_edit_comes_to(manager, store, edit, verbs):
    """As few writes as it takes, one after the other; and then nothing is left."""
    session = await visit(manager, await started(manager, a=1, list=[]))
    store.took()
    edit(session)
    wanted = dict(session)
    await manager.commit(session)

    assert verbs == store.took()
    assert not session.modified
    assert next_of(manager, session) is None
    assert store.rows() == ([] if verbs == ["delete"] else [wanted])
    manager.cookies(session)
    await manager.commit(session)
    assert [] == store.took()


async def test_only_what_changed_is_told(manager, store):
    """The rest of the row is whoever's else that wrote it meanwhile."""
    cookie = await started(manager, a=1, b=1)
    one, other = await visit(manager, cookie), await visit(manager, cookie)
    one["a"] = 2
    other["b"] = 2
    del other["a"]
    other["a"] = 1  # as it was: not written
    await manager.commit(other)
    await manager.commit(one)

    assert [{"a": 2, "b": 2}] == store.rows()


async def test_the_first_showing_is_written(manager, store):
    """Even if nothing else is to be saved; once, and it ends the former one's grace."""
    session = await visit(manager, await started(manager))
    session.regenerate()
    await manager.commit(session)
    cookie = cookie_of(manager, session)
    [row] = store._rows.values()
    assert row.record.shown is None
    store.took()
    for calls in (["load", "renew"], ["load"]):
        session = await visit(manager, cookie)
        await manager.commit(session)
        assert calls == store.took()
        assert [] == manager.cookies(session)

    [row] = store._rows.values()
    assert row.record.shown is not None


async def test_a_renewal_takes_the_data_along(manager, store, clock):
    """One statement: the new secret, the expiry, and what the request has changed."""
    cookie = await started(manager)
    clock.now += 2 * 3600
    session = await visit(manager, cookie)
    session["b"] = 2
    step = next_of(manager, session)
    assert step.renews_cookie
    store.took()
    await manager.commit(session)

    assert ["regenerate"] == store.took()
    assert [{"a": 1, "b": 2}] == store.rows()
    assert cookie != cookie_of(manager, session)


async def test_a_renewal_that_must_not_be(manager, store, clock):
    """A response without a cookie saves what there is, and renews the row."""
    cookie = await started(manager)
    clock.now += 2 * 3600
    for edit, calls in ((lambda s: s.update(b=2), "save"), (dict, "renew")):
        clock.now += 60
        session = await visit(manager, cookie)
        session.life.no_renewal()
        edit(session)
        store.took()
        await manager.commit(session)
        assert [calls] == store.took()
        assert [] == manager.cookies(session)


async def test_clearing_gives_a_new_id_where_somebody_was_signed_in(manager, store):
    """
    Changed: an anonymous visitor who clears a basket keeps the id. Who is signed in is
    so no more, and a known id never leads to what is written next (LC-4).
    """
    anonymous = await visit(manager, await started(manager))
    anonymous.clear()
    await manager.commit(anonymous)
    assert [] == manager.cookies(anonymous)
    await manager.store.revoke_all()

    cookie = await started(manager, user_id=7)
    session = await visit(manager, cookie)
    session.clear()
    await manager.commit(session)
    assert cookie != cookie_of(manager, session)
    [row] = store._rows.values()
    assert (None, None, None) == (
        row.user_id,
        row.record.former_hash,
        row.record.authenticated,
    )
    assert 1 == row.record.epoch


# -- who the visitor is ----------------------------------------------------------------


async def test_signing_in_changes_everything_at_once(manager, store, clock):
    """The secret, the epoch, the user, the date: in the write that has the data."""
    session = await visit(manager, await started(manager))
    clock.now += 5
    session["user_id"] = 7
    await manager.commit(session)
    [row] = store._rows.values()

    assert ("7", 1, None, clock.now) == (
        row.user_id,
        row.record.epoch,
        row.record.former_hash,
        row.record.authenticated,
    )
    assert session.is_fresh(0)
    assert session.life.record is not None
    assert (1, None) == (session.life.record.epoch, session.life.record.former_hash)


def test_a_new_session_of_nobody(manager):
    """The store is asked for no sign-in, which would count a user's sessions."""
    assert next_of(manager, new(manager, a=1)).identity is None


async def test_a_new_session_of_a_user(manager, store):
    """Signed in by its creation."""
    session = new(manager, user_id="ada")
    await manager.commit(session)
    [row] = store._rows.values()

    assert ("ada", 0) == (row.user_id, row.record.epoch)
    assert session.auth_time is not None


@pytest.mark.parametrize("edit", [lambda s: s.update(user_id="7"), dict])
async def test_the_same_user_is_no_change(manager, store, edit):
    """7 and "7" are one: no new id, and the epoch stays."""
    session = await visit(manager, await started(manager, user_id=7))
    edit(session)
    session["b"] = 1
    await manager.commit(session)

    assert [] == manager.cookies(session)
    assert [0] == [row.record.epoch for row in store._rows.values()]


async def test_what_began_before_a_sign_in_ends_there(manager, store, clock):
    """
    A request of whoever knew the id before neither writes into the session of the
    user, nor ends it, nor renews it (epoch).
    """
    cookie = await started(manager)
    requests = [await visit(manager, cookie) for _ in range(5)]
    session = await visit(manager, cookie)
    session["user_id"] = 7
    await manager.commit(session)
    writes, turns, ends, renews, out = requests
    writes["a"] = "attacker"
    turns.regenerate()
    ends.destroy()
    clock.now += 60
    assert renews.life.record is not None
    renews.life.record = renews.life.record._replace(now=clock.now)
    out["user_id"] = "8"
    store.took()
    for request in (writes, turns, out):
        with pytest.raises(SessionGone):
            await manager.commit(request)
        assert {} == request
    for request in (ends, renews):
        await manager.commit(request)

    assert [{"a": 1, "user_id": 7}] == store.rows()
    for request in requests:
        assert [] == manager.cookies(request)
        assert request.is_new


async def test_a_sign_in_needs_the_current_secret(manager, store):
    """The attacker has regenerated first: the sign-in is never merged (cas)."""
    cookie = await started(manager)
    victim, attacker = await visit(manager, cookie), await visit(manager, cookie)
    attacker.regenerate()
    await manager.commit(attacker)
    victim["user_id"] = 7
    with pytest.raises(SessionGone):
        await manager.commit(victim)

    assert [{"a": 1}] == store.rows()
    assert [] == manager.cookies(victim)


async def test_a_sign_in_with_the_former_secret_is_refused(manager, store):
    """What else it wrote is refused with it; without it, it is merged."""
    cookie = await started(manager)
    renewed = await visit(manager, cookie)
    renewed.regenerate()
    await manager.commit(renewed)
    former = await visit(manager, cookie)
    former["b"] = 1
    await manager.commit(former)
    assert [{"a": 1, "b": 1}] == store.rows()
    former = await visit(manager, cookie)
    former.update(user_id=7, b=2)
    with pytest.raises(SessionGone):
        await manager.commit(former)
    former.destroy()  # there is nothing left that is its own to end
    await manager.commit(former)

    assert [{"a": 1, "b": 1}] == store.rows()
    assert [] == manager.cookies(former)


@pytest.mark.parametrize("edit", [Session.clear, lambda s: s.pop("user_id")])
async def test_a_sign_out_with_the_former_secret_ends_the_row(manager, store, edit):
    """It has no secret to give out; so the whole session ends, and its cookie."""
    cookie = await started(manager, user_id=7, a=1)
    renewed = await visit(manager, cookie)
    renewed.regenerate()
    await manager.commit(renewed)
    former = await visit(manager, cookie)
    edit(former)
    rest = dict(former)
    await manager.commit(former)

    assert store.rows() == ([rest] if rest else [])
    assert 1 == len(manager.cookies(former))


async def test_a_sign_out_that_a_renewal_overtook_still_signs_out(manager, store):
    """A poll of the same visitor has renewed the cookie meanwhile."""
    cookie = await started(manager, user_id=7, a=1)
    out, poll = await visit(manager, cookie), await visit(manager, cookie)
    poll.regenerate()
    await manager.commit(poll)
    out.clear()
    await manager.commit(out)

    assert [] == store.rows()
    [header] = manager.cookies(out)
    assert "Max-Age=0" in header


async def test_a_slow_end_works_over_regenerations(manager, store):
    """As often as it was regenerated for the same visitor; the cookie is cleared."""
    cookie = await started(manager)
    slow = await visit(manager, cookie)
    for _ in range(3):
        session = await visit(manager, cookie)
        session.regenerate()
        await manager.commit(session)
        cookie = cookie_of(manager, session)
    slow.destroy()
    await manager.commit(slow)

    assert [] == store.rows()
    assert "Max-Age=0" in manager.cookies(slow)[0]


async def test_an_end_that_misses_is_done(manager, store, caplog):
    """Silently, and clears nothing: the cookie may be another session's by now."""
    caplog.set_level("INFO")
    cookie = await started(manager)
    session = await visit(manager, cookie)
    await store.revoke_all()
    session.destroy()
    await manager.commit(session)

    assert [] == manager.cookies(session)
    assert "destroyed" not in caplog.text


async def test_of_two_regenerations_one_wins_and_the_other_is_merged(manager, store):
    """Both requests' data are kept, and one new secret leaves."""
    cookie = await started(manager)
    one, other = await visit(manager, cookie), await visit(manager, cookie)
    for name, session in (("one", one), ("other", other)):
        session[name] = 1
        session.regenerate()
    await asyncio.gather(manager.commit(one), manager.commit(other))

    assert [{"a": 1, "one": 1, "other": 1}] == store.rows()
    headers = [manager.cookies(session) for session in (one, other)]
    assert [0, 1] == sorted(map(len, headers))


# -- a double click on "sign in" -------------------------------------------------------


async def test_a_double_click_on_sign_in(manager, store):
    """Both answers carry a session of that user; neither is an error (same)."""
    cookie = await started(manager, basket=[1])
    one, other = await visit(manager, cookie), await visit(manager, cookie)
    for session in (one, other):
        session["user_id"] = 7
    await asyncio.gather(manager.commit(one), manager.commit(other))

    assert [{"basket": [1], "user_id": 7}] * 2 == store.rows()
    assert cookie_of(manager, one) != cookie_of(manager, other)
    assert one.handle != other.handle


async def test_the_second_click_comes_after_the_first_was_done(manager, store):
    """It is a stranger's then, and signs in as the very user that the row has."""
    cookie = await started(manager, basket=[1])
    session = await visit(manager, cookie)
    session["user_id"] = 7
    await manager.commit(session)
    late = await visit(manager, cookie)
    assert {} == late
    late["user_id"] = "7"
    await manager.commit(late)

    assert [{"basket": [1], "user_id": 7}, {"user_id": "7"}] == store.rows()
    cookie_of(manager, late)
    late.destroy()  # it is its own
    await manager.commit(late)
    assert [{"basket": [1], "user_id": 7}] == store.rows()


@pytest.mark.parametrize("data", [{"user_id": 8}, {"a": 1}, {"user_id": None}])
async def test_a_stranger_writes_nothing(manager, store, data):
    """`SessionGone`, and no session whose cookie would throw the good one out."""
    cookie = await started(manager)
    session = await visit(manager, cookie)
    session["user_id"] = 7
    await manager.commit(session)
    stranger = await visit(manager, cookie)
    stranger.update(data)
    assert manager.pending(stranger)
    with pytest.raises(SessionGone):
        await manager.commit(stranger)

    assert 1 == len(store)
    assert [] == manager.cookies(stranger)


async def test_another_user_at_the_same_time_is_refused(manager, store):
    """Two people at one browser: the first one's session is not the other's."""
    cookie = await started(manager)
    one, other = await visit(manager, cookie), await visit(manager, cookie)
    one["user_id"], other["user_id"] = 7, 8
    await manager.commit(one)
    with pytest.raises(SessionGone):
        await manager.commit(other)

    assert [{"a": 1, "user_id": 7}] == store.rows()


async def test_the_number_of_a_users_sessions_is_kept(store):
    """Those unused longest go, and never the one that signs in."""
    manager = make_manager(store, max_sessions_per_user=2)
    handles = []
    for _ in range(4):
        session = new(manager, user_id=7)
        await manager.commit(session)
        handles.append(session.handle)
        store._clock.now += 1

    assert handles[2:] == list(store._rows)
    anonymous = await visit(manager, await started(manager))
    anonymous["user_id"] = 7
    await manager.commit(anonymous)
    assert [handles[3], anonymous.handle] == list(store._rows)


# -- what comes while it is written ----------------------------------------------------


async def test_changes_that_come_meanwhile_are_written_next(manager, store):
    """Nothing is forgotten, and nothing is written twice."""
    session = new(manager, a=1)
    task = await under_way(store, manager.commit(session))
    session["b"] = [1]
    session["a"] = 2
    await finished(store, task)

    assert ["create", "save"] == store.took()
    assert [{"a": 2, "b": [1]}] == store.rows()


async def test_a_sign_in_that_comes_meanwhile(manager, store):
    """It is a change of who the visitor is, in a write of its own."""
    session = await visit(manager, await started(manager))
    session["b"] = 1
    store.took()
    task = await under_way(store, manager.commit(session))
    session["user_id"] = 7
    await finished(store, task)

    assert ["save", "regenerate"] == store.took()
    assert ["7"] == [row.user_id for row in store._rows.values()]


async def test_another_user_who_comes_while_the_first_is_written(manager, store):
    """The row has the first one then: the second is a change all the same."""
    session = await visit(manager, await started(manager))
    session["user_id"] = 7
    task = await under_way(store, manager.commit(session))
    session["user_id"] = 8
    await finished(store, task)
    [row] = store._rows.values()

    assert ("8", 2) == (row.user_id, row.record.epoch)
    cookie = cookie_of(manager, session)
    assert {"a": 1, "user_id": 8} == await visit(manager, cookie)


@pytest.mark.parametrize("then", [{}, {"fresh": 1}, {"user_id": 9}])
@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.update(b=1),
        lambda s: s.update(user_id=7),
        lambda s: s.regenerate(),
        lambda s: setattr(s, "max_age", 60),
        lambda s: s.replace({"b": 1}),
    ],
)
async def test_a_session_that_is_ended_while_it_is_written(manager, store, edit, then):
    """It ends, whatever was being written; and what follows is another session."""
    session = await visit(manager, await started(manager))
    edit(session)
    task = await under_way(store, manager.commit(session))
    session.destroy()
    session.update(then)
    await finished(store, task)

    assert store.rows() == ([then] if then else [])
    assert then == session
    [header] = manager.cookies(session)
    assert bool(then) == ("Max-Age=0" not in header)


@pytest.mark.parametrize("then", [{}, {"fresh": 1}])
@pytest.mark.parametrize("data", [{"a": 1}, {"user_id": 7}])
async def test_a_session_that_is_ended_while_it_is_made(manager, store, data, then):
    """No row is left over, and none comes back."""
    session = new(manager, **data)
    task = await under_way(store, manager.commit(session))
    session.destroy()
    session.update(then)
    await finished(store, task)

    assert store.rows() == ([then] if then else [])
    assert session.is_new == (not then)


@pytest.mark.parametrize("edit", [lambda s: s.update(b=1), lambda s: s.regenerate()])
async def test_a_session_that_is_ended_while_it_is_found_gone(manager, store, edit):
    """There is nothing left to do, and nobody to tell."""
    session = await visit(manager, await started(manager))
    edit(session)
    task = await under_way(store, manager.commit(session))
    await store.revoke_all()
    session.destroy()
    await finished(store, task)

    assert [] == store.rows()
    assert [] == manager.cookies(session)


async def test_a_change_that_comes_while_a_renewal_finds_it_gone(manager, store, clock):
    """Only who changed something is told; that it came late is no excuse."""
    cookie = await started(manager)
    clock.now += 60
    for late in (False, True):
        session = await visit(manager, cookie)
        task = await under_way(store, manager.commit(session))
        await store.revoke_all()
        if late:
            session["b"] = 1
            with pytest.raises(SessionGone):
                await finished(store, task)
        else:
            await finished(store, task)
            assert session.is_new
            assert {} == session
        cookie = await started(manager)
        clock.now += 60


@pytest.mark.parametrize(
    ("edit", "rows"),
    [
        (lambda s: s.destroy(), []),
        (lambda s: [s.destroy(), s.update(x=1)], [{"x": 1}]),
        (lambda s: s.replace({"x": 1}), [{"x": 1}]),
        (lambda s: s.update(user_id=8), [{"a": 1, "b": 1, "user_id": 8}]),
    ],
)
@pytest.mark.parametrize("stored", [True, False])
async def test_what_was_planned_is_not_what_is_wanted_any_more(
    manager, store, edit, rows, stored
):
    """Between the look at what is pending and its commit the handler goes on."""
    session = new(manager, a=1)
    if stored:
        session = await visit(manager, await started(manager))
    session["b"] = 1
    assert manager.pending(session)
    edit(session)
    await manager.commit(session)

    assert rows == store.rows()


@pytest.mark.parametrize("what", ["reload", "lock"])
async def test_what_was_planned_is_over_once_the_row_was_read(manager, store, what):
    """What is committed then is what the session is by then."""
    session = await visit(manager, await started(manager))
    session["a"] = 2
    assert manager.pending(session)
    if what == "reload":
        await session.reload()
    else:
        async with session.lock():
            session["a"] = 1
    store.took()
    await manager.commit(session)

    assert [] == store.took()
    assert [{"a": 1}] == store.rows()


async def test_two_saves_at_once_make_one_row(manager, store):
    """One commit at a time; the second finds nothing left."""
    session = new(manager, a=1)
    await asyncio.gather(session.save(), session.save(), manager.commit(session))

    assert ["create"] == store.took()
    assert 1 == len(store)


# -- replies that are lost -------------------------------------------------------------


async def test_a_create_whose_reply_was_lost_is_found_again(manager, store):
    """One row, which the browser gets; and what changed since is written to it."""
    session = new(manager, a=1, b=1, c=[1])
    store.loses = "create"
    with pytest.raises(StoreUnavailable):
        await session.save()
    assert session.is_new
    assert [] == manager.cookies(session)
    session["a"] = 2
    del session["b"]
    session["c"].append(2)
    session["d"] = 1
    await manager.commit(session)

    assert ["create", "create", "load", "save"] == store.took()
    assert [{"a": 2, "c": [1, 2], "d": 1}] == store.rows()
    assert session == await visit(manager, cookie_of(manager, session))


async def test_a_create_that_did_not_happen_is_tried_again(manager, store):
    """With the same id, as it may have happened; there is one row."""
    session = new(manager, a=1)
    store.failing = "create"
    with pytest.raises(StoreUnavailable):
        await session.save()
    store.failing = ""
    await manager.commit(session)

    assert [{"a": 1}] == store.rows()
    assert session == await visit(manager, cookie_of(manager, session))


async def test_a_sign_in_after_a_create_whose_reply_was_lost(manager, store):
    """The row that is there gets the user, and another secret with it."""
    session = new(manager, a=1)
    store.loses = "create"
    with pytest.raises(StoreUnavailable):
        await session.save()
    session["user_id"] = 7
    await manager.commit(session)
    [row] = store._rows.values()

    assert ("7", 1) == (row.user_id, row.record.epoch)
    assert session == await visit(manager, cookie_of(manager, session))


Edit = Callable[[Session], Any]


@pytest.mark.parametrize("loses", [True, False])
@pytest.mark.parametrize(
    "since",
    [
        lambda s: None,
        lambda s: s.update(b=2, d=1),
        lambda s: s.pop("b"),
        lambda s: s["list"].append(2),
        lambda s: s.replace({"x": 1}),
        lambda s: s.update(user_id=8),
        lambda s: s.clear(),
        lambda s: s.regenerate(),
        lambda s: setattr(s, "max_age", 60),
        lambda s: s.destroy(),
    ],
)
@pytest.mark.parametrize(
    "edit",
    [
        lambda s: [s.regenerate(), s.update(b=1)],
        lambda s: s.update(user_id=7, b=1),
        lambda s: [s.replace({"user_id": 7, "b": 1, "list": []})],
        lambda s: [setattr(s, "max_age", 90), s.update(b=1)],  # type: ignore[func-returns-value]
    ],
)
async def test_a_regeneration_whose_reply_was_lost(
    manager, store, edit: Edit, since: Edit, loses: bool
) -> None:
    """
    It may have happened or not, and the handler goes on: what it changed then is not
    lost, the row is the user's that it says, and the secret that leaves opens it.
    """
    cookie = await started(manager, a=1, list=[])
    session = await visit(manager, cookie)
    edit(session)
    if loses:
        store.loses = "regenerate"
    else:
        store.failing = "regenerate"
    with pytest.raises(StoreUnavailable):
        await session.save()
    assert [] == manager.cookies(session)
    store.failing = ""
    tried = session.user
    since(session)
    wanted, ended = dict(session), session.is_new
    try:
        await manager.commit(session)
    except SessionGone:
        # A sign-in that is taken back, and nobody knows whether it ever was one.
        assert loses
        assert (tried, session.user) == ("7", None)
        return

    if ended:
        # Where a sign-in has moved the row unseen, nobody has a secret that opens it.
        assert store.rows() == [] or (loses and tried == "7")
        assert (await visit(manager, cookie)).is_new
        return
    assert [wanted] == store.rows()
    [row] = store._rows.values()
    assert row.user_id == session.user
    if manager.cookies(session):
        cookie = cookie_of(manager, session)
    again = await visit(manager, cookie)
    assert wanted == again
    assert again.life.current
    for one in (session, again):
        assert one.life.record is not None
        assert row.record.epoch == one.life.record.epoch
    assert again.max_age == session.max_age


async def test_a_save_whose_reply_was_lost_is_written_again(manager, store):
    """To write it twice changes nothing."""
    session = await visit(manager, await started(manager))
    session["b"] = 1
    store.loses = "save"
    with pytest.raises(StoreUnavailable):
        await session.save()
    session["a"] = 2
    await manager.commit(session)

    assert [{"a": 2, "b": 1}] == store.rows()


async def test_an_end_whose_reply_was_lost(manager, store):
    """It has happened, so there is nothing left to do."""
    session = await visit(manager, await started(manager))
    session.destroy()
    store.loses = "delete"
    with pytest.raises(StoreUnavailable):
        await session.save()
    await manager.commit(session)

    assert [] == store.rows()
    assert not session.modified


@pytest.mark.parametrize("verb", WRITES)
async def test_what_failed_is_still_to_be_written(manager, store, verb):
    """No change is forgotten by a store that was away for a moment."""
    session = await visit(manager, await started(manager))
    if verb in ("create", "delete"):
        session.destroy()
    if verb in ("create", "save"):
        session["b"] = 1
    if verb == "regenerate":
        session.regenerate()
    wanted = dict(session)
    store.failing = verb
    with pytest.raises(StoreUnavailable):
        await manager.commit(session)
    assert manager.pending(session)
    assert [] == [h for h in manager.cookies(session) if "Max-Age=0" not in h]
    store.failing = ""
    await manager.commit(session)

    assert not manager.pending(session)
    assert store.rows() == ([] if verb == "delete" else [wanted])


async def test_handles_that_are_always_taken_are_an_error(store):
    """Three draws, and then the fault is named (ID-6)."""
    manager = make_manager(store, draw_handle=lambda: "t" * 12)
    await started(manager)
    session = new(manager, b=1)
    with pytest.raises(StoreError, match="random handles in a row were taken"):
        await manager.commit(session)

    assert ["create", "load"] * 3 == store.took()
    assert [{"a": 1}] == store.rows()


async def test_a_handle_that_is_taken_is_drawn_again(store):
    """What was there stays as it was."""
    handles = iter(["t" * 12, "t" * 12, "u" * 12])
    manager = make_manager(store, draw_handle=lambda: next(handles))
    await started(manager)
    session = new(manager, b=1)
    await manager.commit(session)

    assert [{"a": 1}, {"b": 1}] == store.rows()
    assert "u" * 12 == session.handle


# -- the bound of the data -------------------------------------------------------------


async def test_size_is_bounded_to_the_byte(manager, store):
    """64 KiB by default, and one byte more is refused with both numbers (ST-3)."""
    session = new(manager, a="x" * (65536 - 8))
    await manager.commit(session)
    session["a"] += "x"
    assert manager.pending(session)
    with pytest.raises(
        SessionDataError, match="65537 bytes of JSON, and max_data_size is 65536"
    ):
        await manager.commit(session)
    session = new(manager, a="x" * (65536 - 7))
    with pytest.raises(SessionDataError, match="65537 bytes"):
        await manager.commit(session)

    assert ["create"] == store.took()


async def test_a_refused_size_leaves_the_row(store):
    """What was stored stays as it was (ST-2)."""
    manager = make_manager(store, max_data_size=100)
    session = await visit(manager, await started(manager, a="x" * 50))
    session["b"] = "x" * 50
    with pytest.raises(SessionDataError):
        await manager.commit(session)

    assert [{"a": "x" * 50}] == store.rows()


@pytest.mark.parametrize(
    ("edit", "refused"),
    [
        (lambda s: s.update(c=1), True),
        (lambda s: s.update(a="x" * 61), True),
        (lambda s: s.replace({"a": "x" * 200}), True),
        (lambda s: s.update(user_id=7, c=1), True),
        (lambda s: s.update(user_id=7), False),
        (lambda s: s.update(a="y" * 60), False),
        (lambda s: s.pop("a"), False),
        (lambda s: s.update(a="x"), False),
        (lambda s: s.replace({"a": "x"}), False),
        (lambda s: s.regenerate(), False),
        (lambda s: s.destroy(), False),
        (lambda s: s.clear(), False),
        (lambda s: [s.pop("a"), s.update(user_id=7)], False),
        (lambda s: setattr(s, "max_age", 60), False),
    ],
)
async def test_one_that_grew_too_large_in_parallel_can_shrink(store, edit, refused):
    """
    Two requests have written half of it each: only growth is refused then, and not that
    of `user_id`: who is to sign in must not be kept from it.
    """
    manager = make_manager(store, max_data_size=100)
    cookie = await started(manager, n=1)
    one, other = await visit(manager, cookie), await visit(manager, cookie)
    one["a"], other["b"] = "x" * 60, "x" * 60
    await manager.commit(one)
    await manager.commit(other)
    session = await visit(manager, cookie)
    edit(session)
    if refused:
        with pytest.raises(SessionDataError, match="bytes of JSON"):
            await manager.commit(session)
    else:
        await manager.commit(session)
        assert not session.modified


async def test_what_cannot_be_kept_is_found_before_anything_is_written(manager, store):
    """However many steps there are: the good ones do not go ahead."""
    session = await visit(manager, await started(manager))
    session.update(user_id=7, b={1})
    store.took()
    assert manager.pending(session)
    with pytest.raises(SessionDataError, match="cannot keep b: a set"):
        await manager.commit(session)

    assert [] == store.took()
    del session["b"]
    await manager.commit(session)
    assert [{"a": 1, "user_id": 7}] == store.rows()


# -- auto_commit -----------------------------------------------------------------------


async def test_without_auto_commit_only_save_writes(store, clock):
    """A renewal still renews, and nothing else; ending works as well."""
    manager = make_manager(store, auto_commit=False)
    session = new(manager, a=1)
    await manager.commit(session)
    assert [] == store.took()
    await session.save()
    cookie = cookie_of(manager, session)
    clock.now += 2 * 3600
    store.took()
    session = await visit(manager, cookie)
    session["a"] = 2
    session.max_age = 60
    session["user_id"] = 7
    session.regenerate()
    await manager.commit(session)
    assert ["load", "regenerate"] == store.took()
    [row] = store._rows.values()
    assert [{"a": 1}] == store.rows()
    assert (None, None, 0) == (row.user_id, row.record.own_idle, row.record.epoch)
    await session.save()
    assert [{"a": 2, "user_id": 7}] == store.rows()
    [row] = store._rows.values()
    assert 60 == row.record.own_idle
    session.destroy()
    await manager.commit(session)
    assert [] == store.rows()


# -- cookies that cannot reach the browser ---------------------------------------------


@pytest.mark.parametrize("edit", [Session.regenerate, lambda s: s.update(user_id=7)])
async def test_a_new_id_after_the_headers(manager, edit):
    """Asked for before they left, and not saved: the cookie cannot follow them."""
    session = await visit(manager, await started(manager))
    edit(session)
    session.life.headers_left("the headers have left")
    with pytest.raises(ResponseAlreadySent, match="the headers have left"):
        next_of(manager, session)


async def test_a_sign_in_whose_cookie_cannot_be_sent(manager, store, caplog):
    """It is not made, as nobody would be signed in; one line says why."""
    session = await visit(manager, await started(manager))
    session.life.no_cookie("the cookie's path is another one")
    session["user_id"] = 7
    await manager.commit(session)

    assert [{"a": 1}] == store.rows()
    assert "the cookie's path is another one" in caplog.text


async def test_a_sign_in_where_somebody_else_wrote_no_user(manager, store):
    """What the row has cannot be compared; so it is another visitor."""
    cookie = await started(manager)
    [row] = store._rows.values()
    row.data["user_id"] = "[1]"
    session = await visit(manager, cookie)
    session["user_id"] = 7

    assert "7" == next_of(manager, session).identity.user_id


async def test_one_new_id_for_each_request(manager, store):
    """A second one, before the cookie of the first has left, is done at once."""
    session = await visit(manager, await started(manager))
    for verbs in (["regenerate"], []):
        session.regenerate()
        store.took()
        await manager.commit(session)

        assert verbs == store.took()
        assert not session.modified


async def test_what_cannot_reach_the_browser_is_not_made(manager, store, caplog):
    """A row for each visit, and no cookie that arrives: none, and one line says why."""
    for _ in range(3):
        session = new(manager, a=1)
        session.life.no_cookie("the cookie's path is another one")
        await manager.commit(session)
        assert [] == manager.cookies(session)

    assert [] == store.rows()
    assert 1 == caplog.text.count("the cookie's path is another one")


async def test_a_session_whose_cookie_cannot_be_sent_is_saved(manager, store, clock):
    """Its data, its end; no new secret for nobody, but a sign-out is one."""
    cookie = await started(manager, user_id=7)
    clock.now += DAY
    session = await visit(manager, cookie)
    session.life.no_cookie("")
    session["a"] = 1
    session.regenerate()
    store.took()
    await manager.commit(session)
    assert ["save"] == store.took()
    session = await visit(manager, cookie)
    session.life.no_cookie("")
    session.clear()
    await manager.commit(session)
    assert (await visit(manager, cookie)).is_new


# -- the store's own view --------------------------------------------------------------


async def test_expired_rows_are_not_written(store, clock):
    """Neither saved nor renewed nor given a new id (LC-8)."""
    manager = make_manager(store, max_age=60)
    for edit in (lambda s: s.update(a=2), lambda s: s.regenerate()):
        session = await visit(manager, await started(manager))
        edit(session)
        clock.now += 61
        with pytest.raises(SessionGone):
            await manager.commit(session)
        assert 0 == len(store)


async def test_a_lost_session_is_told_only_to_who_changed_it(manager, store, clock):
    """`SessionGone` for a change or a new id; nothing for a renewal (LC-3)."""
    for edit, told in (("change", True), ("regenerate", True), ("renew", False)):
        cookie = await started(manager)
        clock.now += 60 if edit == "renew" else 0
        session = await visit(manager, cookie)
        await store.revoke_all()
        if edit == "change":
            session["a"] = 2
        elif edit == "regenerate":
            session.regenerate()
        if told:
            with pytest.raises(SessionGone):
                await manager.commit(session)
        else:
            assert manager.pending(session)
            await manager.commit(session)
        assert session.is_new
        assert {} == session
        assert [] == manager.cookies(session)
        assert 0 == len(store)


async def test_a_secret_that_somebody_else_set_is_merged(clock):
    """The store says None for a secret it has not: the data goes by a plain save."""
    store = MemorySessionStore(clock=clock)
    manager = make_manager(store)
    session = new(manager, a=1)
    await manager.commit(session)
    record = session.life.record
    assert record is not None
    secret = NewSecret(record.secret_hash, hash_secret("x" * 24))
    assert await store.regenerate(record.handle, 0, secret, SessionChange())
    again = manager.session()
    again.start(record._replace(data='{"a":1}'))
    again.life.found(record, record.secret_hash)
    again["b"] = 1
    again.regenerate()
    await manager.commit(again)

    found = await store.load(record.handle)
    assert found is not None
    assert {"a": 1, "b": 1} == json.loads(found.data)
    assert make_record().epoch == found.epoch
    assert [] == manager.cookies(again)
