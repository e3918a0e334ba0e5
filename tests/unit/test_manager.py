"""`SessionManager`: what a cookie means, what a request comes to, and its commit."""

from __future__ import annotations

import asyncio

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
    ResponseAlreadySent,
    SessionDataError,
    SessionGone,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.core.ids import new_id
from tornado_compas_session.core.manager import Plan
from tornado_compas_session.core.types import RetiredId


def header(manager, session_id):
    return f"{NAME}={manager.keys.sign(NAME, session_id)}"


async def started(manager, **data):
    """A committed session, loaded anew."""
    session = await load_session(manager, [])
    session.update(data or {"a": 1})
    await manager.commit(session, manager.plan(session))
    assert session._record is not None
    return await load_session(manager, [header(manager, session._record.id)])


async def test_nothing_to_do_is_nothing():
    """Untouched and empty new: no plan, no call, no cookie (LC-5)."""
    store = CountingStore()
    manager = make_manager(store)
    session = await load_session(manager, [])

    assert not manager.plan(session)
    assert [] == manager.cookies(session)
    assert [] == store.calls


async def test_an_empty_id_is_no_id():
    """A signed empty string is an anonymous visitor (LC-4)."""
    store = CountingStore()
    manager = make_manager(store)
    session = await load_session(manager, [header(manager, "")])

    assert session.is_new
    assert [] == store.calls


@pytest.mark.parametrize("edit", ["change", "new", "destroy", "regenerate", "none"])
async def test_what_each_edit_comes_to(edit):
    """One verb, decided before the response leaves."""
    manager = make_manager()
    session = (
        await load_session(manager, []) if edit == "new" else await started(manager)
    )
    {
        "change": lambda: session.update(b=1),
        "new": lambda: session.update(b=1),
        "destroy": session.destroy,
        "regenerate": session.regenerate,
        "none": lambda: None,
    }[edit]()
    plan = manager.plan(session) or Plan()

    expected = {"change": "save", "new": "create", "regenerate": "regenerate"}
    assert expected.get(edit) == plan.verb
    assert (edit == "destroy") == bool(plan.doomed)


async def test_size_is_bounded_to_the_byte():
    """64 KiB by default, and one byte more is refused with both numbers (ST-3)."""
    manager = make_manager()
    session = await load_session(manager, [])
    session["a"] = "x" * (65536 - 8)
    assert manager.plan(session)
    session["a"] += "x"
    with pytest.raises(
        SessionDataError, match="65537 bytes of JSON, and max_data_size"
    ):
        manager.plan(session)


async def test_a_refused_size_leaves_the_row():
    """What was stored stays as it was (ST-2)."""
    store = CountingStore()
    manager = make_manager(store, max_data_size=100)
    session = await started(manager, a="x" * 50)
    session["b"] = "x" * 50
    with pytest.raises(SessionDataError):
        manager.plan(session)
    again = await load_session(manager, [header(manager, session._record.id)])

    assert {"a": "x" * 50} == dict(again)


async def test_a_lost_session_is_told_only_to_who_changed_it():
    """`SessionGone` for a change or a new id; nothing for a renewal (LC-3)."""
    clock = Clock()
    store = CountingStore(clock=clock)
    manager = make_manager(store)
    for edit, told in (("change", True), ("regenerate", True), ("renew", False)):
        session = await started(manager)
        await store.revoke_all()
        if edit == "change":
            session["a"] = 2
        elif edit == "regenerate":
            session.regenerate()
        else:
            clock.now += 60
            session = session.__class__(
                manager, session._record._replace(now=clock.now), session.cookie
            )
        plan = manager.plan(session)
        if told:
            with pytest.raises(SessionGone):
                await manager.commit(session, plan)
        else:
            await manager.commit(session, plan)
        assert session.is_new
        assert 0 == len(store)


async def test_expired_rows_are_not_written():
    """Neither saved nor renewed nor given a new id (LC-8)."""
    clock = Clock()
    store = CountingStore(clock=clock)
    manager = make_manager(store, max_age=60)
    for edit in (lambda s: s.update(a=2), lambda s: s.regenerate()):
        session = await started(manager)
        edit(session)
        plan = manager.plan(session)
        clock.now += 61
        with pytest.raises(SessionGone):
            await manager.commit(session, plan)
        assert 0 == len(store)


