"""
The thirteen faults of the original's sessions, each reproduced there; here one test a
fault at least. The numbers are those of docs/compas.md.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from contextlib import ExitStack

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    KEY,
    NAME,
    Browser,
    Clock,
    TroubledStore,
    make_app,
    rewrite,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin, SettingsError, session_settings
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.ids import new_handle, new_secret
from tornado_compas_session.settings import MANAGER


class Handler(SessionMixin, RequestHandler):
    async def get(self, what):
        await getattr(self, what)()

    async def read(self):
        self.write(json.dumps(dict(self.session)))

    async def write_(self):
        self.session["n"] = self.session.get("n", 0) + 1

    async def wait(self):
        self.settings["entered"].set()
        before = dict(self.session)
        await self.settings["go_on"].wait()
        self.write(json.dumps(before))

    async def sign_in(self):
        self.session.regenerate()
        self.session["user_id"] = 7

    async def destroy(self):
        self.session = None

    async def replace(self):
        self.session = {"replaced": True}

    async def save_and_more(self):
        self.session["n"] = 1
        await self.session.save()

    async def save_then_change(self):
        self.session["n"] = 1
        await self.session.save()
        self.session["n"] = 2

    async def unsaved(self):
        self.session["unsaved"] = True

    async def remember(self):
        self.session["n"] = 1
        self.session.max_age = 1000

    async def write_text(self):
        self.session["text"] = self.get_query_argument("text")


ROUTES = [(r"/(\w+)", Handler)]


def new_id():
    return new_handle() + new_secret()


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
def start(io_loop, store):
    """Serves the handlers above with these options."""
    with ExitStack() as stack:

        def start(**options):
            tornado = {"entered": asyncio.Event(), "go_on": asyncio.Event()}
            tornado |= options.pop("tornado", {})
            served = options.pop("served", {})
            app = make_app(ROUTES, store, tornado=tornado, **options)
            return app, Browser(stack.enter_context(serve(app, **served)))

        yield start


async def data_of(browser):
    return json.loads((await browser.get("/read")).body)


# -- 1 ---------------------------------------------------------------------------------


async def test_1_a_renewal_does_not_undo_a_parallel_write(start):
    """A slow reader that renews writes its expiry, and not what it had read (LC-3)."""
    app, browser = start(renew=0)
    await browser.get("/write_")
    slow = asyncio.ensure_future(browser.get("/wait"))
    await app.settings["entered"].wait()
    await browser.get("/write_")
    app.settings["go_on"].set()

    assert b'{"n": 1}' == (await slow).body
    assert {"n": 2} == await data_of(browser)


async def test_1_a_renewal_does_not_undo_a_parallel_logout(start, store):
    """Nor does it bring back what was ended meanwhile (LC-2, LC-3)."""
    app, browser = start(renew=0)
    await browser.get("/write_")
    elsewhere = Browser(browser.url)
    elsewhere.jar.put(str(browser.jar.get()))
    slow = asyncio.ensure_future(elsewhere.get("/wait"))
    await app.settings["entered"].wait()
    await browser.get("/destroy")
    app.settings["go_on"].set()
    response = await slow

    assert 200 == response.code
    assert 0 == len(store)
    # Nor does it clear a cookie, as it once did: the browser may have another by now.
    assert [] == set_cookies(response, None)
    await elsewhere.get("/read")
    assert elsewhere.jar.get() is None


# -- 2 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [0, 5])
async def test_2_a_fixed_id_is_worth_nothing_after_sign_in(start, store, grace):
    """
    A sign-in gives a new id, and the one that an attacker planted ends at once, grace
    or not: the grace is for the visitor's own requests, and only where the visitor
    stays the same (LC-1).
    """
    _, victim = start(regenerate_grace=grace)
    attacker = Browser(victim.url)
    await attacker.get("/write_")
    victim.jar.put(str(attacker.jar.get()))
    await victim.get("/sign_in")

    assert victim.jar.get() != attacker.jar.get()
    planted = attacker.jar.get()
    assert {} == await data_of(attacker)
    assert planted == attacker.jar.get()
    assert {"n": 1, "user_id": 7} == await data_of(victim)


async def test_2_an_unknown_id_is_never_adopted(start, store):
    """A signed id that the store does not know becomes nobody's (ID-3)."""
    app, browser = start()
    planted = new_id()
    ring = app.settings[MANAGER].keys
    browser.jar.put(ring.sign(NAME, planted))
    await browser.get("/replace")

    assert 1 == len(store)
    assert planted[:12] not in store._rows


