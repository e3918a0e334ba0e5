"""`get_app`: CORS, JSON errors, a JSON 404, a health route and request ids for all."""

from __future__ import annotations

import inspect
import json
import logging
import re
from typing import Any, ClassVar

import pytest
import tornado.auth
import tornado.httpclient
import tornado.web
import tornado.websocket
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.netutil import bind_sockets
from tornado.routing import HostMatches, URLSpec
from tornado.web import (
    HTTPError,
    RequestHandler,
    StaticFileHandler,
    stream_request_body,
)
from tornado.websocket import WebSocketHandler, websocket_connect

from tornado_compas_session import (
    AppError,
    AppErrorMixin,
    CorsMixin,
    MemorySessionStore,
    SessionMixin,
    SettingsError,
    StoreUnavailable,
    get_app,
)

LISTED = "https://app.example.com"
EVIL = "https://evil.example"


class TroubledStore(MemorySessionStore):
    """Fails on request, and counts how often it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = 0
        self.failing = False
        self.problem = None

    def _ask(self):
        self.asked += 1
        if self.failing:
            raise StoreUnavailable("no route to hunter2")

    async def load(self, *args: Any, **options: Any) -> Any:
        self._ask()
        return await super().load(*args, **options)

    async def create(self, *args: Any, **options: Any) -> Any:
        self._ask()
        return await super().create(*args, **options)

    async def save(self, *args: Any, **options: Any) -> Any:
        self._ask()
        return await super().save(*args, **options)


class Plain(RequestHandler):
    """A handler that knows nothing of the library."""

    def get(self, *args):
        self.write(type(self).__name__)

    def post(self):
        raise AppError.validation_error("error.nope", {"why": "so"})

    def put(self):
        raise KeyError("hunter2")


class Visit(SessionMixin, RequestHandler):
    def get(self):
        self.write({"visits": self.session.get("visits", 0)})

    def post(self):
        self.session["visits"] = self.session.get("visits", 0) + 1


class Particular(RequestHandler):
    """Has its own ideas of everything."""

    logged = 0

    def set_default_headers(self):
        self.set_header("X-Frame-Options", "SAMEORIGIN")
        self.set_header("X-Mine", "yes")

    async def prepare(self):
        self.set_header("X-Prepared", "yes")

    def flush(self, include_footers=False):
        self.set_header("X-Flushed", "yes")
        return super().flush(include_footers)

    def get(self):
        raise KeyError

    def write_error(self, status_code, **kwargs):
        self.finish(f"my own {status_code}")

    def log_exception(self, typ, value, tb):
        Particular.logged += 1


class Guarded(RequestHandler):
    """Lets nobody in, and remembers who came."""

    visits = 0

    def prepare(self):
        Guarded.visits += 1
        raise HTTPError(401)

    def post(self):
        """Never reached."""


class Mixed(CorsMixin, AppErrorMixin, RequestHandler):
    cors_allow_headers = ("x-special",)

    def get(self):
        self.write(type(self).__name__)


class Socket(WebSocketHandler):
    def open(self):
        self.write_message("welcome")


class ClosedSocket(WebSocketHandler):
    def check_origin(self, origin):
        return False


@stream_request_body
class Upload(RequestHandler):
    received = b""

    def data_received(self, chunk):
        self.received += chunk

    def put(self):
        self.write(str(len(self.received)))


ROUTES = [
    ("/plain", Plain),
    URLSpec("/named/(.*)", Plain, name="named"),
    ("/by-name", f"{__name__}.Plain"),
    (HostMatches("nested.example"), [("/nested", Plain)]),
    ("/visit", Visit),
    ("/particular", Particular),
    ("/guarded", Guarded),
    ("/mixed", Mixed),
    ("/socket", Socket),
    ("/closed-socket", ClosedSocket),
    ("/upload", Upload),
]


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
def options():
    return {}


@pytest.fixture
def app(monkeypatch, store, options):
    monkeypatch.setenv("CORS_URL", LISTED)
    monkeypatch.setenv("APP_ENV", "production")
    return get_app(ROUTES, **{"store": store, "secure": False, **options})


@pytest.fixture
def fetch(http_client, base_url):
    async def fetch(path, method="GET", *, origin=LISTED, headers=None, **options):
        all_headers = HTTPHeaders(headers or {})
        if origin is not None:
            all_headers["Origin"] = origin
        if method in ("POST", "PUT", "PATCH"):
            options.setdefault("body", "")
        return await http_client.fetch(
            base_url + path,
            method=method,
            headers=all_headers,
            raise_error=False,
            **options,
        )

    return fetch


def cookie_of(response):
    """The Cookie header with which a browser comes back."""
    cookies = response.headers.get_list("Set-Cookie")
    return {"Cookie": "; ".join(cookie.partition(";")[0] for cookie in cookies)}


def assert_dressed(response):
    assert LISTED == response.headers["Access-Control-Allow-Origin"]
    assert "Origin" in response.headers["Vary"]
    assert re.fullmatch(r"[0-9a-f]{24}", response.headers["X-Request-Id"])


# -- every handler ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/plain", "/named/x", "/by-name", "/mixed", "/visit"])
async def test_every_handler_has_it_all(fetch, path):
    """A handler need not name the mixins, however its route is written."""
    response = await fetch(path)

    assert 200 == response.code
    assert_dressed(response)


async def test_routes_by_host_and_added_later(app, fetch):
    """Nested routes, and those that come after the application was made."""
    app.add_handlers("later.example", [("/later", Plain)])
    nested = await fetch("/nested", headers={"Host": "nested.example"})
    later = await fetch("/later", headers={"Host": "later.example"})

    for response in (nested, later):
        assert 200 == response.code
        assert_dressed(response)
    assert "/named/7" == app.reverse_url("named", 7)


async def test_errors_are_json(fetch):
    """What the application raises, and what it did not mean to raise."""
    meant, bug = await fetch("/plain", "POST"), await fetch("/plain", "PUT")

    for response in (meant, bug):
        assert_dressed(response)
    assert 400 == meant.code
    assert {"key": "error.nope", "message": "error.nope", "info": {"why": "so"}} == (
        json.loads(meant.body)
    )
    assert 500 == bug.code
    assert b"hunter2" not in bug.body
    assert "error.server.internal" == json.loads(bug.body)["key"]


async def test_a_handler_keeps_its_name(fetch):
    """Logs, templates and tracebacks show the class that the developer wrote."""
    assert b"Plain" == (await fetch("/plain")).body
    assert b"Mixed" == (await fetch("/mixed")).body


class Registered(RequestHandler):
    """Keeps a list of its subclasses, each of which has to give a tag."""

    tags: ClassVar[list[str]] = []

    def __init_subclass__(cls, *, tag: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registered.tags.append(tag)


class Tagged(Registered, tag="tagged"):
    def get(self):
        self.write(type(self).__name__)


async def test_no_subclass_is_announced(app, fetch):
    """A handler's `__init_subclass__` hears of the classes in the program, once."""
    app.add_handlers(".*", [("/tagged", Tagged)])
    for _ in range(2):
        response = await fetch("/tagged")

        assert (200, b"Tagged") == (response.code, response.body)
        assert_dressed(response)
    assert ["tagged"] == Registered.tags


