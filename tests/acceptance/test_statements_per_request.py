"""What a request costs, counted where statements leave for the database."""

from __future__ import annotations

import psycopg
import pytest
from tornado.web import RequestHandler

from tests.factories import KEY, NAME, Browser, Raw, make_app, serve
from tornado_compas_session import PostgresSessionStore, SessionMixin
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.ids import new_handle, new_secret


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.session.get("n")
        len(self.session)
        self.write({"n": self.session.get("n")})

    head = get

    def options(self):
        self.set_status(204)

    def post(self):
        self.session["n"] = self.session.get("n", 0) + 1

    def put(self):
        self.session.regenerate()

    async def patch(self):
        self.write({"n": await self.session.increment("n")})

    def delete(self):
        self.session = None


class Untouched(SessionMixin, RequestHandler):
    def get(self):
        self.write("a page without a look at the session")


class Plain(RequestHandler):
    def get(self):
        self.write("no sessions here")


class CountingPool:
    """In front of the store's pool: notes the name of each statement that passes."""

    def __init__(self, pool):
        self.pool = pool
        self.sent = []

    async def fetch(self, statement, **values):
        self.sent.append(statement.name)
        return await self.pool.fetch(statement, **values)

    def __getattr__(self, name):
        return getattr(self.pool, name)


@pytest.fixture
def store(io_loop, database):
    store = io_loop.run_sync(lambda: PostgresSessionStore.connect(database))
    # What a process asks once, and no request after that.
    assert not io_loop.run_sync(store._database.is_distributed)
    store._database.pool = CountingPool(store._database.pool)
    yield store
    io_loop.run_sync(store.close)


@pytest.fixture
def sent(store):
    return store._database.pool.sent


@pytest.fixture
def url(store):
    routes = [("/", Page), ("/untouched", Untouched), ("/plain", Plain)]
    with serve(make_app(routes, store)) as url:
        yield url


def new_id():
    return new_handle() + new_secret()


async def count(database):
    async with await psycopg.AsyncConnection.connect(database) as connection:
        cursor = await connection.execute("SELECT count(*) FROM compas_session")
        row = await cursor.fetchone()
        assert row is not None
        return row[0]


async def test_an_anonymous_visitor_costs_nothing(url, sent, database, long):
    """No statement, no cookie and no row, whatever is read or ended (LC-5)."""
    browser = Browser(url)
    asked = [
        ("GET", "/"),
        ("HEAD", "/"),
        ("OPTIONS", "/"),
        ("DELETE", "/"),
        ("PUT", "/"),
        ("GET", "/untouched"),
        ("GET", "/plain"),
        ("GET", "/404"),
    ]
    for _ in range(1250 if long else 10):
        for method, path in asked:
            await browser.ask(path, method)

    assert [] == sent
    assert [] == browser.jar.names()
    assert 0 == await count(database)


async def test_a_bad_signature_costs_nothing(url, sent, long):
    """Verification comes before any query (SG-9, SG-7)."""
    strange = KeyRing(["a-key-that-was-dropped-long-ago"]).sign(NAME, new_id())
    async with await Raw.open(url) as client:
        for number in range(10_000 if long else 200):
            value = strange if number % 2 else f"garbage-{number}"
            status, headers, _ = await client.ask(f"Cookie: {NAME}={value}".encode())
            assert 200 == status
            assert "Set-Cookie" not in headers

    assert [] == sent


async def test_an_unknown_id_costs_one_and_is_never_adopted(url, sent, database):
    """It is looked up once, its cookie is cleared; the next id is another (ID-3)."""
    unknown = new_id()
    browser = Browser(url)
    browser.jar.put(KeyRing([KEY]).sign(NAME, unknown))
    await browser.get("/")
    assert ["load_session"] == sent
    assert [] == browser.jar.names()
    browser.jar.put(KeyRing([KEY]).sign(NAME, unknown))
    await browser.post("/")

    value = KeyRing([KEY]).verify(NAME, str(browser.jar.get()), 1000)
    assert value is not None
    assert unknown.encode() != value.value
    assert ["load_session", "load_session", "create_session"] == sent
    assert 1 == await count(database)


async def test_a_new_session_costs_one(url, sent):
    """The INSERT."""
    await Browser(url).post("/")

    assert ["create_session"] == sent


@pytest.mark.parametrize("path", ["/", "/untouched"])
async def test_a_live_and_untouched_one_costs_one(url, sent, path):
    """The read; its expiry is written at most every 30 seconds (LC-9)."""
    browser = Browser(url)
    await browser.post("/")
    sent.clear()
    for _ in range(20):
        await browser.get(path)

    assert ["load_session"] * 20 == sent


async def test_a_changed_one_costs_two(url, sent):
    """One read, one write."""
    browser = Browser(url)
    await browser.post("/")
    sent.clear()
    await browser.post("/")

    assert ["load_session", "save_session"] == sent


async def test_a_new_id_and_an_end_cost_two(url, sent, database):
    """One read, one write, each (LC-1, LC-2)."""
    browser = Browser(url)
    await browser.post("/")
    sent.clear()
    await browser.ask("/", "PUT")
    await browser.ask("/", "DELETE")

    assert ["load_session", "regenerate_session"] == sent[:2]
    assert ["load_session", "delete_session"] == sent[2:]
    assert 0 == await count(database)


async def test_a_new_id_is_shown_once(url, sent):
    """
    The first request with it says so in the row, which costs a write; the next none.
    """
    browser = Browser(url)
    await browser.post("/")
    await browser.ask("/", "PUT")
    sent.clear()
    await browser.get("/untouched")
    assert ["load_session", "save_session"] == sent
    sent.clear()
    await browser.get("/untouched")

    assert ["load_session"] == sent


async def test_an_increment_costs_two(url, sent):
    """One read, and the sum in the store."""
    browser = Browser(url)
    await browser.post("/")
    sent.clear()
    response = await browser.ask("/", "PATCH")

    assert b'{"n": 2}' == response.body
    assert ["load_session", "increment_session"] == sent


async def test_a_handler_without_the_mixin_touches_nothing(url, sent):
    """Not even with a cookie."""
    browser = Browser(url)
    await browser.post("/")
    sent.clear()
    response = await browser.get("/plain")

    assert [] == sent
    assert "Set-Cookie" not in response.headers


async def test_the_table_does_not_give_ids_away(url, database):
    """
    No secret, no id and no cookie value in a dump; a hash is no id (ID-7). The first 12
    characters of an id are the row's handle, which opens nothing.
    """
    ids = []
    for _ in range(20):
        browser = Browser(url)
        await browser.post("/")
        signed = KeyRing([KEY]).verify(NAME, str(browser.jar.get()), 1000)
        assert signed is not None
        ids.append(signed.value.decode())
    async with await psycopg.AsyncConnection.connect(database) as connection:
        cursor = await connection.execute(
            "SELECT s::text, encode(secret_hash, 'base64'),"
            " encode(secret_hash, 'escape') FROM compas_session s"
        )
        dump = str(await cursor.fetchall())

    assert 20 == len(ids)
    for one in ids:
        assert one[:12] in dump
        for text in (one, one[12:]):
            assert text not in dump
            assert text.encode().hex() not in dump
