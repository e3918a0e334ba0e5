"""
The tests of a store again, where Citus spreads its table over several servers.

They run with `--citus DSN`, of the coordinator, and make schemas of their own in that
database. Here every fixture that hands out a database hands out such a schema.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Databases
from tornado_compas_session.stores.migrations import script


class Schemas(Databases):
    """Makes and drops schemas, in place of databases."""

    def create(self, template: str = "") -> str:
        name = f"compas_test_{secrets.token_hex(6)}"
        self._run(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        if template:
            with psycopg.connect(self.dsn(name)) as connection:
                connection.execute(script(distributed=True).encode())
        return name

    def drop(self, name: str) -> None:
        self._run(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))

    def dsn(self, name: str) -> str:
        mark = "&" if "?" in self.server else "?"
        return f"{self.server}{mark}options={quote(f'-csearch_path={name}')}"


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Iterator[Schemas]:
    """The cluster that `--citus` names."""
    dsn = request.config.getoption("--citus")
    if not dsn:
        pytest.skip("needs a cluster with Citus: --citus DSN (docs/scaling.md)")
    yield Schemas(dsn)


@pytest.fixture(scope="session")
def template_database() -> str:
    """Says that a schema is to have the table."""
    return "with the table"
