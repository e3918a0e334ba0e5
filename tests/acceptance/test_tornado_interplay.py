"""Tornado's own features beside sessions: each as its documentation has it."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest
from tornado.web import Application, RequestHandler, StaticFileHandler, authenticated

from tests.factories import (
    KEY,
    NAME,
    NEWER_KEY,
    Browser,
    CountingStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin


class Handler(SessionMixin, RequestHandler):
    pass


class SignIn(Handler):
    def get(self):
        self.write("sign in, please")

    def post(self):
        before = self.current_user
        self.session.regenerate()
        self.session["user_id"] = 7
        self.write({"before": before, "after": self.current_user})


class SignOut(Handler):
    def post(self):
        before = self.current_user
        self.session = None
        self.write({"before": before, "after": self.current_user})


class Private(Handler):
    @authenticated
    def get(self):
        self.write({"user": self.current_user})

    @authenticated
    def post(self):
        self.write("posted")


class Form(Handler):
    def get(self):
        self.write({"token": self.xsrf_token.decode(), "n": self.session.get("n", 0)})

    def post(self):
        self.session["n"] = self.session.get("n", 0) + 1


class Signed(Handler):
    def get(self):
        self.session["n"] = 1
        self.set_signed_cookie("own", "value")
        self.set_cookie("plain", "p")
        self.add_header("Set-Cookie", "by-hand=1; Path=/")
        self.set_header("Vary", "Accept")

    def post(self):
        value = self.get_signed_cookie("own", min_version=2)
        self.write({"value": value.decode() if value else None})


class NotFound(Handler):
    def prepare_page(self):
        self.session["lost"] = self.session.get("lost", 0) + 1
        self.set_status(404)
        self.write({"lost": self.session["lost"]})

    def get(self):
        self.prepare_page()


class Forgets(Handler):
    def prepare(self):
        """Does not call super()."""

    def get(self):
        self.session["n"] = 1


class OwnUser(Handler):
    def get_current_user(self):
        return self.session.get("name")

    def get(self):
        before = self.current_user
        self.session["name"] = "Ada"
        self.session.regenerate()
        self.write({"before": before, "after": self.current_user})


class AskedTooEarly(Handler):
    def initialize(self):
        assert self.current_user is None

    def get(self):
        self.write({"user": self.current_user})


ROUTES = [
    ("/sign-in", SignIn),
    ("/sign-out", SignOut),
    ("/private", Private),
    ("/form", Form),
    ("/signed", Signed),
    ("/forgets", Forgets),
    ("/own-user", OwnUser),
    ("/asked-too-early", AskedTooEarly),
]


@pytest.fixture
def store():
    return CountingStore()


@pytest.fixture
def url(io_loop, store):
    tornado = {"login_url": "/sign-in", "default_handler_class": NotFound}
    with serve(make_app(ROUTES, store, tornado=tornado)) as url:
        yield url


async def told(response):
    return json.loads(response.body)


async def test_current_user_is_that_of_the_session(url):
    """Before, during and after signing in and out, though Tornado caches it (T25)."""
    browser = Browser(url)

    assert {"before": None, "after": 7} == await told(await browser.post("/sign-in"))
    assert {"user": 7} == await told(await browser.get("/private"))
    assert {"user": 7} == await told(await browser.get("/asked-too-early"))
    assert {"before": 7, "after": None} == await told(await browser.post("/sign-out"))


async def test_get_current_user_can_be_overridden(url):
    """As with Tornado; what it returned is forgotten with a new identity."""
    browser = Browser(url)

    assert {"before": None, "after": "Ada"} == await told(
        await browser.get("/own-user")
    )


async def test_authenticated_redirects(url):
    """To the sign-in, with the page in `next`; a form gets a 403."""
    response = await Browser(url).get("/private")

    assert 302 == response.code
    assert "/sign-in?" + urlencode({"next": "/private"}) == response.headers["Location"]
    assert 403 == (await Browser(url).post("/private")).code
    assert [] == set_cookies(response, None)


@pytest.mark.parametrize("kwargs", [{}, {"httponly": True, "samesite": "Strict"}])
async def test_xsrf_cookies(io_loop, store, kwargs):
    """A form with its token is taken and one without is not; sessions are saved."""
    tornado = {"xsrf_cookies": True, "xsrf_cookie_kwargs": kwargs}
    with serve(make_app(ROUTES, store, tornado=tornado)) as url:
        browser = Browser(url)
        token = (await told(await browser.get("/form")))["token"]
        assert 403 == (await browser.post("/form")).code
        assert 0 == len(store)
        body = urlencode({"_xsrf": token})
        assert 200 == (await browser.post("/form", body=body)).code
        assert ["_xsrf", NAME] == browser.jar.names()
        assert 1 == (await told(await browser.get("/form")))["n"]


async def test_signed_cookies_of_the_application(io_loop, store):
    """`set_signed_cookie` works with the same keys, and through a rotation (T2)."""
    environ = {"APP_NAME": "counter", "APP_ENV": "development", "APP_KEYS": KEY}
    with serve(make_app(ROUTES, store, environ=environ)) as url:
        browser = Browser(url)
        await browser.get("/signed")
        assert {"value": "value"} == await told(await browser.post("/signed"))
    environ["APP_KEYS"] = f"{NEWER_KEY},{KEY}"
    with serve(make_app(ROUTES, store, environ=environ)) as url:
        browser.url = url
        assert {"value": "value"} == await told(await browser.post("/signed"))


async def test_other_cookies_and_vary_survive(url):
    """All of them leave, held or not."""
    response = await Browser(url).get("/signed")
    names = sorted(c.partition("=")[0] for c in set_cookies(response, None))

    assert ["by-hand", NAME, "own", "plain"] == names
    assert "Accept, Cookie" == response.headers["Vary"]


async def test_a_default_handler_has_a_session(url):
    """`default_handler_class`: a 404 page that counts (T29)."""
    browser = Browser(url)
    for times in (1, 2):
        response = await browser.get("/no/such/page")
        assert (404, {"lost": times}) == (response.code, await told(response))


class Files(SessionMixin, StaticFileHandler):
    def set_extra_headers(self, path):
        self.session["downloads"] = 1


async def test_static_files_send_no_session_cookie(store, io_loop, tmp_path, caplog):
    """Caches keep them for ten years (T21); a line tells why nothing was saved."""
    (tmp_path / "file.txt").write_text("here")
    app = make_app([("/(.*)", Files, {"path": str(tmp_path)})], store)
    with serve(app) as url:
        response = await Browser(url).get("/file.txt?v=1")

    assert (200, b"here") == (response.code, response.body)
    assert [] == set_cookies(response, None)
    assert 0 == len(store)
    assert "a StaticFileHandler sends no session cookie" in caplog.text


def test_the_mixin_comes_first():
    """Python itself refuses it behind RequestHandler."""
    with pytest.raises(TypeError):
        type("Wrong", (RequestHandler, SessionMixin), {})


async def test_a_forgotten_super_is_named(url, caplog):
    """`SessionNotLoaded` says which handler, and the line to add (T26)."""
    response = await Browser(url).get("/forgets")

    assert 500 == response.code
    assert "SessionNotLoaded: Forgets: the session was not loaded" in caplog.text
    assert "await super().prepare()" in caplog.text


async def test_an_application_without_sessions_is_told(io_loop, caplog):
    """The wiring is named."""
    with serve(Application([("/", Form)], log_function=lambda handler: None)) as url:
        response = await Browser(url).get("/")

    assert 500 == response.code
    assert "**session_settings(store=store)" in caplog.text
