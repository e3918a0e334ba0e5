"""On a table with many sessions: a request touches its own ones only, by the key."""

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
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.stores.pools.queries import Statement, statements

ROWS = 200_000
HANDLES = ("000000000007", "000000000011")
#: A value for each parameter that a statement has, as SQL.
VALUES = {
    "handle": f"'{HANDLES[0]}'",
    "handles": f"ARRAY{list(HANDLES)}",
    "secret_hash": "sha256('new')",
    "epoch": "0",
    "set": """'{"a": 1}'""",
    "removed": "'{b}'",
    "replace": "false",
    "idle": "60",
    "absolute": "NULL",
    "own": "false",
    "own_idle": "NULL",
    "own_absolute": "NULL",
    "shown": "sha256('7')",
    "key": "'n'",
    "by": "1",
    "identity": "false",
    "mine": "sha256('7')",
    "new": "sha256('new')",
    "former": "NULL",
    "user_id": "'user-7'",
    "signed_in": "NULL",
    "user_agent": "NULL",
    "address": "NULL",
    "limit": "50",
    "others": "3",
}
#: What stands for them in a statement for a batch.
BATCHES = {
    "secret_hash": "ARRAY[sha256('1'), sha256('2')]",
    "epoch": "'{0,0}'",
    "set": """ARRAY['{"a": 1}', '{}']""",
    "removed": """ARRAY['["b"]', NULL]""",
    "replace": "'{f,f}'",
    "idle": "'{60,60}'",
    "absolute": "'{NULL,NULL}'",
    "own": "'{f,f}'",
    "own_idle": "'{NULL,NULL}'",
    "own_absolute": "'{NULL,NULL}'",
    "shown": "ARRAY[sha256('7'), NULL]",
    "key": "'{n,n}'",
    "by": "'{1,2}'",
    "user_id": "'{ada,NULL}'",
    "user_agent": "'{NULL,NULL}'",
    "address": "'{NULL,NULL}'",
}
#: They serve a request, and know the one row that they touch.
ONE_ROW = {
    *("load_session", "lock_session", "end_surplus_one"),
    *("revoke", "revoke_waiting"),
    *("save_session", "save_session_waiting"),
    *("increment_session", "increment_session_waiting"),
    *("regenerate_session", "regenerate_session_waiting"),
    *("delete_session", "delete_session_waiting"),
}
#: They serve many requests at once: those rows, and no others.
ROWS_OF_A_BATCH = {"load_sessions", "save_sessions", "increment_sessions"}
#: Those whose parameters are arrays.
OF_A_BATCH = {"create_sessions", "save_sessions", "increment_sessions"}
#: They put rows in, and read none.
NEW_ROWS = {"create_session", "create_sessions"}
#: They find the rows of a user, or of a day.
OTHER_INDEX = {
    "sessions_of": "compas_session_user_id",
    "revoke_user": "compas_session_user_id",
    "revoke_user_unlocked": "compas_session_user_id",
    "surplus_sessions": "compas_session_user_id",
    "end_surplus": "compas_session_pkey",  # or by the user, if there are few
    "delete_expired": "compas_session_reap_after",
}
#: It touches no row.
NO_ROW = {"queue_for_user", "encoding"}
#: They look at every session: for a person or a clock, not for a request.
WHOLE_TABLE = {"revoke_all", "stats", "top_users", "check_session_table"}


#: Sessions with these numbers.
SOME = (
    "(handle, secret_hash, data, user_id, expires_at)"
    " SELECT lpad(n::text, 12, '0'), sha256(n::text::bytea),"
    " jsonb_build_object('n', n), 'user-' || n, now() + interval '1 hour'"
    " FROM generate_series({}, {}) AS n"
)


@pytest.fixture(scope="module")
def filled(
    databases: Databases, template_database: str
) -> Iterator[psycopg.Connection[Any]]:
    """A table of 200,000 sessions, some of them expired, some regenerated."""
    name = databases.create(template_database)
    with psycopg.connect(databases.dsn(name), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO compas_session"
            " (handle, secret_hash, former_hash, data, user_id, expires_at)"
            " SELECT lpad(n::text, 12, '0'), sha256(n::text::bytea),"
            "        CASE WHEN n % 50 = 0 THEN sha256(('old' || n)::bytea) END,"
            "        jsonb_build_object('n', n), 'user-' || n % 50000,"
            "        now() + n % 100 * interval '1 hour' - interval '2 hours'"
            f"   FROM generate_series(1, {ROWS}) AS n"
        )
        connection.execute("VACUUM ANALYZE compas_session")
        yield connection
    databases.drop(name)


