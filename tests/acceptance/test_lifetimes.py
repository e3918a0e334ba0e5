"""How long sessions live: the store's clock decides, and the cookie follows."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    NAME,
    Browser,
    Clock,
    CountingStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin

DAY = 86400


class Page(SessionMixin, RequestHandler):
    def get(self, verb):
        if verb == "write":
            self.session["n"] = self.session.get("n", 0) + 1
        elif verb == "remember":
            self.session["n"] = 1
            self.session.max_age = 30 * DAY
        elif verb == "until-the-browser-closes":
            self.session.max_age = "session"
        elif verb == "regenerate":
            self.session.regenerate()
        elif verb == "shorten":
            self.session.absolute_max_age = 10
        self.write({"n": self.session.get("n")})


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return CountingStore(clock=clock)


@pytest.fixture
def start(io_loop, store, clock):
    with ExitStack() as stack:

        def start(**options):
            app = make_app([(r"/([\w-]*)", Page)], store, **options)
            return Browser(stack.enter_context(serve(app)), clock=clock)

        yield start


async def alive(browser):
    return (await browser.get("/")).body == b'{"n": 1}'


def max_age(response):
    found = re.search(r"Max-Age=(\d+)", set_cookies(response)[0])
    return int(found[1]) if found else None


async def test_idle_time_to_the_second(start, clock):
    """Alive one second before its end, and not one after it (LC-6)."""
    browser = start(max_age=100)
    await browser.get("/write")
    clock.now += 99
    assert await alive(browser)
    clock.now += 101
    assert not await alive(browser)


async def test_an_expired_cookie_is_worth_nothing(start, clock):
    """Though a client keeps and sends it for ever (CK-6)."""
    browser = start(max_age=100)
    await browser.get("/write")
    kept = str(browser.jar.get())
    clock.now += 101
    assert browser.jar.get() is None
    browser.jar.put(kept)

    assert not await alive(browser)
    assert browser.jar.get() is None


async def test_sixty_days_and_longer(start, clock):
    """Tornado's own 31 days do not end a longer session (T3)."""
    browser = start(max_age=60 * DAY)
    await browser.get("/write")
    for days in (30, 59, 59):
        clock.now += days * DAY
        assert await alive(browser)


async def test_renewal_is_throttled(start, store, clock):
    """A hundred requests in five seconds write no expiry (LC-9)."""
    browser = start()
    await browser.get("/write")
    store.calls.clear()
    for _ in range(100):
        clock.now += 0.05
        await browser.get("/")
    assert 0 == store.calls.count("renew")
    clock.now += 30
    for _ in range(10):
        await browser.get("/")

    assert 1 == store.calls.count("renew")
    assert "save" not in store.calls


@pytest.mark.parametrize(
    ("renew", "renewals"), [(0, 10), (5, 5), (True, 0), (False, 0)]
)
async def test_renew(start, store, clock, renew, renewals):
    """
    Seconds between two writes of the expiry; True is 30, False is never. With 0 the
    cookie is renewed as well, each time, and a new secret with it.
    """
    browser = start(renew=renew)
    await browser.get("/write")
    for _ in range(10):
        clock.now += 2.6
        await browser.get("/")

    assert renewals == store.calls.count("renew") + store.calls.count("regenerate")
    assert (0 if renew else renewals) == store.calls.count("regenerate") or not renewals


async def test_without_renew_the_lifetime_is_fixed(start, clock):
    """
    Neither use nor a change moves the end, nor sends a cookie; a new id's cookie shows
    what is left.
    """
    browser = start(max_age=100, renew=False)
    assert 100 == max_age(await browser.get("/write"))
    clock.now += 60
    assert [] == set_cookies(await browser.get("/"))
    assert [] == set_cookies(await browser.get("/write"))
    assert 40 == max_age(await browser.get("/regenerate"))
    kept = str(browser.jar.get())
    clock.now += 41
    assert browser.jar.get() is None
    browser.jar.put(kept)

    assert (await browser.get("/")).body == b'{"n": null}'


@pytest.mark.parametrize("verb", ["", "write", "regenerate"])
async def test_the_absolute_end_is_not_moved(start, clock, verb):
    """By use, by changes or by a new id (LC-7)."""
    browser = start(max_age=100, absolute_max_age=250)
    response = await browser.get("/write")
    for _ in range(4):
        clock.now += 60
        response = await browser.get(f"/{verb}")
    assert 10 == max_age(response)
    clock.now += 11
    kept = browser.jar.header()

    assert "" == kept
    assert not await alive(browser)


