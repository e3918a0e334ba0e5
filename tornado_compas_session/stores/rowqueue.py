"""
Waiting for a row that somebody else has locked, without starving the others.

Who waits for a row holds a connection while it waits. So of those who want one
session's row only the first does, the others queue up in this process; and of all the
connections never more than half are used so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tornado_compas_session.exceptions import LockTimeout, SessionError


class RowQueue:
    """One at a time for each session, and `most` in all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._places = asyncio.Semaphore(most)
        self._rows: dict[str, _Row] = {}

    def __len__(self) -> int:
        """How many sessions' rows are waited for, or locked, by this process."""
        return len(self._rows)

    @asynccontextmanager
    async def turn(self, handle: str, deadline: float) -> AsyncIterator[None]:
        """
        Waits for a turn with the row, until `deadline` by the loop; then `LockTimeout`.

        Raises `SessionError` inside of a block that has this row locked: it would wait
        for itself.
        """
        row = self._rows.setdefault(handle, _Row())
        if row.holder is asyncio.current_task():
            raise SessionError(
                "inside lock() its own session cannot be waited for; end it with "
                "`self.session = None`, and do the rest after the block"
            )
        row.wanted += 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await row.lock.acquire()
                    try:
                        await self._places.acquire()
                    except BaseException:
                        row.lock.release()
                        raise
            except TimeoutError:
                raise LockTimeout from None
            row.holder = asyncio.current_task()
            try:
                yield
            finally:
                row.holder = None
                self._places.release()
                row.lock.release()
        finally:
            row.wanted -= 1
            if not row.wanted:
                del self._rows[handle]


class _Row:
    __slots__ = ("holder", "lock", "wanted")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.holder: asyncio.Task[Any] | None = None
        self.wanted = 0