def arguments(statement: Statement) -> str:
    """Values for its parameters, in their order."""
    values = VALUES | BATCHES if statement.name in OF_A_BATCH else VALUES
    return ", ".join(values[name] for name in statement.parameters)


def plan_of(
    connection: psycopg.Connection[Any], statement: Statement, mode: str
) -> dict[str, Any]:
    with connection.transaction(force_rollback=True):
        connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
        connection.execute(f"PREPARE one AS {statement.numbered}")
        row = connection.execute(
            f"EXPLAIN (FORMAT JSON) EXECUTE one ({arguments(statement)})"
        ).fetchone()
        connection.execute("DEALLOCATE one")
    assert row is not None
    return dict(row[0][0]["Plan"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def reads(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a plan that find rows of the table."""
    return [
        node
        for node in nodes(plan)
        if "Scan" in node["Node Type"]
        and node["Node Type"] != "Bitmap Heap Scan"  # its part is the index
        and (node.get("Relation Name") == "compas_session" or "Index Name" in node)
    ]


def test_every_statement_is_looked_at():
    """A new statement needs its place here."""
    places = (ONE_ROW, ROWS_OF_A_BATCH, NEW_ROWS, OTHER_INDEX, NO_ROW, WHOLE_TABLE)
    assert sum(map(len, places)) == len(set().union(*places))
    assert set(statements()) == set().union(*places)


MODES = pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])


@MODES
@pytest.mark.parametrize("name", ["load_session", "lock_session"])
def test_a_load_is_one_look_at_the_primary_key(
    filled: psycopg.Connection[Any], name: str, mode: str
) -> None:
    """No second index, no union, no subquery: the handle says which row it is."""
    plan = plan_of(filled, statements()[name], mode)

    parts = list(nodes(plan))
    if name == "lock_session":
        assert "LockRows" == parts.pop(0)["Node Type"]
    [part] = parts
    assert ("Index Scan", "compas_session_pkey") == (
        part["Node Type"],
        part["Index Name"],
    )
    assert part["Index Cond"].startswith("(handle = ")


@MODES
@pytest.mark.parametrize("name", sorted(ONE_ROW))
def test_a_request_touches_the_row_that_it_names(
    filled: psycopg.Connection[Any], name: str, mode: str
) -> None:
    """However many sessions there are: each look is one by the primary key."""
    statement = statements()[name]
    assert "handle" in statement.parameters
    found = reads(plan_of(filled, statement, mode))

    assert found
    for node in found:
        assert "compas_session_pkey" == node["Index Name"], json.dumps(node)
        assert node["Index Cond"].startswith("(handle = "), json.dumps(node)
        assert 1 == node["Plan Rows"], json.dumps(node)


@MODES
@pytest.mark.parametrize("name", sorted(ROWS_OF_A_BATCH))
def test_a_batch_touches_the_rows_that_it_names(
    filled: psycopg.Connection[Any], name: str, mode: str
) -> None:
    """Each by the primary key, however many sessions there are beside them."""
    found = reads(plan_of(filled, statements()[name], mode))

    assert found
    for node in found:
        assert "compas_session_pkey" == node.get("Index Name"), json.dumps(node)
        assert node["Index Cond"].startswith("(handle = "), json.dumps(node)


@MODES
@pytest.mark.parametrize("name", sorted(NEW_ROWS))
def test_a_new_session_reads_none(
    filled: psycopg.Connection[Any], name: str, mode: str
) -> None:
    """Whether the handle is taken the index says, and nobody looks before."""
    assert [] == reads(plan_of(filled, statements()[name], mode))


@MODES
@pytest.mark.parametrize("name", OTHER_INDEX)
def test_others_go_by_an_index_of_theirs(
    filled: psycopg.Connection[Any], name: str, mode: str
) -> None:
    """A user's sessions by the user, those that have expired by the day."""
    found = reads(plan_of(filled, statements()[name], mode))

    names = {node.get("Index Name") for node in found}
    if name == "end_surplus":
        names.discard("compas_session_user_id")
    assert OTHER_INDEX[name] in names
    assert names <= {OTHER_INDEX[name], "compas_session_pkey"}


@pytest.mark.parametrize("name", sorted(NEW_ROWS | ROWS_OF_A_BATCH | ONE_ROW))
def test_is_planned_once(filled: psycopg.Connection[Any], name: str) -> None:
    """Not anew for each batch: planning costs several times what the statement does."""
    statement = statements()[name]
    with filled.transaction(force_rollback=True):
        filled.execute(f"PREPARE {name} AS {statement.numbered}")
        for _ in range(12):
            filled.execute(f"EXECUTE {name} ({arguments(statement)})")
        if filled.info.server_version >= 140000:
            row = filled.execute(
                "SELECT generic_plans FROM pg_prepared_statements WHERE name = %s",
                (name,),
            ).fetchone()
            assert (7,) == row  # PostgreSQL tries five others first
        filled.execute(f"DEALLOCATE {name}")


#: What the table has been through before the statements are planned.
PASTS = {
    "new": "",
    "analysed while it was empty": "ANALYZE compas_session",
    "cleaned out": (
        f"INSERT INTO compas_session {SOME.format(1, 200)}; ANALYZE compas_session;"
        " DELETE FROM compas_session; VACUUM ANALYZE compas_session"
    ),
    "small": (
        f"INSERT INTO compas_session {SOME.format(1, 20)};"
        " VACUUM ANALYZE compas_session"
    ),
}


def pages_of_statements(dsn: str) -> dict[str, int]:
    """
    How many pages each statement touches that serves requests, on a table that has
    grown to 5,000 sessions since it was planned.
    """
    touched: dict[str, int] = {}
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        served = {name: statements()[name] for name in (*ONE_ROW, *ROWS_OF_A_BATCH)}
        served |= {name: statements()[name] for name in OTHER_INDEX}
        del served["delete_expired"]  # that has a table to read, and no one waits
        for name, statement in served.items():
            connection.execute(f"PREPARE {name} AS {statement.numbered}")
            with connection.transaction(force_rollback=True):
                connection.execute(f"EXECUTE {name} ({arguments(statement)})")
        connection.execute(
            f"INSERT INTO compas_session {SOME.format(1, 5000)} ON CONFLICT DO NOTHING"
        )
        for name, statement in served.items():
            with connection.transaction(force_rollback=True):
                row = connection.execute(
                    "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
                    f" EXECUTE {name} ({arguments(statement)})"
                ).fetchone()
                assert row is not None
                plan = row[0][0]["Plan"]
                touched[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return touched


@pytest.mark.slow
@pytest.mark.parametrize("past", PASTS)
def test_a_plan_of_the_first_minute_is_good_for_what_comes(
    database: str, past: str
) -> None:
    """
    What was prepared on a table that is new or small goes by the key, though nobody
    analyses the table while it grows.
    """
    with psycopg.connect(database, autocommit=True) as connection:
        for sql in filter(None, PASTS[past].split(";")):
            connection.execute(sql.encode())

    touched = pages_of_statements(database)

    assert {} == {name: pages for name, pages in touched.items() if pages > 40}


@pytest.mark.slow
@pytest.mark.parametrize("past", PASTS)
def test_control_without_the_room_it_reads_all_of_it(database: str, past: str) -> None:
    """The same, where the migration has left no pages: statements read the table."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("TRUNCATE compas_session")
        connection.execute("ALTER TABLE compas_session RESET (vacuum_truncate)")
        for sql in filter(None, PASTS[past].split(";")):
            connection.execute(sql.encode())

    touched = pages_of_statements(database)

    worst = [name for name, pages in touched.items() if pages > 100]
    assert worst
    assert past == "new" or "load_session" in worst


async def memory_of_some_requests(dsn: str) -> int:
    """The bytes that stay allocated after sessions were made, loaded and swept."""
    store = await PostgresSessionStore.connect(dsn)
    handles = [new_handle() for _ in range(20)]
    gc.collect()
    tracemalloc.start()
    try:
        for handle in handles:
            secret_hash = hash_secret(new_secret())
            change = SessionChange({"n": "1"}, idle=600.0)
            await store.create(handle, secret_hash, change)
            assert await store.load(handle)
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
