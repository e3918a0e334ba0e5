"""The reply to a write is lost after the database has committed it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.drivers import make_store
from tests.reliability.test_outages import Proxy
from tests.sessions import change, created, data_of
from tornado_compas_session import StoreUnavailable
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.exceptions import HandleTaken
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.testing.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow


class ForgetfulProxy(Proxy):
    """Breaks a connection instead of handing on the next reply of the server."""

    lose = False

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        to_client = writer.get_extra_info("sockname")[1] == self.port
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    if to_client and self.lose:
                        self.lose = False
                        return
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()


@pytest.mark.parametrize("driver", ["connect", "psycopg", "momoko"])
async def test_a_write_whose_reply_is_lost_happens_once(make_cluster, driver: str):
    """
    The store says that it does not know; trying again by the caller does no harm.

    momoko by itself would send it again, and who knows what was written in between.
    """
    cluster: EmbeddedPostgres = make_cluster()
    cluster.start()
    await migrate(cluster.dsn())
    proxy = ForgetfulProxy(cluster.port)
    await proxy.start()
    dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    store = await make_store(driver, dsn, size=1, timeout=5)
    handle, secret = new_handle(), new_secret()
    # Connected and prepared, so that the next reply is that of the write itself.
    other = await created(store)

    proxy.lose = True
    with pytest.raises(StoreUnavailable):
        await store.create(handle, hash_secret(secret), change({"n": 1}))
    assert not proxy.lose
    with pytest.raises(HandleTaken):
        await store.create(handle, hash_secret(secret), change({"n": 1}))

    await store.save(other, 0, change({"n": 1}))  # prepared as well
    proxy.lose = True
    with pytest.raises(StoreUnavailable):
        await store.save(handle, 0, change({"n": 2}))

    assert {"n": 2} == await data_of(store, handle)
    assert 2 == (await store.stats())["live"]
    await store.close()
    await proxy.stop()
