"""Which session the cookies of a request mean, and when the alarm rings."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import pytest

from tests.factories import (
    KEY,
    NAME,
    NEWER_KEY,
    Clock,
    make_manager,
    make_options,
    make_record,
)
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core import arrival
from tornado_compas_session.core.arrival import CookieJarReader, Doorkeeper, Presented
from tornado_compas_session.core.ids import hash_secret
from tornado_compas_session.core.types import RetiredId

HANDLE, OTHER_HANDLE = "a" * 12, "z" * 12
CURRENT, FORMER, OLDER = (hash_secret(letter * 24) for letter in "cfo")


def row(**values):
    """Regenerated at 1000 for the same visitor; the new secret was shown at 1010."""
    fields = {
        "secret_hash": CURRENT,
        "former_hash": FORMER,
        "turned": 1000.0,
        "shown": 1010.0,
        "now": 1012.0,
    }
    return make_record(**{**fields, **values})


def shows(secret_hash, handle=HANDLE, *, outdated=False):
    return Presented(handle, secret_hash, outdated)


def door(on_reuse=None, **options):
    return Doorkeeper(make_options(**options), on_reuse)


async def admitted(presented, *records, waited=0.0, keeper=None, **options):
    """The session of a request with these cookies, with these rows in the store."""
    session = make_manager(**options).session()
    found: dict[str, Any] = {each.handle: None for each in presented}
    found.update({record.handle: record for record in records})
    await (keeper or door(**options)).admit(session, presented, found, waited)
    return session


# -- one cookie ------------------------------------------------------------------------


async def test_the_current_secret_opens():
    """Whatever its age; it may be renewed."""
    session = await admitted([shows(CURRENT)], row(data='{"a":1}', now=9e6))

    assert {"a": 1} == session.open()
    assert session.life.current
    assert not session.life.several
    assert not session.life.strange


async def test_the_first_showing_is_noted():
    """By the request that shows it, and by no other."""
    first = await admitted([shows(CURRENT)], row(shown=None))
    later = await admitted([shows(CURRENT)], row())
    former = await admitted([shows(FORMER)], row(shown=None))

    assert first.life.shows == CURRENT
    assert later.life.shows is None
    assert former.life.shows is None


@pytest.mark.parametrize(
    ("values", "opens"),
    [
        # Until the new one was shown.
        ({"shown": None, "now": 1000.0}, True),
        # And for the grace after it was (not after it was made).
        ({"now": 1014.9}, True),
        ({"now": 1015.0}, False),
        # Never where who the visitor is has changed with it.
        ({"former_hash": None, "now": 1010.0}, False),
        ({"former_hash": None, "shown": None, "now": 1000.0}, False),
    ],
)
async def test_the_former_secret_within_its_grace(values, opens):
    """It reads and writes the session, and is not the current one."""
    session = await admitted([shows(FORMER)], row(data='{"a":1}', **values))

    assert opens != session.is_new
    assert not session.life.current
    assert not session.life.clears_cookie


@pytest.mark.parametrize("seconds", [0.0, 9.9, 10.0, 9e6])
async def test_where_the_new_secret_was_lost_the_former_one_counts(seconds):
    """
    Nobody has shown the new one, and no answer is under way for twice the grace: so the
    one before signs in, and gets the cookie renewed. Before that it does neither.
    """
    late = row(shown=None, turned=1000.0, now=1000.0 + seconds)

    session = await admitted([shows(FORMER)], late)

    assert (seconds >= 10) == session.life.current
    assert session.life.shows is None  # the new one was not shown by this
    shown = late._replace(shown=late.now)
    assert not (await admitted([shows(FORMER)], shown)).life.current


async def test_the_grace_counts_from_the_door():
    """
    An upload that took 12 seconds began to come in long before: the former secret is
    looked at as of then.
    """
    late = row(now=1020.0)

    assert (await admitted([shows(FORMER)], late)).is_new
    assert (await admitted([shows(FORMER)], late, waited=5.0)).is_new
    assert not (await admitted([shows(FORMER)], late, waited=5.1)).is_new


async def test_no_grace_is_none():
    """`regenerate_grace=0`: once the new one was shown the former one is over."""
    for shown, opens in ((1012.0, False), (None, True)):
        record = row(shown=shown)
        session = await admitted([shows(FORMER)], record, regenerate_grace=0)
        assert opens != session.is_new


@pytest.mark.parametrize("secret", [FORMER, OLDER])
async def test_within_the_grace_of_a_sign_in_it_is_a_stranger(secret):
    """
    The session is empty, no cookie is touched, and whoever the row belongs to now is
    remembered for a double click (DESIGN.md, 2).
    """
    record = row(former_hash=None, data='{"user_id":7,"a":1}', epoch=1)
    session = await admitted([shows(secret)], record)

    assert {} == session.open()
    assert session.life.strange
    assert "7" == session.life.strange_user
    assert not session.life.clears_cookie


async def test_after_the_grace_it_is_a_new_visitor():
    """Whose cookie is left alone; and who may begin a new session."""
    session = await admitted([shows(OLDER)], row(now=1100.0))

    assert session.is_new
    assert not session.life.strange
    assert not session.life.clears_cookie


async def test_an_older_id_is_a_stranger_within_the_grace():
    """Of two regenerations: neither an alarm nor a new session (older)."""
    told: list[RetiredId] = []
    session = await admitted(
        [shows(OLDER)], row(), keeper=door(lambda retired: told.append(retired))
    )

    assert session.life.strange
    assert [] == told


async def test_what_is_gone_is_cleared():
    """By this response, as it was looked for just now."""
    session = await admitted([shows(CURRENT)])

    assert session.is_new
    assert session.life.clears_cookie
    assert not session.life.strange


async def test_a_cookie_of_an_older_key_is_outdated():
    """So it is replaced, with a new secret."""
    session = await admitted([shows(CURRENT, outdated=True)], row())

    assert session.life.outdated


# -- several cookies -------------------------------------------------------------------


async def test_one_live_session_among_several_is_the_visitors():
    """The others are ended or strange; and they are cleared with the next cookie."""
    for others in ([shows(OLDER, OTHER_HANDLE)], [shows(CURRENT, "g" * 12)]):
        presented = [*others, shows(CURRENT)]
        other = row(handle=OTHER_HANDLE, secret_hash=hash_secret("x"), former_hash=None)
        for order in (presented, presented[::-1]):
            session = await admitted(order, row(data='{"a":1}'), other)
            assert {"a": 1} == session.open()
            assert session.life.several
            assert not session.life.strange
            assert not session.life.clears_cookie


@pytest.mark.parametrize("twin", [FORMER, OLDER])
async def test_of_twins_the_current_secret_counts(twin):
    """A host-only and a domain cookie of one session: in either order, no alarm."""
    told: list[RetiredId] = []
    keeper = door(lambda retired: told.append(retired))
    for order in ([CURRENT, twin], [twin, CURRENT]):
        session = await admitted(
            [shows(secret) for secret in order], row(now=9e6), keeper=keeper
        )
        assert session.life.current
        assert session.life.several

    assert [] == told


async def test_of_several_sessions_of_one_user_the_newest_counts():
    """A cookie of before COOKIE_URL changed lies beside that of the new sign-in."""
    old = row(handle=OTHER_HANDLE, data='{"user_id":7,"is":"old"}', created=500.0)
    new = row(data='{"user_id":"7","is":"new"}', created=900.0)
    for order in ([HANDLE, OTHER_HANDLE], [OTHER_HANDLE, HANDLE]):
        presented = [shows(CURRENT, handle) for handle in order]
        session = await admitted(presented, old, new)
        assert "new" == session.open()["is"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"user_id":7}', '{"user_id":8}'),
        ('{"user_id":7}', "{}"),
        ("{}", "{}"),
        ('{"user_id":true}', '{"user_id":true}'),
    ],
)
async def test_of_several_visitors_it_is_none(one, other, caplog):
    """Whose this is cannot be known: anonymous, nothing cleared, one line logged."""
    keeper = door()
    presented = [shows(CURRENT), shows(CURRENT, OTHER_HANDLE)]
    rows = row(data=one), row(handle=OTHER_HANDLE, data=other)
    for _ in range(3):
        session = await admitted(presented, *rows, keeper=keeper)
        assert session.is_new
        assert {} == session.open()
        assert not session.life.strange
        assert not session.life.clears_cookie
        assert session.life.several

    assert 1 == caplog.text.count("several valid session cookies")


async def test_all_gone_is_gone():
    """Several dead cookies are cleared, in every form."""
    session = await admitted([shows(CURRENT), shows(CURRENT, OTHER_HANDLE)])

    assert session.life.clears_cookie
    assert session.life.several


async def test_a_stranger_beside_a_dead_cookie_is_a_stranger():
    """Clearing would take the good cookie along that a parallel request just got."""
    session = await admitted(
        [shows(CURRENT, OTHER_HANDLE), shows(OLDER)], row(data='{"user_id":7}')
    )

    assert session.life.strange
    assert not session.life.clears_cookie


# -- the alarm -------------------------------------------------------------------------


@pytest.fixture
def minute(monkeypatch):
    """The process's clock, for the alarm alone: the loop goes on by the real one."""
    clock = Clock(0.0)
    monkeypatch.setattr(arrival, "time", types.SimpleNamespace(monotonic=clock))
    return clock


