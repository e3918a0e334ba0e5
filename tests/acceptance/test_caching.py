"""What caches are told, and what a shared cache makes of it."""

from __future__ import annotations

import random
from base64 import b64decode
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    KEY,
    NEWER_KEY,
    Browser,
    CountingStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin
from tornado_compas_session.web import caching


class Handler(SessionMixin, RequestHandler):
    forms: ClassVar[dict[str, Any]] = {
        "get": lambda self: self.session.get("a"),
        "in": lambda self: "a" in self.session,
        "len": lambda self: len(self.session),
        "iteration": lambda self: list(self.session),
        "bool": lambda self: bool(self.session),
        "is_new": lambda self: self.session.is_new,
        "handle": lambda self: self.session.handle,
        "current_user": lambda self: self.current_user,
        "equality": lambda self: self.session == {},
        "write": lambda self: self.session.update(a=1),
        "destroy": lambda self: self.session.destroy(),
        "assign": lambda self: setattr(self, "session", {"a": 2}),
        "regenerate": lambda self: self.session.regenerate(),
        "nothing": lambda self: None,
    }

    def get(self, form):
        self.forms[form](self)
        vary = self.get_query_argument("vary", None)
        if vary:
            self.set_header("Vary", vary)
        policy = self.get_query_argument("policy", None)
        if policy:
            self.set_header("Cache-Control", policy)
        status = int(self.get_query_argument("status", "200"))
        if status >= 400:
            self.send_error(status)
        else:
            self.write("body")


class Plain(RequestHandler):
    def get(self):
        self.write("plain")


ROUTES = [("/plain", Plain), ("/([a-z_]+)", Handler)]


def vary_of(response):
    return [name.strip() for name in response.headers.get("Vary", "").split(",")]


@pytest.fixture
def url(io_loop):
    with serve(make_app(ROUTES, CountingStore())) as url:
        yield url


@pytest.mark.parametrize("form", [f for f in Handler.forms if f != "nothing"])
@pytest.mark.parametrize("live", [True, False], ids=["live", "anonymous"])
async def test_vary_for_each_way_to_use_a_session(url, form, live):
    """Whoever looks at the session, in whatever way, says so (CA-1)."""
    browser = Browser(url)
    if live:
        await browser.get("/write")

    assert "Cookie" in vary_of(await browser.get(f"/{form}"))


async def test_vary_where_a_cookie_goes_out(io_loop):
    """A session that is only renewed, or found gone, as well (CVE-2026-35192)."""
    with serve(make_app(ROUTES, CountingStore(), renew=0)) as url:
        browser = Browser(url)
        await browser.get("/write")
        renewed = await browser.get("/nothing")
        assert 1 == len(set_cookies(renewed))
        assert "Cookie" in vary_of(renewed)
        stale = browser.jar.get()
        await browser.get("/destroy")
        browser.jar.put(str(stale))
        gone = await browser.get("/nothing")

    assert "Max-Age=0" in set_cookies(gone)[0]
    assert "Cookie" in vary_of(gone)


async def test_vary_where_a_key_is_upgraded(io_loop):
    """The response that carries the new signature says so (CA-1)."""
    store = CountingStore()
    with serve(make_app(ROUTES, store, overwrite=False)) as url:
        browser = Browser(url)
        await browser.get("/write")
    environ = {"APP_NAME": "counter", "APP_ENV": "development"}
    environ["APP_KEYS"] = f"{NEWER_KEY},{KEY}"
    with serve(make_app(ROUTES, store, environ=environ, overwrite=False)) as url:
        browser.url = url
        response = await browser.get("/nothing")

    assert 1 == len(set_cookies(response))
    assert "Cookie" in vary_of(response)


async def test_nothing_used_nothing_said(url):
    """A response that has nothing to do with sessions stays cacheable."""
    for path in ("/nothing", "/plain"):
        response = await Browser(url).get(path)
        assert [""] == vary_of(response)
        assert "Cache-Control" not in response.headers


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("Accept", ["Accept", "Cookie"]),
        ("Accept, Origin", ["Accept", "Origin", "Cookie"]),
        ("cookie", ["cookie"]),
        ("Origin,COOKIE", ["Origin", "COOKIE"]),
        ("*", ["*"]),
        # Not the header, though its name has the word in it.
        ("X-Cookie-Consent", ["X-Cookie-Consent", "Cookie"]),
        ("Set-Cookie2", ["Set-Cookie2", "Cookie"]),
    ],
)
async def test_other_vary_headers_stay(url, given, sent):
    """Cookie is added to what is there, once (CA-1, T36)."""
    assert sent == vary_of(await Browser(url).get(f"/get?vary={quote(given)}"))


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
async def test_error_pages_say_it_too(url, status):
    """An error that depends on the session is not everybody's error."""
    assert "Cookie" in vary_of(await Browser(url).get(f"/get?status={status}"))


