"""The session cookie as a browser sees it, for each option."""

from __future__ import annotations

import itertools
import re
import time
import warnings
from base64 import b64decode
from contextlib import ExitStack

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    NAME,
    PRODUCTION,
    Browser,
    Clock,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import MemorySessionStore, SessionMixin, SettingsError


class Page(SessionMixin, RequestHandler):
    def get(self, verb):
        if verb == "set":
            self.session["n"] = 1
        elif verb == "change":
            self.session["n"] = self.session.get("n", 0) + 1
        elif verb == "sign-in":
            self.session.regenerate()
        elif verb == "destroy":
            self.session = None
        elif verb == "all-at-once":
            self.session["n"] = 1
            self.session.regenerate()
            self.session = None
            self.session = {"n": 2}
            self.session.max_age = 60


ROUTES = [(r"/(?:app/)?([\w-]*)", Page)]
SITE = "https://www.example.com"


@pytest.fixture
def start(io_loop):
    with ExitStack() as stack:

        def start(environ=None, seen_as=None, clock=time.time, **options):
            store = MemorySessionStore(clock=clock)
            app = make_app(ROUTES, store, environ=environ, **options)
            url = stack.enter_context(serve(app, xheaders=True))
            return Browser(url, seen_as=seen_as, clock=clock)

        yield start


def attributes(header):
    return header.partition("; ")[2]


def sent(response, name=NAME):
    """The headers that set the cookie; those that clear its twins are left out."""
    return [h for h in set_cookies(response, name) if "Max-Age=0" not in h]


async def test_the_defaults_in_development(start):
    """Works on http://localhost, and nowhere else by accident (CK-17)."""
    [header] = set_cookies(await start().get("/set"))

    assert "Max-Age=518400; Path=/; HttpOnly; SameSite=Lax" == attributes(header)
    assert re.fullmatch(r"counter\.sess=[!#-+\--:<-\[\]-~]+", header.partition(";")[0])


async def test_the_defaults_in_production(start):
    """
    Secure, and for the domain of COOKIE_URL (CK-1, CK-2, CK-3). The cookie of the host
    alone that may be there, from before COOKIE_URL was set, is cleared first.
    """
    environ = {**PRODUCTION, "COOKIE_URL": "https://example.com"}
    browser = start(environ, seen_as=SITE)
    [twin, header] = set_cookies(await browser.get("/set"))

    assert (
        "Max-Age=518400; Path=/; Domain=example.com; HttpOnly; Secure; SameSite=Lax"
    ) == attributes(header)
    assert (
        "Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; "
        "HttpOnly; Secure; SameSite=Lax"
    ) == attributes(twin)
    assert {} == browser.jar.refused


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_age": 60}, "Max-Age=60; Path=/; HttpOnly; SameSite=Lax"),
        ({"max_age": "session"}, "Path=/; HttpOnly; SameSite=Lax"),
        (
            {"absolute_max_age": 50},
            "Max-Age=50; Path=/; HttpOnly; SameSite=Lax",
        ),
        ({"path": "/app"}, "Max-Age=518400; Path=/app; HttpOnly; SameSite=Lax"),
        ({"http_only": False}, "Max-Age=518400; Path=/; SameSite=Lax"),
        (
            {"same_site": "strict"},
            "Max-Age=518400; Path=/; HttpOnly; SameSite=Strict",
        ),
        (
            {"same_site": "none", "secure": True},
            "Max-Age=518400; Path=/; HttpOnly; Secure; SameSite=None",
        ),
        (
            {"domain": "example.com"},
            "Max-Age=518400; Path=/; Domain=example.com; HttpOnly; SameSite=Lax",
        ),
        ({"renew": False}, "Max-Age=518400; Path=/; HttpOnly; SameSite=Lax"),
    ],
)
async def test_each_option_shows(start, options, expected):
    """What the option says is what the header says (CK-3, CK-7)."""
    [header] = sent(await start(seen_as=SITE, **options).get("/app/set"))

    assert expected == attributes(header)


