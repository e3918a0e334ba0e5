"""Finding and ending the sessions of a user, and upkeep: what no request waits for."""

from __future__ import annotations

import logging
from typing import Any

from tornado_compas_session.core.ids import is_handle
from tornado_compas_session.core.protocols import Row
from tornado_compas_session.core.trouble import Watch
from tornado_compas_session.core.types import SessionInfo, known_user
from tornado_compas_session.stores import distributed
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.onerow import RowWrite, RowWriter
from tornado_compas_session.stores.pools.limits import left
from tornado_compas_session.stores.rows import info_of

logger = logging.getLogger("tornado_compas_session")


class PostgresUserSessions:
    """The part of `PostgresSessionStore` that is the protocol `UserSessions`."""

    _database: Database
    _rows: RowWriter
    _reads: Watch
    _writes: Watch

    async def sessions_of(
        self, user_id: str | int, *, limit: int = 50, current: str | None = None
    ) -> list[SessionInfo]:
        """
        The live sessions of a user, last used first; see `UserSessions.sessions_of`.

        `user_id` is what the application keeps under `user_id` in its sessions.
        """
        user = known_user(user_id)
        with self._reads:
            rows = await self._database.alone("sessions_of", user_id=user, limit=limit)
        return [info_of(row, current) for row in rows]

    async def revoke(self, handle: str) -> bool:
        """Ends the session with this handle; False if there is none."""
        if not is_handle(handle):
            return False
        until = self._database.deadline()
        with self._writes:
            row = await self._rows.write(RowWrite("revoke", handle, until, {}))
        if row is not None:
            logger.info("session %s revoked", handle)
        return row is not None

    async def revoke_user(
        self, user_id: str | int, *, except_handle: str | None = None
    ) -> int:
        """Ends all sessions of a user but one; returns how many."""
        database, until = self._database, self._database.deadline()
        user = known_user(user_id)
        values = {"user_id": user, "handle": except_handle or ""}
        ended: list[Row] = []
        with self._writes:
            if not await database.is_distributed(until):
                ended += await database.alone(
                    "revoke_user_unlocked", left(until), **values
                )
            if await database.alone(
                "surplus_sessions", left(until), others=0, **values
            ):
                # One at a time of a user, whose name is no handle: it has a space.
                async with self._rows.queue.turn(f"user {user}", until):
                    ended += await database.alone("revoke_user", left(until), **values)
        return len(ended)

    async def revoke_all(self) -> int:
        """Ends every session; returns how many."""
        return int((await self._database.alone("revoke_all"))[0][0])

    async def delete_expired(self, *, limit: int = 1000) -> int:
        """
        Deletes up to `limit` expired rows; returns how many.

        Never touches a live one, and leaves out rows that another cleaner works on.
        """
        if await self._database.is_distributed():
            return await distributed.delete_expired(self._database, limit)
        rows = await self._database.alone("delete_expired", limit=limit)
        return int(rows[0][0])

    async def stats(self) -> dict[str, Any]:
        """Counts: live, expired, anonymous, users, the age of the oldest, bytes."""
        row = [*(await self._database.alone("stats"))[0]]
        if await self._database.is_distributed():
            row[6] = (await self._database.alone(distributed.SIZE))[0][0]
        names = ("live", "expired", "anonymous", "users")
        return {
            **dict(zip(names, (int(n) for n in row[:4]), strict=True)),
            "oldest_seconds": None if row[4] is None else row[5] - row[4],
            "bytes": int(row[6]),
        }

    async def top_users(self, *, limit: int = 5) -> list[tuple[str, int]]:
        """The users with the most live sessions."""
        if await self._database.is_distributed():
            rows = await distributed.top_users(self._database, limit)
        else:
            rows = await self._database.alone("top_users", limit=limit)
        return [(row[0], int(row[1])) for row in rows]

    async def check(self) -> None:
        """
        Raises `SchemaMissing` or `StoreUnavailable` if sessions cannot be kept.

        A database in another encoding than UTF8, which cannot keep every text, is
        named in a warning.
        """
        await self._database.alone("check_session_table")
        [(encoding,)] = await self._database.alone("encoding")
        if encoding != "UTF8":
            logger.warning(
                "the database keeps text in %s; sessions hold any text, and want one "
                'that is made with ENCODING UTF8 (see "Pools" in the documentation)',
                encoding,
            )
