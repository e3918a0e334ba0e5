"""
No connection is to be had: each driver's pool says where to, and why, without a letter
of the password.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import momoko
import psutil
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from tornado.ioloop import IOLoop

from tests.clusters import cluster_folder
from tests.conftest import ClusterMaker
from tests.drivers import DRIVERS, make_adapter
from tests.ports import free_port
from tests.programs import program
from tornado_compas_session import SettingsError, StoreError, StoreUnavailable
from tornado_compas_session.core.protocols import Pool
from tornado_compas_session.exceptions import ConnectionLost
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.stores.pools import as_pool
from tornado_compas_session.stores.pools.asyncpg import open_pool
from tornado_compas_session.stores.pools.queries import compile_statement
from tornado_compas_session.tools.doctor import diagnose

MakePool = Callable[..., Awaitable[Pool]]

ONE = compile_statement("one", "SELECT 1")
SLEEP = compile_statement("sleep", "SELECT pg_sleep(5)::text")
SECRET = "s3cret"


@pytest.fixture(params=["connect", *DRIVERS])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_pool(driver: str, io_loop: IOLoop) -> Iterator[MakePool]:
    """Makes pools of the driver, which are closed when the test ends."""
    made: list[Pool] = []

    async def make(dsn: str, **options: Any) -> Pool:
        made.append(await make_adapter(driver, dsn, **options))
        return made[-1]

    yield make
    for pool in made:
        io_loop.run_sync(pool.close)


def run(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    """Asks the database, past the pool."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        answer = connection.execute(sql.encode())
        return answer.fetchall() if answer.description else []


async def failure(pool: Pool, *, timeout: float = 0.4) -> str:
    """What the pool says, and that it says it as what it is."""
    with pytest.raises(StoreUnavailable) as caught:
        await pool.fetch(ONE, timeout=timeout)
    assert not isinstance(caught.value, ConnectionLost)  # nothing was sent
    assert caught.value.__cause__ is None
    assert SECRET not in f"{caught.value!r} {vars(caught.value)}"
    return str(caught.value)


# -- where to --------------------------------------------------------------------------


async def test_a_refused_connection_names_host_and_port(make_pool: MakePool):
    """As a server that is down has it."""
    port = free_port()
    pool = await make_pool(f"postgresql://ada:{SECRET}@127.0.0.1:{port}/shop")
    expected = f"no connection to 127.0.0.1:{port}: connection refused"
    assert expected == await failure(pool)


@pytest.mark.slow
async def test_an_unknown_host_is_named(make_pool: MakePool):
    """With the port, and as what it is."""
    pool = await make_pool(f"postgresql://ada:{SECRET}@no.such.invalid:5433/shop")
    expected = "no connection to no.such.invalid:5433: unknown host name"
    assert expected == await failure(pool, timeout=2)


@pytest.mark.slow
async def test_a_password_that_is_not_percent_encoded_shows_no_letter(
    make_pool: MakePool, driver: str, caplog: pytest.LogCaptureFixture
):
    """Drivers take its end for a part of the host's name, and repeat that."""
    caplog.set_level(logging.DEBUG)
    dsn = f"postgresql://ada:open@{SECRET}@127.0.0.1:{free_port()}/shop"
    if driver == "connect":
        with pytest.raises(SettingsError, match="@ as %40") as caught:
            await make_pool(dsn)
        assert SECRET not in str(caught.value)
    else:
        pool = await make_pool(dsn)
        assert "percent-encoded" in await failure(pool, timeout=2)
    assert SECRET not in caplog.text


@pytest.mark.slow
async def test_nobody_answers(make_pool: MakePool, driver: str):
    """A server that takes the connection, and says nothing."""
    if driver == "momoko":  # its own `connect()` waits for ever, before it is ours
        return
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        pool = await make_pool(f"postgresql://ada:{SECRET}@127.0.0.1:{port}/shop")
        begun = time.monotonic()
        said = [await failure(pool) for _ in range(2)]
        assert time.monotonic() - begun < 1.5
        assert f"no connection to 127.0.0.1:{port}: no" in said[-1]
        assert "in time" in said[-1]


# -- who -------------------------------------------------------------------------------


