"""Crowds, strangers and hostile clients: nobody gets what is not theirs."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from statistics import median
from typing import Any

import psutil
import psycopg
import pytest
from tornado.web import RequestHandler

from tests.drivers import DRIVERS, make_store
from tests.factories import NAME, Raw, make_app, make_manager, serve
from tests.reliability.load import Load, Visitor, counter_app, settled
from tornado_compas_session import PostgresSessionStore, SessionMixin
from tornado_compas_session.core.ids import new_handle, new_secret
from tornado_compas_session.core.protocols import Connection, Pool
from tornado_compas_session.stores.pools.queries import Statement

pytestmark = pytest.mark.slow

POOL = 4


class CountingPool:
    """Counts the statements."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.count = pool, 0

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Any]:
        self.count += 1
        return await self.pool.fetch(statement, **values)

    def transaction(self, **limits: Any) -> AbstractAsyncContextManager[Connection]:
        self.count += 1
        return self.pool.transaction(**limits)

    async def expire(self) -> None:
        await self.pool.expire()

    async def close(self) -> None:
        await self.pool.close()


def counted(store: PostgresSessionStore) -> CountingPool:
    database = store._database
    database.pool = pool = CountingPool(database.pool)
    return pool


async def seen_by(visitor: Visitor) -> tuple[int, str]:
    """The status and the mark that the visitor gets."""
    status, _, body = await visitor.ask()
    return status, body


def rows(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM compas_session").fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_many_more_clients_than_connections(
    database: str, driver: str, long: bool
):
    """Only 200 and 503, the pool is idle afterwards, and no transaction is open."""
    store = await make_store(driver, database, size=POOL, timeout=5)
    with serve(counter_app(store)) as url:
        visitors = [Visitor(url) for _ in range(500 if long else 200)]
        seen: Counter[int] = Counter()

        async def use(n: int, visitor: Visitor) -> None:
            for round_ in range(10 if long else 3):
                status, _, _ = await visitor.ask(f"/?mark={n}&k={round_}", "POST")
                seen[status] += 1
                status, _, body = await visitor.ask()
                seen[status] += 1
                assert status == 503 or body == str(n) or visitor.cookie is None

        await asyncio.gather(*[use(n, visitor) for n, visitor in enumerate(visitors)])
        print(f"{driver}: {dict(seen)}")
        for visitor in visitors:
            visitor.drop()
        assert set(seen) <= {200, 503}
        assert seen[503] < seen[200] / 10
        found = await settled(database, most=POOL)
        assert set(found) <= {"idle"} and found["idle"] <= POOL
    await store.close()


def lock_table(dsn: str, seconds: float) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE compas_session")
        time.sleep(seconds)
        connection.rollback()


