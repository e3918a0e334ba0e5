"""What only a cluster has: how it is noticed, made and told of, and a server away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
from tornado.ioloop import IOLoop

from tests.citus.conftest import Schemas
from tests.drivers import DRIVERS, make_store
from tests.integration.test_cleaner import fill
from tests.sessions import change, created, data_of
from tornado_compas_session import PostgresSessionStore, StoreUnavailable
from tornado_compas_session.exceptions import LockTimeout
from tornado_compas_session.stores.distributed import QUEUE_FOR_USER
from tornado_compas_session.tools.cli import main
from tornado_compas_session.tools.doctor import diagnose

drivers = pytest.mark.parametrize("driver", ["connect", *DRIVERS])


async def made(driver: str, dsn: str, **options: Any) -> PostgresSessionStore:
    store = await make_store(driver, dsn, **options)
    await store.check()
    return store


@drivers
async def test_it_is_noticed_at_the_first_query(
    driver: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so, however many come first; from then on nothing is a batch."""
    store = await make_store(driver, database)
    with caplog.at_level(logging.INFO, logger="tornado_compas_session"):
        handles = await asyncio.gather(*(created(store) for _ in range(20)))
        await asyncio.gather(
            *(store.save(handle, 0, change({"n": 1})) for handle in handles)
        )
    assert [{"n": 1}] * 20 == [await data_of(store, handle) for handle in handles]
    await store.close()

    assert [
        "the sessions are spread over several servers (Citus): statements go out one "
        "by one, up to 4 side by side"
    ] == [record.getMessage() for record in caplog.records]


@drivers
async def test_a_lock_on_two_entry_points_is_given_up_in_time(
    driver: str, database: str, databases: Schemas
) -> None:
    """Who asks a worker waits for who asked the coordinator, and not for ever."""
    store = await make_store(driver, database)
    other = await make_store(driver, databases.by_worker(database))
    handle = await created(store)
    async with store.lock(handle, 0, 5) as locked:
        assert locked is not None
        with pytest.raises(LockTimeout):
            async with other.lock(handle, 0, 0.3):
                pass
        await locked.save(change({"n": 1}))
    async with other.lock(handle, 0, 5) as locked:
        assert locked is not None
        assert '{"n": 1}' == locked.record.data
    await store.close()
    await other.close()


async def test_a_renewed_session_is_not_deleted(database: str) -> None:
    """While somebody holds one that has expired, the cleanup waits for its turn."""
    fill(database, expired=10)
    store = await made("connect", database, timeout=1)
    with psycopg.connect(database) as other:
        other.execute(
            "UPDATE compas_session SET expires_at = now() + interval '1 hour'"
            " WHERE handle = lpad('7', 12, '0')"
        )
        assert 0 == await store.delete_expired()
    assert 9 == await store.delete_expired()
    assert 1 == (await store.stats())["live"]
    await store.close()


async def test_its_size_is_that_of_all_shards(database: str) -> None:
    """And not that of the table on the coordinator, which is empty."""
    fill(database, expired=0, live=5000)
    store = await made("connect", database)
    assert (await store.stats())["bytes"] > 5000 * 150
    await store.close()


