"""A primary dies and a standby is promoted: writes come back by themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.drivers import make_store
from tests.ports import free_port
from tests.sessions import change, created, data_of
from tornado_compas_session import StoreUnavailable
from tornado_compas_session.stores.migrations import migrate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("driver", ["connect", "asyncpg", "psycopg"])
async def test_writes_come_back_after_a_failover(make_cluster: Any, driver: str):
    """Two hosts in the DSN; a synchronous standby has every acknowledged write."""
    loop = asyncio.get_running_loop()
    port = free_port()
    primary = make_cluster(
        port=port, settings={"synchronous_commit": "remote_apply", "max_wal_senders": 4}
    )
    await loop.run_in_executor(None, primary.start)
    await migrate(primary.dsn())
    second = await loop.run_in_executor(
        None, lambda: make_cluster(standby_of=primary, port=free_port())
    )
    await loop.run_in_executor(None, second.start)
    with psycopg.connect(primary.dsn(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
    dsn = (
        f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{second.port}"
        "/postgres?target_session_attrs=read-write"
    )
    store = await make_store(driver, dsn)
    handles = [await created(store, {"n": 0}) for _ in range(5)]
    acknowledged = 0
    failed = 0
    stop = False

    async def write(which: int) -> None:
        nonlocal acknowledged, failed
        n = 0
        while not stop:
            try:
                if (
                    await store.save(handles[which], 0, change({f"k{n}": n}))
                    is not None
                ):
                    written[which].append(n)
                    acknowledged += 1
            except StoreUnavailable:
                failed += 1
            n += 1
            await asyncio.sleep(0.01)

    written: list[list[int]] = [[] for _ in handles]
    writers = [asyncio.ensure_future(write(n)) for n in range(len(handles))]
    await asyncio.sleep(0.5)
    await loop.run_in_executor(None, lambda: primary.stop("kill"))
    before = acknowledged
    assert before > 0
    await loop.run_in_executor(None, second.promote)
    async with asyncio.timeout(30):
        while acknowledged < before + 50:
            await asyncio.sleep(0.05)
    stop = True
    await asyncio.gather(*writers)
    for handle, keys in zip(handles, written, strict=True):
        data = await data_of(store, handle)
        assert set() == {f"k{n}" for n in keys} - set(data)
    await store.close()
