"""The three pools as an application would make them, for tests that run with each."""

from __future__ import annotations

from typing import Any

import asyncpg
import momoko
from psycopg_pool import AsyncConnectionPool
from tornado.ioloop import IOLoop

from tornado_compas_session import PostgresSessionStore
from tornado_compas_session.core.protocols import Pool
from tornado_compas_session.stores.pools import as_pool
from tornado_compas_session.stores.pools.asyncpg import open_pool

DRIVERS = ("asyncpg", "psycopg", "momoko")


async def make_pool(driver: str, dsn: str, *, size: int = 4) -> Any:
    """A pool of so many connections at most; the database may be away."""
    if driver == "asyncpg":
        return await asyncpg.create_pool(
            dsn, min_size=0, max_size=size, timeout=2, command_timeout=2
        )
    if driver == "psycopg":
        pool = AsyncConnectionPool(
            f"{dsn}{'&' if '?' in dsn else '?'}connect_timeout=2",
            min_size=1,
            max_size=size,
            open=False,
            timeout=2,
            reconnect_timeout=1,
        )
        await pool.open()
        return pool
    momoko_pool = momoko.Pool(
        dsn,
        size=1,
        max_size=size,
        ioloop=IOLoop.current(),
        raise_connect_errors=False,
        reconnect_interval=200,
    )
    await momoko_pool.connect()
    return momoko_pool


async def make_store(
    driver: str, dsn: str, *, size: int = 4, timeout: float = 2.0, **options: Any
) -> PostgresSessionStore:
    """A store on a pool of this driver; closing it closes the pool."""
    if driver == "connect":
        return await PostgresSessionStore.connect(
            dsn, max_size=size, timeout=timeout, **options
        )
    pool = await make_pool(driver, dsn, size=size)
    return PostgresSessionStore(pool, timeout=timeout, **options)


async def make_adapter(
    driver: str, dsn: str, *, size: int = 4, timeout: float = 2.0
) -> Pool:
    """Such a pool as the store sees it; "connect" is that of `connect(dsn)`."""
    if driver == "connect":
        pool = await open_pool(dsn, min_size=0, max_size=size, timeout=timeout)
    else:
        pool = await make_pool(driver, dsn, size=size)
    return as_pool(pool, timeout=timeout)
