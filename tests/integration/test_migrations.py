"""Migrations against real databases: once, twice, two at once, edited, by hand."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tornado_compas_session import StoreError
from tornado_compas_session.stores import migrations as module
from tornado_compas_session.stores.migrations import (
    migrate,
    migrations,
    pending,
    script,
)
from tornado_compas_session.stores.pools.asyncpg import AsyncpgPool, open_pool

ROOT = Path(__file__).parents[2]
NAMES = [migration.name for migration in migrations()]


def ledger(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT name FROM compas_session_migration ORDER BY name"
        ).fetchall()
    return [row[0] for row in rows]


def columns(dsn: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "SELECT column_name, data_type, is_nullable, column_default"
            "  FROM information_schema.columns"
            " WHERE table_schema = current_schema() AND table_name = 'compas_session'"
            " ORDER BY ordinal_position"
        ).fetchall()


def indexes(dsn: str) -> dict[str, str]:
    with psycopg.connect(dsn) as connection:
        return dict(
            connection.execute(
                "SELECT indexname, indexdef FROM pg_indexes"
                " WHERE schemaname = current_schema() AND tablename = 'compas_session'"
            ).fetchall()
        )


async def waiting(dsn: str) -> list[str]:
    pool = AsyncpgPool(
        await open_pool(dsn, min_size=0, max_size=1, timeout=30), timeout=30
    )
    try:
        return await pending(pool)
    finally:
        await pool.close()


async def test_second_time_does_nothing(empty_database: str) -> None:
    """The first call applies everything and says so; the second finds it done."""
    assert NAMES == await migrate(empty_database)
    assert [] == await migrate(empty_database)
    assert NAMES == ledger(empty_database)


async def test_pending_looks_and_changes_nothing(empty_database: str) -> None:
    """Asking what is to be done makes no table, on a database without any."""
    assert NAMES == await waiting(empty_database)
    assert [] == columns(empty_database)

    await migrate(empty_database)
    assert [] == await waiting(empty_database)


async def test_many_at_once_apply_each_once(empty_database: str) -> None:
    """Servers that start together and all migrate: each migration happens once."""
    outcomes = await asyncio.gather(*(migrate(empty_database) for _ in range(6)))

    assert NAMES == sorted(name for names in outcomes for name in names)
    assert NAMES == ledger(empty_database)


async def test_edited_migration_is_refused(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that says something else than what was applied stops everything."""
    shutil.copytree(ROOT / "schema", tmp_path / "schema")
    file = tmp_path / "schema" / "migrations" / f"{NAMES[0]}.sql"
    file.write_text(file.read_text() + "\n-- and a change of mind\n")
    monkeypatch.setattr(module, "schema_dir", lambda: tmp_path / "schema")

    with pytest.raises(StoreError, match=f"{NAMES[0]} was edited"):
        await migrate(database)


async def test_failing_migration_leaves_nothing_behind(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration and its record are one transaction: half of one cannot be."""
    shutil.copytree(ROOT / "schema", tmp_path / "schema")
    bad = tmp_path / "schema" / "migrations" / "9999_breaks.sql"
    bad.write_text("CREATE TABLE half (a int);\nSELECT 1 / 0;\n")
    monkeypatch.setattr(module, "schema_dir", lambda: tmp_path / "schema")

    with pytest.raises(StoreError, match="22012"):
        await migrate(database)

    assert NAMES == ledger(database)
    with psycopg.connect(database) as connection:
        [row] = connection.execute("SELECT to_regclass('half') IS NULL").fetchall()
    assert row[0]


async def test_script_by_hand_is_the_same(empty_database: str, database: str) -> None:
    """`migrate --print` piped into psql gives the same tables, and counts as done."""
    with psycopg.connect(empty_database) as connection:
        connection.execute(script().encode())

    assert columns(database) == columns(empty_database)
    assert indexes(database) == indexes(empty_database)
    assert [] == await migrate(empty_database)


def test_no_index_has_what_a_request_writes(database: str) -> None:
    """Three in all; a new secret, a renewal and a save of data touch none of them."""
    assert {
        "compas_session_pkey": "(handle)",
        "compas_session_reap_after": "(reap_after)",
        "compas_session_user_id": "(user_id) WHERE (user_id IS NOT NULL)",
    } == {
        name: definition.partition("USING btree ")[2]
        for name, definition in indexes(database).items()
    }


def test_readme_has_every_column_and_index(database: str) -> None:
    """schema/README.md is what somebody reads who has to do with the table."""
    text = (ROOT / "schema" / "README.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]

    wanted = [str(column[0]) for column in columns(database)]
    assert sorted([*wanted, *indexes(database), "handle"]) == sorted(named)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("handle", "'too short'"),
        ("handle", "'ü12345678901'"),
        ("handle", "NULL"),
        ("secret_hash", "'\\x00'"),
        ("data", "'[]'"),
        ("data", "NULL"),
        ("expires_at", "NULL"),
    ],
)
def test_the_table_takes_no_nonsense(database: str, column: str, value: str) -> None:
    """Whoever writes to it by hand is told at once."""
    good = {
        "handle": "'000000000001'",
        "secret_hash": "sha256('')",
        "data": "'{}'",
        "expires_at": "now()",
    }
    with psycopg.connect(database, autocommit=True) as connection:
        for given in (good | {column: value}, good):
            insert = (
                f"INSERT INTO compas_session ({', '.join(given)})"
                f" VALUES ({', '.join(given.values())})"
            )
            if given is good:
                connection.execute(insert.encode())
                continue
            with pytest.raises(psycopg.errors.IntegrityError):
                connection.execute(insert.encode())


@pytest.mark.slow
def test_two_processes_at_once(empty_database: str) -> None:
    """The command is safe to run from two machines at the same moment."""
    command = [sys.executable, "-m", "tornado_compas_session", "migrate"]
    environ = {**os.environ, "DATABASE_URL": empty_database}
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0] for process in running]

    assert [0, 0] == [process.returncode for process in running]
    assert "".join(f"{name}\n" for name in NAMES) == "".join(sorted(printed))


@pytest.mark.slow
def test_command_works_from_anywhere(empty_database: str, tmp_path: Path) -> None:
    """A checkout on the path finds its SQL from any folder."""
    environ = {
        **os.environ,
        "DATABASE_URL": empty_database,
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-m", "tornado_compas_session", "migrate"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (0, [*NAMES]) == (run.returncode, run.stdout.split())
