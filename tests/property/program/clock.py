"""
Time that stands until it is moved: for the loop, for the library and for Tornado.

Nothing sleeps. The loop is asyncio's own with a clock of ours, so that its timers (the
time limit of a store call, a watch over something) go off when the clock is moved.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PACKAGE = "tornado_compas_session"
#: Where Tornado looks at a clock for what a request is told.
_TORNADO = ("tornado.httputil", "tornado.web")
_REAL = {time.time: "time", time.monotonic: "monotonic"}


class Clock:
    """
    Seconds since the epoch (`time`), and since some moment (`monotonic`).

    With `real` they are those of the machine, plus what the clock was moved by.
    """

    def __init__(self, *, real: bool = False) -> None:
        self.real = real
        self.moved = 0.0

    def time(self) -> float:
        return (time.time() if self.real else 1_800_000_000.0) + self.moved

    def monotonic(self) -> float:
        return (time.monotonic() if self.real else 1_000.0) + self.moved

    def __getattr__(self, name: str) -> Any:
        # For whoever takes this for the module `time`.
        return getattr(time, name)


class StillLoop(asyncio.SelectorEventLoop):
    """A loop that knows no time but the clock's, and waits for nothing."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_Never())
        self.clock = clock

    def time(self) -> float:
        return self.clock.monotonic()


class _Never(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[Any]:
        return []


async def settle() -> None:
    """Until nothing can go on by itself any more."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    idle = 0
    while idle < 2:
        await asyncio.sleep(0)
        idle = 0 if ready else idle + 1


@contextmanager
def worn_by_the_library(clock: Clock) -> Iterator[None]:
    """The library's modules, and two of Tornado's, see this clock as `time`."""
    undo: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        ours = name == PACKAGE or name.startswith(PACKAGE + ".")
        if not ours and name not in _TORNADO:
            continue
        for key, value in list(vars(module).items()):
            put = _instead(clock, value)
            if put is not None:
                undo.append((module, key, value))
                setattr(module, key, put)
    try:
        yield
    finally:
        for module, key, value in undo:
            setattr(module, key, value)


def wear(clock: Clock, thing: Any, seen: set[int] | None = None) -> None:
    """The same for an object of the library that has kept `time.time`."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, dict):
        for value in list(thing.values()):
            wear(clock, value, seen)
        return
    if isinstance(thing, list | tuple):
        for value in thing:
            wear(clock, value, seen)
        return
    if not type(thing).__module__.startswith(PACKAGE):
        return
    names = list(getattr(thing, "__dict__", ()))
    for kind in type(thing).__mro__:
        slots = getattr(kind, "__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    for name in names:
        value = getattr(thing, name, None)
        put = _instead(clock, value)
        if put is None:
            wear(clock, value, seen)
        else:
            object.__setattr__(thing, name, put)


def _instead(clock: Clock, value: Any) -> Any:
    if value is time:
        return clock
    try:
        name = _REAL.get(value)
    except TypeError:  # not hashable, so no function
        return None
    return None if name is None else getattr(clock, name)
