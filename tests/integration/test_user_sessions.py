"""A user's sessions: found, listed, ended, bounded; and how long sessions live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler

from tests.factories import Browser, Clock, make_app, serve
from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
    SessionMixin,
)
from tornado_compas_session.stores.pools.queries import statements

HOUR = 3600


class SignIn(SessionMixin, RequestHandler):
    def post(self) -> None:
        self.session["user_id"] = self.get_query_argument("user", "ada")
        self.session.regenerate()
        if remember := self.get_query_argument("remember", ""):
            self.session.max_age = float(remember)
        if absolute := self.get_query_argument("absolute", ""):
            self.session.absolute_max_age = float(absolute)


class Who(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.write({"user": self.session.get("user_id"), "new": self.session.is_new})


class Yours(SessionMixin, RequestHandler):
    def initialize(self, store: Any) -> None:
        self.store = store

    async def get(self) -> None:
        found = await self.store.sessions_of(
            self.session["user_id"], current=self.session.handle
        )
        self.write(
            {
                "sessions": [
                    {
                        "handle": info.handle,
                        "current": info.current,
                        "agent": info.user_agent,
                        "address": info.address,
                        "expires": info.expires.timestamp(),
                    }
                    for info in found
                ]
            }
        )

    async def delete(self) -> None:
        if handle := self.get_query_argument("handle", ""):
            ended = int(await self.store.revoke(handle))
        else:
            ended = await self.store.revoke_user(
                self.session["user_id"], except_handle=self.session.handle
            )
        self.write({"ended": ended})


class Others(SessionMixin, RequestHandler):
    """The same by the session's own methods."""

    async def get(self) -> None:
        self.write(
            {
                "devices": [
                    [info.handle, info.current] for info in await self.session.devices()
                ]
            }
        )

    async def delete(self) -> None:
        self.write({"ended": await self.session.end_others()})

    async def put(self) -> None:
        self.session["user_id"] = "ada"  # not saved yet
        self.write({"ended": await self.session.end_others()})


class Locked(SessionMixin, RequestHandler):
    """Signs in inside of a lock."""

    async def post(self) -> None:
        async with self.session.lock():
            self.session["user_id"] = "ada"


class Busy(SessionMixin, RequestHandler):
    """Writes with each request."""

    def post(self) -> None:
        self.session["visits"] = self.session.get("visits", 0) + 1


class Password(SessionMixin, RequestHandler):
    """A change of the password: the new id stays, and every other session ends."""

    def initialize(self, store: Any) -> None:
        self.store = store

    async def post(self) -> None:
        self.require_fresh(600)
        self.session.regenerate()
        await self.session.save()
        await self.store.revoke_user(
            self.session["user_id"], except_handle=self.session.handle
        )


def app_with(store: Any, **options: Any) -> Any:
    mine = {"store": store}
    return make_app(
        [
            ("/sign-in", SignIn),
            ("/who", Who),
            ("/yours", Yours, mine),
            ("/others", Others),
            ("/locked", Locked),
            ("/busy", Busy),
            ("/password", Password, mine),
        ],
        store,
        **options,
    )


async def user_of(browser: Browser) -> Any:
    return json.loads((await browser.get("/who")).body)["user"]


async def sessions_in(browser: Browser) -> list[dict[str, Any]]:
    return list(json.loads((await browser.get("/yours")).body)["sessions"])


async def signed_in(url: str, query: str = "", agent: str = "Firefox") -> Browser:
    browser = Browser(url)
    headers = {"User-Agent": agent}
    response = await browser.post(f"/sign-in?{query}", headers=headers)
    assert 200 == response.code
    return browser


@pytest.fixture(params=["memory", "postgres"])
def store(
    request: pytest.FixtureRequest, io_loop: IOLoop, database: str
) -> Iterator[Any]:
    """Each of the two stores."""
    if request.param == "memory":
        yield MemorySessionStore()
        return
    made = io_loop.run_sync(lambda: PostgresSessionStore.connect(database))
    yield made
    io_loop.run_sync(made.close)


# -- listing and ending ----------------------------------------------------------------