@contextmanager
def password_wanted(dsn: str, role: str) -> Iterator[str]:
    """The DSN of a new role that has to sign in with its password, "first"."""
    [(path,)] = run(dsn, "SHOW hba_file")
    before = Path(path).read_text()
    run(dsn, f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
    Path(path).write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n{before}")
    run(dsn, "SELECT pg_reload_conf()")
    parts = urlsplit(dsn)
    where = f"{parts.hostname}:{parts.port}"
    theirs = parts._replace(netloc=f"{role}:wrong@{where}").geturl()
    try:
        limit = time.monotonic() + 10
        while time.monotonic() < limit:  # until the server has read it
            try:
                psycopg.connect(theirs).close()
            except psycopg.OperationalError:
                break
            time.sleep(0.02)
        yield parts._replace(netloc=f"{role}:first@{where}").geturl()
    finally:
        Path(path).write_text(before)
        run(dsn, "SELECT pg_reload_conf()")
        run(dsn, f"DROP ROLE {role}")


@pytest.mark.slow
async def test_a_changed_password_is_named_as_such(
    make_pool: MakePool, driver: str, empty_database: str
):
    """The connections that there are serve on; the next ones are refused for it."""
    role = f"ada_{driver}_{free_port()}"
    with password_wanted(empty_database, role) as dsn:
        pool = await make_pool(dsn, size=2)
        assert await pool.fetch(ONE, timeout=5)
        run(empty_database, f"ALTER ROLE {role} PASSWORD 'second'")
        assert await pool.fetch(ONE, timeout=5)

        mine = f"FROM pg_stat_activity WHERE usename = '{role}'"
        run(empty_database, f"SELECT pg_terminate_backend(pid) {mine}")
        while run(empty_database, f"SELECT 1 {mine}"):
            time.sleep(0.01)
        with pytest.raises(StoreUnavailable):  # it may be that the loss is heard of
            await pool.fetch(ONE, timeout=2)
        for _ in range(2):
            said = await failure(pool, timeout=2)
            assert "the database refused the user name or the password" in said

        run(empty_database, f"ALTER ROLE {role} PASSWORD 'first'")
        async with asyncio.timeout(5):
            while True:  # momoko tries again five times a second
                with contextlib.suppress(StoreUnavailable):
                    await pool.fetch(ONE, timeout=2)
                    break
                await asyncio.sleep(0.05)


async def test_a_database_that_is_not_there_is_named(
    make_pool: MakePool, empty_database: str
):
    """In the server's own words."""
    pool = await make_pool(f"{empty_database}_x")
    assert 'database "compas_test_' in await failure(pool)


# -- DSNs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "connect_timeout=3&keepalives=1&keepalives_idle=30&keepalives_interval=5"
        "&keepalives_count=3&tcp_user_timeout=5000",
        "channel_binding=prefer&gssencmode=disable&sslmode=prefer",
        "application_name=shop&options=-c%20statement_timeout%3D4s",
        "target_session_attrs=read-write&client_encoding=utf8",
    ],
)
async def test_a_dsn_of_libpqs_is_a_dsn(empty_database: str, options: str):
    """With `connect`, and on the command line: what the other drivers take, too."""
    dsn = f"{empty_database}?{options}"
    pool = await make_adapter("connect", dsn)
    assert await pool.fetch(ONE)
    name = compile_statement(
        "name",
        "SELECT current_setting('application_name'), setting"
        " FROM pg_settings WHERE name = 'statement_timeout'",
    )
    found = tuple((await pool.fetch(name))[0])
    assert (("shop", "4000") if "shop" in options else ("", "0")) == found
    await pool.close()
    assert await migrate(dsn)


async def test_what_asyncpg_itself_does_not_know_would_be_refused(empty_database: str):
    """The control: it takes it for a setting of the server."""
    pool = await make_adapter("asyncpg", f"{empty_database}?keepalives=1")
    with pytest.raises(StoreError, match="unrecognized configuration parameter"):
        await pool.fetch(ONE)
    await pool.close()


async def test_keepalives_of_the_dsn_are_those_of_the_socket(empty_database: str):
    """And the library's own where it has none."""
    options = "?keepalives_idle=17&tcp_user_timeout=1234"
    for dsn, idle, give_up in (
        (empty_database + options, 17, 1234),
        (empty_database, 30, 3000),
    ):
        pool = await open_pool(dsn, min_size=1, max_size=1, timeout=3)
        async with pool.acquire() as connection:
            link = connection._con._transport.get_extra_info("socket")
            assert 1 == link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            tcp = socket.IPPROTO_TCP
            assert idle == link.getsockopt(tcp, socket.TCP_KEEPIDLE)
            assert give_up == link.getsockopt(tcp, socket.TCP_USER_TIMEOUT)
        await pool.close()


# -- TLS -------------------------------------------------------------------------------


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> None:
    openssl(
        folder,
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
    )


