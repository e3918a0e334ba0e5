"""`user_id`, and what is done by it: ending sessions, and bounding their number."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    Browser,
    Clock,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import MemorySessionStore, SessionDataError, SessionMixin


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write(dict(self.session))

    def post(self):
        self.session["n"] = self.session.get("n", 0) + 1


class SignIn(SessionMixin, RequestHandler):
    async def post(self):
        if self.get_query_argument("locked", ""):
            async with self.session.lock():
                self.session["user_id"] = "anna"
        else:
            self.session["user_id"] = "anna"
            self.session.regenerate()


class As(SessionMixin, RequestHandler):
    def post(self):
        self.session["user_id"] = json.loads(self.request.body)


class EndOthers(SessionMixin, RequestHandler):
    async def post(self):
        handle = self.session.handle
        self.settings["entered"].set()
        await self.settings["go_on"].wait()
        store = self.settings["store"]
        ended = await store.revoke_user("anna", except_handle=handle)
        self.write({"ended": ended})


class Regenerate(SessionMixin, RequestHandler):
    def post(self):
        self.session.regenerate()


ROUTES = [
    ("/", Page),
    ("/sign-in", SignIn),
    ("/as", As),
    ("/end-others", EndOthers),
    ("/regenerate", Regenerate),
]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemorySessionStore(clock=clock)


@pytest.fixture
def options():
    return {}


@pytest.fixture
def app(io_loop, store, options):
    tornado = {"entered": asyncio.Event(), "go_on": asyncio.Event(), "store": store}
    return make_app(ROUTES, store, tornado=tornado, **options)


@pytest.fixture
def browse(app, clock):
    with serve(app) as url:
        yield lambda: Browser(url, clock=clock)


async def content(browser):
    return json.loads((await browser.get()).body)


async def sign_in_as(browser, user):
    return await browser.post("/as", body=json.dumps(user))


# -- ending ----------------------------------------------------------------------------


async def test_ending_the_others_spares_a_session_that_has_got_a_new_id(app, browse):
    """A handle that was noted before a regeneration names the same session after it."""
    mine, other = browse(), browse()
    await mine.post("/sign-in")
    await other.post("/sign-in")
    slow = asyncio.create_task(mine.post("/end-others"))
    async with asyncio.timeout(30):
        await app.settings["entered"].wait()
        await mine.post("/regenerate")
        app.settings["go_on"].set()
        response = await slow

    assert b'{"ended": 1}' == response.body
    assert {"user_id": "anna"} == await content(mine)
    assert {} == await content(other)


# -- their number ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"max_sessions_per_user": 2}])
@pytest.mark.parametrize("query", ["", "?locked=1"])
@pytest.mark.parametrize("came", ["new", "known"])
async def test_a_sign_in_never_ends_itself(store, browse, clock, query, came):
    """
    However busy the older sessions are, the one that signs in is not among those that
    have to go; and no more are left than there may be, in a block of `lock()` as well.
    """
    older = [browse(), browse()]
    for browser in older:
        await browser.post("/sign-in")
    for _ in range(20):
        browser = browse()
        if came == "known":
            await browser.post()
            clock.now += 1
        busy = [asyncio.create_task(one.post()) for one in older for _ in range(3)]
        signed_in = await browser.post(f"/sign-in{query}")
        await asyncio.gather(*busy)
        clock.now += 1
        await asyncio.gather(*(one.post() for one in older))

        assert 200 == signed_in.code
        assert "anna" == (await content(browser)).get("user_id")
        users = await store.sessions_of("anna")
        assert 2 == len(users)
        older = [older[-1], browser]
        clock.now += 1
        await browser.post()


# -- what it may be --------------------------------------------------------------------

REFUSED = [True, False, 1.5, 1e22, 2**63, -(2**63) - 1, [], ["a"], {}, {"id": 7}, ""]
REFUSED.append("x" * 256)


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: str(value)[:12])
async def test_what_is_no_name_of_a_user_is_refused(browse, store, caplog, value):
    """
    It would be kept under one name and looked for under another, or not be storable at
    all. The log says what is allowed; the session stays as it was.
    """
    browser = browse()
    await sign_in_as(browser, "anna")

    response = await sign_in_as(browser, value)

    assert (500, []) == (response.code, set_cookies(response))
    assert "the session cannot keep user_id" in caplog.text
    assert {"user_id": "anna"} == await content(browser)
    with pytest.raises(SessionDataError):
        await store.revoke_user(value)


@pytest.mark.parametrize(
    "value", ["a", "x" * 255, "ü" * 255, "0", 0, 7, -1, 2**63 - 1, -(2**63)]
)
async def test_what_names_a_user_is_found_by_it(browse, store, value):
    """As it was set, a number as well as its text."""
    browser = browse()
    assert 200 == (await sign_in_as(browser, value)).code
    assert {"user_id": value} == await content(browser)

    for name in (value, str(value)):
        [found] = await store.sessions_of(name)
        assert str(value) == found.user_id
    assert 1 == await store.revoke_user(value)
    assert {} == await content(browser)


async def test_nobody_is_no_user(browse, store):
    """None signs nobody in, and ending the sessions of None ends nobody's."""
    browser = browse()
    await browser.post()
    await sign_in_as(browser, None)
    named = browse()
    await sign_in_as(named, "None")

    assert 1 == (await store.stats())["users"]
    for ask in (store.revoke_user, store.sessions_of):
        with pytest.raises(SessionDataError, match="None is nobody"):
            await ask(None)
    assert {"user_id": "None"} == await content(named)
    assert {"n": 1, "user_id": None} == await content(browser)
