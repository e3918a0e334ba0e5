"""
The schema, step by step: `schema/migrations/NNNN_name.sql`, forward only.

Each migration and the record of it are one transaction, so there is no half of one;
who comes second waits, and finds it done.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any, NamedTuple

from tornado_compas_session.core.protocols import Connection, Pool
from tornado_compas_session.exceptions import SchemaMissing, StoreError
from tornado_compas_session.stores.database import IS_SPREAD, LAYOUT
from tornado_compas_session.stores.distributed import DISTRIBUTE
from tornado_compas_session.stores.pools import as_pool, opened
from tornado_compas_session.stores.pools.queries import compile_statement, schema_dir

_NAME = re.compile(r"\d{4}_[a-z0-9_]+\.sql")

_LEDGER = """
CREATE TABLE IF NOT EXISTS compas_session_migration (
    name       text        NOT NULL PRIMARY KEY,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
# A lock of this transaction only: it holds behind PgBouncer too. The number is ours.
_LOCK = "SELECT pg_advisory_xact_lock(7290217303148221)"
_APPLIED = compile_statement(
    "applied", "SELECT name, checksum FROM compas_session_migration ORDER BY name"
)
_RECORD = compile_statement(
    "record",
    "INSERT INTO compas_session_migration (name, checksum) "
    "VALUES (:name::text, :checksum::text) RETURNING name",
)


class Migration(NamedTuple):
    """One file of `schema/migrations`."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Tells whether the file was edited after it had been applied."""
        return sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All migrations, in their order."""
    return [
        Migration(path.stem, path.read_text("utf-8"))
        for path in sorted((schema_dir() / "migrations").iterdir())
        if _NAME.fullmatch(path.name)
    ]


def script(*, distributed: bool = False) -> str:
    """All migrations as one SQL script, for `psql -1` and for reading."""
    parts = [_LEDGER.strip() + ";\n"]
    for migration in migrations():
        parts.append(
            f"-- {migration.name}\n{migration.sql.strip()}\n"
            "INSERT INTO compas_session_migration (name, checksum)\n"
            f"VALUES ('{migration.name}', '{migration.checksum}');\n"
        )
    if distributed:
        parts.append(f"{DISTRIBUTE.numbered};\n")
    return "\n".join(parts)


async def pending(pool: Any) -> list[str]:
    """The names of the migrations that are yet to be applied; changes nothing."""
    try:
        done = await _applied(as_pool(pool))
    except SchemaMissing:
        done = {}
    return [migration.name for migration in migrations() if migration.name not in done]


async def migrate(database: Any) -> list[str]:
    """
    Applies what is pending, each migration in a transaction; returns their names.

    `database` is a DSN or a pool. Safe to run twice and from two places at once.
    Raises `StoreError` if a migration was edited after it had been applied.
    """
    if isinstance(database, str):
        async with opened(database, 60) as own:
            return await migrate(own)
    pool: Pool = as_pool(database, timeout=60)
    names = []
    async with pool.transaction() as connection:
        await connection.run_script(_LOCK)
        await connection.run_script(_LEDGER)
    for migration in migrations():
        async with pool.transaction() as connection:
            await connection.run_script(_LOCK)
            done = await _applied(connection)
            if migration.name not in done:
                await connection.run_script(migration.sql)
                await connection.fetch(
                    _RECORD, name=migration.name, checksum=migration.checksum
                )
                names.append(migration.name)
            elif done[migration.name] != migration.checksum:
                raise StoreError(
                    f"the migration {migration.name} was edited after it had been "
                    "applied to this database; restore the file, and put the change "
                    "into a new one"
                )
    return names


async def distribute(database: Any) -> bool:
    """
    Spreads the table over the servers of a Citus, by `handle` and in 32 shards; False
    if it is spread already. Whoever writes meanwhile waits.

    `database` is a pool, on the coordinator, in whose time limit it has to happen: a
    million sessions take a quarter of a minute. Raises `StoreError` where there is no
    Citus.
    """
    async with as_pool(database).transaction() as connection:
        await connection.run_script(_LOCK)
        [(_, has_citus)] = await connection.fetch(LAYOUT)
        if not has_citus:
            raise StoreError(
                "this database has no Citus; run `CREATE EXTENSION citus` in it, on "
                "every server, and tell the coordinator of the others"
            )
        if await connection.fetch(IS_SPREAD):
            return False
        await connection.fetch(DISTRIBUTE)
    return True


async def _applied(where: Pool | Connection) -> dict[str, str]:
    return {row[0]: row[1] for row in await where.fetch(_APPLIED)}
