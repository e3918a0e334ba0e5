"""`CorsMixin`: which pages of other origins may use the application, and how."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.web import Application, ErrorHandler, HTTPError, RequestHandler
from tornado.websocket import WebSocketHandler, websocket_connect

from tornado_compas_session import (
    AppError,
    MemorySessionStore,
    SessionMixin,
    StoreUnavailable,
    session_settings,
)
from tornado_compas_session.compas.apperror import AppErrorMixin
from tornado_compas_session.compas.cors import CorsMixin
from tornado_compas_session.origins import Origins

LISTED = "https://app.example.com"
EVIL = "https://evil.example"


class Echo(CorsMixin, AppErrorMixin, RequestHandler):
    def get(self):
        self.write("hello")

    def put(self):
        self.write("put")

    def delete(self):
        raise HTTPError(403)


class Failing(CorsMixin, RequestHandler):
    def get(self, status):
        if status == "304":
            self.set_status(304)
        elif status == "flush":
            self.write("first")
            self.flush()
        else:
            raise HTTPError(int(status))


class OwnVary(CorsMixin, RequestHandler):
    def get(self):
        for value in self.get_query_arguments("set"):
            self.set_header("Vary", value)
        for value in self.get_query_arguments("add"):
            self.add_header("Vary", value)


class Eager(CorsMixin, RequestHandler):
    """Wants more headers, remembers preflights shortly, and counts its visits."""

    cors_allow_headers = (*CorsMixin.cors_allow_headers, "Authorization")
    cors_max_age = 60
    visits = 0

    async def prepare(self):
        await super().prepare()
        if not self._finished:
            type(self).visits += 1

    def options(self):
        self.write("my own")


class Socket(CorsMixin, WebSocketHandler):
    def open(self):
        self.write_message("welcome")


class NotThere(CorsMixin, ErrorHandler):  # type: ignore[misc]  # sync prepare below
    pass


@pytest.fixture
def settings():
    return {
        "compas_session_origins": Origins((LISTED, "https://other.example.com:8443"))
    }


@pytest.fixture
def app(settings):
    return Application(
        [
            ("/", Echo),
            ("/fail/(.*)", Failing),
            ("/vary", OwnVary),
            ("/eager", Eager),
            ("/socket", Socket),
        ],
        default_handler_class=NotThere,
        default_handler_args={"status_code": 404},
        compress_response=True,
        **settings,
    )


@pytest.fixture
def fetch(http_client, base_url):
    async def fetch(path="/", origin=None, **options):
        headers = HTTPHeaders(options.pop("headers", {}))
        if origin is not None:
            headers["Origin"] = origin
        return await http_client.fetch(
            base_url + path, raise_error=False, headers=headers, **options
        )

    return fetch


def preflight(method="PUT", headers=None):
    asked = {"Access-Control-Request-Method": method}
    if headers is not None:
        asked["Access-Control-Request-Headers"] = headers
    return {"method": "OPTIONS", "headers": asked}


def access_control(response):
    """The response's CORS headers."""
    names = [name for name in response.headers if name.startswith("Access-Control-")]
    return {
        name.removeprefix("Access-Control-"): response.headers[name] for name in names
    }


def vary(response):
    return {value.strip() for value in response.headers.get("Vary", "").split(",")}


ALLOWED = {
    "Allow-Origin": LISTED,
    "Allow-Credentials": "true",
    "Expose-Headers": "retry-after, x-request-id",
}


async def test_a_listed_origin_is_named_and_may_send_cookies(fetch):
    """CO-1, CO-2: the one origin, and literally true; never a star."""
    response = await fetch(origin=LISTED)

    assert (200, b"hello") == (response.code, response.body)
    assert ALLOWED == access_control(response)


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "",
        "null",
        "*",
        EVIL,
        "https://app.example.com.evil",
        "https://evil-app.example.com",
        "https://appxexample.com",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://app.example.com/",
        "HTTPS://APP.EXAMPLE.COM",
        "https://ápp.example.com",
        "http://localhost:3000",
        "https://" + "a" * 30_000,
    ],
)
async def test_any_other_origin_is_told_nothing(fetch, origin):
    """CO-1: without an exact match there is no Access-Control header at all."""
    simple = await fetch(origin=origin)
    asked = await fetch(origin=origin, **preflight())

    assert (200, {}) == (simple.code, access_control(simple))
    assert {} == access_control(asked)


