"""What the reliability tests share: applications in this process on real stores."""

from __future__ import annotations

import contextlib

import pytest

from tests.apps.web import make_app
from tests.apps.wrong_stores import STORES
from tests.factories import serve


@pytest.fixture
def applications(database):
    """Several applications on one database, each with a store and a pool of its own."""

    @contextlib.asynccontextmanager
    async def start(name="right", number=2, **options):
        async with contextlib.AsyncExitStack() as stack:
            urls = []
            for _ in range(number):
                store = await STORES[name].connect(database)
                stack.push_async_callback(store.close)
                urls.append(stack.enter_context(serve(make_app(store, **options))))
            yield urls

    return start
