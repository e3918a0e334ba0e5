"""`install`: what `get_app` adds, for an application that is there already."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tornado.web import Application, RequestHandler

from tests.factories import KEY, PRODUCTION, Browser, make_app, serve
from tornado_compas_session import (
    AppError,
    MemorySessionStore,
    SessionMixin,
    SettingsError,
    get_app,
    install,
    session_settings,
)

LISTED = "https://app.example.com"
MINE = "a secret of the application's own, for its own cookies"
NEWER = "and one that is newer, for the same cookies"


class Plain(RequestHandler):
    """A handler that knows nothing of the library."""

    def get(self):
        self.write("plain")

    def post(self):
        raise AppError.validation_error("error.nope")


class Visit(SessionMixin, RequestHandler):
    """Counts in the session, and remembers a name in a signed cookie of its own."""

    def get(self):
        name = self.get_signed_cookie("name", min_version=2) or b""
        self.write({"visits": self.session.get("visits", 0), "name": name.decode()})

    def post(self):
        self.session["visits"] = self.session.get("visits", 0) + 1
        self.set_signed_cookie("name", "ada")


class Shop(Application):
    """An application of somebody's own making."""

    def __init__(self, **settings: Any) -> None:
        self.served: list[type] = []
        super().__init__([("/plain", Plain), ("/visit", Visit)], **settings)

    def get_handler_delegate(self, request, target_class, *args, **kwargs):
        self.served.append(target_class)
        return super().get_handler_delegate(request, target_class, *args, **kwargs)

    def log_request(self, handler):
        """No access log."""


def installed(app: Application | None = None, **options: Any) -> Application:
    environ = {**PRODUCTION, "CORS_URL": LISTED}
    options = {"store": MemorySessionStore(), "secure": False, **options}
    return install(app or Shop(), environ=environ, **options)


async def test_a_subclass_gets_all_that_get_app_adds():
    """CORS, errors and a 404 as JSON, request ids, /_health and sessions."""
    with serve(installed(headers={"X-Mine": "yes"})) as url:
        browser = Browser(url)
        browser.headers = {"Origin": LISTED}
        plain, error = await browser.get("/plain"), await browser.post("/plain")
        absent, health = await browser.get("/absent"), await browser.get("/_health")
        await browser.post("/visit")
        visit = await browser.get("/visit")

    assert LISTED == plain.headers["Access-Control-Allow-Origin"]
    assert "yes" == plain.headers["X-Mine"]
    assert "X-Request-Id" in plain.headers
    assert (400, "error.nope") == (error.code, json.loads(error.body)["key"])
    assert "error.server.notFound" == json.loads(absent.body)["key"]
    assert (200, b"") == (health.code, health.body)
    assert {"visits": 1, "name": "ada"} == json.loads(visit.body)


async def test_its_own_overrides_take_part():
    """What a subclass does with each handler it still does."""
    app = Shop()
    with serve(installed(app)) as url:
        await Browser(url).get("/plain")

    [served] = app.served
    assert issubclass(served, Plain)


async def test_routes_that_are_added_later():
    """They come with all of it as well."""
    app = installed()
    app.add_handlers("127.0.0.1", [("/later", Plain)])
    with serve(app) as url:
        response = await Browser(url).get("/later")

    assert (200, b"plain") == (response.code, response.body)
    assert "X-Request-Id" in response.headers


async def test_what_the_application_has_set_stays():
    """Its keys, its 404, its trusted origins, and whether it asks for them."""
    own = {
        "cookie_secret": MINE,
        "trusted_origins": ["https://other.example"],
        "default_handler_class": Plain,
        "cross_origin_protection": False,
    }
    app = installed(Shop(**own))

    assert own == {name: app.settings[name] for name in own}
    assert "key_version" not in app.settings


