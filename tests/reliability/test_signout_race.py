"""A slow request against a sign-out: what was destroyed does not come back."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.apps.visitor import Visitor, contents, leave_all

pytestmark = pytest.mark.slow


async def race(urls, dice):
    """One round: the statuses of the slow request and of what follows it."""
    visitor = Visitor(urls[0])
    await visitor.post("/put/a/1")
    slow, out = Visitor(urls[1], visitor.cookie), visitor.twin()
    waits = [dice.randrange(0, 12) for _ in range(2)]
    kind = dice.choice(["GET /read", "POST /set/b/2", "POST /set/a/9"])
    method, path = kind.split()
    (status, _), (signed_out, _) = await asyncio.gather(
        slow.ask(method, f"{path}?wait={waits[0]}"),
        out.post(f"/sign-out?wait={waits[1]}"),
    )
    assert signed_out in (200, 401)
    after, _ = await visitor.get("/read")
    await leave_all(visitor, slow, out)
    return method, status, after


async def rounds(applications, name, number):
    dice = random.Random(4)
    found = []
    async with applications(name) as urls:
        for _ in range(number // 5):
            found += await asyncio.gather(*(race(urls, dice) for _ in range(5)))
    return found


async def test_no_session_comes_back(applications, database, long, record_property):
    """No row is left; the slow one is 409, or too late (401), or was first (200)."""
    number = 500 if long else 50

    found = await rounds(applications, "right", number)

    assert [] == contents(database)
    assert {401} == {after for _, _, after in found}
    assert {status for _, status, _ in found} <= {200, 401, 409}
    assert 409 not in {status for method, status, _ in found if method == "GET"}
    gone = sum(status == 409 for _, status, _ in found)
    record_property("came back", f"0 of {number}; {gone} times 409")


async def test_control_an_upsert_brings_it_back(
    applications, database, long, record_property
):
    """With a store that upserts, signed-out visitors are signed in again."""
    number = 500 if long else 50

    await rounds(applications, "upserting", number)

    back = len(contents(database))
    assert back > 0
    record_property("came back", f"{back} of {number}")
