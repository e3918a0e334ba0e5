"""`SessionManager`: sessions without HTTP, from their cookie to their cookie."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.factories import (
    KEY,
    NAME,
    NEWER_KEY,
    Clock,
    CountingStore,
    TroubledStore,
    load_session,
    make_manager,
)
from tornado_compas_session import (
    MemorySessionStore,
    ResponseAlreadySent,
    SessionDataError,
    SessionError,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.core.ids import new_handle, new_secret
from tornado_compas_session.core.types import RetiredId
from tornado_compas_session.exceptions import LockTimeout


def header(manager, session_id):
    return f"{NAME}={manager.keys.sign(NAME, session_id)}"


def cookie_of(manager, session):
    [cookie] = manager.cookies(session)
    return cookie.partition(";")[0]


async def started(manager, **data):
    """The cookie of a stored session, and the session as the next request has it."""
    session = manager.session()
    session.update(data or {"a": 1})
    await manager.commit(session)
    cookie = cookie_of(manager, session)
    return cookie, await load_session(manager, [cookie])


# -- the beginning ---------------------------------------------------------------------


async def test_an_empty_id_is_no_id():
    """A signed empty string is an anonymous visitor (LC-4)."""
    store = CountingStore()
    manager = make_manager(store)
    session = await load_session(manager, [header(manager, "")])

    assert session.is_new
    assert [] == store.calls


async def test_an_id_that_the_store_does_not_know_is_never_adopted():
    """It is looked for, not found, and another one is made (ID-3)."""
    store = CountingStore()
    manager = make_manager(store)
    unknown = new_handle() + new_secret()
    session = await load_session(manager, [header(manager, unknown)])
    assert ["load"] == store.calls
    session["a"] = 1
    await manager.commit(session)

    assert session.handle != unknown[:12]
    assert unknown not in manager.cookies(session)[0]


async def test_a_handle_alone_opens_nothing():
    """Whoever reads it in a list, and makes up a secret, is a stranger."""
    manager = make_manager()
    _, session = await started(manager, user_id=7)
    made_up = header(manager, session.handle + new_secret())

    assert {} == await load_session(manager, [made_up])


@pytest.mark.parametrize("count", [2, 3])
async def test_several_cookies_are_loaded_at_once(count):
    """One query more for none of them: they wait at the same moment."""

    class Together(MemorySessionStore):
        waiting = most = 0

        async def load(self, *args: Any, **options: Any) -> Any:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            await asyncio.sleep(0)
            self.waiting -= 1
            return await super().load(*args, **options)

    store = Together()
    manager = make_manager(store)
    ids = [new_handle() + new_secret() for _ in range(count)]
    twins = [ids[0][:12] + new_secret() for _ in range(3)]
    await load_session(manager, [header(manager, one) for one in (*ids, *twins)])

    assert count == store.most


async def test_what_has_ended_by_the_options_of_today_is_gone():
    """The store would still have it; its cookie is cleared."""
    clock = Clock()
    store = MemorySessionStore(clock=clock)
    before, after = make_manager(store), make_manager(store, max_age=60)
    cookie, _ = await started(before)
    clock.now += 61
    session = await load_session(after, [cookie])

    assert session.is_new
    assert "Max-Age=0" in after.cookies(session)[0]


async def test_the_old_id_is_honoured_for_the_grace_only():
    """
    Then it is a sign of theft: anonymous, reported, its cookie untouched (LC-1).
    Changed: the grace begins when the new one was shown, and the former one gets no
    cookie.
    """
    clock = Clock()
    reused: list[RetiredId] = []

    async def note(retired):
        reused.append(retired)

    manager = make_manager(
        CountingStore(clock=clock), regenerate_grace=5, on_reuse=note
    )
    old, session = await started(manager, user_id=7)
    session.regenerate()
    await manager.commit(session)
    clock.now += 60
    assert {"user_id": 7} == await load_session(manager, [old])
    shown = await load_session(manager, [cookie_of(manager, session)])
    await manager.commit(shown)
    clock.now += 4
    moved = await load_session(manager, [old])
    assert {"user_id": 7} == moved
    await manager.commit(moved)
    assert [] == manager.cookies(moved)
    clock.now += 2
    late = await load_session(manager, [old])

    assert late.is_new
    assert [] == manager.cookies(late)
    [retired] = reused
    assert "7" == retired.user_id
    assert retired.handle == session.handle


# -- the cookies of a response ---------------------------------------------------------


async def test_a_cookie_leaves_only_with_a_new_secret():
    """Created and regenerated: yes. Read, written, renewed in the row: no (once)."""
    clock = Clock()
    manager = make_manager(MemorySessionStore(clock=clock))
    cookie, session = await started(manager)
    assert [] == manager.cookies(session)
    session["a"] = 2
    await manager.commit(session)
    assert [] == manager.cookies(session)
    clock.now += 60
    session = await load_session(manager, [cookie])
    await manager.commit(session)
    assert [] == manager.cookies(session)
    session.regenerate()
    assert [] == manager.cookies(session)
    await manager.commit(session)
    assert cookie != cookie_of(manager, session)


async def test_every_request_renews_with_renew_0():
    """Compas's `overwrite`, to the letter: a new cookie each time (DESIGN.md, 3)."""
    manager = make_manager(renew=0)
    cookie, _ = await started(manager)
    seen = {cookie}
    for _ in range(3):
        session = await load_session(manager, [cookie])
        assert manager.pending(session)
        await manager.commit(session)
        cookie = cookie_of(manager, session)
        seen.add(cookie)

    assert 4 == len(seen)


