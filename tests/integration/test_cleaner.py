"""The cleaner: deletes what has expired and nothing else, one at a time, for ever."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
    StoreUnavailable,
    get_app,
)
from tornado_compas_session.stores.cleaner import Cleaner
from tornado_compas_session.tools.cli import main

FILL = """
INSERT INTO compas_session (handle, secret_hash, data, expires_at)
SELECT lpad(n::text, 12, '0'), sha256(n::text::bytea), '{"n": 1}',
       now() + %(left)s::interval
  FROM generate_series(%(start)s::int, %(stop)s::int) n
"""


def fill(dsn: str, *, expired: int, live: int = 0) -> None:
    with psycopg.connect(dsn) as connection:
        old = {"start": 1, "stop": expired, "left": "-1 second"}
        connection.execute(FILL.encode(), old)
        new = {"start": expired + 1, "stop": expired + live, "left": "1 hour"}
        connection.execute(FILL.encode(), new)


def rows(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        [row] = connection.execute("SELECT count(*) FROM compas_session").fetchall()
    return int(row[0])


async def until(condition: Callable[[], bool], patience: float = 30) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[PostgresSessionStore]:
    store = await PostgresSessionStore.connect(dsn)
    try:
        yield store
    finally:
        await store.close()


class Counting(MemorySessionStore):
    """Counts the rounds, and fails while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0
        self.failing = False

    async def delete_expired(self, *, limit: int = 1000) -> int:
        self.rounds += 1
        if self.failing:
            raise StoreUnavailable("gone fishing")
        return await super().delete_expired(limit=limit)


async def test_expired_go_and_live_stay(database: str) -> None:
    """All that has expired, in batches; never a live one."""
    fill(database, expired=2500, live=50)
    async with opened(database) as store:
        assert 2500 == await Cleaner(store, batch=1000).clean()

    assert 50 == rows(database)


async def test_one_of_many_works_at_a_time(database: str) -> None:
    """While another's statement is under way, a cleaner finds nothing to do."""
    fill(database, expired=100)
    async with opened(database) as store:
        with psycopg.connect(database) as other:
            # The lock of a cleaner that is in the middle of its statement.
            other.execute("SELECT pg_advisory_xact_lock(7290217303148222)")
            assert 0 == await Cleaner(store).clean()
            assert 100 == rows(database)
        assert 100 == await Cleaner(store).clean()


@pytest.mark.slow
async def test_many_at_once_delete_each_row_once(database: str) -> None:
    """However they meet, nothing is counted twice, and nobody waits for ever."""
    fill(database, expired=3000)
    async with opened(database) as store:
        cleaners = [Cleaner(store, every=0.1, batch=100) for _ in range(5)]
        totals = await asyncio.gather(*(cleaner.clean() for cleaner in cleaners))
        totals.append(await cleaners[0].clean())

    assert 3000 == sum(totals)
    assert 0 == rows(database)


async def test_session_locks_are_not_used(database: str) -> None:
    """Nothing stays locked when it is done: a pooler may have the connection."""
    fill(database, expired=10)
    async with opened(database) as store:
        await Cleaner(store).clean()
        with psycopg.connect(database) as connection:
            [row] = connection.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND classid::bigint << 32 | objid::bigint = 7290217303148222"
            ).fetchall()

    assert 0 == row[0]


async def test_a_renewed_session_is_not_deleted(database: str) -> None:
    """A row that somebody holds is left for another round."""
    fill(database, expired=10)
    async with opened(database) as store:
        with psycopg.connect(database) as other:
            other.execute(
                "UPDATE compas_session SET expires_at = now() + interval '1 hour'"
                " WHERE handle = lpad('7', 12, '0')"
            )
            assert 9 == await Cleaner(store).clean()
        assert 0 == await Cleaner(store).clean()

    assert 1 == rows(database)


