"""Cookie headers that no browser sends, as bytes on a socket."""

from __future__ import annotations

import random
import subprocess
import sys
from base64 import urlsafe_b64encode

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    KEY,
    NAME,
    NEWER_KEY,
    Browser,
    CountingStore,
    Raw,
    load_session,
    make_app,
    make_manager,
    rewrite,
    serve,
)
from tornado_compas_session import SessionMixin
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write({"data": dict(self.session)})

    def post(self):
        self.session["who"] = self.get_query_argument("who")


@pytest.fixture
def store():
    return CountingStore()


@pytest.fixture
def url(io_loop, store):
    with serve(make_app([("/.*", Page)], store)) as url:
        yield url


def new_id():
    return new_handle() + new_secret()


async def cookie_of(url, who):
    """The signed value of a fresh session of this visitor."""
    browser = Browser(url)
    await browser.post(f"/?who={who}")
    return str(browser.jar.get()).encode()


ADA = b'{"data": {"who": "ada"}}'
EVE = b'{"data": {"who": "eve"}}'
NOBODY = b'{"data": {}}'
OWN = NAME.encode()


async def ask(url, *lines):
    async with await Raw.open(url) as client:
        return await client.ask(*lines)


@pytest.mark.parametrize(
    "space",
    [b"\xa0", b"\x85", b"\xc2\xa0", b"\xe2\x80\x80", b"\xe3\x80\x80", b"\x1c", b"\x0b"],
)
@pytest.mark.parametrize("where", ["before", "after"])
async def test_white_space_of_unicode_does_not_make_the_name(url, space, where):
    """
    A validly signed session under a name that only looks like ours is nobody's, or the
    request is refused as a whole (CK-10, T7).
    """
    value = await cookie_of(url, "eve")
    name = space + OWN if where == "before" else OWN + space
    for prefix in (b"", b"a=1; "):
        status, _, body = await ask(url, b"Cookie: " + prefix + name + b"=" + value)
        assert (200, NOBODY) == (status, body) or 400 == status


async def test_a_host_cookie_cannot_be_faked(io_loop, store):
    """The one with the prefix wins over one that poses as it (CK-10)."""
    key = "__Host-sid"
    app = make_app([("/", Page)], store, key=key, secure=True)
    with serve(app, xheaders=True) as url:
        https = b"X-Scheme: https"
        values = {}
        for who in (b"ada", b"eve"):
            async with await Raw.open(url) as client:
                length = b"Content-Length: 0"
                path = b"/?who=" + who
                _, headers, _ = await client.ask(
                    https, length, method=b"POST", path=path
                )
            values[who] = headers["Set-Cookie"].partition(";")[0].encode()
        for fake in (b"\xa0", b"\x85"):
            lines = b"Cookie: " + values[b"ada"] + b"; " + fake + values[b"eve"]
            assert ADA == (await ask(url, https, lines))[2]
            assert (
                NOBODY
                == (await ask(url, https, b"Cookie: " + fake + values[b"eve"]))[2]
            )


async def test_several_cookies_of_the_name(url, store, caplog):
    """One valid one is taken, two of different sessions are not guessed at (CK-11)."""
    ada, eve = await cookie_of(url, "ada"), await cookie_of(url, "eve")
    own, other, bad = OWN + b"=" + ada, OWN + b"=" + eve, OWN + b"=garbage"
    for lines, expected in (
        (own, ADA),
        (own + b"; " + own, ADA),
        (bad + b"; " + own, ADA),
        (own + b"; " + bad, ADA),
        (own + b"; " + other, NOBODY),
        (other + b"; " + own, NOBODY),
        (bad + b"; " + bad, NOBODY),
    ):
        assert expected == (await ask(url, b"Cookie: " + lines))[2]

    assert 1 == caplog.text.count("several valid session cookies")
    for value in (ada, eve):
        assert value.decode() not in caplog.text


async def test_a_flood_of_candidates_is_cut_off(url, store):
    """After eight values of the name nobody looks any further (CK-11)."""
    ada = await cookie_of(url, "ada")
    junk = b"; ".join(OWN + b"=%d" % number for number in range(1000))
    line = b"Cookie: " + junk + b"; " + OWN + b"=" + ada

    assert NOBODY == (await ask(url, line))[2]
    assert (200, ADA) == (await ask(url, b"Cookie: " + OWN + b"=" + ada))[::2]


