"""
`make bench`: what a session costs, against no sessions and against writing it by hand.

All variants run as processes side by side and are measured in turns, so that a ratio
compares neighbours in time. Times on a shared machine come and go; ratios stay.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import tornado

from benchmarks import load, plot, slow_row
from benchmarks.server import VARIANTS
from benchmarks.world import SESSIONS, WebProcess, World, newest_postgres

HAND, BOTH, CAREFUL = "hand-asyncpg", "both-asyncpg", "careful-asyncpg"
OURS = "compas-asyncpg"
SHOWN = ("bare", HAND, BOTH, CAREFUL, OURS)


class Ask(NamedTuple):
    """What is asked for: of 100 requests so many are POSTs."""

    posts: int
    path: str = "/"
    #: The variants that answer it, but for ours; the others have it as another load.
    by: tuple[str, ...] = ()
    cookies: bool = True
    #: Seconds since each visitor was last there, where it matters.
    away: float | None = None


EVERYBODY = tuple(variant for variant in VARIANTS if not variant.startswith("compas"))
LOADS = {
    "read": Ask(0, by=EVERYBODY, away=0),
    "due": Ask(0, by=(CAREFUL,), away=60),
    "count": Ask(100, by=EVERYBODY),
    "increment": Ask(100, "/increment"),
    "lock": Ask(100, "/lock", by=(BOTH,)),
    "anonymous": Ask(0, by=("bare",), cookies=False),
    "mixed": Ask(10, by=EVERYBODY, away=0),
}
#: A load of its own, which has a table of its own.
BESIDE = "beside"
#: Requests that wait for the slow row: one, as many as a browser sends, and many.
WAITING = (1, 6, 20)
#: Where a variant that is not measured by a load has the same.
SAME = {"due": "read", "increment": "count", "lock": "count"}


class Sample(NamedTuple):
    """One turn of one variant; times in microseconds, the rest per request."""

    rate: float
    cpu: float
    postgres: float
    p50: float
    p99: float
    statements: float
    wal: float


class Key(NamedTuple):
    load: str
    connections: int
    variant: str


Samples = dict[Key, list[Sample]]


def measure(
    world: World, server: WebProcess, what: str, connections: int, seconds: float
) -> Sample:
    ask = LOADS[what]
    cookies = world.cookies if ask.cookies else world.no_cookies
    first = random.randrange(world.sessions)
    before = world.counters(server)
    seen = load.run(
        server.port, connections, seconds, cookies, ask.posts, ask.path, first
    )
    after = world.counters(server)
    return Sample(
        seen.rate,
        (after.cpu - before.cpu) / seen.requests * 1e6,
        (after.backends - before.backends) / seen.requests * 1e6,
        seen.p50 * 1e6,
        seen.p99 * 1e6,
        (after.statements - before.statements) / seen.requests,
        (after.wal - before.wal) / seen.requests,
    )


def turns(options: argparse.Namespace, number: int) -> Iterator[Key]:
    """All that one round measures; the order of the variants changes with it."""
    variants = options.variants
    shift = number % len(variants)
    for connections in options.connections:
        for what in options.loads:
            for variant in variants[shift:] + variants[:shift]:
                if variant in LOADS[what].by or variant.startswith("compas"):
                    yield Key(what, connections, variant)


def run(world: World, options: argparse.Namespace) -> Samples:
    samples: Samples = defaultdict(list)
    world.used()
    for number in range(options.rounds + 1):
        for key in turns(options, number):
            server = world.servers[key.variant]
            away = LOADS[key.load].away
            if away is not None and (key.variant == CAREFUL or "compas" in key.variant):
                world.used(away)
            seconds = options.seconds if number else 1
            sample = measure(world, server, key.load, key.connections, seconds)
            if number:  # the first round warms up
                samples[key].append(sample)
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    return samples


# ── what comes of it ─────────────────────────────────────────────────────────────────


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the quartiles in brackets."""
    if len(values) < 2:
        return f"{values[0]:{form}}"
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} [{low:{form}}–{high:{form}}]"


