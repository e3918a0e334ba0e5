"""
An attacker who has planted an id, or learned it, before its owner signed in: nothing of
what follows reaches whoever comes with it, in the grace as little as after it.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.web import RequestHandler

from tests.factories import Browser, Clock, TroubledStore, make_app, serve, set_cookies
from tornado_compas_session import SessionMixin

SECRET = {"card": "4111 1111"}


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write(dict(self.session))

    def post(self):
        self.session["cart"] = ["a book"]

    def put(self):
        self.session["note"] = "mine"


class SignIn(SessionMixin, RequestHandler):
    """As applications write it, with and without `regenerate()`."""

    async def post(self, how):
        if how == "user_id":
            self.session["user_id"] = "victim"
        elif how == "regenerate":
            self.session["user_id"] = "victim"
            self.session.regenerate()
        elif how == "replace":
            self.session = {"user_id": "victim"}
        elif how == "lock":
            async with self.session.lock():
                self.session["user_id"] = "victim"
        elif how == "save":
            self.session["user_id"] = "victim"
            await self.session.save()
        self.session.update(SECRET)


class Slow(SessionMixin, RequestHandler):
    """Let in with what it came with; goes on when it is told to."""

    async def post(self, what):
        self.settings["entered"].set()
        await self.settings["go_on"].wait()
        if what == "read":
            self.session.get("cart")
        elif what == "write":
            self.session["user"] = "attacker"
        elif what == "replace":
            self.session = {"user": "attacker"}
        elif what == "increment":
            await self.session.increment("n")
        elif what == "lock":
            async with self.session.lock():
                self.session["user"] = "attacker"
        elif what == "reload":
            await self.session.reload()
        elif what == "regenerate":
            self.session.regenerate()
        elif what == "destroy":
            self.session = None
        elif what == "sign-in":
            self.session["user_id"] = "victim"
        self.write(dict(self.session))


class Account(SessionMixin, RequestHandler):
    def post(self, what):
        if what == "clear":
            self.session.clear()
        elif what == "leave":
            del self.session["user_id"]
        elif what == "another":
            self.session["user_id"] = "another"


ROUTES = [
    ("/", Page),
    ("/sign-in/(.*)", SignIn),
    ("/slow/(.*)", Slow),
    ("/account/(.*)", Account),
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
    tornado = {"entered": asyncio.Event(), "go_on": asyncio.Event()}
    return make_app(ROUTES, store, tornado=tornado, on_reuse=reused.append)


@pytest.fixture
def url(app):
    with serve(app) as url:
        yield url


async def planted(url, clock):
    """An attacker and a victim, whose browser has the attacker's cookie."""
    attacker = Browser(url, clock=clock)
    await attacker.post()
    victim = Browser(url, clock=clock)
    victim.jar.put(str(attacker.jar.get()))
    return attacker, victim


async def content(browser):
    return json.loads((await browser.get()).body)


@pytest.mark.parametrize("how", ["user_id", "regenerate", "replace", "lock", "save"])
async def test_polling_with_a_planted_id_yields_nothing(url, clock, how):
    """
    From the sign-in on, and through the grace, each poll is an anonymous visitor's: it
    sees nothing and gets no cookie, neither a new one nor one that clears.
    """
    attacker, victim = await planted(url, clock)
    cookie = attacker.jar.get()
    assert 200 == (await victim.post(f"/sign-in/{how}")).code

    for _ in range(20):
        response = await attacker.get()
        assert (200, b"{}") == (response.code, response.body)
        assert [] == set_cookies(response, None)
        clock.now += 0.5
    assert cookie == attacker.jar.get()
    assert cookie != victim.jar.get()
    signed_in = await content(victim)
    assert "victim" == signed_in["user_id"]
    assert SECRET.items() <= signed_in.items()


async def test_writing_with_a_planted_id_is_refused(url, store, clock):
    """
    A 409, and no session: its cookie would throw the good one out of the browser, were
    it the victim's own request.
    """
    attacker, victim = await planted(url, clock)
    await victim.post("/sign-in/user_id")
    before = await content(victim)

    response = await attacker.ask("/", "PUT")

    assert (409, []) == (response.code, set_cookies(response, None))
    assert before == await content(victim)
    assert 1 == len(store)


