"""`MemorySessionStore`: what the suite of all stores cannot ask of it."""

from __future__ import annotations

import asyncio

from tests.factories import Clock
from tornado_compas_session import MemorySessionStore
from tornado_compas_session.core.ids import hash_secret
from tornado_compas_session.core.types import Identity, NewSecret, SessionChange

ONE, OTHER = hash_secret("1" * 24), hash_secret("2" * 24)
HANDLE = "a" * 12


def change(**texts):
    return SessionChange(texts, idle=60.0)


async def test_its_clock_is_yours():
    """Moved on, sessions expire; all of its times are by it."""
    clock = Clock(1000.0)
    store = MemorySessionStore(clock=clock)
    saved = await store.create(HANDLE, ONE, change(a="1"))
    assert (1060.0, 1000.0) == (saved.expires, saved.now)
    clock.now += 59
    record = await store.load(HANDLE)
    assert record is not None
    assert (1000.0, 1059.0) == (record.created, record.now)
    clock.now += 1

    assert await store.load(HANDLE) is None
    assert await store.save(HANDLE, 0, change()) is None


async def test_its_length_counts_the_live_ones():
    """Expired rows are there until they are deleted, and count no more."""
    clock = Clock()
    store = MemorySessionStore(clock=clock)
    for handle in ("a" * 12, "b" * 12):
        await store.create(handle, ONE, change())
    assert 2 == len(store)
    clock.now += 60
    assert 0 == len(store)
    await store.create("c" * 12, ONE, change())

    assert 2 == await store.delete_expired()
    assert 1 == len(store)


async def test_what_it_gives_out_is_no_way_in():
    """A record is a copy: nothing that is done to it reaches the store."""
    store = MemorySessionStore()
    texts = {"a": "1"}
    await store.create(HANDLE, ONE, SessionChange(texts, idle=60.0))
    texts["a"] = "2"
    before = await store.load(HANDLE)
    await store.save(HANDLE, 0, change(b="1"))

    assert before is not None
    assert '{"a":1}' == before.data


async def test_a_block_that_is_open_is_seen_by_nobody():
    """Readers have the row of before; writers wait for the end of the block."""
    store = MemorySessionStore()
    await store.create(HANDLE, ONE, change(n="0"))
    async with store.lock(HANDLE, 0, 5) as locked:
        assert locked is not None
        await locked.regenerate(NewSecret(ONE, OTHER, Identity("7")), change(n="1"))
        record = await store.load(HANDLE)
        assert record is not None
        assert ('{"n":0}', ONE, 0) == (record.data, record.secret_hash, record.epoch)
        assert [] == await store.sessions_of("7")
        late = asyncio.ensure_future(store.save(HANDLE, 0, change(n="2")))
        await asyncio.sleep(0)
        assert not late.done()

    assert await late is None  # the visitor has signed in meanwhile
    [info] = await store.sessions_of(7)
    assert HANDLE == info.handle


async def test_a_row_that_ends_inside_of_a_block_stays_ended():
    """`revoke` waits for no lock."""
    store = MemorySessionStore()
    await store.create(HANDLE, ONE, change(n="0"))
    async with store.lock(HANDLE, 0, 5) as locked:
        assert locked is not None
        await locked.save(change(n="1"))
        assert await store.revoke(HANDLE)

    assert await store.load(HANDLE) is None
    assert 0 == len(store)
