"""`keep_public_cookie`: a word for JavaScript, in step with the session cookie."""

from __future__ import annotations

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

PUBLIC = NAME + ".public"


class Page(SessionMixin, RequestHandler):
    def get(self, verb):
        if verb == "write":
            self.session["n"] = self.session.get("n", 0) + 1
        elif verb == "regenerate":
            self.session.regenerate()
        elif verb == "destroy":
            self.session = None
        elif verb == "crash":
            self.session["n"] = -1
            raise KeyError
        self.write({"n": self.session.get("n")})


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return TroubledStore(clock=clock)


@pytest.fixture
def browser(io_loop, store, clock):
    app = make_app([(r"/(\w*)", Page)], store, keep_public_cookie=True, max_age=1000)
    with serve(app) as url:
        yield Browser(url, clock=clock)


def in_step(browser):
    names = browser.jar.names()
    assert names in ([], [NAME, PUBLIC]), names
    if not names:
        return False
    ends = {cookie.expires for cookie in browser.jar.kept.values()}
    assert 1 == len(ends)
    return True


async def test_it_says_truthy_and_nothing_else(browser):
    """The same word for everybody, readable; the session cookie is not (CK-15)."""
    await browser.get("/write")

    assert {PUBLIC: "truthy"} == browser.jar.script()
    other = Browser(browser.url, clock=browser.jar.clock)
    await other.get("/write")
    assert {PUBLIC: "truthy"} == other.jar.script()


async def test_it_is_off_by_default(io_loop, store):
    """Who does not ask for it does not get it."""
    with serve(make_app([(r"/(\w*)", Page)], store)) as url:
        browser = Browser(url)
        await browser.get("/write")

    assert [NAME] == browser.jar.names()


async def test_in_step_in_every_case(browser, store, clock):
    """Set, used, renewed, regenerated, failed, destroyed, found expired (CK-15)."""
    assert not in_step(browser)
    await browser.get("/")
    assert not in_step(browser)
    store.failing = "create"
    await browser.get("/write")
    assert not in_step(browser)
    store.failing = ""
    for verb in ("crash", "write", "", "regenerate", "write", "crash"):
        await browser.get(f"/{verb}")
        assert (verb != "crash" or len(store) > 0) == in_step(browser)
    clock.now += 500
    await browser.get("/")
    assert in_step(browser)
    clock.now += 100  # a tenth of the lifetime: the cookies are renewed
    assert 1 == len(set_cookies(await browser.get("/"), PUBLIC))
    assert in_step(browser)
    store.failing = "save load"
    await browser.get("/write")
    assert in_step(browser)
    store.failing = "delete"
    assert 503 == (await browser.get("/destroy")).code
    assert in_step(browser)
    store.failing = ""
    await browser.get("/destroy")
    assert not in_step(browser)
    await browser.get("/write")
    await store.revoke_all()
    await browser.get("/")
    assert not in_step(browser)


async def test_the_server_never_reads_it(browser, store):
    """
    Alone it is nothing, and without it the session works (CK-15). It comes again with
    the next cookie of the session, and not with a read any more.
    """
    await browser.get("/write")
    own = str(browser.jar.get())
    store.calls.clear()
    alone = Browser(browser.url, clock=browser.jar.clock)
    alone.jar.put("truthy", PUBLIC)
    response = await alone.get("/")
    assert b'{"n": null}' == response.body
    assert ([], []) == (store.calls, set_cookies(response, None))
    without = Browser(browser.url, clock=browser.jar.clock)
    without.jar.put(own)

    assert b'{"n": 1}' == (await without.get("/")).body
    await without.get("/regenerate")
    assert in_step(without)