def make_certificate(folder: Path, authority: str, host: str) -> None:
    openssl(
        folder,
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host}"),
        *("-addext", f"subjectAltName=DNS:{host}"),
        *("-keyout", "server.key", "-out", "server.csr"),
    )
    openssl(
        folder,
        *("x509", "-req", "-days", "2", "-in", "server.csr", "-copy_extensions"),
        *("copy", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
        *("-CAcreateserial", "-out", "server.pem"),
    )


class SecureServer:
    """A server whose certificate is for `localhost`, by the authority `right`."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.port = urlsplit(dsn).port

    def dsn(self, host: str, trusted: str, mode: str = "verify-full") -> str:
        return (
            f"postgresql://postgres@{host}:{self.port}/postgres?sslmode={mode}"
            f"&sslrootcert={self.folder / trusted}"
        )


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    program("openssl")
    with cluster_folder() as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_authority(folder, "right")
        make_authority(folder, "other")
        make_certificate(folder, "right", "localhost")
        yield folder


@pytest.fixture
def secure(
    make_cluster: ClusterMaker, installed_postgres: Path, certificates: Path
) -> SecureServer:
    # That of the wheel is built without TLS.
    server = make_cluster(bin_dir=installed_postgres).start()
    user = psutil.Process(server.pid).uids().real
    key = certificates / "server.key"
    shutil.chown(key, user)
    key.chmod(0o600)
    run(server.dsn(), f"ALTER SYSTEM SET ssl_cert_file = '{certificates}/server.pem'")
    run(server.dsn(), f"ALTER SYSTEM SET ssl_key_file = '{key}'")
    run(server.dsn(), "ALTER SYSTEM SET ssl = on")
    run(server.dsn(), "SELECT pg_reload_conf()")
    limit = time.monotonic() + 10
    while run(server.dsn(), "SHOW ssl") != [("on",)]:
        assert time.monotonic() < limit
        time.sleep(0.02)
    return SecureServer(certificates, server.dsn())


@pytest.mark.slow
async def test_a_certificate_that_is_not_trusted_is_named(
    make_pool: MakePool, driver: str, secure: SecureServer
):
    """What failed, which host, and the file that it was checked against."""
    with_the_right_one = await make_pool(secure.dsn("localhost", "right.pem"))
    assert await with_the_right_one.fetch(ONE, timeout=5)
    with pytest.raises(StoreUnavailable, match="did not answer in time"):
        await with_the_right_one.fetch(SLEEP, timeout=0.2)  # cancelled, through TLS
    assert await with_the_right_one.fetch(ONE, timeout=5)

    other = await make_pool(secure.dsn("localhost", "other.pem"))
    said = await failure(other, timeout=2)
    assert said.startswith(
        f"no connection to localhost:{secure.port}: "
        "the server's certificate is not trusted"
    )
    assert said.endswith(f"; checked against {secure.folder}/other.pem")
    assert "percent-encoded" not in said

    elsewhere = await make_pool(secure.dsn("127.0.0.1", "right.pem"))
    said = await failure(elsewhere, timeout=2)
    assert f"no connection to 127.0.0.1:{secure.port}: the server's certific" in said
    if driver in ("connect", "asyncpg"):
        assert "not valid for '127.0.0.1'" in said
    else:
        assert "for another host name" in said
    # Who does not ask for the name may have it.
    nameless = await make_pool(secure.dsn("127.0.0.1", "right.pem", "verify-ca"))
    assert await nameless.fetch(ONE, timeout=5)

    missing = await make_pool(secure.dsn("localhost", "missing.pem"))
    said = await failure(missing, timeout=2)
    if driver in ("connect", "asyncpg"):
        assert "no such certificate file" in said
        assert f"{secure.folder}/missing.pem" in said
    else:
        assert f'root certificate file "{secure.folder}/missing.pem"' in said


@pytest.mark.slow
async def test_the_doctor_names_the_certificate(secure: SecureServer):
    """And not user, password and database name."""
    environ = {"APP_NAME": "shop", "APP_KEYS": "a-key-for-the-doctor-and-nobody-else"}
    findings = await diagnose(
        environ, database_url=secure.dsn("localhost", "other.pem")
    )
    [found] = [each for each in findings if each.level == "problem"]
    assert "database-certificate" == found.name
    assert "other.pem" in found.what
    assert "password" not in str(found)


async def test_a_server_without_tls_is_named(make_pool: MakePool, empty_database: str):
    """Where the DSN asks for it."""
    pool = await make_pool(f"{empty_database}?sslmode=require")
    assert "the server speaks no TLS" in await failure(pool)


async def test_a_dsn_that_libpq_refuses_is_not_quoted(driver: str):
    """It repeats what it could not read, which may be a password."""
    dsn = f"host=127.0.0.1 password={SECRET} {SECRET}"
    if driver == "connect":
        with pytest.raises(SettingsError, match="form name=value") as refused:
            await make_adapter(driver, dsn)
        assert SECRET not in str(refused.value)
        return
    raw: Any
    if driver == "asyncpg":
        raw = await asyncpg.create_pool(dsn, min_size=0)
    elif driver == "psycopg":
        raw = AsyncConnectionPool(dsn, min_size=1, max_size=2, open=False)
        await raw.open()
    else:
        raw = momoko.Pool(dsn, ioloop=IOLoop.current(), raise_connect_errors=False)
        await raw.connect()
    pool = as_pool(raw, timeout=1)
    assert "no connection to the database" in await failure(pool)
    await pool.close()
