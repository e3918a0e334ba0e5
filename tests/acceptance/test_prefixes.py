"""Names with a prefix: what browsers demand of them, and what is refused for them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    PRODUCTION,
    Browser,
    MemorySessionStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin, SettingsError

SITE = "https://www.example.com"
DEMANDS = {
    "__Secure-shop": set(),
    "__Host-shop": {"domain", "path"},
    "__Http-shop": {"http_only"},
    "__Host-Http-shop": {"http_only", "domain", "path"},
}
#: An option that the demand is not met with.
BROKEN: dict[str, Any] = {
    "secure": {"secure": False},
    "http_only": {"http_only": False},
    "domain": {"domain": "example.com"},
    "path": {"path": "/app"},
}


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write({"n": self.session.get("n")})

    def post(self):
        self.session["n"] = 1

    def delete(self):
        self.session = None


@pytest.fixture
def store():
    return MemorySessionStore()


@pytest.fixture
def start(io_loop, store):
    with ExitStack() as stack:

        def start(**options):
            app = make_app([("/", Page)], store, environ=PRODUCTION, **options)
            url = stack.enter_context(serve(app, xheaders=True))
            return Browser(url, seen_as=SITE)

        yield start


@pytest.mark.parametrize("key", DEMANDS)
async def test_browsers_keep_both_cookies(start, key):
    """
    The session's, and the public one under a name whose demands it can meet: scripts
    read it, so it has no HttpOnly. Both go with the sign-out.
    """
    browser = start(key=key, keep_public_cookie=True)
    await browser.post("/")

    public = [name for name in browser.jar.names() if name != key]
    assert {} == browser.jar.refused
    assert key in browser.jar.names()
    assert {public[0]: "truthy"} == browser.jar.script()
    assert b'{"n": 1}' == (await browser.get("/")).body
    await browser.ask("/", "DELETE")
    assert [] == browser.jar.names()


@pytest.mark.parametrize("key", DEMANDS)
@pytest.mark.parametrize("option", BROKEN)
def test_what_a_browser_would_drop_is_refused_at_the_start(store, key, option):
    """And what it would keep is not."""
    environ = {**PRODUCTION}
    if option == "secure" or option in DEMANDS[key]:
        with pytest.raises(SettingsError, match=key):
            make_app([], store, environ=environ, key=key, **BROKEN[option])
    else:
        make_app([], store, environ=environ, key=key, **BROKEN[option])


@pytest.mark.parametrize("key", ["__Host-shop", "__Http-shop", "__Host-Http-shop"])
async def test_a_planted_cookie_of_the_name_before_is_not_upgraded(start, store, key):
    """
    `previous_keys` beside a name with a prefix: what another host of the domain has set
    under the old name gets the new one only if it was signed by us, under that name.
    """
    old = start(key="shop.sess")
    await old.post("/")
    [signed] = [c.value for c in old.jar.kept.values()]
    other = start(key="other.sess")
    await other.post("/")
    [elsewhere] = [c.value for c in other.jar.kept.values()]
    forged = signed[:-1] + ("1" if signed.endswith("0") else "0")
    new = start(key=key, previous_keys=["shop.sess"])

    for planted in ("x" * 36, elsewhere, forged, signed.split("|")[4]):
        new.jar.kept.clear()
        new.jar.take(f"shop.sess={planted}; Path=/; Domain=example.com")
        response = await new.get("/")
        assert (b'{"n": null}', []) == (response.body, set_cookies(response, None))
    new.jar.kept.clear()
    new.jar.take(f"shop.sess={signed}; Path=/")
    assert b'{"n": 1}' == (await new.get("/")).body
    assert key in new.jar.names()


def test_unsigned_it_is_refused_at_the_start(store):
    """Without signatures anybody may have set the cookie of the name before."""
    with pytest.raises(SettingsError, match=r"previous_keys 'shop\.sess'.*signed"):
        make_app(
            [],
            store,
            environ=PRODUCTION,
            key="__Host-shop",
            previous_keys=["shop.sess"],
            signed=False,
        )