async def test_plan_uses_the_index(database: str) -> None:
    """A million live sessions cost it nothing: it goes by the index of dates."""
    fill(database, expired=100, live=5000)
    async with opened(database) as store:
        sql = store._database.sql["delete_expired"].numbered.replace("$1", "100")
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("ANALYZE compas_session")
            connection.execute(
                "UPDATE compas_session SET expires_at = expires_at + interval '7 days'"
                " WHERE expires_at > now()"
            )
            connection.execute("ANALYZE compas_session")
            plan = connection.execute(f"EXPLAIN {sql}".encode()).fetchall()

    text = "\n".join(row[0] for row in plan)
    assert "compas_session_reap_after" in text
    assert "Seq Scan on compas_session" not in text


async def test_it_survives_errors_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A database that is away for an hour is one line in the log, and one after it."""
    store = Counting()
    store.failing = True
    cleaner = Cleaner(store, every=0.01)
    with caplog.at_level(logging.INFO, logger="tornado_compas_session"):
        cleaner.start()
        await until(lambda: store.rounds >= 5)
        store.failing = False
        seen = store.rounds
        await until(lambda: store.rounds >= seen + 3)
        await cleaner.stop()

    said = [record.getMessage() for record in caplog.records]
    assert [
        "expired sessions cannot be deleted: gone fishing; it will be tried again",
        "expired sessions are deleted again",
    ] == said


async def test_it_stops_in_the_middle_of_a_round() -> None:
    """Who stops it waits for no batch, and nothing of it goes on."""
    begun = asyncio.Event()

    class Endless(MemorySessionStore):
        async def delete_expired(self, *, limit: int = 1000) -> int:
            begun.set()
            await asyncio.sleep(3600)
            return 0

    cleaner = Cleaner(Endless(), every=0.01)
    cleaner.start()
    await asyncio.wait_for(begun.wait(), 30)
    before = len(asyncio.all_tasks())
    await cleaner.stop()

    assert before - 1 == len(asyncio.all_tasks())
    cleaner.start()
    assert before - 1 == len(asyncio.all_tasks())


async def test_application_starts_it_where_it_serves() -> None:
    """
    Not when it is made, for that may be before a fork, but at its first request; and
    `cleaner=False` leaves it out.
    """
    store = Counting()
    app = get_app([], store=store)
    cleaner = app.settings["compas_session_cleaner"]
    cleaner.every = 0.01
    server, sockets = HTTPServer(app), bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        await asyncio.sleep(0.05)
        assert 0 == store.rounds
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/_health"
        for _ in range(3):
            assert 200 == (await AsyncHTTPClient().fetch(url)).code
        await until(lambda: store.rounds >= 2)
    finally:
        server.stop()
        await cleaner.stop()

    assert (
        get_app([], store=store, cleaner=False).settings["compas_session_cleaner"]
        is None
    )
    assert get_app([]).settings["compas_session_cleaner"] is None


async def test_it_starts_anew_on_another_loop() -> None:
    """A test suite with a loop per test can share an application."""
    store = Counting()
    cleaner = Cleaner(store, every=0.01)

    async def some_rounds() -> None:
        cleaner.start()
        wanted = store.rounds + 2
        await until(lambda: store.rounds >= wanted)

    for _ in range(2):
        thread = threading.Thread(target=lambda: asyncio.run(some_rounds()))
        thread.start()
        await asyncio.to_thread(thread.join, 60)
        assert not thread.is_alive()

    assert store.rounds >= 4


def test_command_for_cron(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`cleanup` prints how many, and says so where another cleaner is at work."""
    fill(database, expired=250, live=3)
    command = ["cleanup", "--limit", "100", "--database-url", database]
    assert 0 == main(command)
    assert "250\n" == capsys.readouterr().out
    assert 3 == rows(database)

    with psycopg.connect(database) as other:
        other.execute("UPDATE compas_session SET expires_at = now()")
        other.commit()
        other.execute("SELECT pg_advisory_xact_lock(7290217303148222)")
        assert 0 == main(command)
    printed, talk = capsys.readouterr()
    assert "0\n" == printed
    assert "another cleaner has 3" in talk
