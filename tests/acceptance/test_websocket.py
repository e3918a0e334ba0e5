"""WebSockets: the session of the handshake, saved by hand, and watched over."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest
from tornado.httpclient import HTTPRequest
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler, websocket_connect

from tests.factories import Browser, TroubledStore, make_app, serve, set_cookies
from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
    SessionError,
    SessionMixin,
)
from tornado_compas_session.core.types import SessionRecord

closed: list[object] = []
handlers: list[SessionMixin] = []


class Socket(SessionMixin, WebSocketHandler):
    def open(self):
        handlers.append(self)

    async def on_message(self, message):
        try:
            answer = await getattr(self, f"do_{message}")()
        except SessionError as error:
            answer = type(error).__name__
        await self.write_message(json.dumps(answer))

    async def do_read(self):
        return dict(self.session)

    async def do_add(self):
        self.session["n"] += 1
        await self.session.save()
        return self.session["n"]

    async def do_add_locked(self):
        async with self.session.lock():
            self.session["n"] += 1
        return self.session["n"]

    async def do_reload(self):
        await self.session.reload()
        return dict(self.session)

    async def do_regenerate(self):
        self.session.regenerate()

    async def do_start(self):
        self.session["n"] = 1

    async def do_destroy(self):
        self.session = None
        await self.session.save()

    def on_close(self):
        closed.append(self.close_code)


class Own(SessionMixin, RequestHandler):
    def get(self):
        self.write(dict(self.session))

    def post(self):
        self.session = {"n": 0}

    def put(self):
        self.session["n"] = 10
        self.session.regenerate()

    def delete(self):
        self.session = None


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
def options():
    return {"websocket_check": 0.1}


@pytest.fixture
def url(store, options, io_loop):
    closed.clear()
    handlers.clear()
    with serve(make_app([("/", Own), ("/ws", Socket)], store, **options)) as url:
        yield url


async def connect(browser):
    headers = {"Cookie": browser.jar.header()} if browser.jar.header() else {}
    return await websocket_connect(
        HTTPRequest(browser.url.replace("http", "ws") + "/ws", headers=headers)
    )


async def ask(socket, message):
    await socket.write_message(message)
    async with asyncio.timeout(30):
        answer = await socket.read_message()
    return None if answer is None else json.loads(answer)


async def ended(socket):
    """The close code, once the server has closed the socket."""
    async with asyncio.timeout(30):
        while await socket.read_message() is not None:
            pass
    socket.close()
    return socket.close_code


async def test_the_session_is_there_from_the_handshake_on(url, store):
    """Read in the handshake, which is not held: a slow save does not delay the 101."""
    browser = Browser(url)
    await browser.post()
    store.gate.clear()

    socket = await connect(browser)

    assert {"n": 0} == await ask(socket, "read")
    assert [] == socket.headers.get_list("Set-Cookie")
    store.gate.set()
    socket.close()


async def test_messages_save_and_reload(url):
    """`save()`, `lock()` and `reload()` work in messages as in requests."""
    browser = Browser(url)
    await browser.post()
    one, two = await connect(browser), await connect(browser)

    assert 1 == await ask(one, "add")
    assert {"n": 0} == await ask(two, "read")
    assert {"n": 1} == await ask(two, "reload")
    assert 2 == await ask(one, "add_locked")
    assert 3 == await ask(two, "add_locked")
    assert {"n": 3} == json.loads((await browser.get()).body)
    one.close()
    two.close()


async def test_what_needs_a_cookie_is_refused(url):
    """After the handshake no header can leave: no new session, no new id."""
    browser = Browser(url)
    visitor = await connect(browser)
    assert "ResponseAlreadySent" == await ask(visitor, "start")
    visitor.close()
    await browser.post()
    socket = await connect(browser)

    assert "ResponseAlreadySent" == await ask(socket, "regenerate")
    socket.close()


async def test_an_anonymous_socket_stays_open(url):
    """There is no session that could end."""
    socket = await connect(Browser(url))

    await asyncio.sleep(0.3)
    assert {} == await ask(socket, "read")
    socket.close()


async def test_a_session_destroyed_elsewhere_closes_the_socket(url):
    """With code 1008, within `websocket_check` seconds; others stay open."""
    browser, other = Browser(url), Browser(url)
    await browser.post()
    await other.post()
    socket, stays = await connect(browser), await connect(other)

    await browser.ask("/", "DELETE")

    assert 1008 == await ended(socket)
    assert "the session has ended" == socket.close_reason
    assert {"n": 0} == await ask(stays, "read")
    stays.close()


async def test_a_session_that_expires_closes_the_socket(io_loop):
    """By the clock of the store; an open socket does not extend a session."""
    now = [1000.0]
    store = MemorySessionStore(clock=lambda: now[0])
    routes = [("/", Own), ("/ws", Socket)]
    with serve(make_app(routes, store, websocket_check=0.1, max_age=60)) as url:
        browser = Browser(url)
        await browser.post()
        socket = await connect(browser)
        await asyncio.sleep(0.3)
        assert {"n": 0} == await ask(socket, "read")
        now[0] += 61

        assert 1008 == await ended(socket)


async def test_postgres_expiry_closes_the_socket(io_loop, database):
    """The same with the real store."""
    store = await PostgresSessionStore.connect(database)
    app = make_app([("/", Own), ("/ws", Socket)], store, websocket_check=0.1)
    with serve(app) as url:
        browser = Browser(url)
        await browser.post()
        socket = await connect(browser)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("UPDATE compas_session SET expires_at = now()")

        assert 1008 == await ended(socket)
    await store.close()


async def test_destroying_in_a_message_closes_the_socket(url, store):
    """The row is deleted at once, and the socket follows."""
    browser = Browser(url)
    await browser.post()
    socket = await connect(browser)

    assert await ask(socket, "destroy") is None
    assert 0 == len(store)
    assert 1008 == await ended(socket)


async def test_saving_after_the_session_ended_is_session_gone(url):
    """What was destroyed does not come back by way of a socket."""
    browser = Browser(url)
    await browser.post()
    socket = await connect(browser)
    await browser.ask("/", "DELETE")

    assert (await ask(socket, "add")) in ("SessionGone", None)  # None: closed already
    socket.close()


@pytest.mark.slow
async def test_a_regeneration_elsewhere_is_followed(url):
    """The socket goes on as the same session, and later saves reach it."""
    browser = Browser(url)
    await browser.post()
    socket = await connect(browser)
    await browser.ask("/", "PUT")

    await asyncio.sleep(0.4)
    assert {"n": 10} == await ask(socket, "reload")
    assert 11 == await ask(socket, "add")
    socket.close()


@pytest.mark.slow
async def test_a_store_that_is_away_closes_no_socket(url, store):
    """Whether the session ended is not known then; it is looked at again later."""
    browser = Browser(url)
    await browser.post()
    socket = await connect(browser)
    store.failing = "load"
    await asyncio.sleep(0.3)

    assert {"n": 0} == await ask(socket, "read")
    store.failing = ""
    await browser.ask("/", "DELETE")
    assert 1008 == await ended(socket)


@pytest.mark.slow
async def test_a_closed_socket_is_watched_no_longer(url, store):
    """Nothing goes on for a socket that the client has closed."""
    browser = Browser(url)
    await browser.post()
    socket = await connect(browser)
    socket.close()
    async with asyncio.timeout(30):
        while not closed:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.15)
    store.calls.clear()

    await asyncio.sleep(0.4)
    assert [] == store.calls


async def test_a_store_that_is_away_refuses_the_handshake(url, store):
    """A 503 and no socket of a visitor who seems anonymous."""
    browser = Browser(url)
    await browser.post()
    store.failing = "load"
    response = await browser.get(
        "/ws",
        headers={
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        },
    )

    assert (503, "2") == (response.code, response.headers["Retry-After"])
    assert [] == set_cookies(response)


async def test_the_record_follows_the_session(url):
    """What the socket knows of its session is a plain record."""
    browser = Browser(url)
    await browser.post()
    socket = await connect(browser)
    await ask(socket, "add")

    assert isinstance(handlers[0].session.life.record, SessionRecord)
    socket.close()
