"""The doctor at a running server: what a browser would do, and what the page is."""

from __future__ import annotations

from typing import Any

import pytest
from tornado.web import Application, HTTPError, RequestHandler

from tests.factories import KEY, make_app, serve
from tornado_compas_session import MemorySessionStore, SessionMixin
from tornado_compas_session.testing.jar import Cookie
from tornado_compas_session.tools.doctor import diagnose
from tornado_compas_session.tools.findings import Finding

ENVIRON = {"APP_NAME": "shop", "APP_KEYS": KEY, "APP_ENV": "development"}


class Visit(SessionMixin, RequestHandler):
    def get(self):
        self.session["visits"] = self.session.get("visits", 0) + 1


class Reader(SessionMixin, RequestHandler):
    """Signs a cookie of its own, which has nothing to do with sessions."""

    def get(self):
        self.set_signed_cookie("name", "ada")


class Form(SessionMixin, RequestHandler):
    def post(self):
        self.session["sent"] = True


class Fails(SessionMixin, RequestHandler):
    def get(self):
        self.session["seen"] = True
        raise HTTPError(int(self.get_query_argument("status")))


def served(name: str = "shop", store: Any = None, **options: Any) -> Application:
    routes = [("/", Visit), ("/form", Form), ("/fails", Fails), ("/reader", Reader)]
    return make_app(routes, store, environ={**ENVIRON, "APP_NAME": name}, **options)


async def findings_of(
    app: Application, path: str = "/", *, options: Any = None, **values: Any
) -> dict[str, Finding]:
    """What is found at this page, by name; without the database and the good news."""
    with serve(app) as url:
        found = await diagnose(ENVIRON, url=url + path, options=options, **values)
    return {one.name: one for one in found if one.name != "no-database"}


@pytest.mark.parametrize("kind", ["signed", "unsigned", "without a store"])
async def test_another_name(kind):
    """The session is kept, but not by the name that the doctor was told."""
    store = None if kind == "without a store" else MemorySessionStore()
    found = await findings_of(served("other", store, signed=kind != "unsigned"))

    finding = found["another-name"]
    assert "problem" == finding.level
    assert "came as other.sess, and shop.sess is expected" in finding.what
    assert "--option key=other.sess" in finding.fix
    # The rest of the visit goes on with the name that came.
    assert "no-cookie" not in found
    assert "good" == found["session"].level


async def test_another_key():
    """The server has a `key`, and the doctor was not told; a second try is sound."""
    app = served(store=MemorySessionStore(), key="sid")
    found = await findings_of(app)
    again = await findings_of(app, options={"key": "sid"})

    assert "--option key=sid" in found["another-name"].fix
    assert {"good"} == {one.level for one in again.values()}


async def test_other_cookies_are_no_sessions():
    """A signed cookie of the application's own is not taken for one."""
    found = await findings_of(served(store=MemorySessionStore()), "/reader")

    assert "another-name" not in found
    assert "no-cookie" in found


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/absent", 404, "see to the path of --url"),
        ("/form", 405, "--method POST"),
        ("/fails?status=403", 403, "without a form"),
        ("/fails?status=500", 500, "log of the server"),
        ("/fails?status=503", 503, "the database"),
    ],
)
async def test_the_page_is_none(path, status, says):
    """A page that answers with an error begins no session: the status says why."""

    class Bare(RequestHandler):
        def get(self):
            raise HTTPError(int(self.get_query_argument("status")))

    app = make_app([("/form", Form), ("/fails", Bare)], environ=ENVIRON)
    found = await findings_of(app, path)

    finding = found["page-status"]
    assert "problem" == finding.level
    assert f"{path} is answered with {status}" in finding.what
    assert says in finding.fix
    assert "no-cookie" not in found


async def test_an_error_page_that_begins_a_session_is_one():
    """A 4xx saves the session, so there is nothing to say of the status."""
    found = await findings_of(served(), "/fails?status=404")

    assert "page-status" not in found
    assert "good" == found["browser"].level


