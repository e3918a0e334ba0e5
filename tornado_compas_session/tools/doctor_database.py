"""The doctor's look at the database: reachable, complete, allowed, and how reached."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tornado_compas_session.core.protocols import Pool
from tornado_compas_session.exceptions import (
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.distributed import LAYOUT
from tornado_compas_session.stores.migrations import pending
from tornado_compas_session.stores.pools.queries import compile_statement
from tornado_compas_session.tools.findings import Finding, advice, good, problem

MIN_VERSION = 130000
#: Seconds that two clocks may differ before it is worth a word.
CLOCK_SLACK = 5.0
_SECONDS = 10.0
# SQLSTATEs of a login that fails, of a database that is not there, of no permission.
_REFUSED = re.compile(r"\((28\w{3}|3D000|42501)\)")

_ABOUT = compile_statement(
    "about",
    "SELECT current_setting('server_version_num')::integer,"
    " current_setting('server_version'), current_user::text,"
    " extract(epoch FROM clock_timestamp())::float8,"
    " pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean,"
    " current_setting('server_encoding')",
)
_TABLE = compile_statement(
    "table",
    "SELECT to_regclass('compas_session') IS NOT NULL, current_schemas(false)::text[]",
)
_RIGHTS = compile_statement(
    "rights",
    "SELECT verb FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS verb"
    " WHERE NOT has_table_privilege('compas_session', verb)",
)
_COLUMNS = compile_statement(
    "columns",
    "SELECT attname::text FROM pg_attribute WHERE attrelid = "
    "to_regclass('compas_session') AND attnum > 0 AND NOT attisdropped",
)
_INDEXED = compile_statement(
    "indexed",
    "SELECT a.attname::text FROM pg_index i JOIN pg_attribute a"
    " ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
    " WHERE i.indrelid = to_regclass('compas_session') AND i.indisvalid",
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


async def examine(dsn: str, clock: Callable[[], float]) -> list[Finding]:
    """What is to say about the database; one that is away is a finding, too."""
    try:
        async with _opened(dsn) as pool:
            findings = await _server(pool, clock)
            findings += await _schema(pool)
            if not any(finding.level == "problem" for finding in findings):
                async with _opened(dsn) as other:
                    findings += await _pooling(pool, other)
            return findings
    except SettingsError as error:
        return [
            problem(
                "database-url",
                str(error),
                "the server does not start with this",
                "mend DATABASE_URL",
            )
        ]
    except StoreError as error:
        return [_away(error)]


def _away(error: StoreError) -> Finding:
    why = "every request with a session gets a 503"
    # The pool says all of these by one error: they pass, as far as it can know.
    if "certificate" in str(error):
        return problem(
            "database-certificate",
            str(error),
            why,
            "name the authority of the server's certificate in sslrootcert, and the "
            "host as the certificate has it",
        )
    if not isinstance(error, StoreUnavailable) or _REFUSED.search(str(error)):
        return problem(
            "database-refused",
            f"the database refuses us: {error}",
            why,
            "check user, password and database name in DATABASE_URL",
        )
    return problem(
        "database-unreachable",
        f"the database cannot be reached: {error}",
        f"{why} until it can",
        "check DATABASE_URL, that PostgreSQL runs, and the network between",
    )


@asynccontextmanager
async def _opened(dsn: str) -> AsyncIterator[Pool]:
    from tornado_compas_session.stores.pools.asyncpg import AsyncpgPool, open_pool

    pool = AsyncpgPool(
        await open_pool(dsn, min_size=0, max_size=1, timeout=_SECONDS),
        timeout=_SECONDS,
    )
    try:
        yield pool
    finally:
        await pool.close()


async def _server(pool: Pool, clock: Callable[[], float]) -> list[Finding]:
    before = clock()
    [(number, version, user, now, read_only, encoding)] = await pool.fetch(_ABOUT)
    ahead = now - (before + clock()) / 2
    findings = [good("database", f"PostgreSQL {version}, as {user}")]
    if number < MIN_VERSION:
        findings.append(
            problem(
                "database-version",
                f"PostgreSQL {version}",
                "the statements need 13 or newer",
                "upgrade the server",
            )
        )
    if read_only:
        findings.append(
            problem(
                "read-only",
                "the database takes no writes: a standby, or switched to read-only",
                "sessions can be read and not saved; such requests get a 503",
                "point DATABASE_URL at the primary (target_session_attrs=read-write "
                "among several hosts)",
            )
        )
    if encoding != "UTF8":
        findings.append(
            advice(
                "encoding",
                f"the database keeps text in {encoding}",
                "it keeps whatever bytes it is sent, so programs that send others read "
                "each other's text wrong"
                if encoding == "SQL_ASCII"
                else "a visitor whose session holds a character that it has no place "
                "for gets an error",
                "keep sessions in a database made with ENCODING 'UTF8'",
            )
        )
    if abs(ahead) > CLOCK_SLACK:
        findings.append(
            advice(
                "clock",
                f"the database's clock is {abs(ahead):.0f} s "
                f"{'ahead of' if ahead > 0 else 'behind'} this machine's",
                "sessions expire by the database's clock and signatures are dated by "
                "this machine's: cookies that are dated over a day ahead are refused",
                "run a time service (NTP) on both",
            )
        )
    return findings


async def _schema(pool: Pool) -> list[Finding]:
    [(there, path)] = await pool.fetch(_TABLE)
    if not there:
        return [
            problem(
                "schema-missing",
                "there is no table compas_session in " + (", ".join(path) or "reach"),
                "every request with a session gets a 503",
                "run `tornado-compas-session migrate`, against this database and with "
                "this search_path",
            )
        ]
    findings: list[Finding] = []
    names = {row[0] for row in await pool.fetch(_COLUMNS)}
    if missing := COLUMNS - names:
        findings.append(
            problem(
                "schema-columns",
                "the table compas_session lacks " + ", ".join(sorted(missing)),
                "every request with a session gets a 503",
                "run `tornado-compas-session migrate`; if that says it is up to date, "
                "the table was changed by hand",
            )
        )
    if lacking := [row[0] for row in await pool.fetch(_RIGHTS)]:
        findings.append(
            problem(
                "privileges",
                "this user may not " + ", ".join(lacking) + " on compas_session",
                "requests that need it get a 503",
                f"GRANT {', '.join(lacking)} ON compas_session TO …, as its owner",
            )
        )
    indexed = {row[0] for row in await pool.fetch(_INDEXED)}
    for column in INDEXES.keys() - indexed:
        findings.append(
            problem(
                "index-missing",
                f"there is no valid index on compas_session ({column})",
                f"{INDEXES[column]} reads the whole table; under load it times out",
                "make it anew with CREATE INDEX CONCURRENTLY, as "
                "`tornado-compas-session migrate --print` has it",
            )
        )
    findings += await _pending(pool)
    if not findings:
        findings.append(good("schema", "table, columns, indexes and rights are there"))
    if (await pool.fetch(LAYOUT))[0][1]:
        findings.append(_spread(*(await pool.fetch(_SPREAD))[0]))
    return findings


def _spread(servers: int, column: str | None, shards: int) -> Finding:
    if column is None:
        return advice(
            "citus",
            f"there is a Citus with shards on {servers} servers, and the table "
            "compas_session is on this server alone",
            "it is as fast, and as large, as this server",
            "when that is not enough: `tornado-compas-session migrate --distributed`",
        )
    if column != "handle":
        return problem(
            "distributed-by",
            f"the table compas_session is distributed by {column}",
            "what asks for a session by its handle asks every server, or is refused",
            "SELECT undistribute_table('compas_session'), and then "
            "`tornado-compas-session migrate --distributed`",
        )
    return good(
        "distributed",
        f"{shards} shards over {servers} servers, by handle (Citus); "
        "citus.propagate_set_commands is set where it is needed",
    )


async def _pending(pool: Pool) -> list[Finding]:
    try:
        waiting = await pending(pool)
    except StoreError:
        # The ledger is for who migrates; whoever serves need not be let at it.
        return []
    if not waiting:
        return []
    return [
        problem(
            "schema-outdated",
            "migrations are to be applied: " + ", ".join(waiting),
            "this version of the library may ask for what is not there yet",
            "run `tornado-compas-session migrate` before the new version serves",
        )
    ]


async def _pooling(pool: Pool, other: Pool) -> list[Finding]:
    """
    Finds a pooler that gives each transaction any connection (PgBouncer).

    Two clients at once never have the same backend, and one never another, unless
    there is such a pooler between.
    """
    mine: set[Any] = set()
    broken = False
    try:
        mine.add((await pool.fetch(_BACKEND))[0][0])
        async with other.transaction() as connection:
            [(theirs,)] = await connection.fetch(_BACKEND)
            mine.add((await pool.fetch(_BACKEND))[0][0])
        shared = theirs in mine or len(mine) > 1
    except StoreError as error:
        if "pool_mode=statement" in str(error):
            return [
                problem(
                    "pgbouncer-statement",
                    "there is a PgBouncer in pool_mode=statement between",
                    "it allows no transactions, so `session.lock()` is a 503",
                    "pool_mode=transaction, or session, for this database",
                )
            ]
        # What was prepared on the one connection was not there on the next.
        broken = shared = True
    if not shared:
        return []
    what = (
        "something between gives each transaction another connection (a PgBouncer in "
        "pool_mode=transaction?)"
    )
    if broken:
        return [
            problem(
                "pgbouncer-prepared",
                f"{what}, and prepared statements get lost on the way",
                "requests fail now and then, when their statement was prepared on "
                "another connection",
                "PgBouncer 1.21 with max_prepared_statements, or pool_mode=session, or "
                "prepared statements switched off in the driver "
                '(see "PgBouncer" in the documentation)',
            )
        ]
    return [
        advice(
            "pgbouncer",
            what,
            "sessions work that way only while prepared statements do",
            'see "PgBouncer" in the documentation for the settings of each driver',
        )
    ]
