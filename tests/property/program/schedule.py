"""
What can happen, in steps; and how Hypothesis makes a schedule of them.

A step that is not possible when its turn comes (nobody waits, nobody attacks) does
nothing, so any part of a schedule is a schedule: it shrinks by leaving steps out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.property.program.site import GRACE

#: Where a request may wait: on its way to the server; its body on the way; before its
#: load happens; in its handler before the work, in the midst of it, and after it;
#: before a write happens; with the reply of one under way; with the answer under way.
STOPS = "wire", "upload", "load", "pre", "mid", "post", "commit", "reply", "answer"


class Send(NamedTuple):
    """The browser sends a request, which waits where it is told to."""

    kind: str
    stops: tuple[str, ...] = ()
    process: int = 0
    user: str = "vera"
    method: str = "GET"


class Attack(NamedTuple):
    """The attacker sends one, with the n-th id that is known to him, or none."""

    kind: str
    stops: tuple[str, ...] = ()
    process: int = 0
    known: int | None = None


class Go(NamedTuple):
    """The n-th of those that wait goes on."""

    which: int = 0


class Lose(NamedTuple):
    """The n-th of the answers under way never arrives."""

    which: int = 0


class Fail(NamedTuple):
    """The n-th store call under way fails; whether it happened is its stop's."""

    which: int = 0


class Wait(NamedTuple):
    """Time passes."""

    seconds: float


class Deploy(NamedTuple):
    """A process starts anew, with or without COOKIE_URL, with its keys rotated."""

    process: int
    domain: bool = False
    keys: bool = False


class Revoke(NamedTuple):
    """Somebody ends all sessions of the user."""


class Plant(NamedTuple):
    """The attacker puts the id of a session of his into the browser."""

    domain: bool = False


class Copy(NamedTuple):
    """The attacker learns what is in the browser's jar."""


Step = Any
#: Over a second; over the grace; over `renew`; over an hour, the most that a cookie is
#: old; days, so that sessions live by their use alone.
WAITS = 0.4, 1.5, GRACE + 1, 40.0, 40.0, 4_000.0, 3 * 86400.0


@dataclass(frozen=True)
class World:
    """What is possible in a schedule, and how the program is set."""

    name: str
    kinds: Sequence[str]
    #: How often each of the other steps comes, out of a dozen.
    go: int = 3
    lose: int = 1
    fail: int = 0
    wait: int = 2
    deploy: int = 0
    rotate: int = 0
    revoke: int = 0
    attack: Sequence[str] = ()
    users: Sequence[str] = ("vera",)
    stops: Sequence[str] = STOPS
    #: Whether there is a store, or the data is in the cookie.
    store: bool = True
    methods: Sequence[str] = ("GET",)
    options: Sequence[dict[str, Any]] = ({},)
    waits: Sequence[float] = WAITS
    #: The browser is signed in before it begins.
    begins: Sequence[tuple[Step, ...]] = field(
        default_factory=lambda: ((), (Send("write"),), (Send("login"),))
    )
    max_steps: int = 14


def schedules(world: World) -> st.SearchStrategy[tuple[dict[str, Any], list[Step]]]:
    """The options of a program, and what happens to it."""
    singles = [(stop,) for stop in world.stops]
    doubles = [
        (one, two)
        for n, one in enumerate(world.stops)
        for two in world.stops[n + 1 :]
        if one in ("pre", "wire", "commit", "mid") or two == "answer"
    ]
    # As often none as one; two are rarer.
    stops = st.sampled_from([()] * len(singles) * 2 + singles * 2 + doubles)
    process = st.sampled_from([0, 0, 1])
    send = st.builds(
        Send,
        st.sampled_from(list(world.kinds)),
        stops,
        process,
        st.sampled_from(list(world.users)),
        st.sampled_from(list(world.methods)),
    )
    which = st.integers(0, 2)
    steps: list[st.SearchStrategy[Step]] = [send] * 4
    steps += [st.builds(Go, which)] * world.go
    steps += [st.builds(Lose, which)] * world.lose
    steps += [st.builds(Fail, which)] * world.fail
    steps += [st.builds(Wait, st.sampled_from(list(world.waits)))] * world.wait
    steps += [st.builds(Deploy, process, st.just(True))] * world.deploy
    steps += [st.builds(Deploy, process, st.just(False), st.just(True))] * world.rotate
    steps += [st.just(Revoke())] * world.revoke
    if world.attack:
        known = st.sampled_from([0, 0, 1, 2, None])
        attack = st.builds(
            Attack, st.sampled_from(list(world.attack)), stops, process, known
        )
        steps += [attack] * 3 + [st.builds(Plant, st.booleans()), st.just(Copy())]
    return st.tuples(
        st.sampled_from(list(world.options)),
        st.builds(
            lambda begin, rest: [*begin, *rest],
            st.sampled_from(list(world.begins)),
            st.lists(_one_of(steps), min_size=1, max_size=world.max_steps),
        ),
    )


@st.composite
def _one_of(draw: st.DrawFn, steps: list[st.SearchStrategy[Step]]) -> Step:
    # `st.one_of` takes a strategy that is named often for once.
    return draw(steps[draw(st.integers(0, len(steps) - 1))])
