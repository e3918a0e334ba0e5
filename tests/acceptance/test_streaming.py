"""Flushed and streamed responses, and all that can happen to a held one."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging

import pytest
from tornado.web import Finish, RequestHandler, stream_request_body

from tests.factories import NAME, Browser, Raw, TroubledStore, make_app, serve, silent
from tornado_compas_session import ResponseAlreadySent, SessionError, SessionMixin

STEPS: dict[str, asyncio.Event] = {}
SEEN: list[object] = []


def step(name: str) -> asyncio.Event:
    return STEPS.setdefault(name, asyncio.Event())


class Handler(SessionMixin, RequestHandler):
    """One kind of response for each name."""

    async def get(self, name="read"):
        await getattr(self, f"do_{name}")()

    post = get

    async def do_read(self):
        self.write(dict(self.session))

    async def do_start(self):
        self.session["n"] = 0

    async def do_add(self):
        self.session["n"] = self.session.get("n", 0) + 1
        self.write(f"n={self.session['n']}")

    async def do_new_then_flush(self):
        self.session["n"] = 1
        self.write("first ")
        await self.flush()
        await step("go on").wait()
        self.write("last")

    async def do_flush_then_change(self):
        self.write("first ")
        await self.flush()
        self.session["n"] = 2
        self.write("second ")
        await self.flush()
        self.write("last")

    async def do_flushes_only(self):
        self.session["n"] = 1
        for _ in range(5):
            self.write("x" * 1000)
            await self.flush()
            self.session["n"] += 1

    async def do_unawaited_flush(self):
        self.session["n"] = 1
        self.write("first ")
        self.flush()
        self.write("second ")
        self.flush()
        await asyncio.sleep(0.05)
        self.write("last")

    async def do_too_late(self):
        await self.flush()
        for change in (
            lambda: self.session.update(n=1),
            lambda: self.session.regenerate(),
            lambda: self.session.clear(),
        ):
            try:
                change()
            except ResponseAlreadySent as error:
                SEEN.append(error)

    async def do_destroy_after_flush(self):
        await self.flush()
        self.session = None

    async def do_fail_after_flush(self):
        self.write("first ")
        await self.flush()
        self.session["n"] = 99
        raise ValueError("a bug of the application")

    async def do_fail_unchanged_after_flush(self):
        self.write("first ")
        await self.flush()
        raise ValueError("a bug of the application")

    async def do_finish_exception(self):
        self.session["n"] = 5
        raise Finish("done")

    async def do_long(self):
        self.session["n"] = 7
        self.set_header("Content-Type", "text/plain")
        self.write("words " * 1000)

    async def do_wrong_length(self):
        self.session["n"] = 99
        self.set_header("Content-Length", "50")
        self.write("short")

    async def do_etag(self):
        self.session["n"] = self.session.get("n", 0) + 1
        self.write("always the same")

    async def do_none(self):
        self.session["n"] = 3
        self.set_status(204)

    async def do_detach_changed(self):
        self.session["n"] = 99
        self.detach()

    async def do_detach(self):
        self.session["n"] = 6
        await self.session.save()
        stream = self.detach()
        await stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine")
        stream.close()

    async def do_wait(self):
        step("begun").set()
        await step("go on").wait()
        self.session["n"] = 8
        self.write("late")

    async def head(self, name):
        await self.get(name)


class Logged(Handler):
    """Overrides `on_finish` and remembers `super()`."""

    def on_finish(self):
        SEEN.append(("finished", self.get_status()))
        super().on_finish()


class Forgetful(Handler):
    """Overrides `on_finish` and forgets `super()`."""

    def on_finish(self):
        SEEN.append(("finished", self.get_status()))


@stream_request_body
class Upload(SessionMixin, RequestHandler):
    async def prepare(self):
        await super().prepare()
        self.size = 0
        how = self.get_query_argument("answer", "")
        if how == "prepare":
            self.session["n"] = "in prepare"
            self.finish("early")
        elif how == "flush":
            self.session["n"] = "flushed"
            self.write("early ")
            await self.flush()
        elif how == "error":
            self.session["n"] = "error"
            self.set_status(413)
            self.finish("too much")

    def data_received(self, chunk):
        assert not self._finished, "data after the end of the answer"
        self.size += len(chunk)
        if self.get_query_argument("answer", "") == "data":
            self.session["n"] = "in data_received"
            self.finish("early")

    def post(self):
        SEEN.append("post")
        self.session["size"] = self.size
        self.write(f"{self.size} bytes")

    put = post


@pytest.fixture(autouse=True)
def fresh_steps():
    STEPS.clear()
    SEEN.clear()


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
def options():
    return {}


@pytest.fixture
def url(store, options, io_loop):
    tornado = options.pop("tornado", {})
    app = make_app(
        [
            ("/upload", Upload),
            ("/logged/(.*)", Logged),
            ("/forgetful/(.*)", Forgetful),
            ("/(.*)", Handler),
        ],
        store,
        tornado=tornado,
        **options,
    )
    with serve(app, chunk_size=1000) as url:
        yield url


async def signed_in(url, **options) -> Browser:
    browser = Browser(url, **options)
    assert 200 == (await browser.post("/start")).code
    return browser


async def read_n(browser):
    return json.loads((await browser.get("/read")).body).get("n")


def cookie(browser: Browser) -> bytes:
    return b"Cookie: " + browser.jar.header().encode()


async def until(raw: Raw, text: bytes) -> bytes:
    async with asyncio.timeout(30):
        return await raw.reader.readuntil(text)


# -- explicit flush --------------------------------------------------------------------


async def test_a_new_session_is_committed_before_the_first_flush(url, store):
    """Its cookie leaves with the headers, long before the body ends."""
    store.gate.clear()
    async with await Raw.open(url) as raw:
        await raw.send(b"GET /new_then_flush HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(30):
            await store.writing.wait()
        assert 0 == len(store)
        assert silent(raw.reader)  # nothing has left

        store.gate.set()
        headers = await until(raw, b"\r\n\r\n")
        assert 1 == len(store)
        assert NAME.encode() in headers
        await until(raw, b"first ")
        step("go on").set()
        assert (await until(raw, b"0\r\n\r\n")).endswith(b"last\r\n0\r\n\r\n")


async def test_the_end_of_the_body_waits_for_the_commit(url, store):
    """What changed after the headers left is saved before the response is complete."""
    browser = await signed_in(url)
    store.gate.clear()
    store.writing.clear()
    async with await Raw.open(url) as raw:
        await raw.send(
            b"GET /flush_then_change HTTP/1.1\r\nHost: x\r\n"
            + cookie(browser)
            + b"\r\n\r\n"
        )
        await until(raw, b"second \r\n")
        async with asyncio.timeout(30):
            await store.writing.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await raw.reader.readuntil(b"0\r\n\r\n")

        store.gate.set()
        await until(raw, b"last\r\n0\r\n\r\n")
    assert 2 == await read_n(browser)


@pytest.mark.parametrize("known", [True, False])
async def test_awaited_flushes_in_the_middle_never_deadlock(url, known):
    """Neither with a new session, whose commit they await, nor with a known one."""
    browser = await signed_in(url) if known else Browser(url)

    response = await browser.get("/flushes_only")

    assert (200, 5000) == (response.code, len(response.body))
    assert 6 == await read_n(browser)


async def test_flushes_that_nobody_awaits_leave_in_order(url):
    """The parts of the body keep their order behind the commit."""
    browser = Browser(url)

    assert b"first second last" == (await browser.get("/unawaited_flush")).body
    assert 1 == await read_n(browser)


@pytest.mark.parametrize("path", ["/new_then_flush", "/unawaited_flush"])
async def test_a_commit_that_fails_before_the_headers_leave_is_a_503(url, store, path):
    """Nothing of the response leaves, and no cookie, however the handler flushes."""
    store.failing = "create"
    step("go on").set()
    browser = Browser(url)

    response = await browser.get(path)

    assert (503, "2") == (response.code, response.headers["Retry-After"])
    assert [] == browser.jar.names()
    assert b"first" not in response.body


async def test_a_save_that_fails_after_the_headers_cuts_the_connection(
    url, store, caplog
):
    """The client must not take the response for a complete one; a log line tells."""
    browser = await signed_in(url)
    store.failing = "save"
    async with await Raw.open(url) as raw:
        await raw.send(
            b"GET /flush_then_change HTTP/1.1\r\nHost: x\r\n"
            + cookie(browser)
            + b"\r\n\r\n"
        )
        got = await raw.end()

    assert not got.endswith(b"0\r\n\r\n")
    assert b"last" not in got
    assert "GET /flush_then_change: the session was not saved" in caplog.text
    assert 0 == await read_n(browser)


async def test_what_needs_a_cookie_is_refused_after_the_headers(url):
    """A new session, a new id: `ResponseAlreadySent`, at the line that asks for it."""
    await Browser(url).get("/too_late")
    browser = await signed_in(url)
    first = len(SEEN)
    await browser.get("/too_late")

    assert 3 == first
    # Data of a known session may still change, and be emptied: nobody is signed in.
    assert 1 == len(SEEN) - first


async def test_destroying_after_the_headers_deletes_the_row(url, store):
    """The cookie is cleared when the browser next shows it."""
    browser = await signed_in(url)

    assert 200 == (await browser.get("/destroy_after_flush")).code
    assert 0 == len(store)
    await browser.get("/read")
    assert [] == browser.jar.names()


async def test_an_exception_after_the_headers_discards_the_changes(url, caplog):
    """And the connection is closed, so that the response is not taken for complete."""
    browser = await signed_in(url)
    async with await Raw.open(url) as raw:
        await raw.send(
            b"GET /fail_after_flush HTTP/1.1\r\nHost: x\r\n"
            + cookie(browser)
            + b"\r\n\r\n"
        )
        got = await raw.end()

    assert got.endswith(b"6\r\nfirst \r\n")
    assert 0 == await read_n(browser)


# -- request bodies in pieces ----------------------------------------------------------


@pytest.mark.parametrize("how", ["", "prepare", "data", "flush", "error"])
async def test_a_streamed_request_body_can_be_answered_at_any_time(url, store, how):
    """Early answers wait for their commit, and the connection goes on after them."""
    browser = await signed_in(url)
    body = b"x" * 20_000
    async with await Raw.open(url) as raw:
        await raw.send(
            f"POST /upload?answer={how} HTTP/1.1\r\nHost: x\r\n".encode()
            + cookie(browser)
            + f"\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        answer = asyncio.create_task(
            until(raw, b"0\r\n\r\n") if how == "flush" else raw.answer()
        )
        # Tornado closes after an early answer, and what it has not read would reset the
        # connection, with the answer on its way: so no more is sent than it reads.
        pieces = {"prepare": 0, "data": 1, "error": 0}.get(how, 4)
        for _ in range(pieces):
            await raw.send(body[:5000])
            await asyncio.sleep(0.01)
        got = await answer
        if how == "flush":
            assert b"early " in got
            assert b"20000 bytes" in got
        else:
            expected = {
                "": (200, b"20000 bytes"),
                "prepare": (200, b"early"),
                "data": (200, b"early"),
                "error": (413, b"too much"),
            }[how]
            assert expected == got[::2]
        if how in ("", "flush"):
            assert 200 == (await raw.ask(cookie(browser), path=b"/read"))[0]

    saved = {
        "": 0,
        "prepare": "in prepare",
        "data": "in data_received",
        "error": "error",
        "flush": "flushed",
    }[how]
    assert saved == await read_n(browser)
    assert (["post"] if how in ("", "flush") else []) == SEEN


async def test_a_body_that_stops_half_way_leaves_nothing_behind(url, store):
    """The client leaves in the middle of its upload: nothing is saved."""
    browser = await signed_in(url)
    store.calls.clear()
    async with await Raw.open(url) as raw:
        await raw.send(
            b"POST /upload HTTP/1.1\r\nHost: x\r\n"
            + cookie(browser)
            + b"\r\nContent-Length: 10000\r\n\r\nxxxx"
        )
        await asyncio.sleep(0.05)
    assert 0 == await read_n(browser)
    assert "save" not in store.calls


@pytest.mark.parametrize(
    ("how", "first"), [("", b"HTTP/1.1 100 "), ("prepare", b"HTTP/1.1 200 OK")]
)
async def test_expect_100_continue(url, how, first):
    """The body is asked for, unless the answer has been given already."""
    browser = await signed_in(url)
    async with await Raw.open(url) as raw:
        await raw.send(
            f"POST /upload?answer={how} HTTP/1.1\r\nHost: x\r\n".encode()
            + cookie(browser)
            + b"\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        got = await until(raw, b"\r\n\r\n")
        assert got.startswith(first)
        if not how:
            await raw.send(b"hello")
            assert (200, b"5 bytes") == (await raw.answer())[::2]
        else:
            await until(raw, b"early")
    assert (0 if not how else "in prepare") == await read_n(browser)


# -- odd ends --------------------------------------------------------------------------


async def test_a_wrong_content_length_is_reported_by_tornado(url, caplog):
    """The error is raised where Tornado raises it, and the session stays as it was."""
    browser = await signed_in(url)
    async with await Raw.open(url) as raw:
        await raw.send(
            b"GET /wrong_length HTTP/1.1\r\nHost: x\r\n" + cookie(browser) + b"\r\n\r\n"
        )
        await raw.end()

    assert "Tried to write 45 bytes less than Content-Length" in caplog.text
    assert 0 == await read_n(browser)


async def test_detach_asks_to_save_first(url, caplog):
    """Changes that nobody would save are an error; a saved session may leave."""
    browser = await signed_in(url)

    assert 500 == (await browser.get("/detach_changed")).code
    assert "detach() ends the request without saving the session" in caplog.text
    assert 0 == await read_n(browser)
    assert b"mine" == (await browser.get("/detach")).body
    assert 6 == await read_n(browser)


async def test_finish_as_an_exception_saves(url):
    """`raise Finish` is a normal end."""
    browser = await signed_in(url)

    assert b"done" == (await browser.get("/finish_exception")).body
    assert 5 == await read_n(browser)


async def test_bodiless_answers_wait_as_well(url, store):
    """204 has no body, 304 and HEAD neither; their sessions are saved."""
    browser = await signed_in(url)

    assert 204 == (await browser.get("/none")).code
    assert 3 == await read_n(browser)
    etag = (await browser.get("/etag")).headers["Etag"]
    response = await browser.get("/etag", headers={"If-None-Match": etag})
    assert (304, 5) == (response.code, await read_n(browser))
    assert response.headers["Vary"] == "Cookie"
    response = await browser.ask("/add", "HEAD")
    assert (200, "3") == (response.code, response.headers["Content-Length"])
    assert 6 == await read_n(browser)


@pytest.mark.parametrize("tornado", [{"compress_response": True}])
async def test_compressed_answers(store, io_loop, tornado):
    """gzip works behind the hold, on the response and on the error page for it."""
    app = make_app([("/(.*)", Handler)], store, tornado=tornado)
    with serve(app) as url:
        browser = Browser(url)
        response = await browser.get(
            "/long", headers={"Accept-Encoding": "gzip"}, decompress_response=False
        )
        assert "gzip" == response.headers["Content-Encoding"]
        assert b"words " * 1000 == gzip.decompress(response.body)
        assert "Accept-Encoding, Cookie" == response.headers["Vary"]

        store.failing = "create save"
        response = await Browser(url).get("/long", headers={"Accept-Encoding": "gzip"})
        assert (503, True) == (response.code, b"503" in response.body)


@pytest.mark.parametrize("prefix", ["/logged", "/forgetful"])
@pytest.mark.parametrize("failing", ["", "create"])
async def test_on_finish_may_be_overridden(url, store, prefix, failing):
    """With and without `super()` the save happens, and the hook runs just once."""
    store.failing = failing
    browser = Browser(url)

    response = await browser.get(f"{prefix}/long")

    assert (503 if failing else 200) == response.code
    assert (0 if failing else 1) == len(store)
    # It hears what the client has got.
    assert [("finished", 503 if failing else 200)] == SEEN


async def test_pipelined_requests_are_answered_in_order(url, store):
    """Each is saved before its answer; none overtakes another."""
    browser = await signed_in(url)
    request = b"GET /add HTTP/1.1\r\nHost: x\r\n" + cookie(browser) + b"\r\n\r\n"
    async with await Raw.open(url) as raw:
        await raw.send(request * 10)
        answers = [(await raw.answer())[2] for _ in range(10)]

    assert [f"n={n}".encode() for n in range(1, 11)] == answers
    assert 10 == await read_n(browser)


async def test_trouble_is_one_line_and_not_one_for_each_request(url, store, caplog):
    """When saves begin to fail, a line says so; the access log has the 503s."""
    store.failing = "create"

    for _ in range(5):
        assert 503 == (await Browser(url).post("/long")).code

    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage().startswith("the session store is in trouble: writes")


async def test_the_hold_is_limited_by_the_timeout(io_loop, store):
    """A store that does not answer is a 503 after `timeout` seconds, and no hang."""
    app = make_app([("/(.*)", Handler)], store, timeout=0.2)
    store.gate.clear()
    with serve(app) as url:
        response = await Browser(url).get("/long")

    assert (503, "2") == (response.code, response.headers["Retry-After"])


# -- clients that leave ----------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "during", "after"])
async def test_a_client_that_leaves_changes_nothing_about_the_save(
    url, store, caplog, when
):
    """What the handler did is saved; nothing is logged as an error."""
    browser = await signed_in(url)
    store.writing.clear()
    if when != "after":
        store.gate.clear()
    async with await Raw.open(url) as raw:
        await raw.send(
            b"GET /wait HTTP/1.1\r\nHost: x\r\n" + cookie(browser) + b"\r\n\r\n"
        )
        async with asyncio.timeout(30):
            await step("begun").wait()
            if when == "before":
                raw.writer.close()
                await raw.writer.wait_closed()
                await asyncio.sleep(0.05)
            step("go on").set()
            await store.writing.wait()
            if when == "during":
                raw.writer.close()
                await raw.writer.wait_closed()
                await asyncio.sleep(0.05)
            store.gate.set()
            if when == "after":
                await raw.answer()
    async with asyncio.timeout(30):
        while 8 != await read_n(browser):
            await asyncio.sleep(0.02)
    assert [] == [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_the_error_of_detach_is_one_of_ours():
    """Applications can catch it."""
    assert issubclass(ResponseAlreadySent, SessionError)