async def test_the_alarm_rings_once_a_minute(minute, caplog):
    """For each session; a thief who polls fills no log, and asks no hook in vain."""
    told: list[RetiredId] = []
    keeper = door(lambda retired: told.append(retired))
    late = row(data='{"user_id":7}', now=1100.0)
    other = row(handle=OTHER_HANDLE, now=1100.0)
    for minute.now in (0.0, 1.0, 59.0):
        await admitted([shows(OLDER)], late, keeper=keeper)
        await admitted([shows(FORMER)], late, keeper=keeper)
    assert [RetiredId(HANDLE, "7")] == told
    await admitted([shows(FORMER, OTHER_HANDLE)], other, keeper=keeper)
    assert RetiredId(OTHER_HANDLE, None) == told[-1]
    minute.now = 60.0
    await admitted([shows(OLDER)], late, keeper=keeper)

    assert 3 == len(told)
    assert 3 == caplog.text.count("somebody may have copied it")
    assert {HANDLE, OTHER_HANDLE} == keeper._alarmed.keys()
    minute.now = 200.0
    await admitted([shows(OLDER)], late, keeper=keeper)
    assert {HANDLE} == keeper._alarmed.keys()


@pytest.mark.parametrize(
    ("record", "options"),
    [
        # The new one was never shown: its answer may have been lost.
        (row(shown=None, now=9e6), {}),
        # Anybody can make up an id that nobody signed.
        (row(now=1100.0), {"signed": False}),
    ],
)
async def test_what_is_no_theft_rings_no_alarm(record, options, caplog):
    """A stranger, and nothing more."""
    told: list[RetiredId] = []
    keeper = door(lambda retired: told.append(retired), **options)
    session = await admitted([shows(OLDER)], record, keeper=keeper)

    assert session.is_new
    assert [] == told
    assert "copied" not in caplog.text


