"""A store that was made in another event loop than the one that serves says so."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.drivers import DRIVERS, make_store
from tests.factories import serve
from tests.reliability.load import Visitor, counter_app
from tests.sessions import created, data_of
from tornado_compas_session import MemorySessionStore

WHY = "the pool was made in another event loop (or before the fork)"


@pytest.fixture(params=["connect", *DRIVERS])
def store(request, database):
    """Made and used as by `asyncio.run()`, before the loop that serves."""
    own = asyncio.new_event_loop()

    async def made():
        store = await make_store(request.param, database)
        await data_of(store, await created(store))
        return store

    store = own.run_until_complete(made())
    yield store
    own.run_until_complete(store.close())
    own.close()


async def test_every_request_is_a_503_and_the_log_says_why(store, caplog):
    """Once, and not "RuntimeError"; what does not need the store is served."""
    with serve(counter_app(store, timeout=2)) as url:
        visitor = Visitor(url)
        for _ in range(5):
            assert 503 == (await visitor.ask("/?n=1", "POST"))[0]
            assert 200 == (await visitor.ask("/plain"))[0]
        visitor.drop()

    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert 1 == len(said), said
    assert said[0].startswith(f"the session store is in trouble: writes fail: {WHY}")
    assert WHY in str(store.problem)


async def test_control_its_own_loop(database, caplog):
    """The same store, made in the loop that serves, works."""
    store = await make_store("connect", database)
    await data_of(store, await created(store))
    with serve(counter_app(store, timeout=2)) as url:
        visitor = Visitor(url)
        assert 200 == (await visitor.ask("/?n=1", "POST"))[0]
        visitor.drop()
    await store.close()

    assert "in trouble" not in caplog.text


def test_the_store_in_memory_belongs_to_no_loop():
    """Of a loop that has ended it is as good in the next."""
    store = MemorySessionStore()
    app = counter_app(store)

    async def visit():
        with serve(app) as url:
            visitor = Visitor(url)
            visitors = [Visitor(url) for _ in range(5)]
            assert 200 == (await visitor.ask("/?mark=m", "POST"))[0]
            for each in visitors:
                each.cookie = visitor.cookie
            answers = await asyncio.gather(
                *(each.ask("/?n=1", "POST") for each in visitors)
            )
            for each in (visitor, *visitors):
                each.drop()
            await asyncio.sleep(0.01)
            return {status for status, _, _ in answers}

    for _ in range(2):
        assert {200} == asyncio.run(visit())