# -- 3 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [KEY + ",", "," + KEY, KEY + ",,x", "short", ","])
def test_3_an_empty_or_short_key_is_refused(store, keys):
    """A trailing comma is a fault at start-up, and no key that anybody has (SG-4)."""
    with pytest.raises(SettingsError, match="APP_KEYS"):
        session_settings(store, environ={"APP_NAME": "counter", "APP_KEYS": keys})


async def test_3_a_cookie_signed_with_nothing_is_refused(start, store):
    """What the original accepted after a trailing comma."""
    _, browser = start()
    await browser.get("/write_")
    signed = KeyRing([KEY]).verify(NAME, str(browser.jar.get()), 1000)
    assert signed is not None
    forged = Browser(browser.url)
    forged.jar.put(KeyRing([""]).sign(NAME, signed.value))

    assert {} == await data_of(forged)


# 4: tests/acceptance/test_rotation.py


# -- 5 ---------------------------------------------------------------------------------


async def test_5_values_are_compared_and_no_checksums(start):
    """Two texts with the same CRC-32 are two texts."""
    one, other = _same_checksum()
    _, browser = start()
    await browser.get(f"/write_text?text={one}")
    assert {"text": one} == await data_of(browser)
    await browser.get(f"/write_text?text={other}")

    assert {"text": other} == await data_of(browser)


def _same_checksum():
    """Two texts whose sessions have the same CRC-32; some 80,000 tries."""
    seen: dict[int, str] = {}
    chance = random.Random(5)
    while True:
        text = f"{chance.getrandbits(64):016x}"
        checksum = zlib.crc32(f'{{"text":"{text}"}}'.encode())
        if (other := seen.setdefault(checksum, text)) != text:
            return other, text


# -- 6 ---------------------------------------------------------------------------------


async def test_6_a_secure_cookie_over_plain_http_writes_nothing(start, store, caplog):
    """
    No row without a cookie that can reach the browser, no 500, and one warning that
    names the usual cause.
    """
    _, browser = start(secure=True)
    for _ in range(3):
        response = await browser.get("/write_")
        assert 200 == response.code
        assert [] == set_cookies(response, None)

    assert [] == store.calls
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert 1 == len(warnings)
    assert "xheaders=True" in warnings[0]


async def test_6_behind_a_proxy_it_is_written(start, store, caplog):
    """With `xheaders=True` the application knows that the browser speaks https."""
    _, browser = start(secure=True, served={"xheaders": True})
    response = await browser.get("/write_", headers={"X-Scheme": "https"})

    assert 1 == len(store)
    assert "Secure" in set_cookies(response)[0]
    assert "WARNING" not in [r.levelname for r in caplog.records]


# -- 7 ---------------------------------------------------------------------------------


async def test_7_ending_works_without_auto_commit(start, store):
    """The row goes with the cookie, though nothing else is saved by itself."""
    _, browser = start(auto_commit=False)
    await browser.get("/save_and_more")
    assert 1 == len(store)
    await browser.get("/destroy")

    assert 0 == len(store)
    assert [] == browser.jar.names()


async def test_7_without_auto_commit_only_save_writes(start, store):
    """Everything else is thrown away."""
    _, browser = start(auto_commit=False)
    await browser.get("/unsaved")
    assert (0, []) == (len(store), browser.jar.names())
    await browser.get("/save_and_more")
    await browser.get("/unsaved")

    assert {"n": 1} == await data_of(browser)


