"""The suite of the store, through each driver, on a distributed table."""

from __future__ import annotations

import pytest

from tests.drivers import DRIVERS
from tests.integration.test_store import (
    TestPostgresStore,
    brief,
    dsn,
    new_store,
    test_a_lock_may_be_waited_for_longer_than_a_statement_may_take,
)

__all__ = [
    "TestPostgresStore",
    "brief",
    "dsn",
    "new_store",
    "test_a_lock_may_be_waited_for_longer_than_a_statement_may_take",
]


@pytest.fixture(scope="module", params=["connect", *DRIVERS])
def kind(request: pytest.FixtureRequest) -> str:
    """What the store is made with."""
    return str(request.param)
