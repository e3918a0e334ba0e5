"""
`python -m benchmarks.scale`: what a large table of sessions costs.

Fills a table with sessions of some 300 bytes, and measures what a load, a save and a
creation cost the web process and PostgreSQL and how long they take, how large the table
is, how long the list of a user with 1,000 sessions takes, how the cleanup gets on while
requests come in, and what a lot of renewals and saves leaves behind.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from benchmarks import plot
from benchmarks.world import DATA, backends_of, newest_postgres
from tornado_compas_session import PostgresSessionStore
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.jsondata import encode
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.testing.embedded import EmbeddedPostgres

RENEWAL = SessionChange(idle=518400.0)
Connection = psycopg.Connection[Any]


def name_of(number: int) -> str:
    """The handle of a session by its number, in the shape of one."""
    return f"{number:012d}"


def fill(sql: Connection, first: int, last: int, expires: str = "6 days") -> None:
    sql.execute(
        "INSERT INTO compas_session"
        "       (handle, secret_hash, shown_at, data, user_id, expires_at)"
        " SELECT lpad(n::text, 12, '0'), sha256(n::text::bytea), now(),"
        "        %(data)s || jsonb_build_object('user_id', 'user-' || n),"
        "        'user-' || n, now() + %(expires)s::interval"
        "   FROM generate_series(%(first)s::int, %(last)s::int) AS n",
        {"data": Jsonb(DATA), "expires": expires, "first": first, "last": last},
    )


def one(sql: Connection, query: str) -> Any:
    row = sql.execute(query).fetchone()
    assert row is not None
    return row[0]


def size(sql: Connection) -> int:
    return int(one(sql, "SELECT pg_total_relation_size('compas_session')"))


class Costs:
    """CPU of this process and of PostgreSQL, and time, of many calls at once."""

    def __init__(self, sql: Connection) -> None:
        self._sql = sql
        self.times: list[float] = []
        self.cpu = self.postgres = self.seconds = 0.0

    async def spend(
        self,
        call: Callable[[int], Awaitable[object]],
        numbers: Sequence[int],
        at_once: int = 64,
    ) -> None:
        left = iter(numbers)

        async def worker() -> None:
            for number in left:
                begin = time.perf_counter()
                await call(number)
                self.times.append(time.perf_counter() - begin)

        backends = backends_of(self._sql)
        cpu, begin = time.process_time(), time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(at_once)))
        self.cpu = (time.process_time() - cpu) / len(numbers) * 1e6
        self.seconds = time.perf_counter() - begin
        self.postgres = (backends_of(self._sql) - backends) / len(numbers) * 1e6

    def at(self, share: float) -> float:
        times = sorted(self.times)
        return times[int(share * (len(times) - 1))] * 1e3

    def __str__(self) -> str:
        return (
            f"{self.cpu:.0f} µs CPU, {self.postgres:.0f} µs of PostgreSQL, "
            f"p50 {self.at(0.5):.2f} ms, p99 {self.at(0.99):.2f} ms"
        )


async def load_and_save(
    store: PostgresSessionStore, sql: Connection, rows: int, calls: int, rounds: int
) -> tuple[Costs, Costs]:
    """The rounds with the median CPU, each over other sessions picked at random."""
    chance = random.Random()  # no rows that an earlier run has warmed up
    found: tuple[list[Costs], list[Costs]] = ([], [])

    async def load(number: int) -> None:
        assert await store.load(name_of(number))

    async def save(number: int) -> None:
        change = SessionChange({"counter": str(chance.random())}, idle=518400.0)
        assert await store.save(name_of(number), 0, change)

    for _ in range(rounds):
        loads, saves = Costs(sql), Costs(sql)
        numbers = [chance.randint(1, rows) for _ in range(calls)]
        await loads.spend(load, numbers)
        await saves.spend(save, numbers)
        found[0].append(loads)
        found[1].append(saves)
    middle = [sorted(many, key=lambda costs: costs.cpu)[rounds // 2] for many in found]
    return middle[0], middle[1]


async def creations(store: PostgresSessionStore, sql: Connection, calls: int) -> str:
    """New sessions, 64 at once, which are gone again after this."""
    data = {key: encode(value) for key, value in DATA.items() if key != "user_id"}
    made: list[str] = []

    async def create(_: int) -> None:
        made.append(new_handle())
        secret = hash_secret(new_secret())
        await store.create(made[-1], secret, SessionChange(data, idle=518400.0))

    costs = Costs(sql)
    await costs.spend(create, range(calls))
    sql.execute("DELETE FROM compas_session WHERE handle = ANY(%s)", [made])
    return f"create: {costs}, {calls / costs.seconds:,.0f} a second"


async def listing(store: PostgresSessionStore, sql: Connection) -> str:
    """The sessions of a user who has a thousand of them, 50 and all."""
    mine = "UPDATE compas_session SET user_id = {} WHERE handle <= '000000001000'"
    sql.execute(mine.format("'somebody'"))
    sql.execute("VACUUM ANALYZE compas_session")
    times: dict[int, list[float]] = {50: [], 1000: []}
    for _ in range(30):
        for limit, taken in times.items():
            begin = time.perf_counter()
            found = await store.sessions_of("somebody", limit=limit)
            taken.append(time.perf_counter() - begin)
            assert len(found) == limit
    sql.execute(mine.format("'user-' || handle::int"))
    told = (f"{limit}: {median(each) * 1e3:.1f} ms" for limit, each in times.items())
    return f"list of a user with 1,000 sessions: {', '.join(told)}"


async def cleanup(
    store: PostgresSessionStore, sql: Connection, rows: int, expired: int
) -> str:
    """Batches of deletions while loads come in, against loads alone."""
    await asyncio.to_thread(fill, sql, rows + 1, rows + expired, "-1 day")
    await asyncio.to_thread(sql.execute, "VACUUM ANALYZE compas_session")
    chance = random.Random(1)
    numbers = [chance.randint(1, rows) for _ in range(1000)]

    async def call(number: int) -> None:
        await store.load(name_of(number))
        await asyncio.sleep(0.005)  # a steady load, and not all that the machine can do

    alone = Costs(sql)
    for _ in range(10):
        await alone.spend(call, numbers, at_once=16)
    deleted, batches = 0, []
    meanwhile = Costs(sql)
    cleaning = True

    async def visit() -> None:
        while cleaning:
            await meanwhile.spend(call, numbers, at_once=16)

    visitors = asyncio.ensure_future(visit())
    begin = time.perf_counter()
    while True:
        started = time.perf_counter()
        count = await store.delete_expired(limit=1000)
        if not count:
            break
        deleted += count
        batches.append(time.perf_counter() - started)
    took = time.perf_counter() - begin
    cleaning = False
    await visitors
    rate = deleted / took
    return (
        f"cleanup: {deleted:,} rows in batches of 1,000, {rate:,.0f} rows/s "
        f"(a batch {median(batches) * 1e3:.0f} ms); loads meanwhile "
        f"p50 {meanwhile.at(0.5):.2f} ms, p99 {meanwhile.at(0.99):.2f} ms; before "
        f"p50 {alone.at(0.5):.2f} ms, p99 {alone.at(0.99):.2f} ms"
    )


async def wear(
    store: PostgresSessionStore, sql: Connection, rows: int, writes: int
) -> str:
    """Renewals and saves, half and half, in no order; autovacuum is on."""
    before = size(sql)
    query = "SELECT {} FROM pg_stat_user_tables WHERE relname = 'compas_session'"
    updates = one(sql, query.format("n_tup_upd"))
    hot = one(sql, query.format("n_tup_hot_upd"))
    chance = random.Random(2)

    async def write(number: int) -> None:
        change = RENEWAL
        if number % 2:
            change = SessionChange({"counter": str(number)}, idle=518400.0)
        await store.save(name_of(number), 0, change)

    costs = Costs(sql)
    begin = time.perf_counter()
    for _ in range(max(1, writes // 50_000)):
        numbers = [chance.randint(1, rows) for _ in range(min(writes, 50_000))]
        await costs.spend(write, numbers)
    took = time.perf_counter() - begin
    await asyncio.sleep(12)  # idle connections tell their statistics by then
    updates = one(sql, query.format("n_tup_upd")) - updates
    hot = one(sql, query.format("n_tup_hot_upd")) - hot
    return (
        f"{writes:,} renewals and saves over {rows:,} sessions in {took:.0f} s: "
        f"{hot / updates:.2%} of {updates:,} updates HOT; "
        f"the table has grown by {size(sql) / before - 1:.1%}"
    )


async def measure(options: argparse.Namespace, dsn: str, sql: Connection) -> None:
    filled = 0
    points: dict[str, list[tuple[float, float]]] = {"load": [], "save": []}
    store = await PostgresSessionStore.connect(dsn)
    for rows in options.rows:
        begin = time.perf_counter()
        fill(sql, filled + 1, rows)
        filled = rows
        sql.execute("VACUUM (FREEZE, ANALYZE) compas_session")
        sql.execute("CHECKPOINT")
        took = time.perf_counter() - begin
        print(f"\n{rows:,} sessions, filled in {took:.0f} s", flush=True)
        print(f"  {size(sql) / rows:.0f} bytes a session on disk, with the indexes")
        loads, saves = await load_and_save(store, sql, rows, options.calls, 5)
        print(f"  load: {loads}\n  save: {saves}", flush=True)
        print(f"  {await creations(store, sql, options.calls)}", flush=True)
        print(f"  {await listing(store, sql)}", flush=True)
        points["load"].append((rows, loads.cpu))
        points["save"].append((rows, saves.cpu))
    if len(points["load"]) > 1:
        first, last = points["load"][0][1], points["load"][-1][1]
        print(f"\nload at {filled:,} against {options.rows[0]:,}: {last / first:.2f}")
    print(await cleanup(store, sql, filled, options.expired), flush=True)
    print(await wear(store, sql, filled, options.writes), flush=True)
    await store.close()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        drawn = plot.lines(
            "CPU of the web process, 64 at once", "sessions", "µs per call", points
        )
        (options.output / "scale.svg").write_text(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__
    )
    add = parser.add_argument
    rows = [10_000, 1_000_000]
    add("--rows", type=int, nargs="+", default=rows, help="10000 1000000")
    add("--ten-million", action="store_true", help="ten million too: 5 min, 16 GB")
    add("--calls", type=int, default=20_000, help="loads and saves of a round (20000)")
    add("--expired", type=int, default=200_000, help="to clean up (200000)")
    add("--writes", type=int, default=1_000_000, help="renewals and saves (1000000)")
    add("--postgres", type=Path, metavar="BIN", help="another PostgreSQL's programs")
    add("--output", type=Path, metavar="DIR", help="where the plot goes")
    options = parser.parse_args()
    if options.ten_million:
        options.rows.append(10_000_000)
    options.rows = sorted(set(options.rows))
    settings: dict[str, object] = {
        "shared_buffers": "2GB",
        "max_wal_size": "8GB",
        "maintenance_work_mem": "512MB",
    }
    with (
        TemporaryDirectory(prefix="compas-scale-") as folder,
        EmbeddedPostgres(
            folder, settings=settings, bin_dir=options.postgres or newest_postgres()
        ) as postgres,
        psycopg.connect(postgres.dsn(), autocommit=True) as sql,
    ):
        asyncio.run(migrate(postgres.dsn()))
        print(f"PostgreSQL {sql.info.parameter_status('server_version')}")
        asyncio.run(measure(options, postgres.dsn(), sql))


if __name__ == "__main__":
    main()