class Column:
    """A figure of one variant under one load, of each round."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values

    def __sub__(self, other: Column) -> Column:
        pairs = zip(self.values, other.values, strict=True)
        return Column([one - two for one, two in pairs])

    def __truediv__(self, other: Column) -> Column:
        pairs = zip(self.values, other.values, strict=True)
        return Column([one / max(two, 1e-9) for one, two in pairs])


class Figures:
    """The samples, by name. Raises `KeyError` for what was not measured."""

    def __init__(self, samples: Samples, connections: int) -> None:
        self._samples, self._connections = samples, connections

    def __call__(self, what: str, variant: str, figure: str) -> Column:
        found = self._samples.get(Key(what, self._connections, variant))
        if found is None:
            same = Key(SAME[what], self._connections, variant)
            found = self._samples.get(same, [])
        if not found:
            raise KeyError(what)
        return Column([getattr(sample, figure) for sample in found])

    def added(self, what: str, variant: str) -> Column:
        """The CPU of the web process beyond that of the bare handler."""
        return self(what, variant, "cpu") - self(what, "bare", "cpu")


def targets(samples: Samples, connections: Sequence[int]) -> Iterator[str]:
    """The figures that the library is held to."""
    yield "| figure | wanted | measured |"
    yield "|---|---|---|"
    for many in connections:
        of = Figures(samples, many)
        rows = {
            "read: CPU added, of one SELECT by hand": (
                {16: "at most 0.35", 64: "at most 0.2"},
                lambda of: of.added("read", OURS) / of.added("read", HAND),
            ),
            "read: CPU added, of the careful variant": (
                {},
                lambda of: of.added("read", OURS) / of.added("read", CAREFUL),
            ),
            "read: CPU of PostgreSQL, of one SELECT by hand": (
                {1: "at most 1.3"},
                lambda of: of("read", OURS, "postgres") / of("read", HAND, "postgres"),
            ),
            "read after more than `renew`: CPU added, of one SELECT by hand, which "
            "never renews": (
                {16: "at most 0.6"},
                lambda of: of.added("due", OURS) / of.added("due", HAND),
            ),
            "the same, of the careful variant, which does": (
                {},
                lambda of: of.added("due", OURS) / of.added("due", CAREFUL),
            ),
            "count: CPU added, of one UPDATE by hand": (
                {16: "at most 0.6"},
                lambda of: of.added("count", OURS) / of.added("count", HAND),
            ),
            "count: CPU added, of SELECT and UPDATE by hand": (
                {},
                lambda of: of.added("count", OURS) / of.added("count", BOTH),
            ),
            "count: CPU added, of the careful variant": (
                {},
                lambda of: of.added("count", OURS) / of.added("count", CAREFUL),
            ),
            "count: CPU of PostgreSQL, of SELECT and UPDATE by hand": (
                {1: "at most 1.5"},
                lambda of: (
                    of("count", OURS, "postgres") / of("count", BOTH, "postgres")
                ),
            ),
            "`increment()`: CPU added, of a plain count of ours": (
                {16: "at most 1.15"},
                lambda of: of.added("increment", OURS) / of.added("count", OURS),
            ),
            "`lock()`: CPU added, of a plain count of ours": (
                {16: "at most 2.5"},
                lambda of: of.added("lock", OURS) / of.added("count", OURS),
            ),
            "the same, of a SELECT FOR UPDATE and UPDATE by hand": (
                {},
                lambda of: of.added("lock", OURS) / of.added("lock", BOTH),
            ),
            "anonymous: throughput of bare": (
                {16: "at least 0.95"},
                lambda of: (
                    of("anonymous", OURS, "rate") / of("anonymous", "bare", "rate")
                ),
            ),
            "read: p50, of by hand": (
                {},
                lambda of: of("read", OURS, "p50") / of("read", HAND, "p50"),
            ),
            "read: p99, of by hand": (
                {},
                lambda of: of("read", OURS, "p99") / of("read", HAND, "p99"),
            ),
        }
        for name, (wanted, figure) in rows.items():
            try:
                values = figure(of).values
            except KeyError:
                continue
            yield (
                f"| {many} connection{'s' * (many > 1)}, {name} "
                f"| {wanted.get(many, '')} | {spread(values)} |"
            )


def table(samples: Samples) -> Iterator[str]:
    """The whole of it, in Markdown; medians, and quartiles of what is added."""
    yield (
        "| load | connections | variant | requests/s | CPU µs | added µs | PostgreSQL "
        "µs | p50 ms | p99 ms | statements | WAL bytes |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    order = {variant: place for place, variant in enumerate(VARIANTS)}
    for key in sorted(samples, key=lambda key: (*key[:2], order[key.variant])):
        own = samples[key]
        middle = Sample(*(median(column) for column in zip(*own, strict=True)))
        added = ""
        if key.variant != "bare":
            of = Figures(samples, key.connections)
            added = spread(of.added(key.load, key.variant).values, ".0f")
        backends = spread([sample.postgres for sample in own], ".0f")
        yield (
            f"| {key.load} | {key.connections} | {key.variant} | {middle.rate:,.0f} "
            f"| {middle.cpu:.0f} | {added} | {backends} "
            f"| {middle.p50 / 1e3:.2f} | {middle.p99 / 1e3:.2f} "
            f"| {middle.statements:.3f} | {middle.wal:.0f} |"
        )


# ── what is no turn ──────────────────────────────────────────────────────────────────


def wal_within_renew(world: World, seconds: float) -> float:
    """WAL bytes per read while no session is due to be renewed."""
    world.used()
    world.settle()
    # The first readers note, page by page, which rows are committed.
    measure(world, world.servers[OURS], "read", 16, seconds)
    return measure(world, world.servers[OURS], "read", 16, seconds).wal


def lost(world: World, server: WebProcess, path: str) -> tuple[int, int]:
    """Of the counts of 16 clients in one session: how many are lost, of how many."""
    [cookie] = random.sample(world.cookies.read_text().splitlines(), 1)
    file = world.cookies.with_name("one-cookie")
    file.write_text(f"{cookie}\n")

    def value() -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/", headers={"Cookie": cookie}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(json.load(answer)["value"])

    before = value()
    asked = load.run(server.port, 16, 2, file, 100, path).requests
    # Up to 16 that the client no longer waited for are counted as well.
    return max(0, asked - (value() - before)), asked


def losses(world: World) -> Iterator[str]:
    yield "| 16 clients count in one session | counts lost |"
    yield "|---|---|"
    for name, variant, path in (
        ("one UPDATE by hand", HAND, "/"),
        ("SELECT and UPDATE by hand", BOTH, "/"),
        ("the same, FOR UPDATE", BOTH, "/lock"),
        ("the careful variant", CAREFUL, "/"),
        ("this library, plain", OURS, "/"),
        ("this library, `increment()`", OURS, "/increment"),
        ("this library, `lock()`", OURS, "/lock"),
    ):
        if variant in world.servers:
            missing, asked = lost(world, world.servers[variant], path)
            share = f"{missing / asked:.0%}"
            yield f"| {name} | {missing:,} of {asked:,} ({share}) |"


def beside_a_slow_row(world: World, options: argparse.Namespace) -> Iterator[str]:
    """How much later others are answered while requests wait for one session's row."""
    many = max(1, min(16, *options.connections))
    times: dict[tuple[int, str], list[load.Load]] = defaultdict(list)
    names = {
        HAND: "one UPDATE by hand",
        BOTH: "SELECT and UPDATE by hand",
        CAREFUL: "the careful variant",
        OURS: "this library",
    }
    served = [variant for variant in names if variant in world.servers]
    for _ in range(options.rounds):
        for variant in served:
            for waiting in (0, *WAITING):
                with suppress(RuntimeError):  # then they are not all answered
                    seen = slow_row.others(
                        world, world.servers[variant], many, options.seconds, waiting
                    )
                    times[waiting, variant].append(seen)
    yield (
        f"| {many} connections beside a slow row | requests that wait for it "
        "| p50, of without it | p99, of without it | p99 ms |"
    )
    yield "|---|---|---|---|---|"
    for waiting in WAITING:
        for variant in served:
            slow, free = times[waiting, variant], times[0, variant]
            cells = ["no answer", "no answer", ""]
            if len(slow) == len(free) == options.rounds:
                cells = [
                    spread((Column(p50s(slow)) / Column(p50s(free))).values),
                    spread((Column(p99s(slow)) / Column(p99s(free))).values),
                    spread([one * 1e3 for one in p99s(slow)], ".0f"),
                ]
            yield f"| {names[variant]} | {waiting} | {' | '.join(cells)} |"


