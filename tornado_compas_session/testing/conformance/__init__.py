"""
The contract of `SessionStore` and `UserSessions` (protocols.py) as tests for pytest:
for those who write a store of their own, and for ours.

    class TestMyStore(StoreSuite):
        @pytest.fixture
        def bench(self):
            clock = Clock()
            return Bench(MyStore(clock=clock), clock.move)

A store that cannot list a user's sessions passes `SessionStoreSuite` alone. The tests
are coroutines: a plugin has to run them (pytest-asyncio with `asyncio_mode = auto`,
pytest-tornado).
"""

from __future__ import annotations

from tornado_compas_session.testing.conformance.bench import Bench
from tornado_compas_session.testing.conformance.increments import IncrementsSuite
from tornado_compas_session.testing.conformance.lifetimes import LifetimesSuite
from tornado_compas_session.testing.conformance.locks import LocksSuite
from tornado_compas_session.testing.conformance.rows import KeepingSuite
from tornado_compas_session.testing.conformance.secrets import SecretsSuite
from tornado_compas_session.testing.conformance.users import UserSessionsSuite

__all__ = ["Bench", "SessionStoreSuite", "StoreSuite", "UserSessionsSuite"]


class SessionStoreSuite(
    KeepingSuite,
    LifetimesSuite,
    SecretsSuite,
    IncrementsSuite,
    LocksSuite,
):
    """What every store promises."""


class StoreSuite(SessionStoreSuite, UserSessionsSuite):
    """All of it."""
