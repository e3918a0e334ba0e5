"""Each driver under the store: what it must absorb, and what it must never let out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from tornado.ioloop import IOLoop

from tests.drivers import DRIVERS, make_pool, make_store
from tests.sessions import change, created, data_of, turn
from tornado_compas_session import (
    PostgresSessionStore,
    SchemaMissing,
    SessionDataError,
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.protocols import Connection, Pool
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.exceptions import ConnectionLost, WriteConflict
from tornado_compas_session.stores.pools import as_pool
from tornado_compas_session.stores.pools.queries import Statement

MakeStore = Callable[..., Awaitable[PostgresSessionStore]]


@pytest.fixture
def new_store(io_loop: IOLoop) -> Iterator[MakeStore]:
    """Makes stores that are closed when the test ends."""
    made: list[PostgresSessionStore] = []

    async def make(driver: str, dsn: str, **options: Any) -> PostgresSessionStore:
        made.append(await make_store(driver, dsn, **options))
        return made[-1]

    yield make
    for store in made:
        io_loop.run_sync(store.close)


@pytest.fixture(params=["connect", *DRIVERS])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(
    driver: str, new_store: MakeStore, database: str, io_loop: IOLoop
) -> PostgresSessionStore:
    made: PostgresSessionStore = io_loop.run_sync(lambda: new_store(driver, database))
    return made


def run(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    """Asks the database, past the store."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        answer = connection.execute(sql)
        return answer.fetchall() if answer.description else []


def kill_connections(dsn: str) -> int:
    """Ends every other connection to the database; returns how many."""
    return len(
        run(
            dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
    )


class Spy:
    """A pool in front of another one, which counts and may answer something else."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.asked: list[str] = []
        self.answer: Callable[[str], Awaitable[Sequence[Any]] | None] = lambda name: (
            None
        )
        self.expired = 0

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Any]:
        self.asked.append(statement.name)
        other = self.answer(statement.name)
        if other is not None:
            return await other
        return await self.pool.fetch(statement, timeout=timeout, **values)

    def transaction(self, **limits: Any) -> AbstractAsyncContextManager[Connection]:
        return self.pool.transaction(**limits)

    async def expire(self) -> None:
        self.expired += 1
        await self.pool.expire()

    async def close(self) -> None:
        await self.pool.close()


def spy_on(store: PostgresSessionStore) -> Spy:
    spy = Spy(store._database.pool)
    store._database.pool = spy
    return spy


async def raising(error: Exception) -> Sequence[Any]:
    raise error


# -- recognising -----------------------------------------------------------------------


async def test_a_pool_is_recognised_and_wrapped_once(driver: str, database: str):
    """By its type, without importing any driver; what has the protocol stays."""
    if driver == "connect":
        return
    pool = await make_pool(driver, database)
    wrapped = as_pool(pool)
    assert isinstance(wrapped, Pool)
    assert wrapped is as_pool(wrapped)
    await wrapped.close()


@pytest.mark.parametrize("wrong", [None, "postgresql://", object(), dict])
def test_anything_else_is_refused_with_what_is_accepted(wrong: object):
    """A SettingsError that names the three pools."""
    with pytest.raises(SettingsError, match=r"asyncpg\.Pool.*momoko\.Pool"):
        PostgresSessionStore(wrong)


def test_another_momoko_is_refused(monkeypatch: pytest.MonkeyPatch):
    """pip chooses 2.2.4 by itself, which does not run; the message has the way out."""
    from tornado_compas_session.stores.pools import momoko

    monkeypatch.setattr(momoko, "version", lambda name: "2.2.4")
    with pytest.raises(
        SettingsError, match=r"pip install --no-deps momoko==2\.2\.5\.1"
    ):
        momoko.MomokoPool(object(), timeout=1)


# -- what an application's pool may be like --------------------------------------------


async def test_an_applications_own_psycopg_pool_is_left_as_it_is(database: str):
    """With dict rows and without autocommit; both are the application's again after."""
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        database, min_size=1, max_size=1, open=False, kwargs={"row_factory": dict_row}
    )
    await pool.open()
    store = PostgresSessionStore(pool)
    handle = await created(store, {"n": 1})
    assert {"n": 1} == await data_of(store, handle)
    async with store.lock(handle, 0, 5) as locked:
        assert locked is not None
        await locked.save(change({"n": 2}))

    async with pool.connection() as connection:
        assert not connection.autocommit
        row = await (await connection.execute("SELECT 1 AS one")).fetchone()
        assert {"one": 1} == row
    assert {"n": 2} == await data_of(store, handle)
    await store.close()


