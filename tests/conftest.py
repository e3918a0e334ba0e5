"""
What every test finds: a clean environment, one PostgreSQL for the run, and a migrated
database of its own for the test that asks for one.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from tornado.ioloop import IOLoop

from tests.clusters import Cluster, cluster_folder
from tests.ports import free_port as _free_port
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.testing.embedded import EmbeddedPostgres

# Read before the tests' environment is cleared: another server than the embedded one.
DATABASE_URL = os.environ.get("DATABASE_URL")
pytest_plugins = ["tests.pace"]
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
ClusterMaker = Callable[..., Cluster]


# -- the environment -------------------------------------------------------------------


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the variables of who runs it; a counter in development is set up."""
    for name in list(os.environ):
        if name.startswith(("APP_", "PG")) or name in {
            "NODE_ENV",
            "COOKIE_URL",
            "CORS_URL",
            "DATABASE_URL",
        }:
            monkeypatch.delenv(name)
    monkeypatch.setenv("APP_NAME", "counter")
    monkeypatch.setenv("APP_ENV", "development")
    monkeypatch.setenv("APP_KEYS", "a-key-for-the-tests-and-nothing-else")


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    return _free_port()


# -- the database ----------------------------------------------------------------------


class Databases:
    """Makes and drops databases on the server of the run."""

    def __init__(self, server: str) -> None:
        # The URL of the server's maintenance database.
        self.server = server

    def create(self, template: str = "template0") -> str:
        name = f"compas_test_{secrets.token_hex(6)}"
        # A copy of files is quicker than a copy through the WAL, which is the default.
        self._run(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        return name

    def drop(self, name: str) -> None:
        self._run(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                sql.Identifier(name)
            )
        )

    def dsn(self, name: str) -> str:
        return urlsplit(self.server)._replace(path=f"/{name}").geturl()

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """The server of the run: DATABASE_URL's, else an embedded one that ends with it."""
    if DATABASE_URL:
        yield Databases(DATABASE_URL)
        return
    # Durability is not what these tests are about; those that crash the server on
    # purpose make a cluster of their own.
    settings = {"fsync": False, "full_page_writes": False, "max_connections": 200}
    with (
        cluster_folder() as folder,
        EmbeddedPostgres(
            folder, settings=settings, bin_dir=request.config.getoption("--postgres")
        ) as server,
    ):
        yield Databases(server.dsn())


@pytest.fixture(scope="session")
def template_database(databases: Databases) -> Iterator[str]:
    """The name of the migrated database that the tests' own ones are copies of."""
    name = databases.create()
    asyncio.run(migrate(databases.dsn(name)))
    yield name
    databases.drop(name)


@pytest.fixture
def database(databases: Databases, template_database: str) -> Iterator[str]:
    """The URL of a migrated, empty database that only this test uses."""
    name = databases.create(template_database)
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture
def empty_database(databases: Databases) -> Iterator[str]:
    """The URL of a database of this test's own that nobody has migrated."""
    name = databases.create()
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest) -> Iterator[ClusterMaker]:
    """
    Makes further servers, for tests that crash, freeze or replace theirs; durable ones.

    Takes the arguments of `Cluster` but the folder, and `standby_of` another
    server. They are not started yet, and end with the test.
    """
    with ExitStack() as stack:

        def make(*, standby_of: Cluster | None = None, **options: Any) -> Cluster:
            folder = stack.enter_context(cluster_folder())
            if standby_of is None:
                options.setdefault("bin_dir", request.config.getoption("--postgres"))
                cluster = Cluster(folder, **options)
            else:
                cluster = standby_of.standby(folder, **options)
            stack.callback(cluster.stop, "kill")
            return cluster

        yield make


@pytest.fixture
def installed_postgres() -> Path:
    """The programs of the newest PostgreSQL that Debian installed, for `bin_dir=`."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    if newest := max(found, key=lambda path: int(path.parts[-3]), default=None):
        return newest.parent
    pytest.skip("needs a PostgreSQL of the distribution's: apt install postgresql")


# -- the loop --------------------------------------------------------------------------


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """
    The loop of this test, in place of pytest-tornado's, which sets it up by a way that
    Tornado has deprecated. What a test leaves running ends with it.
    """
    loop = IOLoop(make_current=False)
    asyncio_loop = loop.asyncio_loop
    asyncio.set_event_loop(asyncio_loop)
    yield loop
    while left := asyncio.all_tasks(asyncio_loop):
        for task in left:
            task.cancel()
        # Once more after a second: a worker of psycopg's pool that is about to connect
        # does not end at the first.
        asyncio_loop.run_until_complete(asyncio.wait(left, timeout=1))
        for task in left:
            if task.done() and not task.cancelled():
                task.exception()
    asyncio_loop.run_until_complete(asyncio_loop.shutdown_asyncgens())
    loop.close(all_fds=True)
    asyncio.set_event_loop(None)


# -- how tests run ---------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres", metavar="BIN", help="the folder of another PostgreSQL's programs"
    )
    parser.addoption("--citus", metavar="DSN", help="a cluster's coordinator, to test")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    for item in items:
        if inspect.iscoroutinefunction(getattr(item, "obj", None)):
            item.add_marker("gen_test")
    if config.getoption("--long"):
        # The longest takes some minutes, on a busy machine more.
        config.option.async_test_timeout = 3600.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    report = yield
    return _unskipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[
    None, pytest.CollectReport, pytest.CollectReport
]:
    report = yield
    return _unskipped(report)


def _unskipped(report: Report) -> Report:
    """In CI all that a test needs is there, so a skip would hide a fault."""
    if IN_CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        found = report.longrepr
        reason = str(found[2] if isinstance(found, tuple) else found)
        # Citus alone cannot be had everywhere: no distribution packages it.
        if "Citus" not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped, which CI forbids: {reason}"
    return report
