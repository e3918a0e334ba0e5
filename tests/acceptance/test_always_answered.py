"""
Every request is answered, nothing is complete before its commit, and nothing that was
set in time is lost: where `flush()`, `finish()`, `lock()` and errors meet.
"""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from tornado.web import Finish, HTTPError, RequestHandler

from tests.factories import Browser, Raw, TroubledStore, make_app, serve, set_cookies
from tornado_compas_session import (
    ResponseAlreadySent,
    SessionMixin,
    StoreUnavailable,
)

SEEN: list[object] = []
GATE: dict[str, asyncio.Event] = {}


class Handler(SessionMixin, RequestHandler):
    async def get(self, what):
        await getattr(self, f"do_{what}")()

    async def post(self, what):
        self.session = {"n": 0}

    head = get

    async def do_read(self):
        self.write(dict(self.session))

    # -- inside of lock() ---------------------------------------------------------

    async def do_finish_in_lock(self):
        async with self.session.lock():
            self.session["n"] += 1
            await self.finish("done")

    async def do_flush_in_lock(self):
        async with self.session.lock():
            self.session["n"] += 1
            self.write("first ")
            await self.flush()
            self.session["n"] += 1
        self.write("last")

    async def do_finish_in_failing_lock(self):
        async with self.session.lock():
            self.session["n"] += 1
            await self.finish("done")
            raise ValueError("a bug of the application")

    async def do_failed_commit_of_lock(self):
        try:
            async with self.session.lock():
                self.session["n"] = 99
        except StoreUnavailable:
            SEEN.append("caught")
        self.write("went on")

    async def do_exception_in_lock_of_new(self):
        self.session["before"] = 1
        try:
            async with self.session.lock():
                self.session["n"] = 99
                raise ValueError
        except ValueError:
            self.write(dict(self.session))

    # -- what cannot be saved -----------------------------------------------------

    async def do_unsaved_finish(self):
        self.session["bad"] = object()
        raise Finish

    async def do_unsaved_in_error_page(self):
        SEEN.append("error page")
        raise HTTPError(404)

    def write_error(self, status_code, **kwargs):
        if SEEN:
            self.session["bad"] = object()
        super().write_error(status_code, **kwargs)

    # -- flush --------------------------------------------------------------------

    async def do_all_by_flush(self):
        self.session["n"] = 1
        self.set_header("Content-Length", "10")
        self.write("12345")
        await self.flush()
        self.write("67890")
        await self.flush()
        SEEN.append("flushed")

    async def do_nothing_by_flush(self):
        self.session["n"] = 1
        self.set_status(204)
        await self.flush()
        SEEN.append("flushed")

    async def do_change_after_unawaited_flush(self):
        self.write("first ")
        self.flush()
        self.session["n"] = 5
        self.write("last")

    async def do_replaced_while_it_is_saved(self):
        self.session = {"a": 1}
        saving = asyncio.ensure_future(self.session.save())
        await GATE["writing"].wait()
        self.session["b"] = 2
        GATE["go"].set()
        await saving

    async def do_two_saves_at_once(self):
        self.session["n"] = 1
        await asyncio.gather(self.session.save(), self.session.save())

    async def do_end_while_it_is_made(self):
        self.session["n"] = 1
        self.flush()
        self.session = None

    async def do_stream_and_leave(self):
        self.session["n"] = 7
        for _ in range(1000):
            self.write("x" * 10_000)
            await self.flush()
            await asyncio.sleep(0.001)

    # -- after the end ------------------------------------------------------------

    async def do_change_after_finish(self):
        self.session["n"] = 1
        self.finish("done")
        try:
            self.session["n"] = 2
        except ResponseAlreadySent as error:
            SEEN.append(str(error))


class Raising(Handler):
    def on_finish(self):
        SEEN.append(self.get_status())
        super().on_finish()
        if "bug" in self.request.path:
            raise ZeroDivisionError

    async def do_bug(self):
        self.session["n"] = 1
        self.write("well")


class Late(Handler):
    def on_finish(self):
        self.session["late"] = 1

    async def do_late(self):
        self.session["n"] = 1
        self.write("well")


@pytest.fixture(autouse=True)
def clean():
    SEEN.clear()
    GATE.clear()


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
def log_function():
    return lambda handler: None


@pytest.fixture
def url(store, log_function, io_loop):
    routes = [("/raising/(.*)", Raising), ("/late/(.*)", Late), ("/(.*)", Handler)]
    app = make_app(routes, store, tornado={"log_function": log_function})
    with serve(app) as url:
        yield url