async def test_after_the_grace_it_is_a_stranger_as_any_other(url, store, clock, reused):
    """What it writes then is a session of its own, and the victim's is left alone."""
    attacker, victim = await planted(url, clock)
    await victim.post("/sign-in/regenerate")
    before = await content(victim)
    clock.now += 6

    response = await attacker.ask("/", "PUT")

    assert (200, 1) == (response.code, len(set_cookies(response)))
    assert {"note": "mine"} == await content(attacker)
    assert before == await content(victim)
    assert "victim" == reused[0].user_id


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("read", 200),
        ("write", 409),
        ("replace", 409),
        ("increment", 409),
        ("lock", 409),
        ("reload", 409),
        ("regenerate", 409),
        ("destroy", 200),
    ],
)
async def test_what_was_let_in_before_the_sign_in_writes_nothing_after_it(
    app, url, store, clock, what, status
):
    """However long it takes: it reads what it read, and changes, ends, gets nothing."""
    attacker, victim = await planted(url, clock)
    slow = asyncio.create_task(attacker.post(f"/slow/{what}"))
    async with asyncio.timeout(30):
        await app.settings["entered"].wait()
        await victim.post("/sign-in/regenerate")
        before = await content(victim)
        app.settings["go_on"].set()
        response = await slow

    assert status == response.code
    assert [] == set_cookies(response, None)
    assert b"4111" not in response.body
    assert before == await content(victim)
    assert 1 == len(store)


async def test_an_attacker_who_is_first_gets_no_session_of_the_victims(
    app, url, store, clock
):
    """
    The id is regenerated by the attacker while the victim's sign-in is under way: that
    is refused, and not merged into a session of which the attacker has the id.
    """
    attacker, victim = await planted(url, clock)
    slow = asyncio.create_task(victim.post("/slow/sign-in"))
    store.gate.clear()
    app.settings["go_on"].set()
    async with asyncio.timeout(30):
        await store.writing.wait()  # the sign-in is at the store's door
        await overtake(attacker, store)
        store.gate.set()
        response = await slow

    assert 409 == response.code
    assert [] == set_cookies(response, None)
    assert "user_id" not in await content(attacker)


async def overtake(attacker, store):
    """Regenerates through another process, where the store has no gate."""
    same = TroubledStore(clock=store._clock)
    same._rows, same._locks = store._rows, store._locks
    tornado = {"entered": asyncio.Event(), "go_on": asyncio.Event()}
    tornado["go_on"].set()
    with serve(make_app(ROUTES, same, tornado=tornado)) as url:
        elsewhere = Browser(url)
        elsewhere.jar = attacker.jar
        assert 200 == (await elsewhere.post("/slow/regenerate")).code


@pytest.mark.parametrize("what", ["clear", "leave", "another"])
async def test_no_id_survives_a_change_of_who_the_visitor_is(url, clock, what):
    """Signing out within the session, and signing in as another user, as well."""
    browser = Browser(url, clock=clock)
    await browser.post("/sign-in/regenerate")
    copy = Browser(url, clock=clock)
    copy.jar.put(str(browser.jar.get()))

    assert 200 == (await browser.post(f"/account/{what}")).code

    assert copy.jar.get() != browser.jar.get()
    response = await copy.get()
    assert (b"{}", []) == (response.body, set_cookies(response, None))
    assert 409 == (await copy.ask("/", "PUT")).code


async def test_a_copied_id_cannot_be_used_beside_the_original(url, clock, reused):
    """
    A cookie is renewed with use, and a new secret with it: then the copy is worth
    nothing, and its use is told.
    """
    browser = Browser(url, clock=clock)
    await browser.post("/sign-in/regenerate")
    copy = Browser(url, clock=clock)
    copy.jar.put(str(browser.jar.get()))
    assert "victim" == (await content(copy))["user_id"]

    clock.now += 3601
    await browser.get()
    await browser.get()
    clock.now += 6

    assert {} == await content(copy)
    assert ["victim"] == [retired.user_id for retired in reused]
    assert "victim" == (await content(browser))["user_id"]
