"""The reply to a write is lost after the database has committed it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.drivers import make_store
from tests.reliability.test_outages import Proxy
from tornado_compas_session import StoreUnavailable
from tornado_compas_session.core.ids import new_id
from tornado_compas_session.core.types import SessionChange, SessionRecord
from tornado_compas_session.exceptions import SessionIdTaken
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.testing.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow

CHANGE = SessionChange({"n": "1"}, idle=600.0)


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
    session_id, other = new_id(), new_id()
    # Connected and prepared, so that the next reply is that of the write itself.
    await store.create(other, CHANGE)

    proxy.lose = True
    with pytest.raises(StoreUnavailable):
        await store.create(session_id, CHANGE)
    assert not proxy.lose
    with pytest.raises(SessionIdTaken):
        await store.create(session_id, CHANGE)

    await store.save(other, CHANGE)  # prepared as well
    proxy.lose = True
    with pytest.raises(StoreUnavailable):
        await store.save(session_id, CHANGE._replace(changed={"n": "2"}))
    found = await store.load(session_id)

    assert isinstance(found, SessionRecord)
    assert '{"n": 2}' == found.data
    assert 2 == (await store.stats())["live"]
    await store.close()
    await proxy.stop()
