"""`max_data_size` refuses growth, and nothing else."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.web import RequestHandler

from tests.factories import Browser, MemorySessionStore, make_app, serve
from tornado_compas_session import SessionMixin

KIB = 1024


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write({key: len(str(self.session[key])) for key in self.session})

    def put(self):
        for key, value in json.loads(self.request.body).items():
            self.session[key] = "x" * value if isinstance(value, int) else value


class Parallel(SessionMixin, RequestHandler):
    """Two at once: both have loaded before either writes."""

    async def post(self, key):
        self.session[key] = "x" * 40 * KIB
        entered = self.settings["entered"]
        entered.append(key)
        while len(entered) < 2:
            await asyncio.sleep(0.001)


class Account(SessionMixin, RequestHandler):
    async def post(self, what):
        if what == "sign-in":
            self.session["user_id"] = "anna"
        elif what == "regenerate":
            self.session.regenerate()
        elif what == "shrink":
            self.session["b"] = "x" * 30 * KIB
        elif what == "drop":
            del self.session["b"]
        elif what == "replace":
            self.session = {"a": "x" * 50 * KIB}
        elif what == "lifetime":
            self.session.max_age = 60
        elif what == "same":
            self.session["a"], self.session["b"] = self.session["b"], self.session["a"]
        elif what == "grow":
            self.session["c"] = "x" * KIB
        elif what == "increment":
            await self.session.increment("n")
        elif what == "destroy":
            self.session = None


@pytest.fixture
def app(io_loop):
    routes = [("/", Page), ("/parallel/(.*)", Parallel), ("/account/(.*)", Account)]
    return make_app(routes, MemorySessionStore(), tornado={"entered": []})


@pytest.fixture
def url(app):
    with serve(app) as url:
        yield url


async def too_large(url):
    """A session of 80 KiB, which two writes of 40 have made."""
    browser = Browser(url)
    await browser.ask("/", "PUT", body=json.dumps({"start": 1}))
    answers = await asyncio.gather(
        browser.post("/parallel/a"), browser.post("/parallel/b")
    )
    assert [200, 200] == [answer.code for answer in answers]
    return browser


async def sizes(browser):
    return json.loads((await browser.get()).body)


@pytest.mark.parametrize(
    "what",
    ["shrink", "drop", "replace", "regenerate", "lifetime", "same", "destroy"],
)
async def test_what_has_grown_too_large_in_parallel_can_be_used(url, what):
    """Both writes were confirmed, so it can be made smaller, moved and ended."""
    browser = await too_large(url)

    assert 200 == (await browser.post(f"/account/{what}")).code

    after = await sizes(browser)
    assert (0 if what == "destroy" else 1) <= len(after)
    if what == "shrink":
        assert 30 * KIB == after["b"]


@pytest.mark.parametrize("first", ["nothing", "shrink", "drop"])
async def test_the_visitor_signs_in(url, first):
    """
    It was a 500 for as long as the session lived. Who the visitor is never fails for
    want of room, not even where nothing was made smaller before.
    """
    browser = await too_large(url)
    assert 200 == (await browser.post(f"/account/{first}")).code

    assert 200 == (await browser.post("/account/sign-in")).code
    assert len("anna") == (await sizes(browser))["user_id"]


async def test_it_cannot_grow(url, caplog):
    """Nor may one that was within the bound go beyond it; the log says how far."""
    browser = await too_large(url)
    before = await sizes(browser)

    assert 500 == (await browser.post("/account/grow")).code
    assert "max_data_size is 65536" in caplog.text
    assert before == await sizes(browser)
    small = Browser(url)
    await small.ask("/", "PUT", body=json.dumps({"a": 60 * KIB}))
    assert 500 == (await small.ask("/", "PUT", body=json.dumps({"b": 6 * KIB}))).code
    assert {"a": 60 * KIB} == await sizes(small)