async def live(url) -> Browser:
    browser = Browser(url)
    await browser.post("/start")
    return browser


async def content(browser):
    return json.loads((await browser.get("/read")).body)


# -- inside of lock() ------------------------------------------------------------------


async def test_finish_inside_of_lock_is_answered_after_the_block(url):
    """It does not wait for the block that waits for it."""
    browser = await live(url)

    response = await browser.get("/finish_in_lock")

    assert (200, b"done") == (response.code, response.body)
    assert {"n": 1} == await content(browser)


async def test_flush_inside_of_lock_does_not_wait(url):
    """What was flushed leaves after the block; what the block changed is saved."""
    browser = await live(url)

    response = await browser.get("/flush_in_lock")

    assert (200, b"first last") == (response.code, response.body)
    assert {"n": 2} == await content(browser)


async def test_a_block_that_fails_after_finish_is_a_500(url):
    """Nobody is told of a success that was rolled back."""
    browser = await live(url)

    response = await browser.get("/finish_in_failing_lock")

    assert 500 == response.code
    assert b"done" not in response.body
    assert {"n": 0} == await content(browser)


async def test_what_a_failed_commit_of_lock_undid_stays_undone(url, store):
    """The handler caught it and went on; the block's changes are not saved later."""
    browser = await live(url)
    real = store.lock

    def failing(*args):
        context = real(*args)

        class Failing:
            async def __aenter__(self):
                return await context.__aenter__()

            async def __aexit__(self, *error):
                await context.__aexit__(ValueError, ValueError(), None)
                raise StoreUnavailable("COMMIT failed")

        return Failing()

    store.lock = failing
    response = await browser.get("/failed_commit_of_lock")

    assert (200, ["caught"]) == (response.code, SEEN)
    assert {"n": 0} == await content(browser)


async def test_an_exception_inside_of_lock_undoes_a_new_session_too(url, store):
    """What was set before the block stays."""
    browser = Browser(url)

    response = await browser.get("/exception_in_lock_of_new")

    assert {"before": 1} == json.loads(response.body)
    assert {"before": 1} == await content(browser)


# -- what cannot be saved --------------------------------------------------------------


@pytest.mark.parametrize("path", ["unsaved_finish", "unsaved_in_error_page"])
async def test_what_cannot_be_saved_is_a_500_on_every_way_out(url, path, caplog):
    """`raise Finish`, and an error page that sets it."""
    response = await (await live(url)).get(f"/{path}")

    assert 500 == response.code
    assert "a object is not JSON" in caplog.text


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_hook_that_raises_takes_nobodys_answer(url, method, caplog):
    """The response leaves, its connection serves the next, and a line tells."""
    browser = await live(url)

    response = await browser.ask("/raising/bug", method)

    assert 200 == response.code
    assert [200] == SEEN
    assert "on_finish failed" in caplog.text
    assert {"n": 1} == await content(browser)


class TestARaisingLog:
    @pytest.fixture
    def log_function(self):
        def log(handler):
            SEEN.append(handler.get_status())
            raise ZeroDivisionError

        return log

    async def test_it_takes_nobodys_answer(self, url, caplog):
        """As with on_finish, and on_finish is called all the same."""
        response = await Browser(url).post("/start")

        assert 200 == response.code
        assert [200] == SEEN
        assert "_log failed" in caplog.text


class TestTheAccessLog:
    @pytest.fixture
    def log_function(self):
        return lambda handler: SEEN.append(
            (handler.get_status(), round(handler.request.request_time(), 1))
        )

    async def test_it_hears_what_the_client_hears(self, url, store):
        """A 503 where the client got one, and how long the commit took, once."""
        browser = await live(url)
        SEEN.clear()
        store.gate.clear()
        asked = asyncio.ensure_future(browser.get("/raising/bug"))
        await asyncio.wait_for(store.writing.wait(), 30)
        await asyncio.sleep(0.25)
        assert [] == SEEN
        store.failing = "save"
        store.gate.set()
        response = await asked

        assert 503 == response.code
        logged, on_finish = SEEN
        assert isinstance(logged, tuple)
        assert (503, 503) == (logged[0], on_finish)
        assert logged[1] >= 0.2


