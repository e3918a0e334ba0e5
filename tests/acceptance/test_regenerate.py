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

    def put(self):
        self.session["n"] = self.session["n"] + 1
        self.session.regenerate()

    def patch(self):
        self.session["late"] = True

    def delete(self):
        self.session = None


class Slow(SessionMixin, RequestHandler):
    async def get(self):
        self.write(dict(self.session))
        steps["reading"].set()
        await steps["go on"].wait()


class Waiting(SessionMixin, RequestHandler):
    """Gives itself a new id, and keeps its data."""

    async def post(self):
        self.session[self.get_query_argument("key")] = True
        self.session.regenerate()
        steps["loaded"].set()
        await steps["go on"].wait()


class SignIn(SessionMixin, RequestHandler):
    async def post(self):
        self.session["user_id"] = self.get_query_argument("as", "anna")
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
        [
            ("/", Handler),
            ("/sign-in", SignIn),
            ("/slow", Slow),
            ("/waiting", Waiting),
        ],
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


async def test_requests_in_flight_are_the_same_session_and_get_no_cookie(
    url, store, reused
):
    """
    During the grace the old id reads and writes. It is not handed its successor, as it
    once was: whoever planted it would be as well.
    """
    browser = Browser(url)
    await browser.post()
    other = twin(browser)
    await browser.ask("/", "PUT")

    response = await other.ask("/", "PATCH")

    assert (200, []) == (response.code, set_cookies(response))
    assert {"new": False, "n": 1, "late": True} == await content(browser)
    assert await content(browser) == await content(other)
    assert ([], 1) == (reused, await count(store))


async def test_the_id_from_before_a_sign_in_reaches_nothing(url, store, reused):
    """
    Who the visitor is has changed, so a request that comes with it is a stranger's: it
    sees nothing, what it writes is a 409, and no cookie is touched. Within the grace
    it was once the same session, and got the new id.
    """
    browser = Browser(url)
    await browser.post()
    other = twin(browser)
    await browser.post("/sign-in")

    reading = await other.get()
    writing = await other.ask("/", "PATCH")
    ending = await other.ask("/", "DELETE")

    assert {"new": True} == json.loads(reading.body)
    assert (200, 409, 200) == (reading.code, writing.code, ending.code)
    for response in (reading, writing, ending):
        assert [] == set_cookies(response)
    assert {"new": False, "n": 0, "user_id": "anna"} == await content(browser)
    assert ([], 1) == (reused, await count(store))


async def test_regenerating_with_an_old_id_does_not_log_the_others_out(url, store):
    """Of requests that came with the old id only the first makes a new one."""
    browser = Browser(url)
    await browser.post()
    one, two, three = twin(browser), twin(browser), twin(browser)
    await browser.ask("/", "PUT")

    for other in (one, two, three):
        response = await other.ask("/", "PUT")
        assert (200, []) == (response.code, set_cookies(response))
    assert {"new": False, "n": 4} == await content(browser)
    assert 1 == await count(store)


async def test_of_two_that_race_exactly_one_wins(url, store):
    """Both loaded the old id; the loser's data is merged into the winner's session."""
    steps.update({"loaded": asyncio.Event(), "go on": asyncio.Event()})
    browser = Browser(url)
    await browser.post()
    others = [twin(browser) for _ in range(5)]
    asked = [
        asyncio.create_task(other.post(f"/waiting?key=k{number}"))
        for number, other in enumerate(others)
    ]
    async with asyncio.timeout(30):
        await steps["loaded"].wait()
        await asyncio.sleep(0.1)
        steps["go on"].set()
        answers = await asyncio.gather(*asked)

    assert {200} == {answer.code for answer in answers}
    assert 1 == sum(len(set_cookies(answer)) for answer in answers)
    assert 1 == await count(store)
    expected = {"new": False, "n": 0, **{f"k{number}": True for number in range(5)}}
    for other in others:
        assert expected == await content(other)


