"""
The model of the program: real handlers, applications and stores under a schedule of
what happens in which order, which Hypothesis draws and shrinks. Parts in `program/`:

- `site.py`, the program: handlers, two processes, and a store whose calls wait;
- `browser.py` and `requests.py`, a browser with a jar, and its requests, which wait
  where they are told to: on their way, at the store, in the handler, with the answer
  under way;
- `schedule.py` and `worlds.py`, what can happen, and `clock.py`, time that stands
  still;
- `simulation.py`, which plays a schedule and keeps the books of what must be true;
- `controls.py`, the rules of the design, and what breaks without each.

What must be true

- I1 An honest browser is never signed out, and never raises the alarm. Its cookie lives
  as long as it is used. A cookie that the handler clears is not set.
- I2 An attacker sees nothing of a sign-in whose id they have not copied since, gets no
  id of it, and writes nothing into it.
- I3 What was acknowledged is there; what a failed request wrote is not.
- I4 A browser has one live session at the most.
- I5 No answer is complete before its commit.
- I6 A session that was ended does not come back.
- I7 Every request is answered, with a 409 or a 503 only for a reason, never a 500, and
  no connection is cut without a line in the log.
- I8 The access log and `on_finish` hear once, what the client hears.
- I9 The public cookie goes with the session's.

This is asked of every single view of a request that was sent while it was promised, not
only when all is quiet, which is more than the design's own model does.

What is assumed: a request and its answer are under way for less than the grace each. A
handler and an upload may take as long as they like, a store call as long as `timeout`.

What is excused, because no server can know
 1. Two creations at once of a browser without a live session; also the answers of the
    one session that arrive when the jar has the other's cookie.
 2. The late answer of a session that was ended since.
 3. A sign-in's or a creation's answer that is lost, or is a 503 that may have happened.
 4. A session that was revoked, or expired.

What is excused, because of how it was decided
 5. Two sign-ins of one user at once ("same"): the second gets a session of its own,
    which has nothing of what the visitor had before. Both are signed in; what was
    acknowledged before is not asked for again. The same for a sign-in that 7 made a
    stranger's.
 6. A sign-in (or out, by `clear()`) beside a new secret, a renewal's included, may get
    a 409 ("cas"): it would have needed the new one.
 7. A request under way while two new secrets are made is a stranger's: it sees nothing
    and may get a 409 ("older": it is no alarm).
 8. A load that found its session gone clears the cookie for a second after the request
    came ("noclear" is not built); its answer may throw out the cookie of a sign-in that
    was sent beside it with the same dead one.
 9. A late write with the id of a session that was ended makes a new one ("tomb" is not
    built), and so does a stranger's write after the grace ("afterstr"), which is where
    a lost sign-in leads: creations, so 1 covers them.
10. A 409 of a request that came within twice the grace of a lost answer: the answer,
    and a request sent before it came, might still be under way.
11. The cookie ends up to an hour before the row, two where a renewed one was lost.
12. `session = {…}` may drop what others write beside it.

What is not asked where there is an attacker: who has copied the id of a signed-in
session has that session, until the next sign-in; who can plant cookies can sign out; so
the visitor must stay signed in only if their requests come one after the other, and no
id of the sign-in was copied. Of live rows (I4) nothing is asked while requests run side
by side, nor what is lost there (I3). Without a store the last answer wins, so writes
are sent one after the other and only reads beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.property.program.clock import Clock, StillLoop, worn_by_the_library
from tests.property.program.controls import CONTROLS
from tests.property.program.schedule import Step, World, schedules
from tests.property.program.simulation import Broken, Simulation
from tests.property.program.worlds import RACES, WORLDS
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


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.rule)
def test_each_rule_is_needed(control, monkeypatch):
    """With the rule the schedule is played in peace, without it an invariant breaks."""
    play(RACES, control.options, [*control.schedule])

    control.without(monkeypatch)

    with pytest.raises(Broken) as broken:
        play(RACES, control.options, [*control.schedule])
    assert control.breaks == broken.value.invariant


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
