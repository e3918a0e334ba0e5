"""
The cleaner: deletes expired sessions while the server runs. Only hygiene, because no
load ever finds an expired one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from tornado.ioloop import PeriodicCallback

logger = logging.getLogger("tornado_compas_session")


class Cleanable(Protocol):
    """What the cleaner needs of a store."""

    async def delete_expired(self, *, limit: int) -> int:
        """Deletes up to `limit` expired sessions; returns how many."""


class Cleaner:
    """
    Every so many seconds, give or take a half, deletes what has expired, `batch` rows a
    statement.

    Each process may have one: of several at a time the database lets one work. Errors
    are said once, and it goes on. Between its rounds there is no task, only a timer.
    """

    def __init__(
        self, store: Cleanable, *, every: float = 300.0, batch: int = 1000
    ) -> None:
        self.store, self.every, self.batch = store, every, batch
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: PeriodicCallback | None = None
        self._round: asyncio.Task[Any] | None = None
        self._stopped = self._failing = False

    def start(self) -> None:
        """
        Starts it on the running loop; does nothing if it runs there.

        To be called in the process that serves: a fork takes no loop along.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop and not self._stopped:
            self._loop = loop
            # Processes that were started together do not come together for ever.
            self._timer = PeriodicCallback(self._run, self.every * 1000, jitter=1.0)
            self._timer.start()

    async def stop(self) -> None:
        """Ends it, the round under way included; it cannot be started again."""
        self._stopped = True
        if self._timer is not None:
            self._timer.stop()
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait({self._round})

    async def clean(self) -> int:
        """
        Deletes all that has expired by now; returns how many.

        Stops early when another cleaner is at work. Raises what the store raises.
        """
        total = deleted = await self.store.delete_expired(limit=self.batch)
        while deleted >= self.batch:
            # The sessions of visitors come first.
            await asyncio.sleep(min(0.1, self.every / 10))
            deleted = await self.store.delete_expired(limit=self.batch)
            total += deleted
        return total

    async def _run(self) -> None:
        self._round = asyncio.current_task()
        try:
            total = await self.clean()
        except Exception as error:
            if not self._failing:
                logger.warning(
                    "expired sessions cannot be deleted: %s; it will be tried again",
                    error,
                )
            self._failing = True
            return
        finally:
            self._round = None
        if self._failing:
            logger.info("expired sessions are deleted again")
        self._failing = False
        if total:
            logger.info("%d expired sessions deleted", total)


def cleaner_of(store: Any) -> Cleaner | None:
    """A cleaner for a store that can do with one."""
    can = callable(getattr(store, "delete_expired", None))
    return Cleaner(store) if can else None
