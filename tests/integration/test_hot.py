"""What using a session writes: nothing within `renew` seconds, then HOT updates."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import psycopg
import pytest

from tests.conftest import ClusterMaker
from tornado_compas_session import PostgresSessionStore
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.types import Identity, NewSecret, SessionChange
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.testing.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow

SESSIONS = 1500
ROUNDS = 5
#: Visitors who come at the same moment, so that their renewals share a statement.
AT_ONCE = 40
#: Until noon of tomorrow: the day of the end is in an index, and must not change.
IDLE = 1.5 * 86400 - time.time() % 86400
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


async def filled(dsn: str) -> tuple[PostgresSessionStore, dict[str, bytes]]:
    """A store with sessions in it, half of them signed in; their secrets' hashes."""
    await migrate(dsn)
    store = await PostgresSessionStore.connect(dsn)
    secrets = {new_handle(): hash_secret(new_secret()) for _ in range(SESSIONS)}
    made = SessionChange(DATA, idle=IDLE)
    await asyncio.gather(
        *(
            store.create(handle, secret, made, Identity(f"user-{n}") if n % 2 else None)
            for n, (handle, secret) in enumerate(secrets.items())
        )
    )
    return store, secrets


async def updates_of(dsn: str, expected: int) -> tuple[int, int]:
    """How many updates there were, and how many of them HOT."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        updates = hot = 0
        for _ in range(200):  # the statistics arrive after a while
            row = connection.execute(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
                " WHERE relname = 'compas_session'"
            ).fetchone()
            assert row is not None
            updates, hot = row
            if updates >= expected:
                break
            await asyncio.sleep(0.1)
    return updates, hot


async def test_renewals_are_hot(server: EmbeddedPostgres):
    """
    Over 95 % of them leave every index alone and stay on their page.

    Without autovacuum: the room that a renewal needs is made by the renewals before.
    In no order, as visitors come; all sessions of a page at once would not fit on it.
    """
    store, secrets = await filled(server.dsn())
    handles = list(secrets)
    chance = random.Random(7)
    for number in range(ROUNDS):
        renewal = SessionChange(idle=IDLE + number)
        chance.shuffle(handles)
        for start in range(0, SESSIONS, AT_ONCE):
            some = handles[start : start + AT_ONCE]
            await asyncio.gather(*(store.save(one, 0, renewal) for one in some))
    await store.close()

    updates, hot = await updates_of(server.dsn(), SESSIONS * ROUNDS)
    assert SESSIONS * ROUNDS == updates
    assert hot / updates > 0.95


async def test_new_secrets_are_hot(server: EmbeddedPostgres):
    """
    So are those that a session gets: no index has the secret, nor what goes with it.

    Each is shown by a renewal after it, as by a browser's next request.
    """
    store, secrets = await filled(server.dsn())
    handles = list(secrets)
    chance = random.Random(7)

    async def turn(handle: str, shown: bool) -> None:
        if shown:
            change = SessionChange(idle=IDLE, shown=secrets[handle])
            assert await store.save(handle, 0, change)
            return
        mine, secrets[handle] = secrets[handle], hash_secret(new_secret())
        secret = NewSecret(mine, secrets[handle])
        change = SessionChange(idle=IDLE)
        assert await store.regenerate(handle, 0, secret, change)

    for number in range(ROUNDS):
        chance.shuffle(handles)
        for start in range(0, SESSIONS, AT_ONCE):
            some = handles[start : start + AT_ONCE]
            await asyncio.gather(*(turn(one, number % 2 == 1) for one in some))
    await store.close()

    updates, hot = await updates_of(server.dsn(), SESSIONS * ROUNDS)
    assert SESSIONS * ROUNDS == updates
    assert hot / updates > 0.95


async def test_sums_are_hot(server: EmbeddedPostgres):
    """Whoever counts with each request makes no index grow."""
    store, secrets = await filled(server.dsn())
    handles = list(secrets)
    chance = random.Random(7)
    for _ in range(ROUNDS):
        chance.shuffle(handles)
        for start in range(0, SESSIONS, AT_ONCE):
            some = handles[start : start + AT_ONCE]
            change = SessionChange(idle=IDLE)
            await asyncio.gather(
                *(store.increment(one, 0, "n", "1", change) for one in some)
            )
    await store.close()

    updates, hot = await updates_of(server.dsn(), SESSIONS * ROUNDS)
    assert SESSIONS * ROUNDS == updates
    assert hot / updates > 0.95


async def test_a_read_writes_nothing(server: EmbeddedPostgres):
    """0 bytes of WAL, the second time: the first may note that a row is committed."""
    store, handles = await filled(server.dsn())

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
            await asyncio.gather(*(store.load(handle) for handle in handles))
            before = written()
            for _ in range(3):
                await asyncio.gather(*(store.load(handle) for handle in handles))
            wal = written() - before
            if not wal:
                break
            await asyncio.sleep(0.1)
    await store.close()
    assert 0 == wal
