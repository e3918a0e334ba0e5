"""What users test their own applications and stores with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tests.docs.pages import blocks
from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
    SessionMixin,
    SettingsError,
    session_settings,
)
from tornado_compas_session.testing import Clock, session_cookie

ROOT = Path(__file__).parents[2]


class Who(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.write({"data": dict(self.session), "max_age": self.session.max_age})


async def answer(settings: dict[str, Any], cookie: str) -> dict[str, Any]:
    server = HTTPServer(Application([("/", Who)], **settings))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/"
        response = await AsyncHTTPClient().fetch(url, headers={"Cookie": cookie})
        return dict(json.loads(response.body))
    finally:
        server.stop()


async def test_cookie_signs_a_client_in(database: str) -> None:
    """With the real store the session is really there, and found by its user."""
    store = await PostgresSessionStore.connect(database)
    try:
        settings = session_settings(store=store)
        cookie = await session_cookie(settings, {"user_id": 7, "cart": [1]})
        answered = await answer(settings, cookie)

        assert {"user_id": 7, "cart": [1]} == answered["data"]
        assert 1 == len(await store.sessions_of(7))
    finally:
        await store.close()


@pytest.mark.parametrize(
    "options",
    [
        {"keep_public_cookie": True},
        {"signed": False},
        {"key": "__Host-shop", "secure": True, "max_age": "session"},
    ],
)
async def test_cookie_fits_the_options(options: dict[str, Any]) -> None:
    """Whatever the cookie looks like, the application reads it."""
    settings = session_settings(store=MemorySessionStore(), **options)
    cookie = await session_cookie(settings, {"user_id": 7})

    assert {"user_id": 7} == (await answer(settings, cookie))["data"]


async def test_cookie_without_a_store() -> None:
    """The data is in the cookie then."""
    settings = session_settings()
    cookie = await session_cookie(settings, {"user_id": 7})

    assert {"user_id": 7} == (await answer(settings, cookie))["data"]


async def test_attributes_of_the_session_can_be_given() -> None:
    """As for "remember me"."""
    settings = session_settings(store=MemorySessionStore())
    cookie = await session_cookie(settings, {"user_id": 7}, max_age=86400)

    assert 86400 == (await answer(settings, cookie))["max_age"]


async def test_moved_clock_expires_sessions() -> None:
    """Six days pass in no time."""
    clock = Clock()
    settings = session_settings(store=MemorySessionStore(clock=clock), max_age=600)
    cookie = await session_cookie(settings, {"user_id": 7})

    clock.move(minutes=9)
    assert {"user_id": 7} == (await answer(settings, cookie))["data"]
    clock.move(minutes=9)  # it was used, so it lives on
    assert {"user_id": 7} == (await answer(settings, cookie))["data"]
    clock.move(601)
    assert {} == (await answer(settings, cookie))["data"]


async def test_misuse_is_explained() -> None:
    """Settings of something else, and a session that would not be stored."""
    with pytest.raises(SettingsError, match="session_settings"):
        await session_cookie({}, {"user_id": 7})
    with pytest.raises(SettingsError, match="without data"):
        await session_cookie(session_settings(store=MemorySessionStore()), {})


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A pytest of its own, with our plugin and with none that happens to be there."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            *("-p", "tornado_compas_session.testing.plugin", *arguments),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_fixtures_of_the_plugin(tmp_path: Path) -> None:
    """A user's test that names them gets them, with nothing else set up."""
    (tmp_path / "test_shop.py").write_text(
        textwrap.dedent(
            """
            import asyncio
            from tornado_compas_session import session_settings
            from tornado_compas_session.testing import session_cookie

            def test_expiry(session_store, session_clock, session_environ):
                settings = session_settings(store=session_store, max_age=60)
                cookie = asyncio.run(session_cookie(settings, {"user_id": 7}))
                assert cookie.startswith("test.sess=2|")
                assert 1 == len(session_store)
                session_clock.move(61)
                assert 0 == len(session_store)
            """
        )
    )
    run = run_pytest(tmp_path)

    assert 0 == run.returncode, run.stdout + run.stderr
    assert "1 passed" in run.stdout


