"""
`make bench`: what a session costs, against no sessions and against writing it by hand.

All variants run as processes side by side and are measured in turns, so that a ratio
compares neighbours in time. Times on a shared machine come and go; ratios stay.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import tornado

from benchmarks import load, plot
from benchmarks.server import VARIANTS
from benchmarks.world import SESSIONS, WebProcess, World, newest_postgres

HAND, OURS = "hand-asyncpg", "compas-asyncpg"
#: Of 100 requests so many are POSTs, which count up; None: visitors without a cookie.
LOADS: dict[str, int | None] = {"read": 0, "count": 100, "anonymous": None, "mixed": 10}


class Sample(NamedTuple):
    """One turn of one variant; times in microseconds, the rest per request."""

    rate: float
    cpu: float
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
    posts = LOADS[what]
    cookies = world.no_cookies if posts is None else world.cookies
    before = world.counters(server)
    seen = load.run(server.port, connections, seconds, cookies, posts or 0)
    after = world.counters(server)
    return Sample(
        seen.rate,
        (after.cpu - before.cpu) / seen.requests * 1e6,
        seen.p50 * 1e6,
        seen.p99 * 1e6,
        (after.statements - before.statements) / seen.requests,
        (after.wal - before.wal) / seen.requests,
    )


def turns(options: argparse.Namespace, number: int) -> Iterator[Key]:
    """All that one round measures; the order of the variants changes with it."""
    variants = options.variants
    shift = number % len(variants)
    for what in options.loads:
        for connections in options.connections:
            for variant in variants[shift:] + variants[:shift]:
                # Without a cookie all drivers are the same, and by hand is as bare.
                if what != "anonymous" or variant in ("bare", OURS):
                    yield Key(what, connections, variant)


def run(world: World, options: argparse.Namespace) -> Samples:
    samples: Samples = defaultdict(list)
    for number in range(options.rounds + 1):
        for key in turns(options, number):
            server = world.servers[key.variant]
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


def pairs(
    samples: Samples, key: Key, figure: Callable[[Sample, Sample, Sample], float]
) -> list[float]:
    """A figure of each round, from the samples of ours, the bare and the hand's."""
    bare = samples.get(key._replace(variant="bare"), [])
    hand = samples.get(key._replace(variant=HAND), bare)
    return [figure(*three) for three in zip(samples[key], bare, hand, strict=False)]


