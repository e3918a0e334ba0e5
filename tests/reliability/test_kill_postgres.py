"""
kill -9 of all PostgreSQL processes under load: no acknowledged write is lost.

This tests that the log is written before the answer leaves. It does not lose the page
cache of the machine, so it says nothing about power failures.
"""

from __future__ import annotations

import asyncio
import random

import psycopg
import pytest

from tests.apps.load import Load
from tests.apps.visitor import contents
from tests.apps.web import make_app
from tests.factories import serve
from tornado_compas_session import PostgresSessionStore
from tornado_compas_session.stores.migrations import migrate

pytestmark = pytest.mark.slow


async def crashes(make_cluster, rounds, **settings):
    """The load, how much of it was lost, and how much of the unknown had happened."""
    dice = random.Random(4)
    server = make_cluster(settings={"fsync": True, **settings})
    await asyncio.to_thread(server.start)
    lost = happened = 0
    await migrate(server.dsn())
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CHECKPOINT")  # the table itself is not what may be lost
    store = await PostgresSessionStore.connect(server.dsn())
    with serve(make_app(store)) as url:
        load = Load(url)
        for number in range(rounds):
            async with load.running(f"r{number}"):
                await asyncio.sleep(0.5 + dice.random() / 2)
                await asyncio.to_thread(server.restart, "kill")
                await asyncio.sleep(0.3)
        found = contents(server.dsn())
        lost, happened = load.lost(found), load.happened(found)
    await store.close()
    await asyncio.to_thread(server.stop, "fast")
    return load, lost, happened


async def test_no_acknowledged_write_is_lost(make_cluster, long, record_property):
    """The same web process goes on after each crash of the database."""
    rounds = 5 if long else 1

    load, lost, happened = await crashes(make_cluster, rounds)

    assert 0 == lost
    assert len(load.acknowledged) > 50
    record_property(
        "lost",
        f"0 of {len(load.acknowledged)}; {rounds} crashes; "
        f"{happened} of {len(load.unknown)} unknown happened",
    )


async def test_control_without_synchronous_commit_writes_are_lost(
    make_cluster, long, record_property
):
    """`synchronous_commit=off` acknowledges before the log is written."""
    rounds = 5 if long else 1

    load, lost, _ = await crashes(
        make_cluster, rounds, synchronous_commit=False, wal_writer_delay="10s"
    )

    assert lost > 0
    record_property("lost", f"{lost} of {len(load.acknowledged)}; {rounds} crashes")
