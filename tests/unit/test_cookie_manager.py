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
from tornado_compas_session import (
    ResponseAlreadySent,
    SessionDataError,
    SessionError,
)
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
    await manager.commit(session)
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


async def test_reading_sends_nothing(clock):
    """
    Changed: a read does not extend the lifetime here. Its late answer would bring a
    session back that was signed out meanwhile, and there is no row to say so.
    """
    manager = make_cookie_manager(clock, max_age=60, renew=0)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    cookie = pair(headers)
    clock.now += 40
    assert ({"a": 1}, []) == await visit(manager, cookie)
    clock.now += 21

    assert {} == (await visit(manager, cookie))[0]


async def test_writing_extends_it(clock):
    """Each answer that takes the cookie along carries a later expiry (LC-6)."""
    manager = make_cookie_manager(clock, max_age=60)
    _, headers = await visit(manager, edit=lambda s: s.update(a=0))
    for number in range(5):
        clock.now += 40
        held, headers = await visit(
            manager, pair(headers), lambda s: s.update(a=s["a"] + 1)
        )
        assert {"a": number} == held
        assert "Max-Age=60" in headers[0]


async def test_a_fixed_lifetime_is_fixed(clock):
    """`renew=False`: neither use nor a change moves the end."""
    manager = make_cookie_manager(clock, max_age=60, renew=False)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    clock.now += 40
    _, headers = await visit(manager, pair(headers), lambda s: s.update(a=2))
    assert "Max-Age=20" in headers[0]
    clock.now += 21

    assert {} == (await visit(manager, pair(headers)))[0]


async def test_without_overwrite_only_a_new_cookie_starts_the_lifetime(clock):
    """`overwrite=False`: a write of data leaves the end, `regenerate()` moves it."""
    manager = make_cookie_manager(clock, max_age=60, overwrite=False)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    clock.now += 40
    _, headers = await visit(manager, pair(headers), lambda s: s.update(a=2))
    assert "Max-Age=20" in headers[0]
    _, headers = await visit(manager, pair(headers), lambda s: s.regenerate())

    assert "Max-Age=60" in headers[0]


async def test_an_absolute_end(clock):
    """However busy (LC-7)."""
    manager = make_cookie_manager(clock, max_age=60, absolute_max_age=100)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    for number in range(2):
        clock.now += 40
        _, headers = await visit(
            manager, pair(headers), lambda s, number=number: s.update(b=number)
        )
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
    _, headers = await visit(manager, pair(headers), lambda s: s.update(a=2))
    assert "Max-Age=60" in headers[0]


async def test_an_own_lifetime_may_be_longer_than_the_option(clock):
    """As with "remember me": 30 days where others have six, though nobody writes."""
    manager = make_cookie_manager(clock)

    def remember(session):
        session["a"] = 1
        session.max_age = 30 * DAY

    _, headers = await visit(manager, edit=remember)
    clock.now += 29 * DAY

    assert {"a": 1} == (await visit(manager, pair(headers)))[0]


async def test_a_former_name_is_read_as_well(clock):
    """`previous_keys`: the next write gives it the new name; the end clears both."""
    _, headers = await visit(make_cookie_manager(clock), edit=lambda s: s.update(a=1))
    former = pair(headers)
    manager = make_cookie_manager(clock, key="new", previous_keys=[NAME])
    assert ({"a": 1}, []) == await visit(manager, former)
    _, headers = await visit(manager, former, lambda s: s.update(a=2))
    both = f"{former}; {pair(headers)}"
    held, headers = await visit(manager, both, lambda s: s.destroy())

    assert {"a": 2} == held
    assert ["new", NAME] == [header.partition("=")[0] for header in headers]


async def test_a_browser_session(clock):
    """No lifetime on the cookie, 30 minutes inside, extended by writing (fault 8)."""
    manager = make_cookie_manager(clock, max_age="session")
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    assert "Max-Age" not in headers[0]
    clock.now += 1700
    _, headers = await visit(manager, pair(headers), lambda s: s.update(b=1))
    assert "Max-Age" not in headers[0]
    clock.now += 1700
    held, _ = await visit(manager, pair(headers))
    assert {"a": 1, "b": 1} == held
    clock.now += 101

    assert {} == (await visit(manager, pair(headers)))[0]


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
        await manager.commit(session)
        [header] = manager.cookies(session)
        assert len(header.partition(";")[0]) <= MAX_COOKIE
        return
    assert manager.pending(session)
    with pytest.raises(SessionDataError, match=f"browsers keep {MAX_COOKIE}") as error:
        await manager.commit(session)

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
    await manager.commit(session)

    assert {"a": "x"} == (await visit(manager, pair(manager.cookies(session))))[0]


async def test_the_largest_data_can_be_bounded(clock):
    """`max_data_size` counts here as well (ST-3)."""
    manager = make_cookie_manager(clock, max_data_size=100)
    session = await load_session(manager, [])
    session["a"] = "x" * 93
    with pytest.raises(SessionDataError, match="101 bytes of JSON"):
        await manager.commit(session)
    session["a"] = "x" * 92
    await manager.commit(session)


