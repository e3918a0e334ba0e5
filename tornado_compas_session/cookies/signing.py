"""
Keys and signatures: Tornado's signed values, format 2, keyed from APP_KEYS.

The first key signs and every one verifies. Tornado puts the version of the key into the
value; ours is derived from the key, not from its place in the list, so that adding or
dropping a key renumbers nothing.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from tornado.web import create_signed_value, decode_signed_value

from tornado_compas_session.exceptions import SettingsError

T = TypeVar("T")
_DAY = 86400


def new_key() -> str:
    """A key for APP_KEYS: 43 characters, 256 random bits."""
    return secrets.token_urlsafe(32)


def key_version(key: str) -> int:
    """The number by which Tornado finds the key: 31 bits of an HMAC of it, never 0."""
    digest = hmac.new(
        key.encode(), b"tornado-compas-session/key-id/v1", "sha256"
    ).digest()
    return (int.from_bytes(digest[:4], "big") & 0x7FFFFFFF) or 1


class Signed(NamedTuple):
    """A verified value."""

    value: bytes
    #: Signed by another key than the current one, so it should be signed anew.
    old_key: bool


class KeyRing:
    """
    The keys, newest first. Raises `SettingsError` if two have the same version.

    Its repr shows how many keys there are, and never a key.
    """

    __slots__ = ("clock", "current", "versions")

    def __init__(
        self, keys: Sequence[str], *, clock: Callable[[], float] = time.time
    ) -> None:
        if not keys:
            raise SettingsError("there is no key to sign cookies with; set APP_KEYS")
        #: What Tornado wants as `cookie_secret`.
        self.versions: dict[int, str] = {}
        for place, key in enumerate(keys, 1):
            version = key_version(key)
            if version in self.versions:
                raise SettingsError(
                    f"APP_KEYS: key {place} of {len(keys)} collides with another one; "
                    "make a new one with `tornado-compas-session keygen`"
                )
            self.versions[version] = key
        self.current = key_version(keys[0])
        self.clock = clock

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self.versions)} keys>"

    def sign(self, name: str, value: str | bytes) -> str:
        """The signed value; name and time are part of what is signed."""
        return create_signed_value(
            self.versions,
            name,
            value,
            version=2,
            clock=self.clock,
            key_version=self.current,
        ).decode("ascii")

    def verify(self, name: str, text: str, max_age: float) -> Signed | None:
        """
        The value that one of the keys signed under this name, or None.

        None for whatever is wrong with it, a signature older than `max_age` seconds or
        of more than a day in the future included; never an exception. Format 1
        (HMAC-SHA1) is not accepted.
        """
        try:
            value = decode_signed_value(
                self.versions,
                name,
                text,
                # Tornado's own default is 31 days, whatever the cookie's lifetime is.
                max_age_days=max_age / _DAY,
                clock=self.clock,
                min_version=2,
            )
            if value is None:
                return None
            # Verified, so its fields can be relied on:
            # 2|<length>:<key version>|<length>:<time>|<length>:<name>|…
            _, version, timestamp, _ = text.split("|", 3)
            if int(timestamp.partition(":")[2]) > self.clock() + _DAY:
                return None
            return Signed(value, int(version.partition(":")[2]) != self.current)
        except Exception:
            # Whatever a stranger can send is a stranger's problem: it is not signed.
            return None


class RecentSignatures(Generic[T]):
    """
    A `KeyRing` for one cookie that does not compute twice what it computed just now.

    `read` makes of a verified value what the caller wants to have of it, or None.

    A page asks several things in one second, and comes back with the cookie that it got
    with the last answer. What is kept is bounded, in number and size, and forgotten
    within a minute. Nothing is kept of
    what was refused. Finding a text by its hash, whose seed is secret, tells no one how
    much of a forged one was right.
    """

    __slots__ = (
        "_keys",
        "_known",
        "_known_since",
        "_max_age",
        "_name",
        "_read",
    )

    #: So many texts are kept, and none that is longer than an id needs.
    most = 4096
    longest = 250
    seconds = 60

    def __init__(
        self,
        keys: KeyRing,
        name: str,
        max_age: float,
        read: Callable[[Signed], T | None],
    ) -> None:
        self._keys = keys
        self._name = name
        self._max_age = max_age
        self._read = read
        self._known: dict[str, T] = {}
        self._known_since = 0.0

    def sign(self, value: str) -> str:
        """As `KeyRing.sign`; when the browser shows it, it is known already."""
        text = self._keys.sign(self._name, value)
        self._remember(text, Signed(value.encode(), False))
        return text

    def verify(self, text: str) -> T | None:
        """What a text means that is signed; one that was verified is for a minute."""
        if not 0 <= self._keys.clock() - self._known_since < self.seconds:
            self._known.clear()
        known = self._known.get(text)
        if known is not None:
            return known
        signed = self._keys.verify(self._name, text, self._max_age)
        return None if signed is None else self._remember(text, signed)

    def _remember(self, text: str, signed: Signed) -> T | None:
        known = self._read(signed)
        if known is not None and len(text) <= self.longest:
            if not self._known or len(self._known) >= self.most:
                self._known, self._known_since = {}, self._keys.clock()
            self._known[text] = known
        return known
