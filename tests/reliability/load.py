"""A small application under load, and what its visitors saw."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import psycopg
from tornado.httputil import HTTPHeaders
from tornado.web import Application, RequestHandler

from tests.factories import NAME, Raw, make_app
from tornado_compas_session import SessionMixin


class Plain(RequestHandler):
    """Has nothing to do with sessions."""

    def get(self):
        self.write("plain")


class Mark(SessionMixin, RequestHandler):
    """Shows the mark of the session, and sets keys."""

    def get(self):
        self.write(str(self.session.get("mark", "none")))

    def post(self):
        for key, values in self.request.query_arguments.items():
            self.session[key] = values[0].decode()
        self.write("kept")


class Slow(SessionMixin, RequestHandler):
    """Thinks for a while between the load and the save, holding no connection."""

    async def post(self):
        await asyncio.sleep(float(self.get_query_argument("for")))
        self.session["slow"] = True


class Big(SessionMixin, RequestHandler):
    """A session is loaded, and the answer is long."""

    def get(self):
        self.write(self.session.get("mark", "none") + "x" * 4_000_000)


def counter_app(store: Any, **options: Any) -> Application:
    routes = [("/plain", Plain), ("/", Mark), ("/slow", Slow), ("/big", Big)]
    return make_app(routes, store, **options)


class Visitor:
    """One browser on one connection, which is opened again when it breaks."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cookie: str | None = None
        self._raw: Raw | None = None

    async def ask(
        self, path: str = "/", method: str = "GET"
    ) -> tuple[int, HTTPHeaders, str]:
        lines = [f"Cookie: {NAME}={self.cookie}".encode()] if self.cookie else []
        if method == "POST":
            lines.append(b"Content-Length: 0")
        try:
            if self._raw is None:
                self._raw = await Raw.open(self.url)
            status, headers, body = await self._raw.ask(
                *lines, method=method.encode(), path=path.encode()
            )
        except BaseException:
            self.drop()
            raise
        if headers.get("Connection") == "close":
            self.drop()
        for header in headers.get_list("Set-Cookie"):
            name, _, rest = header.partition("=")
            if name == NAME:
                self.cookie = rest.partition(";")[0] or None
        return status, headers, body.decode()

    def drop(self) -> None:
        """Hangs up, whatever is under way."""
        if self._raw is not None:
            self._raw.writer.close()
            self._raw = None


class Load:
    """Visitors who read and write without pause, until told to stop."""

    def __init__(self, url: str, *, visitors: int, pause: float = 0.02) -> None:
        self.url = url
        self.pause = pause
        self.visitors = [Visitor(url) for _ in range(visitors)]
        #: (when, path, status) of every answer.
        self.seen: list[tuple[float, str, int]] = []
        self.wrong: list[str] = []
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for n, visitor in enumerate(self.visitors):
            status, _, _ = await visitor.ask(f"/?mark=m{n}", "POST")
            assert 200 == status
        self._tasks = [
            asyncio.ensure_future(self._run(n, each))
            for n, each in enumerate(self.visitors)
        ]

    async def _run(self, n: int, visitor: Visitor) -> None:
        rounds = 0
        loop = asyncio.get_running_loop()
        while not self._stop:
            rounds += 1
            had = visitor.cookie
            path, method = [("/", "GET"), (f"/?k={rounds}", "POST"), ("/plain", "GET")][
                rounds % 3
            ]
            status, headers, body = await visitor.ask(path, method)
            self.seen.append((loop.time(), path, status))
            if status == 503:
                if "Retry-After" not in headers:
                    self.wrong.append("503 without Retry-After")
                if headers.get_list("Set-Cookie") or visitor.cookie != had:
                    self.wrong.append("503 with a cookie")
            elif status != 200:
                self.wrong.append(f"{status} at {path}")
            elif path == "/" and body != f"m{n}":
                self.wrong.append(f"m{n} got {body}")
            if path == "/plain" and status != 200:
                self.wrong.append("a page without a session failed")
            await asyncio.sleep(self.pause)

    async def stop(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)
        for visitor in self.visitors:
            visitor.drop()

    def statuses(self, start: float = 0.0, end: float = float("inf")) -> Counter[int]:
        """How often each status was seen on session routes between two moments."""
        return Counter(
            status
            for when, path, status in self.seen
            if start <= when < end and path != "/plain"
        )

    async def until_ok(self, since: float, *, patience: float = 40) -> float:
        """When the first session route answered 200 after that moment."""
        async with asyncio.timeout(patience):
            while True:
                for when, path, status in reversed(self.seen):
                    if when > since and path != "/plain" and status == 200:
                        return when
                await asyncio.sleep(0.02)


def connections(dsn: str) -> Counter[str]:
    """The other connections to the database, by their state."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT coalesce(state, '') FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
            "AND datname = current_database()"
        ).fetchall()
    return Counter(row[0] for row in rows)


async def settled(dsn: str, *, most: int, patience: float = 30) -> Counter[str]:
    """Waits until all connections are idle, and no more than there may be."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + patience
    while True:
        found = await loop.run_in_executor(None, connections, dsn)
        if (set(found) <= {"idle"} and found["idle"] <= most) or loop.time() > limit:
            return found
        await asyncio.sleep(0.1)