async def test_all_devices_are_listed_and_one_is_ended_there(store: Any) -> None:
    """The current one is marked; the one that is ended is anonymous from then on."""
    with serve(app_with(store, record_client=True)) as url:
        laptop = await signed_in(url, agent="Laptop")
        phone = await signed_in(url, agent="Phone")
        await signed_in(url, "user=grace", agent="Stranger")

        listed = await sessions_in(laptop)
        assert {"Laptop": True, "Phone": False} == {
            found["agent"]: found["current"] for found in listed
        }
        assert {"127.0.0.1"} == {found["address"] for found in listed}

        [there] = [found["handle"] for found in listed if not found["current"]]
        answer = await laptop.ask(f"/yours?handle={there}", "DELETE")
        assert {"ended": 1} == json.loads(answer.body)
        assert await user_of(phone) is None
        assert "ada" == await user_of(laptop)
        answer = await laptop.ask(f"/yours?handle={there}", "DELETE")
        assert {"ended": 0} == json.loads(answer.body)


async def test_everywhere_else_is_one_call(store: Any) -> None:
    """All but the current one end, and nobody else's."""
    with serve(app_with(store)) as url:
        browsers = [await signed_in(url) for _ in range(4)]
        grace = await signed_in(url, "user=grace")

        answer = await browsers[1].ask("/yours", "DELETE")

        assert {"ended": 3} == json.loads(answer.body)
        assert [None, "ada", None, None] == [await user_of(b) for b in browsers]
        assert "grace" == await user_of(grace)


async def test_a_session_ends_the_others_and_lists_its_devices(store: Any) -> None:
    """`end_others()` and `devices()`, without the store and without a handle."""
    with serve(app_with(store)) as url:
        here, there, grace = [
            await signed_in(url, f"user={user}") for user in ("ada", "ada", "grace")
        ]
        devices = json.loads((await here.get("/others")).body)["devices"]
        assert [False, True] == sorted(current for _, current in devices)
        mine = {found["handle"]: found["current"] for found in await sessions_in(here)}
        assert mine == dict(devices)

        assert {"ended": 1} == json.loads((await here.ask("/others", "DELETE")).body)

        assert ["ada", None, "grace"] == [
            await user_of(browser) for browser in (here, there, grace)
        ]
        [device] = json.loads((await here.get("/others")).body)["devices"]
        assert device[1]


async def test_a_sign_in_can_end_all_other_sessions_at_once(store: Any) -> None:
    """What is not saved yet is, first: the new session is not among those that end."""
    with serve(app_with(store)) as url:
        old = [await signed_in(url) for _ in range(2)]
        for browser in (Browser(url), await signed_in(url, "user=grace")):
            answer = await browser.ask("/others", "PUT", body="")
            assert {"ended": len(old)} == json.loads(answer.body)
            assert "ada" == await user_of(browser)
            assert [None] * len(old) == [await user_of(each) for each in old]
            old = [browser]


async def test_nobody_has_no_devices(store: Any) -> None:
    """Where nobody is signed in it is an error that says so, and ends nothing."""
    with serve(app_with(store)) as url:
        ada, nobody = await signed_in(url), Browser(url)
        for method in ("GET", "DELETE"):
            assert 500 == (await nobody.ask("/others", method)).code
        assert "ada" == await user_of(ada)


async def test_after_a_password_change_only_this_session_is_left(store: Any) -> None:
    """With a new id, so that a stolen one is of no use either."""
    with serve(app_with(store, regenerate_grace=0)) as url:
        here, there = await signed_in(url), await signed_in(url)
        stolen = Browser(url)
        stolen.jar.put(here.jar.get() or "")

        assert 200 == (await here.post("/password")).code

        assert "ada" == await user_of(here)
        assert [None, None] == [await user_of(b) for b in (there, stolen)]


async def test_listing_is_no_use(store: Any) -> None:
    """Who looks at the list extends none of the sessions on it."""
    with serve(app_with(store, renew=0)) as url:
        idle, busy = await signed_in(url), await signed_in(url)
        before = {s["handle"]: s["expires"] for s in await sessions_in(busy)}
        for _ in range(3):
            await sessions_in(busy)
        after = {s["handle"]: s["expires"] for s in await sessions_in(busy)}

        [there] = [s["handle"] for s in await sessions_in(idle) if s["current"]]
        assert before[there] == after[there]


async def test_client_is_recorded_only_on_request(store: Any) -> None:
    """Addresses are personal data: they are not kept unless somebody wants them."""
    with serve(app_with(store)) as url:
        browser = await signed_in(url)
        [found] = await sessions_in(browser)

    assert (None, None) == (found["agent"], found["address"])


async def test_a_long_user_agent_is_cut(store: Any) -> None:
    """A header of a stranger does not fill the table."""
    with serve(app_with(store, record_client=True)) as url:
        browser = await signed_in(url, agent="x" * 5000)
        [found] = await sessions_in(browser)

    assert 256 == len(found["agent"])


