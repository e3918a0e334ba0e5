"""
Sign-ins where the sessions of a user are bounded in number: each ends what is one too
many in its own transaction.
"""

from __future__ import annotations

import asyncio

from tornado_compas_session.core.protocols import Connection
from tornado_compas_session.core.types import Identity
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.distributed import QUEUE_FOR_USER


async def end_surplus(
    database: Database, connection: Connection, handle: str, identity: Identity
) -> None:
    """
    Ends those of the user's other sessions that are over the number.

    Of sign-ins of one user at once, in several processes, each sees here what the one
    before has made. Whoever has a row locked comes here after that, so that no two wait
    for each other.
    """
    user = identity.user_id
    if identity.allowed is None or user is None:
        return
    spread = await database.is_distributed()
    queue = QUEUE_FOR_USER if spread else "queue_for_user"
    await database.on(connection, queue, user_id=user)
    others = identity.allowed - 1
    surplus = await database.on(
        connection, "surplus_sessions", user_id=user, handle=handle, others=others
    )
    over = {row[0] for row in surplus}
    for pause in (0, 0.01, 0.1):
        if not over:
            return
        await asyncio.sleep(pause)  # one may be being saved, and not for long
        for chosen in [[one] for one in over] if spread else [list(over)]:
            name = "end_surplus_one" if spread else "end_surplus"
            values = {"user_id": user, "handle": chosen[0], "handles": chosen}
            ended = await database.on(connection, name, **values)
            over -= {row[0] for row in ended}