async def test_several_cookie_lines(url):
    """A proxy that came from HTTP/2 may have split the header (CK-12)."""
    ada = OWN + b"=" + await cookie_of(url, "ada")
    for lines in (
        [b"Cookie: a=1", b"Cookie: " + ada],
        [b"Cookie: " + ada, b"Cookie: b=2"],
        [b"cookie: a=1", b"COOKIE: b=2; " + ada, b"Cookie: c=3"],
    ):
        assert ADA == (await ask(url, *lines))[2]


async def test_only_cookies_carry_the_id(url, store):
    """Not the query, a form, a header or the path (ID-4)."""
    ada = (await cookie_of(url, "ada")).decode()
    signed = KeyRing([KEY]).verify(NAME, ada, 1000)
    assert signed is not None
    session_id = signed.value.decode()
    assert await load_session(
        make_manager(store, signed=False), [f"{NAME}={session_id}"]
    )
    store.calls.clear()
    for value in (ada, session_id):
        for path, headers in (
            (f"/?{NAME}={value}", {}),
            (f"/{value}", {}),
            ("/", {"Authorization": f"Bearer {value}"}),
            ("/", {"X-Session-Id": value}),
            ("/", {NAME: value}),
            ("/", {"Cookie2": f"{NAME}={value}"}),
        ):
            assert NOBODY == (await Browser(url).get(path, headers=headers)).body

    assert [] == store.calls


async def test_what_the_table_shows_is_no_id(url, store):
    """A stolen hash, however written, with or without the handle, is no id (ID-7)."""
    await cookie_of(url, "ada")
    [row] = store._rows.values()
    handle, digest = row.record.handle, row.record.secret_hash
    ring = KeyRing([KEY])
    for value in (
        handle,
        handle * 3,
        digest.hex(),
        digest.hex()[:36],
        handle + digest.hex()[:24],
        urlsafe_b64encode(digest).decode(),
        handle + urlsafe_b64encode(digest)[:24].decode(),
        handle.encode() + digest[:24],
        handle + new_secret(),
        digest,
    ):
        line = f"Cookie: {NAME}={ring.sign(NAME, value)}".encode()
        assert NOBODY == (await ask(url, line))[2]


async def test_names_are_bound(url):
    """A value signed for another cookie of the application is not ours (SG-3)."""
    ring = KeyRing([KEY])
    for name in ("remember_me", "counter", "counter.ses", NAME + ".public", "s"):
        line = f"Cookie: {NAME}={ring.sign(name, new_id())}".encode()
        assert NOBODY == (await ask(url, line))[2]


async def test_junk_is_anonymous(url, store, long):
    """
    Mutated, cut, doubled and random cookies: no 5xx, none accepted, no query (R13).
    """
    ada = await cookie_of(url, "ada")
    store.calls.clear()
    chance = random.Random(13)
    alphabet = bytes(b for b in range(33, 127) if b != ord(";"))
    async with await Raw.open(url) as client:
        for number in range(20_000 if long else 600):
            value = bytearray(ada)
            kind = number % 5
            if kind == 0:
                value[chance.randrange(len(value))] = chance.choice(alphabet)
            elif kind == 1:
                del value[chance.randrange(len(value)) :]
            elif kind == 2:
                at = chance.randrange(len(value))
                value[at:at] = bytes([chance.choice(alphabet)])
            elif kind == 3:
                value = bytearray(chance.choices(alphabet, k=chance.randrange(300)))
            else:
                parts = bytes(value).split(b"|")
                chance.shuffle(parts)
                value = bytearray(b"|".join(parts))
            if bytes(value).strip(b'"') == ada:
                continue
            status, headers, body = await client.ask(
                b"Cookie: " + OWN + b"=" + bytes(value)
            )
            assert (200, NOBODY) == (status, body), bytes(value)
            assert "Set-Cookie" not in headers

    assert [] == store.calls


@pytest.mark.parametrize(
    "value", [b"garbage", b"a|b|c", b"1|x", b"1000|x", b"", b'"', b"2|1:0|", b"|"]
)
async def test_what_makes_tornado_itself_fail(url, value):
    """With a dict of keys Tornado's own reading would be a 500 (T1)."""
    status, _, body = await ask(url, b"Cookie: " + OWN + b"=" + value)

    assert (200, NOBODY) == (status, body)


