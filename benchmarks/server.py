"""
One web process of the comparison: `python -m benchmarks.server VARIANT PORT DSN`.

- `bare` has no sessions.
- `hand-DRIVER` is the least that one writes without a library: verify the signed
  cookie, one SELECT, which never renews; to count, one UPDATE that adds in PostgreSQL.
- `both-asyncpg` counts as session libraries do: a SELECT, then an UPDATE of all data.
- `careful-asyncpg` is what a careful engineer writes by hand: the id is hashed in the
  table, use extends the lifetime and renews the cookie (at most every 30 s), the answer
  is private to caches, statements have a time limit and the data a size.
- `compas-DRIVER` is this library with its defaults.

All answer the same body. `/` counts in the handler, `/lock` under a lock of the row,
and `/increment` by one statement that adds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from typing import Any

import tornado
from tornado.web import Application, HTTPError, RequestHandler

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
    "both-asyncpg",
    "careful-asyncpg",
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
WRITE = """
UPDATE hand_written SET data = $2::jsonb, expires_at = now() + interval '1 day'
 WHERE id = $1 AND expires_at > now()"""


class Bare(RequestHandler):
    def get(self) -> None:
        self.write({"value": 7})

    post = get


class ByHand(RequestHandler):
    """One statement a request."""

    def initialize(self, ask: Any) -> None:
        self.ask = ask

    async def get(self, sql: str = READ) -> None:
        session_id = self.get_signed_cookie(f"{NAME}.sess")
        text = await self.ask(sql, session_id.decode()) if session_id else "{}"
        self.write({"value": json.loads(text).get("counter", 0)})

    async def post(self) -> None:
        await self.get(COUNT)


class Both(RequestHandler):
    """Loads all, and saves all, as a session library does."""

    def initialize(self, pool: Any) -> None:
        self.pool = pool

    async def get(self) -> None:
        self.write({"value": (await self.load(self.pool))[1]["counter"]})

    async def post(self) -> None:
        session_id, data = await self.load(self.pool)
        data["counter"] += 1
        await self.pool.execute(WRITE, session_id, json.dumps(data))
        self.write({"value": data["counter"]})

    async def load(self, pool: Any, end: str = "") -> tuple[str, dict[str, Any]]:
        cookie = self.get_signed_cookie(f"{NAME}.sess")
        if cookie is None:
            return "", {"counter": 0}
        text = await pool.fetchval(READ.format("$1") + end, cookie.decode())
        if text is None:
            raise HTTPError(401)
        return cookie.decode(), json.loads(text)


class BothLocked(Both):
    """The same under a lock of the row."""

    async def post(self) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            session_id, data = await self.load(connection, " FOR UPDATE")
            data["counter"] += 1
            await connection.execute(WRITE, session_id, json.dumps(data))
        self.write({"value": data["counter"]})


class Careful(RequestHandler):
    """Loads, renews and saves as a careful engineer would write it."""

    LIFETIME, RENEW, LIMIT, SIZE = 6 * 86400, 30, 5.0, 65536

    def initialize(self, pool: Any) -> None:
        self.pool = pool
        self.data: dict[str, Any] = {}
        self.saved = ""

    async def prepare(self) -> None:
        self.set_header("Cache-Control", "private, no-cache")
        self.set_header("Vary", "Cookie")
        cookie = self.get_signed_cookie(f"{NAME}.sess", max_age_days=7)
        if cookie is None:
            return
        self.cookie = cookie
        self.hashed = hashlib.sha256(cookie).digest()
        row = await self.pool.fetchrow(
            "SELECT data::text, extract(epoch FROM expires_at - now())::float8"
            "  FROM careful WHERE id = $1 AND expires_at > now()",
            self.hashed,
            timeout=self.LIMIT,
        )
        if row is None:
            self.clear_cookie(f"{NAME}.sess")
            return
        self.saved, left = row
        self.data = json.loads(self.saved)
        if self.request.method == "GET" and left < self.LIFETIME - self.RENEW:
            await self.save(None)

    async def save(self, text: str | None) -> None:
        tag = await self.pool.execute(
            "UPDATE careful SET data = coalesce($2::jsonb, data),"
            "       expires_at = now() + make_interval(secs => $3)"
            " WHERE id = $1 AND expires_at > now()",
            self.hashed,
            text,
            float(self.LIFETIME),
            timeout=self.LIMIT,
        )
        if tag != "UPDATE 1":
            raise HTTPError(409)
        self.set_signed_cookie(
            f"{NAME}.sess",
            self.cookie,
            expires_days=None,
            max_age=self.LIFETIME,
            httponly=True,
            samesite="lax",
        )

    def get(self) -> None:
        self.write({"value": self.data.get("counter", 0)})

    async def post(self) -> None:
        self.data["counter"] = self.data.get("counter", 0) + 1
        text = json.dumps(self.data)
        if len(text) > self.SIZE:
            raise HTTPError(413)
        await self.save(text)
        self.write({"value": self.data["counter"]})


class Compas(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.write({"value": self.session.get("counter", 0)})

    def post(self) -> None:
        self.session["counter"] = self.session.get("counter", 0) + 1
        self.write({"value": self.session["counter"]})


class CompasLock(SessionMixin, RequestHandler):
    async def post(self) -> None:
        async with self.session.lock():
            self.session["counter"] = self.session.get("counter", 0) + 1
        self.write({"value": self.session["counter"]})


class CompasIncrement(SessionMixin, RequestHandler):
    async def post(self) -> None:
        self.write({"value": await self.session.increment("counter")})


Routes = list[tuple[Any, ...]]


def compas_routes() -> Routes:
    return [("/", Compas), ("/lock", CompasLock), ("/increment", CompasIncrement)]


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
    routes: Routes = [(path, Bare) for path in ("/", "/lock", "/increment")]
    if kind == "compas":
        if driver == "asyncpg":
            store = await PostgresSessionStore.connect(dsn, max_size=POOL_SIZE)
        else:
            store = PostgresSessionStore((await open_pool(driver, dsn))[0])
        routes = compas_routes()
    elif kind != "bare":
        pool, ask = await open_pool(driver, dsn)
        by_hand: dict[str, Routes] = {
            "hand": [("/", ByHand, {"ask": ask}), ("/increment", ByHand, {"ask": ask})],
            "both": [
                ("/", Both, {"pool": pool}),
                ("/lock", BothLocked, {"pool": pool}),
            ],
            "careful": [("/", Careful, {"pool": pool})],
        }
        routes = by_hand[kind]
    settings = session_settings(store=store, environ=ENVIRON)
    return Application(routes, log_function=lambda handler: None, **settings)


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
