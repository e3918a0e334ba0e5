"""`Lifetimes`: until when a session lives, and when that and its cookie are renewed."""

from __future__ import annotations

import pytest

from tests.factories import Clock, CountingStore, make_manager, make_record
from tornado_compas_session.core.change import Difference
from tornado_compas_session.core.ids import hash_secret
from tornado_compas_session.core.types import SessionChange

DAY = 86400
MINE = hash_secret("b" * 24)


def build(options=None, *, presented=MINE, outdated=False, data="{}", **record):
    """The lifetimes of an application, and a session that was loaded at 1000."""
    manager = make_manager(**(options or {}))
    found = make_record(data, **record)
    session = manager.session()
    session.start(found)
    session.life.found(found, presented, outdated=outdated)
    return manager.lifetimes, session


def is_over(options, **record):
    return make_manager(**options).lifetimes.is_over(make_record(**record))


# -- the options of today --------------------------------------------------------------


@pytest.mark.parametrize(("idle", "over"), [(599, False), (600, True), (86_000, True)])
def test_a_shorter_max_age_counts_from_the_last_use(idle, over):
    """After an incident `max_age` goes from a day to ten minutes, and it holds."""
    record = {"created": 0.0, "used": 1000.0, "now": 1000.0 + idle, "expires": 9e9}

    assert over == is_over({"max_age": 600}, **record)


def test_a_longer_max_age_brings_nobody_back():
    """The row's own expiry is the store's to look at; here only the options count."""
    assert not is_over({"max_age": 10 * DAY}, used=0.0, now=9 * DAY, expires=1.0)


def test_a_shorter_browser_session():
    """30 minutes from the last use, as with any other."""
    record = {"used": 1000.0, "expires": 9e9}

    assert not is_over({"max_age": "session"}, now=2799.0, **record)
    assert is_over({"max_age": "session"}, now=2801.0, **record)


def test_a_fixed_lifetime_counts_from_the_creation():
    """With `renew=False` a write is no use either."""
    record = {"created": 0.0, "used": 590.0, "expires": 9e9}
    fixed = {"max_age": 600, "renew": False}

    assert not is_over(fixed, now=599.0, **record)
    assert is_over(fixed, now=600.0, **record)
    assert not is_over({"max_age": 600}, now=600.0, **record)


def test_own_lifetimes_win():
    """ "Remember me" is longer than the option, and stays so when that gets shorter."""
    record = {"created": 0.0, "used": 0.0, "now": 5000.0, "expires": 9e9}

    assert not is_over({"max_age": 600}, own_idle=DAY, **record)
    assert not is_over({"max_age": 600}, own_idle=-1800, **record)


@pytest.mark.parametrize(
    ("option", "own", "over"),
    [
        (None, None, False),
        (999, None, True),
        (1001, None, False),
        (999, 1001, False),
        (1001, 999, True),
        (None, 999, True),
    ],
)
def test_an_absolute_end(option, own, over):
    """However busy; the session's own first."""
    record = {"created": 0.0, "used": 1000.0, "now": 1000.0, "expires": 9e9}

    assert over == is_over({"absolute_max_age": option}, own_absolute=own, **record)
    assert over == is_over(
        {"absolute_max_age": option}, own_absolute=own, own_idle=DAY, **record
    )


async def test_a_visitor_who_comes_back_in_time_stays():
    """
    A row that was written under a longer lifetime is written at its next use, however
    far off its expiry is: else nobody would know of that use.
    """
    clock = Clock()
    store = CountingStore(clock=clock)
    before = make_manager(store, max_age=DAY)
    after = make_manager(store, max_age=600, overwrite=False)
    session = before.session()
    session["a"] = 1
    await before.commit(session)
    [cookie] = before.cookies(session)
    presented = after.find([cookie.partition(";")[0]])
    for _ in range(5):
        clock.now += 400
        again = await after.load(presented)
        assert {"a": 1} == again.open()
        await after.commit(again)
    clock.now += 600

    assert (await after.load(presented)).is_new


# -- the row ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "since", "due"),
    [
        ({}, 29, False),
        ({}, 30, True),
        ({"renew": 300}, 299, False),
        ({"renew": 300}, 300, True),
        ({"renew": 0}, 0, True),
        ({"renew": False}, 5 * DAY, False),
        # A short lifetime is renewed more often: at a tenth of it.
        ({"max_age": 60}, 5, False),
        ({"max_age": 60}, 6, True),
        ({"max_age": "session"}, 29, False),
        ({"max_age": "session"}, 30, True),
    ],
)
def test_a_use_extends_it_now_and_then(options, since, due):
    """So many seconds after it was last written (LC-6)."""
    lifetimes, session = build(options)
    now = 1000.0 + since
    expires = 1000.0 + lifetimes.options.idle
    record = make_record(now=now, expires=expires)
    session.start(record)
    session.life.found(record, MINE)

    assert due == lifetimes.row_is_due(session)


def test_a_row_that_was_just_written_is_not_due():
    """Not even with `renew=0`: one write a request."""
    lifetimes, session = build({"renew": 0})
    assert lifetimes.row_is_due(session)
    session.life.renewed = True
    assert not lifetimes.row_is_due(session)


def test_a_new_session_is_not_due():
    """There is no row."""
    manager = make_manager(renew=0)

    assert not manager.lifetimes.row_is_due(manager.session())
    assert not manager.lifetimes.cookie_is_due(manager.session())


def test_a_row_near_its_absolute_end_is_not_written_for_nothing():
    """Its expiry cannot be moved any further."""
    lifetimes, session = build(
        {"absolute_max_age": 7 * DAY}, created=0.0, now=6.5 * DAY, expires=7.0 * DAY
    )

    assert not lifetimes.row_is_due(session)