def p50s(seen: Sequence[load.Load]) -> list[float]:
    return [one.p50 for one in seen]


def p99s(seen: Sequence[load.Load]) -> list[float]:
    return [one.p99 for one in seen]


def picture(samples: Samples, connections: int) -> str:
    """What a read and a count cost, in the web process and in PostgreSQL."""
    of = Figures(samples, connections)
    names = {
        HAND: "one statement by hand",
        BOTH: "SELECT, then UPDATE",
        CAREFUL: "with care, by hand",
        OURS: "this library",
    }
    groups = {}
    for title, what in (("a read", "read"), ("a count", "count")):
        groups[title] = {
            name: (
                median(of.added(what, variant).values),
                median(of(what, variant, "postgres").values),
            )
            for variant, name in names.items()
            if (what, variant) != ("read", BOTH)  # the same as the one above
        }
    return plot.bars(
        f"CPU that a session adds to a request, {connections} connections",
        "µs",
        ("web process", "PostgreSQL"),
        groups,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a minute: fewer connections and rounds")
    add("--rounds", type=int, help="rounds of measurements (6; quick: 2)")
    add("--seconds", type=float, default=1.0, help="the length of each (1)")
    add("--connections", type=int, nargs="+", help="1 16 64 (quick: 16)")
    loads = [*LOADS, BESIDE]
    add("--loads", nargs="+", choices=loads, help="all (quick: read count)")
    add("--variants", nargs="+", choices=VARIANTS, default=list(SHOWN), help="asyncpg")
    add("--sessions", type=int, default=SESSIONS, help=f"visitors ({SESSIONS:,})")
    add("--postgres", type=Path, metavar="BIN", help="another PostgreSQL's programs")
    add("--output", type=Path, metavar="DIR", help="where pictures and figures go")
    options = parser.parse_args()
    quick = options.quick
    options.rounds = options.rounds or (2 if quick else 6)
    options.connections = options.connections or ([16] if quick else [1, 16, 64])
    options.loads = options.loads or (["read", "count"] if quick else loads)
    options.beside = BESIDE in options.loads
    options.loads = [what for what in options.loads if what in LOADS]
    return options


def main() -> None:
    options = parse()
    with World(options.postgres or newest_postgres(), options.sessions) as world:
        for variant in list(options.variants):
            try:
                world.serve(variant)
            except RuntimeError as error:
                print(f"left out: {error}", file=sys.stderr)
                options.variants.remove(variant)
        print(
            f"PostgreSQL {world.version}, Tornado {tornado.version}, Python "
            f"{sys.version.split()[0]}; {options.rounds} rounds of "
            f"{options.seconds:g} s, {options.sessions:,} sessions, "
            f"{'wrk' if load.WRK else 'the small client'}; medians [quartiles]\n"
        )
        samples = run(world, options)
        print("\n".join(targets(samples, options.connections)), "\n")
        print("\n".join(losses(world)), "\n")
        if options.beside:
            print("\n".join(beside_a_slow_row(world, options)), "\n")
        print("\n".join(table(samples)), "\n")
        for variant, server in world.servers.items():
            print(f"memory of {variant}: {server.memory() / 2**20:.1f} MiB")
        if OURS in world.servers:
            wal = wal_within_renew(world, 3)
            print(f"WAL per read within `renew` seconds: {wal:.2f} bytes")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "samples.json").write_text(
            json.dumps([[*key, samples[key]] for key in samples])
        )
        with suppress(KeyError):  # of what was not measured
            drawn = picture(samples, 16)
            (options.output / "performance.svg").write_text(drawn)


if __name__ == "__main__":
    main()
