"""`regenerate()`: a new id, the same session, and what becomes of the old id."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from tornado.web import RequestHandler

from tests.factories import Browser, make_app, serve, set_cookies
from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
    SessionMixin,
)

steps: dict[str, asyncio.Event] = {}


class Handler(SessionMixin, RequestHandler):
    def get(self):
        self.write({"new": self.session.is_new, **self.session})

    def post(self):
        self.session["n"] = 0

    def patch(self):
        self.session["late"] = True

    def delete(self):
        self.session = None


class Slow(SessionMixin, RequestHandler):
    async def get(self):
        self.write(dict(self.session))
        steps["reading"].set()
        await steps["go on"].wait()


class SignIn(SessionMixin, RequestHandler):
    async def post(self):
        self.session["user_id"] = "anna"
        self.session.regenerate()
        if "loaded" in steps:
            steps["loaded"].set()
            await steps["go on"].wait()


@pytest.fixture(params=["memory", "postgres"])
def store(request, template_database, io_loop):
    if request.param == "memory":
        yield MemorySessionStore()
        return
    database = request.getfixturevalue("database")
    store = io_loop.run_sync(lambda: PostgresSessionStore.connect(database))
    yield store
    io_loop.run_sync(store.close)


@pytest.fixture
def options():
    return {}


@pytest.fixture
def reused():
    return []


@pytest.fixture
def url(store, options, reused, io_loop):
    steps.clear()
    app = make_app(
        [("/", Handler), ("/sign-in", SignIn), ("/slow", Slow)],
        store,
        on_reuse=reused.append,
        **options,
    )
    with serve(app) as url:
        yield url


short = pytest.mark.parametrize("options", [{"regenerate_grace": 0}])


def twin(browser):
    """Another request of the same browser, which left before the answer came."""
    other = Browser(browser.url)
    other.jar.kept = dict(browser.jar.kept)
    return other


async def content(browser):
    return json.loads((await browser.get()).body)


async def count(store):
    return (await store.stats())["live"]


async def test_the_id_changes_and_the_data_stays(url, store):
    """One row before, one row after."""
    browser = Browser(url)
    await browser.post()
    old = browser.jar.get()

    await browser.post("/sign-in")

    assert old != browser.jar.get()
    assert {"new": False, "n": 0, "user_id": "anna"} == await content(browser)
    assert 1 == await count(store)


async def test_requests_in_flight_are_the_same_session_and_get_the_new_cookie(
    url, store, reused
):
    """During the grace the old id reads, writes and is handed its successor."""
    browser = Browser(url)
    await browser.post()
    other = twin(browser)
    await browser.post("/sign-in")

    response = await other.ask("/", "PATCH")

    assert (200, 1) == (response.code, len(set_cookies(response)))
    assert {"new": False, "n": 0, "user_id": "anna", "late": True} == await content(
        browser
    )
    assert await content(browser) == await content(other)
    assert ([], 1) == (reused, await count(store))


async def test_regenerating_with_an_old_id_does_not_log_the_others_out(url, store):
    """Of requests that came with the old id only the first makes a new one."""
    browser = Browser(url)
    await browser.post()
    one, two, three = twin(browser), twin(browser), twin(browser)
    await browser.post("/sign-in")

    for other in (one, two, three):
        assert 200 == (await other.post("/sign-in")).code
    assert "anna" == (await content(browser))["user_id"]
    assert 1 == await count(store)


async def test_of_two_that_race_exactly_one_wins(url, store):
    """Both loaded the old id; the loser's data is merged into the winner's session."""
    steps.update({"loaded": asyncio.Event(), "go on": asyncio.Event()})
    browser = Browser(url)
    await browser.post()
    others = [twin(browser) for _ in range(5)]
    asked = [asyncio.create_task(other.post("/sign-in")) for other in others]
    async with asyncio.timeout(30):
        await steps["loaded"].wait()
        await asyncio.sleep(0.1)
        steps["go on"].set()
        answers = await asyncio.gather(*asked)

    assert {200} == {answer.code for answer in answers}
    assert 1 == await count(store)
    for other in others:
        assert "anna" == (await content(other))["user_id"]


async def test_the_old_id_can_sign_out_in_the_grace(url, store):
    """It is the same session, so it can end it."""
    browser = Browser(url)
    await browser.post()
    other = twin(browser)
    await browser.post("/sign-in")

    assert 200 == (await other.ask("/", "DELETE")).code
    assert 0 == await count(store)
    assert {"new": True} == await content(browser)


@short
async def test_a_slow_reader_does_not_put_the_old_cookie_back(url, store, reused):
    """
    Answered after the regeneration, it sends no cookie: not the old one, which would
    log the visitor out, nor the new one, a gift to whoever had fixed the old one.
    """
    steps.update({"reading": asyncio.Event()})
    browser = Browser(url)
    await browser.post()
    slow = asyncio.create_task(browser.get("/slow"))
    steps["go on"] = asyncio.Event()
    async with asyncio.timeout(30):
        await steps["reading"].wait()
        await browser.post("/sign-in")
        new = browser.jar.get()
        steps["go on"].set()
        response = await slow

    assert [] == set_cookies(response)
    assert new == browser.jar.get()
    assert {"new": False, "n": 0, "user_id": "anna"} == await content(browser)
    assert [] == reused


@short
async def test_after_the_grace_the_old_id_is_a_stranger(url, store, reused, caplog):
    """Anonymous, a warning in the log, and the hook hears which session it was of."""
    browser = Browser(url)
    await browser.post()
    thief = twin(browser)
    await browser.post("/sign-in")

    response = await thief.get()

    assert {"new": True} == json.loads(response.body)
    assert [] == set_cookies(response)  # the browser may hold the new one already
    [retired] = reused
    assert "anna" == retired.user_id
    [record] = [r for r in caplog.records if "after the grace" in r.getMessage()]
    assert logging.WARNING == record.levelno
    assert {"new": False, "n": 0, "user_id": "anna"} == await content(browser)


@short
async def test_a_stranger_cannot_write_with_an_old_id(url, store):
    """What the thief writes is a session of the thief's own."""
    browser = Browser(url)
    await browser.post()
    thief = twin(browser)
    await browser.post("/sign-in")

    await thief.ask("/", "PATCH")

    assert {"new": False, "n": 0, "user_id": "anna"} == await content(browser)
    assert {"new": False, "late": True} == await content(thief)


async def test_the_hook_can_end_the_session(io_loop, store):
    """`await store.revoke(retired.handle)`: neither the thief nor the owner is in."""

    async def revoke(retired):
        assert await store.revoke(retired.handle)

    app = make_app(
        [("/", Handler), ("/sign-in", SignIn)],
        store,
        on_reuse=revoke,
        regenerate_grace=0,
    )
    with serve(app) as url:
        browser = Browser(url)
        await browser.post()
        thief = twin(browser)
        await browser.post("/sign-in")

        assert {"new": True} == await content(thief)
        assert {"new": True} == await content(browser)
    assert 0 == await count(store)


async def test_a_new_session_has_nothing_to_regenerate(url, store):
    """Signing in without a session before makes one, with one id."""
    browser = Browser(url)

    await browser.post("/sign-in")

    assert {"new": False, "user_id": "anna"} == await content(browser)
    assert 1 == await count(store)
