"""
The drivers, each a thin adapter of one file: asyncpg, psycopg 3, momoko.

No driver is imported unless a pool of it is there already.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tornado_compas_session.core.protocols import Pool
from tornado_compas_session.exceptions import SettingsError


def as_pool(pool: Any, *, timeout: float = 5.0) -> Pool:
    """
    Wraps a pool of a known driver, once; anything with the `Pool` protocol stays.

    Raises `SettingsError`, naming what is accepted, for anything else.
    """
    root = type(pool).__module__.partition(".")[0]
    if root == "asyncpg":
        from tornado_compas_session.stores.pools.asyncpg import AsyncpgPool

        return AsyncpgPool(pool, timeout=timeout)
    if root == "psycopg_pool":
        from tornado_compas_session.stores.pools.psycopg import PsycopgPool

        return PsycopgPool(pool, timeout=timeout)
    if root == "momoko":
        from tornado_compas_session.stores.pools.momoko import MomokoPool

        return MomokoPool(pool, timeout=timeout)
    if isinstance(pool, Pool):
        return pool
    raise SettingsError(
        f"a {type(pool).__qualname__} is no pool that sessions can be kept through; "
        "pass an asyncpg.Pool, a psycopg_pool.AsyncConnectionPool "
        "or a momoko.Pool, or use PostgresSessionStore.connect(dsn)"
    )


@asynccontextmanager
async def opened(dsn: str, timeout: float) -> AsyncIterator[Pool]:
    """A pool of one connection, closed at the end; `timeout` is for each statement."""
    from tornado_compas_session.stores.pools.asyncpg import AsyncpgPool, open_pool

    pool = AsyncpgPool(
        await open_pool(dsn, min_size=0, max_size=1, timeout=timeout), timeout=timeout
    )
    try:
        yield pool
    finally:
        await pool.close()