@pytest.mark.parametrize("second", [LISTED, EVIL])
async def test_two_origin_headers_are_no_origin(http_server, http_port, second):
    """CO-1: a request that names two origins matches none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    lines = ["GET / HTTP/1.1", "Host: x", f"Origin: {LISTED}", f"Origin: {second}"]
    writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())
    answer = await reader.read()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"access-control" not in answer.lower()


async def test_localhost_is_allowed_in_development(app, fetch):
    """In development any port of this machine is allowed, beside the list."""
    app.settings["compas_session_origins"] = Origins((LISTED,), development=True)

    for origin in (LISTED, "http://localhost:5173", "http://127.0.0.1:8000"):
        assert origin == access_control(await fetch(origin=origin))["Allow-Origin"]
    assert {} == access_control(await fetch(origin=EVIL))


async def test_without_a_list_nobody_is_allowed(app, fetch):
    """An application that was told nothing about origins allows none."""
    del app.settings["compas_session_origins"]

    assert {} == access_control(await fetch(origin=LISTED))
    assert {} == access_control(await fetch(origin=LISTED, **preflight()))


@pytest.mark.parametrize("origin", [None, LISTED, EVIL])
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/fail/flush", 200),
        ("/fail/304", 304),
        ("/fail/403", 403),
        ("/fail/500", 500),
        ("/fail/503", 503),
        ("/absent", 404),
    ],
)
async def test_headers_survive_errors(fetch, origin, path, status):
    """CO-3, CO-5: the page sees the status, and caches keep origins apart."""
    response = await fetch(path, origin=origin)

    assert status == response.code
    assert "Origin" in vary(response)
    assert (ALLOWED if origin == LISTED else {}) == access_control(response)


async def test_a_wrong_method_keeps_the_headers(fetch):
    """CO-3: the 405 is made before the handler does anything."""
    response = await fetch(origin=LISTED, method="PATCH", body="")

    assert 405 == response.code
    assert ALLOWED == access_control(response)
    assert {"Origin"} <= vary(response)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"Origin"}),
        ("?set=Accept", {"Accept", "Origin"}),
        ("?add=Accept&add=Cookie", {"Accept", "Cookie", "Origin"}),
        ("?set=Accept,%20ORIGIN", {"Accept", "ORIGIN"}),
        ("?set=*", {"*"}),
    ],
)
async def test_vary_is_added_to_the_handlers_own(fetch, query, expected):
    """T36: whatever the handler says there, Origin is said too, and once."""
    response = await fetch("/vary" + query)

    # Tornado's compression adds its own.
    assert expected | {"Accept-Encoding"} == vary(response)


async def test_a_preflight_is_answered_in_full(fetch):
    """CO-4, CO-8: 204 with explicit lists, and not remembered for longer than 2 h."""
    headers = "content-type,X-Requested-With, x-xsrftoken,x-request-id"
    response = await fetch(origin=LISTED, **preflight("DELETE", headers))

    assert (204, b"") == (response.code, response.body)
    assert {
        **ALLOWED,
        "Allow-Methods": "GET, DELETE, PUT",
        "Allow-Headers": "content-type, x-request-id, x-requested-with, x-xsrftoken",
        "Max-Age": "7200",
    } == access_control(response)
    assert "Origin" in vary(response)


@pytest.mark.parametrize(
    ("origin", "method", "headers", "reason"),
    [
        (EVIL, "PUT", None, "origin 'https://evil.example' is not in CORS_URL"),
        (LISTED, "PATCH", None, "method 'PATCH' is not among"),
        (LISTED, "put", None, "method 'put' is not among"),
        (LISTED, "*", None, "method '*' is not among"),
        (LISTED, "PUT", "authorization, content-type", "headers ['authorization'] are"),
        (LISTED, "PUT", "*", "headers ['*'] are"),
    ],
)
async def test_a_refused_preflight_says_nothing(
    fetch, caplog, origin, method, headers, reason
):
    """CO-4: 204 without any Access-Control header; the log knows the reason."""
    with caplog.at_level(logging.DEBUG, "tornado_compas_session"):
        response = await fetch(origin=origin, **preflight(method, headers))

    assert (204, {}) == (response.code, access_control(response))
    [record] = [r for r in caplog.records if r.name == "tornado_compas_session"]
    assert logging.DEBUG == record.levelno
    assert reason in record.getMessage()


async def test_a_refused_preflight_is_a_warning_in_development(app, fetch, caplog):
    """The browser tells its user little; whoever develops reads the reason."""
    app.settings["compas_session_origins"] = Origins(development=True)
    await fetch(origin=EVIL, **preflight())

    [record] = [r for r in caplog.records if r.name == "tornado_compas_session"]
    assert (logging.WARNING, True) == (
        record.levelno,
        "CORS_URL" in record.getMessage(),
    )


async def test_a_preflight_stops_before_the_handler(fetch):
    """CO-4: `prepare` of the handler goes no further, its `options` is not called."""
    asked = preflight("GET", "authorization")
    before = Eager.visits
    response = await fetch("/eager", origin=LISTED, **asked)

    assert (204, b"", before) == (response.code, response.body, Eager.visits)
    assert "60" == access_control(response)["Max-Age"]
    assert access_control(response)["Allow-Headers"].endswith(", authorization")


async def test_options_that_are_no_preflight_belong_to_the_handler(fetch):
    """Without both headers of a preflight it is a request like any other."""
    own = await fetch("/eager", origin=LISTED, method="OPTIONS")
    none = await fetch("/", method="OPTIONS")

    assert (200, b"my own") == (own.code, own.body)
    assert 405 == none.code


async def test_private_networks_are_not_opened(fetch):
    """CO-8: the permission to reach private networks is never given."""
    asked = preflight()
    asked["headers"]["Access-Control-Request-Private-Network"] = "true"
    response = await fetch(origin=LISTED, **asked)

    assert "Allow-Private-Network" not in access_control(response)


class TestWebSocket:
    """WS-1: a page opens a WebSocket if it is of the same or of a listed origin."""

    @pytest.fixture
    def connect(self, http_server, http_port):
        async def connect(origin):
            url = f"ws://localhost:{http_port}/socket"
            headers = {} if origin is None else {"Origin": origin}
            connection = await websocket_connect(HTTPRequest(url, headers=headers))
            message = await connection.read_message()
            connection.close()
            return message

        return connect

    async def test_welcome(self, connect, http_port):
        """No page at all, the same origin, a listed origin."""
        for origin in (None, f"http://localhost:{http_port}", LISTED):
            assert "welcome" == await connect(origin)

    @pytest.mark.parametrize("origin", [EVIL, "null", "https://app.example.com.evil"])
    async def test_not_welcome(self, connect, origin):
        """Any other origin gets a 403."""
        with pytest.raises(HTTPClientError) as caught:
            await connect(origin)

        response = caught.value.response
        assert response is not None
        assert (403, {"Origin", "Accept-Encoding"}) == (response.code, vary(response))


class Visit(SessionMixin, CorsMixin, AppErrorMixin, RequestHandler):
    def get(self):
        self.write({"visits": self.session.get("visits", 0)})

    def post(self):
        self.session["visits"] = self.session.get("visits", 0) + 1

    def put(self):
        self.session["visits"] = 100
        raise AppError.server_error()


class FailingStore(MemorySessionStore):
    asked = 0
    failing = False
    forgetful = False

    async def load(self, handle, **options):
        self.asked += 1
        if self.failing:
            raise StoreUnavailable
        return await super().load(handle, **options)

    async def save(self, handle, epoch, change, **options):
        if self.forgetful:
            return None
        return await super().save(handle, epoch, change, **options)


class TestWithSessions:
    """The mixins in the order that the documentation shows, without `get_app`."""

    @pytest.fixture
    def store(self):
        return FailingStore()

    @pytest.fixture
    def app(self, store, monkeypatch):
        monkeypatch.setenv("CORS_URL", f" {LISTED} , https://other.example.com")
        return Application([("/visit", Visit)], **session_settings(store=store))

    async def test_the_list_is_that_of_the_environment(self, fetch):
        """CORS_URL, trimmed, is what is allowed; both Vary are there."""
        ours = await fetch("/visit", origin=LISTED, method="POST", body="")
        evil = await fetch("/visit", origin=EVIL)

        assert LISTED == access_control(ours)["Allow-Origin"]
        assert {"Origin", "Cookie"} == vary(ours)
        assert {} == access_control(evil)

    async def test_a_preflight_does_no_session_work(self, fetch, store):
        """CO-4: no query, no cookie, though one came with it and the store fails."""
        cookie = await session_cookie(fetch)
        store.failing = True
        asked = preflight("POST", "content-type")
        asked["headers"] |= cookie
        response = await fetch("/visit", origin=LISTED, **asked)

        assert (204, 0) == (response.code, store.asked)
        assert "Set-Cookie" not in response.headers
        assert "GET, POST, PUT" == access_control(response)["Allow-Methods"]

    @pytest.mark.parametrize(
        ("trouble", "method", "status", "key"),
        [
            ("failing", "GET", 503, "error.session.unavailable"),
            ("forgetful", "POST", 409, "error.session.gone"),
            ("none", "PUT", 500, "error.server.internal"),
        ],
    )
    async def test_errors_can_be_read(self, fetch, store, trouble, method, status, key):
        """CO-5: also where the response was held back, and another leaves instead."""
        cookie = await session_cookie(fetch)
        setattr(store, trouble, True)
        body = None if method == "GET" else ""
        response = await fetch(
            "/visit", origin=LISTED, method=method, headers=cookie, body=body
        )

        assert status == response.code
        assert key == json.loads(response.body)["key"]
        assert LISTED == access_control(response)["Allow-Origin"]
        assert "Origin" in vary(response)


async def session_cookie(fetch):
    response = await fetch("/visit", origin=LISTED, method="POST", body="")
    return {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
