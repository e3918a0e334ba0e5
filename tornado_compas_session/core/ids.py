"""
Session ids: made, checked, hashed, sealed.

An id is 18 random bytes in 24 characters: a multiple of three, so that the signed value
ends without `=` and needs no quotes in a cookie.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from hashlib import sha256

_SHAPE = re.compile(rb"[A-Za-z0-9_-]{24}")


def new_id() -> str:
    """A fresh id: 144 bits from the operating system."""
    return urlsafe_b64encode(secrets.token_bytes(18)).decode("ascii")


def parse_id(value: bytes) -> str | None:
    """The id in a verified cookie value, or None if it has not the shape of one."""
    return value.decode("ascii") if _SHAPE.fullmatch(value) else None


def hash_id(session_id: str) -> bytes:
    """
    What the store keeps instead of the id.

    A plain hash is enough: there is nothing to guess in 144 random bits. And looking up
    a hash leaks nothing by its timing (CVE-2019-16782).
    """
    return sha256(session_id.encode()).digest()


def handle_of(id_hash: bytes) -> str:
    """The name of a session in lists: half of its hash, useless as a cookie."""
    return id_hash[:16].hex()


def handle_range(handle: str) -> tuple[bytes, bytes] | None:
    """The lowest and the highest hash that a handle stands for; None if it is none."""
    try:
        half = bytes.fromhex(handle)
    except (ValueError, TypeError):
        return None
    return (half + bytes(16), half + b"\xff" * 16) if len(half) == 16 else None


def seal(new: str, old: str) -> bytes:
    """
    The new id, readable with the old one only.

    The pad is another hash of the old id than the one that is stored, so the table
    alone reveals nothing, and a request with the old id can be given the new one.
    """
    return _pad(new.encode("ascii"), old)


def unseal(sealed: bytes, old: str) -> str:
    """The inverse of `seal`; the caller checks the result against its hash."""
    return _pad(sealed, old).decode("latin-1")


def _pad(text: bytes, old: str) -> bytes:
    pad = sha256(b"tornado-compas-session/successor:" + old.encode()).digest()
    return bytes(a ^ b for a, b in zip(text, pad, strict=False))
