"""The doctor's look at the database: reachable, complete, allowed, and how reached."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable

from tornado_compas_session.core.protocols import Pool
from tornado_compas_session.exceptions import (
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.database import LAYOUT
from tornado_compas_session.stores.migrations import pending
from tornado_compas_session.stores.pools import opened
from tornado_compas_session.stores.pools.queries import compile_statement
from tornado_compas_session.tools.findings import Finding, found, good

MIN_VERSION = 130000
#: Seconds that two clocks may differ before it is worth a word.
CLOCK_SLACK = 5.0
_SECONDS = 10.0
# SQLSTATEs of a login that fails, of a database that is not there, of no permission.
_REFUSED = re.compile(r"\((28\w{3}|3D000|42501)\)")

_SERVER = compile_statement(
    "server",
    "SELECT current_setting('server_version_num')::integer,"
    " current_setting('server_version'), current_user::text,"
    " extract(epoch FROM clock_timestamp())::float8,"
    " pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean,"
    " current_setting('server_encoding')",
)
# Of the table: its schemas, what is not allowed on it, its columns, and those that an
# index begins with.
_SCHEMA = compile_statement(
    "schema",
    "SELECT t.oid IS NOT NULL, current_schemas(false)::text[],"
    " ARRAY(SELECT verb FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])"
    "       AS verb WHERE NOT has_table_privilege(t.oid, verb)),"
    " ARRAY(SELECT attname::text FROM pg_attribute"
    "        WHERE attrelid = t.oid AND attnum > 0 AND NOT attisdropped),"
    " ARRAY(SELECT attname::text FROM pg_attribute JOIN pg_index"
    "           ON attrelid = indrelid AND attnum = indkey[0]"
    "        WHERE indrelid = t.oid AND indisvalid)"
    " FROM (SELECT to_regclass('compas_session')::oid AS oid) AS t",
)
_SPREAD = compile_statement(
    "spread",
    "SELECT (SELECT count(*) FROM pg_dist_node WHERE isactive AND shouldhaveshards),"
    " (SELECT column_to_column_name(logicalrelid, partkey)::text FROM pg_dist_partition"
    "   WHERE logicalrelid = to_regclass('compas_session')),"
    " (SELECT count(*) FROM pg_dist_shard"
    "   WHERE logicalrelid = to_regclass('compas_session'))",
)
_BACKEND = compile_statement("backend", "SELECT pg_backend_pid()")

COLUMNS = {
    *("handle", "secret_hash", "former_hash", "secret_at", "shown_at", "epoch"),
    *("data", "user_id", "created_at", "updated_at", "expires_at", "reap_after"),
    *("authenticated_at", "own_idle", "own_absolute", "user_agent", "address"),
}
#: What each index is for, by the column that it begins with.
INDEXES = {
    "handle": "every request",
    "reap_after": "the cleanup",
    "user_id": "listing and ending a user's sessions",
}


async def examine(dsn: str, clock: Callable[[], float]) -> AsyncIterator[Finding]:
    """What is to say about the database; one that is away is a finding, too."""
    sound = True
    try:
        async with opened(dsn, _SECONDS) as pool:
            for findings in (_server(pool, clock), _schema(pool)):
                async for finding in findings:
                    sound = sound and finding.level != "problem"
                    yield finding
            if sound:
                async with opened(dsn, _SECONDS) as other:
                    async for finding in _pooling(pool, other):
                        yield finding
    except SettingsError as error:
        yield found("database-url", what=error)
    except StoreError as error:
        # The pool says most of these by one error: they pass, as far as it can know.
        name = "unreachable"
        if "certificate" in str(error):
            name = "certificate"
        elif not isinstance(error, StoreUnavailable) or _REFUSED.search(str(error)):
            name = "refused"
        yield found(f"database-{name}", what=error)


async def _server(pool: Pool, clock: Callable[[], float]) -> AsyncIterator[Finding]:
    before = clock()
    [(number, version, user, now, read_only, encoding)] = await pool.fetch(_SERVER)
    ahead = now - (before + clock()) / 2
    yield good("database", f"PostgreSQL {version}, as {user}")
    if number < MIN_VERSION:
        yield found("database-version", version=version)
    if read_only:
        yield found("read-only")
    if encoding != "UTF8":
        yield found("encoding", encoding=encoding)
    if abs(ahead) > CLOCK_SLACK:
        where = "ahead of" if ahead > 0 else "behind"
        yield found("clock", seconds=abs(ahead), where=where)


async def _schema(pool: Pool) -> AsyncIterator[Finding]:
    [(there, path, denied, columns, indexed)] = await pool.fetch(_SCHEMA)
    if not there:
        yield found("schema-missing", path=", ".join(path) or "reach")
        return
    try:
        waiting = await pending(pool)
    except StoreError:
        # The ledger is for who migrates; whoever serves need not be let at it.
        waiting = []
    lacking = sorted(COLUMNS - {*columns})
    if lacking:
        yield found("schema-columns", columns=", ".join(lacking))
    if denied:
        yield found("privileges", verbs=", ".join(denied))
    for column in INDEXES.keys() - {*indexed}:
        yield found("index-missing", column=column, purpose=INDEXES[column])
    if waiting:
        yield found("schema-outdated", names=", ".join(waiting))
    if not (lacking or denied or INDEXES.keys() - {*indexed} or waiting):
        yield good("schema", "table, columns, indexes and rights are there")
    if (await pool.fetch(LAYOUT))[0][1]:
        [(servers, column, shards)] = await pool.fetch(_SPREAD)
        if column is None:
            yield found("citus", servers=servers)
        elif column != "handle":
            yield found("distributed-by", column=column)
        else:
            yield good(
                "distributed",
                f"{shards} shards over {servers} servers, by handle (Citus); "
                "citus.propagate_set_commands is set where it is needed",
            )


async def _pooling(pool: Pool, other: Pool) -> AsyncIterator[Finding]:
    """
    Finds a pooler that gives each transaction any connection (PgBouncer).

    Two clients at once never have the same backend, and one never another, unless
    there is such a pooler between.
    """
    try:
        [(first,)] = await pool.fetch(_BACKEND)
        async with other.transaction() as connection:
            [(theirs,)] = await connection.fetch(_BACKEND)
            [(second,)] = await pool.fetch(_BACKEND)
        if first != second or theirs in (first, second):
            yield found("pgbouncer")
    except StoreError as error:
        # Or what was prepared on the one connection was not there on the next.
        statement = "pool_mode=statement" in str(error)
        yield found("pgbouncer-" + ("statement" if statement else "prepared"))