# -- errors ----------------------------------------------------------------------------


async def test_a_missing_table_is_said_with_the_way_out(
    driver: str, empty_database: str
):
    """SchemaMissing names the command, for every verb."""
    store = await make_store(driver, empty_database)
    for call in (
        store.load(new_handle()),
        store.create(new_handle(), hash_secret(new_secret()), change({"n": 1})),
        store.save(new_handle(), 0, change({"n": 1})),
        store.check(),
    ):
        with pytest.raises(SchemaMissing, match="migrate"):
            await call
    await store.close()


@pytest.mark.slow
async def test_errors_and_logs_show_no_secret(
    driver: str, database: str, caplog: pytest.LogCaptureFixture
):
    """Neither the DSN's password nor data, in message, cause, context or log (LG-1)."""
    caplog.set_level(logging.DEBUG, logger="tornado_compas_session")
    parts = urlsplit(database)
    wrong = parts._replace(netloc=f"nobody:hunter2@{parts.hostname}:{parts.port}")
    errors: list[BaseException] = []
    secret_hash = hash_secret(new_secret())

    store = await make_store(driver, wrong.geturl(), timeout=1)
    with pytest.raises(StoreError) as refused:
        await store.load(new_handle())
    errors.append(refused.value)
    await store.close()

    store = await make_store(driver, database)
    run(database, "ALTER TABLE compas_session ADD CHECK (data ->> 'a' <> 'classified')")
    # The second one is what the session itself would have refused.
    nul = SessionChange(changed={"a": '"\\u0000classified"'}, idle=3600.0)
    for given in (change({"a": "classified"}), nul):
        with pytest.raises((StoreError, SessionDataError)) as caught:
            await store.create(new_handle(), secret_hash, given)
        errors.append(caught.value)
    await store.close()

    for error in errors:
        seen = f"{error} {error!r} {error.__cause__!r} {vars(error)}"
        assert "hunter2" not in seen and "classified" not in seen
        assert error.__cause__ is None
    assert "hunter2" not in caplog.text and "classified" not in caplog.text