def test_plugin_is_idle_unless_used(tmp_path: Path) -> None:
    """It sets no variable, adds no option and touches no test."""
    (tmp_path / "test_other.py").write_text(
        "import os\ndef test_nothing():\n    assert 'shop' == os.environ['APP_NAME']\n"
    )
    os.environ["APP_NAME"] = "shop"  # the fixture `environment` takes it back
    run = run_pytest(tmp_path)

    assert 0 == run.returncode, run.stdout + run.stderr


@pytest.mark.slow
def test_files_of_the_page_pass(tmp_path: Path) -> None:
    """
    The tests that docs/testing.md shows are tests, and pass: with Tornado's test case,
    with pytest-tornado, with pytest alone, and those of a store.
    """
    (tmp_path / "conftest.py").write_text(RUNNER + LOOP)
    page = ROOT / "docs" / "testing.md"
    files = {block.file: block.text for block in blocks(page) if block.file}
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert {
        "test_profile.py",
        "test_form.py",
        "test_plain.py",
        "test_my_store.py",
    } == files.keys()

    run = run_pytest(tmp_path, "-q", "-p", "pytest_tornado.plugin", "test_form.py")
    assert 0 == run.returncode, run.stdout + run.stderr
    run = run_pytest(tmp_path, "-q", "--ignore=test_form.py")
    assert 0 == run.returncode, run.stdout + run.stderr


OWN_STORE = """
import asyncio, json
import pytest
from tornado_compas_session import MemorySessionStore, StoreUnavailable
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.testing.conformance import Bench, StoreSuite
from tornado_compas_session.testing import Clock

class Mine(MemorySessionStore):
    {fault}

class TestMine(StoreSuite):
    @pytest.fixture
    def bench(self):
        clock = Clock()
        return Bench(Mine(clock=clock), clock.move)
"""
# pytest-tornado's own loop is made by a way that Tornado has deprecated.
LOOP = """
from tornado.ioloop import IOLoop

@pytest.fixture
def io_loop():
    loop = IOLoop(make_current=False)
    asyncio.set_event_loop(loop.asyncio_loop)
    yield loop
    loop.close()
"""
# What pytest-asyncio does, in as little as will do.
RUNNER = """
import asyncio, inspect
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj) and "bench" in pyfuncitem.funcargs:
        names = pyfuncitem._fixtureinfo.argnames
        wanted = {name: pyfuncitem.funcargs[name] for name in names}
        asyncio.run(pyfuncitem.obj(**wanted))
        return True
"""


@pytest.mark.slow
def test_suite_passes_a_good_store_of_ones_own(tmp_path: Path) -> None:
    """Who writes a store derives a class, supplies the store, and has the tests."""
    (tmp_path / "conftest.py").write_text(RUNNER)
    (tmp_path / "test_mine.py").write_text(OWN_STORE.format(fault="pass"))
    run = run_pytest(tmp_path, "-q")

    assert 0 == run.returncode, run.stdout


