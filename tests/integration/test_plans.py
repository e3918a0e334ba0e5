"""On a table with many sessions: each statement goes by an index, none is kept."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Databases
from tornado_compas_session import PostgresSessionStore
from tornado_compas_session.core.ids import new_id
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.stores.pools.queries import Statement, statements

ROWS = 200_000
IDS = "ARRAY[sha256('1'::bytea), sha256('2'::bytea)]"
CHANGES = """ARRAY['{"set": {"a": 1}, "idle": 60}', '{"set": {}, "idle": 60}']"""
ID = "sha256('3'::bytea)"
#: The arguments of each statement that runs while requests wait, as SQL.
ARGUMENTS = {
    "load_sessions": {"ids": IDS},
    "lock_session": {"id": ID},
    "create_sessions": {"ids": IDS, "changes": CHANGES},
    "save_sessions": {"ids": IDS, "changes": CHANGES},
    "save_session": {"id": ID, "change": """'{"idle": 60}'"""},
    "regenerate_session": {
        "id": ID,
        "new_id": "sha256('new'::bytea)",
        "grace": "10",
        "successor": r"'\x00'",
        "change": """'{"idle": 60}'""",
    },
    "delete_session": {"id": ID},
    "sessions_of": {"user_id": "'user-7'", "limit": "50"},
    "revoke": {"low": ID, "high": ID},
    "revoke_user": {"user_id": "'user-7'", "low": r"'\xff'", "high": r"'\x'"},
    "revoke_oldest": {"user_id": "'user-7'", "allowed": "3"},
    "delete_expired": {"limit": "1000"},
}
#: They look at every session: for a person or a clock, not for a request.
WHOLE_TABLE = {"revoke_all", "stats", "top_users", "check_session_table"}


@pytest.fixture(scope="module")
def filled(
    databases: Databases, template_database: str
) -> Iterator[psycopg.Connection[Any]]:
    """A table of 200,000 sessions, some of them expired, some regenerated."""
    name = databases.create(template_database)
    with psycopg.connect(databases.dsn(name), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO compas_session (id_hash, data, expires_at, reap_after,"
            " previous_id_hash, previous_until)"
            " SELECT sha256(n::text::bytea),"
            "        jsonb_build_object('user_id', 'user-' || n % 50000, 'n', n),"
            "        now() + n % 100 * interval '1 hour' - interval '2 hours',"
            "        current_date + (n % 100 - 2) / 24,"
            "        CASE WHEN n % 50 = 0 THEN sha256(('old' || n)::bytea) END, now()"
            f"   FROM generate_series(1, {ROWS}) AS n"
        )
        connection.execute("VACUUM ANALYZE compas_session")
        yield connection
    databases.drop(name)


def plan_of(
    connection: psycopg.Connection[Any], statement: Statement, mode: str
) -> dict[str, Any]:
    values = ARGUMENTS[statement.name]
    with connection.transaction(force_rollback=True):
        connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
        connection.execute(f"PREPARE one AS {statement.numbered}")
        given = ", ".join(values[name] for name in statement.parameters)
        row = connection.execute(
            f"EXPLAIN (FORMAT JSON) EXECUTE one ({given})"
        ).fetchone()
        connection.execute("DEALLOCATE one")
    assert row is not None
    return dict(row[0][0]["Plan"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def test_every_statement_is_looked_at():
    """A new statement needs its arguments here."""
    assert set(statements()) == set(ARGUMENTS) | WHOLE_TABLE


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_goes_by_an_index(
    filled: psycopg.Connection[Any], name: str, mode: str
) -> None:
    """However many sessions there are, a request touches its own ones only."""
    plan = plan_of(filled, statements()[name], mode)

    read = [n for n in nodes(plan) if n.get("Relation Name") == "compas_session"]
    assert [] == [json.dumps(node) for node in read if node["Node Type"] == "Seq Scan"]
    if name != "create_sessions":
        assert any("Index" in node["Node Type"] for node in nodes(plan))


@pytest.mark.parametrize("name", ["load_sessions", "create_sessions", "save_sessions"])
def test_is_planned_once(filled: psycopg.Connection[Any], name: str) -> None:
    """Not anew for each batch: planning costs several times what the statement does."""
    statement = statements()[name]
    values = ARGUMENTS[name]
    given = ", ".join(values[parameter] for parameter in statement.parameters)
    with filled.transaction(force_rollback=True):
        filled.execute(f"PREPARE {name} AS {statement.numbered}")
        for _ in range(12):
            filled.execute(f"EXECUTE {name} ({given})")
        if filled.info.server_version >= 140000:
            row = filled.execute(
                "SELECT generic_plans FROM pg_prepared_statements WHERE name = %s",
                (name,),
            ).fetchone()
            assert (7,) == row  # PostgreSQL tries five others first
        filled.execute(f"DEALLOCATE {name}")


async def memory_of_some_requests(dsn: str) -> int:
    """The bytes that stay allocated after sessions were made, loaded and swept."""
    store = await PostgresSessionStore.connect(dsn)
    ids = [new_id() for _ in range(20)]
    gc.collect()
    tracemalloc.start()
    try:
        for session_id in ids:
            await store.create(session_id, SessionChange({"n": "1"}, idle=600.0))
            assert await store.load(session_id)
        await store.stats()
        await store.delete_expired(limit=10)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        await store.close()


@pytest.mark.slow
async def test_idle_sessions_cost_the_process_nothing(
    filled: psycopg.Connection[Any], databases: Databases, database: str
) -> None:
    """200,000 sessions in the table, and the web process is as small as with none."""
    await memory_of_some_requests(database)  # what is allocated once, is now
    empty = await memory_of_some_requests(database)
    full = await memory_of_some_requests(databases.dsn(filled.info.dbname))

    assert full < empty + ROWS / 10  # bytes; a single one for each would be too many
