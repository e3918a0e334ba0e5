"""The browser of the testing kit: redirects, forms, XSRF, and a store in trouble."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.web import Application, RequestHandler

from tests.factories import TroubledStore
from tornado_compas_session import (
    MemorySessionStore,
    SessionMixin,
    SettingsError,
    StoreUnavailable,
    session_settings,
)
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.testing import (
    Browser,
    signed_in,
    store_away,
    store_slow,
)
from tornado_compas_session.testing.jar import Jar

FORM = """
<form action="/search"><input name="q" value="old"></form>
<form action="/echo?from=page" method="post">{}
  <input name="name" value="ada"> <input type="checkbox" name="news">
  <input type="radio" name="size" value="s"><input type="radio" name="size" value="m"
  checked> <textarea name="text">a &amp; b</textarea> <input type="submit" name="go">
  <select name="to"><option value="x"></option><option value="y" selected></select>
</form>
"""


class Page(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.session["seen"] = True
        self.write(FORM.format(self.xsrf_form_html()))


class Echo(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.post()

    def post(self) -> None:
        found = {name: self.get_arguments(name) for name in self.request.arguments}
        found.pop("_xsrf", None)
        self.write({"method": self.request.method, "got": found})

    def delete(self) -> None:
        self.write("deleted")


class Around(RequestHandler):
    def get(self) -> None:
        self.redirect("/around")


class Away(RequestHandler):
    def get(self) -> None:
        self.redirect(self.get_argument("to"), status=int(self.get_argument("by")))

    post = get


@asynccontextmanager
async def visited(**options: Any) -> AsyncIterator[Browser]:
    routes: list[Any] = [("/", Page), ("/(?:echo|search)", Echo), ("/away", Away)]
    routes.append(("/around", Around))
    settings = session_settings(MemorySessionStore(), **options)
    app = Application(routes, xsrf_cookies=True, **settings)
    async with Browser(app) as browser:
        yield browser


async def test_a_form_is_sent_as_a_browser_does() -> None:
    """What is filled in, what is hidden or chosen already, and nothing else."""
    async with visited() as browser:
        page = await browser.get("/")
        echoed = (await browser.submit(page, {"name": "bob", "news": "on"})).body
        found = (await browser.submit(page, {"q": "new"})).body

        assert (
            b'{"method": "POST", "got": {"from": ["page"], "name": ["bob"], '
            b'"size": ["m"], "text": ["a & b"], "to": ["y"], "news": ["on"]}}'
        ) == echoed
        assert b'{"method": "GET", "got": {"q": ["new"]}}' == found
        with pytest.raises(ValueError, match=r"no form .* \['password'\]"):
            await browser.submit(page, {"password": "x"})
        with pytest.raises(ValueError, match="and the action /no"):
            await browser.submit(page, to="/no")


async def test_the_token_is_shown_unless_it_is_left_out() -> None:
    """As a script of the page would; a browser that was never there has none."""
    async with visited() as browser:
        assert 403 == (await browser.post("/echo")).code
        await browser.get("/")
        assert 200 == (await browser.post("/echo", json={})).code
        assert 200 == (await browser.ask("/echo", "DELETE")).code
        assert 403 == (await browser.post("/echo", xsrf=False)).code
        assert {} == browser.another().cookies


@pytest.mark.parametrize(
    ("by", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST")]
)
async def test_redirects_are_followed_within_the_application(
    by: int, method: str
) -> None:
    """As browsers do; to elsewhere, or unasked, they are an answer like another."""
    async with visited() as browser:
        await browser.get("/")
        there = f"/away?by={by}&to="
        response = await browser.post(there + "/echo%23x", form={"a": "1"}, follow=True)
        assert f'{{"method": "{method}"'.encode() in response.body
        assert by == (await browser.post(there + "/echo")).code
        elsewhere = await browser.get(there + "https://a.example/", follow=True)
        assert by == elsewhere.code


async def test_redirects_that_never_end_are_an_error() -> None:
    """Ten of them are enough."""
    async with visited() as browser:
        with pytest.raises(ValueError, match="more than 10 redirects"):
            await browser.get("/around", follow=True)


async def test_https_is_believed() -> None:
    """Behind a proxy that speaks it, with a cookie that is Secure."""
    environ = {"APP_NAME": "shop", "APP_KEYS": "k" * 40}
    settings = session_settings(MemorySessionStore(), environ=environ)
    app = Application([("/", Page)], **settings)
    async with Browser(app, seen_as="https://shop.example") as browser:
        await browser.get("/")
        assert {"shop.sess", "_xsrf"} == browser.cookies.keys()
        twin = await signed_in(browser.another(), 7)
        assert "shop.sess" in twin.cookies
        assert ("shop.sess", "shop.example", "/") in twin.jar.kept


async def test_nobody_is_signed_in_without_an_application() -> None:
    """A browser at a URL alone does not know where sessions are kept."""
    with pytest.raises(SettingsError):
        await signed_in(Browser(url="http://127.0.0.1:1"), 7)


@pytest.fixture
def store() -> Iterator[TroubledStore]:
    yield TroubledStore()


async def test_trouble_of_the_store_ends_with_its_block(store: TroubledStore) -> None:
    """All of it or what is named; blocks may stand in one another."""
    with store_away(store, "load"), store_slow(store, 0.01):
        with pytest.raises(StoreUnavailable):
            await store.load("x")
        assert not await store.delete("x", 0)
    with store_away(store):
        with pytest.raises(StoreUnavailable):
            await store.create("x", b"", SessionChange())
        with pytest.raises(StoreUnavailable):
            await store.sessions_of("ada")
        with pytest.raises(StoreUnavailable):
            async with store.lock("x", 0, 1):
                pass
    async with store.lock("x", 0, 1) as locked:
        assert locked is None
    assert await store.load("x") is None


def test_a_jar_says_what_it_refuses() -> None:
    """By name, and why."""
    jar = Jar("https://shop.example")
    jar.take("a=1; Domain=other.example")
    jar.take("__Host-b=1; Secure; Path=/x")
    jar.take("c=1; Max-Age=9")
    jar.take("d=1; HttpOnly")

    assert {"a", "__Host-b"} == jar.refused.keys()
    assert "Path=/" in jar.refused["__Host-b"]
    assert {"c": "1"} == jar.script()
    jar.restart()
    assert "c=1" == jar.header()
