"""The counter of the Compas documentation, over HTTP, whatever keeps the sessions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tornado.web import RequestHandler

from tests.factories import NAME, Browser, Clock, make_app, serve, set_cookies
from tornado_compas_session import (
    AppError,
    AppErrorMixin,
    MemorySessionStore,
    PostgresSessionStore,
    SessionMixin,
)

NOT_INITIALIZED = {
    "key": "error.sessionNotInitialized",
    "message": "error.sessionNotInitialized",
    "info": {"message": "Please call /counter/init first"},
}


class Counter(SessionMixin, AppErrorMixin, RequestHandler):
    def initialized(self):
        if self.session.is_new:
            raise AppError.validation_error(
                "error.sessionNotInitialized",
                {"message": "Please call /counter/init first"},
            )

    def get(self, verb):
        self.initialized()
        self.write({"value": self.session["counter"]})

    def post(self, verb):
        if verb == "init":
            self.session = {"counter": 0}
        elif verb == "increment":
            self.initialized()
            self.session["counter"] += 1
        elif verb == "destroy":
            self.session = None
            self.write({"success": True})
            return
        self.write({"value": self.session["counter"]})


class Types(SessionMixin, RequestHandler):
    values: tuple[Any, ...] = (5, "text", [("a", 1)], True, ("a",), object())

    def get(self, index):
        try:
            self.session = self.values[int(index)]
        except TypeError as error:
            self.write(str(error))


ROUTES = [(r"/counter/?(\w*)", Counter), (r"/types/(\d)", Types)]


@pytest.fixture(params=["memory", "postgres", "cookie"])
def kept_in(request):
    if request.param == "postgres":
        # Before there is a loop: the run's first database is made with one of its own.
        request.getfixturevalue("database")
    return request.param


@pytest.fixture
def store(kept_in, io_loop, request):
    if kept_in == "memory":
        yield MemorySessionStore()
    elif kept_in == "cookie":
        yield None
    else:
        database = request.getfixturevalue("database")
        store = io_loop.run_sync(lambda: PostgresSessionStore.connect(database))
        yield store
        io_loop.run_sync(store.close)


@pytest.fixture
def url(store):
    with serve(make_app(ROUTES, store)) as url:
        yield url


async def told(response):
    return response.code, json.loads(response.body)


async def test_the_documented_flow(url):
    """Increment before init is the 400; then 0, 1, 2, 3; destroy; the 400 again."""
    browser = Browser(url)

    assert (400, NOT_INITIALIZED) == await told(
        await browser.post("/counter/increment")
    )
    assert (400, NOT_INITIALIZED) == await told(await browser.get("/counter"))
    assert [] == browser.jar.names()
    assert (200, {"value": 0}) == await told(await browser.post("/counter/init"))
    for value in (1, 2, 3):
        response = await browser.post("/counter/increment")
        assert (200, {"value": value}) == await told(response)
    assert (200, {"value": 3}) == await told(await browser.get("/counter"))
    assert [NAME] == browser.jar.names()
    assert (200, {"success": True}) == await told(
        await browser.post("/counter/destroy")
    )
    assert [] == browser.jar.names()
    assert (400, NOT_INITIALIZED) == await told(
        await browser.post("/counter/increment")
    )


async def test_each_visitor_has_a_counter(url):
    """Nobody sees another one's."""
    browsers = [Browser(url) for _ in range(3)]
    for browser in browsers:
        await browser.post("/counter/init")
    for turns, browser in enumerate(browsers):
        for _ in range(turns):
            await browser.post("/counter/increment")

    values = [json.loads((await b.get("/counter")).body)["value"] for b in browsers]
    assert [0, 1, 2] == values


async def test_init_again_starts_again(url):
    """Assigning a dict replaces the content of a live session."""
    browser = Browser(url)
    await browser.post("/counter/init")
    await browser.post("/counter/increment")

    assert (200, {"value": 0}) == await told(await browser.post("/counter/init"))
    assert (200, {"value": 0}) == await told(await browser.get("/counter"))


async def test_a_restart_loses_nothing(url, store, kept_in):
    """Another process with the same keys and store goes on counting."""
    if kept_in == "memory":
        return  # they end with their process, and say so
    browser = Browser(url)
    await browser.post("/counter/init")
    with serve(make_app(ROUTES, store)) as elsewhere:
        browser.url = elsewhere
        response = await browser.post("/counter/increment")

    assert (200, {"value": 1}) == await told(response)


@pytest.mark.parametrize("index", range(len(Types.values)))
async def test_another_type_is_a_type_error(url, index):
    """At the assignment, with what is allowed; nothing is saved."""
    browser = Browser(url)
    response = await browser.get(f"/types/{index}")

    assert b"a session is a dict with string keys, or None" in response.body
    assert [] == browser.jar.names()


@pytest.mark.parametrize("days", [5, 7])
async def test_five_days_later(io_loop, days):
    """The same counter after 5 days; after 7 the session has ended (LC-6)."""
    clock = Clock()
    with serve(make_app(ROUTES, MemorySessionStore(clock=clock))) as url:
        browser = Browser(url, clock=clock)
        await browser.post("/counter/init")
        await browser.post("/counter/increment")
        value = browser.jar.get()
        clock.now += days * 86400
        assert (days < 6) == (browser.jar.get() is not None)
        browser.jar.put(str(value))  # even one that keeps the cookie
        response = await browser.get("/counter")

    if days == 5:
        assert (200, {"value": 1}) == await told(response)
    else:
        assert 400 == response.code
        assert "Max-Age=0" in set_cookies(response)[0]


async def test_a_replay_after_the_end_is_anonymous(url, kept_in):
    """A cookie that was copied before the logout is worthless (LC-2)."""
    if kept_in == "cookie":
        return  # what this mode cannot do; the docs say so
    browser, thief = Browser(url), Browser(url)
    await browser.post("/counter/init")
    copied = str(browser.jar.get())
    await browser.post("/counter/destroy")
    thief.jar.put(copied)

    assert 400 == (await thief.get("/counter")).code
    assert thief.jar.get() is None
