"""The doctor on broken set-ups: each is named for what it is, with a way out."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tests.conftest import Databases
from tests.ports import free_port
from tests.programs import program
from tornado_compas_session import MemorySessionStore, SessionMixin, get_app
from tornado_compas_session.testing.jar import Cookie
from tornado_compas_session.tools.cli import main
from tornado_compas_session.tools.doctor import diagnose
from tornado_compas_session.tools.findings import Finding

KEY = "a-key-for-the-doctor-and-nobody-else"
SOUND = {"APP_NAME": "shop", "APP_KEYS": KEY}
DEVELOPMENT = {**SOUND, "APP_ENV": "development"}


def problems(findings: list[Finding]) -> list[str]:
    for finding in findings:
        if finding.level == "problem":
            assert finding.what and finding.why and finding.fix
    return [finding.name for finding in findings if finding.level == "problem"]


def execute(dsn: str, sql: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.encode())


class Visit(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.session["visits"] = self.session.get("visits", 0) + 1


@contextmanager
def served(application: Any) -> Iterator[str]:
    """The application on a free port of this process; its URL."""
    server = HTTPServer(application)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}/"
    finally:
        server.stop()


def visited(environ: dict[str, str] = DEVELOPMENT, **options: Any) -> Application:
    store = MemorySessionStore()
    return get_app([("/", Visit)], store=store, environ=environ, **options)


# -- all is well -----------------------------------------------------------------------


async def test_sound_set_up_has_no_problem(database: str) -> None:
    """Nothing is invented: environment, database and a visit are all good."""
    with served(visited()) as url:
        findings = await diagnose(DEVELOPMENT, database_url=database, url=url)

    assert [] == problems(findings)
    assert ["environment", "cookie", "database", "schema", "browser", "session"] == [
        finding.name for finding in findings
    ]


# -- the environment -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "environ"),
    [
        ("keys", {"APP_NAME": "shop"}),
        ("keys", {"APP_NAME": "shop", "APP_KEYS": "short"}),
        ("keys", {"APP_NAME": "shop", "APP_KEYS": f"{KEY},{KEY}"}),
        ("environment", {"APP_KEYS": KEY}),
        ("environment", {**SOUND, "COOKIE_URL": "not a domain"}),
        ("environment", {**SOUND, "CORS_URL": "app.example.com"}),
        ("cookie-domain", {**SOUND, "COOKIE_URL": "com"}),
        (
            "cross-site",
            {
                **SOUND,
                "COOKIE_URL": "example.com",
                "CORS_URL": "https://app.example.org",
            },
        ),
    ],
)
async def test_broken_environment(
    name: str, environ: dict[str, str], database: str
) -> None:
    """Keys and variables are named, and the rest is looked at all the same."""
    findings = await diagnose(environ, database_url=database)

    assert [name] == problems(findings)
    assert "schema" in [finding.name for finding in findings]
    assert not any(KEY in str(finding) for finding in findings)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"same_site": "none", "secure": False}, "same_site"),
        ({"key": "__Host-shop", "domain": "example.com"}, "cannot have a domain"),
        ({"max_age": 10**9}, "400 days"),
        ({"keep": True}, "no option"),
    ],
)
async def test_options_against_each_other(options: dict[str, Any], what: str) -> None:
    """What browsers would drop, or the server refuse, is found before it runs."""
    findings = await diagnose(SOUND, options=options)

    assert ["options"] == problems(findings)
    assert any(what in finding.what for finding in findings)


async def test_one_site_is_no_cross_site() -> None:
    """Two hosts under COOKIE_URL are fine."""
    environ = {
        **SOUND,
        "COOKIE_URL": "example.com",
        "CORS_URL": "https://app.example.com,https://example.com",
    }

    assert [] == problems(await diagnose(environ))


# -- the database ----------------------------------------------------------------------


async def test_unreachable_database() -> None:
    """The wrong host or port, or a server that is down; it says which it looked at."""
    port = free_port()
    dsn = f"postgresql://someone:s3cret@127.0.0.1:{port}/shop"
    findings = await diagnose(SOUND, database_url=dsn)

    assert ["database-unreachable"] == problems(findings)
    [found] = [finding for finding in findings if finding.level == "problem"]
    assert f"127.0.0.1:{port}: connection refused" in found.what


@pytest.mark.parametrize(
    ("dsn", "what"),
    [
        (
            "postgresql://someone:s3cret@127.0.0.1:99999/shop",
            "ports between 1 and 65535",
        ),
        ("postgresql+asyncpg://someone:s3cret@db/shop", "write postgresql://"),
        ("postgresql://someone:s3cret@x@db/shop", "percent-encoded"),
        ("shop", "not a URL"),
    ],
)
async def test_a_url_that_cannot_be_meant(dsn: str, what: str) -> None:
    """The doctor says what is wrong with it, and goes on."""
    findings = await diagnose(SOUND, database_url=dsn)

    assert ["database-url"] == problems(findings)
    [found] = [finding for finding in findings if finding.level == "problem"]
    assert what in found.what
    assert "s3cret" not in str(found)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_another_encoding(encoding: str, databases: Databases) -> None:
    """It is named, for some of what visitors write has no place in it."""
    name = databases.create()
    dsn = databases.dsn(name)
    server = urlsplit(dsn)._replace(path="/postgres").geturl()
    try:
        execute(server, f"DROP DATABASE {name}")
        execute(
            server,
            f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 "
            "LC_COLLATE 'C' LC_CTYPE 'C' STRATEGY file_copy",
        )
        findings = await diagnose(SOUND, database_url=dsn)
    finally:
        databases.drop(name)

    [found] = [finding for finding in findings if finding.name == "encoding"]
    assert encoding in found.what


async def test_refused_login(database: str) -> None:
    """A role that is not there."""
    dsn = urlsplit(database)
    wrong = dsn._replace(netloc=f"nobody_at_all@{dsn.hostname}:{dsn.port}").geturl()
    findings = await diagnose(SOUND, database_url=wrong)

    assert ["database-refused"] == problems(findings)


async def test_unmigrated_database(empty_database: str) -> None:
    """The commonest: `migrate` was not run, or against another database."""
    findings = await diagnose(SOUND, database_url=empty_database)

    assert ["schema-missing"] == problems(findings)


@pytest.mark.parametrize(
    ("name", "sql"),
    [
        ("schema-columns", "ALTER TABLE compas_session DROP COLUMN former_hash"),
        ("index-missing", "DROP INDEX compas_session_user_id"),
        ("schema-outdated", "DELETE FROM compas_session_migration"),
    ],
)
async def test_incomplete_schema(name: str, sql: str, database: str) -> None:
    """A column or an index that somebody dropped, a migration that is yet to come."""
    execute(database, sql)

    assert [name] == problems(await diagnose(SOUND, database_url=database))


async def test_missing_privileges(database: str) -> None:
    """A role that may read and not write."""
    role = f"reader_{free_port()}_{time.monotonic_ns()}"
    execute(
        database, f"CREATE ROLE {role} LOGIN; GRANT SELECT ON compas_session TO {role}"
    )
    try:
        dsn = urlsplit(database)
        theirs = dsn._replace(netloc=f"{role}@{dsn.hostname}:{dsn.port}").geturl()
        findings = await diagnose(SOUND, database_url=theirs)
    finally:
        execute(database, f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert ["privileges"] == problems(findings)
    [found] = [finding for finding in findings if finding.name == "privileges"]
    assert "may not INSERT, UPDATE, DELETE" in found.what


async def test_read_only_database(database: str) -> None:
    """A standby, or a database that is switched to read-only."""
    name = urlsplit(database).path[1:]
    execute(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    assert ["read-only"] == problems(await diagnose(SOUND, database_url=database))


async def test_clocks_that_differ(database: str) -> None:
    """A machine whose clock is an hour off is told so, and by how much."""
    findings = await diagnose(
        SOUND, database_url=database, clock=lambda: time.time() - 3600
    )

    [found] = [finding for finding in findings if finding.name == "clock"]
    assert "ahead" in found.what


@pytest.mark.parametrize("mode", ["statement", "transaction", "session"])
async def test_pgbouncer(mode: str, database: str) -> None:
    """
    A pooler that swaps connections between transactions is found by what it does;
    one that leaves a client its connection is no trouble.
    """
    with pgbouncer(database, mode) as through:
        findings = await diagnose(SOUND, database_url=through)
    found = [f for f in findings if f.name.startswith("pgbouncer")]

    assert (mode != "session") == bool(found), findings
    assert all(f"pool_mode={mode}" in finding.what for finding in found)
    assert (mode == "statement") == (["pgbouncer-statement"] == problems(findings))


@contextmanager
def pgbouncer(dsn: str, mode: str) -> Iterator[str]:
    """A PgBouncer in front of the database; its DSN for it."""
    command = [program("pgbouncer")]
    if os.geteuid() == 0:
        command += ["-u", "nobody"]
    target, port = urlsplit(dsn), free_port()
    user = target.username or "postgres"
    with tempfile.TemporaryDirectory(prefix="compas-bouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        password = f" password={target.password}" if target.password else ""
        (folder / "users").write_text(f'"{user}" ""\n')
        (folder / "ini").write_text(
            f"[databases]\nshop = host={target.hostname} port={target.port} "
            f"dbname={target.path[1:]} user={user}{password}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"pool_mode = {mode}\nauth_type = any\nauth_file = {folder / 'users'}\n"
            "unix_socket_dir =\nignore_startup_parameters = extra_float_digits\n"
        )
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, str(folder / "ini")], stdout=log, stderr=log
            )
        try:
            through = f"postgresql://{user}@127.0.0.1:{port}/shop"
            limit = time.monotonic() + 30
            while True:
                try:
                    psycopg.connect(through, connect_timeout=2).close()
                    break
                except psycopg.OperationalError:
                    assert process.poll() is None, (folder / "log").read_text()
                    assert time.monotonic() < limit, (folder / "log").read_text()
                    time.sleep(0.1)
            yield through
        finally:
            process.terminate()
            process.wait(30)


# -- a running server ------------------------------------------------------------------


async def test_secure_cookie_over_http() -> None:
    """Production without https, or behind a proxy without xheaders."""
    with served(visited(SOUND)) as url:
        findings = await diagnose(SOUND, url=url)

    assert ["secure-over-http", "no-cookie"] == problems(findings)


async def test_cookie_for_another_domain() -> None:
    """COOKIE_URL names a domain that the server is not in."""
    environ = {**SOUND, "COOKIE_URL": "example.com"}
    with served(visited(environ, secure=False)) as url:
        findings = await diagnose(environ, url=url, options={"secure": False})

    assert ["domain-mismatch", "cookie-dropped", "no-cookie"][:2] == problems(findings)


async def test_processes_with_different_keys() -> None:
    """A key made at each start: the second request does not know the first one."""
    made: list[Application] = []

    def each_time_another(request: Any) -> Any:
        made.append(visited({**DEVELOPMENT, "APP_KEYS": f"{KEY}-{len(made)}"}))
        return made[-1](request)

    with served(each_time_another) as url:
        findings = await diagnose(DEVELOPMENT, url=url)

    assert ["session-not-kept"] == problems(findings)


async def test_processes_with_different_databases() -> None:
    """The cookie is good and the session is not there."""
    made: list[Application] = []

    class Look(SessionMixin, RequestHandler):
        def get(self) -> None:
            if len(made) == 1:
                self.session["seen"] = True

    def each_time_another(request: Any) -> Any:
        store = MemorySessionStore()
        made.append(get_app([("/", Look)], store=store, environ=DEVELOPMENT))
        return made[-1](request)

    with served(each_time_another) as url:
        findings = await diagnose(DEVELOPMENT, url=url)

    assert ["session-lost"] == problems(findings)


async def test_page_without_session() -> None:
    """A page that writes nothing begins no session, which is no fault of the set-up."""

    class Plain(SessionMixin, RequestHandler):
        def get(self) -> None:
            self.write("hello")

    app = get_app([("/", Plain)], store=MemorySessionStore(), environ=DEVELOPMENT)
    with served(app) as url:
        findings = await diagnose(DEVELOPMENT, url=url)

    assert ["no-cookie"] == problems(findings)


async def test_server_without_the_origin() -> None:
    """CORS_URL here and there differ."""
    with served(visited()) as url:
        environ = {**DEVELOPMENT, "CORS_URL": "http://127.0.0.1.example.com"}
        findings = await diagnose(environ, url=url, options={"same_site": "lax"})

    assert "cors" in problems(findings)


async def test_server_that_is_down() -> None:
    """An answer is more than this can ask for."""
    url = f"http://127.0.0.1:{free_port()}/"

    assert ["server-unreachable"] == problems(await diagnose(DEVELOPMENT, url=url))


@pytest.mark.parametrize(
    ("url", "header", "reason"),
    [
        ("http://a.example/", "a=1; Secure", "plain http"),
        ("http://localhost/", "a=1; Secure", None),
        ("http://127.0.0.1/", "a=1; Secure", None),
        ("https://a.example/", "a=1; SameSite=None", "needs Secure"),
        ("https://a.example/", "a=1; Domain=b.example", "it is for b.example"),
        ("https://a.example/", "a=1; Domain=.a.example", None),
        ("https://www.a.example/", "a=1; Domain=a.example", None),
        ("https://a.example/", "a=1; Domain=www.a.example", "came from a.example"),
        ("https://a.example/", "a=1; Domain=example", "top-level"),
        ("https://127.0.0.1/", "a=1; Domain=0.0.1", "came from 127.0.0.1"),
        ("https://a.example/", "__Host-a=1; Path=/", "needs Secure"),
        ("https://a.example/", "__Host-a=1; Secure; Path=/x", "needs Path=/"),
        ("https://a.example/", "__HOST-a=1; Secure; Path=/; Domain=a.example", "no D"),
        ("https://a.example/", "__Host-a=1; Secure; Path=/", None),
        ("https://a.example/", f"a={'x' * 4096}", "4096"),
    ],
)
def test_browsers_rules(url: str, header: str, reason: str | None) -> None:
    """What RFC 6265bis has browsers do with a cookie."""
    refusals = list(Cookie.parse(header).refusals(url))

    if reason is None:
        assert [] == refusals
    else:
        assert reason in "; ".join(refusals)


# -- the command -----------------------------------------------------------------------


def test_command_ends_in_1_and_says_why(
    empty_database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each problem has its what, why and fix; programs get the same as JSON."""
    monkeypatch.setenv("DATABASE_URL", empty_database)

    assert 1 == main(["doctor"])
    printed, talk = capsys.readouterr()
    assert "✗ schema-missing: there is no table compas_session" in printed
    assert "why: every request with a session gets a 503" in printed
    assert "fix: run `tornado-compas-session migrate`" in printed
    assert "1 problem found" in talk

    assert 1 == main(["doctor", "--json"])
    assert '"name": "schema-missing"' in capsys.readouterr().out


def test_command_ends_in_0_where_all_is_well(database: str) -> None:
    """In a process of its own, options included."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "tornado_compas_session", "doctor"),
            *("--option", "same_site=strict", "--option", "max_age=3600"),
            *("--database-url", database),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )

    assert (0, "no problem found\n") == (run.returncode, run.stderr)
    assert "SameSite=Strict" in run.stdout


async def test_no_password_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the driver quotes."""
    dsn = f"postgresql://someone:s3cret@127.0.0.1:{free_port()}/shop"
    code = await asyncio.to_thread(main, ["doctor", "--database-url", dsn])
    printed, talk = capsys.readouterr()

    assert 1 == code
    assert "s3cret" not in printed + talk