async def test_what_a_handler_defines_itself_wins(fetch):
    """Its error page, its log, its headers and its hooks all take part."""
    Particular.logged = 0
    response = await fetch("/particular")

    assert (500, b"my own 500") == (response.code, response.body)
    assert 1 == Particular.logged
    assert "yes" == response.headers["X-Mine"] == response.headers["X-Flushed"]
    assert_dressed(response)


async def test_a_mixin_that_a_handler_names_is_left_as_it_is(fetch):
    """A handler that configures a mixin gets what it configured."""
    asked = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "x-special",
    }
    response = await fetch("/mixed", "OPTIONS", headers=asked)

    assert "x-special" == response.headers["Access-Control-Allow-Headers"]


async def test_a_streamed_upload_still_streams(fetch):
    """`stream_request_body` is not lost on the way."""
    response = await fetch("/upload", "PUT", body=b"x" * 300_000)

    assert b"300000" == response.body
    assert_dressed(response)


# -- sessions --------------------------------------------------------------------------


async def test_sessions_work(fetch, store):
    """The session's cookie comes back, and its value with it."""
    first = await fetch("/visit", "POST")
    second = await fetch("/visit", headers=cookie_of(first))

    assert {"visits": 1} == json.loads(second.body)
    assert {"Origin", "Cookie"} == set(second.headers["Vary"].split(", "))
    assert 1 == len(store)