def table(samples: Samples) -> Iterator[str]:
    """The whole of it, in Markdown; medians, and quartiles of the ratios."""
    yield (
        "| load | connections | variant | requests/s | of bare | CPU µs | added µs "
        "| added, of by hand | p50 ms | p99 ms | statements | WAL bytes |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    order = {variant: place for place, variant in enumerate(VARIANTS)}
    for key in sorted(samples, key=lambda key: (*key[:2], order[key.variant])):
        middle = Sample(*(median(column) for column in zip(*samples[key], strict=True)))
        bare = key.variant == "bare"
        of_bare = spread(pairs(samples, key, lambda own, bare, _: own.rate / bare.rate))
        added = spread(
            pairs(samples, key, lambda own, bare, _: own.cpu - bare.cpu), ".0f"
        )
        by_hand = (
            spread(pairs(samples, key, _added_of_hand))
            if key._replace(variant=HAND) in samples and not bare
            else ""
        )
        yield (
            f"| {key.load} | {key.connections} | {key.variant} | {middle.rate:,.0f} "
            f"| {'' if bare else of_bare} | {middle.cpu:.0f} | {'' if bare else added} "
            f"| {by_hand} | {middle.p50 / 1e3:.2f} | {middle.p99 / 1e3:.2f} "
            f"| {middle.statements:.3f} | {middle.wal:.0f} |"
        )


def _added_of_hand(own: Sample, bare: Sample, hand: Sample) -> float:
    return (own.cpu - bare.cpu) / max(hand.cpu - bare.cpu, 1.0)


def targets(samples: Samples) -> Iterator[str]:
    """The figures that the library is held to."""
    yield "| figure | at least | measured |"
    yield "|---|---|---|"

    def row(
        name: str,
        limit: str,
        what: str,
        connections: int,
        figure: Callable[[Sample, Sample, Sample], float],
    ) -> Iterator[str]:
        key = Key(what, connections, OURS)
        if key in samples:
            yield f"| {name} | {limit} | {spread(pairs(samples, key, figure))} |"

    for many in (16, 64):
        yield from row(
            f"reads, {many} connections: throughput against bare",
            *("0.80", "read", many, lambda own, bare, _: own.rate / bare.rate),
        )
        yield from row(
            f"reads, {many} connections: CPU per request of bare, of ours",
            *("", "read", many, lambda own, bare, _: bare.cpu / own.cpu),
        )
        yield from row(
            f"reads, {many} connections: CPU added, against by hand",
            *("at most 0.45", "read", many, _added_of_hand),
        )
        yield from row(
            f"increments, {many} connections: CPU added, against the UPDATE by hand",
            *("at most 0.70", "count", many, _added_of_hand),
        )
        yield from row(
            f"anonymous visitor, {many} connections: throughput against bare",
            *("0.95", "anonymous", many, lambda own, bare, _: own.rate / bare.rate),
        )
    yield from row(
        "reads, 1 connection: p50 against by hand",
        *("at most 1.15", "read", 1, lambda own, _, hand: own.p50 / hand.p50),
    )
    yield from row(
        "reads, 64 connections: p99 against by hand",
        *("at most 1.0", "read", 64, lambda own, _, hand: own.p99 / hand.p99),
    )
    yield from row(
        "reads, 64 connections: statements per read",
        *("below 0.1", "read", 64, lambda own, *_: own.statements),
    )


def wal_within_renew(world: World, seconds: float) -> float:
    """WAL bytes per read while no session is due to be renewed."""
    world.renew()
    world.settle()
    # The first readers note, page by page, which rows are committed.
    measure(world, world.servers[OURS], "read", 16, seconds)
    return measure(world, world.servers[OURS], "read", 16, seconds).wal


def draw(samples: Samples, what: str) -> str:
    series = {
        variant: [
            (key.connections, median(sample.cpu for sample in samples[key]))
            for key in sorted(samples)
            if key.load == what and key.variant == variant
        ]
        for variant in VARIANTS
    }
    return plot.lines(
        f"CPU of the web process, {what}",
        "connections",
        "µs per request",
        {name: points for name, points in series.items() if points},
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a minute: fewer variants and rounds")
    add("--rounds", type=int, help="rounds of measurements (6; quick: 2)")
    add("--seconds", type=float, default=1.0, help="the length of each (1)")
    add("--connections", type=int, nargs="+", help="1 16 64 256 (quick: 1 16 64)")
    add("--loads", nargs="+", choices=LOADS, help="all (quick: read count)")
    add("--variants", nargs="+", choices=VARIANTS, help="all (quick: three)")
    add("--sessions", type=int, default=SESSIONS, help=f"visitors ({SESSIONS})")
    add("--postgres", type=Path, metavar="BIN", help="another PostgreSQL's programs")
    add("--output", type=Path, metavar="DIR", help="where plots and figures go")
    options = parser.parse_args()
    quick = options.quick
    options.rounds = options.rounds or (2 if quick else 6)
    options.connections = options.connections or ([1, 16, 64] + [256] * (not quick))
    options.loads = options.loads or (["read", "count"] if quick else list(LOADS))
    options.variants = options.variants or (
        ["bare", HAND, OURS] if quick else list(VARIANTS)
    )
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
        print("\n".join(targets(samples)), "\n")
        print("\n".join(table(samples)), "\n")
        for variant, server in world.servers.items():
            print(f"memory of {variant}: {server.memory() / 2**20:.1f} MiB")
        if OURS in world.servers:
            wal = wal_within_renew(world, 3)
            print(f"WAL per read within `renew` seconds: {wal:.2f} bytes")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        for what in options.loads:
            (options.output / f"{what}.svg").write_text(draw(samples, what))
        (options.output / "samples.json").write_text(
            json.dumps([[*key, samples[key]] for key in samples])
        )


if __name__ == "__main__":
    main()
