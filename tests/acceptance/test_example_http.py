"""The example, as a process of its own: its API, its headers, its start and its end."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.ports import neighbouring_ports
from tests.servers import ROOT, Server, start_example

NOT_INITIALIZED = {
    "key": "error.sessionNotInitialized",
    "message": "error.sessionNotInitialized",
    "info": {"message": "Please call /counter/init first"},
}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Visitor:
    """A browser, as far as cookies go: keeps what is set, drops what is cleared."""

    def __init__(self, url: str) -> None:
        self.address = urlsplit(url).netloc
        self.cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        fields = {name.replace("_", "-"): text for name, text in headers.items()}
        if self.cookies:
            cookies = [f"{name}={value}" for name, value in self.cookies.items()]
            fields["Cookie"] = "; ".join(cookies)
        if body is not None:
            fields.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body)
        connection = http.client.HTTPConnection(self.address, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, fields)
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        for cookie in answer.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            if "Max-Age=0" in cookie:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return answer

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)


@pytest.fixture(scope="module")
def example(databases: Any, template_database: str) -> Iterator[Server]:
    """One example for the tests that only talk to it."""
    name = databases.create(template_database)
    with start_example("--database-url", databases.dsn(name)) as server:
        yield server
    databases.drop(name)


@pytest.fixture
def visitor(example: Server) -> Visitor:
    return Visitor(example.url)


# -- the API ---------------------------------------------------------------------------


def the_documented_flow(visitor: Visitor) -> None:
    """What the documentation of Compas shows."""
    early = visitor.post("/counter/increment")
    assert (400, NOT_INITIALIZED) == (early.status, early.json)
    assert {} == visitor.cookies

    assert {"value": 0} == visitor.post("/counter/init").json
    assert {"counter.sess", "counter.sess.public"} == visitor.cookies.keys()
    for value in (1, 2, 3):
        assert {"value": value} == visitor.post("/counter/increment").json
    assert {"value": 3} == visitor.get("/counter").json

    assert {"success": True} == visitor.post("/counter/destroy").json
    assert {} == visitor.cookies
    late = visitor.get("/counter")
    assert (400, NOT_INITIALIZED) == (late.status, late.json)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "momoko"])
def test_the_documented_flow_through_each_driver(database, driver):
    """Init, increment, read, destroy: the same answers, whatever the pool."""
    with start_example("--database-url", database, "--pool", driver) as server:
        the_documented_flow(Visitor(server.url))
        assert 0 == server.stop()


def test_the_body_of_the_400_byte_for_byte(visitor):
    """The text that the contract pins."""
    assert (
        b'{"key": "error.sessionNotInitialized", '
        b'"message": "error.sessionNotInitialized", '
        b'"info": {"message": "Please call /counter/init first"}}'
    ) == visitor.post("/counter/increment").body


def test_init_starts_again(visitor):
    """A second init is 0 again, in the same session."""
    visitor.post("/counter/init")
    visitor.post("/counter/increment")

    assert {"value": 0} == visitor.post("/counter/init").json
    assert {"value": 1} == visitor.post("/counter/increment").json


def test_reading_keeps_nothing(visitor):
    """Who only looks gets no cookie."""
    for path in ("/", "/session", "/counter", "/_health", "/nowhere"):
        visitor.get(path)
    visitor.post("/counter/destroy")

    assert {} == visitor.cookies
    assert visitor.get("/session").json["is_new"]


def test_the_session_as_the_server_keeps_it(visitor):
    """What the page shows: times and data, and nothing that is of use as a cookie."""
    visitor.post("/counter/init")
    session = visitor.get("/session").json

    assert {"is_new", "created_at", "expires", "data"} == session.keys()
    assert (False, {"counter": 0}) == (session["is_new"], session["data"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", session["expires"])


def test_no_increment_is_lost(example, visitor):
    """16 clients of one session at once: each gets a number of its own."""
    visitor.post("/counter/init")
    values: list[int] = []

    def count() -> None:
        mine = Visitor(example.url)
        mine.cookies = dict(visitor.cookies)
        values.extend(mine.post("/counter/increment").json["value"] for _ in range(5))

    threads = [threading.Thread(target=count) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert list(range(1, 81)) == sorted(values)


# -- who you are -----------------------------------------------------------------------


def test_signing_in_gives_a_new_id_and_keeps_the_counter(visitor):
    """LC-1: the cookie changes, the data does not."""
    visitor.post("/counter/init")
    before = visitor.cookies["counter.sess"]
    answer = visitor.post("/sign-in", {"name": "  Ada "})

    assert (200, {"user_id": "Ada"}) == (answer.status, answer.json)
    assert before != visitor.cookies["counter.sess"]
    data = visitor.get("/session").json["data"]
    assert {"counter": 0, "user_id": "Ada"} == data


def test_signing_out_ends_the_session(example, visitor):
    """LC-2, LC-12: the cookie is of no use afterwards, and the browser cleans up."""
    visitor.post("/sign-in", {"name": "Ada"})
    kept = dict(visitor.cookies)
    answer = visitor.post("/sign-out")

    assert '"cache", "storage"' == answer.headers["Clear-Site-Data"]
    assert {} == visitor.cookies
    thief = Visitor(example.url)
    thief.cookies = kept
    assert thief.get("/session").json["is_new"]


@pytest.mark.parametrize("name", ["", "   ", "x" * 41])
def test_a_name_must_be_one(visitor, name):
    """A name that cannot be used is a 400 that says so."""
    answer = visitor.post("/sign-in", {"name": name})

    assert (400, "error.nameInvalid") == (answer.status, answer.json["key"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"name"', b"{}", b"\xff", b"null"])
def test_a_body_that_cannot_be_read_is_a_400(visitor, body):
    """And never a 500."""
    answer = visitor.post("/sign-in", body)

    assert (400, "error.bodyInvalid") == (answer.status, answer.json["key"])


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", ""]
)
def test_only_json_is_taken(visitor, content_type):
    """CO-6: a form on another site can send these without asking; they do nothing."""
    answer = visitor.post("/sign-in", b'{"name": "Eve"}', Content_Type=content_type)

    assert (415, "error.jsonExpected") == (answer.status, answer.json["key"])
    assert {} == visitor.cookies


def test_a_forged_post_does_not_count(visitor):
    """CO-6: a POST from another site's page changes nothing."""
    visitor.post("/counter/init")
    forged = visitor.post(
        "/counter/increment", Origin="https://evil.example", Sec_Fetch_Site="cross-site"
    )

    assert 403 == forged.status
    assert {"value": 0} == visitor.get("/counter").json