async def test_a_preflight_asks_no_store(fetch, store):
    """CO-4: even with a valid cookie and a store that fails, it is a 204."""
    headers = cookie_of(await fetch("/visit", "POST"))
    store.asked, store.failing = 0, True
    headers["Access-Control-Request-Method"] = "POST"
    response = await fetch("/visit", "OPTIONS", headers=headers)

    assert (204, 0) == (response.code, store.asked)
    assert "Set-Cookie" not in response.headers
    assert "GET, POST" == response.headers["Access-Control-Allow-Methods"]


async def test_a_preflight_does_not_reach_the_handler(fetch):
    """CO-4: it carries no credentials, so what asks for them must not see it."""
    Guarded.visits = 0
    headers = {"Access-Control-Request-Method": "POST"}
    preflight = await fetch("/guarded", "OPTIONS", headers=headers)
    post = await fetch("/guarded", "POST")

    assert (204, 401, 1) == (preflight.code, post.code, Guarded.visits)
    assert_dressed(post)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_store_that_fails_is_a_503_that_the_page_can_read(fetch, store, method):
    """CO-5: key, Retry-After and the CORS headers are there, whichever call failed."""
    headers = cookie_of(await fetch("/visit", "POST")) if method == "GET" else {}
    store.failing = True
    response = await fetch("/visit", method, headers=headers)

    assert (503, "2") == (response.code, response.headers["Retry-After"])
    assert "error.session.unavailable" == json.loads(response.body)["key"]
    assert b"hunter2" not in response.body
    assert "Set-Cookie" not in response.headers
    assert_dressed(response)


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain"]
)
async def test_a_forged_post_changes_nothing(fetch, store, content_type):
    """CO-6: a form on another site, with the visitor's cookie, is a 403."""
    cookie = cookie_of(await fetch("/visit", "POST"))
    forged = {**cookie, "Content-Type": content_type, "Sec-Fetch-Site": "cross-site"}
    response = await fetch("/visit", "POST", origin=EVIL, headers=forged)

    assert 403 == response.code
    assert {"visits": 1} == json.loads((await fetch("/visit", headers=cookie)).body)


@pytest.mark.parametrize(
    ("origin", "site", "status"),
    [
        (None, None, 200),  # no browser
        (None, "none", 200),
        ("http://localhost", "same-origin", 200),
        (EVIL, "none", 200),
        ("http://{host}", None, 200),  # a browser from before Sec-Fetch-Site
        (LISTED, None, 200),
        (LISTED, "same-site", 200),
        (LISTED, "cross-site", 200),
        (EVIL, None, 403),
        (EVIL, "same-site", 403),
        (EVIL, "cross-site", 403),
        ("null", None, 403),
        ("null", "cross-site", 403),
        ("http://evil{host}", None, 403),
        ("http://{host}", "same-site", 403),
        (None, "cross-site", 403),
    ],
)
async def test_who_may_post(fetch, base_url, origin, site, status):
    """CO-6: the same on every Tornado, though only the newer ones do it themselves."""
    origin = origin and origin.format(host=base_url.partition("://")[2])
    headers = {} if site is None else {"Sec-Fetch-Site": site}
    post = await fetch("/visit", "POST", origin=origin, headers=headers)
    get = await fetch("/visit", origin=origin, headers=headers)

    assert (status, 200) == (post.code, get.code)


# -- what it brings --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
async def test_the_404_is_json(fetch, store, method):
    """An address that is not there says so to any method, from any origin."""
    response = await fetch("/absent", method)
    evil = await fetch("/absent", method, origin=EVIL)

    assert (404, 404) == (response.code, evil.code)
    assert_dressed(response)
    if method != "HEAD":
        assert "error.server.notFound" == json.loads(response.body)["key"]
    assert 0 == store.asked


async def test_a_preflight_to_nowhere_lets_the_404_be_seen(fetch):
    """The page reads a 404, and not the browser's words about a failed preflight."""
    headers = {"Access-Control-Request-Method": "DELETE"}
    response = await fetch("/absent", "OPTIONS", headers=headers)

    assert 204 == response.code
    assert "DELETE" in response.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health_asks_nobody(fetch, store, method):
    """200 and nothing else, also while the store fails."""
    store.failing = True
    response = await fetch("/_health", method)

    assert (200, b"", 0) == (response.code, response.body, store.asked)