# -- nothing is complete before its commit ---------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "all_by_flush"), ("GET", "nothing_by_flush"), ("HEAD", "all_by_flush")],
)
async def test_a_body_completed_by_flush_waits_for_the_commit(url, store, method, path):
    """By its Content-Length, by a 204, by HEAD: the last byte leaves after it."""
    browser = await live(url)
    store.gate.clear()
    store.writing.clear()
    head = f"{method} /{path} HTTP/1.1\r\nHost: x\r\nCookie: {browser.jar.header()}"
    async with await Raw.open(url) as raw:
        await raw.send(head.encode() + b"\r\n\r\n")
        await asyncio.wait_for(store.writing.wait(), 30)
        await asyncio.sleep(0.05)
        sent = bytes(raw.reader._buffer)  # type: ignore[attr-defined]
        assert [] == SEEN
        assert b"67890" not in sent
        if path == "nothing_by_flush" or method == "HEAD":
            assert b"" == sent
        store.gate.set()
        status, _, _ = (
            await raw.answer(head=method == "HEAD")
            if not sent
            else (
                200,
                None,
                await raw.reader.readuntil(b"67890"),
            )
        )

    assert status in (200, 204)
    assert {"n": 1} == await content(browser)


@pytest.mark.parametrize("path", ["all_by_flush", "nothing_by_flush"])
async def test_a_failed_commit_completes_no_body(url, store, path):
    """The headers are out: cut. They are not: a 503."""
    browser = await live(url)
    store.failing = "save"
    head = f"GET /{path} HTTP/1.1\r\nHost: x\r\nCookie: {browser.jar.header()}\r\n\r\n"
    async with await Raw.open(url) as raw:
        await raw.send(head.encode())
        got = await asyncio.wait_for(raw.reader.read(200), 30)
        if path == "nothing_by_flush":
            assert b" 503 " in got
        else:
            assert b"67890" not in got + await raw.end()

    store.failing = ""
    assert {"n": 0} == await content(browser)


# -- nothing that was set in time is lost ----------------------------------------------


@pytest.mark.parametrize("known", [True, False])
async def test_a_change_after_an_unawaited_flush_is_saved(url, store, known):
    """The cookie of a new session leaves with it; of an old one the data are saved."""
    browser = await live(url) if known else Browser(url)

    response = await browser.get("/change_after_unawaited_flush")

    if known:
        assert (200, b"first last") == (response.code, response.body)
        assert {"n": 5} == await content(browser)
    else:  # the headers left with the flush, without a cookie
        assert 0 == len(store)


async def test_what_is_set_while_a_replacement_is_saved_is_saved(url, store):
    """The loop takes what has come meanwhile."""
    browser = await live(url)
    store.gate.clear()
    store.writing.clear()
    GATE.update(writing=store.writing, go=store.gate)

    assert 200 == (await browser.get("/replaced_while_it_is_saved")).code
    assert {"a": 1, "b": 2} == await content(browser)


async def test_two_saves_at_once_make_one_row(url, store):
    """One at a time commits."""
    assert 200 == (await Browser(url).get("/two_saves_at_once")).code
    assert 1 == len(store)


async def test_a_session_that_is_ended_while_it_is_made_is_gone(url, store):
    """After a flush that nobody awaited."""
    browser = Browser(url)

    assert 200 == (await browser.get("/end_while_it_is_made")).code
    assert (0, []) == (len(store), browser.jar.names())


async def test_who_leaves_in_the_middle_of_a_stream_discards_nothing(url):
    """It was executed, if not acknowledged (T16)."""
    browser = await live(url)
    head = "GET /stream_and_leave HTTP/1.1\r\nHost: x\r\n"
    async with await Raw.open(url) as raw:
        await raw.send(f"{head}Cookie: {browser.jar.header()}\r\n\r\n".encode())
        await raw.reader.readexactly(5000)
    for _ in range(300):
        if {"n": 7} == await content(browser):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the change was not saved")


# -- after the end ---------------------------------------------------------------------


async def test_a_change_after_finish_raises(url):
    """It would be lost in silence."""
    browser = await live(url)

    response = await browser.get("/change_after_finish")

    assert b"done" == response.body
    assert ["the response has been finished" in str(SEEN[0])] == [True]
    assert {"n": 1} == await content(browser)


async def test_a_change_in_on_finish_is_said(url, caplog):
    """In the log: there is nobody else to tell."""
    browser = await live(url)

    response = await browser.get("/late/late")

    assert (200, []) == (response.code, set_cookies(response))
    assert "the response has been finished" in caplog.text
    assert {"n": 1} == await content(browser)
    assert logging.ERROR in {record.levelno for record in caplog.records}
