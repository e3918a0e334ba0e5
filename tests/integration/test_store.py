"""Every store passes the suite: memory, and PostgreSQL through each driver."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from tornado.ioloop import IOLoop

from tests.drivers import DRIVERS, make_store
from tests.sessions import change, created, data_of
from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
)
from tornado_compas_session.stores.pools.queries import schema_dir
from tornado_compas_session.testing.conformance import Bench, StoreSuite

MakeStore = Callable[..., PostgresSessionStore]

#: As numbers, because `timestamptz - interval` is none that a distributed table takes.
PASS_TIME = "UPDATE compas_session SET " + ", ".join(
    f"{column} = to_timestamp("
    f"date_part('epoch', {column} - to_timestamp(0)) - %(past)s::float8)"
    for column in (
        *("created_at", "updated_at", "expires_at"),
        *("authenticated_at", "secret_at", "shown_at"),
    )
)


def partition(dsn: str) -> None:
    """Replaces the table by one that is spread over 16 partitions by the handle."""
    path = schema_dir() / "migrations" / "0001_create_sessions.sql"
    sql = path.read_text("utf-8")
    sql, found = re.subn(
        r"\)\n(--[^\n]*\n)?WITH \(fillfactor = 80\);",
        ") PARTITION BY HASH (handle);",
        sql,
    )
    assert 1 == found
    parts = "".join(
        f"CREATE TABLE compas_session_{n} PARTITION OF compas_session FOR VALUES "
        f"WITH (MODULUS 16, REMAINDER {n}) WITH (fillfactor = 80);\n"
        for n in range(16)
    )
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE compas_session")
        connection.execute(sql + parts)


@pytest.fixture
def new_store(io_loop: IOLoop) -> Iterator[MakeStore]:
    """Makes stores that are closed when the test ends."""
    made: list[PostgresSessionStore] = []

    def make(driver: str, dsn: str, **options: Any) -> PostgresSessionStore:
        made.append(io_loop.run_sync(lambda: make_store(driver, dsn, **options)))
        return made[-1]

    yield make
    for store in made:
        io_loop.run_sync(store.close)


@pytest.fixture(params=["connect", *DRIVERS])
def brief(
    request: pytest.FixtureRequest, new_store: MakeStore, database: str
) -> tuple[PostgresSessionStore, PostgresSessionStore]:
    """Two stores, as of two processes, whose statements may take 0.5 seconds."""
    one, two = (new_store(request.param, database, timeout=0.5) for _ in range(2))
    return one, two


#: What a store asks of Citus, for one that only thinks that there is one.
CITUS = """
CREATE FUNCTION citus_total_relation_size(regclass) RETURNS bigint
   LANGUAGE sql AS 'SELECT pg_total_relation_size($1)'
"""


@pytest.fixture(scope="module", params=["connect", *DRIVERS, "partitioned", "apart"])
def kind(request: pytest.FixtureRequest) -> str:
    """A driver; or a table in partitions; or a store that takes it for a distributed
    one, as it does where the table was that until a moment ago."""
    return str(request.param)


@pytest.fixture(scope="module")
def dsn(kind: str, databases: Any, template_database: str) -> Iterator[str]:
    """One database for all tests of a kind, emptied by each: that is quicker."""
    name = databases.create(template_database)
    dsn = databases.dsn(name)
    if kind == "partitioned":
        partition(dsn)
    elif kind == "apart":
        with psycopg.connect(dsn) as connection:
            connection.execute(CITUS)
    yield dsn
    databases.drop(name)


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def bench(self) -> Bench:
        now = time.time()

        def clock() -> float:
            return now

        def pass_time(seconds: float) -> None:
            nonlocal now
            now += seconds

        return Bench(MemorySessionStore(clock=clock), pass_time)


class TestPostgresStore(StoreSuite):
    @pytest.fixture
    def bench(self, kind: str, dsn: str, new_store: MakeStore) -> Bench:
        def run(sql: str, **values: float) -> None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(sql, values or None)

        run("DELETE FROM compas_session")
        driver = kind if kind in DRIVERS else "connect"
        one, two = new_store(driver, dsn), new_store(driver, dsn)
        for store in (one, two):
            store._database._distributed = kind == "apart" or None
        return Bench(one, lambda seconds: run(PASS_TIME, past=seconds), two)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_lock_may_be_waited_for_longer_than_a_statement_may_take(
    brief: tuple[PostgresSessionStore, PostgresSessionStore], where: str
) -> None:
    """`lock(timeout=15)` waits on where the pool's own limit is over long ago."""
    store, other = brief
    handle = await created(store)

    async def add() -> None:
        async with (store if where == "here" else other).lock(handle, 0, 15) as locked:
            assert locked is not None
            await locked.save(change({"second": True}))

    async with store.lock(handle, 0, 5) as locked:
        assert locked is not None
        waiting = asyncio.ensure_future(add())
        await asyncio.sleep(2.5)  # the limit of the pools themselves is 2 seconds
        assert not waiting.done()
        await locked.save(change({"first": True}))
    await waiting

    assert {"n": 0, "first": True, "second": True} == await data_of(store, handle)


@pytest.fixture
def patient(new_store: MakeStore, database: str) -> PostgresSessionStore:
    """A store whose statements may take 5 seconds, as they may by default."""
    return new_store("connect", database, timeout=5.0)


async def test_who_asks_may_have_less_time_than_the_store(
    patient: PostgresSessionStore,
) -> None:
    """A write within 0.5 s is done, and it waits for a locked row till then."""
    handle = await created(patient)
    clock = asyncio.get_running_loop().time

    async def save(key: str) -> None:
        until = clock() + 0.5
        assert await patient.save(handle, 0, change({key: 1}), deadline=until)

    await save("idle")
    async with patient.lock(handle, 0, 5):
        waiting = asyncio.ensure_future(save("locked"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    await waiting

    assert {"n": 0, "idle": 1, "locked": 1} == await data_of(patient, handle)


@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_a_store_that_is_closed_leaves_no_connection(
    driver: str, database: str
) -> None:
    """Nor one that was only just opening, for whoever came after the first."""
    for _ in range(5):
        store = await make_store(driver, database)
        handle = await created(store)
        deletes = [store.delete(handle, epoch) for epoch in range(4)]
        await asyncio.gather(*deletes)
        await store.close()
        assert {} == IOLoop.current().handlers  # type: ignore[attr-defined]
    with psycopg.connect(database) as connection:
        async with asyncio.timeout(10):
            while connection.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            ).fetchone():
                connection.rollback()
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_metrics_count_what_is_done(database: str, driver: str) -> None:
    """Batches, what was in them, their time; and the connections that are in use."""
    store = await make_store(driver, database)
    told: list[dict[str, Any]] = []
    store.listen(lambda name, **info: told.append({"name": name, **info}))
    handle = await created(store)
    before = store.metrics()
    await asyncio.gather(*[store.load(handle) for _ in range(5)])
    after = store.metrics()

    assert 1 == after["create_batches"] == after["create_items"]
    assert 1 == after["load_batches"] - before["load_batches"]
    assert 0 == after["load_waiting"] == after["load_under_way"]
    assert after["load_seconds"] > before["load_seconds"]
    assert {"name": "store.batch", "kind": "load", "size": 1, "error": None} == {
        key: told[-1][key] for key in ("name", "kind", "size", "error")
    }
    assert 1 <= after["pool_size"] <= 10
    assert 0 == after["pool_in_use"]
    async with store.lock(handle, 0, 2):
        assert 1 == store.metrics()["pool_in_use"]
    await store.close()
