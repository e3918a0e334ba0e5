"""A visitor of the application in `web.py`: quick, and honest about what it knows."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import psycopg

from tests.factories import NAME, Raw

#: What a request can end in when the server dies: it may have happened or not.
UNKNOWN = (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError)


class Visitor:
    """Keeps its session cookie and one connection."""

    def __init__(self, url: str, cookie: str = "") -> None:
        self.url = url
        self.cookie = cookie
        self._raw: Raw | None = None

    def twin(self) -> Visitor:
        """Another request of the same browser."""
        return Visitor(self.url, self.cookie)

    async def ask(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        """The status and the body; raises one of `UNKNOWN` without an answer."""
        status, body, cookie = await self.ask_as(self.cookie, method, path)
        if cookie is not None:
            self.cookie = cookie
        return status, body

    async def ask_as(
        self, cookie: str, method: str, path: str
    ) -> tuple[int, dict[str, Any], str | None]:
        """The same with this cookie; returns the one that it gets, too."""
        lines = [f"Cookie: {NAME}={cookie}".encode()] if cookie else []
        if method == "POST":
            lines.append(b"Content-Length: 0")
        try:
            if self._raw is None:
                self._raw = await Raw.open(self.url)
            status, headers, body = await self._raw.ask(
                *lines, method=method.encode(), path=path.encode()
            )
        except BaseException:
            await self.leave()
            raise
        given = None
        for header in headers.get_list("Set-Cookie"):
            name, _, rest = header.partition("=")
            if name == NAME:
                given = rest.partition(";")[0]
        if headers.get("Connection") == "close":
            await self.leave()
        found = json.loads(body) if body.startswith(b"{") else {}
        return status, found, given

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return await self.ask("GET", path)

    async def post(self, path: str) -> tuple[int, dict[str, Any]]:
        return await self.ask("POST", path)

    async def leave(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            with contextlib.suppress(*UNKNOWN):
                await raw.__aexit__()


async def leave_all(*visitors: Visitor) -> None:
    for visitor in visitors:
        await visitor.leave()


def contents(dsn: str) -> list[dict[str, Any]]:
    """What is in the live rows."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT data FROM compas_session WHERE expires_at > now()"
        ).fetchall()
    return [row[0] for row in rows]


def waiting_transactions(dsn: str) -> int:
    """How many connections hold a transaction open."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    return int(row[0])
