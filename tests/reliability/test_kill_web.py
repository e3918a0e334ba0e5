"""kill -9 of a web process under load: what was answered is in the database."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.apps.load import Load
from tests.apps.visitor import contents, waiting_transactions
from tests.apps.web import web_process

pytestmark = pytest.mark.slow


async def kills(database, name, number):
    """The load and how many acknowledged writes are missing after so many kills."""
    dice = random.Random(4)
    with web_process(database, name) as web:
        load = Load(web.url)
        async with load.running("r"):
            for _ in range(number):
                await asyncio.sleep(0.3 + dice.random() / 2)
                web.kill()
                await asyncio.to_thread(web.start)
            await asyncio.sleep(0.2)
            web.kill()
    async with asyncio.timeout(30):
        while waiting_transactions(database):
            await asyncio.sleep(0.1)
    return load, load.lost(contents(database))


async def test_every_acknowledged_write_is_there(database, long, record_property):
    """After each kill the process starts anew, and no transaction is left open."""
    number = 20 if long else 2

    load, lost = await kills(database, "right", number)

    assert 0 == lost
    assert len(load.acknowledged) > 50
    record_property(
        "lost",
        f"0 of {len(load.acknowledged)}; {number} kills; "
        f"{load.happened(contents(database))} of {len(load.unknown)} unknown happened",
    )


async def test_control_saving_after_the_response_loses_writes(
    database, long, record_property
):
    """When the answer leaves first, a kill takes what was promised."""
    number = 20 if long else 1

    load, lost = await kills(database, "late", number)

    assert lost > 0
    record_property("lost", f"{lost} of {len(load.acknowledged)}; {number} kills")