async def test_a_failed_request_clears_only_what_it_has_ended():
    """An error page leaves a cookie alone that was merely found dead."""
    manager = make_manager()
    cookie, session = await started(manager)
    session.destroy()
    await manager.commit(session)
    assert "Max-Age=0" in manager.cookies(session, failed=True)[0]
    dead = await load_session(manager, [cookie])

    assert [] == manager.cookies(dead, failed=True)
    assert "Max-Age=0" in manager.cookies(dead)[0]


async def test_twins_are_cleared_with_the_next_cookie():
    """In both forms, and before the new one is set (bothforms)."""
    manager = make_manager()
    old, session = await started(manager)
    session.regenerate()
    await manager.commit(session)
    new = cookie_of(manager, session)
    twins = await load_session(manager, [old, new])
    assert {"a": 1} == twins
    twins.regenerate()
    await manager.commit(twins)
    [*cleared, last] = manager.cookies(twins)

    assert all("Max-Age=0" in text for text in cleared)
    assert "Max-Age=518400" in last


async def test_the_public_cookie_goes_with_the_sessions():
    """Set, renewed, cleared in the same response, and at no other time."""
    manager = make_manager(keep_public_cookie=True)
    session = manager.session()
    session["a"] = 1
    await manager.commit(session)
    own, public = manager.cookies(session)
    assert public.startswith(f"{NAME}.public=truthy; Max-Age=518400; ")
    again = await load_session(manager, [own.partition(";")[0]])
    assert [] == manager.cookies(again)
    again.destroy()
    await manager.commit(again)
    cleared = manager.cookies(again)

    assert [NAME, f"{NAME}.public"] == [text.partition("=")[0] for text in cleared]


async def test_an_old_key_is_replaced_even_without_overwrite():
    """
    Re-signed is one of the reasons to send the cookie (SG-6). Changed: with a new
    secret, as every cookie.
    """
    store = CountingStore()
    old = make_manager(store, overwrite=False)
    cookie, _ = await started(old)
    new = make_manager(store, keys=(NEWER_KEY, KEY), overwrite=False)
    loaded = await load_session(new, [cookie])
    assert new.pending(loaded)
    await new.commit(loaded)
    again = cookie_of(new, loaded)

    signed = new.keys.verify(NAME, again.partition("=")[2], 1000)
    assert signed is not None
    assert not signed.old_key
    assert loaded.handle is not None
    assert signed.value.startswith(loaded.handle.encode())
    loaded = await load_session(new, [again])
    await new.commit(loaded)
    assert [] == new.cookies(loaded)


async def test_unsigned_ids_are_sent_as_they_are():
    """36 characters of base64url, which need no quotes."""
    manager = make_manager(signed=False)
    cookie, session = await started(manager)

    assert {"a": 1} == session
    value = cookie.partition("=")[2]
    assert 36 == len(value)
    assert value.startswith(session.handle)


