"""Cancelled tasks, ours and those of a driver: always an answer, never a lie."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.web import RequestHandler

from tests.factories import Browser, Raw, TroubledStore, make_app, serve
from tornado_compas_session import SessionMixin


class Leaky(TroubledStore):
    """Raises CancelledError where nobody has cancelled the caller."""

    leaking = ""

    def _fail(self, verb):
        if verb in self.leaking.split():
            raise asyncio.CancelledError
        super()._fail(verb)


class Handler(SessionMixin, RequestHandler):
    async def get(self):
        self.write(dict(self.session))

    async def post(self):
        self.session["n"] = self.session.get("n", 0) + 1
        self.write("saved")


class Cancelled(SessionMixin, RequestHandler):
    """A CancelledError leaves the handler itself."""

    async def post(self, how):
        self.session["n"] = 99
        if how == "leak":
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(30)


class InLock(SessionMixin, RequestHandler):
    async def post(self):
        async with self.session.lock():
            self.session["n"] = 99
            raise asyncio.CancelledError


@pytest.fixture
def store():
    return Leaky()


@pytest.fixture
def url(store, io_loop):
    routes = [("/", Handler), ("/in-lock", InLock), ("/(leak|own)", Cancelled)]
    with serve(make_app(routes, store)) as url:
        yield url


async def content(browser):
    return json.loads((await browser.get()).body)


@pytest.mark.parametrize("verb", ["load", "save", "create", "regenerate"])
async def test_a_leaked_cancellation_of_the_store_is_a_503(url, store, verb):
    """
    As when a driver's other caller left: not a hang (which it is on Tornado 6.5), not
    an anonymous visitor.
    """
    browser = Browser(url)
    if verb != "create":
        await browser.post()
    cookies = browser.jar.names()
    store.leaking = verb if verb != "regenerate" else "load"

    response = await browser.post()

    assert (503, "2") == (response.code, response.headers["Retry-After"])
    assert cookies == browser.jar.names()
    store.leaking = ""
    assert ({} if verb == "create" else {"n": 1}) == await content(browser)


@pytest.mark.parametrize("path", ["/leak", "/own", "/in-lock"])
async def test_a_cancelled_handler_is_answered(url, path):
    """A 500 that discards the changes, with an own cancellation and a leaked one."""
    browser = Browser(url)
    await browser.post()

    response = await browser.post(path)

    assert 500 == response.code
    assert {"n": 1} == await content(browser)


async def test_the_commit_outlives_the_client_and_the_handler(url, store):
    """Nothing that ends early cancels a commit under way."""
    browser = Browser(url)
    await browser.post()
    store.gate.clear()
    store.writing.clear()
    async with await Raw.open(url) as raw:
        await raw.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nCookie: "
            + browser.jar.header().encode()
            + b"\r\n\r\n"
        )
        async with asyncio.timeout(30):
            await store.writing.wait()
    await asyncio.sleep(0.05)
    store.gate.set()
    async with asyncio.timeout(30):
        while {"n": 2} != await content(browser):
            await asyncio.sleep(0.02)


async def test_no_task_is_left_behind(url, store):
    """After all of that nothing runs on."""
    browser = Browser(url)
    await browser.post()
    await browser.post("/leak")
    await browser.post("/own")
    await asyncio.sleep(0.05)

    ours = [
        task
        for task in asyncio.all_tasks()
        if "_session_" in repr(task.get_coro()) or "Batcher" in repr(task.get_coro())
    ]
    assert [] == ours
