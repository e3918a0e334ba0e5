"""What the suite works with: a store, its clock, and short ways to fill it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.types import (
    Identity,
    NewSecret,
    Saved,
    SessionChange,
    user_text,
)

HOUR = 3600.0

#: Values that a careless statement, driver or JSON parser trips over.
AWKWARD: dict[str, Any] = {
    "": "an empty key",
    "quotes": 'it\'s "quoted" \\ back\\\\slashed \\u0041',
    "placeholders": "%s %(a)s %% $1 :name ::text ? {} ${x}",
    "unicode": "Grüße, 世界, \U0001f36a, \u2028",
    "key 'with' \"quotes\" %s": 1,
    "big": 2**80,
    "small": -(2**63),
    "float": 0.1,
    "exponent": 1.5e-30,
    "nothing": None,
    "nested": {"list": [1, [2, {"three": [True, False, None]}]], "empty": {}},
    "long": "x" * 20_000,
}

#: Keys that a path, a pattern or a placeholder would take for something else.
AWKWARD_KEYS = (
    *("", "a.b", "{a,b}", "0", "-1", "$.n", "%s", ":key", "?", "a\"b'c", "Grüße", "\\"),
)

#: Of the length of a handle, and not of its characters.
HOSTILE_HANDLES = ("' OR '1'='1'", "%s %(a)s %%s", "$1 $2 :id ::", "-- ; \\ \"' {}")
#: No handles at all.
NO_HANDLES = ("", "x", "x" * 100_000, "ü" * 12, "g" * 32, "0" * 64)


@dataclass
class Bench:
    """A store, and a hand on its clock."""

    store: Any
    #: Lets so many seconds pass for everything that is in the store.
    pass_time: Callable[[float], None]
    #: A second store on the same sessions, as another process has it, where there is
    #: such a thing.
    other: Any = None

    @property
    def elsewhere(self) -> Any:
        """The store of another process, or this one where there is no other."""
        return self.store if self.other is None else self.other


def change(
    data: dict[str, Any] | None = None, *, idle: float | None = HOUR, **fields: Any
) -> SessionChange:
    """A change as a session makes it: its keys as JSON text."""
    changed = {key: json.dumps(value) for key, value in (data or {}).items()}
    return SessionChange(changed, idle=idle, **fields)


async def data_of(store: Any, handle: str) -> Any:
    """What the session holds; None if it is not there."""
    record = await store.load(handle)
    return None if record is None else json.loads(record.data)


async def created(
    store: Any,
    data: dict[str, Any] | None = None,
    *,
    allowed: int | None = None,
    **fields: Any,
) -> str:
    """The handle of a new session; with a `user_id` it is that user's."""
    data = data or {"n": 0}
    handle = new_handle()
    user = user_text(data.get("user_id"))
    identity = None if user is None else Identity(user, allowed)
    await store.create(handle, some_hash(), change(data, **fields), identity)
    return handle


def some_hash() -> bytes:
    """That of a new secret."""
    return hash_secret(new_secret())


async def turned(
    store: Any,
    handle: str,
    data: dict[str, Any] | None = None,
    *,
    identity: Identity | None = None,
    signed_in: bool | None = None,
    **fields: Any,
) -> Saved:
    """Gives the session a new secret, as whoever has the current one."""
    record = await store.load(handle)
    secret = NewSecret(record.secret_hash, some_hash(), identity, signed_in)
    saved = await store.regenerate(handle, record.epoch, secret, change(data, **fields))
    assert isinstance(saved, Saved)
    return saved


async def signed_in(store: Any, handle: str, user: str, **fields: Any) -> Saved:
    """Signs a user in to a session that is there."""
    allowed = fields.pop("allowed", None)
    identity = Identity(user, allowed)
    data = {"user_id": user}
    return await turned(
        store, handle, data, identity=identity, signed_in=True, **fields
    )


async def live(store: Any, *handles: str) -> list[bool]:
    """Which of the sessions are there."""
    return [await store.load(handle) is not None for handle in handles]
