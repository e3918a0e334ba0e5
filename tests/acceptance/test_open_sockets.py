"""Which WebSockets stay open when the session that they began with moves on."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.httpclient import HTTPRequest
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler, websocket_connect

from tests.factories import Browser, Clock, make_app, serve
from tornado_compas_session import MemorySessionStore, SessionError, SessionMixin

CHANGED = "the visitor has signed in or out"
ENDED = "the session has ended"


class Socket(SessionMixin, WebSocketHandler):
    async def on_message(self, message):
        try:
            if message == "add":
                self.session["n"] = self.session.get("n", 0) + 1
                await self.session.save()
            elif message == "reload":
                await self.session.reload()
            await self.write_message(json.dumps(dict(self.session)))
        except SessionError as error:
            await self.write_message(json.dumps(type(error).__name__))


class Account(SessionMixin, RequestHandler):
    def get(self):
        self.write(dict(self.session))

    def post(self, what="start"):
        if what == "start":
            self.session["n"] = 0
        elif what == "sign-in":
            self.session["user_id"] = "anna"
            self.session.regenerate()
        elif what == "another":
            self.session["user_id"] = "bela"
        elif what == "regenerate":
            self.session.regenerate()
        elif what == "clear":
            self.session.clear()
        elif what == "destroy":
            self.session = None


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def check():
    return 0.1


@pytest.fixture
def browser(io_loop, clock, check):
    store = MemorySessionStore(clock=clock)
    routes = [("/", Account), ("/ws", Socket), ("/(.*)", Account)]
    with serve(make_app(routes, store, websocket_check=check)) as url:
        yield Browser(url, clock=clock)


async def connect(browser):
    headers = {"Cookie": browser.jar.header()}
    url = browser.url.replace("http", "ws") + "/ws"
    return await websocket_connect(HTTPRequest(url, headers=headers))


async def ask(socket, message):
    await socket.write_message(message)
    async with asyncio.timeout(10):
        answer = await socket.read_message()
    return None if answer is None else json.loads(answer)


async def ended(socket):
    """Why the server has closed it."""
    async with asyncio.timeout(10):
        while await socket.read_message() is not None:
            pass
    socket.close()
    return socket.close_code, socket.close_reason


@pytest.mark.slow
async def test_thirty_that_are_open_at_a_new_id_stay(browser, clock):
    """
    They are of the same visitor: however often the id has changed, and however long ago
    that is, they read, and what they save is saved.
    """
    await browser.post("/sign-in")
    sockets = [await connect(browser) for _ in range(30)]
    for _ in range(3):
        await browser.post("/regenerate")
        await browser.get()
        clock.now += 7
    await asyncio.sleep(0.2)  # each has looked at least once

    for number, socket in enumerate(sockets, 1):
        await ask(socket, "reload")
        assert {"user_id": "anna", "n": number} == await ask(socket, "add")
        socket.close()
    assert {"user_id": "anna", "n": 30} == json.loads((await browser.get()).body)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sign-in", "another", "clear", "destroy"])
async def test_thirty_that_are_open_at_a_sign_in_close(browser, what):
    """Their visitor is another one now: they are told to come again, and why."""
    await browser.post("/start")
    if what != "sign-in":
        await browser.post("/sign-in")
    sockets = [await connect(browser) for _ in range(30)]

    await browser.post(f"/{what}")

    answers = await asyncio.gather(*map(ended, sockets))
    assert {(1008, ENDED if what == "destroy" else CHANGED)} == set(answers)


@pytest.mark.parametrize("check", [3600])
@pytest.mark.parametrize("what", ["sign-in", "another", "clear", "destroy"])
async def test_until_they_close_they_see_nothing_of_what_follows(browser, what):
    """They read what they had, and can neither read anew nor write."""
    await browser.post("/start")
    if what != "sign-in":
        await browser.post("/sign-in")
    sockets = [await connect(browser) for _ in range(2)]
    before = await ask(sockets[0], "read")

    await browser.post(f"/{what}")

    assert before == await ask(sockets[0], "read")
    assert "SessionGone" == await ask(sockets[0], "add")
    assert "SessionGone" == await ask(sockets[1], "reload")
    for socket in sockets:
        assert {} == await ask(socket, "read")
        socket.close()
    after = json.loads((await browser.get()).body)
    assert (0 if what in ("sign-in", "another") else None) == after.get("n")


async def test_one_that_is_opened_with_the_new_id_stays(browser):
    """After the sign-in it is the new visitor's."""
    await browser.post("/start")
    await browser.post("/sign-in")
    socket = await connect(browser)
    await asyncio.sleep(0.25)

    assert {"n": 0, "user_id": "anna"} == await ask(socket, "read")
    socket.close()


async def test_one_that_is_opened_with_an_id_from_before_sees_nothing(browser):
    """In the grace as little as after it."""
    await browser.post("/start")
    late = Browser(browser.url, clock=browser.jar.clock)
    late.jar.kept = dict(browser.jar.kept)
    await browser.post("/sign-in")
    socket = await connect(late)

    assert {} == await ask(socket, "read")
    assert "ResponseAlreadySent" == await ask(socket, "add")  # no cookie can follow
    socket.close()
    assert {"n": 0, "user_id": "anna"} == json.loads((await browser.get()).body)