async def test_health_logs_what_ails_the_store(fetch, store, caplog):
    """The process is healthy; whoever reads its log learns why sessions are not."""
    store.problem = StoreUnavailable("no route to the database")
    response = await fetch("/_health")

    assert (200, b"") == (response.code, response.body)
    [record] = [r for r in caplog.records if r.name == "tornado_compas_session"]
    assert logging.WARNING == record.levelno
    assert "no route to the database" in record.getMessage()


@pytest.mark.parametrize("given", ["a", "A-Za.z_0-9", "x" * 128])
async def test_a_request_id_is_taken_over(fetch, given):
    """What a proxy has named keeps its name."""
    response = await fetch("/plain", headers={"X-Request-Id": given})

    assert given == response.headers["X-Request-Id"]


@pytest.mark.parametrize("given", ["", "a b", "é", "x" * 129, "<script>", "a,b"])
async def test_a_malformed_request_id_is_replaced(fetch, given):
    """What could trouble a log is not repeated."""
    response = await fetch("/plain", headers={"X-Request-Id": given})

    assert re.fullmatch(r"[0-9a-f]{24}", response.headers["X-Request-Id"])


async def test_the_log_names_the_request(fetch, caplog):
    """The lines of one request can be found by its id."""
    with caplog.at_level(logging.INFO):
        await fetch("/plain", "POST", headers={"X-Request-Id": "find-me"})

    lines = [line for line in caplog.messages if "[find-me]" in line]
    assert ["error.nope" in line for line in lines] == [True, False]


async def test_websockets(http_server, http_port):
    """A WebSocket opens for its own and for listed origins; its own check wins."""
    base = f"ws://127.0.0.1:{http_port}"

    async def status(path, origin):
        request = tornado.httpclient.HTTPRequest(
            base + path, headers={"Origin": origin}
        )
        try:
            (await websocket_connect(request)).close()
        except tornado.httpclient.HTTPClientError as error:
            return error.code
        return 101

    assert 101 == await status("/socket", LISTED)
    assert 101 == await status("/socket", f"http://127.0.0.1:{http_port}")
    assert 403 == await status("/socket", EVIL)
    assert 403 == await status("/closed-socket", LISTED)


class TestStaticFiles:
    """Files are served as by Tornado, with the headers that go with everything."""

    @pytest.fixture
    def options(self, tmp_path):
        (tmp_path / "style.css").write_text("body {}")
        return {"static_path": str(tmp_path)}

    async def test_a_file(self, app, fetch):
        """Body and type are the file's, and a version is found in its address."""
        response = await fetch("/static/style.css")

        assert (200, b"body {}") == (response.code, response.body)
        assert "text/css" == response.headers["Content-Type"]
        assert_dressed(response)
        url = StaticFileHandler.make_static_url(app.settings, "style.css")
        assert "max-age" in (await fetch(url)).headers["Cache-Control"]

    async def test_unchanged_and_absent(self, fetch):
        """The 304 and the 404."""
        etag = (await fetch("/static/style.css")).headers["Etag"]
        same = await fetch("/static/style.css", headers={"If-None-Match": etag})
        none = await fetch("/static/none.css")

        assert (304, 404) == (same.code, none.code)
        assert "Origin" in same.headers["Vary"]
        assert "error.server.notFound" == json.loads(none.body)["key"]


class TestHeaders:
    """`headers` go out with everything."""

    @pytest.fixture
    def options(self):
        return {
            "headers": {
                "Server": None,
                "X-Frame-Options": "DENY",
                "Strict-Transport-Security": "max-age=31536000",
            }
        }

    @pytest.mark.parametrize("path", ["/plain", "/absent", "/_health"])
    async def test_everywhere(self, fetch, path):
        """Set, and None takes one away; HSTS is not for plain http."""
        headers = (await fetch(path)).headers

        assert "DENY" == headers["X-Frame-Options"]
        assert "Server" not in headers
        assert "Strict-Transport-Security" not in headers

    async def test_the_handlers_own_wins(self, fetch):
        """A handler's `set_default_headers` has the last word."""
        headers = (await fetch("/particular")).headers

        assert "SAMEORIGIN" == headers["X-Frame-Options"]

    async def test_hsts_over_https(self, app, http_client):
        """Behind a proxy that speaks https, HSTS is sent."""
        [socket] = bind_sockets(0, "127.0.0.1")
        server = HTTPServer(app, xheaders=True)
        server.add_socket(socket)
        url = f"http://127.0.0.1:{socket.getsockname()[1]}/plain"
        response = await http_client.fetch(url, headers={"X-Scheme": "https"})
        server.stop()
        await server.close_all_connections()

        assert "max-age=31536000" == response.headers["Strict-Transport-Security"]


