"""Visitors who write without end, and remember what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.apps.visitor import UNKNOWN, Visitor


class Load:
    """
    Each visitor writes one new key after the other into a session of its own.

    `acknowledged` and `unknown` hold (visitor, key); of what is unknown nothing is
    asserted: it may have happened.
    """

    def __init__(self, url: str, visitors: int = 8) -> None:
        self.url = url
        self.number = visitors
        self.acknowledged: set[tuple[str, str]] = set()
        self.unknown: set[tuple[str, str]] = set()
        self._ending = False

    async def _visit(self, name: str) -> None:
        visitor, turn = Visitor(self.url), 0
        while not self._ending:
            turn += 1
            if turn % 200 == 0:
                await visitor.leave()
                visitor = Visitor(self.url)  # a small session again
            key = f"k{turn}"
            try:
                async with asyncio.timeout(20):
                    status, _ = await visitor.post(f"/put/{key}/{name}")
            except UNKNOWN:
                self.unknown.add((name, key))
                await asyncio.sleep(0.02)
                continue
            if status == 200:
                self.acknowledged.add((name, key))
            else:
                self.unknown.add((name, key))
                await asyncio.sleep(0.02)
        await visitor.leave()

    @contextlib.asynccontextmanager
    async def running(self, prefix: str) -> AsyncIterator[None]:
        """The load goes on during this block."""
        self._ending = False
        tasks = [
            asyncio.create_task(self._visit(f"{prefix}v{number}"))
            for number in range(self.number)
        ]
        try:
            yield
        finally:
            self._ending = True
            await asyncio.gather(*tasks)

    def lost(self, contents: list[dict[str, Any]]) -> int:
        """How many acknowledged writes are not in these sessions."""
        found = {(value, key) for content in contents for key, value in content.items()}
        return len(self.acknowledged - found)

    def happened(self, contents: list[dict[str, Any]]) -> int:
        """How many of the unknown writes are there."""
        found = {(value, key) for content in contents for key, value in content.items()}
        return len(self.unknown & found)
