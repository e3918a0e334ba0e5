"""The redirect after the sign-in is served by another process: it knows the visitor."""

from __future__ import annotations

import asyncio

import pytest

from tests.apps.visitor import Visitor, leave_all
from tests.apps.web import web_process

pytestmark = pytest.mark.slow


async def sign_in(database, name, number):
    """How many of so many visitors are signed in after the redirect."""

    async def one():
        visitor = Visitor(first.url)
        status, _ = await visitor.post("/sign-in")
        assert 302 == status
        there = Visitor(second.url, visitor.cookie)
        status, body = await there.get("/read")
        await leave_all(visitor, there)
        return status == 200 and body["content"]["user_id"] == "anna"

    signed_in = 0
    with web_process(database, name) as first, web_process(database) as second:
        for _ in range(number // 20):
            signed_in += sum(await asyncio.gather(*(one() for _ in range(20))))
    return signed_in


async def test_the_other_process_knows_the_visitor(database, long, record_property):
    """With a store that takes 300 ms longer, all of them are signed in."""
    number = 200 if long else 40

    assert number == await sign_in(database, "slow", number)
    record_property("signed in", f"{number} of {number}")


async def test_control_without_the_hold_it_does_not(database, long, record_property):
    """When the answer leaves before the commit, the redirect arrives too early."""
    number = 200 if long else 40

    signed_in = await sign_in(database, "late", number)

    assert signed_in < number / 2
    record_property("signed in", f"{signed_in} of {number}")
