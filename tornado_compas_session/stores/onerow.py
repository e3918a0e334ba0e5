"""
Writing to one row, whoever has it locked.

Nobody waits for a row that somebody else has locked but in the queue for it, so that
those who wait leave the connections to the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tornado_compas_session.core.protocols import Row
from tornado_compas_session.core.types import SessionRecord
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.pools.limits import left
from tornado_compas_session.stores.rowqueue import RowQueue

Load = Callable[[str, float], Awaitable[SessionRecord | None]]


class RowWriter:
    """
    Sends the statements for one row.

    Each has two forms: `name` leaves a locked row alone, `name_waiting` waits for it.
    Among their values are the `epoch` of the row, and where it matters the hash of its
    secret, `mine`.
    """

    def __init__(self, database: Database, load: Load) -> None:
        self._database = database
        self._load = load
        self.queue = RowQueue(max(1, database.size // 2))

    async def write(
        self, name: str, handle: str, until: float, values: Mapping[str, Any]
    ) -> Row | None:
        """The row as it is then; None if it is not there, with these values."""
        rows = await self._database.alone(name, left(until), handle=handle, **values)
        if rows:
            return await self._database.own(rows, handle)
        return await self.waiting(name, handle, until, values)

    async def waiting(
        self, name: str, handle: str, until: float, values: Mapping[str, Any]
    ) -> Row | None:
        """The same, for a row that is locked by somebody, or gone."""
        if not await self.is_there(handle, until, values):
            return None
        async with self.queue.turn(handle, until):
            rows = await self._database.alone(
                name + "_waiting", left(until), handle=handle, **values
            )
        return await self._database.own(rows, handle) if rows else None

    async def is_there(
        self, handle: str, until: float, values: Mapping[str, Any]
    ) -> bool:
        """Whether a row that was not found is there, so that somebody has it locked."""
        found = await self._load(handle, until)
        return (
            found is not None
            and found.epoch == values["epoch"]
            and values.get("mine", found.secret_hash) == found.secret_hash
        )
