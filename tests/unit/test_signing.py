"""Keys and signatures: rotation, refusal, silence about secrets."""

from __future__ import annotations

import hmac
import itertools

import pytest
import tornado.web

from tests.factories import KEY, NEWER_KEY, OLDER_KEY, Clock
from tornado_compas_session import SettingsError
from tornado_compas_session.cookies.signing import (
    KeyRing,
    RecentSignatures,
    key_version,
    new_key,
)

DAY = 86400
LONG = 400 * DAY

SIGNING = "tornado_compas_session.cookies.signing"


def test_round_trip():
    """What was signed is verified, under its name only (SG-1, SG-3)."""
    ring = KeyRing([KEY])
    text = ring.sign("n", "value")

    signed = ring.verify("n", text, LONG)
    assert signed is not None
    assert (b"value", False) == signed
    assert ring.verify("m", text, LONG) is None
    assert ring.verify("", text, LONG) is None


def test_a_value_needs_no_quotes():
    """Signed ids are made of cookie octets (CK-16, T32)."""
    text = KeyRing([KEY]).sign("counter.sess", "a" * 24)

    assert "=" not in text
    assert '"' not in text


def test_every_flipped_bit_is_refused():
    """No bit of a signed value can be changed (SG-1)."""
    ring = KeyRing([KEY])
    text = ring.sign("n", "a" * 24).encode()
    for place, bit in itertools.product(range(len(text)), range(8)):
        changed = bytearray(text)
        changed[place] ^= 1 << bit
        assert ring.verify("n", changed.decode("latin-1"), LONG) is None


def test_every_cut_is_refused():
    """Nor can it be shortened or lengthened (SG-1)."""
    ring = KeyRing([KEY])
    text = ring.sign("n", "a" * 24)
    for end in range(len(text)):
        assert ring.verify("n", text[:end], LONG) is None
        assert ring.verify("n", text[end:] if end else text + "0", LONG) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "a|b|c",
        "1|x",
        "1000|x",
        "2|",
        "2|1:0",
        "0|0|0",
        "-1|x|y",
        "\x00",
        "\xff\xfe",
        "\ud800",
        "|" * 50,
        "9" * 5000,
        "2|99999:1|",
        "2|1:0|10:1300000000|1:n|4:dmFs|" + "0" * 64,
        "2|10:-000000001|10:1800000000|1:n|4:dmFs|" + "0" * 64,
    ],
)
def test_nothing_that_a_stranger_sends_raises(text):
    """Whatever is wrong with a value, it is None and no exception (SG-2, T1)."""
    assert KeyRing([KEY]).verify("n", text, LONG) is None


def test_format_1_is_refused():
    """HMAC-SHA1 without delimiters, even with the right key (SG-1)."""
    ring = KeyRing([KEY])
    old = tornado.web.create_signed_value(KEY, "n", "a" * 24, version=1).decode()

    assert ring.verify("n", old, LONG) is None


def test_any_failure_in_decoding_is_a_refusal(monkeypatch):
    """There is one way to decode, and nothing to fall back to (SG-2)."""

    def broken(*args: object, **kwargs: object) -> None:
        raise MemoryError

    ring = KeyRing([KEY])
    text = ring.sign("n", "a" * 24)
    monkeypatch.setattr(f"{SIGNING}.decode_signed_value", broken)

    assert ring.verify("n", text, LONG) is None


def test_lifetime_is_explicit():
    """Tornado's own 31 days do not apply, and seconds count (T3, T4)."""
    clock = Clock()
    ring = KeyRing([KEY], clock=clock)
    text = ring.sign("n", "v")

    clock.now += 60 * DAY
    assert ring.verify("n", text, LONG) is not None
    assert ring.verify("n", text, 31 * DAY) is None
    clock.now += LONG - 60 * DAY + 1
    assert ring.verify("n", text, LONG) is None
    fresh = ring.sign("n", "v")
    clock.now += 899
    assert ring.verify("n", fresh, 900) is not None
    clock.now += 2
    assert ring.verify("n", fresh, 900) is None