async def test_the_alarm_rings_beside_a_good_cookie():
    """A copied id of another session is one, whatever else came along."""
    told: list[RetiredId] = []
    keeper = door(lambda retired: told.append(retired))
    session = await admitted(
        [shows(CURRENT, OTHER_HANDLE), shows(OLDER)],
        row(now=1100.0),
        row(handle=OTHER_HANDLE, data='{"a":1}'),
        keeper=keeper,
    )

    assert {"a": 1} == session.open()
    assert [HANDLE] == [retired.handle for retired in told]


async def fails(retired):
    await asyncio.sleep(0)
    raise ValueError("no mail server")


def fails_at_once(retired):
    raise ValueError("no mail server")


async def is_cancelled(retired):
    await asyncio.sleep(0)
    raise asyncio.CancelledError


def returns_nonsense(retired):
    return 5


@pytest.mark.parametrize("hook", [fails, fails_at_once, is_cancelled, returns_nonsense])
async def test_a_hook_that_fails_breaks_no_page(hook, caplog):
    """It is logged, with its traceback; the request goes on as a stranger's."""
    session = await admitted([shows(OLDER)], row(now=1100.0), keeper=door(hook))

    assert session.is_new
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()
    if hook is not is_cancelled:
        assert "on_reuse failed" in caplog.text
    if hook in (fails, fails_at_once):
        assert "no mail server" in caplog.text