async def test_auto_commit_off(clock):
    """Only `save()` writes, and ending works. Changed: use does not extend it."""
    manager = make_cookie_manager(clock, auto_commit=False, max_age=60)

    assert ({}, []) == await visit(manager, edit=lambda s: s.update(a=1))
    session = await load_session(manager, [])
    session["a"] = 1
    await session.save()
    session["a"] = 2
    await manager.commit(session)
    cookie = pair(manager.cookies(session))
    clock.now += 40
    held, headers = await visit(manager, cookie, lambda s: s.update(a=3))
    assert ({"a": 1}, []) == (held, headers)
    _, headers = await visit(manager, cookie, lambda s: s.destroy())
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
    """Locking, counting, naming and finding a session need a store."""
    session = await load_session(make_cookie_manager(clock), [])

    assert session.handle is None
    with pytest.raises(SessionError, match="lock\\(\\) needs a store"):
        session.lock()
    for name, call in (
        ("increment", lambda: session.increment("n")),
        ("end_others", session.end_others),
        ("devices", session.devices),
    ):
        with pytest.raises(SessionError, match=f"{name}\\(\\) needs a store"):
            await call()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a" * 24,
        b"a" * 36,
        b"[]",
        b"{}",
        b"null",
        b"[1,2,3,4,5]",
        b"[1,2,null,null,[]]",
        b'["x",2,null,null,{}]',
        b"[1e999,1,null,null,{}]",
        b"[1,2,3,null,null,[]]",
        b'["x",2,3,null,null,{}]',
        b"[1,2,3,null,null,{},{}]",
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

    assert () == by_store.find([pair(headers)])
    signed = by_store.keys.sign(NAME, "a" * 36)
    assert {} == (await visit(by_cookie, f"{NAME}={signed}"))[0]


async def test_a_cookie_of_an_old_key_is_signed_anew(clock):
    """
    With everything else as it was (SG-6). Changed: not on sight, but by the next
    request that writes, as every cookie here; until then the old key verifies it.
    """
    manager = make_cookie_manager(clock)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    manager.keys = KeyRing([NEWER_KEY, KEY], clock=clock)
    assert ({"a": 1}, []) == await visit(manager, pair(headers))
    _, again = await visit(manager, pair(headers), lambda s: s.update(b=1))
    manager.keys = KeyRing([NEWER_KEY], clock=clock)

    assert {"a": 1, "b": 1} == (await visit(manager, pair(again)))[0]
    assert headers[0].split("; ")[1:] == again[0].split("; ")[1:]


async def test_a_slow_read_brings_nobody_back(clock):
    """Signed out while a page of 62 seconds was read: its answer carries no cookie."""
    manager = make_cookie_manager(clock)
    _, headers = await visit(manager, edit=lambda s: s.update(user_id=7))
    slow = await load_session(manager, [pair(headers)])
    dict(slow)
    _, cleared = await visit(manager, pair(headers), lambda s: s.destroy())
    assert "Max-Age=0" in cleared[0]
    clock.now += 62
    await manager.commit(slow)

    assert [] == manager.cookies(slow)


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.update(b=1),
        lambda s: s["list"].append(1),
        lambda s: s.replace({"b": 1}),
        lambda s: s.update(user_id=7),
        lambda s: s.regenerate(),
        lambda s: setattr(s, "max_age", 60),
        lambda s: [s.destroy(), s.update(fresh=1)],
    ],
)
async def test_every_write_sends_the_cookie(clock, edit):
    """It is the store: what was written is in the next request's session."""
    manager = make_cookie_manager(clock)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1, list=[]))
    session = await load_session(manager, [pair(headers)])
    edit(session)
    wanted = dict(session)
    assert manager.pending(session)
    await manager.commit(session)
    assert not manager.pending(session)
    held, _ = await visit(manager, pair(manager.cookies(session)))

    assert wanted == held


async def test_nothing_is_written_after_the_headers(clock):
    """The data is the cookie, so the handler hears of it at the line that writes."""
    manager = make_cookie_manager(clock)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1, list=[]))
    session = await load_session(manager, [pair(headers)])
    inner = session["list"]
    session.life.headers_left("the headers have left")
    with pytest.raises(ResponseAlreadySent):
        session["a"] = 2
    assert not manager.pending(session)
    inner.append(1)
    assert manager.pending(session)
    with pytest.raises(ResponseAlreadySent):
        await manager.commit(session)

    assert [] == manager.cookies(session)


async def test_several_cookies(clock):
    """The same one twice is one; of different ones it cannot be known which counts."""
    manager = make_cookie_manager(clock)
    one = pair((await visit(manager, edit=lambda s: s.update(a=1)))[1])
    clock.now += 1
    other = pair((await visit(manager, edit=lambda s: s.update(a=2)))[1])

    assert {"a": 1} == await load_session(manager, [f"{one}; {one}"])
    session = await load_session(manager, [f"{one}; {other}"])
    assert {} == session
    assert session.life.several
    assert [] == manager.cookies(session)


async def test_a_failed_request_clears_nothing_that_was_found_expired(clock):
    """Only what it has ended itself."""
    manager = make_cookie_manager(clock, max_age=60)
    _, headers = await visit(manager, edit=lambda s: s.update(a=1))
    clock.now += 61
    session = await load_session(manager, [pair(headers)])

    assert [] == manager.cookies(session, failed=True)
    assert "Max-Age=0" in manager.cookies(session)[0]


async def test_a_shorter_max_age_ends_what_is_older(clock):
    """From its last write, whatever the cookie says of its own end."""
    before = make_cookie_manager(clock, max_age=DAY)
    after = make_cookie_manager(clock, max_age=600)
    _, headers = await visit(before, edit=lambda s: s.update(a=1))
    clock.now += 599
    assert {"a": 1} == (await visit(after, pair(headers)))[0]
    clock.now += 2

    assert {} == (await visit(after, pair(headers)))[0]
