"""`CookieSessionManager`: the data in the cookie, its expiry inside what is signed."""

from __future__ import annotations

import pytest

from tests.factories import (
    KEY,
    NAME,
    NEWER_KEY,
    Clock,
    load_session,
    make_cookie_manager,
    make_manager,
)
from tornado_compas_session import SessionDataError, SessionError
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.cookie_only import MAX_COOKIE

DAY = 86400


@pytest.fixture
def clock():
    return Clock()


async def visit(manager, cookie=None, edit=None):
    """One request: what the session held, and the Set-Cookie headers that follow."""
    session = await load_session(manager, [] if cookie is None else [cookie])
    held = dict(session)
    if edit is not None:
        edit(session)
    assert not manager.plan(session)
    return held, manager.cookies(session)


def pair(headers):
    assert 1 == len(headers)
    return headers[0].partition(";")[0]


async def test_round_trip(clock):
    """What one request sets the next one finds."""
    manager = make_cookie_manager(clock)
    _, headers = await visit(manager, edit=lambda s: s.update(a=[1, {"ü": None}]))
    held, _ = await visit(manager, pair(headers))

    assert {"a": [1, {"ü": None}]} == held
    assert '"' not in headers[0]


async def test_a_visitor_who_writes_nothing_gets_nothing(clock):
    """No cookie for reading, for an empty session, for ending none (LC-5)."""
    manager = make_cookie_manager(clock)
    for edit in (None, lambda s: s.replace({}), lambda s: s.destroy(), len):
        assert ({}, []) == await visit(manager, edit=edit)


async def test_expiry_is_inside_and_honoured(clock):
    """A browser that keeps the cookie for longer gains nothing (CK-6)."""
    manager = make_cookie_manager(clock, max_age=60)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    cookie = pair(headers)
    clock.now += 59
    assert ({"a": 1}) == (await visit(manager, cookie))[0]
    clock.now += 2
    held, headers = await visit(manager, cookie)

    assert {} == held
    assert "Max-Age=0" in headers[0]


async def test_use_extends_it(clock):
    """Each answer carries a later expiry (LC-6)."""
    manager = make_cookie_manager(clock, max_age=60)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    for _ in range(5):
        clock.now += 40
        held, headers = await visit(manager, pair(headers))
        assert {"a": 1} == held


async def test_a_fixed_lifetime_is_fixed(clock):
    """`renew=False`: neither use nor a change moves the end."""
    manager = make_cookie_manager(clock, max_age=60, renew=False)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    clock.now += 40
    _, headers = await visit(manager, pair(headers), lambda s: s.update(a=2))
    assert "Max-Age=20" in headers[0]
    clock.now += 21

    assert {} == (await visit(manager, pair(headers)))[0]


async def test_an_absolute_end(clock):
    """However busy (LC-7)."""
    manager = make_cookie_manager(clock, max_age=60, absolute_max_age=100)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    for _ in range(2):
        clock.now += 40
        _, headers = await visit(manager, pair(headers), lambda s: s.update(b=1))
    assert "Max-Age=20" in headers[0]
    clock.now += 21

    assert {} == (await visit(manager, pair(headers)))[0]


async def test_own_lifetimes_are_kept(clock):
    """`max_age` and `absolute_max_age` of this session travel with it."""
    manager = make_cookie_manager(clock)

    def remember(session):
        session["a"] = 1
        session.max_age = 100
        session.absolute_max_age = 150

    _, headers = await visit(manager, edit=remember)
    assert "Max-Age=100" in headers[0]
    clock.now += 90
    _, headers = await visit(manager, pair(headers))
    assert "Max-Age=60" in headers[0]


async def test_a_browser_session(clock):
    """No lifetime on the cookie, 30 minutes inside it, extended by use (fault 8)."""
    manager = make_cookie_manager(clock, max_age="session")
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    assert "Max-Age" not in headers[0]
    clock.now += 1700
    _, headers = await visit(manager, pair(headers))
    clock.now += 1700
    held, _ = await visit(manager, pair(headers))
    assert {"a": 1} == held
    clock.now += 1801

    assert {} == (await visit(manager, pair(headers)))[0]


async def test_renewal_is_throttled_without_overwrite(clock):
    """`overwrite=False`: the cookie goes out when new or renewed, and not else."""
    manager = make_cookie_manager(clock, overwrite=False)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    cookie = pair(headers)
    clock.now += 29
    assert [] == (await visit(manager, cookie))[1]
    clock.now += 2
    assert 1 == len((await visit(manager, cookie))[1])


async def test_destroying_clears(clock):
    """And a new session after it is a new one."""
    manager = make_cookie_manager(clock)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    _, cleared = await visit(manager, pair(headers), lambda s: s.destroy())

    assert "Max-Age=0" in cleared[0]


