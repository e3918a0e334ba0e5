"""
The tests of a store again, where Citus spreads its table over several servers.

They run with `--citus DSN`, that of the coordinator, in schemas of their own in that
database. Here every fixture that hands out a database hands out such a schema.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Databases
from tornado_compas_session.stores.migrations import script

#: The number of an advisory lock, of the tests of a cluster.
LOCK = 7290217303148299


class Schemas(Databases):
    """Makes and drops schemas, in place of databases."""

    def __init__(self, server: str) -> None:
        super().__init__(server)
        self._is_locked = False
        with psycopg.connect(server) as connection:
            #: Host and port of each server that has shards, but the coordinator.
            self.workers: list[tuple[str, int]] = connection.execute(
                "SELECT nodename, nodeport FROM pg_dist_node"
                " WHERE isactive AND shouldhaveshards AND groupid > 0 ORDER BY nodeport"
            ).fetchall()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Of several processes of tests one is at work on the cluster at a time."""
        if self._is_locked:
            yield
            return
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def create(self, template: str = "") -> str:
        name = f"compas_test_{secrets.token_hex(6)}"
        with self.locked():
            self._run(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
            if template:
                with psycopg.connect(self.dsn(name)) as connection:
                    connection.execute(script(distributed=True).encode())
        return name

    def drop(self, name: str) -> None:
        with self.locked():
            self._run(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))

    def dsn(self, name: str) -> str:
        mark = "&" if "?" in self.server else "?"
        return f"{self.server}{mark}options={quote(f'-csearch_path={name}')}"

    def by_worker(self, dsn: str, number: int = 0, **changes: str) -> str:
        """The same, with a worker as the server that is asked."""
        user, at, _ = urlsplit(dsn).netloc.rpartition("@")
        host, port = self.workers[number]
        changes["netloc"] = f"{user}{at}{host}:{port}"
        return urlsplit(dsn)._replace(**changes).geturl()


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Without a cluster one test of each file says so for all."""
    if config.getoption("--citus"):
        return
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    first = {item.path: item for item in reversed(here)}
    left_out = [item for item in here if first[item.path] is not item]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Schemas:
    """The cluster that `--citus` names."""
    dsn = request.config.getoption("--citus")
    if not dsn:
        pytest.skip("a cluster with Citus was not tested: --citus DSN names one")
    return Schemas(dsn)


@pytest.fixture(scope="session")
def template_database() -> Iterator[str]:
    """Says that a schema is to have the table."""
    yield "with the table"


@pytest.fixture(autouse=True)
def undisturbed(databases: Schemas) -> Iterator[None]:
    """No other test takes a server away, or cleans up, meanwhile."""
    with databases.locked():
        yield
