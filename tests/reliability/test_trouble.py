"""
What the log says of trouble with the database: a line when it begins, when it changes
and when it ends, and never one for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
from tornado.web import RequestHandler

from tests.drivers import DRIVERS, make_store
from tests.factories import serve
from tests.reliability.load import Mark, Visitor
from tornado_compas_session import SessionMixin, get_app
from tornado_compas_session.core import trouble
from tornado_compas_session.core.trouble import Trouble, Watch
from tornado_compas_session.stores.batches import Loads, Shared

pytestmark = pytest.mark.slow

TIMEOUT = 0.5
VISITORS = 6


class Locked(SessionMixin, RequestHandler):
    async def post(self):
        async with self.session.lock():
            self.session["n"] = 1
            # Of another connection, meanwhile.
            self.application.settings["inside"]()


class Devices(SessionMixin, RequestHandler):
    async def get(self):
        await self.session.devices()

    async def post(self):
        await self.session.end_others()


def nothing() -> None:
    pass


@pytest.fixture(params=["connect", *DRIVERS])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """The lines of the library at this level and above."""
    caplog.set_level(logging.INFO, logger="tornado_compas_session")

    def lines(level: int = logging.WARNING) -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.name == "tornado_compas_session" and record.levelno >= level
        ]

    return lines


class Site:
    """An application, and visitors who come again and again."""

    def __init__(self, url: str, app: Any, store: Any) -> None:
        self.url, self.app, self.store = url, app, store
        self.readers = [Visitor(url) for _ in range(VISITORS)]
        self.writers = [Visitor(url) for _ in range(VISITORS)]
        self.seen: Counter[tuple[str, int]] = Counter()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for visitor in (*self.readers, *self.writers):
            assert 200 == (await visitor.ask("/?n=0", "POST"))[0]
        self._tasks = [
            *(asyncio.ensure_future(self._come(each, "GET")) for each in self.readers),
            *(asyncio.ensure_future(self._come(each, "POST")) for each in self.writers),
        ]

    async def _come(self, visitor: Visitor, method: str) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            path = "/" if method == "GET" else f"/?n={turn}"
            status, _, _ = await visitor.ask(path, method)
            self.seen[method, status] += 1
            await asyncio.sleep(0.02)

    @property
    def refused(self) -> int:
        return self.seen["GET", 503] + self.seen["POST", 503]

    async def health(self) -> int:
        visitor = Visitor(self.url)
        status, _, _ = await visitor.ask("/_health")
        visitor.drop()
        return status

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)
        for visitor in (*self.readers, *self.writers):
            visitor.drop()


@contextlib.asynccontextmanager
async def site(
    driver: str, dsn: str, inside: Any = nothing, *, visited: bool = True
) -> AsyncIterator[Site]:
    store = await make_store(driver, dsn, size=8, timeout=TIMEOUT)
    try:
        routes = [("/", Mark), ("/locked", Locked), ("/devices", Devices)]
        app = get_app(routes, store=store, timeout=TIMEOUT)
        app.settings.update(inside=inside, log_function=lambda handler: None)
        with serve(app) as url:
            site = Site(url, app, store)
            if visited:
                await site.start()
            try:
                yield site
            finally:
                await site.stop()
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def table_locked(dsn: str, mode: str) -> AsyncIterator[None]:
    connection = await psycopg.AsyncConnection.connect(dsn)
    async with connection:
        await connection.execute(f"LOCK TABLE compas_session IN {mode} MODE")
        yield
        await connection.rollback()


async def over(site: Site, *, patience: float = 20) -> None:
    """Until the store is well, or that is not to be expected any more."""
    async with asyncio.timeout(patience):
        while site.store.problem is not None:
            await asyncio.sleep(0.05)


def end_of(lines: list[str]) -> tuple[float, int]:
    """How long it lasted, and how many were refused, as the last line says."""
    found = re.fullmatch(
        r"the session store works again, after ([\d.]+) seconds; (\d+) requests were "
        r"refused",
        lines[-1],
    )
    assert found is not None, lines
    return float(found[1]), int(found[2])


async def test_reads_that_wait_for_a_lock_are_trouble(database: str, driver: str, said):
    """
    The table is locked for three seconds: all are refused, it is said once of reads and
    perhaps of writes, `/_health` shows it, and the end says how long and how many.
    """
    async with site(driver, database) as visited:
        async with table_locked(database, "ACCESS EXCLUSIVE"):
            await asyncio.sleep(3)
            assert visited.store.problem is not None
            during = said()
            assert 200 == await visited.health()
            assert "healthy, but for the sessions" in said()[-1]
        await over(visited)
        before = len(said())
        assert 200 == await visited.health()
    lines = said()

    assert before == len(lines)  # /_health has nothing to show any more
    assert visited.refused > VISITORS
    kinds = [
        re.match(r"the session store is in trouble: (\w+)", each) for each in during
    ]
    assert all(kinds), during
    assert "reads" in [found[1] for found in kinds if found]
    # Each reason once: no answer, or no connection came free; of reads and of writes.
    assert 1 <= len(during) <= 4
    assert len(during) + 2 == len(lines), lines
    lasted, refused = end_of(lines)
    assert 2 < lasted < 6
    assert refused == visited.refused


async def test_writes_that_fail_while_reads_work(database: str, driver: str, said):
    """It does not come and go with each request: it begins once, and ends once."""
    async with site(driver, database) as visited:
        async with table_locked(database, "SHARE"):
            await asyncio.sleep(2)
            assert visited.store.problem is not None
            during = said()
        await over(visited)
    lines = said()

    assert visited.seen["GET", 200] > 10 * VISITORS
    assert visited.seen["POST", 503] >= VISITORS
    assert all("in trouble: writes fail" in line for line in during), during
    assert 1 <= len(during) <= 2
    assert len(during) + 1 == len(lines), lines
    lasted, refused = end_of(lines)
    assert 1 < lasted < 5
    assert refused == visited.refused


async def test_control_any_success_is_the_end(database: str, said, monkeypatch):
    """Where reads and writes are one kind, and the next success ends it, it floods."""
    monkeypatch.setattr(trouble, "_QUIET", 0.0)
    monkeypatch.setattr(Trouble, "watch", lambda self, kind: Watch(self, "requests"))
    monkeypatch.setattr(Shared, "kind", "requests")
    monkeypatch.setattr(Loads, "kind", "requests")
    async with site("connect", database), table_locked(database, "SHARE"):
        await asyncio.sleep(2)

    assert len(said()) > 5


async def test_a_lock_that_does_not_come_is_said(database: str, driver: str, said):
    """Somebody has the row locked: `lock()` is a 503, with a line that says why."""
    async with site(driver, database) as visited:
        visitor = Visitor(visited.url)
        assert 200 == (await visitor.ask("/?mark=locked", "POST"))[0]
        with psycopg.connect(database) as other:
            other.execute(
                "SELECT 1 FROM compas_session WHERE data->>'mark' = 'locked' FOR UPDATE"
            )
            for _ in range(3):
                assert 503 == (await visitor.ask("/locked", "POST"))[0]
            other.rollback()
        assert 200 == (await visitor.ask("/locked", "POST"))[0]
        visitor.drop()
        await over(visited)
    lines = said()

    begins = [line for line in lines if "in trouble" in line]
    assert 1 <= len(begins) <= 3, lines
    assert any("locks fail: The lock on the session" in line for line in begins)
    _, refused = end_of(lines)
    assert 3 == refused


async def test_a_connection_lost_inside_of_lock_is_said(
    database: str, driver: str, said
):
    """Its transaction is gone, the request is a 503, and the log says why."""

    def kill() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND xact_start IS NOT NULL AND state = 'idle in transaction'"
            )

    async with site(driver, database, inside=kill) as visited:
        visitor = Visitor(visited.url)
        assert 200 == (await visitor.ask("/?mark=locked", "POST"))[0]
        assert 503 == (await visitor.ask("/locked", "POST"))[0]
        status, _, body = await visitor.ask("/")
        assert (200, "locked") == (status, body)
        visitor.drop()
        await over(visited)
    lines = said()

    assert "the session store is in trouble: writes fail" in lines[0], lines
    assert end_of(lines)[1] >= 1


async def test_ending_the_others_is_told_of_as_well(database: str, driver: str, said):
    """`end_others()` and `devices()` are requests like any other."""
    async with site(driver, database, visited=False) as visited:
        visitor = Visitor(visited.url)
        assert 200 == (await visitor.ask("/?user_id=ada", "POST"))[0]
        assert 200 == (await visitor.ask("/devices"))[0]
        assert [] == said()
        async with table_locked(database, "SHARE"):
            assert 200 == (await visitor.ask("/devices"))[0]
            assert 503 == (await visitor.ask("/devices", "POST"))[0]
        assert 200 == (await visitor.ask("/devices", "POST"))[0]
        visitor.drop()
        await over(visited)
    [begin, end] = said()

    assert "the session store is in trouble: writes fail" in begin
    assert 1 == end_of([end])[1]
