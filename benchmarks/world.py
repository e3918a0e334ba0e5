"""What is measured: a PostgreSQL, its sessions, web processes and their counters."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg
from psycopg.types.json import Jsonb

from benchmarks.server import ENVIRON, NAME
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.testing.embedded import EmbeddedPostgres, free_port

SESSIONS = 50_000
#: The content of a session: some 300 bytes of JSON.
DATA = {
    "counter": 7,
    "user_id": "b7e3c1f0-4a55-4e0f-9d36-7f0c2f1f6a11",
    "name": "Maria Mustermann",
    "locale": "de-AT",
    "theme": {"dark": True, "font": "large"},
    "cart": [{"sku": "4711-0815", "count": 2}, {"sku": "2342-1337", "count": 1}],
    "seen": ["welcome", "cookies", "tour-1", "tour-2", "tour-3"],
    "csrf": "c2Vzc2lvbnMgYXJlIGNoZWFwIGlmIHlvdSBiYXRjaCB0aGVt",
}


class Counters(NamedTuple):
    """Sums that only grow; the difference of two is what happened between them."""

    #: Seconds of the web process, and of all backends of PostgreSQL.
    cpu: float
    backends: float
    statements: int
    wal: int


def seconds_of(pid: int) -> float:
    """The CPU time that a process of one thread has used, user and system."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def backends_of(sql: psycopg.Connection[Any]) -> float:
    """The CPU time of the backends of PostgreSQL that live now, but for our own."""
    pids = sql.execute(
        "SELECT pid FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return sum(seconds_of(pid) for (pid,) in pids)


def newest_postgres() -> Path | None:
    """Debian's, where it has pg_stat_statements, which the wheel's lacks."""
    found = Path("/usr/lib/postgresql").glob("*/lib/pg_stat_statements.so")
    newest = max(found, key=lambda path: int(path.parts[-3]), default=None)
    return newest and newest.parents[1] / "bin"


class World:
    """A database with sessions in it; leaving its `with` block ends everything."""

    def __init__(self, bin_dir: Path | None, sessions: int = SESSIONS) -> None:
        self.sessions = sessions
        self._stack = ExitStack()
        self._bin_dir = bin_dir
        self.servers: dict[str, WebProcess] = {}

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(TemporaryDirectory(prefix="compas-bench-"))
        settings: dict[str, object] = {
            "shared_buffers": "512MB",
            "max_wal_size": "4GB",
            "max_connections": 150,
        }
        self.counts_statements = self._bin_dir is not None
        if self.counts_statements:
            settings["shared_preload_libraries"] = "pg_stat_statements"
        postgres = EmbeddedPostgres(folder, settings=settings, bin_dir=self._bin_dir)
        self._stack.enter_context(postgres)
        self.dsn = postgres.dsn()
        asyncio.run(migrate(self.dsn))
        self.sql = self._stack.enter_context(psycopg.connect(self.dsn, autocommit=True))
        self.version = self.sql.info.parameter_status("server_version")
        if self.counts_statements:
            self.sql.execute("CREATE EXTENSION pg_stat_statements")
        self._fill()
        self.cookies = Path(folder) / "cookies"
        self.no_cookies = Path(folder) / "no-cookies"
        keys = KeyRing([ENVIRON["APP_KEYS"]])
        name = f"{NAME}.sess"
        self.cookies.write_text(
            "\n".join(f"{name}={keys.sign(name, i)}" for i in self.ids) + "\n"
        )
        self.no_cookies.write_text("")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exc_type, exc, traceback)

    def _fill(self) -> None:
        """The sessions, in our table and in those of the hand-written handlers."""
        self.ids = [new_handle() + new_secret() for _ in range(self.sessions)]
        for table, key in (("hand_written", "text"), ("careful", "bytea")):
            self.sql.execute(
                f"CREATE TABLE {table} (id {key} PRIMARY KEY, data jsonb NOT NULL,"
                " expires_at timestamptz NOT NULL) WITH (fillfactor = 80)"
            )
        data = Jsonb(DATA)
        with self.sql.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO hand_written VALUES (%s, %s, now() + interval '1 day')",
                [(i, data) for i in self.ids],
            )
            cursor.executemany(
                "INSERT INTO careful VALUES (%s, %s, now() + interval '6 days')",
                [(hashlib.sha256(i.encode()).digest(), data) for i in self.ids],
            )
            cursor.executemany(
                "INSERT INTO compas_session"
                "       (handle, secret_hash, shown_at, data, expires_at)"
                " VALUES (%s, %s, now(), %s, now() + interval '6 days')",
                [(i[:12], hash_secret(i[12:]), data) for i in self.ids],
            )
        # Visitors come in another order than their rows stand in.
        random.Random(7).shuffle(self.ids)
        self.settle()

    def settle(self) -> None:
        """No leftovers of the filling are to be counted later."""
        self.sql.execute("VACUUM (FREEZE, ANALYZE)")
        self.sql.execute("CHECKPOINT")

    def used(self, before: float = 0) -> None:
        """
        All sessions as if last used so many seconds ago, and their cookies not yet an
        hour old. With more than 30 seconds each is renewed when it is next asked for.
        """
        expires = f"expires_at = now() + interval '6 days' - interval '{before} s'"
        self.sql.execute(
            f"UPDATE compas_session SET {expires},"
            f" updated_at = now() - interval '{before} s', secret_at = now()"
        )
        self.sql.execute(f"UPDATE careful SET {expires}")
        # So that after a checkpoint all tables have their pages in the WAL.
        self.sql.execute("UPDATE hand_written SET expires_at = expires_at")
        self.sql.execute("VACUUM compas_session, careful, hand_written")

    def serve(self, variant: str) -> WebProcess:
        """Starts a web process, and waits until it answers."""
        server = self._stack.enter_context(WebProcess(variant, self.dsn))
        self.servers[variant] = server
        return server

    def counters(self, server: WebProcess) -> Counters:
        statements = wal = 0
        backends = backends_of(self.sql)
        row = self.sql.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
        ).fetchone()
        assert row is not None
        if self.counts_statements:
            found = self.sql.execute(
                "SELECT coalesce(sum(calls), 0)::bigint,"
                " coalesce(sum(wal_bytes), 0)::bigint FROM pg_stat_statements"
                " WHERE query ~ '(compas_session|hand_written|careful|^BEGIN|^COMMIT)'"
            ).fetchone()
            assert found is not None
            statements, wal = found
        else:
            wal = row[0]
        return Counters(server.cpu(), backends, statements, wal)


class WebProcess:
    """One variant in a process of its own."""

    def __init__(self, variant: str, dsn: str) -> None:
        self.variant, self.port = variant, free_port()
        self._command = [
            *(sys.executable, "-m", "benchmarks.server"),
            *(variant, str(self.port), dsn),
        ]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"{self.variant} did not start")
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10):
            return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def cpu(self) -> float:
        """Seconds of CPU time that it has used."""
        return seconds_of(self._process.pid)

    def memory(self) -> int:
        """Bytes that are its own and nobody else's."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        lines = [line.split() for line in text.splitlines()[1:]]
        return 1024 * sum(
            int(line[1]) for line in lines if line[0].startswith("Private_")
        )
