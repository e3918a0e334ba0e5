"""Errors: a 4xx saves, a 5xx discards, in whichever way the status comes about."""

from __future__ import annotations

import json

import pytest
from tornado.web import HTTPError, RequestHandler

from tests.factories import NAME, Browser, TroubledStore, make_app, serve, set_cookies
from tornado_compas_session import SessionMixin


class Handler(SessionMixin, RequestHandler):
    async def post(self, what, how, status):
        {
            "change": lambda: self.session.update(n=1),
            "destroy": self.session.destroy,
            "regenerate": self.session.regenerate,
            "nested": lambda: self.session["list"].append(1),
        }[what]()
        code = int(status)
        if how == "raise":
            raise HTTPError(code)
        if how == "send_error":
            self.send_error(code)
        else:
            self.set_status(code)
            self.write("a page of the handler's own")

    async def get(self):
        self.write({"new": self.session.is_new, **self.session})


class Start(SessionMixin, RequestHandler):
    def post(self):
        self.session = {"n": 0, "list": []}


class Bug(SessionMixin, RequestHandler):
    def post(self):
        self.session["n"] = 1
        raise ZeroDivisionError


class OwnPage(SessionMixin, RequestHandler):
    """Its error page uses the session, and has a changed status."""

    def post(self):
        self.session["n"] = 1
        raise HTTPError(500)

    def write_error(self, status_code, **kwargs):
        self.session["seen"] = True
        self.set_status(400)
        self.finish("sorry")


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
def url(store, io_loop):
    routes = [
        ("/start", Start),
        ("/bug", Bug),
        ("/own-page", OwnPage),
        ("/read", Handler),
        ("/([a-z]+)/([a-z_]+)/([0-9]+)", Handler),
    ]
    with serve(make_app(routes, store)) as url:
        yield url


async def content(browser):
    return json.loads((await browser.get("/read")).body)


WAYS = ["raise", "send_error", "set_status"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
async def test_a_4xx_saves(url, how, status):
    """The changes, nested ones too, are committed; a write of data sends no cookie."""
    browser = Browser(url)
    await browser.post("/start")

    response = await browser.post(f"/change/{how}/{status}")
    await browser.post(f"/nested/{how}/{status}")

    assert status == response.code
    assert [] == set_cookies(response)
    assert {"new": False, "n": 1, "list": [1]} == await content(browser)


@pytest.mark.parametrize("how", WAYS)
async def test_a_4xx_destroys_and_regenerates(url, store, how):
    """Ending a session and changing its id work on error pages as well."""
    browser = Browser(url)
    await browser.post("/start")
    before = browser.jar.get()

    await browser.post(f"/regenerate/{how}/403")
    after = browser.jar.get()
    await browser.post(f"/destroy/{how}/403")

    assert before != after
    assert [] == browser.jar.names()
    assert 0 == len(store)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("what", ["change", "nested", "destroy", "regenerate"])
@pytest.mark.parametrize("status", [500, 503])
async def test_a_5xx_discards(url, store, how, what, status):
    """Changes, a new id and a destruction are as if they had never been asked for."""
    browser = Browser(url)
    await browser.post("/start")
    cookie = browser.jar.get()
    store.calls.clear()

    response = await browser.post(f"/{what}/{how}/{status}")

    assert status == response.code
    assert [] == set_cookies(response)
    assert ["load"] == store.calls
    assert cookie == browser.jar.get()
    assert {"new": False, "n": 0, "list": []} == await content(browser)


@pytest.mark.parametrize(
    "path", ["/bug", "/change/raise/500", "/change/set_status/502"]
)
async def test_a_5xx_starts_no_session(url, store, path):
    """No row and no cookie for a visitor whose first request failed."""
    browser = Browser(url)

    response = await browser.post(path)

    assert response.code >= 500
    assert ([], 0) == (browser.jar.names(), len(store))


async def test_what_failed_stays_failed(url, store):
    """An error page of one's own that lowers the status does not save after a 500."""
    browser = Browser(url)
    await browser.post("/start")

    response = await browser.post("/own-page")

    assert (400, b"sorry") == (response.code, response.body)
    assert {"new": False, "n": 0, "list": []} == await content(browser)


async def test_signing_out_while_the_store_is_away_is_a_503(url, store):
    """Nobody is told that they are signed out while they are not."""
    browser = Browser(url)
    await browser.post("/start")
    cookie = browser.jar.get()
    store.failing = "delete"

    response = await browser.post("/destroy/set_status/200")

    assert (503, "2") == (response.code, response.headers["Retry-After"])
    assert NAME not in str(set_cookies(response, None))
    assert cookie == browser.jar.get()
    store.failing = ""
    assert 200 == (await browser.post("/destroy/set_status/200")).code
    assert (0, []) == (len(store), browser.jar.names())