async def test_a_double_click_on_sign_in_is_signed_in(url, store):
    """
    Each gets a session of its own: no request is handed what another one has made.
    Whichever answer comes last, the visitor is signed in with it. (It was once one
    session, whose id the later requests were given.)
    """
    steps.update({"loaded": asyncio.Event(), "go on": asyncio.Event()})
    browser = Browser(url)
    await browser.post()
    others = [twin(browser) for _ in range(3)]
    asked = [asyncio.create_task(other.post("/sign-in")) for other in others]
    async with asyncio.timeout(30):
        await steps["loaded"].wait()
        await asyncio.sleep(0.1)
        steps["go on"].set()
        answers = await asyncio.gather(*asked)
    late = twin(browser)
    answers.append(await late.post("/sign-in"))

    assert [(200, 1)] * 4 == [(a.code, len(set_cookies(a))) for a in answers]
    for other in (*others, late):
        assert "anna" == (await content(other))["user_id"]
    assert 4 == len({other.jar.get() for other in (*others, late)})


async def test_of_two_who_sign_in_at_once_one_is_told(url, store):
    """As two users in the same session: the later one is a 409, and never merged."""
    steps.update({"loaded": asyncio.Event(), "go on": asyncio.Event()})
    browser = Browser(url)
    await browser.post()
    others = [twin(browser) for _ in range(2)]
    names = ("anna", "bela")
    asked = [
        asyncio.create_task(other.post(f"/sign-in?as={name}"))
        for other, name in zip(others, names, strict=True)
    ]
    async with asyncio.timeout(30):
        await steps["loaded"].wait()
        await asyncio.sleep(0.1)
        steps["go on"].set()
        answers = await asyncio.gather(*asked)

    assert [200, 409] == sorted(answer.code for answer in answers)
    for other, name, answer in zip(others, names, answers, strict=True):
        assert (1 if answer.code == 200 else 0) == len(set_cookies(answer))
        if answer.code == 200:
            assert {"new": False, "n": 0, "user_id": name} == await content(other)
    assert 1 == await count(store)


async def test_the_old_id_can_sign_out_in_the_grace(url, store):
    """It is the same session, so it can end it."""
    browser = Browser(url)
    await browser.post()
    other = twin(browser)
    await browser.ask("/", "PUT")

    assert 200 == (await other.ask("/", "DELETE")).code
    assert 0 == await count(store)
    assert {"new": True} == await content(browser)


@short
async def test_a_slow_reader_does_not_put_the_old_cookie_back(url, store, reused):
    """
    A read sends no cookie: not the old one, which would log the visitor out, nor the
    new one, a gift to whoever had fixed the old one.
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
    """
    Anonymous, a warning in the log, and the hook hears which session it was of: once
    the new id was shown, because a reply that was lost is no theft.
    """
    browser = Browser(url)
    await browser.post()
    await browser.post("/sign-in")
    thief = twin(browser)
    await browser.ask("/", "PUT")
    await browser.get()

    for _ in range(2):  # told once a minute
        await thief.get()
    response = await thief.get()

    assert {"new": True} == json.loads(response.body)
    assert [] == set_cookies(response)  # the browser may hold the new one already
    [retired] = reused
    assert "anna" == retired.user_id
    [record] = [r for r in caplog.records if "after the grace" in r.getMessage()]
    assert logging.WARNING == record.levelno
    assert {"new": False, "n": 1, "user_id": "anna"} == await content(browser)


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

    app = make_app([("/", Handler)], store, on_reuse=revoke, regenerate_grace=0)
    with serve(app) as url:
        browser = Browser(url)
        await browser.post()
        thief = twin(browser)
        await browser.ask("/", "PUT")
        await browser.get()

        assert {"new": True} == await content(thief)
        assert {"new": True} == await content(browser)
    assert 0 == await count(store)


async def test_a_new_session_has_nothing_to_regenerate(url, store):
    """Signing in without a session before makes one, with one id."""
    browser = Browser(url)

    await browser.post("/sign-in")

    assert {"new": False, "user_id": "anna"} == await content(browser)
    assert 1 == await count(store)
