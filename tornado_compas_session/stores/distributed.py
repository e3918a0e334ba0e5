"""
What is different where Citus spreads the table over several servers, by the handle.

There a statement for one row goes to one server, and one for many is refused, or asks
them all. So what serves a request is sent one by one, side by side; the statements for
a user, a clock or a person ask every server.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.exceptions import LockTimeout
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.pools.queries import compile_statement

DISTRIBUTE = compile_statement(
    "distribute",
    "SELECT create_distributed_table('compas_session', 'handle',"
    " shard_count => 32, colocate_with => 'none')",
)
# In place of the statement of that name: the lock is taken where a session with the
# user's name would be, so that all meet there, whichever server they ask.
QUEUE_FOR_USER = compile_statement(
    "queue_for_user",
    "SELECT pg_advisory_xact_lock("
    "hashtextextended(:user_id::text, 7290217303148223) + 0 * c.n)"
    " FROM (SELECT count(*) AS n FROM compas_session s"
    " WHERE s.handle = :user_id::text) AS c",
)
SIZE = compile_statement("size", "SELECT citus_total_relation_size('compas_session')")

# `delete_expired` in three, because no statement may lock rows of several servers.
CLAIM_CLEANUP = compile_statement(
    "claim_cleanup", "SELECT pg_try_advisory_xact_lock(7290217303148222)"
)
EXPIRED = compile_statement(
    "expired",
    "SELECT s.handle FROM compas_session s"
    " WHERE s.reap_after <= (now() AT TIME ZONE 'UTC')::date AND s.expires_at <= now()"
    " ORDER BY s.reap_after LIMIT :limit::integer",
)
DELETE_THEM = compile_statement(
    "delete_them",
    "DELETE FROM compas_session s"
    " WHERE s.handle = ANY (:handles::text[]) AND s.expires_at <= now()"
    " RETURNING s.handle",
)


async def delete_expired(database: Database, limit: int) -> int:
    """
    In place of the statement of that name. Nothing where another cleaner is at work,
    or where one of the rows stays in use.
    """
    seconds = database.timeout
    with suppress(LockTimeout):
        async with database.transaction(seconds, lock=seconds / 2) as connection:
            [(granted,)] = await database.on(connection, CLAIM_CLEANUP)
            if granted:
                rows = await database.on(connection, EXPIRED, limit=limit)
                handles = [row[0] for row in rows]
                return len(await database.on(connection, DELETE_THEM, handles=handles))
    return 0


async def top_users(database: Database, limit: int) -> Sequence[Row]:
    """
    In place of the statement of that name, without a hash table: users arrive in the
    order of their hashes, which fills it in the worst way (a million: minutes).
    """
    async with database.transaction(database.timeout) as connection:
        await connection.run_script("SET LOCAL enable_hashagg = off")
        return await database.on(connection, "top_users", limit=limit)
