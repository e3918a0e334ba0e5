"""`async with session.lock()`: no update is lost inside, nothing is held outside."""

from __future__ import annotations

import asyncio
import json
import logging

import psycopg
import pytest
from tornado.web import RequestHandler

from tests.factories import Browser, make_app, serve
from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
    SessionError,
    SessionMixin,
)

steps: dict[str, asyncio.Event] = {}


class Handler(SessionMixin, RequestHandler):
    def get(self):
        self.write(dict(self.session))

    async def post(self, what="init"):
        await getattr(self, f"do_{what}")()

    async def do_init(self):
        self.session = {"n": 0, "list": []}

    async def do_add(self):
        async with self.session.lock():
            before = self.session["n"]
            await asyncio.sleep(0.001)
            self.session["n"] = before + 1
        self.write(str(self.session["n"]))

    async def do_add_unlocked(self):
        before = self.session["n"]
        await asyncio.sleep(0.001)
        self.session["n"] = before + 1

    async def do_hold(self):
        async with self.session.lock():
            self.session["held"] = True
            steps["locked"].set()
            await steps["go on"].wait()

    async def do_impatient(self):
        async with self.session.lock(timeout=0.1):
            self.write("never")

    async def do_fail(self):
        self.session["before"] = True
        async with self.session.lock():
            self.session["n"] = 99
            self.session["list"].append(99)
            raise ZeroDivisionError

    async def do_fail_caught(self):
        self.session["before"] = True
        try:
            async with self.session.lock():
                self.session["n"] = 99
                self.session["list"].append(99)
                raise ZeroDivisionError
        except ZeroDivisionError:
            self.write(dict(self.session))

    async def do_around(self):
        self.session["before"] = 1
        async with self.session.lock():
            self.session["inside"] = 2
        self.session["after"] = 3

    async def do_nested(self):
        async with self.session.lock(), self.session.lock():
            pass

    async def do_save_inside(self):
        async with self.session.lock():
            await self.session.save()

    async def do_answer_inside(self):
        async with self.session.lock():
            self.session["n"] = 5
            self.finish("answered")
            await asyncio.sleep(0.05)

    async def do_answer_then_fail(self):
        async with self.session.lock():
            self.session["n"] = 99
            self.finish("answered")
            await asyncio.sleep(0.05)
            raise ZeroDivisionError

    async def do_destroy_inside(self):
        async with self.session.lock():
            self.session = None

    async def do_regenerate_inside(self):
        async with self.session.lock():
            self.session["n"] = 6
            self.session.regenerate()

    async def do_new(self):
        async with self.session.lock():
            self.session["n"] = 1
        self.write({"new": self.session.is_new})


@pytest.fixture(params=["memory", "postgres"])
def store(request, template_database, io_loop):
    if request.param == "memory":
        yield MemorySessionStore()
        return
    database = request.getfixturevalue("database")
    store = io_loop.run_sync(lambda: PostgresSessionStore.connect(database))
    yield store
    io_loop.run_sync(store.close)


@pytest.fixture
def url(store, io_loop):
    steps.update({"locked": asyncio.Event(), "go on": asyncio.Event()})
    with serve(make_app([("/", Handler), ("/(.*)", Handler)], store)) as url:
        yield url


async def started(url):
    browser = Browser(url)
    assert 200 == (await browser.post()).code
    return browser


async def content(browser):
    return json.loads((await browser.get()).body)


async def test_no_update_is_lost(url):
    """Twenty at once are counted as twenty, and no two get the same answer."""
    browser = await started(url)

    answers = await asyncio.gather(*(browser.post("/add") for _ in range(20)))

    assert list(range(1, 21)) == sorted(int(a.body) for a in answers)
    assert 20 == (await content(browser))["n"]


async def test_without_the_lock_updates_are_lost(url):
    """The control: the same without the lock."""
    browser = await started(url)

    await asyncio.gather(*(browser.post("/add_unlocked") for _ in range(20)))

    assert (await content(browser))["n"] < 20


