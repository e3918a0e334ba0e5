"""
Moving in: the live sessions of a Compas `session` table, copied.

What comes over is data and expiry. Compas's cookies are signed in another way, and
nobody has the secret of a copied session, so no visitor can continue one; but lists,
counts and what support staff look up go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tornado_compas_session.core.protocols import Pool
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.stores.pools.queries import compile_statement

# The name as it has to be written, and what Compas's table has and this one lacks.
_TABLE = compile_statement(
    "compas_table",
    "SELECT t.oid::regclass::text,"
    " ARRAY(SELECT unnest('{id,expires,data,createdAt,updatedAt}'::text[]) EXCEPT"
    "       SELECT attname FROM pg_attribute WHERE attrelid = t.oid ORDER BY 1)"
    " FROM (SELECT to_regclass(string_agg(quote_ident(part), '.'))::oid AS oid"
    "         FROM unnest(string_to_array(:name::text, '.')) AS part) AS t",
)

# Not in queries.sql: the names of a foreign table are part of the text. The handle is
# made of the id, so that a second import finds what is there; the secret is nobody's.
_LIVE = """SELECT count(*) FROM {table} WHERE "expires" > now()"""
_COPY = """
  WITH page AS MATERIALIZED (
       SELECT "id", "expires", "createdAt" AS created, "updatedAt" AS updated,
              CASE WHEN jsonb_typeof("data"::jsonb) = 'object' THEN (
                   SELECT coalesce(jsonb_object_agg(e.key, e.value), '{{}}')
                     FROM jsonb_each("data"::jsonb) AS e
                    WHERE left(e.key, 1) <> '_')
              ELSE '{{}}' END AS data
         FROM {table}
        WHERE "expires" > now() AND (:after::text IS NULL OR "id" > :after::text::uuid)
        ORDER BY "id" LIMIT :limit::integer),
       made AS (
       INSERT INTO compas_session
              (handle, secret_hash, data, user_id, created_at, updated_at, expires_at)
       SELECT translate(encode(substr(sha256(convert_to("id"::text, 'UTF8')), 1, 9),
                               'base64'), '+/', '-_'),
              sha256(convert_to(gen_random_uuid()::text || gen_random_uuid(), 'UTF8')),
              data,
              CASE WHEN jsonb_typeof(data -> 'user_id') = 'string'
                    AND length(data ->> 'user_id') BETWEEN 1 AND 255
                     OR jsonb_typeof(data -> 'user_id') = 'number'
                    AND data ->> 'user_id' ~ '^-?[0-9]{{1,19}}$'
                    AND (data ->> 'user_id')::numeric
                        BETWEEN -9223372036854775808 AND 9223372036854775807
                   THEN data ->> 'user_id' END,
              created, updated, "expires"
         FROM page WHERE data <> '{{}}'
           ON CONFLICT (handle) DO NOTHING
       RETURNING 1)
SELECT (SELECT count(*) FROM page), (SELECT count(*) FROM made),
       (SELECT count(*) FROM page WHERE data = '{{}}'),
       (SELECT "id"::text FROM page ORDER BY "id" DESC LIMIT 1)
"""


class Outcome(NamedTuple):
    """What an import did with the live rows of the other table."""

    copied: int
    #: Copied by an earlier run; left as they are.
    present: int
    #: Without any data of the application, so there was nothing to keep.
    empty: int


async def count_live(pool: Pool, table: str = "session") -> int:
    """How many rows an import would read."""
    sql = _LIVE.format(table=await _found(pool, table))
    return int((await pool.fetch(compile_statement("compas_live", sql)))[0][0])


async def import_compas(
    pool: Pool,
    table: str = "session",
    *,
    batch: int = 1000,
    progress: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """
    Copies the live rows, `batch` in a transaction; the other table is only read.

    Keys that begin with `_` are Compas's own and stay behind. Can be run again: what
    is there already is not touched. Raises `SettingsError` if `table` is not a table
    as Compas makes it.
    """
    sql = _COPY.format(table=await _found(pool, table))
    statement = compile_statement("compas_copy", sql)
    copied = seen = empty = 0
    after: str | None = None
    while True:
        rows = await pool.fetch(statement, after=after, limit=batch)
        read, made, without, after = rows[0]
        seen, copied, empty = seen + read, copied + made, empty + without
        progress(read)
        if read < batch:
            return Outcome(copied, seen - copied - empty, empty)


async def _found(pool: Pool, table: str) -> str:
    [(name, missing)] = await pool.fetch(_TABLE, name=table)
    if name is None:
        raise SettingsError(f"this database has no table {table}; name it with --table")
    if missing:
        raise SettingsError(
            f"the table {table} is not Compas's: it lacks {', '.join(missing)}"
        )
    return str(name)