def test_a_signature_of_the_future_is_refused():
    """A clock may run a day ahead, and no more (T3)."""
    clock = Clock()
    ring = KeyRing([KEY], clock=clock)
    clock.now += DAY - 1
    near = ring.sign("n", "v")
    clock.now += 2 * DAY
    far = ring.sign("n", "v")
    clock.now -= 3 * DAY - 1

    assert ring.verify("n", near, LONG) is not None
    assert ring.verify("n", far, LONG) is None


def test_bounds_are_exact():
    """A second makes the difference: of the lifetime, and of the day ahead (T3, T4)."""
    clock = Clock()
    ring = KeyRing([KEY], clock=clock)
    text = ring.sign("n", "v")
    clock.now += LONG - 1
    assert ring.verify("n", text, LONG) is not None
    clock.now += 2
    assert ring.verify("n", text, LONG) is None
    text = ring.sign("n", "v")
    clock.now -= DAY
    assert ring.verify("n", text, LONG) is not None
    clock.now -= 1
    assert ring.verify("n", text, LONG) is None


# -- rotation --------------------------------------------------------------------------


def test_the_first_key_signs_and_every_one_verifies():
    """A fresh value is that of the newest key alone (SG-5)."""
    text = KeyRing([NEWER_KEY, KEY, OLDER_KEY]).sign("n", "v")

    assert KeyRing([NEWER_KEY]).verify("n", text, LONG) == (b"v", False)
    assert KeyRing([KEY, OLDER_KEY]).verify("n", text, LONG) is None


def test_an_old_key_is_told():
    """So that the cookie can be signed anew (SG-6)."""
    text = KeyRing([KEY]).sign("n", "v")

    assert KeyRing([NEWER_KEY, KEY]).verify("n", text, LONG) == (b"v", True)
    assert KeyRing([KEY, NEWER_KEY]).verify("n", text, LONG) == (b"v", False)


def test_a_dropped_key_verifies_nothing():
    """Taking a compromised key out of the list is all that it needs (SG-7)."""
    text = KeyRing([KEY]).sign("n", "v")

    assert KeyRing([NEWER_KEY]).verify("n", text, LONG) is None


def test_a_version_is_the_keys_own():
    """Whatever comes before or after it in the list (SG-5)."""
    versions = [
        next(v for v, key in KeyRing(keys).versions.items() if key == KEY)
        for keys in ([KEY], [NEWER_KEY, KEY], [KEY, OLDER_KEY], [OLDER_KEY, KEY])
    ]

    assert 1 == len(set(versions))
    assert 0 < key_version(KEY) < 2**31


def test_a_version_stays_the_same_for_ever():
    """It is in cookies that browsers have, and other releases made."""
    assert 976704303 == key_version("a-key-for-the-tests-only-1")


def test_version_zero_is_never_used(monkeypatch):
    """0 belongs to the cookies of a former plain `cookie_secret`."""

    class Zeros:
        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr(hmac, "new", lambda *args: Zeros())

    assert 1 == key_version(KEY)


def test_a_collision_stops_the_start(monkeypatch):
    """Two keys of one version would make one of them vanish; no key is shown."""
    monkeypatch.setattr(f"{SIGNING}.key_version", lambda key: 7)
    with pytest.raises(SettingsError, match="key 2 of 2 collides") as caught:
        KeyRing([KEY, NEWER_KEY])

    assert KEY not in repr(caught.value)
    assert NEWER_KEY not in repr(caught.value)


def test_a_real_collision_stops_the_start():
    """The pair was searched for: two keys whose 31 bits are made equal by chance."""
    seen: dict[int, str] = {}
    key = other = ""
    for number in itertools.count():
        key = f"searched-for-collision-{number}"
        # 31 bits need some 50,000 tries on average; 2 million would be very bad luck.
        if (other := seen.setdefault(key_version(key), key)) != key:
            break
        assert number < 2_000_000
    with pytest.raises(SettingsError, match="collides"):
        KeyRing([key, other])


