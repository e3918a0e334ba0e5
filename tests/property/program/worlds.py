"""The worlds in which schedules are played, each with an eye on some of the faults."""

from __future__ import annotations

from tests.property.program.schedule import World

BASIC = "read", "read", "write", "login", "regen"

#: Requests of one visitor side by side, answers in any order.
RACES = World(
    "races",
    (*BASIC, "logout", "fill", "clear"),
    options=({}, {}, {"renew": 0}, {"keep_public_cookie": True}),
)
#: More than one user at one browser, sessions revoked, ways of signing in.
PEOPLE = World(
    "people",
    ("read", "write", "login", "signin", "regen", "logout", "clear", "replace"),
    users=("vera", "vera", "victor"),
    revoke=1,
)
#: COOKIE_URL and APP_KEYS change, process by process.
DEPLOYS = World(
    "deploys",
    (*BASIC, "logout", "clear"),
    deploy=2,
    rotate=1,
    lose=0,
    options=({}, {"renew": 0}, {"keep_public_cookie": True}),
)
#: Sessions and cookies that live by their use, for weeks.
LIFETIMES = World(
    "lifetimes",
    ("read", "read", "read", "write", "login", "regen"),
    wait=4,
    options=({}, {"renew": 0}, {"renew": 600}),
)
#: Answers that never arrive.
LOSSES = World(
    "losses",
    ("read", "write", "login", "signin", "regen", "clear"),
    lose=3,
    wait=3,
    go=1,
    stops=("answer", "answer", "pre"),
    users=("vera", "vera", "victor"),
    options=({}, {"renew": 0}),
)
#: All the ways to answer.
ANSWERS = World(
    "answers",
    (
        *("write", "login", "stream", "length", "nothing", "nothing_flushed", "late"),
        *("hurry", "save", "lock", "add", "bad", "fail", "upload", "forget", "read"),
    ),
    fail=1,
    methods=("GET", "GET", "HEAD"),
)
#: A store that fails now and then, and replies that are lost.
OUTAGES = World(
    "outages",
    (*BASIC, "save", "lock", "logout", "fill", "clear"),
    fail=3,
    stops=("load", "commit", "reply", "pre", "mid", "answer"),
)
#: Somebody has planted an id, or copied one.
ATTACKS = World(
    "attacks",
    ("read", "write", "login", "signin", "regen", "logout", "clear"),
    attack=("read", "write", "login", "regen", "logout", "clear", "relock"),
    lose=0,
    deploy=1,
)
#: Without a store: the data is in the cookie.
COOKIE_ONLY = World(
    "cookie only",
    ("read", "read", "write", "login", "logout"),
    stops=("wire", "upload", "pre", "answer"),
    store=False,
)

WORLDS = (
    RACES,
    PEOPLE,
    DEPLOYS,
    LIFETIMES,
    LOSSES,
    ANSWERS,
    OUTAGES,
    ATTACKS,
    COOKIE_ONLY,
)
