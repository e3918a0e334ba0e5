"""Traps of Tornado, and of the order of things, each with the test that it needs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator

import pytest
import tornado.web
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler, StaticFileHandler

from tests.factories import (
    NAME,
    PRODUCTION,
    Browser,
    TroubledStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin, SessionNotLoaded


class SignIn(SessionMixin, RequestHandler):
    def get(self):
        self.session["user_id"] = "ada"
        self.session.regenerate()
        self.write({"user": self.current_user})


class Who(SessionMixin, RequestHandler):
    def get(self):
        self.write({"user": self.current_user, "token": self.xsrf_token.decode()})

    post = get


class Forgetful(SessionMixin, RequestHandler):
    async def prepare(self):
        pass

    def get(self):
        with pytest.raises(SessionNotLoaded) as caught:
            self.session["a"] = 1
        self.write({"said": str(caught.value)})


class SignOut(SessionMixin, RequestHandler):
    def get(self):
        self.session = None


ROUTES = [
    ("/sign-in", SignIn),
    ("/who", Who),
    ("/forgetful", Forgetful),
    ("/sign-out", SignOut),
]


@pytest.fixture
def store() -> TroubledStore:
    return TroubledStore()


@pytest.fixture
def browser(io_loop: IOLoop, store: TroubledStore) -> Iterator[Browser]:
    with serve(make_app(ROUTES, store)) as url:
        yield Browser(url)


async def test_files_take_no_sessions():
    """T21: what caches keep for ten years cannot carry a cookie; said at import."""
    with pytest.raises(TypeError, match="does not go with StaticFileHandler"):
        type("Files", (SessionMixin, StaticFileHandler), {})


async def test_a_prepare_that_forgets_ours_is_told_what_to_write(browser):
    """T26: the error has the line that is missing; nothing is an anonymous session."""
    said = json.loads((await browser.get("/forgetful")).body)["said"]

    assert "Forgetful" in said
    assert "await super().prepare()" in said


async def test_who_has_signed_in_is_the_current_user_at_once(browser):
    """T25: in the same request, though Tornado caches it."""
    response = await browser.get("/sign-in")

    assert {"user": "ada"} == json.loads(response.body)


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


async def test_a_renamed_cookie_is_read_and_sent_anew(store, browser):
    """T5: the session goes on under the new name, and ends under both."""
    await browser.get("/sign-in")
    app = make_app(ROUTES, store, key="new.sess", previous_keys=[NAME])
    with serve(app) as url:
        later = Browser(url)
        later.jar.put(browser.jar.get() or "")
        response = await later.get("/who")
        assert "ada" == json.loads(response.body)["user"]
        assert {NAME, "new.sess"} <= set(later.jar.names())

        await later.get("/sign-out")
        assert ["_xsrf"] == later.jar.names()
    assert 0 == len(store)


async def test_without_previous_keys_another_name_is_another_cookie(store, browser):
    """T5: the name is signed; a cookie that was renamed by hand does not verify."""
    await browser.get("/sign-in")
    with serve(make_app(ROUTES, store, key="new.sess")) as url:
        later = Browser(url)
        later.jar.put(browser.jar.get() or "", "new.sess")
        response = await later.get("/who")

    assert json.loads(response.body)["user"] is None


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


async def test_no_more_sessions_than_allowed(store):
    """LC-11: with a bound of two, the third sign-in ends the one unused longest."""
    with serve(make_app(ROUTES, store, max_sessions_per_user=2)) as url:
        browsers = [Browser(url) for _ in range(3)]
        for one in browsers:
            await one.get("/sign-in")
        users = [json.loads((await one.get("/who")).body)["user"] for one in browsers]

    assert [None, "ada", "ada"] == users


def test_the_handlers_methods_stay_tornados():
    """T10: they are called, and not awaited; so none of them has become a coroutine."""
    for name in ("finish", "flush", "redirect", "render", "send_error", "on_finish"):
        assert not inspect.iscoroutinefunction(getattr(SessionMixin, name))
        assert hasattr(tornado.web.RequestHandler, name)
