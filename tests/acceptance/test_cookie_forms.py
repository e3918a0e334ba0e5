"""
COOKIE_URL, `domain` or `path` was changed: browsers hold the cookie in two forms, of
the host alone and of the domain, and send both.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    NAME,
    PRODUCTION,
    Browser,
    Clock,
    make_app,
    rewrite,
    serve,
)
from tornado_compas_session import MemorySessionStore, SessionMixin

SITE = "https://www.example.com"
PUBLIC = NAME + ".public"


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write(dict(self.session))

    def post(self):
        self.session["cart"] = ["a book"]


class SignIn(SessionMixin, RequestHandler):
    def post(self):
        self.session["user_id"] = self.get_query_argument("as", "anna")
        self.session.regenerate()


class SignOut(SessionMixin, RequestHandler):
    def post(self):
        self.session = None


ROUTES = [
    ("/app", Page),
    ("/app/sign-in", SignIn),
    ("/app/sign-out", SignOut),
]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemorySessionStore(clock=clock)


@pytest.fixture
def reused():
    return []


@pytest.fixture
def start(io_loop, store, reused):
    """The URL of the application as it is configured now."""
    with ExitStack() as stack:

        def start(cookie_url=None, **options):
            environ = {**PRODUCTION}
            if cookie_url:
                environ["COOKIE_URL"] = cookie_url
            app = make_app(
                ROUTES, store, environ=environ, on_reuse=reused.append, **options
            )
            return stack.enter_context(serve(app, xheaders=True))

        yield start


async def content(browser):
    return json.loads((await browser.get("/app")).body)


def forms(browser, name=NAME):
    """The domains and paths of the cookies that the browser holds under the name."""
    return sorted(
        (domain, path) for key, domain, path in browser.jar.kept if key == name
    )


BEFORE_AND_AFTER = [
    ({}, {"cookie_url": "https://example.com"}),
    ({"cookie_url": "https://example.com"}, {}),
    ({"cookie_url": "www.example.com"}, {"cookie_url": "example.com"}),
    ({"cookie_url": "example.com"}, {"cookie_url": "www.example.com"}),
    ({"path": "/app"}, {}),
    ({}, {"path": "/app"}),
    ({"path": "/app"}, {"cookie_url": "https://example.com"}),
]


@pytest.mark.parametrize(("before", "after"), BEFORE_AND_AFTER)
@pytest.mark.parametrize("came", ["alive", "expired", "ended"])
async def test_signing_in_works_at_once(start, store, clock, before, after, came):
    """
    Whoever has a cookie of the form from before signs in, is signed in with the next
    request, and makes one row, not one with each try; whether its session lives or not.
    """
    browser = Browser(start(**before), seen_as=SITE, clock=clock)
    await browser.post("/app")
    browser.url = start(**after)
    if came == "alive":
        assert {"cart": ["a book"]} == await content(browser)
    elif came == "expired":
        rewrite(store, expires=0.0)
    else:
        await store.revoke_all()

    assert 200 == (await browser.post("/app/sign-in")).code
    for _ in range(3):
        assert "anna" == (await content(browser)).get("user_id")
        clock.now += 3601
    assert 1 == len(store)

    await browser.post("/app/sign-out")
    assert {} == await content(browser)
    await browser.post("/app/sign-in?as=bela")
    assert {"user_id": "bela"} == await content(browser)
    assert 1 == len(store)


async def test_the_cookie_of_the_host_is_cleared_with_the_first_of_the_domain(
    start, clock
):
    """And so is the public one: no two are left side by side."""
    browser = Browser(start(keep_public_cookie=True), seen_as=SITE, clock=clock)
    await browser.post("/app")
    browser.url = start("https://example.com", keep_public_cookie=True)
    assert [("www.example.com", "/")] == forms(browser)

    await browser.post("/app/sign-in")

    for name in (NAME, PUBLIC):
        assert [("example.com", "/")] == forms(browser, name)
    await browser.post("/app/sign-out")
    assert [] == browser.jar.names()


async def test_a_sign_out_clears_every_form(start, clock):
    """A cookie that is left over would be looked up for days."""
    browser = Browser(start(), seen_as=SITE, clock=clock)
    await browser.post("/app")
    other = Browser(start("https://example.com"), seen_as=SITE, clock=clock)
    await other.post("/app/sign-in")
    browser.url = other.url
    browser.jar.kept |= other.jar.kept  # two live sessions, side by side
    assert 2 == len(forms(browser))

    await browser.post("/app/sign-in")
    assert {"user_id": "anna"} == await content(browser)
    await browser.post("/app/sign-out")

    assert [] == browser.jar.names()
    assert {} == await content(browser)


async def test_a_rolling_deployment_signs_nobody_out(start, clock, reused):
    """
    Half of the nodes have the new COOKIE_URL: requests go here and there, the cookie is
    renewed here and there, and the same session is found by each.
    """
    old, new = start(renew=0), start("https://example.com", renew=0)
    browser = Browser(old, seen_as=SITE, clock=clock)
    await browser.post("/app/sign-in")
    for node in (new, old, old, new, new, old, new):
        browser.url = node
        assert "anna" == (await content(browser)).get("user_id")
        clock.now += 7

    # Of two cookies of one session the one with the current secret counts; the other
    # one is no thief's.
    assert [] == reused


async def test_of_two_sessions_of_one_user_the_newer_counts(start, clock):
    """Two visitors' are not guessed at, but a new sign-in works at once."""
    browser = Browser(start(), seen_as=SITE, clock=clock)
    await browser.post("/app/sign-in")
    clock.now += 1
    for name, expected in (("anna", {"user_id": "anna"}), ("bela", {})):
        other = Browser(start("https://example.com"), seen_as=SITE, clock=clock)
        await other.post(f"/app/sign-in?as={name}")
        both = Browser(other.url, seen_as=SITE, clock=clock)
        both.jar.kept = browser.jar.kept | other.jar.kept
        assert expected == await content(both)
        await both.post("/app/sign-in?as=carl")
        assert {"user_id": "carl"} == await content(both)
        assert [("example.com", "/")] == forms(both)