def test_the_same_without_assertions():
    """`python -O` takes out the assertions of Tornado, and nothing else (T1)."""
    code = (
        "from tornado_compas_session.cookies.signing import KeyRing\n"
        f"ring = KeyRing([{KEY!r}])\n"
        "for text in ('garbage', 'a|b|c', '1|x', '1000|x', ''):\n"
        "    if ring.verify('n', text, 1000) is not None: raise SystemExit(1)\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], timeout=60, check=False)

    assert 0 == done.returncode


async def test_a_forged_key_version_changes_nothing(url, store):
    """The version is believed only when the signature is (T6)."""
    ada = (await cookie_of(url, "ada")).decode()
    fields = ada.split("|")
    for version in ("0", "-1", "1", "99999999999999999999", ""):
        forged = "|".join([fields[0], f"{len(version)}:{version}", *fields[2:]])
        status, headers, body = await ask(url, f"Cookie: {NAME}={forged}".encode())
        assert (200, NOBODY) == (status, body)
        assert "Set-Cookie" not in headers


@pytest.mark.parametrize("fill", [b" ", b"\t", b";", b"; ", b"a=1; ", b'"', b"="])
async def test_a_header_of_64_kilobytes(url, fill):
    """It is answered, or refused by Tornado; and the next request is (T34)."""
    line = b"Cookie: " + OWN + b"=" + (fill * 60_000)[:60_000] + b'"x'
    async with await Raw.open(url) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")
        status, _, _ = await client.answer()
        assert status in (200, 400, 431)

    assert 200 == (await Browser(url).get("/")).code


async def test_no_attribute_comes_from_a_request(url):
    """Host and Origin do not get into a cookie (CK-13)."""
    async with await Raw.open(url) as client:
        await client.send(
            b"POST /?who=ada HTTP/1.1\r\nHost: evil.test\r\nOrigin: https://evil.test\r\n"
            b"X-Forwarded-Host: evil.test\r\nX-Forwarded-Proto: https\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        _, headers, _ = await client.answer()

    assert "evil" not in str(headers)
    assert "Domain" not in headers["Set-Cookie"]
    assert "Secure" not in headers["Set-Cookie"]


async def test_refusals_do_not_flood_the_log(url, caplog):
    """At most a line a second, and nothing of what was sent (LG-2)."""
    caplog.set_level("DEBUG")
    async with await Raw.open(url) as client:
        for number in range(300):
            await client.ask(b"Cookie: " + OWN + b"=forged-%d" % number)

    lines = [r for r in caplog.records if "session cookies refused" in r.getMessage()]
    assert 1 <= len(lines) < 30
    assert "forged" not in caplog.text


async def test_a_collision_draws_another_handle():
    """One that exists is an error of the draw, and never overwritten (ID-6)."""
    store = CountingStore()
    taken, free = "t" * 12, "f" * 12
    owner = await load_session(make_manager(store, draw_handle=lambda: taken), [])
    owner["who"] = "ada"
    await owner.save()
    before = store._rows[taken]
    secret = before.record.secret_hash
    store.calls.clear()

    drawn = iter([taken, taken, free])
    session = await load_session(make_manager(store, draw_handle=drawn.__next__), [])
    session["who"] = "eve"
    await session.save()

    assert 3 == store.calls.count("create")
    assert {taken, free} == set(store._rows)
    assert before is store._rows[taken]
    assert ({"who": '"ada"'}, secret) == (before.data, before.record.secret_hash)


async def test_a_secret_opens_its_own_row_only():
    """The same secret beside another handle is worth nothing (ID-6)."""
    store = CountingStore()
    secret = new_secret()
    manager = make_manager(store, signed=False, draw_secret=lambda: secret)
    sessions = []
    for who in ("ada", "eve"):
        session = await load_session(manager, [])
        session["who"] = who
        await session.save()
        sessions.append(session)
    rewrite(store, sessions[0].handle, secret_hash=hash_secret(new_secret()))

    for session, known in zip(sessions, (False, True), strict=True):
        line = f"{NAME}={session.handle}{secret}"
        assert known is not (await load_session(manager, [line])).is_new


def test_keys_do_not_matter_to_the_shape():
    """The longest name and version stay far below what browsers keep (CK-4)."""
    name = "n" * 128
    value = KeyRing([NEWER_KEY]).sign(name, new_id())

    assert len(name) + len(value) < 500
    assert len(NAME) + len(KeyRing([KEY]).sign(NAME, new_id())) < 200