async def test_a_session_made_after_the_headers_raises():
    """Decided before anything is written (T9)."""
    store = CountingStore()
    manager = make_manager(store)
    session = manager.session()
    session["a"] = 1
    session.life.headers_left("the headers have left")
    assert manager.pending(session)
    with pytest.raises(ResponseAlreadySent):
        await manager.commit(session)

    assert [] == store.calls


async def test_no_cookie_leaves_where_none_can_arrive():
    """The session is stored, and its cookie is not sent."""
    manager = make_manager()
    session = manager.session()
    session["a"] = 1
    await manager.commit(session)
    assert 1 == len(manager.cookies(session))
    session.life.no_cookie("the path is another")

    assert [] == manager.cookies(session)


async def test_a_response_waits_for_what_is_pending_alone():
    """A write, a block of a lock, an error of a block; and then for nothing."""
    manager = make_manager()
    _, session = await started(manager)
    assert manager.pending(session) is False
    session["a"] = 2
    assert manager.pending(session) is True
    await manager.commit(session)
    async with session.lock():
        assert manager.pending(session) is True
    assert manager.pending(session) is False
    session["a"] = 3
    assert manager.pending(session) is True
    assert session.planned is not None
    session.block_error = StoreError("the block has failed")
    assert manager.pending(session) is True
    assert session.planned is None
    manager = make_manager(auto_commit=False)
    session = manager.session()
    session["a"] = 1
    assert manager.pending(session) is False
    assert manager.pending(session, automatic=False) is True


async def test_log_lines_show_the_handle_and_no_secret(caplog):
    """Created, regenerated, destroyed (LG-1, LG-2)."""
    caplog.set_level("DEBUG")
    secrets = [new_secret() for _ in range(2)]
    drawn = iter(secrets)
    manager = make_manager(draw_secret=lambda: next(drawn))
    _, session = await started(manager)
    handle = session.handle
    session.regenerate()
    await manager.commit(session)
    session.destroy()
    await manager.commit(session)

    for event in ("created", "regenerated", "destroyed"):
        assert f"session {handle} {event}" in caplog.text
    for secret in secrets:
        assert secret not in caplog.text


# -- trouble ---------------------------------------------------------------------------