@pytest.mark.parametrize("size", [2600, 3500, 10_000, 60_000])
async def test_too_much_data_is_refused_clearly(clock, size):
    """Above 4096 bytes of cookie: an error with numbers and the way out (CK-4)."""
    manager = make_cookie_manager(clock)
    session = await load_session(manager, [])
    session["a"] = "x" * size
    if size == 2600:
        manager.plan(session)
        [header] = manager.cookies(session)
        assert len(header.partition(";")[0]) <= MAX_COOKIE
        return
    with pytest.raises(SessionDataError, match=f"browsers keep {MAX_COOKIE}") as error:
        manager.plan(session)

    assert "give session_settings() a store" in str(error.value)
    assert "xxx" not in str(error.value)


async def test_after_a_refusal_nothing_was_saved(clock):
    """The handler can make it smaller and go on."""
    manager = make_cookie_manager(clock)
    session = await load_session(manager, [])
    session["a"] = "x" * 5000
    with pytest.raises(SessionDataError):
        await session.save()
    assert session.is_new
    assert [] == manager.cookies(session)
    session["a"] = "x"
    manager.plan(session)

    assert {"a": "x"} == (await visit(manager, pair(manager.cookies(session))))[0]


async def test_the_largest_data_can_be_bounded(clock):
    """`max_data_size` counts here as well (ST-3)."""
    manager = make_cookie_manager(clock, max_data_size=100)
    session = await load_session(manager, [])
    session["a"] = "x" * 93
    with pytest.raises(SessionDataError, match="101 bytes of JSON"):
        manager.plan(session)
    session["a"] = "x" * 92
    manager.plan(session)


async def test_auto_commit_off(clock):
    """Only `save()` writes; use extends all the same, and ending works."""
    manager = make_cookie_manager(clock, auto_commit=False, max_age=60)

    assert ({}, []) == await visit(manager, edit=lambda s: s.update(a=1))
    session = await load_session(manager, [])
    session["a"] = 1
    await session.save()
    session["a"] = 2
    cookie = pair(manager.cookies(session))
    clock.now += 40
    held, headers = await visit(manager, cookie, lambda s: s.update(a=3))
    assert {"a": 1} == held
    clock.now += 40
    held, headers = await visit(manager, pair(headers))
    assert {"a": 1} == held
    _, headers = await visit(manager, pair(headers), lambda s: s.destroy())
    assert "Max-Age=0" in headers[0]


async def test_reload_drops_what_was_not_saved(clock):
    """The cookie is the store."""
    manager = make_cookie_manager(clock)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    session = await load_session(manager, [pair(headers)])
    session["a"] = 2
    await session.reload()

    assert {"a": 1} == dict(session)


async def test_what_cannot_be_is_said(clock):
    """Locking and naming a session need a store."""
    session = await load_session(make_cookie_manager(clock), [])

    assert session.handle is None
    with pytest.raises(SessionError, match="lock\\(\\) needs a store"):
        session.lock()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a" * 24,
        b"[]",
        b"{}",
        b"null",
        b"[1,2,3,4,5]",
        b"[1,2,null,null,[]]",
        b'["x",2,null,null,{}]',
        b"[1e999,1,null,null,{}]",
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
async def test_a_signed_value_of_another_kind_is_no_session(clock, value):
    """As when the application signed something under the same name (SG-2)."""
    manager = make_cookie_manager(clock)
    held, _ = await visit(manager, f"{NAME}={manager.keys.sign(NAME, value)}")

    assert {} == held


async def test_an_id_of_a_store_is_no_data_and_data_is_no_id(clock):
    """Adding a store, or taking it away, makes everybody anonymous, and no error."""
    by_cookie, by_store = make_cookie_manager(clock), make_manager()
    _, headers = await visit(by_cookie, edit=lambda s: s.update(a=1))

    assert by_store.find([pair(headers)]) is None
    signed = by_store.keys.sign(NAME, "a" * 24)
    assert {} == (await visit(by_cookie, f"{NAME}={signed}"))[0]


async def test_a_cookie_of_an_old_key_is_signed_anew(clock):
    """On sight, with everything else as it was (SG-6)."""
    manager = make_cookie_manager(clock, overwrite=False)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    manager.keys = KeyRing([NEWER_KEY, KEY], clock=clock)
    held, again = await visit(manager, pair(headers))
    assert {"a": 1} == held
    manager.keys = KeyRing([NEWER_KEY], clock=clock)

    assert {"a": 1} == (await visit(manager, pair(again)))[0]
    assert headers[0].split("; ")[1:] == again[0].split("; ")[1:]