def test_no_key_no_ring():
    """There is no default key (SG-8)."""
    with pytest.raises(SettingsError, match="APP_KEYS"):
        KeyRing([])


def test_a_ring_does_not_show_its_keys():
    """Its repr counts them (SG-4)."""
    assert "<KeyRing of 2 keys>" == repr(KeyRing([KEY, NEWER_KEY]))


def test_a_made_key_is_long_and_new():
    """256 random bits in 43 characters (SG-4)."""
    assert 43 == len(new_key())
    assert new_key() != new_key()


# -- what was computed just now --------------------------------------------------------


class Counting(KeyRing):
    """Counts what is computed."""

    verified = 0

    def verify(self, name, text, max_age):
        self.verified += 1
        return super().verify(name, text, max_age)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ring(clock):
    return Counting([KEY], clock=clock)


def recent(ring, max_age=LONG):
    return RecentSignatures(
        ring, "n", max_age, lambda signed: signed.value if signed.value else None
    )


def test_a_value_is_verified_once_a_minute(ring, clock):
    """A page that asks ten times in a second costs one HMAC."""
    signatures, text = recent(ring), ring.sign("n", "v")
    for _ in range(10):
        assert b"v" == signatures.verify(text)
    assert 1 == ring.verified
    clock.now += 59
    signatures.verify(text)
    assert 1 == ring.verified
    clock.now += 2
    assert b"v" == signatures.verify(text)
    assert 2 == ring.verified
    clock.now -= 30  # set back: nothing is believed of a time that was not yet
    assert b"v" == signatures.verify(text)
    assert 3 == ring.verified


def test_what_is_known_does_not_push_out_each_other(ring, clock):
    """Two visitors in one minute cost two HMACs, and the minute is the first one's."""
    signatures = recent(ring)
    texts = ring.sign("n", "v"), ring.sign("n", "w")
    for text in texts * 2:
        assert signatures.verify(text) is not None
        clock.now += 15
    assert 2 == ring.verified
    # It is a minute since the first of them.
    assert signatures.verify(texts[0]) is not None
    assert 3 == ring.verified


def test_what_was_signed_here_is_known(ring):
    """The browser comes back with the cookie that it just got."""
    signatures = recent(ring)

    assert b"v" == signatures.verify(signatures.sign("v"))
    assert 0 == ring.verified
    assert b"v" == ring.verify("n", signatures.sign("v"), LONG).value


def test_what_was_signed_here_is_signed_by_the_current_key(ring):
    """So nobody takes it for a cookie that is to be signed anew."""
    signatures = RecentSignatures(ring, "n", LONG, lambda signed: signed)

    assert (b"v", False) == signatures.verify(signatures.sign("v"))


def test_a_lifetime_is_over_within_the_minute_at_the_latest(ring, clock):
    """What is known is forgotten before it matters."""
    signatures = recent(ring, max_age=100)
    text = signatures.sign("v")
    clock.now += 101

    assert signatures.verify(text) is None


def test_nothing_is_kept_of_what_was_refused(ring):
    """A stranger fills no memory, and a key that comes later counts."""
    signatures = recent(ring)
    for text in ("forged", KeyRing([OLDER_KEY]).sign("n", "v"), ring.sign("n", "")):
        for _ in range(2):
            assert signatures.verify(text) is None
    assert 6 == ring.verified
    assert not signatures._known


def test_what_is_kept_is_bounded(ring, monkeypatch):
    """In number, and in the size of each."""
    monkeypatch.setattr(RecentSignatures, "most", 10)
    signatures = recent(ring)
    for number in range(100):
        assert signatures.verify(signatures.sign(str(number))) is not None
        assert len(signatures._known) <= 10
    fits = signatures.sign("x" * 30)
    monkeypatch.setattr(RecentSignatures, "longest", len(fits))
    assert signatures.sign("y" * 30) in signatures._known
    long = signatures.sign("x" * 31)
    assert long not in signatures._known
    long = signatures.sign("x" * 300)
    assert long not in signatures._known
    assert b"x" * 300 == signatures.verify(long)
    assert long not in signatures._known
