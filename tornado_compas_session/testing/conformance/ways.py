"""
What a request does with the session that it has loaded, one function for each way.

All are asked alike, so that what holds for every way is tested with each of them. What
they return is false if the session was not there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from tornado_compas_session.core.types import (
    Identity,
    NewSecret,
    SessionChange,
    SessionRecord,
)
from tornado_compas_session.testing.conformance.bench import some_hash

Way = Callable[..., Awaitable[Any]]


async def save(
    store: Any, record: SessionRecord, change: SessionChange, **when: float
) -> Any:
    """Merges the change."""
    return await store.save(record.handle, record.epoch, change, **when)


async def increment(
    store: Any, record: SessionRecord, change: SessionChange, **when: float
) -> Any:
    """Adds 1 to `n`; of the change the lifetimes alone count."""
    done = await store.increment(
        record.handle, record.epoch, "n", "1", change._replace(changed={}), **when
    )
    return done and done.saved


async def turn(
    store: Any,
    record: SessionRecord,
    change: SessionChange,
    identity: Identity | None = None,
    **when: float,
) -> Any:
    """Gives a new secret, and with an identity signs in."""
    return await store.regenerate(
        record.handle, record.epoch, _secret(record, identity), change, **when
    )


async def end(
    store: Any, record: SessionRecord, change: SessionChange, **when: float
) -> Any:
    """Ends the session; the change does not count."""
    return await store.delete(record.handle, record.epoch, **when)


async def locked_save(store: Any, record: SessionRecord, change: SessionChange) -> Any:
    """The same in a block that has the row locked, and so on."""
    async with store.lock(record.handle, record.epoch, 15) as locked:
        return locked and await locked.save(change)


async def locked_turn(
    store: Any,
    record: SessionRecord,
    change: SessionChange,
    identity: Identity | None = None,
) -> Any:
    """As `turn`, with the secret that the row has by then."""
    async with store.lock(record.handle, record.epoch, 15) as locked:
        if locked is None:
            return None
        return await locked.regenerate(_secret(locked.record, identity), change)


async def locked_end(store: Any, record: SessionRecord, change: SessionChange) -> Any:
    """As `end`."""
    async with store.lock(record.handle, record.epoch, 15) as locked:
        if locked is not None:
            await locked.delete()
        return locked is not None


def _secret(record: SessionRecord, identity: Identity | None) -> NewSecret:
    signs_in = None if identity is None else identity.user_id is not None
    return NewSecret(record.secret_hash, some_hash(), identity, signs_in)


_ADA = Identity("ada")

SAVES: dict[str, Way] = {"save": save, "locked save": locked_save}
TURNS: dict[str, Way] = {"turn": turn, "locked turn": locked_turn}
#: Those that need the current secret; in a block the row is one's own.
NEW_SECRETS: dict[str, Way] = {
    "turn": turn,
    "sign in": partial(turn, identity=_ADA),
    "bounded sign in": partial(turn, identity=_ADA._replace(allowed=3)),
}
ENDS: dict[str, Way] = {"end": end, "locked end": locked_end}
WRITES: dict[str, Way] = {
    **SAVES,
    **TURNS,
    **NEW_SECRETS,
    "locked sign in": partial(locked_turn, identity=_ADA),
    "increment": increment,
}
ALL = WRITES | ENDS


def each(ways: dict[str, Way]) -> pytest.MarkDecorator:
    """Runs a test with each of these as `way`."""
    return pytest.mark.parametrize("way", ways.values(), ids=ways)