async def test_a_short_lifetime_is_extended_by_use(start, clock):
    """Also one that is shorter than the time between two renewals."""
    browser = start(max_age=10)
    await browser.get("/write")
    for _ in range(10):
        clock.now += 8
        assert await alive(browser)


async def test_its_own_lifetime(start, clock):
    """ "Remember me": this session alone, in the store and on its cookie."""
    browser, other = start(max_age=100), start(max_age=100)
    await other.get("/write")
    assert 30 * DAY == max_age(await browser.get("/remember"))
    clock.now += 20 * DAY

    response = await browser.get("/")
    assert b'{"n": 1}' == response.body
    assert 30 * DAY == max_age(response)
    assert not await alive(other)


async def test_its_own_end_with_the_browser(start, clock):
    """The cookie loses its lifetime, and goes when the browser is closed (CK-7)."""
    browser = start()
    await browser.get("/write")
    browser.jar.restart()
    assert await alive(browser)
    assert max_age(await browser.get("/until-the-browser-closes")) is None
    assert await alive(browser)
    browser.jar.restart()

    assert [] == browser.jar.names()


async def test_its_own_lifetime_sends_a_cookie_once(start, clock):
    """Set anew with each request, as in `prepare`, it is the same and sends none."""
    browser = start()
    await browser.get("/write")
    assert 30 * DAY == max_age(await browser.get("/remember"))

    for _ in range(3):
        clock.now += 60
        assert [] == set_cookies(await browser.get("/remember"))


async def test_shortened_for_this_session(start, clock):
    """`absolute_max_age` can be set, and counts from the creation."""
    browser = start()
    await browser.get("/write")
    assert 10 == max_age(await browser.get("/shorten"))
    clock.now += 11

    assert not await alive(browser)


async def test_the_option_shortens_sessions_that_live_already(start, store, clock):
    """A new `absolute_max_age` counts at the next start, for all of them (LC-7)."""
    browser = start()
    await browser.get("/write")
    clock.now += 1000
    shorter = start(absolute_max_age=900)
    shorter.jar = browser.jar

    assert not await alive(shorter)


async def test_a_shorter_max_age_ends_what_was_idle_for_longer(start, store, clock):
    """
    After an incident: what was not used for so long ends at the next start, and does
    not live on by the lifetime that it was written with. Who was there just now stays,
    and so does who was promised a lifetime of their own.
    """
    idle, busy, remembered = start(), start(), start()
    for browser in (idle, busy):
        await browser.get("/write")
    await remembered.get("/remember")
    clock.now += 1000
    await busy.get("/")
    clock.now += 500
    shorter = start(max_age=600)

    for browser, lives in ((idle, False), (busy, True), (remembered, True)):
        browser.url = shorter.url
        assert lives is await alive(browser)
    assert idle.jar.get() is None
    clock.now += 599
    assert await alive(busy)
    clock.now += 601
    assert not await alive(busy)
    assert await alive(remembered)


async def test_a_shorter_fixed_lifetime_counts_from_the_creation(start, clock):
    """Without `renew` use extends nothing, by the old options or by the new ones."""
    browser = start(renew=False)
    await browser.get("/write")
    clock.now += 500
    await browser.get("/write")
    browser.url = start(renew=False, max_age=600).url
    assert (await browser.get("/")).body == b'{"n": 2}'
    clock.now += 100

    assert (await browser.get("/")).body == b'{"n": null}'


async def test_the_cookie_and_the_row_agree(start, store, clock):
    """
    The cookie may end a tenth of the lifetime before the row, and never after it
    (CK-6). It once went out with every response, and ended up to 30 s after the row.
    """
    browser = start(max_age=1000)
    await browser.get("/write")
    for step in (1, 20, 15, 40, 3, 30, 99, 1, 500, 899):
        clock.now += step
        assert b'{"n": 1}' == (await browser.get("/")).body
        [row] = store._rows.values()
        [cookie] = browser.jar.kept.values()
        assert 0 <= row.record.expires - cookie.expires <= 100


async def test_a_renamed_cookie_is_read_and_moved(start, store):
    """`previous_keys`: nobody is logged out by a new name (T5)."""
    old = start(key="old.sess")
    await old.get("/write")
    new = start(previous_keys=["old.sess"])
    ring_name = old.jar.get("old.sess")
    assert ring_name
    new.jar = old.jar

    assert await alive(new)
    assert new.jar.get(NAME) is not None
    assert 1 == len(store)
