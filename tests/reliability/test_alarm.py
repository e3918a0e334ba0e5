"""Somebody uses an id from before again and again: one alarm, and nobody suffers."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from tornado.web import RequestHandler

from tests.drivers import make_store
from tests.factories import make_app, serve
from tests.reliability.load import Mark, Visitor
from tornado_compas_session import SessionMixin
from tornado_compas_session.core import arrival

REQUESTS = 200


class SignIn(SessionMixin, RequestHandler):
    def post(self):
        self.session.regenerate()
        self.session["mark"] = "secret"


async def attack(database, hook):
    """200 requests with an id that was copied before the sign-in; what they got."""
    store = await make_store("connect", database)
    app = make_app(
        [("/", Mark), ("/sign-in", SignIn)],
        store,
        on_reuse=hook,
        regenerate_grace=0,
        timeout=1,
    )
    seen: Counter[tuple[int, str]] = Counter()
    try:
        with serve(app) as url:
            visitor = Visitor(url)
            await visitor.ask("/?mark=cart", "POST")
            thieves = [Visitor(url) for _ in range(20)]
            for thief in thieves:
                thief.cookie = visitor.cookie
            await visitor.ask("/sign-in", "POST")
            assert (200, "secret") == await answer(visitor)  # the new id is shown
            await asyncio.sleep(0.01)

            async def use(thief):
                for _ in range(REQUESTS // len(thieves)):
                    seen[await answer(thief)] += 1

            await asyncio.gather(*map(use, thieves))
            assert (200, "secret") == await answer(visitor)
            for one in (visitor, *thieves):
                one.drop()
    finally:
        await store.close()
    return seen


async def answer(visitor):
    status, _, body = await visitor.ask()
    return status, body


def warnings(caplog):
    return sum("may have copied it" in line for line in caplog.messages)


async def test_one_call_and_one_line(database, caplog):
    """However many requests; each is a stranger's, and the visitor's own goes on."""
    told: list[object] = []

    seen = await attack(database, told.append)

    assert {(200, "none"): REQUESTS} == seen
    assert 1 == len(told)
    assert 1 == warnings(caplog)


async def fails(retired):
    raise ConnectionError("no mail server")


async def hangs(retired):
    await asyncio.sleep(60)


@pytest.mark.parametrize("hook", [fails, pytest.param(hangs, marks=pytest.mark.slow)])
async def test_a_hook_that_fails_breaks_no_page(database, caplog, hook):
    """It is called once and logged once; one that hangs is waited for no longer."""
    seen = await attack(database, hook)

    assert {(200, "none"): REQUESTS} == seen
    assert 1 == warnings(caplog)
    assert (hook is fails) == ("on_reuse failed" in caplog.text)


async def test_control_without_the_pause_it_floods(database, caplog, monkeypatch):
    """A call and a line for each."""
    monkeypatch.setattr(arrival, "_ALARM_PAUSE", 0.0)
    told: list[object] = []

    await attack(database, told.append)

    assert REQUESTS == len(told) == warnings(caplog)