async def test_the_list_gives_no_cookie_away(store: Any) -> None:
    """A handle neither is an id nor finds a session when used as one."""
    with serve(app_with(store, signed=False)) as url:
        browser = await signed_in(url)
        [found] = await sessions_in(browser)
        thief = Browser(url)
        thief.jar.put(found["handle"])
        assert await user_of(thief) is None
        thief.jar.put(found["handle"][:24])
        assert await user_of(thief) is None


async def test_more_than_so_many_sessions_end_the_one_unused_longest(
    store: Any,
) -> None:
    """With `max_sessions_per_user=3` the fourth sign-in is the first one's end."""
    with serve(app_with(store, max_sessions_per_user=3, renew=0)) as url:
        first, second, third = [await signed_in(url) for _ in range(3)]
        assert "ada" == await user_of(first)  # used, so the second is the oldest now
        other = await signed_in(url, "user=grace")
        fourth = await signed_in(url)

        browsers = (first, second, third, fourth, other)
        assert ["ada", None, "ada", "ada", "grace"] == [
            await user_of(browser) for browser in browsers
        ]


async def test_sign_ins_at_once_keep_the_bound(store: Any) -> None:
    """However many come at the same moment, no sign-in fails and no more are left."""
    with serve(app_with(store, max_sessions_per_user=3)) as url:
        browsers = await asyncio.gather(*(signed_in(url) for _ in range(20)))
        last = await signed_in(url)

        assert 3 == len(await sessions_in(last))
        users = [await user_of(browser) for browser in [*browsers, last]]
        assert 3 == users.count("ada")


async def test_a_sign_in_beside_a_busy_session_is_never_the_one_that_ends(
    store: Any,
) -> None:
    """
    Though the other one is the one used last, at every moment; that one ends, though
    its row is locked at many a moment.
    """
    with serve(app_with(store, max_sessions_per_user=1, renew=0)) as url:
        for _ in range(3):
            old = await signed_in(url)
            fresh = Browser(url)
            await asyncio.gather(
                *(old.post("/busy") for _ in range(6)),
                fresh.post("/sign-in"),
                *(old.post("/busy") for _ in range(6)),
            )
            assert "ada" == await user_of(fresh)
            assert 1 == len(await sessions_in(fresh))


async def test_a_sign_in_inside_of_a_lock_keeps_the_bound(store: Any) -> None:
    """As any other: the others end with it, and it does not."""
    with serve(app_with(store, max_sessions_per_user=2)) as url:
        old = [await signed_in(url) for _ in range(2)]
        visitors = [Browser(url) for _ in range(4)]
        for visitor in visitors:
            await visitor.post("/busy")
        answers = await asyncio.gather(*(each.post("/locked") for each in visitors))
        assert [200] * 4 == [answer.code for answer in answers]

        users = [await user_of(each) for each in old + visitors]
        assert [None, None] == users[:2]
        assert 2 == users.count("ada")
        assert 200 == (await old[0].post("/locked")).code
        assert "ada" == await user_of(old[0])


async def test_signing_in_again_here_costs_no_other_session(store: Any) -> None:
    """The same session with a new id is still one session."""
    with serve(app_with(store, max_sessions_per_user=2)) as url:
        first, second = await signed_in(url), await signed_in(url)
        for _ in range(3):
            await second.post("/sign-in")

        assert ["ada", "ada"] == [await user_of(first), await user_of(second)]
        assert 2 == len(await sessions_in(first))


# -- lifetimes -------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_use_extends_the_idle_lifetime(clock: Clock) -> None:
    """Unused for longer than max_age it ends; each use starts that anew."""
    store = MemorySessionStore(clock=clock)
    with serve(app_with(store, max_age=HOUR)) as url:
        browser = await signed_in(url)
        for _ in range(3):
            clock.now += HOUR - 1
            assert "ada" == await user_of(browser)
        clock.now += HOUR + 1
        assert await user_of(browser) is None


async def test_absolute_lifetime_ends_a_busy_session(clock: Clock) -> None:
    """However busy, and even though its id was regenerated."""
    store = MemorySessionStore(clock=clock)
    with serve(app_with(store, max_age=HOUR, absolute_max_age=3 * HOUR)) as url:
        browser = await signed_in(url)
        for _ in range(5):
            clock.now += HOUR / 2
            assert "ada" == await user_of(browser)
            await browser.post("/sign-in")
        clock.now += HOUR / 2 + 1
        assert await user_of(browser) is None