class Broken(CountingStore):
    def __init__(self, error):
        super().__init__()
        self.error = error

    async def load(self, handle, **options):
        raise self.error


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (StoreUnavailable("x"), StoreUnavailable),
        (ValueError("password=hunter2"), StoreError),
        (asyncio.CancelledError(), StoreUnavailable),
        (TimeoutError(), StoreUnavailable),
        (OSError(111, "refused"), StoreError),
    ],
)
async def test_whatever_fails_is_a_store_error(error, becomes):
    """No trouble passes for an anonymous visitor, nor shows a secret (LG-4, T18)."""
    manager = make_manager(Broken(error))
    unknown = header(manager, new_handle() + new_secret())
    with pytest.raises(StoreError) as caught:
        await load_session(manager, [unknown])

    assert becomes is type(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_store_that_does_not_answer_is_given_up():
    """After `timeout` seconds, with a sentence that says so."""
    store = TroubledStore()
    manager = make_manager(store, timeout=0.05)
    _, session = await started(manager)
    store.gate.clear()
    session["a"] = 2
    with pytest.raises(StoreUnavailable, match=r"within 0\.05 seconds"):
        await manager.commit(session)


async def test_a_cancelled_request_is_cancelled():
    """Our own cancellation is no trouble of the store."""
    store = TroubledStore()
    manager = make_manager(store)
    _, session = await started(manager)
    store.gate.clear()
    session["a"] = 2
    task = asyncio.ensure_future(manager.commit(session))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- reading again ---------------------------------------------------------------------


async def test_reload_takes_what_others_wrote():
    """Unsaved changes are dropped; a new session becomes empty."""
    manager = make_manager()
    cookie, session = await started(manager)
    other = await load_session(manager, [cookie])
    other["b"] = 2
    await manager.commit(other)
    session["a"] = 5
    await session.reload()
    assert {"a": 1, "b": 2} == session
    assert not session.modified
    session.max_age = 60
    await session.reload()
    assert not session.modified
    new = manager.session()
    new["a"] = 1
    await new.reload()

    assert {} == new


@pytest.mark.parametrize("user", [None, 7])
async def test_reload_of_what_has_ended_or_is_another_visitors(user):
    """`SessionGone`, and nothing of the other's is shown."""
    manager = make_manager()
    cookie, session = await started(manager)
    other = await load_session(manager, [cookie])
    if user is None:
        other.destroy()
    else:
        other["user_id"] = user
    await manager.commit(other)
    with pytest.raises(SessionGone):
        await session.reload()

    assert {} == session
    assert session.is_new
    assert [] == manager.cookies(session)


async def test_reload_takes_the_times_of_the_row():
    """A session that another request has renewed lives as long here."""
    clock = Clock()
    manager = make_manager(MemorySessionStore(clock=clock))
    cookie, session = await started(manager)
    clock.now += 60
    other = await load_session(manager, [cookie])
    await manager.commit(other)
    assert session.expires != other.expires
    await session.reload()

    assert session.expires == other.expires


async def test_a_socket_is_closed_when_its_session_is_no_more_its_own():
    """Ended, or another visitor's; not for a new secret, and not in an outage."""
    store = TroubledStore()
    manager = make_manager(store)
    cookie, socket = await started(manager)
    assert await manager.why_ended(socket) is None
    session = await load_session(manager, [cookie])
    session.regenerate()
    await manager.commit(session)
    assert await manager.why_ended(socket) is None
    ours, theirs = socket.life.record, session.life.record
    assert ours is not None
    assert theirs is not None
    assert ours.secret_hash == theirs.secret_hash
    store.failing = "load"
    assert await manager.why_ended(socket) is None
    store.failing = ""
    session["user_id"] = 7
    await manager.commit(session)
    assert "the visitor has signed in or out" == await manager.why_ended(socket)
    session.destroy()
    await manager.commit(session)

    assert "the session has ended" == await manager.why_ended(socket)
    assert "the session has ended" == await manager.why_ended(session)


# -- increment() -----------------------------------------------------------------------


async def test_each_increment_counts_once():
    """Of many at once each gets its own sum; absent counts as 0."""
    store = CountingStore()
    manager = make_manager(store)
    cookie, _ = await started(manager)
    sessions = [await load_session(manager, [cookie]) for _ in range(5)]
    sums = await asyncio.gather(*(one.increment("n", 2) for one in sessions))

    assert [2, 4, 6, 8, 10] == sorted(sums)
    again = await load_session(manager, [cookie])
    assert {"a": 1, "n": 10} == again
    for one in sessions:
        assert not one.modified
        assert one["n"] in sums


async def test_an_increment_takes_what_was_set_before_along():
    """An unsaved change of that key is saved first; of others it waits for the end."""
    store = CountingStore()
    manager = make_manager(store)
    _, session = await started(manager, a=1, n=1)
    session["b"] = 1
    store.calls.clear()
    assert 2 == await session.increment("n")
    assert ["increment"] == store.calls
    session["n"] = 10
    assert 11.5 == await session.increment("n", 1.5)
    del session["n"]
    assert 1 == await session.increment("n")
    session.replace({"n": 7})
    assert 8 == await session.increment("n")
    await manager.commit(session)

    assert {"n": 8} == session
    [row] = store._rows.values()
    assert {"n": "8"} == row.data


async def test_an_increment_is_known_to_be_saved():
    """No later save writes the sum again, over what others have added since."""
    manager = make_manager()
    cookie, session = await started(manager, n=1)
    session["n"] = 10
    assert 11 == await session.increment("n")
    assert not session.modified
    other = await load_session(manager, [cookie])
    assert 12 == await other.increment("n")
    session["b"] = 1
    await manager.commit(session)

    assert {"n": 12, "b": 1} == await load_session(manager, [cookie])


async def test_an_increment_saves_what_was_set_before_without_auto_commit():
    """The sum is of what the handler sees."""
    manager = make_manager(auto_commit=False)
    session = manager.session()
    session["n"] = 1
    await session.save()
    session["n"] = 10
    assert 11 == await session.increment("n")


async def test_an_increment_renews():
    """It is a use of the session, and no other write follows for that."""
    clock = Clock()
    store = CountingStore(clock=clock)
    manager = make_manager(store)
    cookie, _ = await started(manager)
    clock.now += 60
    session = await load_session(manager, [cookie])
    before = session.expires
    store.calls.clear()
    assert manager.pending(session)
    await session.increment("n")
    await manager.commit(session)

    assert ["increment"] == store.calls
    assert before is not None
    assert session.expires is not None
    assert 60 == (session.expires - before).total_seconds()


@pytest.mark.parametrize("key", ["\0", "\ud800", 7])
async def test_an_increment_of_what_is_no_key(key):
    """As where it is set: refused before anything is sent."""
    store = CountingStore()
    _, session = await started(make_manager(store))
    store.calls.clear()
    with pytest.raises(SessionDataError, match="key"):
        await session.increment(key)

    assert [] == store.calls


async def test_an_increment_after_the_end_of_the_request():
    """As any other change."""
    _, session = await started(make_manager())
    session.life.finish("the response has been sent")
    with pytest.raises(ResponseAlreadySent, match="has been sent"):
        await session.increment("n")


async def test_an_increment_in_a_new_session_is_a_change():
    """Saved at the end; and so it is inside of `lock()`."""
    store = CountingStore()
    manager = make_manager(store)
    session = manager.session()
    assert 1 == await session.increment("n")
    assert [] == store.calls
    await manager.commit(session)
    async with session.lock():
        assert 3 == await session.increment("n", 2)
    [row] = store._rows.values()

    assert {"n": "3"} == row.data


@pytest.mark.parametrize("value", ["x", True, None, [1], {"n": 1}])
async def test_only_numbers_are_added_to(value):
    """In the store and in a new session; the value stays."""
    manager = make_manager()
    _, stored = await started(manager, n=value)
    new = manager.session()
    new["n"] = value
    for session in (stored, new):
        with pytest.raises(SessionDataError, match="n"):
            await session.increment("n")
        assert value == session["n"]
        with pytest.raises(SessionDataError, match="is no number"):
            await session.increment("m", "1")  # type: ignore[arg-type]
        with pytest.raises(SessionDataError):
            await session.increment("m", float("nan"))


async def test_who_the_visitor_is_is_no_counter():
    """user_id = 7, plus one, would be another user."""
    _, session = await started(make_manager(), user_id=7)
    with pytest.raises(SessionDataError, match="user_id"):
        await session.increment("user_id")


async def test_an_increment_of_what_is_gone():
    """Ended, another visitor's, or a stranger's: `SessionGone`."""
    manager = make_manager()
    cookie, session = await started(manager)
    other = await load_session(manager, [cookie])
    other["user_id"] = 7
    await manager.commit(other)
    stranger = await load_session(manager, [cookie])
    for one in (session, stranger):
        with pytest.raises(SessionGone):
            await one.increment("n")
        assert {} == one
        assert one.is_new
    assert {"a": 1, "user_id": 7} == await load_session(
        manager, [cookie_of(manager, other)]
    )


async def test_an_increment_while_the_session_ends():
    """What was counted was counted; the new session knows nothing of it."""
    store = TroubledStore()
    manager = make_manager(store)
    _, session = await started(manager)
    store.gate.clear()
    store.writing.clear()
    task = asyncio.ensure_future(session.increment("n"))
    await store.writing.wait()
    session.destroy()
    store.gate.set()
    assert 1 == await task
    await manager.commit(session)

    assert {} == session
    assert 0 == len(store)


# -- lock() ----------------------------------------------------------------------------


async def test_a_block_is_saved_at_its_end_or_not_at_all():
    """Fresh data in; an exception leaves the session as the store has it."""
    manager = make_manager()
    cookie, session = await started(manager, n=1)
    other = await load_session(manager, [cookie])
    other["n"] = 2
    await manager.commit(other)
    session["before"] = 1
    async with session.lock():
        assert 2 == session["n"]
        assert 1 == session["before"]
        session["n"] += 1
    with pytest.raises(ZeroDivisionError):
        async with session.lock():
            session["n"] = 99
            session.max_age = 60
            session.regenerate()
            raise ZeroDivisionError
    assert {"n": 3, "before": 1} == session
    assert not session.modified
    with pytest.raises(ZeroDivisionError):
        async with session.lock():
            session.destroy()
            raise ZeroDivisionError
    await manager.commit(session)

    assert {"n": 3, "before": 1} == await load_session(manager, [cookie])
    assert [] == manager.cookies(session)


async def test_what_was_changed_before_a_block_goes_into_it():
    """Set, removed, replaced, a lifetime: put on the row as it is then, and saved."""
    manager = make_manager()
    cookie, session = await started(manager, a=1, b=1)
    other = await load_session(manager, [cookie])
    other.update(a=2, d=1)
    await manager.commit(other)
    session["c"] = 1
    del session["b"]
    session.max_age = 60
    async with session.lock():
        assert {"a": 2, "c": 1, "d": 1} == session
        assert 60 == session.max_age
    again = await load_session(manager, [cookie])
    assert {"a": 2, "c": 1, "d": 1} == again
    assert 60 == again.max_age
    session.replace({"e": 1})
    async with session.lock():
        assert {"e": 1} == session

    assert {"e": 1} == await load_session(manager, [cookie])


async def test_a_block_has_the_times_of_the_row():
    """A lifetime that another request has set, and when it ends now."""
    manager = make_manager()
    cookie, other = await started(manager)
    other.max_age = 60
    await manager.commit(other)
    session = await load_session(manager, [cookie])
    other.max_age = 120
    await manager.commit(other)
    async with session.lock():
        assert 120 == session.max_age
        assert session.expires == other.expires


async def test_a_block_of_a_new_session_is_saved_without_auto_commit():
    """As that of any other."""
    store = MemorySessionStore()
    session = make_manager(store, auto_commit=False).session()
    async with session.lock():
        session["a"] = 1

    assert 1 == len(store)
    assert not session.modified


async def test_a_session_that_was_made_before_its_block_failed():
    """What the row has, the session has."""
    store = TroubledStore()
    session = make_manager(store).session()

    async def block() -> None:
        async with session.lock():
            session["a"] = 1

    store.gate.clear()
    task = asyncio.ensure_future(block())
    async with asyncio.timeout(10):
        await store.writing.wait()
        session["b"] = object()
        store.gate.set()
        with pytest.raises(SessionDataError):
            await task

    assert 1 == session["a"]
    assert not session.is_new


async def test_a_block_of_a_new_session_is_undone():
    """As any other; what was set before it stays."""
    manager = make_manager()
    session = manager.session()
    session["a"] = [1]
    with pytest.raises(ZeroDivisionError):
        async with session.lock():
            session["a"].append(2)
            session["b"] = 1
            raise ZeroDivisionError
    assert {"a": [1]} == session
    assert session.is_new
    await manager.commit(session)
    assert {"a": [1]} == await load_session(manager, [cookie_of(manager, session)])


async def test_a_block_signs_in():
    """With the locked secret: a new one, and another epoch, in one transaction."""
    store = MemorySessionStore()
    manager = make_manager(store)
    old, session = await started(manager)
    async with session.lock():
        session["user_id"] = 7
    [row] = store._rows.values()

    assert ("7", 1) == (row.user_id, row.record.epoch)
    assert {} == await load_session(manager, [old])
    assert session == await load_session(manager, [cookie_of(manager, session)])


async def test_a_block_ends_the_session_and_begins_another():
    """The end is in the block; what follows it is made after it."""
    store = MemorySessionStore()
    manager = make_manager(store)
    _, session = await started(manager)
    async with session.lock():
        session.destroy()
        session["fresh"] = 1
    assert 0 == len(store)
    await manager.commit(session)

    assert {"fresh": 1} == await load_session(manager, [cookie_of(manager, session)])


async def test_a_lock_on_what_is_gone():
    """`SessionGone` before the block: ended, another visitor's, a stranger's."""
    manager = make_manager()
    cookie, session = await started(manager)
    other = await load_session(manager, [cookie])
    other["user_id"] = 7
    await manager.commit(other)
    stranger = await load_session(manager, [cookie])
    for one in (session, stranger):
        with pytest.raises(SessionGone):
            async with one.lock():
                pytest.fail("inside of the block")
        assert {} == one
        assert one.is_new


async def test_a_lock_that_does_not_come():
    """`LockTimeout`; with 0 it is had at once or not at all."""
    manager = make_manager()
    cookie, session = await started(manager)
    other = await load_session(manager, [cookie])
    other["b"] = 1
    async with session.lock(timeout=0):
        for seconds in (0, 0.01):
            with pytest.raises(LockTimeout):
                async with other.lock(timeout=seconds):
                    pytest.fail("inside of the block")
    async with other.lock(timeout=0):
        pass

    assert {"a": 1, "b": 1} == await load_session(manager, [cookie])


@pytest.mark.parametrize(
    "call", [lambda s: s.save(), lambda s: s.reload(), lambda s: s.lock().__aenter__()]
)
async def test_what_cannot_be_inside_of_a_block(call):
    """A deadlock with oneself is refused, not waited for."""
    _, session = await started(make_manager())
    async with session.lock():
        with pytest.raises(SessionError, match="lock\\(\\)"):
            await call(session)


async def test_the_tasks_of_one_request_go_one_after_the_other():
    """While a block is open, another task of the request waits for its end."""
    _, session = await started(make_manager(), n=0)

    async def add():
        async with session.lock():
            before = session["n"]
            await asyncio.sleep(0.001)
            session["n"] = before + 1

    await asyncio.gather(add(), add(), session.increment("n"), session.save(), add())
    assert 4 == session["n"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.save(), SessionError),
        (lambda s: s.reload(), SessionError),
        (lambda s: s.increment("n"), SessionError),
        (lambda s: s.lock(timeout=0.02).__aenter__(), LockTimeout),
    ],
)
async def test_a_block_that_waits_for_its_own_tasks_is_no_hang(call, error):
    """`gather` inside of it starts tasks, and each waits for the block's end."""
    _, session = await started(make_manager(timeout=0.02), n=0)
    async with asyncio.timeout(10):
        with pytest.raises(error, match="lock"):
            async with session.lock():
                await asyncio.gather(call(session))

    async with session.lock():
        session["n"] = 1