async def test_a_lock_that_does_not_come_in_time_says_so(url, caplog):
    """A 503 with Retry-After after `timeout` seconds; the holder is not disturbed."""
    caplog.set_level(logging.DEBUG)
    browser = await started(url)
    holder = asyncio.create_task(browser.post("/hold"))
    async with asyncio.timeout(30):
        await steps["locked"].wait()

    response = await browser.post("/impatient")
    steps["go on"].set()

    assert (503, "2") == (response.code, response.headers["Retry-After"])
    assert b"never" not in response.body
    assert "The lock on the session did not come in time" in caplog.text
    assert 200 == (await holder).code
    assert {"n": 0, "list": [], "held": True} == await content(browser)


async def test_a_lock_of_another_process_times_out_as_well(io_loop, database):
    """The row is locked in the database: here by a connection of somebody else."""
    store = await PostgresSessionStore.connect(database)
    with serve(make_app([("/", Handler), ("/(.*)", Handler)], store)) as url:
        browser = await started(url)
        connection = await psycopg.AsyncConnection.connect(database)
        await connection.execute("SELECT 1 FROM compas_session FOR UPDATE")

        response = await browser.post("/impatient")
        reading = await browser.get()
        await connection.rollback()
        later = await browser.post("/add")
        await connection.close()

    assert (503, "2") == (response.code, response.headers["Retry-After"])
    assert 200 == reading.code  # readers never wait for a lock
    assert (200, b"1") == (later.code, later.body)
    await store.close()


async def test_nothing_is_held_outside_of_the_block(io_loop, database):
    """No transaction, no row lock and no advisory lock is open before or after it."""
    store = await PostgresSessionStore.connect(database)
    with serve(make_app([("/", Handler), ("/(.*)", Handler)], store)) as url:
        browser = await started(url)
        for path in ("/add", "/fail", "/impatient", "/answer_inside", "/add"):
            await browser.post(path)
        with psycopg.connect(database) as connection:
            [(busy,)] = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = "
                "current_database() AND state LIKE 'idle in%' AND pid <> "
                "pg_backend_pid()"
            ).fetchall()
            [(advisory,)] = connection.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND "
                "database = (SELECT oid FROM pg_database WHERE datname = "
                "current_database())"
            ).fetchall()
    assert (0, 0) == (busy, advisory)
    await store.close()


async def test_an_exception_undoes_the_block(url):
    """In the store, and in the session too: what was set before the block stays."""
    browser = await started(url)

    assert 500 == (await browser.post("/fail")).code
    assert {"n": 0, "list": []} == await content(browser)
    response = await browser.post("/fail_caught")
    expected = {"n": 0, "list": [], "before": True}
    assert expected == json.loads(response.body)
    assert expected == await content(browser)


async def test_changes_around_the_block_are_saved_too(url):
    """Before, inside and after: all of it is there in the end."""
    browser = await started(url)
    await browser.post("/around")

    assert {"before": 1, "inside": 2, "after": 3}.items() <= (
        await content(browser)
    ).items()


@pytest.mark.parametrize(
    ("path", "hint"),
    [("/nested", "cannot be nested"), ("/save_inside", "leave the call of save() out")],
)
async def test_mistakes_are_named(url, caplog, path, hint):
    """A deadlock with oneself is refused, not waited for."""
    browser = await started(url)

    assert 500 == (await browser.post(path)).code
    assert hint in caplog.text
    assert issubclass(SessionError, Exception)


async def test_an_answer_inside_the_block_waits_for_its_end(url):
    """It leaves when the block is committed, or not at all."""
    browser = await started(url)

    assert b"answered" == (await browser.post("/answer_inside")).body
    assert 5 == (await content(browser))["n"]
    response = await browser.post("/answer_then_fail")
    assert 500 == response.code
    assert 5 == (await content(browser))["n"]


async def test_ending_and_moving_inside_the_block(url, store):
    """`destroy()` and `regenerate()` inside take effect with the end of the request."""
    browser = await started(url)
    before = browser.jar.get()

    assert 200 == (await browser.post("/regenerate_inside")).code
    assert before != browser.jar.get()
    assert 6 == (await content(browser))["n"]
    assert 200 == (await browser.post("/destroy_inside")).code
    assert [] == browser.jar.names()
    assert 0 == (await store.stats())["live"]


async def test_a_new_session_can_be_locked(url):
    """Nobody else knows it, so there is nothing to wait for; it is saved at the end."""
    browser = Browser(url)

    response = await browser.post("/new")

    assert {"new": False} == json.loads(response.body)
    assert {"n": 1} == await content(browser)
