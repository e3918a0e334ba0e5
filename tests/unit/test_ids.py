"""Session ids: a handle and a secret, made of chance alone; a hash of it at rest."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import pytest

import tornado_compas_session
from tornado_compas_session.core import ids


@pytest.mark.parametrize(
    ("make", "bits"), [(ids.new_secret, 144), (ids.new_handle, 72)]
)
def test_ids_are_chance_and_nothing_else(make, bits, long):
    """None comes twice, and each of the bits is a fair coin (ID-1)."""
    count = 1_000_000 if long else 50_000
    made = [make() for _ in range(count)]

    assert count == len(set(made))
    sample = made[:20_000]
    numbers = [int.from_bytes(urlsafe_b64decode(one), "big") for one in sample]
    for bit in range(bits):
        mean = sum(number >> bit & 1 for number in numbers) / len(numbers)
        # Seven standard deviations: a fair coin fails once in 10^12 bits.
        assert abs(mean - 0.5) < 7 * 0.5 / len(numbers) ** 0.5


def test_the_system_is_the_only_source(monkeypatch):
    """An id is exactly what `secrets.token_bytes` gave (ID-1)."""
    monkeypatch.setattr(secrets, "token_bytes", lambda count: b"\xff" * count)

    assert "_" * 24 == ids.new_secret()
    assert "_" * 12 == ids.new_handle()


#: These wait a random while, for which no secret is needed.
JITTER = ("cleaner.py", "sockets.py")


def test_no_weaker_source_is_imported():
    """Neither uuid nor, for ids, random is used by the package (ID-1, ST-1)."""
    package = Path(tornado_compas_session.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"\b(import|from) (uuid|pickle|marshal|shelve)\b", text)
        jitters = path.name in JITTER or path.parent.name == "pools"
        assert jitters or (not re.search(r"^(import|from) random\b", text, re.M)), (
            f"{path.name} imports random"
        )


def test_shape():
    """36 characters that need no quotes in a cookie, nothing shared (ID-2, CK-16)."""
    one, other = ids.new_secret(), ids.new_secret()

    assert re.fullmatch(r"[A-Za-z0-9_-]{24}", one)
    assert re.fullmatch(r"[A-Za-z0-9_-]{12}", ids.new_handle())
    assert one[:8] != other[:8]
    assert b"=" not in urlsafe_b64encode((ids.new_handle() + one).encode())


def test_an_id_is_taken_apart():
    """The handle to look for, and the secret to compare."""
    handle, secret = ids.new_handle(), ids.new_secret()

    assert (handle, secret) == ids.parse_id((handle + secret).encode())


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a" * 35,
        b"a" * 37,
        b"a" * 24,
        b"a" * 35 + b"=",
        b"a" * 35 + b" ",
        b"a" * 36 + b"\n",
        b"\xff" * 36,
        b"a" * 35 + b"\x00",
        "ü".encode() * 18,
        b"'; drop table x; -- aaaa aaaa aaaa a",
    ],
)
def test_what_has_another_shape_is_no_id(value):
    """
    A signed value that is no id is refused before any query (ID-5). An id of the first
    design (24 characters) is none: an anonymous visitor.
    """
    assert ids.parse_id(value) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "a" * 11, "a" * 13, "a" * 11 + "\n", "a" * 12 + "\n", "ü" * 12, "a" * 36),
        *("0" * 32, "' or 1=1 --'", "a" * 11 + "=", None, 7, b"a" * 12, ["a"] * 12),
    ],
)
def test_what_has_another_shape_is_no_handle(text):
    """It names no row, and is not looked for."""
    assert not ids.is_handle(text)


def test_only_a_hash_is_kept():
    """The hash does not show the secret, and is neither an id nor a handle (ID-7)."""
    secret = ids.new_secret()
    digest = ids.hash_secret(secret)

    assert sha256(secret.encode()).digest() == digest
    assert secret.encode() not in digest
    for shown in (digest, digest.hex().encode()):
        assert ids.parse_id(shown) is None
    assert not ids.is_handle(digest.hex())


def test_a_handle_may_be_shown():
    """It opens nothing: it is a third of an id, and drawn apart from the rest."""
    handle = ids.new_handle()

    assert ids.is_handle(handle)
    assert ids.parse_id(handle.encode()) is None
