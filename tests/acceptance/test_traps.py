"""Traps of Tornado, and of the order of things, each with the test that it needs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator

import pytest
import tornado.web
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler

from tests.factories import (
    PRODUCTION,
    Browser,
    TroubledStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin


class SignIn(SessionMixin, RequestHandler):
    def get(self):
        self.session["user_id"] = "ada"
        self.session.regenerate()
        self.write({"user": self.current_user})


class Who(SessionMixin, RequestHandler):
    def get(self):
        self.write({"user": self.current_user, "token": self.xsrf_token.decode()})

    post = get


ROUTES = [
    ("/sign-in", SignIn),
    ("/who", Who),
]


@pytest.fixture
def store() -> TroubledStore:
    return TroubledStore()


@pytest.fixture
def browser(io_loop: IOLoop, store: TroubledStore) -> Iterator[Browser]:
    with serve(make_app(ROUTES, store)) as url:
        yield Browser(url)


async def test_the_xsrf_cookies_settings_are_left_alone(store):
    """T27: a dict that names `expires_days` is the same for every visitor after."""
    kwargs = {"samesite": "Lax", "expires_days": 6}
    tornado_settings = {"xsrf_cookies": True, "xsrf_cookie_kwargs": kwargs}
    app = make_app(ROUTES, store, tornado=tornado_settings)
    with serve(app) as url:
        browser = Browser(url)
        await browser.get("/sign-in")
        token = json.loads((await browser.get("/who")).body)["token"]
        forged = await browser.post("/who")
        meant = await browser.post("/who", headers={"X-XSRFToken": token})

    assert {"samesite": "Lax", "expires_days": 6} == kwargs
    assert (403, 200) == (forged.code, meant.code)
    assert "ada" == json.loads(meant.body)["user"]


@pytest.mark.parametrize("failing", ["load", "save regenerate"])
async def test_a_503_says_when_to_come_back(store, browser, failing):
    """T30: Tornado's `clear()` takes the headers away, and Retry-After is there."""
    await browser.get("/sign-in")
    store.failing = failing
    response = await browser.get("/sign-in")

    assert 503 == response.code
    assert response.headers["Retry-After"].isdigit()
    assert [] == set_cookies(response, None)


async def test_a_proxys_headers_are_believed_on_purpose_only(store):
    """AP-6, CK-17: without `xheaders` they change nothing; here, no session starts."""
    claims = {"X-Scheme": "https", "X-Forwarded-Proto": "https"}
    app = make_app(ROUTES, store, environ=PRODUCTION)
    with serve(app) as url:
        spoofed = await Browser(url).get("/sign-in", headers=claims)
    with serve(app, xheaders=True) as url:
        proxied = await Browser(url).get("/sign-in", headers=claims)

    assert [] == set_cookies(spoofed, None)
    assert "; Secure" in set_cookies(proxied)[0]
    assert 1 == len(store)


def test_the_handlers_methods_stay_tornados():
    """T10: they are called, and not awaited; so none of them has become a coroutine."""
    for name in ("finish", "flush", "redirect", "render", "send_error", "on_finish"):
        assert not inspect.iscoroutinefunction(getattr(SessionMixin, name))
        assert hasattr(tornado.web.RequestHandler, name)