async def test_the_method_that_the_page_takes():
    """The way out that is named is one."""
    found = await findings_of(served(), "/form", method="POST")

    assert not [one for one in found.values() if one.level == "problem"]


@pytest.mark.parametrize("domain", ["co.uk", "com", "github.io", "127.0.0.1"])
async def test_a_public_suffix(domain):
    """COOKIE_URL=co.uk: browsers refuse a cookie for all the shops of a country."""
    environ = {"APP_NAME": "shop", "APP_KEYS": KEY, "COOKIE_URL": domain}
    [finding] = [one for one in await diagnose(environ) if one.name == "cookie-domain"]

    assert ("problem", f"the cookie's domain is {domain}") == (
        finding.level,
        finding.what,
    )


@pytest.mark.parametrize(
    ("url", "header", "reason"),
    [
        ("https://a.co.uk/", "a=1; Domain=co.uk", "strangers have names under it"),
        ("https://a.co.uk/", "a=1; Domain=a.co.uk", None),
        ("https://me.github.io/", "a=1; Domain=github.io", "strangers have names"),
        ("https://a.example/", "__Http-a=1; HttpOnly", "__Http- needs Secure"),
        ("https://a.example/", "__http-a=1; Secure", "__Http- needs HttpOnly"),
        ("https://a.example/", "__Http-a=1; Secure; HttpOnly; Path=/x", None),
        (
            "https://a.a.example/",
            "__Http-a=1; Secure; HttpOnly; Domain=a.example",
            None,
        ),
        (
            "https://a.example/",
            "__Host-Http-a=1; Secure; Path=/",
            "a name with __Host-Http- needs HttpOnly",
        ),
        (
            "https://a.example/",
            "__Host-Http-a=1; Secure; HttpOnly; Path=/x",
            "needs Path=/",
        ),
        (
            "https://a.a.example/",
            "__HOST-HTTP-a=1; Secure; HttpOnly; Path=/; Domain=a.example",
            "needs no Domain",
        ),
        ("https://a.example/", "__Host-Http-a=1; Secure; HttpOnly; Path=/", None),
        ("https://a.example/", "__Secure-a=1; HttpOnly", "__Secure- needs Secure"),
        ("https://a.example/", "a=1; Partitioned; SameSite=None", "Partitioned needs"),
        ("https://a.example/", "a=1; Partitioned; SameSite=None; Secure", None),
    ],
)
def test_what_browsers_refuse(url, header, reason):
    """Prefixes, public suffixes and CHIPS, in addition to RFC 6265bis (CK-1, CK-14)."""
    refusals = list(Cookie.parse(header).refusals(url))

    if reason is None:
        assert [] == refusals
    else:
        assert reason in "; ".join(refusals)


@pytest.mark.parametrize(
    ("second", "name", "level"),
    [
        (None, "session", "good"),  # found, and no new secret was due
        ("a-handle-one" + "b" * 24, "session", "good"),  # the same one, renewed
        ("a-handle-two" + "b" * 24, "session-not-kept", "problem"),
        ("", "session-lost", "problem"),
        (500, "page-status", "problem"),
    ],
)
async def test_the_second_request(second, name, level):
    """It begins nothing again: the handle is what stays of an id."""
    methods = []

    class Page(RequestHandler):
        def post(self):
            methods.append("POST")
            if len(methods) == 1:
                self.set_cookie("shop.sess", "a-handle-one" + "a" * 24)
            elif second == 500:
                raise HTTPError(500)
            elif second == "":
                self.clear_cookie("shop.sess")
            elif second is not None:
                self.set_cookie("shop.sess", str(second))

    app = Application([("/", Page)], log_function=lambda handler: None)
    found = await findings_of(app, options={"signed": False}, method="POST")

    assert level == found[name].level
    assert 2 == len(methods)