async def test_a_304_says_it_too(url):
    """The 304 has the headers that its 200 had (T19)."""
    browser = Browser(url)
    first = await browser.get("/write")
    again = await browser.get("/get", headers={"If-None-Match": first.headers["Etag"]})

    assert 304 == again.code
    assert "Cookie" in vary_of(again)
    assert "private, no-cache" == again.headers["Cache-Control"]


async def test_a_policy_where_the_cookie_goes_out(io_loop):
    """No shared cache keeps it, and the browser asks again (CA-2)."""
    with serve(make_app(ROUTES, CountingStore(), renew=0)) as url:
        browser = Browser(url)
        for path in ("/write", "/get", "/nothing", "/destroy"):
            response = await browser.get(path)
            assert 1 == len(set_cookies(response))
            assert "private, no-cache" == response.headers["Cache-Control"]


async def test_a_policy_where_the_session_was_used(url):
    """What depends on the visitor is private, with or without a cookie in it."""
    browser = Browser(url)
    for path in ("/get", "/write", "/get"):
        response = await browser.get(path)
        assert "private, no-cache" == response.headers["Cache-Control"]


@pytest.mark.parametrize("policy", ["public, max-age=60", "s-maxage=60"])
async def test_what_caches_may_keep_has_no_cookie_in_it(
    io_loop, policy, caplog, monkeypatch
):
    """
    A handler that says `public` gets no renewed cookie in its answer; a new one makes
    the answer private, and the log says so once.
    """
    monkeypatch.setattr(caching, "_warned", set())
    shared = quote(policy)
    with serve(make_app(ROUTES, CountingStore(), renew=0)) as url:
        browser = Browser(url)
        await browser.get("/write")
        for path in ("/nothing", "/get"):
            response = await browser.get(f"{path}?policy={shared}")
            assert [] == set_cookies(response)
            assert policy == response.headers["Cache-Control"]
        for _ in range(2):
            response = await browser.get(f"/regenerate?policy={shared}")
            assert 1 == len(set_cookies(response))
            assert "private, no-cache" == response.headers["Cache-Control"]

    assert 1 == caplog.text.count("says Cache-Control: public")


async def test_the_handlers_own_policy_stays(url):
    """It may know better: `no-store` for personal data."""
    response = await Browser(url).get("/write?policy=no-store")

    assert "no-store" == response.headers["Cache-Control"]


# -- a shared cache --------------------------------------------------------------------


class SharedCache:
    """
    A cache between browsers and the application, by RFC 9111 as far as it matters: it
    keeps a 200 without `private` or `no-store` for as long as it likes, under its URL
    and the request headers that `Vary` names.
    """

    def __init__(self):
        self.kept = {}

    async def get(self, browser, path):
        cookies = browser.jar.header()
        for vary, sent, response in self.kept.get(path, []):
            if "*" not in vary and ("cookie" not in vary or sent == cookies):
                for header in set_cookies(response, None):
                    browser.jar.take(header)
                return response
        response = await browser.get(path)
        policy = response.headers.get("Cache-Control", "")
        if "private" not in policy and "no-store" not in policy:
            vary = {name.lower() for name in vary_of(response)}
            self.kept.setdefault(path, []).append((vary, cookies, response))
        return response


class Mine(SessionMixin, RequestHandler):
    def get(self, what):
        if what == "sign-in":
            self.session["name"] = self.get_query_argument("name")
        if what != "public":
            self.write(f"this page is {self.session.get('name')}'s")


def handle_of(browser):
    payload = str(browser.jar.get()).split("|")[4].partition(":")[2]
    return b64decode(payload)[:12]


async def test_a_shared_cache_mixes_nobody_up(io_loop, long):
    """
    Through one cache, no browser ever gets another one's cookie or page (CA-2): all
    pages, in random order, by ten browsers, with cookies that go out and that do not.
    """
    cache = SharedCache()
    for renew in (0, True):
        app = make_app([("/(.*)", Mine)], CountingStore(), renew=renew)
        with serve(app) as url:
            cache, chance = SharedCache(), random.Random(7)
            browsers = [Browser(url) for _ in range(10)]
            for number, browser in enumerate(browsers):
                await cache.get(browser, "/page")  # anonymous pages are in the cache
                await cache.get(browser, f"/sign-in?name={number}")
            own = [handle_of(browser) for browser in browsers]
            for _ in range(1000 if long else 150):
                number = chance.randrange(10)
                path = chance.choice(["/page", "/public", "/other"])
                response = await cache.get(browsers[number], path)
                assert own[number] == handle_of(browsers[number])
                if path != "/public":
                    assert f"this page is {number}'s" == response.body.decode()
    assert cache.kept, "the cache kept nothing, so this proves nothing"
