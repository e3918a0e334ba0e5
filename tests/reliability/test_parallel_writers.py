"""Parallel requests that write different keys of one session all keep their writes."""

from __future__ import annotations

import asyncio

import pytest

from tests.apps.visitor import Visitor, contents, leave_all

KEYS = 50


async def write_all(applications, path, rounds):
    """50 keys at once, round after round, on two servers; how many writes were lost."""
    lost = 0
    async with applications() as urls:
        first = Visitor(urls[0])
        await first.post("/put/first/one")
        visitors = [Visitor(urls[n % 2], first.cookie) for n in range(KEYS)]
        for turn in range(rounds):
            answers = await asyncio.gather(
                *(v.post(f"/{path}/key{n}/{turn}") for n, v in enumerate(visitors))
            )
            assert {200} == {status for status, _ in answers}
            _, body = await first.get("/read")
            found = body["content"]
            lost += sum(found.get(f"key{n}") != str(turn) for n in range(KEYS))
        await leave_all(first, *visitors)
    return lost


@pytest.mark.slow
async def test_all_keys_are_there(applications, database, long, record_property):
    """50 keys, round after round: each is as it was last written."""
    rounds = 20 if long else 4

    assert 0 == await write_all(applications, "put", rounds)
    [content] = contents(database)
    assert KEYS + 1 == len(content)
    record_property("lost", f"0 of {KEYS * rounds}")


@pytest.mark.slow
async def test_control_the_whole_document_loses_keys(
    applications, long, record_property
):
    """Saving the whole document overwrites what others have written."""
    rounds = 20 if long else 1

    lost = await write_all(applications, "put-whole", rounds)

    assert lost > 0
    record_property("lost", f"{lost} of {KEYS * rounds}")
