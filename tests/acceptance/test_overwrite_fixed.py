"""Where the cookie ends when the row is renewed: `overwrite`, `renew`, and streams."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    Browser,
    Clock,
    MemorySessionStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin


class Counting(SessionMixin, RequestHandler):
    def get(self):
        self.session["n"] = self.session.get("n", 0) + 1
        self.write(str(self.session["n"]))


class Reading(SessionMixin, RequestHandler):
    def get(self):
        self.write(str(self.session.get("n")))


class Streaming(SessionMixin, RequestHandler):
    async def get(self, how):
        self.write("a part, ")
        flushing = self.flush()
        if how == "awaited":
            await flushing
        if how == "written":
            self.session["late"] = True
        self.write(f"and {self.session.get('n')}")


ROUTES = [("/", Counting), ("/read", Reading), ("/stream/(.*)", Streaming)]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemorySessionStore(clock=clock)


@pytest.fixture
def start(io_loop, store, clock):
    with ExitStack() as stack:

        def start(**options):
            url = stack.enter_context(serve(make_app(ROUTES, store, **options)))
            return Browser(url, clock=clock)

        yield start


def ends(browser):
    [cookie] = browser.jar.kept.values()
    return cookie.expires


@pytest.mark.parametrize("renew", [False, True, 0])
async def test_without_overwrite_only_a_new_id_sends_a_cookie(start, clock, renew):
    """
    It ends `max_age` after the session was created, however much it is used; the one
    that the browser has is as good as a new one would be.
    """
    browser = start(overwrite=False, renew=renew, max_age=1000)
    await browser.get("/")
    end = ends(browser)

    for path in ("/", "/read", "/stream/awaited", "/stream/loose"):
        clock.now += 200
        response = await browser.get(path)
        assert [] == set_cookies(response)
        assert b"2" == response.body[-1:]
    assert end == ends(browser)
    clock.now += 200
    assert b"None" == (await browser.get("/read")).body


async def test_a_fixed_lifetime_sends_no_cookie_for_a_write(start):
    """No expiry has moved."""
    browser = start(renew=False)
    [_] = set_cookies(await browser.get("/"))
    again = await browser.get("/")

    assert b"2" == again.body
    assert [] == set_cookies(again)


@pytest.mark.parametrize(
    "path", ["/read", "/stream/awaited", "/stream/loose", "/stream/written"]
)
async def test_a_stream_renews_as_any_other(start, store, clock, path):
    """
    Row and cookie both, though the headers leave with its first part, and what is
    written after that with its last.
    """
    browser = start(max_age=1000)
    await browser.get("/")
    for _ in range(10):
        clock.now += 500
        response = await browser.get(path)
        assert b"1" == response.body[-1:]
        [row] = store._rows.values()
        assert (1000, 1) == (row.record.expires - clock.now, len(set_cookies(response)))
        assert row.record.expires == ends(browser)