async def test_a_role_with_the_four_verbs_on_the_table_is_enough(
    driver: str, database: str
):
    """SELECT, INSERT, UPDATE, DELETE, and nothing else (ST-5)."""
    role = f"web_{new_handle()[:8].lower().replace('-', '_')}"
    run(
        database,
        f'CREATE ROLE "{role}" LOGIN;'
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON compas_session TO "{role}"',
    )
    parts = urlsplit(database)
    dsn = parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}").geturl()
    store = await make_store(driver, dsn)
    try:
        secret = new_secret()
        handle = await created(store, {"user_id": "ada"}, secret=secret, user="ada")
        await store.check()
        await store.save(handle, 0, change({"n": 1}))
        await store.increment(handle, 0, "n", "1", change())
        assert await store.regenerate(handle, 0, turn(secret), change()) is not None
        async with store.lock(handle, 0, 5) as locked:
            assert locked is not None
            await locked.save(change({"n": 2}))
        assert 1 == len(await store.sessions_of("ada"))
        assert [("ada", 1)] == await store.top_users()
        assert 0 == await store.delete_expired()
        assert 1 == (await store.stats())["live"]
        assert await store.delete(handle, 0)
        assert 0 == await store.revoke_user("ada")
        assert 0 == await store.revoke_all()
        with pytest.raises(StoreError):
            async with store._database.pool.transaction() as connection:
                await connection.run_script("CREATE TABLE loot (id integer)")
    finally:
        await store.close()
        run(database, f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


# -- batches ---------------------------------------------------------------------------


async def test_one_bad_write_does_not_touch_its_neighbours(store: PostgresSessionStore):
    """In a batch the others are written, and the bad one alone gets the error."""
    ids = [await created(store) for _ in range(5)]
    values = ["1", "2", '"\\u0000"', "4", "5"]

    results = await asyncio.gather(
        *[
            store.save(each, 0, SessionChange(changed={"v": value}, idle=60.0))
            for each, value in zip(ids, values, strict=True)
        ],
        return_exceptions=True,
    )

    assert [2] == [i for i, r in enumerate(results) if isinstance(r, Exception)]
    assert isinstance(results[2], SessionDataError)
    found = [(await data_of(store, each)).get("v") for each in ids]
    assert [1, 2, None, 4, 5] == found


async def test_a_waiter_that_leaves_does_not_touch_its_neighbours(
    store: PostgresSessionStore,
):
    """Whenever it is cancelled, the others get their own."""
    ids = [await created(store, {"mark": str(n)}) for n in range(20)]
    for round_ in range(10):
        tasks = [asyncio.ensure_future(data_of(store, each)) for each in ids]
        for _ in range(round_ % 4):
            await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for n, result in enumerate(found):
            if not isinstance(result, asyncio.CancelledError):
                assert {"mark": str(n)} == result
        assert 0 < sum(isinstance(result, dict) for result in found)


async def test_a_locked_row_does_not_hold_up_its_batch(
    store: PostgresSessionStore, database: str
):
    """It is left out and waits alone, until the lock goes."""
    held, *free = [await created(store) for _ in range(5)]
    with psycopg.connect(database) as other:
        other.execute(
            "SELECT 1 FROM compas_session WHERE handle = %s FOR UPDATE", [held]
        )
        waiting = asyncio.ensure_future(store.save(held, 0, change({"v": 1})))
        await asyncio.gather(*[store.save(each, 0, change({"v": 1})) for each in free])
        assert not waiting.done()
        other.rollback()
    assert (await waiting) is not None
    for each in (held, *free):
        assert {"n": 0, "v": 1} == await data_of(store, each)


async def test_a_queue_that_is_too_long_is_answered_at_once(
    new_store: MakeStore, database: str
):
    """Beyond `max_waiting` nobody joins the queue; whoever is in it is served."""
    store = await new_store("connect", database, max_waiting=10, lanes=1)
    handle = await created(store)
    gate = asyncio.Event()
    spy = spy_on(store)

    async def wait() -> Sequence[Any]:
        spy.answer = lambda name: None
        await gate.wait()
        return []

    spy.answer = lambda name: wait()
    tasks = [asyncio.ensure_future(store.load(handle))]
    await asyncio.sleep(0.05)  # that one is under way, and the others wait for it
    tasks += [asyncio.ensure_future(store.load(handle)) for _ in range(29)]
    await asyncio.sleep(0.05)
    refused = [task for task in tasks if task.done()]
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert 19 == len(refused)
    assert 19 == sum(isinstance(result, StoreUnavailable) for result in results)
    assert 10 == sum(getattr(r, "handle", None) == handle for r in results)


# -- whose row -------------------------------------------------------------------------


async def test_another_sessions_row_is_never_an_answer(
    store: PostgresSessionStore, caplog: pytest.LogCaptureFixture
):
    """It is an error at CRITICAL, and the connections are dropped (R12)."""
    mine, theirs = await created(store), await created(store, {"secret": 1})
    spy = spy_on(store)
    sql = store._database.sql
    foreign = await spy.pool.fetch(sql["load_session"], handle=theirs)

    async def answer(name: str) -> Sequence[Any]:
        return foreign

    spy.answer = answer
    secret = new_secret()
    for call in (
        lambda: store.load(mine),
        lambda: store.save(mine, 0, change({"n": 1})),
        lambda: store.create(new_handle(), hash_secret(secret), change({"n": 1})),
        lambda: store.regenerate(mine, 0, turn(secret), change()),
        lambda: store.increment(mine, 0, "n", "1", change()),
        lambda: store.delete(mine, 0),
    ):
        caplog.clear()
        spy.expired = 0
        with pytest.raises(StoreError, match="was not asked for"):
            await call()
        assert ["CRITICAL"] == [
            r.levelname for r in caplog.records if r.levelno > logging.ERROR
        ]
        assert 1 == spy.expired


# -- lost connections ------------------------------------------------------------------


async def test_a_load_is_tried_again_once_and_a_save_is_not(
    new_store: MakeStore, database: str
):
    """What may have been applied is never sent a second time."""
    store = await new_store("connect", database)
    handle = await created(store)
    spy = spy_on(store)
    spy.answer = lambda name: raising(ConnectionLost())

    with pytest.raises(ConnectionLost):
        await store.load(handle)
    assert ["load_session"] * 2 == spy.asked

    spy.asked.clear()
    secret = new_secret()
    for call in (
        store.save(handle, 0, change({"n": 1})),
        store.create(new_handle(), hash_secret(secret), change({"n": 1})),
        store.regenerate(handle, 0, turn(secret), change()),
        store.increment(handle, 0, "n", "1", change()),
        store.delete(handle, 0),
    ):
        with pytest.raises(ConnectionLost):
            await call
    assert 5 == len(spy.asked)


async def test_a_conflict_is_tried_again(new_store: MakeStore, database: str):
    """It changed nothing; and not for ever."""
    store = await new_store("connect", database)
    handle = await created(store)
    spy = spy_on(store)
    left = 3

    def answer(name: str) -> Awaitable[Sequence[Any]] | None:
        nonlocal left
        left -= 1
        return raising(WriteConflict()) if left >= 0 else None

    spy.answer = answer
    assert await store.save(handle, 0, change({"n": 1})) is not None
    assert {"n": 1} == await data_of(store, handle)

    left = 1000
    with pytest.raises(WriteConflict):
        await store.save(handle, 0, change({"n": 2}))


async def test_killed_while_idle_costs_nobody_anything(
    store: PostgresSessionStore, database: str, driver: str
):
    """Loads find fresh connections, after one retry at most; then writes do as well."""
    ids = [await created(store) for _ in range(8)]
    for _ in range(2):
        await asyncio.gather(*[store.sessions_of("x") for _ in range(8)])
        assert kill_connections(database) >= 1
        results = await asyncio.gather(
            *[store.load(each) for each in ids], return_exceptions=True
        )
        assert not [r for r in results if isinstance(r, Exception)]
        for each in ids:
            assert await store.save(each, 0, change({"n": 1})) is not None


async def test_a_standby_is_left_as_soon_as_it_says_so(
    store: PostgresSessionStore, database: str
):
    """25006: read-only, as an old primary is; then new connections are tried."""
    handle = await created(store)
    name = urlsplit(database).path[1:]
    run(database, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    kill_connections(database)
    await store.load(handle)
    run(
        urlsplit(database)._replace(path="/postgres").geturl(),
        f'ALTER DATABASE "{name}" RESET default_transaction_read_only',
    )
    # The connections that there are stay read-only for good.
    failures = 0
    for n in range(20):
        try:
            await store.save(handle, 0, change({"n": n}))
        except ConnectionLost:
            failures += 1
            await asyncio.sleep(0.05)
    assert 1 <= failures <= 6
    assert {"n": 19} == await data_of(store, handle)


# -- cancellation ----------------------------------------------------------------------


@pytest.mark.slow
async def test_cancelled_callers_cost_no_connection(
    store: PostgresSessionStore, database: str, long: bool
):
    """Whatever is cancelled, whenever: the pool is whole, nothing is left open."""
    ids = [await created(store, {"mark": str(n)}) for n in range(30)]

    async def use(n: int) -> None:
        kind = n % 4
        each = ids[n % 30]
        if kind == 0:
            found = await data_of(store, each)
            assert str(n % 30) == found["mark"]
        elif kind == 1:
            await store.save(each, 0, change({"n": n}))
        elif kind == 2:
            await store.sessions_of(n)
        else:
            async with store.lock(each, 0, 5) as locked:
                assert locked is not None
                assert f'"{n % 30}"' in locked.record.data
                await locked.save(change({"n": n}))

    for round_ in range(60 if long else 12):
        tasks = [asyncio.ensure_future(use(round_ * 40 + n)) for n in range(40)]
        for n, task in enumerate(tasks):
            if n % 2:
                asyncio.get_running_loop().call_later(n * round_ / 6000, task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if result is not None and not isinstance(result, asyncio.CancelledError):
                raise result
    open_: list[Any] = []
    for _ in range(100):
        open_ = run(
            database,
            "SELECT state, count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database() GROUP BY state",
        )
        if {state for state, _ in open_} <= {"idle"} and not store._database._abandoned:
            break
        await asyncio.sleep(0.1)
    assert {state for state, _ in open_} <= {"idle"}
    assert sum(count for _, count in open_) <= 4
    # As many at once as there are connections: none of them is lost.
    inside = asyncio.Barrier(4)

    async def meet() -> None:
        async with store._database.pool.transaction(timeout=20):
            await inside.wait()

    async with asyncio.timeout(20):
        await asyncio.gather(*[meet() for _ in range(4)])
