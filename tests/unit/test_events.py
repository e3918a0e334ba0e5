"""`on_event`: what is told, to whom it makes no difference, and what is never told."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.factories import Clock, Jar, TroubledStore, load_session, make_manager
from tornado_compas_session import (
    MemorySessionStore,
    SessionGone,
    SettingsError,
    StoreUnavailable,
    session_settings,
)
from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.session import Session


class Heard(list[tuple[str, Mapping[str, Any]]]):
    def __call__(self, name: str, info: Mapping[str, Any]) -> None:
        self.append((name, info))

    def names(self) -> list[str]:
        found = [name.removeprefix("session.") for name, _ in self]
        self.clear()
        return found


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> TroubledStore:
    return TroubledStore(clock=clock)


@pytest.fixture
def manager(heard: Heard, store: TroubledStore) -> SessionManager:
    return make_manager(store, on_event=heard)


class Browser:
    def __init__(self, manager: SessionManager) -> None:
        self.manager, self.jar = manager, Jar("http://localhost")

    async def session(self) -> Session:
        cookies = self.jar.header()
        return await load_session(self.manager, [cookies] if cookies else [])

    async def commit(self, session: Session) -> None:
        try:
            await self.manager.commit(session)
        finally:
            for header in self.manager.cookies(session):
                self.jar.take(header)

    async def write(self, **data: Any) -> Session:
        session = await self.session()
        session.update(data)
        await self.commit(session)
        return session


async def test_the_life_of_a_session_is_told(manager, heard, clock):
    """Beginning, data, sign-in, renewal of the row and of the cookie, end."""
    browser = Browser(manager)
    session = await browser.write(n=1)
    assert ("session.created", {"handle": session.handle}) == heard[0]
    name, info = heard[1]
    assert ("session.commit", session.handle, "saved") == (
        name,
        info["handle"],
        info["outcome"],
    )
    assert 0 <= info["seconds"] < 5
    assert ["created", "commit"] == heard.names()

    await browser.write(n=2)
    assert ["commit"] == heard.names()
    await browser.write(user_id=7)
    assert ["regenerated", "commit"] == heard.names()
    clock.now += 60
    await browser.commit(await browser.session())
    assert ["renewed", "commit"] == heard.names()
    clock.now += 3600
    await browser.commit(await browser.session())
    assert ["renewed", "commit"] == heard.names()

    session = await browser.session()
    session.destroy()
    await browser.commit(session)
    assert session.is_new
    assert heard[1][1]["handle"] == heard[0][1]["handle"]
    assert ["destroyed", "commit"] == heard.names()


async def test_what_does_not_go_well_is_told(manager, heard, store):
    """A cookie that is not ours, a session that ended meanwhile, a store away."""
    browser = Browser(manager)
    assert () == manager.find(["counter.sess=nonsense"])
    assert [("session.refused", {"reason": "cookie", "handle": None})] == heard
    heard.clear()

    await browser.write(n=1)
    session = await browser.session()
    await store.revoke(session.handle)
    handle = session.handle
    session["n"] = 2
    heard.clear()
    with pytest.raises(SessionGone):
        await browser.commit(session)
    assert ("session.refused", {"reason": "gone", "handle": handle}) == heard[0]
    assert "SessionGone" == heard[1][1]["outcome"]
    assert ["refused", "commit"] == heard.names()

    store.failing = "create"
    with pytest.raises(StoreUnavailable):
        await Browser(manager).write(n=1)
    assert "StoreUnavailable" == heard[-1][1]["outcome"]
    assert ["store.trouble", "commit"] == heard.names()


async def test_a_hook_that_raises_breaks_nothing(store, caplog):
    """It is logged once, and told on."""
    told = []

    def fails(name: str, info: Mapping[str, Any]) -> None:
        told.append(name)
        raise RuntimeError("no metrics today")

    browser = Browser(make_manager(store, on_event=fails))
    await browser.write(n=1)
    await browser.write(n=2)

    assert {"n": 2} == dict(await browser.session())
    assert ["session.created", "session.commit", "session.commit"] == told
    assert 1 == caplog.text.count("on_event failed")


async def test_neither_id_nor_data_is_told(manager, heard):
    """The handle names the session; it opens nothing."""
    browser = Browser(manager)
    await browser.write(secret="rosebud", user_id="ada")
    await browser.write(user_id="bob")

    text = json.dumps(heard)
    assert "rosebud" not in text and "ada" not in text and "bob" not in text
    [cookie] = browser.jar.live()
    signed = b64decode(cookie.value.split("|")[4].partition(":")[2]).decode()
    assert signed[:12] in text  # the handle
    assert signed[12:] not in text


@pytest.mark.parametrize("hook", ["print", 7])
def test_what_cannot_be_called_is_refused(hook):
    """At the start, and so is what would have to be awaited."""

    async def waits(name: str, info: Mapping[str, Any]) -> None:
        """It would never run."""

    for wrong in (hook, waits):
        with pytest.raises(SettingsError, match="on_event"):
            session_settings(MemorySessionStore(), on_event=wrong)


def test_a_store_is_asked_what_it_has_to_tell(heard):
    """One that can tell of its batches does so to the same hook."""

    class Telling(MemorySessionStore):
        def listen(self, tell: Callable[..., None]) -> None:
            tell("store.batch", kind="load", size=1)

    make_manager(Telling(), on_event=heard)

    assert [("store.batch", {"kind": "load", "size": 1})] == heard


def test_memory_has_metrics():
    """What there is to say of it."""
    assert {"sessions": 0} == MemorySessionStore().metrics()