FAULTS = {
    "resurrects": """
    async def save(self, handle, epoch, change, **deadline):
        if not await self.load(handle):
            return await self.create(handle, b"", change)
        return await super().save(handle, epoch, change)
    """,
    "overwrites": """
    async def create(self, handle, *new, **deadline):
        await self.delete(handle, 0)
        return await super().create(handle, *new)
    """,
    "reading extends": """
    async def load(self, handle, **deadline):
        await self.save(handle, 0, SessionChange(idle=3600.0))
        return await super().load(handle)
    """,
    "replaces": """
    async def save(self, handle, epoch, change, **deadline):
        return await super().save(handle, epoch, change._replace(replace=True))
    """,
    "forgets what a new secret shuts out": """
    async def save(self, handle, epoch, change, **deadline):
        record = await self.load(handle)
        return await super().save(handle, record.epoch if record else 0, change)
    """,
    "gives anybody a new secret": """
    async def regenerate(self, handle, epoch, secret, change, **deadline):
        if record := await self.load(handle):
            secret = secret._replace(mine=record.secret_hash)
        return await super().regenerate(handle, epoch, secret, change)
    """,
    "keeps the former secret of another visitor": """
    def _turn(self, row, secret, change):
        former = row.record.secret_hash
        row = super()._turn(row, secret, change)
        return row._replace(record=row.record._replace(former_hash=former))
    """,
    "takes any secret for shown": """
    async def save(self, handle, epoch, change, **deadline):
        if record := await self.load(handle):
            change = change._replace(shown=record.secret_hash)
        return await super().save(handle, epoch, change)
    """,
    "signs in by a key of the data": """
    def _merge(self, row, change):
        row = super()._merge(row, change)
        return row._replace(user_id=json.loads(row.data.get("user_id", "null")))
    """,
    "ends the session that signs in": """
    def _end_surplus(self, row, identity):
        nobody = row._replace(record=row.record._replace(handle=""))
        super()._end_surplus(nobody, identity)
    """,
    "has no bound": """
    def _end_surplus(self, row, identity):
        pass
    """,
    "loses increments": """
    async def increment(self, handle, epoch, *adds, **deadline):
        before = dict(self._rows[handle].data) if await self.load(handle) else {}
        await asyncio.sleep(0)
        if handle in self._rows:
            self._rows[handle].data.update(before)
        return await super().increment(handle, epoch, *adds)
    """,
    "counts in floats": """
    async def increment(self, handle, epoch, key, by, change, **deadline):
        done = await super().increment(handle, epoch, key, by, change)
        return done and done._replace(text=str(float(done.text)))
    """,
    "adds to texts": """
    async def increment(self, handle, epoch, key, by, change, **deadline):
        row = self._rows.get(handle)
        if row and row.data.get(key, "").startswith('"'):
            row.data[key] = row.data[key].strip('"') or "0"
        return await super().increment(handle, epoch, key, by, change)
    """,
    "ends whatever the epoch": """
    async def delete(self, handle, epoch, **deadline):
        record = await self.load(handle)
        return await super().delete(handle, record.epoch if record else 0)
    """,
    "locks whatever the epoch": """
    def lock(self, handle, epoch, timeout):
        row = self._rows.get(handle)
        return super().lock(handle, row.record.epoch if row else 0, timeout)
    """,
    "knows no deadline": """
    async def save(self, handle, epoch, change):
        return await super().save(handle, epoch, change)
    """,
    "says that it did not begin what it did": """
    async def save(self, handle, epoch, change, *, deadline=None):
        saved = await super().save(handle, epoch, change)
        if deadline and deadline <= asyncio.get_running_loop().time():
            raise StoreUnavailable
        return saved
    """,
    "extends a fixed lifetime": """
    def _merge(self, row, change):
        super()._merge(row, change._replace(idle=change.idle or 3600.0))
    """,
    "gives a new secret beside a lock": """
    async def regenerate(self, handle, epoch, *new, **deadline):
        row = self._live(handle, epoch)
        if row is None:
            return None
        held, row.lock = row.lock, asyncio.Lock()
        done = await super().regenerate(handle, epoch, *new)
        row.lock = held
        return done
    """,
    "waits where it should not": """
    def lock(self, handle, epoch, timeout):
        return super().lock(handle, epoch, timeout or 2)
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_suite_catches_a_faulty_store(fault: str, tmp_path: Path) -> None:
    """The mistakes that stores of this field have made do not pass."""
    (tmp_path / "conftest.py").write_text(RUNNER)
    (tmp_path / "test_mine.py").write_text(OWN_STORE.format(fault=FAULTS[fault]))
    run = run_pytest(tmp_path, "-q", "-x")

    assert 1 == run.returncode, run.stdout
    assert "failed" in run.stdout