class TestSwitchedOff:
    """Each part can be left out."""

    @pytest.fixture(params=["cors", "errors", "health", "not_found", "request_id"])
    def off(self, request):
        return request.param

    @pytest.fixture
    def options(self, off):
        return {off: False}

    async def test_only_that_part_is_missing(self, fetch, off):
        """What is switched off is Tornado's own; the rest is as before."""
        plain, health, absent, error = [
            await fetch("/plain"),
            await fetch("/_health"),
            await fetch("/absent"),
            await fetch("/plain", "POST"),
        ]

        found = {
            "cors": "Access-Control-Allow-Origin" in plain.headers,
            "errors": error.body.startswith(b'{"key"'),
            "health": health.code == 200,
            "not_found": absent.body.startswith(b'{"key"'),
            "request_id": "X-Request-Id" in plain.headers,
        }
        assert {part: part != off for part in found} == found
        assert 404 == absent.code


# -- options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_ages", "max_age"),
        ("maxAge", "max_age"),
        ("cookie_name", "key"),
        ("helth", "health"),
        ("Store", "store"),
    ],
)
def test_a_misspelt_option_is_named(name, near):
    """It is an error that tells what was meant."""
    with pytest.raises(TypeError, match=f"{name} is no option .*did you mean {near}"):
        get_app([], **dict[str, Any]({name: 1}))


def test_an_application_may_have_settings_of_its_own():
    """As with Tornado's `Application`: what is like no option is a setting."""
    assert "postgresql://" == get_app([], dsn="postgresql://").settings["dsn"]


@pytest.mark.parametrize("name", ["cookie_secret", "key_version"])
def test_keys_of_ones_own_are_not_taken_in_silence(name):
    """They would replace APP_KEYS for the application's cookies; it says what to do."""
    with pytest.raises(TypeError) as caught:
        get_app([], **dict[str, Any]({name: "hunter2"}))

    assert f"{name} is Tornado's; sessions are signed with APP_KEYS" in str(
        caught.value
    )
    assert "install(Application(routes, cookie_secret=…), store=store)" in str(
        caught.value
    )
    assert "hunter2" not in str(caught.value)


def test_a_wrong_value_is_refused_at_the_start():
    """Options of sessions are checked as by `session_settings`."""
    with pytest.raises(SettingsError, match="max_age"):
        get_app([], max_age="soon")


def test_options_and_settings_find_their_place():
    """Sessions get theirs, Tornado gets its own, and those have the last word."""
    app = get_app(
        [],
        store=MemorySessionStore(),
        max_age=60,
        login_url="/login",
        trusted_origins=[EVIL],
        default_handler_class=Plain,
        cross_origin_protection=False,
    )

    assert 60 == app.settings["compas_session_manager"].options.max_age
    assert "/login" == app.settings["login_url"]
    assert [EVIL] == app.settings["trusted_origins"]
    assert Plain is app.settings["default_handler_class"]
    assert not app.settings["cross_origin_protection"]
    assert get_app([]).settings["cross_origin_protection"]


def test_tornados_settings_are_known():
    """Every setting that Tornado reads is one that `get_app` takes."""
    modules = (tornado.web, tornado.websocket, tornado.auth)
    source = "".join(inspect.getsource(module) for module in modules)
    reads = r'(?:require_setting\(|\bself\.settings(?:\.get\(|\[))"(\w+)"'
    names = set(re.findall(reads, source)) - {"cookie_secret", "key_version"}

    assert {"login_url", "static_path", "facebook_secret"} < names
    for name in names:
        assert get_app([], **dict[str, Any]({name: None})) is not None
