"""`regenerate` against reads, writes and a second `regenerate`."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import psycopg
import pytest

from tests.apps.visitor import Visitor, contents, leave_all

pytestmark = pytest.mark.slow


async def race(urls, dice, name):
    """One round; what went wrong in it."""
    visitor = Visitor(urls[0])
    await visitor.post(f"/put/name/{name}")
    paths = ["/regenerate", "/regenerate", "/read", "/set/b/2", "/set/c/3"]
    others = [Visitor(urls[n % 2], visitor.cookie) for n in range(len(paths))]
    answers = await asyncio.gather(
        *(
            other.ask(
                "GET" if path == "/read" else "POST",
                f"{path}?wait={dice.randrange(0, 6)}",
            )
            for other, path in zip(others, paths, strict=True)
        )
    )
    wrong: Counter[str] = Counter()
    statuses = [status for status, _ in answers]
    wrong["5xx"] += sum(status >= 500 for status in statuses)
    wrong["logged out"] += sum(400 <= status < 500 for status in statuses)
    for other in others:
        status, body = await other.get("/read")
        wrong["logged out"] += status != 200
        content = body.get("content", {})
        wrong["key lost"] += sum(
            200 == answered and key not in content
            for answered, key in [(statuses[3], "b"), (statuses[4], "c")]
        )
    await leave_all(visitor, *others)
    return wrong


async def rounds(applications, database, name, number):
    dice = random.Random(4)
    wrong: Counter[str] = Counter()
    async with applications(name) as urls:
        for start in range(0, number, 5):
            for one in await asyncio.gather(
                *(race(urls, dice, f"{start}-{n}") for n in range(5))
            ):
                wrong += one
    live = Counter(content.get("name") for content in contents(database))
    wrong["not one live id"] += sum(count != 1 for count in live.values())
    wrong["not one live id"] += abs(number - len(live))
    return +wrong


async def test_one_live_id_and_nothing_lost(
    applications, database, long, record_property
):
    """Exactly one id lives, committed keys are there, nobody is logged out, no 5xx."""
    number = 500 if long else 40

    assert {} == dict(await rounds(applications, database, "right", number))

    with psycopg.connect(database) as connection:
        [(moved,)] = connection.execute(
            "SELECT count(*) FROM compas_session WHERE former_hash IS NOT NULL"
        ).fetchall()
    assert number == moved
    record_property("wrong", f"0 in {number} rounds")


async def test_control_two_transactions_lose_sessions(
    applications, database, long, record_property
):
    """Deleting the old row and inserting a new one leaves a gap that requests see."""
    number = 500 if long else 20

    wrong = await rounds(applications, database, "in-two-steps", number)

    assert wrong
    record_property("wrong", f"{dict(wrong)} in {number} rounds")