async def test_a_hook_that_hangs_is_not_waited_for(caplog):
    """Beyond `timeout`; it goes on, and what it meets later is logged."""
    go = asyncio.Event()
    done = asyncio.Event()

    async def hangs(retired):
        try:
            await go.wait()
            raise ValueError("no mail server")
        finally:
            done.set()

    keeper = door(hangs, timeout=0.02)
    async with asyncio.timeout(10):
        session = await admitted([shows(OLDER)], row(now=1100.0), keeper=keeper)
    assert session.is_new
    assert not done.is_set()
    go.set()
    await done.wait()
    while "no mail server" not in caplog.text:
        await asyncio.sleep(0.001)
    assert not arrival._under_way


async def test_a_hook_goes_on_when_the_client_leaves():
    """The request is cancelled; what was begun against the thief is not."""
    begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def ends_the_session(retired):
        begun.set()
        await go.wait()
        ended.set()

    task = asyncio.ensure_future(
        admitted([shows(OLDER)], row(now=1100.0), keeper=door(ends_the_session))
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    async with asyncio.timeout(10):
        await ended.wait()


# -- reading the cookies ---------------------------------------------------------------


ID = HANDLE + "c" * 24


def reader(keys=(KEY,), **options):
    return CookieJarReader(make_options(**options), KeyRing(keys))


def test_a_verified_id_is_found():
    """Handle and hash; the secret itself goes no further."""
    line = f"{NAME}={KeyRing([KEY]).sign(NAME, ID)}"

    assert (Presented(HANDLE, CURRENT, False),) == reader().find([line])
    assert (Presented(HANDLE, CURRENT, True),) == (
        reader((NEWER_KEY, KEY)).find([line])
    )
    assert () == reader((NEWER_KEY,)).find([line])


@pytest.mark.parametrize("value", ["", ID[:-1], ID + "x", "a" * 24, "=" * 36, "[]"])
def test_what_is_signed_and_no_id_is_none(value):
    """An id of the first design, a session without a store: anonymous, no query."""
    line = f"{NAME}={KeyRing([KEY]).sign(NAME, value)}"

    assert () == reader().find([line])


def test_unsigned_ids():
    """Where `signed=False` was asked for, the id is taken as it is."""
    assert (Presented(HANDLE, CURRENT, False),) == (
        reader(signed=False).find([f"{NAME}={ID}"])
    )
    for wrong in ("", "x", ID + "€", "ü" * 36, KeyRing([KEY]).sign(NAME, ID)):
        assert () == reader(signed=False).find([f"{NAME}={wrong}"])


def test_a_former_name_is_outdated_and_counts_only_without_the_new_one():
    """`previous_keys`: only what we signed under that very name."""
    ring = KeyRing([KEY])
    own = f"{NAME}={ring.sign(NAME, ID)}"
    former = f"old.sess={ring.sign('old.sess', ID)}"
    planted = f"old.sess={ring.sign(NAME, ID)}"
    jar = reader(previous_keys=["old.sess"])

    assert (Presented(HANDLE, CURRENT, True),) == jar.find([former])
    assert (Presented(HANDLE, CURRENT, False),) == jar.find([f"{former}; {own}"])
    assert () == jar.find([planted])
    assert () == jar.find([f"old.sess={ID}"])


def test_refusals_are_logged_once_a_second(caplog, monkeypatch):
    """However many a stranger sends, and without their values."""
    clock = Clock(0.0)
    monkeypatch.setattr(arrival, "time", types.SimpleNamespace(monotonic=clock))
    caplog.set_level("INFO")
    jar = reader()
    for clock.now in (0.0, 0.5, 0.9, 1.0):
        assert () == jar.find([f"{NAME}=planted"])

    assert 2 == caplog.text.count("session cookies refused so far")
    assert "planted" not in caplog.text