def test_the_table_is_made_by_one_command(
    empty_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what it holds; and running it again does nothing."""
    command = ["migrate", "--database-url", empty_database]
    assert 0 == main(command)
    fill(empty_database, expired=5, live=5)
    assert 0 == main([*command, "--distributed"])
    assert "the table is distributed by handle\n" in capsys.readouterr().err
    assert 0 == main([*command, "--distributed"])
    assert "distributed by handle already" in capsys.readouterr().err
    with psycopg.connect(empty_database) as connection:
        found = connection.execute(
            "SELECT (SELECT count(*) FROM compas_session), count(*)"
            " FROM pg_dist_shard WHERE logicalrelid = 'compas_session'::regclass"
        ).fetchone()
    assert (10, 32) == found


async def test_a_store_goes_on_where_the_table_is_moved(empty_database: str) -> None:
    """To a cluster and back: no process has to be started again."""
    command = ["migrate", "--database-url", empty_database]
    assert 0 == await asyncio.to_thread(main, command)
    store = await made("connect", empty_database, timeout=20)
    handles = [await created(store) for _ in range(10)]

    async def used(number: int) -> None:
        await asyncio.gather(
            *(store.save(handle, 0, change({"n": number})) for handle in handles)
        )
        loaded = await asyncio.gather(*(data_of(store, handle) for handle in handles))
        assert [{"n": number}] * 10 == loaded

    await used(1)
    assert 0 == await asyncio.to_thread(main, [*command, "--distributed"])
    await used(2)
    await used(3)
    assert await store._database.is_distributed()
    with psycopg.connect(empty_database) as connection:
        connection.execute("SELECT undistribute_table('compas_session')")
    await used(4)
    await store.close()


# -- two entry points ------------------------------------------------------------------


@asynccontextmanager
async def two_stores(
    driver: str, dsn: str, databases: Schemas
) -> AsyncIterator[tuple[PostgresSessionStore, PostgresSessionStore]]:
    """One asks the coordinator and one a worker."""
    one = await make_store(driver, dsn, size=8, timeout=10)
    two = await make_store(driver, databases.by_worker(dsn), size=8, timeout=10)
    yield one, two
    await one.close()
    await two.close()


@drivers
@pytest.mark.parametrize("way", ["increment", "lock"])
async def test_no_count_is_lost(
    driver: str, way: str, database: str, databases: Schemas, long: bool
) -> None:
    """16 clients count in one session, and no two get the same number."""
    total = 2000 if long else 100
    async with two_stores(driver, database, databases) as stores:
        handle = await created(stores[0])
        left, answers = iter(range(total)), []

        async def count(store: PostgresSessionStore) -> None:
            for _ in left:
                if way == "increment":
                    done = await store.increment(handle, 0, "n", "1", change())
                    assert done is not None
                    answers.append(int(done.text))
                    continue
                async with store.lock(handle, 0, 30) as locked:
                    assert locked is not None
                    answers.append(json.loads(locked.record.data)["n"] + 1)
                    await locked.save(change({"n": answers[-1]}))

        await asyncio.gather(*(count(stores[n % 2]) for n in range(16)))
        assert list(range(1, total + 1)) == sorted(answers)


async def test_sign_ins_of_a_user_meet_wherever_they_begin(
    database: str, databases: Schemas
) -> None:
    """While one is under way on the coordinator, one on a worker waits."""
    async with two_stores("connect", database, databases) as stores:
        one, two = (store._database for store in stores)
        assert await one.is_distributed() and await two.is_distributed()
        for user in ("ada", "bob", "eve"):
            async with one.transaction(5) as connection:
                await one.on(connection, QUEUE_FOR_USER, user_id=user)
                with pytest.raises(LockTimeout):
                    async with two.transaction(5, lock=0.1) as other:
                        await two.on(other, QUEUE_FOR_USER, user_id=user)


@drivers
async def test_what_was_ended_does_not_come_back(
    driver: str, database: str, databases: Schemas, long: bool
) -> None:
    """Whatever is written at the same moment, and wherever."""
    async with two_stores(driver, database, databases) as (one, two):
        for number in range(500 if long else 20):
            handle = await created(one)
            new = change({"n": 1})
            saves: list[Awaitable[Any]] = [
                store.save(handle, 0, new) for store in (one, two)
            ]
            saves.insert(number % 3, two.delete(handle, 0))
            done = await asyncio.gather(*saves)
            assert done[number % 3]
            assert [None, None] == [await one.load(handle), await two.load(handle)]


# -- the doctor ------------------------------------------------------------------------


async def findings_of(dsn: str) -> dict[str, str]:
    environ = {"APP_NAME": "shop", "APP_KEYS": "a-key-for-the-tests-and-nothing-else"}
    found = await diagnose(environ, database_url=dsn)
    assert not [finding for finding in found if finding.level == "problem"][1:]
    return {finding.name: finding.what for finding in found}


async def test_the_doctor_says_what_it_sees(
    database: str, empty_database: str, databases: Schemas
) -> None:
    """How many servers; whether the table is distributed, and by what."""
    nodes = len(databases.workers)
    found = (await findings_of(database))["distributed"]
    assert f"over {nodes} servers" in found
    assert "by handle" in found

    assert 0 == await asyncio.to_thread(
        main, ["migrate", "--database-url", empty_database]
    )
    assert "is on this server alone" in (await findings_of(empty_database))["citus"]

    with psycopg.connect(empty_database) as connection:
        connection.execute(
            "ALTER TABLE compas_session DROP CONSTRAINT compas_session_pkey"
        )
        connection.execute("CREATE INDEX ON compas_session (handle)")
        connection.execute("SELECT create_distributed_table('compas_session','epoch')")
    wrong = await findings_of(empty_database)
    assert "by epoch" in wrong["distributed-by"]


# -- a server is away ------------------------------------------------------------------


@contextmanager
def away(dsn: str, databases: Schemas, number: int) -> Iterator[None]:
    """The database of a worker lets nobody in, and ends who is there."""
    entry = databases.by_worker(databases.server, number, path="/postgres", query="")
    name = psycopg.conninfo.conninfo_to_dict(databases.server)["dbname"]
    with psycopg.connect(entry, autocommit=True) as connection:

        def allow(allowed: bool) -> None:
            connection.execute(
                f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS {allowed}'.encode()
            )

        allow(False)
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = %s",
                [name],
            )
            yield
        finally:
            allow(True)


def ports_of(dsn: str, handles: list[str]) -> dict[str, int]:
    """The port of the server that has each session."""
    with psycopg.connect(dsn) as connection:
        return dict(
            connection.execute(
                "SELECT h, n.nodeport FROM unnest(%s::text[]) AS h"
                " JOIN pg_dist_placement p ON p.shardid ="
                " get_shard_id_for_distribution_column('compas_session', h)"
                " JOIN pg_dist_node n USING (groupid)",
                [handles],
            ).fetchall()
        )


def backends(dsn: str, name: str) -> set[int]:
    with psycopg.connect(dsn) as connection:
        return {
            row[0]
            for row in connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = %s", [name]
            )
        }


@drivers
async def test_a_server_that_is_away_takes_its_own_sessions_along(
    driver: str,
    database: str,
    databases: Schemas,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    They are `StoreUnavailable`, a 503; all others are read and written, on connections
    that stay; a line for reads and one for writes. When it is back, all is.
    """
    name = f"away-{driver}"
    store = await made(driver, f"{database}&application_name={name}")
    handles = [await created(store) for _ in range(24)]
    ports = ports_of(database, handles)
    gone = databases.workers[1][1]
    assert 2 == len(set(ports.values()))
    await asyncio.gather(*(store.load(handle) for handle in handles))
    before = backends(database, name)

    async def ask(handle: str, write: bool) -> str:
        try:
            if write:
                assert await store.save(handle, 0, change({"n": 1}))
            else:
                assert await store.load(handle)
        except StoreUnavailable:
            return "away" if ports[handle] == gone else "refused"
        return "served, but how" if ports[handle] == gone else "served"

    async def round_() -> Counter[str]:
        asked = [ask(handle, write) for handle in handles for write in (False, True)]
        return Counter(await asyncio.gather(*asked))

    with caplog.at_level(logging.WARNING, logger="tornado_compas_session"):
        with away(database, databases, 1):
            seen = sum([await round_() for _ in range(5)], Counter[str]())
            assert {"away", "served"} == set(seen)
            assert before <= backends(database, name)
        gone = 0
        assert {"served"} == set(await round_())
    assert before <= backends(database, name)
    said = [record.getMessage() for record in caplog.records]
    assert ["reads", "writes"] == sorted(
        line.split(": ")[1].split()[0] for line in said if "in trouble" in line
    ), said
    await store.close()


def test_the_cluster_is_as_before(databases: Schemas, io_loop: IOLoop) -> None:
    """Every worker lets us in."""
    for number in range(len(databases.workers)):
        psycopg.connect(databases.by_worker(databases.server, number)).close()
