"""
Session ids: a handle that names the row, and a secret that opens it.

The handle (9 random bytes) is the key of the row, never changes and may be shown: it
opens nothing. The secret (18 random bytes) is the browser's alone; the row holds its
hash, and it is new at every `regenerate`. Together they are 27 bytes in 36 characters,
a multiple of three, so that the signed value ends without `=` and needs no quotes in a
cookie. The pattern is known as split tokens, or selector and verifier.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from hashlib import sha256

_ID = re.compile(rb"[A-Za-z0-9_-]{36}")
_HANDLE = re.compile(r"[A-Za-z0-9_-]{12}")


def new_handle() -> str:
    """A fresh name for a row: 72 bits from the operating system, 12 characters."""
    return urlsafe_b64encode(secrets.token_bytes(9)).decode("ascii")


def new_secret() -> str:
    """A fresh secret: 144 bits from the operating system, 24 characters."""
    return urlsafe_b64encode(secrets.token_bytes(18)).decode("ascii")


def parse_id(value: bytes) -> tuple[str, str] | None:
    """The handle and the secret in a verified cookie value; None if it is no id."""
    if not _ID.fullmatch(value):
        return None
    text = value.decode("ascii")
    return text[:12], text[12:]


def is_handle(text: object) -> bool:
    """Whether a text has the shape of a handle; whatever else comes names no row."""
    return isinstance(text, str) and _HANDLE.fullmatch(text) is not None


def hash_secret(secret: str) -> bytes:
    """
    What the row keeps instead of the secret.

    A plain hash is enough: there is nothing to guess in 144 random bits.
    """
    return sha256(secret.encode()).digest()