class TestYourSessions:
    """All sessions of who is signed in: to see, and to end."""

    @pytest.fixture
    def sign_in(self, example):
        def sign_in(name: str, agent: str) -> Visitor:
            visitor = Visitor(example.url)
            visitor.post("/sign-in", {"name": name}, User_Agent=agent)
            return visitor

        return sign_in

    def handles(self, visitor: Visitor) -> dict[str, str]:
        sessions = visitor.get("/sessions").json["sessions"]
        return {session["user_agent"]: session["handle"] for session in sessions}

    def test_they_are_listed(self, sign_in):
        """One's own, each with its device, and which is the current; nobody else's."""
        desk, phone = sign_in("Grace", "desk"), sign_in("Grace", "phone")
        sign_in("Other", "other")
        sessions = desk.get("/sessions").json["sessions"]

        assert {("desk", True), ("phone", False)} == {
            (session["user_agent"], session["current"]) for session in sessions
        }
        assert self.handles(desk) == self.handles(phone)

    def test_one_can_be_ended_from_the_other(self, sign_in):
        """The other is anonymous at its next request; this one stays."""
        desk, phone = sign_in("Lin", "desk"), sign_in("Lin", "phone")
        handle = self.handles(desk)["phone"]
        answer = desk.post("/sessions/sign-out-there", {"handle": handle})

        assert (200, {"ended": 1}) == (answer.status, answer.json)
        assert phone.get("/session").json["is_new"]
        assert {} == phone.cookies
        assert {"desk"} == self.handles(desk).keys()

    def test_everywhere_else(self, sign_in):
        """All but this one end."""
        desk, *others = [sign_in("Joan", agent) for agent in ("desk", "one", "two")]
        answer = desk.post("/sessions/sign-out-elsewhere")

        assert {"ended": 2} == answer.json
        assert all(other.get("/session").json["is_new"] for other in others)
        assert not desk.get("/session").json["is_new"]

    def test_nobody_ends_the_sessions_of_others(self, sign_in):
        """A handle of somebody else's session is as good as none."""
        victim, eve = sign_in("Victim", "desk"), sign_in("Eve", "desk")
        [handle] = self.handles(victim).values()
        for wrong in (handle, "", "%", "x" * 1000):
            answer = eve.post("/sessions/sign-out-there", {"handle": wrong})
            assert (404, "error.server.notFound") == (answer.status, answer.json["key"])

        assert not victim.get("/session").json["is_new"]

    def test_only_for_who_is_signed_in(self, visitor):
        """Without a user there is a 401."""
        visitor.post("/counter/init")
        answers = [
            visitor.get("/sessions"),
            visitor.post("/sessions/sign-out-there", {"handle": "x"}),
            visitor.post("/sessions/sign-out-elsewhere"),
        ]

        assert [(401, "error.notSignedIn")] * 3 == [
            (answer.status, answer.json["key"]) for answer in answers
        ]