async def test_the_old_id_is_honoured_for_the_grace_only():
    """Then it is a sign of theft: anonymous, reported, its cookie untouched (LC-1)."""
    clock = Clock()
    store = CountingStore(clock=clock)
    manager = make_manager(store, regenerate_grace=5)
    reused: list[RetiredId] = []

    async def note(retired):
        reused.append(retired)

    manager._on_reuse = note
    session = await started(manager, user_id=7)
    old = header(manager, session._record.id)
    session.regenerate()
    await manager.commit(session, manager.plan(session))
    clock.now += 4
    moved = await load_session(manager, [old])
    assert {"user_id": 7} == dict(moved)
    assert 1 == len(manager.cookies(moved))
    clock.now += 2
    late = await load_session(manager, [old])

    assert late.is_new
    assert [] == manager.cookies(late)
    [retired] = reused
    assert "7" == retired.user_id
    assert retired.handle == session.handle


async def test_sealed_sessions_raise_for_what_needs_a_cookie():
    """Decided before anything is written (T9)."""
    manager = make_manager()
    session = await load_session(manager, [])
    session["a"] = 1
    session._sealed = "the headers have left"
    with pytest.raises(ResponseAlreadySent):
        manager.plan(session)


# -- trouble ---------------------------------------------------------------------------


class Broken(CountingStore):
    def __init__(self, error):
        super().__init__()
        self.error = error

    async def load(self, session_id):
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
    with pytest.raises(StoreError) as caught:
        await load_session(manager, [header(manager, new_id())])

    assert becomes is type(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_store_that_does_not_answer_is_given_up():
    """After `timeout` seconds, with a sentence that says so."""
    store = TroubledStore()
    manager = make_manager(store, timeout=0.05)
    session = await started(manager)
    store.gate.clear()
    session["a"] = 2
    with pytest.raises(StoreUnavailable, match=r"within 0\.05 seconds"):
        await manager.commit(session, manager.plan(session))


async def test_a_cancelled_request_is_cancelled():
    """Our own cancellation is no trouble of the store."""
    store = TroubledStore()
    manager = make_manager(store)
    session = await started(manager)
    store.gate.clear()
    session["a"] = 2
    task = asyncio.ensure_future(manager.commit(session, manager.plan(session)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_ids_that_are_always_taken_are_an_error():
    """Three draws, and then the fault is named (ID-6)."""
    store = CountingStore()
    manager = make_manager(store, new_id=lambda: "t" * 24)
    await started(manager)
    store.calls.clear()
    session = await load_session(manager, [])
    session["b"] = 1
    with pytest.raises(StoreError, match="random session ids in a row were taken"):
        await manager.commit(session, manager.plan(session))

    assert ["create"] * 3 == store.calls


async def test_log_lines_do_not_show_ids(caplog):
    """Created, regenerated, destroyed: by a keyed hash (LG-1, LG-2)."""
    caplog.set_level("DEBUG")
    manager = make_manager()
    session = await started(manager)
    shown = [session._record.id]
    session.regenerate()
    await manager.commit(session, manager.plan(session))
    shown.append(session._record.id)
    session.destroy()
    await manager.commit(session, manager.plan(session))

    for event in ("created", "regenerated", "destroyed"):
        assert event in caplog.text
    for session_id in shown:
        assert session_id not in caplog.text


async def test_an_old_key_is_replaced_even_without_overwrite():
    """ "Re-signed" is one of the reasons to send the cookie (SG-6)."""
    store = CountingStore()
    old = make_manager(store, overwrite=False)
    session = await started(old)
    new = make_manager(store, keys=(NEWER_KEY, KEY), overwrite=False)
    loaded = await load_session(new, [header(old, session._record.id)])
    [cookie] = new.cookies(loaded)

    value = cookie.partition(";")[0].partition("=")[2]
    assert new.keys.verify(NAME, value, 1000) == (session._record.id.encode(), False)
    again = await load_session(new, [cookie.partition(";")[0]])
    assert [] == new.cookies(again)