@pytest.mark.parametrize(
    "own",
    [
        {"cookie_secret": MINE},
        {"cookie_secret": {1: MINE, 2: NEWER}, "key_version": 2},
    ],
    ids=["text", "versions"],
)
@pytest.mark.parametrize("how", ["install", "session_settings"])
async def test_cookies_of_ones_own_with_another_key(how, own):
    """The application's signed cookies are its keys', the sessions' are APP_KEYS'."""
    if how == "install":
        app = installed(Shop(**own))
    else:
        ours = session_settings(
            store=MemorySessionStore(), environ=PRODUCTION, secure=False
        )
        app = Application([("/visit", Visit)], **{**ours, **own})
    with serve(app) as url:
        browser = Browser(url)
        await browser.post("/visit")
        await browser.post("/visit")
        response = await browser.get("/visit")
        mine = browser.jar.get("name")
        browser.jar.put("gone", "name")
        without = await browser.get("/visit")

    assert {"visits": 2, "name": "ada"} == json.loads(response.body)
    assert {"visits": 2, "name": ""} == json.loads(without.body)
    # Nothing of ours can make it, so another application's keys verify it.
    theirs = make_app([("/visit", Visit)], MemorySessionStore(), tornado=own)
    ours_only = make_app([("/visit", Visit)], MemorySessionStore())
    for app, name in ((theirs, "ada"), (ours_only, "")):
        with serve(app) as url:
            browser = Browser(url)
            assert mine is not None
            browser.jar.put(mine, "name")
            assert name == json.loads((await browser.get("/visit")).body)["name"]


async def test_parts_can_be_left_out():
    """With all of them off, sessions are what remains."""
    parts = ["cors", "errors", "health", "not_found", "request_id", "cleaner"]
    app = installed(**dict[str, Any](dict.fromkeys(parts, False)))
    with serve(app) as url:
        browser = Browser(url)
        browser.headers = {"Origin": LISTED}
        answers = [
            await browser.get("/plain"),
            await browser.get("/absent"),
            await browser.get("/_health"),
        ]
        await browser.post("/visit")

    assert [200, 404, 404] == [answer.code for answer in answers]
    for answer in answers:
        assert not {"X-Request-Id", "Access-Control-Allow-Origin"} & {*answer.headers}
        assert not answer.body.startswith(b"{")
    assert app.settings["compas_session_cleaner"] is None
    assert "counter.sess" in browser.jar.names()


async def test_sessions_alone_need_no_install():
    """Their settings are enough, whenever they come, and the application's win."""
    app = Shop(cookie_secret=MINE)
    ours = session_settings(store=MemorySessionStore())
    app.settings.update({**ours, **app.settings})
    with serve(app) as url:
        browser = Browser(url)
        await browser.post("/visit")
        response = await browser.get("/visit")

    assert {"visits": 1, "name": "ada"} == json.loads(response.body)
    assert "X-Request-Id" not in response.headers
    assert MINE == app.settings["cookie_secret"]


@pytest.mark.parametrize("made", ["get_app", "install", "session_settings"])
def test_an_application_has_sessions_once(made):
    """Whoever installs twice has two ideas of one application."""
    store = MemorySessionStore()
    app = {
        "get_app": lambda: get_app([], store=store),
        "install": lambda: install(Shop(), store=store),
        "session_settings": lambda: Shop(**session_settings(store=store)),
    }[made]()
    with pytest.raises(SettingsError, match="this application has sessions already"):
        install(app, store=store)


def test_a_wrong_option_changes_nothing():
    """The application is as it was, so that it is not half of each."""
    app = Shop()
    before = dict(app.settings)
    for options in ({"max_age": 0}, {"max_ages": 60}, {"store": "postgresql://x"}):
        with pytest.raises((SettingsError, TypeError)):
            install(app, **options)

    assert before == app.settings
    assert "get_handler_delegate" not in vars(app)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("helth", "did you mean health?"),
        ("maxAge", "did you mean max_age?"),
        ("cookie_secret", "install(Application(routes, cookie_secret=…), store=store)"),
        ("login_url", "login_url is no option of sessions; there are key, "),
    ],
)
def test_an_unknown_option_is_named(name, says):
    """A misspelt one, one of a peer's, and those that are Tornado's."""
    with pytest.raises((SettingsError, TypeError)) as caught:
        install(Shop(), **dict[str, Any]({name: KEY}))

    assert says in str(caught.value)
    assert KEY not in str(caught.value)
