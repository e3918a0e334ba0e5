"""
Writing to one row, whoever has it locked.

Nobody waits for a row that somebody else has locked but in the queue for it, so that
those who wait leave the connections to the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.core.types import Identity, SessionRecord
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.pools.limits import left
from tornado_compas_session.stores.rowqueue import RowQueue
from tornado_compas_session.stores.signins import end_surplus

Load = Callable[[str, float], Awaitable[SessionRecord | None]]


class RowWrite(NamedTuple):
    """
    A statement for one row, which has to be over by a time of the loop, `until`.

    It has two forms: `name` leaves a locked row alone, `name_waiting` waits for it.
    Among its values are the `epoch` of the row and the hash of its secret, `mine`,
    where they matter. With an `identity` it is a sign-in, which ends those of the
    user's other sessions that are over the number, if there is one.
    """

    name: str
    handle: str
    until: float
    values: Mapping[str, Any]
    identity: Identity | None = None


class RowWriter:
    """Sends the statements for one row."""

    def __init__(self, database: Database, load: Load) -> None:
        self._database = database
        self._load = load
        self.queue = RowQueue(max(1, database.size // 2))
        self._users = RowQueue(database.size)

    async def write(self, write: RowWrite) -> Row | None:
        """The row as it is then; None if it is not there, with these values."""
        row = await self.send(write)
        return await self.waiting(write) if row is None else row

    async def waiting(self, write: RowWrite) -> Row | None:
        """The same, for a row that is locked by somebody, or gone."""
        found = await self._load(write.handle, write.until)
        if (
            found is None
            or write.values.get("epoch", found.epoch) != found.epoch
            or write.values.get("mine", found.secret_hash) != found.secret_hash
        ):
            return None
        async with self.queue.turn(write.handle, write.until):
            return await self.send(write._replace(name=write.name + "_waiting"))

    async def send(self, write: RowWrite) -> Row | None:
        """One statement, and what a sign-in does beside it; None if it met no row."""
        name, handle, until, values, identity = write
        database = self._database
        if identity is None or identity.user_id is None or identity.allowed is None:
            rows = await database.alone(name, left(until), handle=handle, **values)
            return await database.own(rows, handle) if rows else None
        await database.is_distributed(until)
        # One at a time of each user, in this process and in all.
        async with self._users.turn(identity.user_id, until):
            seconds = left(until)
            async with database.transaction(seconds, lock=seconds) as connection:
                rows = await database.on(connection, name, handle=handle, **values)
                if not rows:
                    return None
                await end_surplus(database, connection, handle, identity)
                return await database.own(rows, handle)