async def test_a_session_can_have_lifetimes_of_its_own(clock: Clock) -> None:
    """ "Remember me" outlives the others, and an own absolute one ends it."""
    store = MemorySessionStore(clock=clock)
    with serve(app_with(store, max_age=HOUR)) as url:
        remembered = await signed_in(url, f"remember={30 * 24 * HOUR}")
        usual = await signed_in(url)
        brief = await signed_in(url, f"absolute={2 * HOUR}")
        clock.now += HOUR - 60
        assert ["ada"] * 3 == [await user_of(b) for b in (remembered, usual, brief)]
        clock.now += HOUR - 60
        assert ["ada"] * 3 == [await user_of(b) for b in (remembered, usual, brief)]
        clock.now += 121
        assert await user_of(brief) is None
        clock.now += 29 * 24 * HOUR
        assert ["ada", None] == [await user_of(b) for b in (remembered, usual)]


async def test_lifetime_without_renewal_is_fixed(clock: Clock) -> None:
    """`renew=False`: it ends at the time that it was given when it began."""
    store = MemorySessionStore(clock=clock)
    with serve(app_with(store, max_age=HOUR, renew=False)) as url:
        browser = await signed_in(url)
        clock.now += HOUR - 1
        assert "ada" == await user_of(browser)
        clock.now += 2
        assert await user_of(browser) is None


async def test_what_is_sensitive_asks_for_a_recent_sign_in(clock: Clock) -> None:
    """`require_fresh` is a 401 later on, and fine after signing in again (LC-13)."""
    store = MemorySessionStore(clock=clock)
    with serve(app_with(store)) as url:
        browser = await signed_in(url)
        clock.now += 599
        assert 200 == (await browser.post("/password")).code  # it regenerates
        clock.now += 601
        assert 401 == (await browser.post("/password")).code
        assert "ada" == await user_of(browser)
        await browser.post("/sign-in")
        assert 200 == (await browser.post("/password")).code


# -- a cookie with another name --------------------------------------------------------


async def test_renamed_cookie_is_read_while_it_lives(store: Any) -> None:
    """
    After a rename nobody is signed out: the old cookie finds the session, the new one
    goes out, and the old one is cleared at the end of the session.
    """
    with serve(app_with(store, key="old.sess")) as url:
        browser = await signed_in(url)
    jar = browser.jar
    with serve(app_with(store, key="new.sess", previous_keys=("old.sess",))) as url:
        browser.url = url
        assert "ada" == await user_of(browser)
        assert "new.sess" in jar.names()
        assert "ada" == await user_of(browser)
    with serve(app_with(store, key="new.sess")) as url:
        browser.url = url
        assert "ada" == await user_of(browser)


async def test_old_cookie_is_not_read_without_being_named(store: Any) -> None:
    """The name is part of what is signed, and of what is looked for."""
    with serve(app_with(store, key="old.sess")) as url:
        browser = await signed_in(url)
    with serve(app_with(store, key="new.sess")) as url:
        browser.url = url
        assert await user_of(browser) is None
        browser.jar.put(browser.jar.get("old.sess") or "", "new.sess")
        assert await user_of(browser) is None


# -- what is locked --------------------------------------------------------------------


async def held(
    database: str, store: PostgresSessionStore, end: Any, meanwhile: str = ""
) -> Any:
    """What `end` comes to, with a row locked until it has begun to wait for it."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "SELECT 1 FROM compas_session WHERE handle = 'locked000000' FOR UPDATE"
        )
        ending = asyncio.ensure_future(end)
        await asyncio.sleep(0.2)
        assert not ending.done()
        connection.execute(meanwhile.encode() or b"SELECT 1")
        connection.commit()
    try:
        return await ending
    finally:
        await store.close()


async def rows_of(database: str) -> PostgresSessionStore:
    """A store with four sessions of ada; the one called `old` has expired."""
    with psycopg.connect(database, autocommit=True) as connection:
        for handle, days in (("locked", 1), ("kept", 1), ("other", 1), ("old", -1)):
            connection.execute(
                "INSERT INTO compas_session (handle, secret_hash, data, user_id, "
                "created_at, expires_at) VALUES (rpad(%s, 12, '0'), sha256('x'), "
                "'{}', 'ada', now() - interval '2 days', "
                "now() + %s * interval '1 day')",
                (handle, days),
            )
    return await PostgresSessionStore.connect(database)


async def test_what_waits_for_a_lock_ends_what_it_should(database: str) -> None:
    """All of the user's but the one that is kept, and none that has expired."""
    store = await rows_of(database)
    ended = await held(
        database, store, store.revoke_user("ada", except_handle="kept00000000")
    )

    assert 2 == ended
    with psycopg.connect(database) as connection:
        left = connection.execute("SELECT handle FROM compas_session").fetchall()
    assert [("kept00000000",), ("old000000000",)] == sorted(left)


