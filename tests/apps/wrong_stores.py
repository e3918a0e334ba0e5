"""Stores that are wrong on purpose: with each of them a promise must be seen broken."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from tornado_compas_session import PostgresSessionStore
from tornado_compas_session.core.jsondata import decode_object, encode
from tornado_compas_session.core.types import NewSecret, Saved, SessionChange

_later: set[asyncio.Task[Any]] = set()


class Late(PostgresSessionStore):
    """Says that it has saved, and saves a moment later: no hold."""

    delay = 0.3

    def _after(self, work: Any) -> Saved:
        async def run() -> None:
            await asyncio.sleep(self.delay)
            await work()

        task = asyncio.create_task(run())
        _later.add(task)
        task.add_done_callback(_later.discard)
        now = time.time()
        return Saved(now + 3600, now)

    async def create(self, *args: Any, **options: Any) -> Saved:
        # A call of the store begins when it is made.
        return self._after(partial(super().create, *args))

    async def save(self, *args: Any, **options: Any) -> Saved | None:
        return self._after(partial(super().save, *args))


class Upserting(PostgresSessionStore):
    """Writes a session that is not there any more, as most libraries do."""

    async def save(
        self, handle: str, epoch: int, change: SessionChange, **options: Any
    ) -> Saved | None:
        saved = await super().save(handle, epoch, change, **options)
        return saved or await super().create(handle, b"s" * 32, change, **options)


class InTwoSteps(PostgresSessionStore):
    """Regenerates by taking the old row away and putting a new one there."""

    async def regenerate(
        self,
        handle: str,
        epoch: int,
        secret: NewSecret,
        change: SessionChange,
        **options: Any,
    ) -> Saved | None:
        found = await self.load(handle)
        if found is None or found.secret_hash != secret.mine:
            return None
        await self.delete(handle, epoch)
        texts = {key: encode(value) for key, value in decode_object(found.data).items()}
        data = SessionChange({**texts, **change.changed}, idle=3600.0)
        return await self.create(handle, secret.new, data)


class Naive(Late):
    """Late, and brings back what was destroyed."""

    delay = 0.05

    async def save(
        self, handle: str, epoch: int, change: SessionChange, **options: Any
    ) -> Saved | None:
        async def write() -> None:
            if await PostgresSessionStore.save(self, handle, epoch, change) is None:
                await PostgresSessionStore.create(self, handle, b"s" * 32, change)

        return self._after(write())


class Slow(PostgresSessionStore):
    """The right store, 300 ms slower."""

    async def create(self, *args: Any, **options: Any) -> Saved:
        await asyncio.sleep(0.3)
        return await super().create(*args, **options)

    async def save(self, *args: Any, **options: Any) -> Saved | None:
        await asyncio.sleep(0.3)
        return await super().save(*args, **options)


class Blind(PostgresSessionStore):
    """Writes in the order of arrival, however late, and whoever has given up."""

    async def save(self, *args: Any, **options: Any) -> Saved | None:
        return await asyncio.shield(asyncio.ensure_future(self._save(args)))

    async def _save(self, args: Any) -> Saved | None:
        while True:
            try:
                return await super().save(*args)
            except Exception:
                await asyncio.sleep(0.05)


STORES = {
    "right": PostgresSessionStore,
    "slow": Slow,
    "late": Late,
    "upserting": Upserting,
    "in-two-steps": InTwoSteps,
    "naive": Naive,
    "blind": Blind,
}