# -- headers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/_health", 200),
        ("GET", "/session", 200),
        ("GET", "/counter", 400),
        ("GET", "/nowhere", 404),
        ("PUT", "/counter", 405),
        ("TRACE", "/counter", 405),
        ("POST", "/sign-in", 415),
    ],
)
def test_the_headers_of_safety_are_everywhere(visitor, method, path, status):
    """AP-1, AP-2: on every route, errors included; no version; no HSTS over http."""
    answer = visitor.ask(method, path)

    assert status == answer.status
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    expected = {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Server": None,
        "Strict-Transport-Security": None,
    }
    assert expected == {name: answer.headers[name] for name in expected}
    assert answer.headers["X-Request-Id"]


def test_health(visitor):
    """200, empty, no cookie."""
    answer = visitor.get("/_health")

    assert (200, b"", None) == (
        answer.status,
        answer.body,
        answer.headers["Set-Cookie"],
    )


class Page(HTMLParser):
    """What of a page is of interest: its elements, and the texts of some."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in self.texts:
            self.texts[self.elements[-1][0]] = data


def test_the_page_runs_nothing_but_its_own_script(visitor):
    """The policy names script and style by their hashes; nothing is loaded."""
    answer = visitor.get("/")
    page = Page(answer.body.decode())
    policy = dict(
        part.split(" ", 1)
        for part in answer.headers["Content-Security-Policy"].split("; ")
    )

    assert "text/html; charset=UTF-8" == answer.headers["Content-Type"]
    for tag in ("script", "style"):
        digest = hashlib.sha256(page.texts[tag].encode()).digest()
        assert f"'sha256-{base64.b64encode(digest).decode()}'" == policy[f"{tag}-src"]
    assert "'self'" == policy["connect-src"]
    for tag, attributes in page.elements:
        assert not {"style", "onclick", "src"} & attributes.keys(), tag
        assert (attributes.get("href") or "data:").startswith("data:"), tag


def test_the_page_can_be_used_by_everyone(visitor):
    """Language, title, a viewport for phones; each field and button has a name."""
    page = Page(visitor.get("/").body.decode())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]

    assert ("html", {"lang": "en"}) in page.elements
    assert "width=device-width" in str(page.elements)
    assert "The counter" == page.texts["title"]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        label = attributes.get("aria-labelledby")
        assert label is None or label in ids


# -- two origins -----------------------------------------------------------------------


def test_two_origins(database):
    """The page on one host, the API on another; only that page may use it."""
    port = neighbouring_ports()
    flags = ("--database-url", database, "--two-origins")
    with start_example(*flags, port=port) as server:
        page, api = (
            f"http://app.counter.localhost:{port}",
            f"http://api.counter.localhost:{port + 1}",
        )
        assert page in server.output
        assert api in server.output
        html = Visitor(server.url).get("/")
        assert f'<meta name="api" content="{api}">'.encode() in html.body
        policy = html.headers["Content-Security-Policy"]
        assert f"connect-src 'self' {api}" in policy

        visitor = Visitor(f"http://127.0.0.1:{port + 1}")
        ours = visitor.post("/counter/init", Origin=page, Sec_Fetch_Site="same-site")
        theirs = visitor.get("/counter", Origin="http://evil.counter.localhost")
        asked = visitor.ask(
            "OPTIONS",
            "/sign-in",
            Origin=page,
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers="content-type",
        )

    assert (200, page) == (ours.status, ours.headers["Access-Control-Allow-Origin"])
    cookies = ours.headers.get_all("Set-Cookie") or []
    assert "Domain=counter.localhost" in cookies[-1]
    assert theirs.headers["Access-Control-Allow-Origin"] is None
    assert (204, page) == (asked.status, asked.headers["Access-Control-Allow-Origin"])


# -- limits ----------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_not_read(example):
    """AP-5: more than a megabyte is refused by its announcement."""
    answer = Visitor(example.url).post("/sign-in", Content_Length="1048577")

    assert 400 == answer.status


def test_uploads_are_not_parsed(visitor):
    """AP-5: nothing here takes multipart bodies, so none is looked into."""
    body = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nEve\r\n--x--\r\n'
    answer = visitor.post(
        "/counter/init", body, Content_Type="multipart/form-data; boundary=x"
    )

    assert (400, {}) == (answer.status, visitor.cookies)


# -- start and end ---------------------------------------------------------------------


def test_it_says_in_three_lines_where_to_look(database):
    """Where the page is, where the sessions are, what to type; no password."""
    secret = urlsplit(database)._replace(
        netloc=f"postgres:hunter2@{urlsplit(database).netloc.rpartition('@')[2]}"
    )
    with start_example("--database-url", secret.geturl()) as server:
        output = server.output
    lines = output.splitlines()

    assert 3 == len(lines)
    assert server.url in lines[0]
    assert "PostgreSQL" in lines[1]
    assert "curl" in lines[2]
    assert "hunter2" not in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_it_stops_cleanly(database, number, processes):
    """Ctrl-C, `kill`, a closed terminal: code 0, nothing said, nobody left behind."""
    with start_example("--database-url", database, "--processes", processes) as server:
        visitor = Visitor(server.url)
        visitor.post("/counter/init")
        said = server.output

        assert 0 == server.stop(number)
        assert said == server.output
    with pytest.raises(ConnectionRefusedError):
        visitor.get("/_health")


@pytest.mark.slow
def test_the_counter_survives_a_restart(database):
    """The session is in the database, and the cookie is signed by the same key."""
    with start_example("--database-url", database) as server:
        visitor = Visitor(server.url)
        visitor.post("/counter/init")
        for _ in range(3):
            visitor.post("/counter/increment")
    with start_example("--database-url", database) as server:
        visitor.address = urlsplit(server.url).netloc

        assert {"value": 3} == visitor.get("/counter").json


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_requests_under_way_are_finished(database, processes):
    """SIGTERM while an increment waits: it is counted, answered, and then it ends."""
    with start_example("--database-url", database, "--processes", processes) as server:
        visitor = Visitor(server.url)
        visitor.post("/counter/init")
        answers: list[Answer] = []

        def increment() -> None:
            answers.append(visitor.post("/counter/increment"))

        with psycopg.connect(database) as holder:
            holder.execute("SELECT 1 FROM compas_session FOR UPDATE")
            thread = threading.Thread(target=increment)
            thread.start()
            wait_for_a_lock(database)
            server.process.send_signal(signal.SIGTERM)
            wait_until_refused(server.url)
            assert (None, []) == (server.process.poll(), answers)
        thread.join()

        assert [(200, {"value": 1})] == [(a.status, a.json) for a in answers]
        assert 0 == server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_restarts_under_load_lose_nothing(database, free_port, processes):
    """SIGTERM, three times, while eight clients count: every number came out once."""
    flags = ("--database-url", database, "--processes", processes)
    values: list[int] = []
    visitor: Visitor | None = None

    def count(cookies: dict[str, str]) -> None:
        """Counts on one connection after the other, until nobody takes one."""
        fields = {"Cookie": "; ".join(f"{n}={v}" for n, v in cookies.items())}
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=20)
            try:
                connection.connect()
                while connection.sock is not None:
                    connection.request("POST", "/counter/increment", headers=fields)
                    values.append(json.loads(connection.getresponse().read())["value"])
            except ConnectionRefusedError:
                return
            except (ConnectionResetError, BrokenPipeError):
                # Not taken yet, or idle, when the server stopped. Had it been counted,
                # its number would be missing in the end.
                continue
            finally:
                connection.close()

    for _ in range(3):
        with start_example(*flags, port=free_port) as server:
            if visitor is None:
                visitor = Visitor(server.url)
                visitor.post("/counter/init")
            threads = [
                threading.Thread(target=count, args=[visitor.cookies]) for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            seen = len(values)
            while len(values) < seen + 50:
                time.sleep(0.01)
            assert 0 == server.stop()
            for thread in threads:
                thread.join()

    assert list(range(1, len(values) + 1)) == sorted(values)


def wait_for_a_lock(database: str) -> None:
    """Until a connection of the example's waits for the row."""
    with psycopg.connect(database, autocommit=True) as connection:
        for _ in range(200):
            [waiting] = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ).fetchone() or [0]
            if waiting:
                return
            time.sleep(0.05)
    raise AssertionError("no request waits for the row")


