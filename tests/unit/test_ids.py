"""Session ids: made of chance alone, hashed at rest, sealed after a regeneration."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest

import tornado_compas_session
from tornado_compas_session.core import ids


def test_ids_are_chance_and_nothing_else(long):
    """No id comes twice, and each of the 144 bits is a fair coin (ID-1)."""
    count = 1_000_000 if long else 50_000
    made = [ids.new_id() for _ in range(count)]

    assert count == len(set(made))
    sample = made[:20_000]
    numbers = [int.from_bytes(urlsafe_b64decode(one), "big") for one in sample]
    for bit in range(144):
        mean = sum(number >> bit & 1 for number in numbers) / len(numbers)
        # Seven standard deviations: a fair coin fails once in 10^12 bits.
        assert abs(mean - 0.5) < 7 * 0.5 / len(numbers) ** 0.5


def test_the_system_is_the_only_source(monkeypatch):
    """An id is exactly what `secrets.token_bytes` gave (ID-1)."""
    monkeypatch.setattr(secrets, "token_bytes", lambda count: b"\xff" * count)

    assert "_" * 24 == ids.new_id()


#: These wait a random while, for which no secret is needed.
JITTER = ("cleaner.py", "handler.py")


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
    """24 characters that need no quotes in a cookie, nothing shared (ID-2, CK-16)."""
    one, other = ids.new_id(), ids.new_id()

    assert re.fullmatch(r"[A-Za-z0-9_-]{24}", one)
    assert one[:8] != other[:8]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a" * 23,
        b"a" * 25,
        b"a" * 23 + b"=",
        b"a" * 23 + b" ",
        b"a" * 24 + b"\n",
        b"\xff" * 24,
        b"a" * 23 + b"\x00",
        b"'; drop table x; -- aaaa",
    ],
)
def test_what_has_another_shape_is_no_id(value):
    """A signed value that is no id is refused before any query (ID-5)."""
    assert ids.parse_id(value) is None


def test_only_a_hash_is_kept():
    """The hash does not show the id, and is no id itself (ID-7)."""
    one = ids.new_id()
    digest = ids.hash_id(one)

    assert 32 == len(digest)
    assert one.encode() not in digest
    assert ids.handle_of(digest) == digest[:16].hex()
    assert ids.parse_id(ids.handle_of(digest).encode()) is None


def test_a_handle_stands_for_its_hash():
    """The range of a handle contains the hash that it was made of, and few others."""
    digest = ids.hash_id(ids.new_id())
    bounds = ids.handle_range(ids.handle_of(digest))

    assert bounds is not None
    assert bounds[0] <= digest <= bounds[1]
    for wrong in ("", "zz", "0" * 31, "0" * 33, "' or 1=1 --", "0" * 64):
        assert ids.handle_range(wrong) is None


def test_a_successor_opens_with_the_old_id_only():
    """The table alone does not reveal the new id (ID-7)."""
    old, new = ids.new_id(), ids.new_id()
    sealed = ids.seal(new, old)

    assert new == ids.unseal(sealed, old)
    assert new != ids.unseal(sealed, ids.new_id())
    assert new.encode() not in sealed
