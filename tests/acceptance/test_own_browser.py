"""
A browser that does nothing unusual is never signed out by its own requests, however
slow they are and in whatever order the answers come; nor does it raise the alarm.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from tests.factories import Browser, Clock, TroubledStore, make_app, serve, set_cookies
from tornado_compas_session import SessionMixin


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write(dict(self.session))

    def post(self):
        self.session["n"] = self.session.get("n", 0) + 1


class Account(SessionMixin, RequestHandler):
    async def post(self, what):
        if what == "sign-in":
            self.session["user_id"] = "anna"
            self.session.regenerate()
        elif what == "sign-in-as-eve":
            self.session["user_id"] = "eve"
        elif what == "regenerate":
            self.session.regenerate()
        elif what == "sign-out":
            self.session = None


class Slow(SessionMixin, RequestHandler):
    """Lets in as many as come, and lets them go on when it is told to."""

    async def post(self, what):
        self.session.get("n")
        self.settings["entered"].release()
        await self.settings["go_on"].wait()
        if what == "write":
            self.session["late"] = True
        elif what == "regenerate":
            self.session.regenerate()
        elif what == "destroy":
            self.session = None
        elif what == "save":
            self.session["late"] = True
            await self.session.save()
        self.write(dict(self.session))


class Failing(SessionMixin, RequestHandler):
    """Saves in the middle, and fails after that."""

    async def post(self, how):
        self.session.regenerate()
        if how == "sign-in":
            self.session["user_id"] = "anna"
        elif how == "destroy":
            self.session = None
        await self.session.save()
        self.settings["store"].failing = "save create"
        self.session["more"] = 1
        if how == "raise":
            raise ZeroDivisionError


ROUTES = [
    ("/", Page),
    ("/account/(.*)", Account),
    ("/slow/(.*)", Slow),
    ("/failing/(.*)", Failing),
]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return TroubledStore(clock=clock)


@pytest.fixture
def reused():
    return []


@pytest.fixture
def app(io_loop, store, reused):
    tornado = {
        "entered": asyncio.Semaphore(0),
        "go_on": asyncio.Event(),
        "store": store,
    }
    return make_app(ROUTES, store, tornado=tornado, on_reuse=reused.append)


@pytest.fixture
def browser(app, clock):
    with serve(app) as url:
        yield Browser(url, clock=clock)


class Held:
    """Requests that have arrived, and are answered when it is asked for."""

    def __init__(self, app, browser):
        self.app, self.browser = app, browser
        self.asked = []

    async def send(self, what):
        self.asked.append(asyncio.create_task(self.browser.post(f"/slow/{what}")))
        async with asyncio.timeout(30):
            await self.app.settings["entered"].acquire()

    async def answers(self):
        self.app.settings["go_on"].set()
        async with asyncio.timeout(30):
            return await asyncio.gather(*self.asked)


@pytest.fixture
def held(app, browser):
    return Held(app, browser)


async def content(browser):
    return json.loads((await browser.get()).body)


@pytest.mark.parametrize("what", ["read", "write", "save", "regenerate", "destroy"])
async def test_a_slow_request_does_not_put_the_dead_cookie_back(browser, held, what):
    """Meanwhile another tab has signed out and in again: that is who the visitor is."""
    await browser.post("/account/sign-in")
    await held.send(what)
    await browser.post("/account/sign-out")
    await browser.post("/account/sign-in")
    cookie = browser.jar.get()

    [response] = await held.answers()

    assert (409 if what in ("write", "save", "regenerate") else 200) == response.code
    assert [] == set_cookies(response, None)
    assert cookie == browser.jar.get()
    assert {"user_id": "anna"} == await content(browser)


@pytest.mark.parametrize("seconds", [1, 62])
@pytest.mark.parametrize("what", ["read", "write", "save"])
@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_long_poll_over_new_ids(
    browser, held, store, clock, reused, seconds, what, turns
):
    """
    It was let in with an id from before one regeneration, or two, or three: it reads
    and writes as any other, its answer touches no cookie, and nobody calls it a thief.
    """
    await browser.post("/account/sign-in")
    await browser.post()
    await held.send(what)
    for _ in range(turns):
        await browser.post("/account/regenerate")
        await browser.get()
        clock.now += seconds
    cookie = browser.jar.get()

    [response] = await held.answers()

    assert (200, []) == (response.code, set_cookies(response, None))
    assert cookie == browser.jar.get()
    expected = {"user_id": "anna", "n": 1}
    if what != "read":
        expected["late"] = True
    assert expected == await content(browser)
    assert ([], 1) == (reused, len(store))


@pytest.mark.parametrize("what", ["read", "regenerate", "destroy"])
async def test_the_dead_cookie_of_a_slow_request_clears_nothing(
    browser, held, store, what, monkeypatch
):
    """Another request that came with the same dead cookie has got a new session."""
    monkeypatch.setattr("tornado_compas_session.core.life._GONE_FRESH", 0.01)
    await browser.post()
    await store.revoke_all()
    await held.send(what)
    await browser.post("/account/sign-in")
    await asyncio.sleep(0.02)

    [response] = await held.answers()

    assert [] == set_cookies(response, None)
    assert {"user_id": "anna"} == await content(browser)


async def test_what_is_written_with_a_dead_cookie_is_a_session_of_its_own(
    browser, held, store
):
    """Of two that both start anew, the later one's is the visitor's; none is lost."""
    await browser.post()
    await store.revoke_all()
    await held.send("write")
    await browser.post()

    [response] = await held.answers()

    assert (200, 1) == (response.code, len(set_cookies(response)))
    assert {"late": True} == await content(browser)


@pytest.mark.parametrize("pause", [1, 6, 3600])
async def test_an_answer_that_is_lost_signs_nobody_out(browser, clock, reused, pause):
    """
    The new id was committed and never arrived: the browser goes on with the one that it
    has, for as long as it likes, and gets another.
    """
    await browser.post("/account/sign-in")
    for _ in range(3):
        kept = dict(browser.jar.kept)
        await browser.post("/account/regenerate")
        browser.jar.kept = kept
        clock.now += pause
        for _ in range(3):
            assert {"user_id": "anna"} == await content(browser)
    await browser.post("/account/regenerate")
    await browser.get()
    clock.now += 6

    assert {"user_id": "anna"} == await content(browser)
    assert [] == reused


async def test_after_a_lost_answer_one_can_still_sign_in(browser, clock):
    """
    A renewed cookie never arrived, as when a page is left while it loads: nobody has
    the new id, and signing in needs the current one. The one that the browser has
    counts, once the answer cannot arrive any more.
    """
    await browser.post("/account/sign-in")
    kept = dict(browser.jar.kept)
    await browser.post("/account/regenerate")
    browser.jar.kept = kept
    clock.now += 11

    assert 200 == (await browser.post("/account/sign-in-as-eve")).code
    assert {"user_id": "eve"} == await content(browser)


async def test_a_request_that_was_offline_raises_no_alarm(browser, clock, reused):
    """
    Sent before the regeneration, arrived six seconds after it, as of a phone in a lift:
    while the new id was not shown the former one holds, and it is no thief's.
    """
    await browser.post("/account/sign-in")
    before = {"Cookie": browser.jar.header()}
    await browser.post("/account/regenerate")
    clock.now += 6

    response = await browser.get("/", headers=before)

    assert {"user_id": "anna"} == json.loads(response.body)
    assert [] == set_cookies(response, None)
    assert {"user_id": "anna"} == await content(browser)
    assert [] == reused


async def test_an_upload_is_not_late(browser, clock, reused, monkeypatch):
    """
    Its headers came before the regeneration, its body took twelve seconds: the grace
    counts at the door.
    """
    monkeypatch.setattr(
        HTTPServerRequest,
        "request_time",
        lambda request: float(request.headers.get("X-Took", "0")),
    )
    await browser.post("/account/sign-in")
    before = {"Cookie": browser.jar.header(), "X-Took": "12"}
    clock.now += 1
    await browser.post("/account/regenerate")
    await browser.get()
    clock.now += 11

    response = await browser.post("/", headers=before)

    assert (200, []) == (response.code, set_cookies(response, None))
    assert {"user_id": "anna", "n": 1} == await content(browser)
    assert [] == reused


async def test_twenty_requests_at_a_renewal_raise_no_alarm(browser, clock, reused):
    """A page after a night: all of them came with the cookie that is due."""
    await browser.post("/account/sign-in")
    for _ in range(3):
        clock.now += 40_000
        sent = {"Cookie": browser.jar.header()}
        answers = await asyncio.gather(
            *(browser.get("/", headers=sent) for _ in range(20))
        )
        assert 1 == sum(len(set_cookies(answer)) for answer in answers)
        assert {b'{"user_id": "anna"}'} == {answer.body for answer in answers}
        clock.now += 3
        assert {"user_id": "anna"} == await content(browser)

    assert [] == reused


@pytest.mark.parametrize("how", ["regenerate", "sign-in", "raise"])
async def test_an_error_after_a_new_id_carries_it(browser, store, how):
    """
    `regenerate()` and `save()` are committed, and what follows fails: the error page
    takes the cookie along, or the visitor would be left with an id of the past.
    """
    await browser.post()
    before = browser.jar.get()

    response = await browser.post(f"/failing/{how}")
    store.failing = ""

    assert (500 if how == "raise" else 503) == response.code
    assert 1 == len(set_cookies(response))
    assert before != browser.jar.get()
    expected = {"n": 1} | ({"user_id": "anna"} if how == "sign-in" else {})
    assert expected == await content(browser)


async def test_an_error_after_an_end_clears_the_cookie(browser, store):
    """What was ended and saved is over, whatever follows."""
    await browser.post()

    response = await browser.post("/failing/destroy")

    assert 503 == response.code
    assert [] == browser.jar.names()
    assert 0 == len(store)


async def test_a_session_in_its_hook_of_the_docs_survives_its_own_browser(
    io_loop, clock
):
    """`await store.revoke(retired.handle)` ends nobody's session in any of these."""
    store = TroubledStore(clock=clock)

    async def revoke(retired):
        await store.revoke(retired.handle)

    with serve(make_app(ROUTES, store, on_reuse=revoke)) as url:
        browser = Browser(url, clock=clock)
        await browser.post("/account/sign-in")
        for pause in (1, 6, 4000):
            before = {"Cookie": browser.jar.header()}
            await browser.post("/account/regenerate")
            clock.now += pause
            await browser.get("/", headers=before)
            await browser.get()
            clock.now += 2
            await browser.get("/", headers=before)
            clock.now += 4000

        assert {"user_id": "anna"} == await content(browser)
