"""A connection to the database, for as long as a command takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tornado_compas_session.core.protocols import Pool


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
