"""
One web process of the comparison: `python -m benchmarks.server VARIANT PORT DSN`.

`bare` has no sessions. `hand-DRIVER` is what one writes without a library: verify the
signed cookie, one SELECT; to count, one UPDATE. `compas-DRIVER` is this library with
its defaults. All answer the same body, and none locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

import tornado
from tornado.web import Application, RequestHandler

from tornado_compas_session import PostgresSessionStore, SessionMixin, session_settings

NAME = "bench"
ENVIRON = {
    "APP_NAME": NAME,
    "APP_KEYS": "a-key-for-the-benchmark-and-nothing-else-at-all",
    "APP_ENV": "development",
}
VARIANTS = (
    "bare",
    "hand-asyncpg",
    "hand-psycopg",
    "hand-momoko",
    "compas-asyncpg",
    "compas-psycopg",
    "compas-momoko",
)
POOL_SIZE = 10

READ = "SELECT data::text FROM hand_written WHERE id = {} AND expires_at > now()"
COUNT = """
UPDATE hand_written
   SET data = jsonb_set(data, '{{counter}}', to_jsonb((data ->> 'counter')::int + 1)),
       expires_at = now() + interval '1 day'
 WHERE id = {} AND expires_at > now()
RETURNING data::text"""


class Bare(RequestHandler):
    def get(self) -> None:
        self.write({"value": 7})

    post = get


class ByHand(RequestHandler):
    def initialize(self, ask: Any) -> None:
        self.ask = ask

    async def get(self, sql: str = READ) -> None:
        session_id = self.get_signed_cookie(f"{NAME}.sess")
        text = await self.ask(sql, session_id.decode()) if session_id else "{}"
        self.write({"value": json.loads(text).get("counter", 0)})

    async def post(self) -> None:
        await self.get(COUNT)


class Compas(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.write({"value": self.session.get("counter", 0)})

    def post(self) -> None:
        self.session["counter"] = self.session.get("counter", 0) + 1
        self.write({"value": self.session["counter"]})


async def no_reset(connection: Any) -> None:
    """In place of asyncpg's reset query, which doubles the round trips."""


async def open_pool(driver: str, dsn: str) -> tuple[Any, Any]:
    """A well-set pool of the driver, and how to ask it for one value by one key."""
    if driver == "asyncpg":
        import asyncpg

        pool = await asyncpg.create_pool(dsn, max_size=POOL_SIZE, reset=no_reset)

        async def ask(sql: str, key: str) -> str:
            return str((await pool.fetchrow(sql.format("$1"), key))[0])

    elif driver == "psycopg":
        from psycopg_pool import AsyncConnectionPool

        pool = AsyncConnectionPool(
            dsn,
            min_size=POOL_SIZE,
            max_size=POOL_SIZE,
            open=False,
            kwargs={"autocommit": True},
        )
        await pool.open(wait=True)

        async def ask(sql: str, key: str) -> str:
            async with pool.connection() as connection:
                cursor = await connection.execute(sql.format("%s"), (key,))
                return str((await cursor.fetchone())[0])

    else:
        import momoko

        pool = momoko.Pool(dsn=dsn, size=POOL_SIZE, max_size=POOL_SIZE)
        await pool.connect()

        async def ask(sql: str, key: str) -> str:
            cursor = await pool.execute(sql.format("%s"), (key,))
            return str(cursor.fetchone()[0])

    return pool, ask


async def make_app(variant: str, dsn: str) -> Application:
    kind, _, driver = variant.partition("-")
    store = None
    route: tuple[Any, ...] = ("/", Bare)
    if kind == "hand":
        _, ask = await open_pool(driver, dsn)
        route = ("/", ByHand, {"ask": ask})
    elif kind == "compas":
        if driver == "asyncpg":
            store = await PostgresSessionStore.connect(dsn, max_size=POOL_SIZE)
        else:
            store = PostgresSessionStore((await open_pool(driver, dsn))[0])
        route = ("/", Compas)
    settings = session_settings(store=store, environ=ENVIRON)
    return Application([route], log_function=lambda handler: None, **settings)


async def main() -> None:
    variant, port, dsn = sys.argv[1:]
    app = await make_app(variant, dsn)
    app.listen(int(port), "127.0.0.1")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"tornado {tornado.version}, process {os.getpid()}", flush=True)
    await stopped.wait()
    os._exit(0)  # the pools need no polite end


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