@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_nobody_sees_anothers_session(database: str, driver: str, long: bool):
    """
    Each session has a mark. With requests cut off at any moment and queries that run
    out of time, no foreign mark is ever seen, and nothing is left behind (R12).
    """
    store = await make_store(driver, database, size=POOL, timeout=0.3)
    chance = random.Random(4)
    process = psutil.Process()
    loop = asyncio.get_running_loop()
    seen: Counter[str] = Counter()
    with serve(counter_app(store)) as url:
        visitors = [Visitor(url) for _ in range(200 if long else 60)]
        for n, visitor in enumerate(visitors):
            assert 200 == (await visitor.ask(f"/?mark=m{n}", "POST"))[0]
            visitor.drop()
        descriptors, tasks = process.num_fds(), len(asyncio.all_tasks())
        left = 100_000 if long else 5_000
        usual = 0.01  # how long a request takes, about

        async def disturb() -> None:
            """Again and again, no query is answered for longer than the limit."""
            while left > 0:
                await loop.run_in_executor(None, lock_table, database, 0.5)
                await asyncio.sleep(0.5)

        async def use(n: int, visitor: Visitor) -> None:
            nonlocal left, usual
            while left > 0:
                left -= 1
                method = "POST" if left % 4 == 0 else "GET"
                path = f"/?k{left % 7}={left}" if method == "POST" else "/"
                request = asyncio.ensure_future(visitor.ask(path, method))
                start = loop.time()
                if chance.random() < 0.2:
                    # At any moment: before, during and after the queries.
                    loop.call_later(chance.random() * 1.3 * usual, request.cancel)
                try:
                    status, _, body = await request
                except (asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
                    seen["dropped"] += 1
                    continue
                seen[str(status)] += 1
                if status == 200:
                    usual += (loop.time() - start - usual) / 50
                if method == "GET" and status == 200:
                    assert f"m{n}" == body

        disturber = asyncio.ensure_future(disturb())
        await asyncio.gather(*[use(n, visitor) for n, visitor in enumerate(visitors)])
        await disturber
        for visitor in visitors:
            visitor.drop()
        print(f"{driver}: {dict(seen)}")
        assert {"200", "503", "dropped"} == set(seen)
        assert seen["200"] > 1000
        async with asyncio.timeout(30):
            while (
                len(asyncio.all_tasks()) > tasks
                or process.num_fds() > descriptors + 2 * POOL
                or store._database._abandoned
            ):
                await asyncio.sleep(0.1)
        found = await settled(database, most=POOL)
        assert set(found) <= {"idle"} and found["idle"] <= POOL
    await store.close()


# -- cookies ---------------------------------------------------------------------------


def test_no_mutation_of_a_cookie_is_accepted(long: bool):
    """Whatever is changed: no error, no session (R13)."""
    manager = make_manager()
    chance = random.Random(13)
    good = manager.keys.sign(NAME, new_handle() + new_secret())
    assert 1 == len(manager.find([f"{NAME}={good}"]))
    letters = [chr(n) for n in range(256)]
    for n in range(300_000 if long else 30_000):
        text = list(good)
        for _ in range(1 + n % 3):
            place = chance.randrange(len(text))
            match chance.randrange(4):
                case 0:
                    text[place] = chance.choice(letters)
                case 1:
                    del text[place]
                case 2:
                    text.insert(place, chance.choice(letters))
                case 3:
                    text[place:] = text[place:][::-1]
        value = "".join(text)
        if value.strip(" \t") == good or value.partition(";")[0].strip(" \t") == good:
            continue
        assert () == manager.find([f"{NAME}={value}"]), value


async def test_mangled_cookie_headers_are_anonymous(database: str, long: bool):
    """
    Raw on the socket: never a 5xx, never a session, and a statement only where several
    good ones came: it has to be asked which of them live (SG-9).
    """
    store = await make_store("connect", database)
    with serve(counter_app(store), max_header_size=70_000) as url:
        visitor = Visitor(url)
        await visitor.ask("/?mark=secret", "POST")
        other = Visitor(url)
        await other.ask("/?mark=other", "POST")
        good, rival = (visitor.cookie or "").encode(), (other.cookie or "").encode()
        name = NAME.encode()
        pool = counted(store)
        chance = random.Random(31)
        several = [
            [b"Cookie: %s=%s; %s=%s" % (name, good, name, rival)],
            [b"Cookie: %s=%s" % (name, good), b"Cookie: %s=%s" % (name, rival)],
        ]
        fixed: list[list[bytes]] = [
            *several,
            [b"Cookie: \xa0%s=%s" % (name, good)],
            [b"Cookie: %s\xa0=%s" % (name, good)],
            [b"Cookie: \x85%s=%s" % (name, good)],
            [b"Cookie: %s\x85=%s" % (name, good)],
            [b"Cookie: %s=%s" % (name.upper(), good)],
            [b"Cookie: %s=1|%s" % (name, good)],
            [b"Cookie: %s=garbage" % name],
            [b"Cookie: %s=a|b|c" % name],
            [b"Cookie: %s=" % name],
            [b"Cookie: " + b"a=b; " * 12_000],
            [b"Cookie: %s=%s" % (name, b"x" * 60_000)],
            [b"Cookie: ;;;==;=;", b"Cookie: ="],
            [b"Cookie: %s=%s\x00" % (name, good)],
        ]
        total = 20_000 if long else 600
        seen: Counter[int] = Counter()
        raw = await Raw.open(url)
        for n in range(total):
            if n < len(fixed):
                lines = fixed[n]
            else:
                value = bytearray(good)
                value[chance.randrange(len(value))] = chance.choice(
                    [b for b in range(33, 256) if b not in b";,\x7f"]
                )
                if bytes(value) == good:
                    continue
                lines = [b"Cookie: %s=%s" % (name, bytes(value))]
            try:
                status, _, body = await raw.ask(*lines)
            except (asyncio.IncompleteReadError, ConnectionError):
                seen[0] += 1  # Tornado hangs up on what is no HTTP
                raw.writer.close()
                raw = await Raw.open(url)
                continue
            seen[status] += 1
            assert status < 500
            if status == 200:
                assert b"none" == body
            else:
                raw.writer.close()
                raw = await Raw.open(url)
        raw.writer.close()
        print(dict(seen))
        assert len(several) == pool.count
        assert seen[200] > total / 2
        visitor.drop()
        other.drop()
    await store.close()


# -- strangers -------------------------------------------------------------------------


async def test_strangers_leave_no_row_and_cost_no_statement(database: str, long: bool):
    """GET, HEAD, OPTIONS, unknown pages, health checks, bad cookies (LC-5, R14)."""
    store = await make_store("connect", database)
    pool = counted(store)
    with serve(counter_app(store)) as url:
        raw = await Raw.open(url)
        seen: Counter[int] = Counter()
        for n in range(10_000 if long else 2_000):
            method = (b"GET", b"HEAD", b"OPTIONS", b"GET", b"GET")[n % 5]
            path = b"/none" if n % 5 == 3 else b"/"
            lines = [b"Cookie: %s=2|bad|%d" % (NAME.encode(), n)] if n % 5 == 4 else []
            status, headers, _ = await raw.ask(*lines, method=method, path=path)
            seen[status] += 1
            assert "Set-Cookie" not in headers
        raw.writer.close()
    print(dict(seen))
    assert set(seen) <= {200, 204, 404, 405}
    assert 0 == pool.count
    assert 0 == rows(database)
    await store.close()


UNSTORABLE: dict[str, Any] = {
    "nul": "a\0b",
    "surrogate": "\ud800",
    "nan": float("nan"),
    "infinity": float("inf"),
    "huge": 10**5000,
    "deep": None,
    "big": "x" * 300_000,
    "cycle": None,
    "bytes": b"bytes",
    "key": {1: "one"},
}


async def test_what_cannot_be_kept_is_refused_and_the_old_row_stays(database: str):
    """
    The error page is given the error, which names the path; no cookie goes out (ST-2).
    """
    deep: Any = "end"
    for _ in range(3000):
        deep = [deep]
    cycle: list[Any] = []
    cycle.append(cycle)
    values = UNSTORABLE | {"deep": deep, "cycle": cycle}
    errors: list[str] = []

    class Put(SessionMixin, RequestHandler):
        def post(self):
            what = self.get_query_argument("what")
            self.session["good"] = 1
            self.session["place"] = {"bad": [values[what]]}

        def write_error(self, status_code, **kwargs):
            errors.append(str(kwargs["exc_info"][1]))
            super().write_error(status_code, **kwargs)

    store = await make_store("connect", database)
    with (
        serve(make_app([("/put", Put)], store)) as url,
        serve(counter_app(store)) as usual,
    ):
        known = Visitor(usual)
        await known.ask("/?mark=old", "POST")
        before = rows(database)
        for what in values:
            for cookie in (None, known.cookie):
                visitor = Visitor(url)
                visitor.cookie = cookie
                status, headers, _ = await visitor.ask(f"/put?what={what}", "POST")
                visitor.drop()
                assert 500 == status, what
                assert [] == headers.get_list("Set-Cookie")
        known.drop()
    assert 2 * len(values) == len(errors)
    assert all("place" in error or "all of it" in error for error in errors), errors
    assert before == rows(database)
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT data FROM compas_session").fetchone()
    assert row == ({"mark": "old"},)
    await store.close()


# -- slow clients ----------------------------------------------------------------------


async def test_slow_clients_hold_no_connection_to_the_database(
    database: str, long: bool
):
    """Slow headers, slow bodies, slow readers; the others are served (R10)."""
    store = await make_store("connect", database, size=POOL)
    with serve(counter_app(store)) as url:
        visitor = Visitor(url)
        await visitor.ask("/?mark=m", "POST")
        cookie = f"Cookie: {NAME}={visitor.cookie}\r\n".encode()

        async def p99() -> float:
            spans = []
            for _ in range(300):
                start = time.perf_counter()
                assert (200, "m") == await seen_by(visitor)
                spans.append(time.perf_counter() - start)
            return sorted(spans)[-3]

        before = await p99()
        slow = [await Raw.open(url) for _ in range(350 if long else 105)]
        third = len(slow) // 3
        for n, raw in enumerate(slow):
            if n < third:
                await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + cookie)
            elif n < 2 * third:
                await raw.send(
                    b"POST /?k=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
                    + cookie
                    + b"\r\n1234"
                )
            else:
                await raw.send(b"GET /big HTTP/1.1\r\nHost: x\r\n" + cookie + b"\r\n")
        await asyncio.sleep(0.5)
        during = await p99()
        found = await settled(database, most=POOL)
        print(f"p99 {before * 1000:.1f} ms alone, {during * 1000:.1f} ms beside them")
        assert set(found) <= {"idle"}
        for raw in slow:
            raw.writer.transport.abort()
        visitor.drop()
    await store.close()