async def test_a_surplus_session_that_is_somebody_elses_by_now_stays(
    database: str,
) -> None:
    """Its visitor has changed since it was chosen: it is no session of ada's."""
    store = await rows_of(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "UPDATE compas_session SET user_id = 'eve' WHERE handle = 'other0000000'"
        )
    chosen = ["other0000000", "kept00000000"]
    each = [{"handle": handle} for handle in chosen]
    try:
        for name, values in (
            ("end_surplus", [{"handles": chosen}]),
            ("end_surplus_one", each),
        ):
            for given in values:
                await store._database.alone(name, user_id="ada", **given)
            left = {info.handle for info in await store.sessions_of("eve")}
            assert {"other0000000"} == left
        assert ["locked000000"] == [
            info.handle for info in await store.sessions_of("ada")
        ]
    finally:
        await store.close()


async def test_users_with_most_sessions_are_users_with_live_ones(
    database: str,
) -> None:
    """Neither those without a user are counted, nor those that have expired."""
    store = await rows_of(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "UPDATE compas_session SET user_id = NULL WHERE handle ~ '^(kept|other)'"
        )
    try:
        assert [("ada", 1)] == await store.top_users()
    finally:
        await store.close()


async def test_what_expires_while_its_lock_is_waited_for_was_not_ended(
    database: str,
) -> None:
    """It ended by itself."""
    store = await rows_of(database)

    assert not await held(
        database,
        store,
        store.revoke("locked000000"),
        "UPDATE compas_session SET expires_at = now() - interval '1 second' "
        "WHERE handle = 'locked000000'",
    )


# -- many ------------------------------------------------------------------------------

FILL = """
INSERT INTO compas_session (handle, secret_hash, data, user_id, expires_at, updated_at)
SELECT lpad(n::text, 12, '0'), sha256(n::text::bytea), '{{"n": 1}}',
       CASE n % 10 WHEN 0 THEN 'ada' ELSE 'u' || n END,
       now() + interval '1 day', now() - n * interval '1 millisecond'
  FROM generate_series(1, {count}) n
"""
#: By the user, or by the key of the row.
PLANS = {
    "sessions_of": ("compas_session_user_id", {"user_id": "ada", "limit": 50}),
    "revoke_user": ("compas_session_user_id", {"user_id": "ada", "handle": ""}),
    "surplus_sessions": (
        "compas_session_user_id",
        {"user_id": "ada", "handle": "000000000010", "others": 5},
    ),
    "end_surplus": (
        "compas_session_pkey",
        {"user_id": "ada", "handles": "{000000000010,000000000020}"},
    ),
    "revoke": ("compas_session_pkey", {"handle": "000000000010"}),
}


def plan(connection: psycopg.Connection[Any], name: str, values: Any) -> str:
    """How the server runs a statement of ours with these values."""
    statement = statements()[name]
    connection.execute(f"PREPARE it AS {statement.numbered}".encode())
    given = ", ".join(f"'{values[each]}'" for each in statement.parameters)
    rows = connection.execute(f"EXPLAIN EXECUTE it({given})".encode()).fetchall()
    connection.execute("DEALLOCATE it")
    return "\n".join(row[0] for row in rows)


async def _one_user_among_many(database: str, count: int) -> None:
    store = await PostgresSessionStore.connect(database, timeout=120)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(FILL.format(count=count).encode())
        connection.execute("VACUUM ANALYZE compas_session")
        for name, (index, values) in PLANS.items():
            text = plan(connection, name, values)
            assert "Seq Scan" not in text, f"{name}\n{text}"
            assert index in text, f"{name}\n{text}"
    try:
        listed = await store.sessions_of("ada")
        assert 50 == len(listed)
        used = [info.last_used_at for info in listed]
        assert sorted(used, reverse=True) == used
        kept = listed[7].handle
        assert count // 10 - 1 == await store.revoke_user("ada", except_handle=kept)
        assert [kept] == [info.handle for info in await store.sessions_of("ada")]
        assert count - count // 10 + 1 == (await store.stats())["live"]
    finally:
        await store.close()


@pytest.mark.slow
async def test_one_user_with_many_sessions_among_many(database: str) -> None:
    """20,000 of 200,000: the first 50 are listed, and all ended, by the index."""
    await _one_user_among_many(database, 200_000)


@pytest.mark.long
async def test_one_user_with_many_sessions_among_many_long(database: str) -> None:
    """100,000 of 1,000,000."""
    await _one_user_among_many(database, 1_000_000)
