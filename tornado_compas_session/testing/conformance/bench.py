"""What the suite works with: a store, its clock, and short ways to fill it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.types import (
    Identity,
    NewSecret,
    Saved,
    SessionChange,
    SessionRecord,
    user_text,
)

HOUR = 3600.0


def change(
    data: dict[str, Any] | None = None, *, idle: float | None = HOUR, **fields: Any
) -> SessionChange:
    """A change as a session makes it: its keys as JSON text."""
    changed = {key: json.dumps(value) for key, value in (data or {}).items()}
    return SessionChange(changed, idle=idle, **fields)


def some_hash() -> bytes:
    """That of a new secret."""
    return hash_secret(new_secret())


@dataclass
class Bench:
    """A store, and a hand on its clock; what it does is all done with the store."""

    store: Any
    #: Lets so many seconds pass for everything that is in the store.
    pass_time: Callable[[float], None]
    #: A second store on the same sessions, as another process has it, where there is
    #: such a thing.
    other: Any = None

    @property
    def elsewhere(self) -> Bench:
        """The same with the store of another process, if there is one."""
        return self if self.other is None else replace(self, store=self.other)

    @property
    def stores(self) -> tuple[Any, Any]:
        """Both stores, or this one twice."""
        return self.store, self.elsewhere.store

    async def created(
        self,
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
        await self.store.create(handle, some_hash(), change(data, **fields), identity)
        return handle

    async def loaded(self, data: Any = None, **fields: Any) -> SessionRecord:
        """A new session, as a request has it that has just loaded it."""
        record: SessionRecord = await self.store.load(
            await self.created(data, **fields)
        )
        return record

    async def state(self, handle: str) -> SessionRecord | None:
        """All that a load shows but what time it is; None if it is not there."""
        record: SessionRecord | None = await self.store.load(handle)
        return record and record._replace(now=0.0)

    async def data_of(self, handle: str) -> Any:
        """What the session holds; None if it is not there."""
        record = await self.store.load(handle)
        return None if record is None else json.loads(record.data)

    async def live(self, *handles: str) -> list[bool]:
        """Which of the sessions are there."""
        return [await self.store.load(handle) is not None for handle in handles]

    async def turned(
        self,
        handle: str,
        data: dict[str, Any] | None = None,
        *,
        identity: Identity | None = None,
        signed_in: bool | None = None,
        **fields: Any,
    ) -> Saved:
        """Gives the session a new secret, as whoever has the current one."""
        record = await self.store.load(handle)
        secret = NewSecret(record.secret_hash, some_hash(), identity, signed_in)
        saved = await self.store.regenerate(
            handle, record.epoch, secret, change(data, **fields)
        )
        assert isinstance(saved, Saved)
        return saved

    async def signed_in(
        self, handle: str, user: str, *, allowed: int | None = None
    ) -> Saved:
        """Signs a user in to a session that is there."""
        identity = Identity(user, allowed)
        return await self.turned(
            handle, {"user_id": user}, identity=identity, signed_in=True
        )
