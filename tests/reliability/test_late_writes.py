"""What was answered 503 does not happen later, and undoes nothing that did."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from tornado.web import RequestHandler

from tests.drivers import DRIVERS, make_store
from tests.factories import make_app, serve
from tests.reliability.load import Visitor
from tornado_compas_session import SessionMixin
from tornado_compas_session.exceptions import StoreUnavailable
from tornado_compas_session.stores.batching import Batcher

pytestmark = pytest.mark.slow

TIMEOUT = 1.0
#: Of each kind of write.
MANY = 10


class Write(SessionMixin, RequestHandler):
    """Writes in each of the ways there are; what it writes is what was asked for."""

    async def post(self, verb: str) -> None:
        session = self.session
        match verb:
            case "create" | "save":
                value = self.get_query_argument("value")
                session["value"] = session[value] = value
            case "increment":
                self.write({"n": await session.increment("n")})
            case "sign-in":
                session["user_id"] = self.get_query_argument("value")
            case "regenerate":
                session.regenerate()
            case "sign-out":
                self.session = None
            case "lock":
                async with session.lock():
                    session["value"] = self.get_query_argument("value")


@contextmanager
def locked_for_writes(dsn: str) -> Iterator[None]:
    """The table can be read, and nothing is written to it."""
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE compas_session IN SHARE MODE")
        yield
        connection.rollback()


def table(dsn: str) -> dict[str, tuple[Any, ...]]:
    """All that matters of the rows, by handle."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT handle, data, secret_hash, epoch, user_id FROM compas_session"
        ).fetchall()
    return {row[0]: row[1:] for row in rows}


async def trouble(store: Any, dsn: str, **options: Any) -> dict[str, int]:
    """
    The table is locked for a little longer than the limit. Writes of all kinds wait in
    two lanes and in the queue for them, and are answered 503. Those who save try again
    at once; the others do not.

    Returns how many of the refused writes happened later, and how many of those that
    were acknowledged are not there in the end.
    """
    loop = asyncio.get_running_loop()
    verbs = ["create", "increment", "sign-in", "regenerate", "sign-out", "lock"]
    refused: list[int] = []
    told, ready, release = asyncio.Event(), asyncio.Event(), threading.Event()

    def hold() -> None:
        with locked_for_writes(dsn):
            loop.call_soon_threadsafe(ready.set)
            release.wait(30)

    async def write(verb: str, visitor: Visitor) -> None:
        status, headers, _ = await visitor.ask(f"/{verb}?value=refused", "POST")
        assert "Retry-After" in headers
        refused.append(status)
        if len(refused) == len(savers) + len(others):
            told.set()

    async def save(visitor: Visitor) -> None:
        await write("save", visitor)
        for _ in range(20):
            if (await visitor.ask("/save?value=stands", "POST"))[0] == 200:
                return
        raise AssertionError("nothing can be saved")

    app = make_app([("/([a-z-]+)", Write)], store, timeout=TIMEOUT, **options)
    with serve(app) as url:
        savers = [Visitor(url) for _ in range(3 * MANY)]
        others = [(verb, Visitor(url)) for verb in verbs for _ in range(MANY)]
        for visitor in savers:
            await visitor.ask("/create?value=saver", "POST")
        for verb, visitor in others:
            if verb != "create":
                await visitor.ask("/create?value=other", "POST")
        before = await loop.run_in_executor(None, table, dsn)
        assert len(savers) + len(others) - MANY == len(before)

        holding = loop.run_in_executor(None, hold)
        await ready.wait()
        work = []
        for visitor in savers[:2]:  # each takes a lane
            work.append(asyncio.ensure_future(save(visitor)))
            await asyncio.sleep(5 * Batcher.patience)
        work += [asyncio.ensure_future(save(visitor)) for visitor in savers[2:]]
        work += [asyncio.ensure_future(write(*each)) for each in others]
        await told.wait()
        assert {503} == set(refused)
        assert before == await loop.run_in_executor(None, table, dsn)
        await asyncio.sleep(0.15)
        release.set()
        await asyncio.gather(holding, *work)
        await asyncio.sleep(TIMEOUT + 0.5)
        after = await loop.run_in_executor(None, table, dsn)
        for visitor in (*savers, *(visitor for _, visitor in others)):
            visitor.drop()
    untouched = {handle for handle, row in before.items() if after.get(handle) == row}
    changed = [row[0] for handle, row in after.items() if handle not in untouched]
    ended = len(before.keys() - after)
    late = [data for data in changed if "stands" not in data or "refused" in data]
    stand = [data for data in changed if data.get("value") == "stands"]
    return {"late": len(late) + ended, "undone": len(savers) - len(stand)}


@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_what_was_refused_never_happens(database: str, driver: str):
    """
    Not one of 90 writes that were answered 503 is applied, whichever way it waited;
    and who tried again is not undone by it.
    """
    store = await make_store(driver, database, size=12, timeout=TIMEOUT)

    assert {"late": 0, "undone": 0} == await trouble(store, database)

    await store.close()


async def test_a_bounded_sign_in_that_was_refused_never_happens(database: str):
    """It is a transaction of its own, and no part of it is left."""
    store = await make_store("connect", database, size=12, timeout=TIMEOUT)

    found = await trouble(store, database, max_sessions_per_user=2)

    assert {"late": 0, "undone": 0} == found
    await store.close()


async def test_control_a_fresh_limit_for_what_waited(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    """A lane that takes what waited, with a fresh limit, writes for the refused."""

    def fresh(self: Any, now: float) -> Any:
        queue, self._queue = [*self._queue], deque()
        items: dict[Any, Any] = {}
        waiters: dict[Any, Any] = {}
        for key, item, waiter, until, _ in queue:
            items[key] = item
            late = StoreUnavailable("refused, and its query goes on")
            asyncio.get_running_loop().call_at(until, self._fail, [waiter], late)
            waiters.setdefault(key, []).append(waiter)
        return items, waiters, now + self.timeout, now + self.timeout

    monkeypatch.setattr(Batcher, "_next", fresh)
    store = await make_store("connect", database, size=12, timeout=TIMEOUT)

    found = await trouble(store, database)

    assert found["late"] > 0
    await store.close()
