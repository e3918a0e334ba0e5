"""
Sign-ins where the sessions of a user are bounded in number: they go one after the
other, and each ends what is one too many in its own transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from tornado_compas_session.core.protocols import Connection, Row
from tornado_compas_session.core.types import Identity
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.distributed import QUEUE_FOR_USER
from tornado_compas_session.stores.onerow import RowWriter
from tornado_compas_session.stores.pools.limits import left
from tornado_compas_session.stores.rowqueue import RowQueue


class SignIns:
    """One at a time of each user, in this process and in all."""

    def __init__(self, database: Database, rows: RowWriter) -> None:
        self._database = database
        self._rows = rows
        self._users = RowQueue(database.size)

    async def create(
        self, handle: str, identity: Identity, until: float, values: Mapping[str, Any]
    ) -> Row | None:
        """A new session of the user; None if its handle is taken."""
        return await self._write("create_session", handle, identity, until, values)

    async def regenerate(
        self, handle: str, identity: Identity, until: float, values: Mapping[str, Any]
    ) -> Row | None:
        """A new secret, and another user; None if the row is not there, with these."""
        args = handle, identity, until, values
        row = await self._write("regenerate_session", *args)
        if row is None and await self._rows.is_there(handle, until, values):
            row = await self._write("regenerate_session_waiting", *args)
        return row

    async def _write(
        self,
        name: str,
        handle: str,
        identity: Identity,
        until: float,
        values: Mapping[str, Any],
    ) -> Row | None:
        database = self._database
        await database.is_distributed(until)
        async with AsyncExitStack() as turns:
            enter = turns.enter_async_context
            await enter(self._users.turn(str(identity.user_id), until))
            if name.endswith("_waiting"):
                await enter(self._rows.queue.turn(handle, until))
            seconds = left(until)
            connection = await enter(database.transaction(seconds, lock=seconds))
            rows = await database.on(connection, name, handle=handle, **values)
            if not rows:
                return None
            await self.end_surplus(connection, handle, identity)
            return await database.own(rows, handle)

    async def end_surplus(
        self, connection: Connection, handle: str, identity: Identity
    ) -> None:
        """
        Ends those of the user's other sessions that are over the number.

        Of sign-ins of one user at once, in several processes, each sees here what the
        one before has made. Whoever has a row locked comes here after that, so that no
        two wait for each other.
        """
        user = identity.user_id
        if identity.allowed is None or user is None:
            return
        on = self._database.on
        spread = await self._database.is_distributed()
        queue = QUEUE_FOR_USER if spread else "queue_for_user"
        await on(connection, queue, user_id=user)
        others = identity.allowed - 1
        surplus = await on(
            connection, "surplus_sessions", user_id=user, handle=handle, others=others
        )
        over = [row[0] for row in surplus]
        for pause in (0.01, 0.1, None):
            if not over:
                return
            ended = await self._end(connection, over, user)
            over = [other for other in over if other not in ended]
            if over and pause is not None:
                await asyncio.sleep(pause)  # one that is being saved, and not for long

    async def _end(
        self, connection: Connection, handles: list[str], user: str
    ) -> set[str]:
        """Those of them that nobody has locked."""
        values: list[dict[str, Any]] = [{"handle": handle} for handle in handles]
        name = "end_surplus_one"
        if len(handles) > 1 and not await self._database.is_distributed():
            name, values = "end_surplus", [{"handles": handles}]
        return {
            row[0]
            for each in values
            for row in await self._database.on(connection, name, user_id=user, **each)
        }
