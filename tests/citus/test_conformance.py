"""
The suite of the store on a distributed table, through each driver: one of the two
stores asks the coordinator, the other one a worker.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.citus.conftest import Schemas
from tests.drivers import DRIVERS
from tests.integration.test_store import (
    PASS_TIME,
    MakeStore,
    dsn,
    new_store,
)
from tornado_compas_session.testing.conformance import Bench, StoreSuite

__all__ = ["dsn", "new_store"]


@pytest.fixture(scope="module", params=["connect", *DRIVERS])
def kind(request: pytest.FixtureRequest) -> str:
    """What the stores are made with."""
    return str(request.param)


class TestDistributed(StoreSuite):
    @pytest.fixture
    def bench(
        self, kind: str, dsn: str, databases: Schemas, new_store: MakeStore
    ) -> Bench:
        def run(sql: str, **values: float) -> None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(sql, values or None)

        run("DELETE FROM compas_session")
        return Bench(
            new_store(kind, dsn),
            lambda seconds: run(PASS_TIME, past=seconds),
            new_store(kind, databases.by_worker(dsn)),
        )