async def test_an_unsigned_cookie_is_the_id(start):
    """`signed=False`: 36 characters, for those who sign elsewhere."""
    browser = start(signed=False)
    await browser.get("/set")

    assert re.fullmatch(r"[A-Za-z0-9_-]{36}", str(browser.jar.get()))
    await browser.get("/change")
    browser.jar.put("' or 1=1; --")
    assert 200 == (await browser.get("/change")).code


async def test_overwrite(start):
    """
    Its lifetime starts anew when it is an hour old, and not with every response as it
    once did: only a new secret sends a cookie. With `renew=0` each response has one.
    """
    clock = Clock()
    browser = start(clock=clock)
    await browser.get("/set")
    for path in ("/", "/change"):
        assert [] == set_cookies(await browser.get(path))
    for path in ("/", "/change"):
        clock.now += 3600
        [header] = set_cookies(await browser.get(path))
        assert "Max-Age=518400" in header
    browser = start(renew=0)
    await browser.get("/set")
    for path in ("/", "/change", "/"):
        [header] = set_cookies(await browser.get(path))
        assert "Max-Age=518400" in header


async def test_without_overwrite(start):
    """Only when it is new or regenerated; a write of data sends none any more."""
    clock = Clock()
    browser = start(clock=clock, overwrite=False)

    assert 1 == len(set_cookies(await browser.get("/set")))
    clock.now += 86400
    assert 0 == len(set_cookies(await browser.get("/")))
    assert 0 == len(set_cookies(await browser.get("/change")))
    assert 1 == len(set_cookies(await browser.get("/sign-in")))
    assert 0 == len(set_cookies(await browser.get("/")))
    assert 1 == len(set_cookies(await browser.get("/destroy")))


MATRIX = [
    {"domain": domain, "path": path, "same_site": same_site, "secure": secure}
    | {"http_only": http_only, "key": key}
    for domain, path, same_site, secure, http_only, key in itertools.product(
        (None, "example.com"),
        ("/", "/app"),
        ("lax", "strict", "none"),
        (True, False),
        (True, False),
        ("counter.sess", "__Secure-sid", "__Host-sid"),
    )
]


async def test_set_and_cleared_in_every_combination(start):
    """
    For each set of attributes that start-up allows, a browser by RFC 6265bis
    takes the cookie, sends it back, and loses it at the end (CK-1, CK-8).
    """
    allowed = 0
    for options in MATRIX:
        try:
            browser = start(seen_as=SITE, keep_public_cookie=True, **options)
        except SettingsError:
            continue
        allowed += 1
        key = str(options["key"])
        await browser.get("/app/set")
        assert {} == browser.jar.refused, options
        assert [key, key + ".public"] == browser.jar.names()
        assert browser.jar.header("/app/x")
        await browser.get("/app/sign-in")
        assert [key, key + ".public"] == browser.jar.names()
        await browser.get("/app/destroy")
        assert [] == browser.jar.names(), options

    assert 70 == allowed


async def test_one_header_for_each_name(start):
    """Whatever a handler does, a cookie is set once (CK-9)."""
    browser = start(keep_public_cookie=True)
    for _ in range(2):
        response = await browser.get("/all-at-once")
        assert 1 == len(set_cookies(response, NAME))
        assert 1 == len(set_cookies(response, NAME + ".public"))


async def test_the_value_is_nowhere_else(start, caplog):
    """Neither in a body, nor in another header, nor in a log (CK-2, LG-1)."""
    caplog.set_level("DEBUG")
    browser = start()
    values = set()
    for path in ("/set", "/change", "/sign-in", "/", "/change"):
        response = await browser.get(path)
        values.add(str(browser.jar.get()))
        headers = response.headers.copy()
        headers.pop("Set-Cookie", None)
        seen = str(headers) + response.body.decode() + caplog.text
        for value in values:
            assert value not in seen
            assert value.split("|")[4] not in seen
    assert len(values) > 1
    for value in values:
        session_id = b64decode(value.split("|")[4].split(":")[1]).decode()
        assert session_id[:12] in caplog.text  # its handle, which may be shown
        assert session_id[12:] not in caplog.text


async def test_no_warning_of_tornado(start):
    """Attributes are written as every supported Tornado wants them (T33)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        browser = start()
        await browser.get("/set")
        await browser.get("/destroy")
