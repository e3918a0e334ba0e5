"""A sign-out ends what it is to end, however slow it is; and ends nothing else."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    NAME,
    Browser,
    Clock,
    TroubledStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write(dict(self.session))

    def post(self):
        self.session["n"] = self.session.get("n", 0) + 1

    def put(self):
        self.session.regenerate()


class SignIn(SessionMixin, RequestHandler):
    def post(self):
        self.session["user_id"] = self.get_query_argument("as", "anna")


class Slow(SessionMixin, RequestHandler):
    async def post(self, what):
        self.settings["entered"].set()
        await self.settings["go_on"].wait()
        if what == "destroy":
            self.session = None
        elif what == "save":
            self.session.destroy()
            await self.session.save()
        elif what == "lock":
            async with self.session.lock():
                self.session = None
        elif what == "clear":
            self.session.clear()
        elif what == "leave":
            self.session.pop("user_id", None)


class BeingMade(SessionMixin, RequestHandler):
    """Ends the session whose creation is on its way."""

    async def post(self, how):
        self.session["n"] = 1
        saving: asyncio.Future[None] | None = None
        if how == "flush":
            self.write("a part")
            self.flush()  # not awaited
        else:
            saving = asyncio.ensure_future(self.session.save())
        await self.settings["store"].writing.wait()
        self.session = None
        asyncio.get_running_loop().call_later(0.02, self.settings["store"].gate.set)
        if saving is not None:
            await saving


class ClearAll(SessionMixin, RequestHandler):
    """As many an application signs its visitors out."""

    def post(self, how):
        if self.get_query_argument("changed", ""):
            self.session["n"] = 1
        if self.get_query_argument("new", ""):
            self.session.regenerate()
        if how == "all":
            self.clear_all_cookies()
        elif how == "one":
            self.clear_cookie(NAME)
        else:
            self.set_cookie(NAME, "of-its-own")


ROUTES = [
    ("/", Page),
    ("/sign-in", SignIn),
    ("/slow/(.*)", Slow),
    ("/being-made/(.*)", BeingMade),
    ("/clear/(.*)", ClearAll),
]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return TroubledStore(clock=clock)


@pytest.fixture
def options():
    return {}


@pytest.fixture
def app(io_loop, store, options):
    tornado = {"entered": asyncio.Event(), "go_on": asyncio.Event(), "store": store}
    return make_app(ROUTES, store, tornado=tornado, **options)


@pytest.fixture
def browser(app, clock):
    with serve(app) as url:
        yield Browser(url, clock=clock)


async def content(browser):
    return json.loads((await browser.get()).body)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("what", ["destroy", "save", "lock"])
async def test_a_slow_sign_out_over_new_ids_ends_the_session(
    app, browser, store, clock, what, turns
):
    """
    It takes longer than the grace, and the session was regenerated meanwhile: the
    answer says that it has ended, and it has.
    """
    await browser.post("/sign-in")
    slow = asyncio.create_task(browser.post(f"/slow/{what}"))
    async with asyncio.timeout(30):
        await app.settings["entered"].wait()
        for _ in range(turns):
            await browser.ask("/", "PUT")
            assert {"user_id": "anna"} == await content(browser)
            clock.now += 7
        app.settings["go_on"].set()
        response = await slow

    assert 200 == response.code
    assert ([], 0) == (browser.jar.names(), len(store))
    assert {} == await content(browser)


@pytest.mark.parametrize("what", ["clear", "leave"])
async def test_a_slow_sign_out_that_keeps_the_session_is_one_as_well(
    app, browser, store, clock, what
):
    """Who is signed in is so no more, whatever id the request came with."""
    await browser.post("/sign-in")
    await browser.post()
    slow = asyncio.create_task(browser.post(f"/slow/{what}"))
    async with asyncio.timeout(30):
        await app.settings["entered"].wait()
        await browser.ask("/", "PUT")
        await browser.get()
        clock.now += 7
        app.settings["go_on"].set()
        response = await slow

    assert 200 == response.code
    assert "user_id" not in await content(browser)
    assert 0 == (await store.stats())["users"]


@pytest.mark.parametrize("what", ["destroy", "save"])
async def test_a_slow_sign_out_ends_nobody_elses_session(app, browser, store, what):
    """Somebody else has signed in to it meanwhile: it is theirs."""
    await browser.post()
    slow = asyncio.create_task(browser.post(f"/slow/{what}"))
    async with asyncio.timeout(30):
        await app.settings["entered"].wait()
        await browser.post("/sign-in")
        app.settings["go_on"].set()
        response = await slow

    assert (200, []) == (response.code, set_cookies(response, None))
    assert "anna" == (await content(browser))["user_id"]


@pytest.mark.parametrize("how", ["flush", "save"])
async def test_a_session_that_is_ended_while_it_is_made_has_ended(browser, store, how):
    """It is made, and then ended; no row is left, and no 503."""
    store.gate.clear()

    response = await browser.post(f"/being-made/{how}")

    assert 200 == response.code
    assert 0 == len(store)
    store.gate.set()
    assert {} == await content(browser)


@pytest.mark.parametrize("options", [{}, {"renew": 0}, {"keep_public_cookie": True}])
@pytest.mark.parametrize("query", ["", "?changed=1", "?new=1", "?changed=1&new=1"])
@pytest.mark.parametrize("how", ["all", "one"])
async def test_the_handlers_own_clearing_wins(browser, clock, how, query):
    """
    `clear_all_cookies()` and `clear_cookie()` sign out, though data was changed, a new
    id is wanted, or a renewal is due.
    """
    await browser.post("/sign-in")
    clock.now += 4000

    response = await browser.post(f"/clear/{how}{query}")

    assert 200 == response.code
    for header in set_cookies(response):
        assert "01 Jan 1970" in header or "Max-Age=0" in header or '=""' in header
    assert NAME not in browser.jar.names()
    assert {} == await content(browser)


async def test_a_cookie_that_the_handler_sets_wins(browser):
    """Whoever sets the cookie of the name by hand has meant to."""
    await browser.post("/sign-in")

    await browser.post("/clear/set?new=1")

    assert "of-its-own" == browser.jar.get()
