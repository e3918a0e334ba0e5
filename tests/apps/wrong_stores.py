"""Stores that are wrong on purpose: with each of them a promise must be seen broken."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tornado_compas_session import PostgresSessionStore
from tornado_compas_session.core.types import Saved, SessionChange, SessionRecord

_later: set[asyncio.Task[Any]] = set()


class Late(PostgresSessionStore):
    """Says that it has saved, and saves a moment later: no hold."""

    delay = 0.3

    def _after(self, work: Any) -> Saved:
        async def run() -> None:
            await asyncio.sleep(self.delay)
            await work

        task = asyncio.create_task(run())
        _later.add(task)
        task.add_done_callback(_later.discard)
        now = time.time()
        return Saved("", now, now + 3600, now)

    async def create(self, session_id: str, change: SessionChange) -> Saved:
        return self._after(super().create(session_id, change))._replace(id=session_id)

    async def save(self, session_id: str, change: SessionChange) -> Saved | None:
        return self._after(super().save(session_id, change))._replace(id=session_id)


class Upserting(PostgresSessionStore):
    """Writes a session that is not there any more, as most libraries do."""

    async def save(self, session_id: str, change: SessionChange) -> Saved | None:
        saved = await super().save(session_id, change)
        return saved or await super().create(session_id, change)


class InTwoSteps(PostgresSessionStore):
    """Regenerates by taking the old row away and putting a new one there."""

    async def regenerate(
        self, session_id: str, new_id: str, change: SessionChange, grace: float
    ) -> Saved | None:
        found = await self.load(session_id)
        if not isinstance(found, SessionRecord):
            return None
        await self.delete(session_id)
        data = SessionChange({**_texts(found.data), **change.changed}, idle=3600.0)
        return await self.create(new_id, data)


def _texts(data: str) -> dict[str, str]:
    import json

    return {key: json.dumps(value) for key, value in json.loads(data).items()}


class Naive(Late):
    """Late, and brings back what was destroyed."""

    delay = 0.05

    async def save(self, session_id: str, change: SessionChange) -> Saved | None:
        async def write() -> None:
            if await PostgresSessionStore.save(self, session_id, change) is None:
                await PostgresSessionStore.create(self, session_id, change)

        return self._after(write())._replace(id=session_id)


class Slow(PostgresSessionStore):
    """The right store, 300 ms slower."""

    async def create(self, session_id: str, change: SessionChange) -> Saved:
        await asyncio.sleep(0.3)
        return await super().create(session_id, change)

    async def save(self, session_id: str, change: SessionChange) -> Saved | None:
        await asyncio.sleep(0.3)
        return await super().save(session_id, change)


STORES = {
    "right": PostgresSessionStore,
    "slow": Slow,
    "late": Late,
    "upserting": Upserting,
    "in-two-steps": InTwoSteps,
    "naive": Naive,
}