# -- clocks ----------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-3600, 3600])
async def test_an_applications_clock_that_is_off_changes_no_expiry(
    database: str, monkeypatch: pytest.MonkeyPatch, offset: int
):
    """Only the clock of the database decides (R20)."""
    store = await make_store("connect", database)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    with serve(counter_app(store, max_age=600, renew=60)) as url:
        visitor = Visitor(url)
        await visitor.ask("/?mark=m", "POST")
        assert (200, "m") == await seen_by(visitor)
        with psycopg.connect(database, autocommit=True) as connection:
            row = connection.execute(
                "SELECT extract(epoch FROM expires_at - now())::int FROM compas_session"
            ).fetchone()
            assert row is not None
            assert 590 <= row[0] <= 600
            connection.execute("UPDATE compas_session SET expires_at = now()")
        assert (200, "none") == await seen_by(visitor)
        visitor.drop()
    await store.close()


# -- a while ---------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=900)
async def test_a_soak(database: str, long: bool):
    """
    Memory and descriptors do not grow, and the table does not bloat (R21).

    Ten minutes in the long form, two in CI, and some seconds for who waits for it.
    """
    seconds = 600 if long else 120 if os.environ.get("CI") else 10
    store = await make_store("connect", database, size=POOL)
    process = psutil.Process()
    memory: list[int] = []
    statuses: Counter[int] = Counter()
    with serve(counter_app(store)) as url:
        load = Load(url, visitors=20, pause=0.01)
        await load.start()
        await asyncio.sleep(seconds / 10)
        descriptors, size = process.num_fds(), table_size(database)
        for _ in range(100):
            await asyncio.sleep(seconds * 0.9 / 100)
            memory.append(process.memory_info().rss)
            statuses += load.statuses()
            load.seen.clear()  # or the load's own record would be what grows
        bloat = table_size(database) / size
        more = process.num_fds() - descriptors
        await load.stop()
    count = statuses.total()
    grown = median(memory[75:]) - median(memory[:25])
    print(f"{count} requests: {grown / 1e6:.2f} MB, {more} descriptors, x{bloat:.2f}")
    assert [] == load.wrong
    assert [200] == list(statuses)
    assert grown < 3_000_000 + 10 * count
    assert more <= 8
    if seconds > 60:
        assert bloat < 2
    assert await store.load(new_handle()) is None
    await store.close()


def table_size(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_total_relation_size('compas_session')"
        ).fetchone()
        assert row is not None
        return int(row[0])