def test_a_shorter_absolute_end_is_written():
    """So that the row is not kept for longer than the option says."""
    lifetimes, session = build(
        {"absolute_max_age": DAY}, created=0.0, now=100.0, expires=6.0 * DAY
    )

    assert lifetimes.row_is_due(session)


def test_a_long_lifetime_of_its_own_is_extended():
    """Its expiry is far beyond the option's; a use counts all the same."""
    record = {"own_idle": 30 * DAY, "now": 1000.0}
    lifetimes, session = build(None, expires=1000.0 + 30 * DAY, **record)
    assert not lifetimes.row_is_due(session)
    lifetimes, session = build(None, expires=970.0 + 30 * DAY, **record)
    assert lifetimes.row_is_due(session)


def test_an_anonymous_lifetime():
    """`anonymous_max_age` is for those without `user_id`."""
    options = {"anonymous_max_age": 3600}
    lifetimes, anonymous = build(options, expires=1000.0 + 3600)
    _, signed_in = build(options, data='{"user_id":7}')

    assert (3600, None) == lifetimes.of(anonymous)
    assert (6 * DAY, None) == lifetimes.of(signed_in)
    assert not lifetimes.row_is_due(anonymous)
    assert not lifetimes.row_is_due(signed_in)
    assert 3600.0 == lifetimes.of_change(anonymous).idle
    assert 6.0 * DAY == lifetimes.of_change(signed_in).idle


def test_what_the_store_needs_to_know():
    """The option's lifetimes, whose own win there; None where the expiry stays."""
    lifetimes, session = build({"absolute_max_age": 7 * DAY}, own_idle=60, shown=None)
    session.client = ("Firefox", "192.0.2.1")
    change = lifetimes.of_change(session, Difference({"a": "1"}))

    assert {"a": "1"} == change.changed
    assert (6.0 * DAY, 7 * DAY) == (change.idle, change.absolute)
    assert change.shown == MINE
    assert ("Firefox", "192.0.2.1") == (change.user_agent, change.address)

    lifetimes, session = build({"renew": False})
    assert lifetimes.of_change(session).idle is None
    assert 6.0 * DAY == lifetimes.of_change(session, own=True).idle
    new = make_manager(renew=False).session()
    assert 6.0 * DAY == lifetimes.of_change(new).idle


# -- the cookie ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ({}, 3600),
        ({"max_age": 8 * 3600}, 8 * 360),
        ({"max_age": 1000}, 100),
        ({"max_age": "session"}, 180),
        ({"max_age": 60}, 6),
        ({"max_age": 60, "renew": 1}, 6),
        ({"renew": 2 * 3600}, 2 * 3600),
        ({"renew": 0}, 0),
        ({"max_age": 60, "renew": 0}, 0),
    ],
)
def test_the_cookie_is_renewed_by_a_tenth(options, every):
    """
    An hour at most; `renew` at least, unless that is too long for the lifetime;
    `renew=0` each time.
    """
    lifetimes, session = build(options, now=1000.0 + every)
    assert lifetimes.cookie_is_due(session)
    if every:
        lifetimes, session = build(options, now=999.0 + every)
        assert not lifetimes.cookie_is_due(session)


@pytest.mark.parametrize(
    "options",
    [{"overwrite": False}, {"renew": False}, {"overwrite": False, "renew": 0}],
)
def test_some_cookies_are_not_renewed(options):
    """Only their signature by an older key is."""
    late = {"now": 1000.0 + 5 * DAY}
    lifetimes, session = build(options, **late)
    assert not lifetimes.cookie_is_due(session)
    lifetimes, session = build(options, outdated=True, **late)
    assert lifetimes.cookie_is_due(session)


def test_only_who_has_the_current_secret_gets_another():
    """Not the former one (it gets nothing new), and not twice in one request."""
    former = hash_secret("f" * 24)
    late = {"now": 1000.0 + DAY, "former_hash": former}
    lifetimes, session = build(presented=former, outdated=True, **late)
    assert not lifetimes.cookie_is_due(session)

    lifetimes, session = build(**late)
    assert lifetimes.cookie_is_due(session)
    session.life.draw(str, lambda: "n" * 24)
    assert session.life.record is not None
    session.life.created(session.life.record)
    assert not lifetimes.cookie_is_due(session)


@pytest.mark.parametrize(
    ("options", "record", "max_age"),
    [
        ({}, {"expires": 1060.0}, 60),
        ({}, {"expires": 1060.4}, 61),
        # PostgreSQL's clock has microseconds: no whole second is made of one.
        ({}, {"expires": 1060.0005}, 60),
        ({}, {"expires": 1000.0}, 1),
        ({"max_age": "session"}, {}, None),
        ({}, {"own_idle": -1800}, None),
        ({"max_age": "session"}, {"own_idle": 60, "expires": 1060.0}, 60),
    ],
)
def test_the_cookie_ends_with_the_row(options, record, max_age):
    """Its Max-Age is what is left; none where it ends with the browser."""
    lifetimes, session = build(options, **record)

    assert max_age == lifetimes.cookie_max_age(session)


async def test_own_lifetimes_are_not_cut_by_a_late_renewal():
    """The row's own are read in the store, so a request from before undoes nothing."""
    clock = Clock()
    store = CountingStore(clock=clock)
    manager = make_manager(store)
    session = manager.session()
    session["a"] = 1
    await manager.commit(session)
    session.max_age = 30 * DAY
    await manager.commit(session)
    assert session.handle is not None
    saved = await store.save(session.handle, 0, SessionChange(idle=60.0))

    assert saved is not None
    assert clock.now + 30 * DAY == saved.expires
