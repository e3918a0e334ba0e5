"""
Fixtures for pytest: there as soon as the package is installed, idle until asked for.

- `session_clock`: a clock that is moved by hand.
- `session_store`: a `MemorySessionStore` that goes by it.
- `session_environ`: an environment in which an application starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tornado_compas_session.stores.memory import MemorySessionStore
    from tornado_compas_session.testing import Clock


@pytest.fixture
def session_clock() -> Clock:
    """A clock that stands until `session_clock.move(days=1)`."""
    from tornado_compas_session.testing import Clock

    return Clock()


@pytest.fixture
def session_store(session_clock: Clock) -> MemorySessionStore:
    """An empty store, whose sessions expire by `session_clock`."""
    from tornado_compas_session.stores.memory import MemorySessionStore

    return MemorySessionStore(clock=session_clock)


@pytest.fixture
def session_environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sets what an application reads at its start; returns it."""
    environ = {
        "APP_NAME": "test",
        "APP_ENV": "development",
        "APP_KEYS": "a-key-for-tests-and-for-nothing-else",
    }
    for name in ("NODE_ENV", "COOKIE_URL", "CORS_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return environ
