"""Sessions as the tests of a store make, write and read them, without a handler."""

from __future__ import annotations

from typing import Any

from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.jsondata import decode_object, encode
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.core.types import Identity, NewSecret, SessionChange


def change(data: dict[str, Any] | None = None) -> SessionChange:
    """Sets these keys, and renews for an hour."""
    changed = {key: encode(value) for key, value in (data or {}).items()}
    return SessionChange(changed=changed, idle=3600.0)


async def created(
    store: SessionStore,
    data: dict[str, Any] | None = None,
    *,
    secret: str | None = None,
    user: str | None = None,
) -> str:
    """A new session's handle."""
    handle = new_handle()
    hashed = hash_secret(secret or new_secret())
    identity = None if user is None else Identity(user)
    given = {"n": 0} if data is None else data
    await store.create(handle, hashed, change(given), identity)
    return handle


async def data_of(store: SessionStore, handle: str) -> dict[str, Any]:
    """What a live session holds."""
    record = await store.load(handle)
    assert record is not None
    assert handle == record.handle
    return decode_object(record.data)


def turn(mine: str) -> NewSecret:
    """Another secret in place of this one."""
    return NewSecret(hash_secret(mine), hash_secret(new_secret()))