async def test_7_save_and_the_end_write_once(start, store):
    """What `save()` has written is not written again."""
    _, browser = start()
    await browser.get("/save_and_more")
    assert ["create"] == store.calls
    store.calls.clear()
    await browser.get("/save_then_change")

    # The first save() of this request found nothing changed: n was 1 already.
    assert ["load", "save"] == store.calls
    assert {"n": 2} == await data_of(browser)


# -- 8 ---------------------------------------------------------------------------------


async def test_8_use_extends_a_browser_session(io_loop):
    """`max_age="session"`: 30 minutes from the last use, and not the last write."""
    clock = Clock()
    store = TroubledStore(clock=clock)
    with serve(make_app(ROUTES, store, max_age="session")) as url:
        browser = Browser(url)
        await browser.get("/write_")
        for _ in range(5):
            clock.now += 29 * 60
            assert {"n": 1} == await data_of(browser)
        clock.now += 31 * 60
        assert {} == await data_of(browser)

    assert browser.jar.get() is None


# -- 9 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["unknown", "expired", "destroyed"])
async def test_9_a_cookie_without_a_session_is_cleared(start, store, gone):
    """Both cookies go when the store says so, and the next request costs no query."""
    app, browser = start(keep_public_cookie=True)
    await browser.get("/write_")
    assert [NAME, NAME + ".public"] == browser.jar.names()
    if gone == "unknown":
        browser.jar.put(app.settings[MANAGER].keys.sign(NAME, new_id()))
    elif gone == "expired":
        rewrite(store, expires=0.0)
    else:
        await store.revoke_all()
    assert {} == await data_of(browser)
    assert [] == browser.jar.names()
    store.calls.clear()
    await browser.get("/read")

    assert [] == store.calls


async def test_9_and_only_then(start, store):
    """Not when the signature is unknown, and not when the store does not answer."""
    _, browser = start(keep_public_cookie=True)
    await browser.get("/write_")
    before = browser.jar.header()
    store.failing = "load"
    assert 503 == (await browser.get("/read")).code
    assert before == browser.jar.header()
    stranger = Browser(browser.url)
    stranger.jar.put(KeyRing(["x-key-that-nobody-here-knows"]).sign(NAME, new_id()))
    response = await stranger.get("/read")

    assert [] == set_cookies(response, None)


# -- 10 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["", "x", "a" * 12, "a" * 24, "a" * 35, "a" * 37, "a" * 4000, "ü" * 18]
)
async def test_10_a_signed_id_of_the_wrong_shape_is_anonymous(start, store, value):
    """As one of another library with the same key; it costs no query (ID-5)."""
    app, browser = start()
    ring = app.settings[MANAGER].keys
    header = {"Cookie": f"{NAME}={ring.sign(NAME, value)}"}
    response = await browser.get("/read", headers=header)

    assert (200, b"{}") == (response.code, response.body)
    assert [] == store.calls


# 11: tests/acceptance/test_cors.py


# -- 12 --------------------------------------------------------------------------------


async def test_12_ending_no_session_does_nothing(start, store):
    """No delete, no query, no cookie (LC-5)."""
    _, browser = start(keep_public_cookie=True)
    response = await browser.get("/destroy")

    assert [] == store.calls
    assert [] == set_cookies(response, None)


# -- 13 --------------------------------------------------------------------------------


async def test_13_the_public_cookie_follows_the_sessions_own_lifetime(start):
    """Both have the same Max-Age, now and whenever they are sent again."""
    _, browser = start(keep_public_cookie=True)
    for path in ("/remember", "/sign_in"):
        response = await browser.get(path)
        for name in (NAME, NAME + ".public"):
            assert "Max-Age=1000;" in set_cookies(response, name)[0]


async def test_13_the_public_cookie_is_not_sent_if_the_save_failed(start, store):
    """It says that there is probably a session; there is none."""
    _, browser = start(keep_public_cookie=True)
    store.failing = "create"
    response = await browser.get("/write_")

    assert 503 == response.code
    assert [] == browser.jar.names()
