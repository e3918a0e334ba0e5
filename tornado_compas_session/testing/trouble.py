"""A store that is slow or away, for as long as a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any
from unittest import mock

from tornado_compas_session.core.protocols import SessionStore, UserSessions
from tornado_compas_session.exceptions import StoreUnavailable

_First = Callable[[], Awaitable[object]]


def store_away(store: Any, *methods: str) -> AbstractContextManager[None]:
    """
    In its `with` block the store raises `StoreUnavailable`, so requests are a 503.

    Without `methods` in all of them; `store_away(store, "save", "regenerate")` loads,
    and fails to save.
    """

    async def first() -> None:
        raise StoreUnavailable("the store is away, because a test says so")

    return _begin_with(first, store, methods)


def store_slow(
    store: Any, seconds: float, *methods: str
) -> AbstractContextManager[None]:
    """In its `with` block the store waits before it does anything, as `store_away`."""
    return _begin_with(lambda: asyncio.sleep(seconds), store, methods)


@contextmanager
def _begin_with(first: _First, store: Any, methods: tuple[str, ...]) -> Iterator[None]:
    known = {*vars(SessionStore), *vars(UserSessions)}
    with ExitStack() as replaced:
        for name in methods or known:
            if name[0] != "_" and hasattr(store, name):
                method = getattr(store, name)
                method = (_locking if name == "lock" else _asking)(first, method)
                replaced.enter_context(mock.patch.object(store, name, method))
        yield


def _asking(first: _First, method: Any) -> Any:
    async def ask(*args: Any, **options: Any) -> Any:
        await first()
        return await method(*args, **options)

    return ask


def _locking(first: _First, method: Any) -> Any:
    @asynccontextmanager
    async def lock(*args: Any, **options: Any) -> AsyncIterator[Any]:
        await first()
        async with method(*args, **options) as locked:
            yield locked

    return lock