# -- the user's sessions ---------------------------------------------------------------


async def test_devices_and_ending_the_others():
    """Listed with this one marked; all but this one end. What is new is saved first."""
    store = CountingStore()
    manager = make_manager(store)
    others = [await started(manager, user_id=7) for _ in range(2)]
    _, somebody = await started(manager, user_id=8)
    session = manager.session()
    session["user_id"] = "7"
    session.client = ("Firefox", "192.0.2.1")
    assert 2 == await session.end_others()
    [info] = await session.devices()

    assert (session.handle, True, "7") == (info.handle, info.current, info.user_id)
    assert ("Firefox", "192.0.2.1") == (info.user_agent, info.address)
    for cookie, _ in others:
        assert (await load_session(manager, [cookie])).is_new
    assert 1 == len(await somebody.devices())


async def test_ending_the_others_saves_a_sign_in_first():
    """And writes nothing where there is nothing to save."""
    store = CountingStore()
    manager = make_manager(store)
    _, session = await started(manager)
    session["user_id"] = 7
    store.calls.clear()
    assert 0 == await session.end_others()
    assert ["regenerate"] == store.calls
    again = await load_session(manager, [cookie_of(manager, session)])
    store.calls.clear()
    assert 0 == await again.end_others()

    assert [] == store.calls


async def test_nobody_has_no_devices():
    """An anonymous visitor's others would be everybody's."""
    _, session = await started(make_manager())
    with pytest.raises(SessionDataError, match="nobody is signed in"):
        await session.devices()
    with pytest.raises(SessionDataError, match="nobody is signed in"):
        await session.end_others()


async def test_a_store_that_knows_no_users():
    """It can serve, and says what it cannot."""

    class Plain:
        load = create = save = regenerate = increment = delete = lock = None

    manager = make_manager(Plain())
    session = manager.session()
    session["user_id"] = 7
    with pytest.raises(SessionError, match="Plain cannot"):
        await session.devices()


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "5"])
async def test_a_timeout_of_a_lock_is_a_number_of_seconds(timeout):
    """Anything else is refused before anything is locked; 0 does not wait."""
    _, session = await started(make_manager())

    with pytest.raises(ValueError, match="number of seconds"):
        async with session.lock(timeout):
            pass
    async with session.lock(0):
        session["b"] = 2
