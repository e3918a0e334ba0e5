"""One visitor who waits for a row does not take the database from the others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from tornado.web import RequestHandler

from tests.drivers import DRIVERS, make_store
from tests.factories import make_app, serve
from tests.reliability.load import Mark, Visitor
from tests.sessions import change, created
from tornado_compas_session import SessionMixin
from tornado_compas_session.core.ids import hash_secret, new_secret
from tornado_compas_session.core.types import Identity, NewSecret
from tornado_compas_session.stores.rowqueue import RowQueue

pytestmark = pytest.mark.slow

POOL = 10
OTHERS = 20
#: How long the others are watched, and how long one visitor is inside of lock().
SECONDS = 3.0


class Lock(SessionMixin, RequestHandler):
    async def post(self):
        async with self.session.lock(timeout=10):
            self.session["locked"] = True
            await asyncio.sleep(float(self.get_query_argument("for")))


class SignOut(SessionMixin, RequestHandler):
    def post(self):
        self.session = None


class Regenerate(SessionMixin, RequestHandler):
    def post(self):
        self.session.regenerate()


class SignIn(SessionMixin, RequestHandler):
    def post(self):
        self.session["user_id"] = "ada"
        self.session["mark"] = self.get_query_argument("mark")


class EndOthers(SessionMixin, RequestHandler):
    async def post(self):
        await self.session.end_others()


class Late(SessionMixin, RequestHandler):
    """Writes after its session was loaded, and has ended meanwhile."""

    loaded = 0
    ended: asyncio.Event

    async def post(self):
        Late.loaded += 1
        await Late.ended.wait()
        self.session["late"] = True


class Others:
    """Visitors who read and write, and what they were answered, and when."""

    def __init__(self, url: str) -> None:
        self.visitors = [Visitor(url) for _ in range(OTHERS)]
        self.waits: list[float] = []
        self.wrong: list[int] = []

    async def start(self) -> None:
        for visitor in self.visitors:
            assert 200 == (await visitor.ask("/?mark=other", "POST"))[0]

    async def watch(self) -> float:
        """How many answers they got in a second; what they waited is in `waits`."""
        self.waits.clear()
        until = time.perf_counter() + SECONDS
        await asyncio.gather(*(self._come(each, until) for each in self.visitors))
        return len(self.waits) / SECONDS

    async def _come(self, visitor: Visitor, until: float) -> None:
        turn = 0
        while (start := time.perf_counter()) < until:
            turn += 1
            path, method = (f"/?n={turn}", "POST") if turn % 4 == 0 else ("/", "GET")
            status, _, _ = await visitor.ask(path, method)
            if status != 200:
                self.wrong.append(status)
            self.waits.append(time.perf_counter() - start)
            await asyncio.sleep(0.02)

    @property
    def worst(self) -> float:
        """All but one in a hundred waited less."""
        return sorted(self.waits)[-1 - len(self.waits) // 100]


@contextlib.asynccontextmanager
async def site(
    driver: str, dsn: str, timeout: float, **options: Any
) -> AsyncIterator[tuple[str, Others]]:
    store = await make_store(driver, dsn, size=POOL, timeout=timeout)
    routes = [
        ("/", Mark),
        ("/lock", Lock),
        ("/sign-out", SignOut),
        ("/regenerate", Regenerate),
        ("/late", Late),
        ("/sign-in", SignIn),
        ("/end-others", EndOthers),
    ]
    app = make_app(routes, store, timeout=timeout, **options)
    try:
        with serve(app) as url:
            others = Others(url)
            await others.start()
            yield url, others
            for visitor in others.visitors:
                visitor.drop()
    finally:
        await store.close()


async def several(url: str, number: int, mark: str = "") -> list[Visitor]:
    """So many connections: of one browser with this mark, or of as many browsers."""
    visitors = [Visitor(url) for _ in range(number)]
    for visitor in visitors:
        if mark and visitor is not visitors[0]:
            visitor.cookie = visitors[0].cookie
        else:
            assert 200 == (await visitor.ask(f"/?mark={mark or 'one'}", "POST"))[0]
    return visitors


async def ask(visitors: list[Visitor], path: str) -> list[tuple[int, float]]:
    """They all ask at once: the status of each, and how long it took."""

    async def one(visitor: Visitor) -> tuple[int, float]:
        start = time.perf_counter()
        status, _, _ = await visitor.ask(path, "POST")
        visitor.drop()
        return status, time.perf_counter() - start

    return await asyncio.gather(*map(one, visitors))


@contextlib.asynccontextmanager
async def everybody_waits(url: str, dsn: str) -> AsyncIterator[dict[str, Any]]:
    """
    - A visitor is inside of `lock()`; 30 requests end the same session, and 10 of
      another one ask for a new secret.
    - 25 visitors have a slow block of `lock()` each, on ten connections.
    - Another program has a row locked that 20 requests write to, and one of a user who
      signs out everywhere else, 20 times at once.
    - Ten write to a session that has ended: they are told so at once.
    """
    inside, *leaving = await several(url, 31, "inside")
    turning = await several(url, 11, "turning")
    slow = await several(url, 25)
    writing = await several(url, 20, "written")
    late = await several(url, 10, "late")
    elsewhere = await several(url, 1, "elsewhere")
    ending = await several(url, 20, "ending")
    for visitor, mark in ((elsewhere[0], "elsewhere"), (ending[0], "ending")):
        assert 200 == (await visitor.ask(f"/sign-in?mark={mark}", "POST"))[0]
    elsewhere[0].drop()
    for visitor in ending:
        visitor.cookie = ending[0].cookie

    async def refused() -> list[tuple[int, float]]:
        Late.loaded, Late.ended = 0, asyncio.Event()
        asking = asyncio.ensure_future(ask(late, "/late"))
        # Where the control has refused one at its load, they are never all loaded.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while Late.loaded < len(late):
                    await asyncio.sleep(0.01)
        await other.execute("DELETE FROM compas_session WHERE data->>'mark' = 'late'")
        await other.commit()
        Late.ended.set()
        return await asking

    locker = await psycopg.AsyncConnection.connect(dsn)
    other = await psycopg.AsyncConnection.connect(dsn)
    async with locker, other:
        await locker.execute(
            "SELECT 1 FROM compas_session "
            "WHERE data->>'mark' IN ('written', 'elsewhere') FOR UPDATE"
        )
        waiting = [
            asyncio.ensure_future(ask([inside], f"/lock?for={SECONDS}")),
            asyncio.ensure_future(ask(turning[:1], f"/lock?for={SECONDS}")),
            asyncio.ensure_future(ask(slow, f"/lock?for={SECONDS / 5}")),
        ]
        await asyncio.sleep(0.2)
        waiting += [
            asyncio.ensure_future(ask(leaving, "/sign-out")),
            asyncio.ensure_future(ask(turning[1:], "/regenerate")),
            asyncio.ensure_future(ask(writing, "/?n=1")),
            asyncio.ensure_future(ask(ending, "/end-others")),
        ]
        await asyncio.sleep(0.2)
        told = asyncio.ensure_future(refused())
        found: dict[str, Any] = {}
        yield found
        await locker.rollback()
        answers = [answer for each in await asyncio.gather(*waiting) for answer in each]
        found["statuses"] = {status for status, _ in answers}
        found["late"] = {status for status, _ in await told}
        found["latest"] = max(seconds for _, seconds in await told)


async def compare(
    driver: str, dsn: str, timeout: float = 10
) -> tuple[float, float, dict[str, Any]]:
    """
    What the others get, beside a quiet server: the part of its answers, and how many
    times as long they take. And what those who waited were answered.
    """
    async with site(driver, dsn, timeout) as (url, others):
        quiet, before = await others.watch(), others.worst
        async with everybody_waits(url, dsn) as answers:
            loud, during = await others.watch(), others.worst
    print(
        f"{driver}: {quiet:.0f} answers a second and {loud:.0f} beside those who wait; "
        f"p99 {before * 1000:.0f} ms and {during * 1000:.0f} ms; {answers}"
    )
    return loud / quiet, during / before, {**answers, "wrong": others.wrong}


@pytest.mark.parametrize("driver", ["connect", *DRIVERS])
async def test_the_others_are_served_while_some_wait(database: str, driver: str):
    """
    Whoever waits for a row takes one connection for each session, and half of the pool
    at most: the others get nearly as many answers as on a quiet server.
    """
    part, longer, answers = await compare(driver, database)

    assert part > 0.4
    assert longer < 10  # a bound for a busy machine
    assert [] == answers["wrong"]
    assert {200} == answers["statuses"]
    assert {409} == answers["late"]
    assert answers["latest"] < 1.5


async def test_control_waiting_in_the_database(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    """Where each waits on a connection of its own there is none for the others."""

    @contextlib.asynccontextmanager
    async def turn(self: Any, handle: str, deadline: float) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(RowQueue, "turn", turn)

    part, _, _ = await compare("connect", database, timeout=3)

    assert part < 0.4


@pytest.mark.parametrize("known", [False, True])
async def test_one_users_sign_ins_starve_nobody(database: str, known: bool):
    """
    A user signs in 60 times at once, in new sessions or in those that are there, with a
    bound on how many; the one that is to go is locked, so each takes its time.
    """
    bound = {"max_sessions_per_user": 1}
    async with site("connect", database, 10, **bound) as (url, others):
        [before] = await several(url, 1, "elsewhere")
        await before.ask("/sign-in?mark=elsewhere", "POST")
        before.drop()
        users = await several(url, 60) if known else [Visitor(url) for _ in range(60)]
        quiet = await others.watch()
        locker = await psycopg.AsyncConnection.connect(database)
        async with locker:
            await locker.execute(
                "SELECT 1 FROM compas_session WHERE user_id = 'ada' FOR UPDATE"
            )
            signing_in = asyncio.ensure_future(ask(users, "/sign-in?mark=ada"))
            loud = await others.watch()
            await locker.rollback()
        await signing_in
        print(f"{quiet:.0f} answers a second and {loud:.0f} beside the sign-ins")
        assert loud > quiet * 0.4
        assert [] == others.wrong


async def test_ending_a_session_waits_for_no_other(database: str):
    """
    While blocks of `lock()` have all the places there are, sessions that nobody has
    locked are ended at once: one's own, another's by handle, and all of a user's. And
    who signs in does, where that ends another session.
    """
    secrets = [new_secret() for _ in range(2)]
    store = await make_store("connect", database, size=4)
    busy = [await created(store) for _ in range(2)]
    before = await created(store, secret=secrets[0])
    [one, other, third] = [await created(store, user="ada") for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for handle in busy:
            assert await stack.enter_async_context(store.lock(handle, 0, 1))
        start = time.perf_counter()
        assert await store.delete(one, 0)
        assert await store.revoke(other)
        assert not await store.revoke(other)
        mine, new = map(hash_secret, secrets)
        secret = NewSecret(mine, new, Identity("ada", 1), signed_in=True)
        assert await store.regenerate(before, 0, secret, change())
        assert await store.load(third) is None
        assert 1 == await store.revoke_user("ada")
        assert time.perf_counter() - start < 1
    for handle in busy:
        assert await store.load(handle) is not None
    await store.close()


async def test_a_locked_session_is_ended_too(database: str):
    """By handle or by user it is waited for: none of them is left."""
    store = await make_store("connect", database, size=4, timeout=5)
    handles = [await created(store, user="ada") for _ in range(3)]

    async with store.lock(handles[0], 0, 1):
        ending = asyncio.ensure_future(store.revoke_user("ada"))
        await asyncio.sleep(0.1)
        assert await store.load(handles[0]) is not None
        assert [None, None] == [await store.load(each) for each in handles[1:]]
    assert 3 == await ending

    handle = await created(store)
    async with store.lock(handle, 0, 1):
        ended = asyncio.ensure_future(store.revoke(handle))
        await asyncio.sleep(0.1)
        assert not ended.done()
    assert await ended
    assert await store.load(handle) is None
    await store.close()
