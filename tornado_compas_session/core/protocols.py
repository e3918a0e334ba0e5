"""
The two seams of the library, in words: where drivers plug in, and where stores do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from tornado_compas_session.core.types import (
        Identity,
        Incremented,
        NewSecret,
        Saved,
        SessionChange,
        SessionInfo,
        SessionRecord,
    )
    from tornado_compas_session.stores.pools.queries import Statement

__all__ = ["Connection", "Locked", "Pool", "SessionStore", "UserSessions"]

Row = tuple[Any, ...]


class Connection(Protocol):
    """One database connection inside a transaction."""

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """
        Runs one statement, its parameters by name; returns its rows.

        `timeout` is the limit of this one, longer or shorter than the pool's own.
        """

    async def run_script(self, sql: str) -> None:
        """Runs several statements without parameters."""


@runtime_checkable
class Pool(Protocol):
    """
    What the store needs of a driver. Adapters translate and nothing else.

    Values that cross are str, bytes, int, float, bool, None and lists of one of them;
    JSON crosses as text and times as seconds, because drivers disagree about both.
    No driver exception leaves an adapter: it raises `StoreUnavailable` (no connection,
    connection lost, time limit, server shutting down or read-only), `SchemaMissing`
    (no such table or column), `UnstorableText` (what the database's encoding has no
    place for), or `StoreError`. A cancelled call gives its connection back, clean.
    After an error in `fetch` the statement may or may not have happened; it never
    happens later.

    A time limit is in seconds, in all; None is the pool's own. When it is over, the
    statement is cancelled on the server, and the call raises `StoreUnavailable` once
    that has taken effect, or half a second later, with the connection closed.

    A pool may tell with a property `size: int` how many connections it has at most;
    where it does not, the store counts on 4. With `in_use: int` it tells how many of
    them are in use, for `metrics()`.
    """

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Row]:
        """
        Runs one statement in its own transaction; committed when it returns.

        `timeout` covers the waiting for a connection too.
        """

    def transaction(
        self, *, lock_timeout: float | None = None, timeout: float | None = None
    ) -> AbstractAsyncContextManager[Connection]:
        """
        One connection and one transaction; rolled back if the block raises.

        `lock_timeout` is how long its statements may wait for a row (`LockTimeout`
        after that), and `timeout` how long its beginning may take.
        """

    async def expire(self) -> None:
        """Drops the connections: the idle ones now, the others when given back."""

    async def close(self) -> None:
        """Closes the connections, those in use when they are given back."""


class Locked(Protocol):
    """
    A session whose row is locked until the block that obtained it ends.

    What these write is committed when the block ends without an exception. They write
    to the row as `record` shows it: under its epoch, and with its secret.
    """

    #: The session as it was when the lock was granted.
    record: SessionRecord

    async def save(self, change: SessionChange) -> Saved:
        """Writes the change; raises `SessionGone` if the session expired meanwhile."""

    async def regenerate(self, secret: NewSecret, change: SessionChange) -> Saved:
        """The same, with a new secret."""

    async def delete(self) -> None:
        """Ends the session."""


@runtime_checkable
class SessionStore(Protocol):
    """
    Keeps sessions. `MemorySessionStore` and `PostgresSessionStore` are two.

    - Absent, expired and revoked are one and the same: the session is not there.
    - What is not there never comes back: only `create` makes a session, it never
      overwrites one, and everything else writes to live sessions only.
    - A request writes under the `epoch` that it loaded: once who the visitor is has
      changed, whatever began before is over, and finds nothing.
    - Writes of one session merge by key, so that parallel requests keep their writes.
    - A write is durable when the call returns. An exception means that the store
      failed; the write may have happened or not. After `StoreUnavailable` for a time
      limit it does not happen later.
    - `deadline` is the loop's time by which the caller wants to know; what cannot end
      by then is not begun. Where a call returns an `asyncio.Future`, the store answers
      it by then itself; of any other awaitable the caller keeps the time.
    """

    def load(
        self, handle: str, *, deadline: float | None = None
    ) -> Awaitable[SessionRecord | None]:
        """
        The live session of this name, or None. Reading is no use: it never extends.

        Whether a secret opens it is for the caller to compare.
        """

    def create(
        self,
        handle: str,
        secret_hash: bytes,
        change: SessionChange,
        identity: Identity | None = None,
        *,
        deadline: float | None = None,
    ) -> Awaitable[Saved]:
        """Makes a session; raises `HandleTaken`, changing nothing, if it is there."""

    def save(
        self,
        handle: str,
        epoch: int,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Awaitable[Saved | None]:
        """Merges the change into the live session; None if it is not there."""

    def regenerate(
        self,
        handle: str,
        epoch: int,
        secret: NewSecret,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Awaitable[Saved | None]:
        """
        Gives the live session a new secret, atomically with the change.

        None if it is not there, or has another secret than `secret.mine`.
        """

    def increment(
        self,
        handle: str,
        epoch: int,
        key: str,
        by: str,
        change: SessionChange,
        *,
        deadline: float | None = None,
    ) -> Awaitable[Incremented | None]:
        """
        Adds a number (as JSON text) to the one under a key; absent counts as 0.

        What the change says of the lifetime happens as well. None if the session is
        not there; raises `SessionDataError` if the key holds anything but a number.
        """

    def delete(
        self, handle: str, epoch: int, *, deadline: float | None = None
    ) -> Awaitable[bool]:
        """Ends the session; False if it was not there, which is fine."""

    def lock(
        self, handle: str, epoch: int, timeout: float
    ) -> AbstractAsyncContextManager[Locked | None]:
        """
        Locks the row for the length of the block; yields None if it is not there.

        Raises `LockTimeout` when the lock does not come within `timeout` seconds; with
        0 it is had at once or not at all.
        """


@runtime_checkable
class UserSessions(Protocol):
    """A second ability of a store: finding and ending the sessions of a user."""

    async def sessions_of(
        self, user_id: str | int, *, limit: int = 50, current: str | None = None
    ) -> list[SessionInfo]:
        """The live sessions of a user, last used first; listing is no use."""

    async def revoke(self, handle: str) -> bool:
        """Ends the session with this handle; False if there is none."""

    async def revoke_user(
        self, user_id: str | int, *, except_handle: str | None = None
    ) -> int:
        """Ends all sessions of a user but one; returns how many."""

    async def revoke_all(self) -> int:
        """Ends every session; returns how many."""

    async def delete_expired(self, *, limit: int = 1000) -> int:
        """Deletes up to `limit` expired rows; returns how many."""

    async def stats(self) -> dict[str, Any]:
        """Counts: live, expired, anonymous and so on."""
