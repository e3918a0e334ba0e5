"""Behind a PgBouncer: in transaction mode it works, or says what must be set."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from tests.drivers import DRIVERS, make_adapter, make_store
from tests.ports import free_port
from tests.programs import program
from tests.sessions import change, created, data_of
from tornado_compas_session import (
    PostgresSessionStore,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.exceptions import ConnectionLost
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.stores.pools.queries import compile_statement


@pytest.fixture
def bouncer(database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """
    The URL of the test's database through a PgBouncer of its own, of two servers; in
    transaction mode, if the test does not ask for another.
    """
    mode = getattr(request, "param", "transaction")
    pgbouncer = program("pgbouncer")
    parts, port = urlsplit(database), free_port()
    with tempfile.TemporaryDirectory(prefix="bouncer-") as folder:
        settings = Path(folder, "bouncer.ini")
        settings.write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"unix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
            f"default_pool_size = 2\nuser = {_user()}\n"
            "[databases]\n"
            f"{parts.path[1:]} = host={parts.hostname} port={parts.port} "
            "user=postgres\n"
        )
        Path(folder).chmod(0o755)
        process = subprocess.Popen(
            [pgbouncer, "-q", str(settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        dsn = parts._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()
        try:
            _wait_for(dsn, process)
            yield dsn
        finally:
            process.terminate()
            process.wait(30)


def _user() -> str:
    """PgBouncer refuses to run as root."""
    if os.geteuid():
        return pwd.getpwuid(os.geteuid()).pw_name
    return "nobody"


def _wait_for(dsn: str, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 30
    while True:
        assert process.poll() is None, "PgBouncer did not start"
        try:
            psycopg.connect(dsn, prepare_threshold=None).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < limit
            time.sleep(0.05)


async def use_heavily(stores: list[PostgresSessionStore]) -> int:
    """Many sessions over several pools at once; returns how many errors there were."""
    ids = [await created(stores[0], {"mark": str(n)}) for n in range(20)]
    errors = 0

    async def use(n: int) -> None:
        nonlocal errors
        store, which = stores[n % len(stores)], n % len(ids)
        found = await data_of(store, ids[which])
        assert str(which) == found["mark"]
        if n % 3 == 0:
            await store.save(ids[which], 0, change({"n": n}))
        if n % 7 == 0:
            async with store.lock(ids[which], 0, 10) as locked:
                assert locked is not None
                assert f'"{which}"' in locked.record.data

    for round_ in range(10):
        results = await asyncio.gather(
            *[use(round_ * 30 + n) for n in range(30)], return_exceptions=True
        )
        errors += sum(isinstance(result, Exception) for result in results)
    return errors


async def test_connect_notices_it_and_works(
    bouncer: str, caplog: pytest.LogCaptureFixture
):
    """Without prepared statements, which one line says; nothing is mixed up."""
    caplog.set_level(logging.INFO, logger="tornado_compas_session")
    stores = [await make_store("connect", bouncer) for _ in range(2)]

    assert 0 == await use_heavily(stores)

    noticed = [r for r in caplog.records if "PgBouncer was noticed" in r.getMessage()]
    assert 2 == len(noticed)
    for store in stores:
        await store.close()


async def test_a_direct_connection_prepares_statements(
    database: str, caplog: pytest.LogCaptureFixture
):
    """Nothing is noticed, and the advantage is kept."""
    caplog.set_level(logging.INFO, logger="tornado_compas_session")
    store = await make_store("connect", database)
    pool: Any = store._database.pool
    await created(store)
    async with pool._pool.acquire() as connection:
        rows = await connection.fetch("SELECT count(*) FROM pg_prepared_statements")
        assert rows[0][0] >= 1
    assert not [r for r in caplog.records if "PgBouncer" in r.getMessage()]
    await store.close()


async def test_migrations_run_through_it(bouncer: str):
    """Their lock is one of the transaction."""
    assert [] == await migrate(bouncer)


async def test_momoko_works_through_it(bouncer: str):
    """It prepares nothing."""
    stores = [await make_store("momoko", bouncer) for _ in range(2)]
    assert 0 == await use_heavily(stores)
    for store in stores:
        await store.close()


@pytest.mark.parametrize("threshold", [5, None])
async def test_an_applications_psycopg_pool(
    bouncer: str, caplog: pytest.LogCaptureFixture, threshold: int | None
):
    """Sessions do without prepared statements; a warning is for the rest of it."""
    stores = []
    for _ in range(2):
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            bouncer,
            min_size=1,
            max_size=4,
            open=False,
            kwargs={"prepare_threshold": threshold},
        )
        await pool.open()
        stores.append(PostgresSessionStore(pool))

    assert 0 == await use_heavily(stores)

    warned = [
        r for r in caplog.records if '"prepare_threshold": None' in r.getMessage()
    ]
    assert (2 if threshold else 0) == len(warned)
    for store in stores:
        await store.close()


@pytest.mark.parametrize("cache", [100, 0])
async def test_an_applications_asyncpg_pool(
    bouncer: str, caplog: pytest.LogCaptureFixture, cache: int
):
    """With prepared statements, a warning names the setting; without them, it works."""
    pool = await asyncpg.create_pool(
        bouncer, min_size=0, max_size=4, statement_cache_size=cache
    )
    store = PostgresSessionStore(pool)
    if cache:
        await asyncio.gather(*[store.check() for _ in range(4)], return_exceptions=True)
    else:
        assert 0 == await use_heavily([store])

    warned = [r for r in caplog.records if "statement_cache_size=0" in r.getMessage()]
    assert (1 if cache else 0) == len(warned)
    await store.close()


# -- what the adapters promise ---------------------------------------------------------

ONE = compile_statement("one", "SELECT :n::integer")
WRITE = compile_statement("write", "INSERT INTO kept VALUES (:n::integer) RETURNING n")


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_what_timed_out_is_cancelled_through_it(
    bouncer: str, database: str, driver: str
):
    """It hands the request on; nothing that was refused is written later."""
    with psycopg.connect(database) as other:
        other.execute("CREATE TABLE kept (n integer)")
        other.commit()
        pool = await make_adapter(driver, bouncer)
        await pool.fetch(ONE, n=0)
        other.execute("LOCK TABLE kept IN SHARE MODE")
        results = await asyncio.gather(
            *[pool.fetch(WRITE, n=n, timeout=0.3) for n in range(6)],
            return_exceptions=True,
        )
        assert all(isinstance(each, StoreUnavailable) for each in results)
        other.rollback()
        await asyncio.sleep(0.3)
        assert [] == other.execute("SELECT n FROM kept").fetchall()
        other.rollback()
    async with pool.transaction(lock_timeout=1) as connection:
        await connection.fetch(WRITE, n=7)
    assert [1] == [row[0] for row in await pool.fetch(ONE, n=1)]
    await pool.close()


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_what_is_given_up_in_its_queue_is_never_sent_on(
    bouncer: str, database: str, driver: str
):
    """Both of its servers are in use for longer than the limit, by others."""
    others = [
        await psycopg.AsyncConnection.connect(bouncer, prepare_threshold=None)
        for _ in range(2)
    ]
    await others[0].execute("CREATE TABLE kept (n integer)")
    await others[0].commit()
    pool = await make_adapter(driver, bouncer)
    await pool.fetch(ONE, n=0)
    for other in others:
        await other.execute("SELECT 1")  # each has a server until it commits
    for n in range(2):
        with pytest.raises(StoreUnavailable):
            await pool.fetch(WRITE, n=n, timeout=0.3)
    for other in others:
        await other.commit()
        await other.close()
    await asyncio.sleep(0.3)
    with psycopg.connect(database) as past_it:
        assert [] == past_it.execute("SELECT n FROM kept").fetchall()
    assert [(3,)] == [tuple(row) for row in await pool.fetch(WRITE, n=3)]
    await pool.close()


@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
@pytest.mark.parametrize("bouncer", ["statement", "transaction"], indirect=True)
async def test_statement_mode_is_named(
    bouncer: str, driver: str, request: pytest.FixtureRequest
):
    """Single statements work there, and a transaction says why it never will."""
    pool = await make_adapter(driver, bouncer)
    for _ in range(2):
        assert 1 == (await pool.fetch(ONE, n=1))[0][0]
        if request.node.callspec.params["bouncer"] == "transaction":
            async with pool.transaction(lock_timeout=1) as connection:
                assert 2 == (await connection.fetch(ONE, n=2))[0][0]
            continue
        with pytest.raises(StoreError, match="pool_mode=statement") as caught:
            async with pool.transaction(lock_timeout=1):
                pass
        assert not isinstance(caught.value, ConnectionLost)
    await pool.close()
