"""What using a session writes: nothing within `renew` seconds, then HOT updates."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import psycopg
import pytest

from tests.conftest import ClusterMaker
from tornado_compas_session import PostgresSessionStore
from tornado_compas_session.core.ids import new_id
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.testing.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow

SESSIONS = 1500
ROUNDS = 5
#: Visitors who come at the same moment, so that their renewals share a statement.
AT_ONCE = 40
DATA = {"text": '"' + "x" * 280 + '"'}


def servers() -> list[object]:
    """The wheel's PostgreSQL, and those that the distribution installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return [
        pytest.param(None, id="embedded"),
        *(pytest.param(path.parent, id=path.parts[-3]) for path in found),
    ]


@pytest.fixture(params=servers())
def server(
    request: pytest.FixtureRequest, make_cluster: ClusterMaker
) -> EmbeddedPostgres:
    settings = {"fsync": False, "autovacuum": False}
    return make_cluster(settings=settings, bin_dir=request.param).start()


async def test_renewals_are_hot(server: EmbeddedPostgres):
    """
    Over 95 % of them leave every index alone and stay on their page.

    Without autovacuum: the room that a renewal needs is made by the renewals before.
    In no order, as visitors come; all sessions of a page at once would not fit on it.
    """
    await migrate(server.dsn())
    store = await PostgresSessionStore.connect(server.dsn())
    ids = [new_id() for _ in range(SESSIONS)]
    made = SessionChange(DATA, idle=600.0)
    await asyncio.gather(*(store.create(session_id, made) for session_id in ids))
    chance = random.Random(7)
    for number in range(ROUNDS):
        renewal = SessionChange(idle=600.0 + number)
        chance.shuffle(ids)
        for start in range(0, SESSIONS, AT_ONCE):
            some = ids[start : start + AT_ONCE]
            await asyncio.gather(*(store.save(one, renewal) for one in some))
    await store.close()

    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        updates = hot = 0
        for _ in range(200):  # the statistics arrive after a while
            row = connection.execute(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
                " WHERE relname = 'compas_session'"
            ).fetchone()
            assert row is not None
            updates, hot = row
            if updates >= SESSIONS * ROUNDS:
                break
            await asyncio.sleep(0.1)
    assert SESSIONS * ROUNDS == updates
    assert hot / updates > 0.95


async def test_a_read_writes_nothing(server: EmbeddedPostgres):
    """0 bytes of WAL, the second time: the first may note that a row is committed."""
    await migrate(server.dsn())
    store = await PostgresSessionStore.connect(server.dsn())
    ids = [new_id() for _ in range(SESSIONS)]
    made = SessionChange(DATA, idle=600.0)
    await asyncio.gather(*(store.create(session_id, made) for session_id in ids))

    def written() -> int:
        row = connection.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
        ).fetchone()
        assert row is not None
        return int(row[0])

    wal = -1
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
        for _ in range(50):  # the server's own notes may come in between, now and then
            await asyncio.gather(*(store.load(session_id) for session_id in ids))
            before = written()
            for _ in range(3):
                await asyncio.gather(*(store.load(session_id) for session_id in ids))
            wal = written() - before
            if not wal:
                break
            await asyncio.sleep(0.1)
    await store.close()
    assert 0 == wal
