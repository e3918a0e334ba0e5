"""The model of the program: browsers, attackers and processes, in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.property.program.clock import Clock, StillLoop, worn_by_the_library
from tests.property.program.schedule import Step, World, schedules
from tests.property.program.simulation import Simulation
from tests.property.program.worlds import WORLDS
from tornado_compas_session import MemorySessionStore, PostgresSessionStore

Play = Callable[[World, dict[str, Any], list[Step]], object]


def play(world: World, options: dict[str, Any], schedule: list[Step]) -> Simulation:
    """In memory, with a loop of its own; raises `Broken`."""
    clock = Clock()
    loop = StillLoop(clock)
    asyncio.set_event_loop(loop)
    try:
        with worn_by_the_library(clock):
            store = MemorySessionStore(clock=clock.time) if world.store else None
            simulation = Simulation(clock, [store], options)
            loop.run_until_complete(simulation.play(schedule))
            return simulation
    finally:
        loop.close()
        asyncio.set_event_loop(None)


def search(world: World, examples: int, play: Play, phases: Any = tuple(Phase)) -> None:
    """Raises `Broken` with the shortest trace, if any schedule breaks an invariant."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules(world))
    def one(drawn: tuple[dict[str, Any], list[Step]]) -> None:
        play(world, *drawn)

    one()


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_in_memory(world, long, record_property):
    """No invariant is broken, in whatever order things happen."""
    examples = 10_000 // len(WORLDS) if long else 15
    search(world, examples, play)
    record_property("broken", f"0 in {examples} schedules")


class Database:
    """Two pools on one PostgreSQL, as two processes have them."""

    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.dsn = dsn
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        self.stores = [await PostgresSessionStore.connect(self.dsn) for _ in range(2)]
        self.own = await asyncpg.connect(self.dsn)
        columns = await self.own.fetch(
            "SELECT table_name, string_agg(format('%1$I = %1$I - $1::interval',"
            " column_name), ', ') AS moved FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name LIKE '%session%'"
            " AND data_type = 'timestamp with time zone' GROUP BY table_name"
        )
        self.moves = [f"UPDATE {c['table_name']} SET {c['moved']}" for c in columns]

    async def move(self, seconds: float) -> None:
        """Time passes in the database: whatever happened was so much earlier."""
        from datetime import timedelta

        for move in self.moves:
            await self.own.execute(move, timedelta(seconds=seconds))

    def play(self, world: World, options: dict[str, Any], schedule: list[Step]) -> None:
        self.loop.run_until_complete(self._play(options, schedule))

    async def _play(self, options: dict[str, Any], schedule: list[Step]) -> None:
        clock = Clock(real=True)
        await self.stores[0].revoke_all()
        with worn_by_the_library(clock):
            simulation = Simulation(clock, self.stores, options, move_store=self.move)
            await simulation.play(schedule)

    def close(self) -> None:
        self.loop.run_until_complete(self._close())
        self.loop.close()

    async def _close(self) -> None:
        for store in self.stores:
            await store.close()
        await self.own.close()


@pytest.mark.slow
@pytest.mark.parametrize("world", [w for w in WORLDS if w.store], ids=lambda w: w.name)
def test_on_postgresql(world, database, long, record_property):
    """The same on the real store, with two pools."""
    examples = 1000 // (len(WORLDS) - 1) if long else 4
    postgresql = Database(database)
    try:
        search(world, examples, postgresql.play)
    finally:
        postgresql.close()
    record_property("broken", f"0 in {examples} schedules")