def wait_until_refused(url: str) -> None:
    address = urlsplit(url)
    for _ in range(200):
        try:
            socket.create_connection((address.hostname, address.port), 2).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            pass  # it had not been accepted when the server closed its socket
        time.sleep(0.05)
    raise AssertionError("the server still takes connections")


@pytest.mark.slow
def test_a_killed_process_is_replaced(database):
    """With more than one process, a crash of one is no end."""
    with start_example("--database-url", database, "--processes", "2") as server:
        first = children_of(server)
        assert 2 == len(first)
        os.kill(min(first), signal.SIGKILL)
        for _ in range(200):
            if len(children_of(server) - {min(first)}) == 2:
                break
            time.sleep(0.05)

        assert max(first) in children_of(server)
        assert 200 == Visitor(server.url).get("/_health").status
        assert 0 == server.stop()


def children_of(server: Server) -> set[int]:
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(child) for child in children.split()}


def test_a_port_in_use_is_said_in_a_sentence(database):
    """No traceback: which port, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_example("--database-url", database, "--port", str(port))

    assert 1 == done.returncode
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_wrong_settings_are_said_in_a_sentence(database, monkeypatch, processes):
    """No traceback and no endless restarts: every fault of the environment."""
    monkeypatch.setenv("CORS_URL", "*")
    monkeypatch.setenv("APP_KEYS", "short")
    done = run_example(
        "--database-url", database, "--port", "0", "--processes", processes
    )

    assert 1 == done.returncode
    assert "CORS_URL" in done.stderr
    assert "APP_KEYS" in done.stderr
    assert "Traceback" not in done.stderr


def run_example(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "example_app.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_it_starts_while_the_database_is_away(free_port):
    """A 503 for the counter, and all is well for the rest."""
    dsn = f"postgresql://postgres@127.0.0.1:{free_port}/postgres"
    with start_example("--database-url", dsn) as server:
        visitor = Visitor(server.url)
        counter, page = visitor.post("/counter/init"), visitor.get("/")

        assert (503, "2") == (counter.status, counter.headers["Retry-After"])
        assert "error.session.unavailable" == counter.json["key"]
        assert (200, {}) == (page.status, visitor.cookies)
        assert 0 == server.stop()


@pytest.mark.slow
def test_alone_on_a_fresh_machine(tmp_path, monkeypatch):
    """
    Without any variable and any database it brings its own, keeps it in .pgdata/, and
    takes it down with it; the counter is still there the next time.
    """
    for name in ("APP_NAME", "APP_ENV", "APP_KEYS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for file in ROOT.glob("example_*"):
        shutil.copy(file, tmp_path)
    pid_file = tmp_path / ".pgdata" / "data" / "postmaster.pid"

    with start_example(cwd=tmp_path) as server:
        visitor = Visitor(server.url)
        the_documented_flow(visitor)
        visitor.post("/counter/init")
        visitor.post("/counter/increment")
        assert ".pgdata" in server.output
        assert pid_file.exists()
        assert 0 == server.stop(signal.SIGINT)
    assert not pid_file.exists()

    with start_example(cwd=tmp_path) as server:
        visitor.address = urlsplit(server.url).netloc
        assert {"value": 1} == visitor.get("/counter").json
        assert 0 == server.stop()
    assert not pid_file.exists()


@pytest.mark.slow
def test_a_database_without_the_table_is_told_at_the_start(empty_database):
    """It does not serve 503s: it ends, and says what to run; then it starts."""
    with pytest.raises(AssertionError, match="run `tornado-compas-session migrate`"):
        start_example("--database-url", empty_database)
    command = [sys.executable, "-m", "tornado_compas_session", "migrate"]
    command += ["--database-url", empty_database]
    subprocess.run(command, check=True, capture_output=True)
    with start_example("--database-url", empty_database):
        pass
