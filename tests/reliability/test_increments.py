"""One counter, 16 clients, 2 processes: by `increment()` or `lock()` none is lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.apps.visitor import Visitor, leave_all
from tests.apps.web import web_process
from tests.servers import start_example
from tornado_compas_session.stores.migrations import migrate

pytestmark = pytest.mark.slow

CLIENTS = 16


async def count(urls, cookie, path, total):
    """So many increments by 16 clients at once; what they were answered."""
    left = iter(range(total))
    answers = []

    async def one(number):
        visitor = Visitor(urls[number % len(urls)], cookie)
        for _ in left:
            status, body = await visitor.post(path)
            assert 200 == status, body
            answers.append(body.get("value", body.get("n")))
        await visitor.leave()

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return answers


async def test_every_increment_is_counted_once(database, long, record_property):
    """As many as were sent, through the example, and no answer twice."""
    total = 2000 if long else 300
    with start_example("--processes=2", f"--database-url={database}") as server:
        visitor = Visitor(server.url)
        await visitor.post("/counter/init")

        answers = await count([server.url], visitor.cookie, "/counter/increment", total)

        assert list(range(1, total + 1)) == sorted(answers)
        assert (200, {"value": total}) == await visitor.get("/counter")
        await leave_all(visitor)
    record_property("counted", f"{len(set(answers))} of {total}")


@pytest.mark.parametrize("path", ["/increment", "/add"])
async def test_two_processes_count_together(database, path, long, record_property):
    """The same where both have their share for certain: `increment()`, `lock()`."""
    total = 2000 if long else 300
    with web_process(database) as one, web_process(database) as two:
        visitor = Visitor(one.url)
        await visitor.post("/put/n-of/start")

        answers = await count([one.url, two.url], visitor.cookie, path, total)

        assert list(range(1, total + 1)) == sorted(answers)
        _, body = await visitor.get("/read")
        assert total == body["content"]["n"]
        await leave_all(visitor)
    record_property("counted", f"{len(set(answers))} of {total}")


async def test_increments_wait_for_no_lock(make_cluster, long, record_property):
    """
    Of `increment()` the database logs no wait for a lock, which it would from 50 ms on.

    Its control is in the same log: a block of `lock()` that takes longer.
    """
    total = 2000 if long else 300
    server = make_cluster(settings={"log_lock_waits": True, "deadlock_timeout": "50ms"})
    await asyncio.to_thread(server.start)
    await migrate(server.dsn())

    def waits() -> int:
        return int(server.log.read_text(errors="replace").count("still waiting for"))

    with web_process(server.dsn()) as one, web_process(server.dsn()) as two:
        urls = [one.url, two.url]
        visitor = Visitor(one.url)
        await visitor.post("/put/n-of/start")

        answers = await count(urls, visitor.cookie, "/increment", total)

        assert list(range(1, total + 1)) == sorted(answers)
        assert 0 == waits()
        await count(urls, visitor.cookie, "/add?wait=60", CLIENTS)
        assert waits() > 0
        await leave_all(visitor)
    record_property("waits", f"0 in {total}")


async def test_control_without_the_lock_most_are_lost(database, long, record_property):
    """The same without `lock()`."""
    total = 2000 if long else 300
    with web_process(database) as one, web_process(database) as two:
        visitor = Visitor(one.url)
        await visitor.post("/put/n-of/start")
        await count([one.url, two.url], visitor.cookie, "/add-unlocked", total)
        _, body = await visitor.get("/read")
        await leave_all(visitor)

    assert body["content"]["n"] < total / 2
    record_property("counted", f"{body['content']['n']} of {total}")
