"""A request whose session another one ended: 409 if it had changes, else no matter."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest
from tornado.web import RequestHandler

from tests.factories import Browser, make_app, serve, set_cookies
from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
    SessionGone,
    SessionMixin,
)

steps: dict[str, asyncio.Event] = {}


class Slow(SessionMixin, RequestHandler):
    """Loads its session, waits, and then does what it is told."""

    async def post(self, what):
        steps["loaded"].set()
        await steps["go on"].wait()
        if what == "change":
            self.session["n"] = 1
        elif what == "replace":
            self.session = {"all": "new"}
        elif what == "regenerate":
            self.session.regenerate()
        elif what == "lifetime":
            self.session.max_age = 60
        elif what == "save":
            self.session["n"] = 1
            await self.session.save()
        elif what == "reload":
            await self.session.reload()
        elif what == "lock":
            async with self.session.lock():
                self.session["n"] = 1
        elif what == "destroy":
            self.session = None
        elif what == "caught":
            self.session["n"] = 1
            try:
                await self.session.save()
            except SessionGone:
                self.write({"gone": True, "new": self.session.is_new})
                return
        self.write({"content": dict(self.session)})


class Own(SessionMixin, RequestHandler):
    def post(self):
        self.session = {"n": 0}

    def get(self):
        self.write({"new": self.session.is_new, "content": dict(self.session)})

    def delete(self):
        self.session = None


class OwnPage(Slow):
    """Handles `SessionGone` with a page of its own."""

    def write_error(self, status_code, **kwargs):
        error = kwargs["exc_info"][1]
        assert isinstance(error, SessionGone)
        self.set_status(401)
        self.finish("please sign in again")


@pytest.fixture(params=["memory", "postgres"])
def store(request, io_loop, database):
    if request.param == "memory":
        yield MemorySessionStore()
        return
    store = io_loop.run_sync(lambda: PostgresSessionStore.connect(database))
    yield store
    io_loop.run_sync(store.close)


@pytest.fixture
def url(store, io_loop):
    steps.update({"loaded": asyncio.Event(), "go on": asyncio.Event()})
    routes = [("/", Own), ("/own/(.*)", OwnPage), ("/slow/(.*)", Slow)]
    with serve(make_app(routes, store, renew=0)) as url:
        yield url


async def overtaken(url, what, prefix="/slow/"):
    """The answer of a slow request, during which the session was ended."""
    browser = Browser(url)
    await browser.post()
    other = Browser(url)
    other.jar.kept = dict(browser.jar.kept)
    slow = asyncio.create_task(browser.post(prefix + what))
    async with asyncio.timeout(30):
        await steps["loaded"].wait()
        assert 200 == (await other.ask("/", "DELETE")).code
        steps["go on"].set()
        return browser, await slow


async def live(store):
    return (await store.stats())["live"]


@pytest.mark.parametrize(
    "what", ["change", "replace", "regenerate", "lifetime", "save", "reload", "lock"]
)
async def test_changes_of_a_session_that_ended_are_a_409(url, store, what):
    """Nothing is written, and no cookie goes out; the next request finds it gone."""
    browser, response = await overtaken(url, what)

    assert 409 == response.code
    assert 0 == await live(store)
    assert [] == set_cookies(response)
    again = json.loads((await browser.get()).body)
    assert {"new": True, "content": {}} == again


@pytest.mark.parametrize("what", ["read", "destroy"])
async def test_what_only_read_or_renewed_ends_normally(url, store, what):
    """
    It answers with what it read. It touches no cookie, as it once did: the browser may
    have got another one meanwhile. The next request clears the dead one.
    """
    browser, response = await overtaken(url, what)

    assert 200 == response.code
    assert [] == set_cookies(response)
    assert 0 == await live(store)
    await browser.get()
    assert [] == browser.jar.names()


async def test_a_handler_can_catch_it(url, store):
    """After `SessionGone` the session is empty and new; it is not what it was."""
    _, response = await overtaken(url, "caught")

    assert 200 == response.code
    assert {"gone": True, "new": True} == json.loads(response.body)
    assert ([], 0) == (set_cookies(response), await live(store))


async def test_the_error_page_can_be_the_applications_own(url, store):
    """`write_error` gets the exception, as with any other."""
    _, response = await overtaken(url, "change", prefix="/own/")

    assert (401, b"please sign in again") == (response.code, response.body)
    assert 0 == await live(store)


async def test_an_expired_session_is_as_gone_as_a_destroyed_one(io_loop, database):
    """Its changes are a 409, and the row stays expired."""
    store = await PostgresSessionStore.connect(database)
    steps.update({"loaded": asyncio.Event(), "go on": asyncio.Event()})
    with serve(make_app([("/", Own), ("/slow/(.*)", Slow)], store)) as url:
        browser = Browser(url)
        await browser.post()
        slow = asyncio.create_task(browser.post("/slow/change"))
        async with asyncio.timeout(30):
            await steps["loaded"].wait()
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(
                    "UPDATE compas_session SET expires_at = now() - interval '1 s'"
                )
            steps["go on"].set()
            response = await slow
    assert 409 == response.code
    assert {"live": 0, "expired": 1}.items() <= (await store.stats()).items()
    await store.close()
