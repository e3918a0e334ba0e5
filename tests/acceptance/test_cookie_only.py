"""Sessions without a store, over HTTP; the flow itself is in test_counter_flow.py."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from tornado.web import RequestHandler

from tests.factories import KEY, NAME, Browser, make_app, serve, set_cookies
from tornado_compas_session import SessionMixin, SettingsError


class Page(SessionMixin, RequestHandler):
    async def get(self, verb):
        if verb == "write":
            self.session["text"] = "x" * int(self.get_query_argument("size", "1"))
        elif verb == "crash":
            self.session["text"] = "crashed"
            raise KeyError
        elif verb == "save":
            self.session["text"] = "saved"
            await self.session.save()
        elif verb == "stream":
            self.session["text"] = "xyz"
            self.write(" ")
            await self.flush()
        elif verb == "regenerate":
            self.session.regenerate()
        elif verb == "clear":
            self.session.clear()
        elif verb == "destroy":
            self.session = None
        elif verb == "wait":
            self.session.get("text")
            self.settings["entered"].set()
            await self.settings["go_on"].wait()
        self.write({"size": len(self.session.get("text", ""))})


@pytest.fixture
def options():
    return {}


@pytest.fixture
def app(io_loop, options):
    tornado = {"entered": asyncio.Event(), "go_on": asyncio.Event()}
    return make_app([(r"/(\w*)", Page)], tornado=tornado, **options)


@pytest.fixture
def browser(app):
    with serve(app) as url:
        yield Browser(url)


async def size_of(browser):
    return json.loads((await browser.get("/")).body)["size"]


async def test_the_data_is_in_the_cookie(browser):
    """Signed, readable for the visitor, and with the usual attributes."""
    [header] = set_cookies(await browser.get("/write"))
    payload = str(browser.jar.get()).split("|")[4].split(":")[1]
    fields = json.loads(base64.b64decode(payload))

    assert {"text": "x"} == fields[5]
    assert "Max-Age=518400; Path=/; HttpOnly; SameSite=Lax" == header.partition("; ")[2]
    assert 1 == await size_of(browser)


async def test_no_visitor_can_change_it(browser):
    """Every forged payload is an anonymous visitor."""
    await browser.get("/write")
    fields = str(browser.jar.get()).split("|")
    forged = base64.b64encode(b'[1,1,9e12,null,null,{"text":"xxx"}]').decode()
    fields[4] = f"{len(forged)}:{forged}"
    browser.jar.put("|".join(fields))

    assert 0 == await size_of(browser)


async def test_too_much_is_a_500_with_a_clear_log(browser, caplog):
    """The path out is in the log; the browser keeps what it had (CK-4)."""
    await browser.get("/write?size=5")
    cookie = browser.jar.get()
    response = await browser.get("/write?size=4000")

    assert 500 == response.code
    assert [] == set_cookies(response, None)
    assert cookie == browser.jar.get()
    assert "browsers keep 4096" in caplog.text
    assert 5 == await size_of(browser)


async def test_as_much_as_fits_fits(browser):
    """What start-up promises to browsers, they keep (CK-4)."""
    assert 200 == (await browser.get("/write?size=2800")).code
    assert 2800 == await size_of(browser)
    assert {} == browser.jar.refused


async def test_a_crash_discards(browser):
    """As with a store."""
    await browser.get("/write?size=5")
    response = await browser.get("/crash")

    assert 500 == response.code
    assert 5 == await size_of(browser)


async def test_saving_and_regenerating(browser):
    """Both can be called; there is no id that could be known."""
    await browser.get("/save")
    assert 5 == await size_of(browser)
    await browser.get("/regenerate")
    assert 5 == await size_of(browser)
    await browser.get("/clear")
    assert 0 == await size_of(browser)


async def test_what_is_changed_before_the_first_flush_leaves_with_it(browser):
    """A session that lives already as well as a new one."""
    for _ in "new", "live":
        response = await browser.get("/stream")

        assert (200, {"size": 3}) == (response.code, json.loads(response.body))
        assert set_cookies(response)
        assert 3 == await size_of(browser)
        await browser.get("/write")


@pytest.mark.parametrize("options", [{}, {"renew": 0}, {"renew": 0, "max_age": 60}])
@pytest.mark.parametrize("again", [False, True])
async def test_a_slow_read_brings_no_session_back(app, browser, again):
    """
    Meanwhile another tab has signed out, or out and in again. There is no row that
    would tell, so a cookie leaves only with what its request has written.
    """
    await browser.get("/write?size=5")
    slow = asyncio.create_task(browser.get("/wait"))
    async with asyncio.timeout(30):
        await app.settings["entered"].wait()
        await browser.get("/destroy")
        if again:
            await browser.get("/write?size=7")
        app.settings["go_on"].set()
        response = await slow

    assert b'{"size": 5}' == response.body
    assert [] == set_cookies(response, None)
    assert (7 if again else 0) == await size_of(browser)


def test_what_needs_a_store_says_so():
    """At start-up."""
    for options in ({"keep_public_cookie": True}, {"signed": False}):
        with pytest.raises(SettingsError, match="store"):
            make_app([], **options)


async def test_vary_and_cache(browser):
    """As with a store (CA-1, CA-2)."""
    response = await browser.get("/write")

    assert "Cookie" == response.headers["Vary"]
    assert "private, no-cache" == response.headers["Cache-Control"]
    assert KEY not in str(response.headers)
    assert NAME in response.headers["Set-Cookie"]
