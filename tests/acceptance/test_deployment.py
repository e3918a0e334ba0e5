"""docs/deployment.md: its program is run in each of the ways that the page names."""

from __future__ import annotations

import configparser
import http.client
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.docs.pages import DOCS, ROOT, Block, blocks
from tests.ports import free_port

pytestmark = pytest.mark.slow

PAGE = blocks(DOCS / "deployment.md")
SHOP = """
import os

from tornado.web import RequestHandler

from tornado_compas_session import SessionMixin


class Count(SessionMixin, RequestHandler):
    async def post(self):
        self.session.setdefault("n", 0)
        self.write({"n": await self.session.increment("n"), "pid": os.getpid()})


routes = [("/", Count)]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's program, beside an application."""
    [program] = [block for block in PAGE if block.file == "serve.py"]
    (tmp_path / "serve.py").write_text(program.text)
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@contextmanager
def running(
    folder: Path, database: str, prepared: Callable[[], None] | None = None, **env: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """The program; it ends with a SIGTERM to all of its processes."""
    inherited = prepared is not None and "LISTEN_PID" in env
    command = [sys.executable, "serve.py"]
    if inherited:  # systemd names the process that is to have the socket
        command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$0" serve.py', sys.executable]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "DATABASE_URL": database,
            **{name: str(value) for name, value in env.items()},
        },
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=prepared,
        close_fds=not inherited,
    )
    try:
        yield process
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert b"Traceback" not in said, said.decode()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def count(port: int, cookie: str = "") -> tuple[dict[str, int], str]:
    """A request on a connection of its own: the answer, and the session's cookie."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/", headers={"Cookie": cookie})
        response = connection.getresponse()
        body = response.read()
        assert 200 == response.status, body
        given = response.headers["Set-Cookie"]
        return yaml.safe_load(body), given.partition(";")[0] if given else cookie
    finally:
        connection.close()


def comes_up(port: int) -> str:
    """Waits until it answers; a new session's cookie."""
    limit = time.monotonic() + 30
    while True:
        try:
            return count(port)[1]
        except OSError:
            assert time.monotonic() < limit
            time.sleep(0.05)


def pids(port: int, cookie: str, wanted: int) -> set[int]:
    """The processes that answer; their numbers, when so many have."""
    found: set[int] = set()
    before = count(port, cookie)[0]["n"]
    for n in range(before + 1, before + 400):
        answer, cookie = count(port, cookie)
        assert n == answer["n"]
        found.add(answer["pid"])
        if len(found) >= wanted:
            break
    return found


def test_it_forks(folder, database):
    """`fork_processes`: both children serve one session."""
    port = free_port()
    with running(folder, database, PORT=port, PROCESSES=2) as process:
        found = pids(port, comes_up(port), 2)

        assert 2 == len(found - {process.pid})


def test_two_share_a_port(folder, database):
    """SO_REUSEPORT: each makes its store when it starts; one may go."""
    port = free_port()
    with running(folder, database, PORT=port) as first:
        cookie = comes_up(port)
        with running(folder, database, PORT=port) as second:
            limit = time.monotonic() + 20
            while pids(port, cookie, 2) != {first.pid, second.pid}:
                assert time.monotonic() < limit
        assert {first.pid} == pids(port, cookie, 2)


def test_a_restart_loses_nothing(folder, database):
    """With systemd's socket, requests that come all the time are all answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        port = listening.getsockname()[1]
        answers: list[int] = []
        failures: list[BaseException] = []
        enough = threading.Event()

        def visit() -> None:
            cookie, seen = "", 0
            try:
                while not enough.is_set():
                    answer, cookie = count(port, cookie)
                    seen += 1
                    assert seen == answer["n"]
                    answers.append(answer["pid"])
            except BaseException as error:
                failures.append(error)

        def hand_over() -> None:
            os.dup2(listening.fileno(), 3)

        visitors = [threading.Thread(target=visit) for _ in range(4)]
        served = []
        for turn in range(3):
            with running(folder, database, hand_over, LISTEN_PID="") as process:
                if not turn:
                    for visitor in visitors:
                        visitor.start()
                limit = time.monotonic() + 30
                while process.pid not in answers[-50:] and not failures:
                    assert time.monotonic() < limit
                    time.sleep(0.05)
                served.append(process.pid)
                if turn == 2:
                    enough.set()
                    for visitor in visitors:
                        visitor.join(30)

    assert [] == failures
    assert {*served} == {*answers}


def test_no_file_is_written(folder, database):
    """As in a container whose file system is read-only: not a byte goes to a file."""

    def read_only() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # whoever writes one ends
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    port = free_port()
    env = {"PORT": port, "PYTHONDONTWRITEBYTECODE": "1"}
    with running(folder, database, read_only, **env):
        cookie = comes_up(port)
        assert 2 == count(port, cookie)[0]["n"]


def documents(language: str) -> list[Block]:
    return [block for block in PAGE if block.language == language]


def test_what_kubernetes_is_told():
    """It is YAML, probes what is there, and names variables that are read."""
    deployment, job = (yaml.safe_load(block.text) for block in documents("yaml"))
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [migrate] = job["spec"]["template"]["spec"]["containers"]

    for probe in ("livenessProbe", "readinessProbe"):
        assert {"path": "/_health", "port": 8888} == container[probe]["httpGet"]
    assert [{"containerPort": 8888}] == container["ports"]
    names = {variable["name"] for variable in container["env"]}
    assert {"APP_NAME", "APP_KEYS", "DATABASE_URL"} == names
    assert ["tornado-compas-session", "migrate"] == migrate["command"]


def test_what_systemd_is_told():
    """The units can be read, the socket is the service's, and a stop may take 20 s."""
    units = []
    for block in documents("ini"):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(block.text)
        units.append(unit)
    listening, service = units

    assert "127.0.0.1:8888" == listening["Socket"]["ListenStream"]
    assert "shop.socket" == service["Unit"]["Requires"]
    assert service["Service"]["ExecStart"].endswith("serve.py")
    assert service["Service"]["ExecStartPre"].endswith(" migrate")
    assert int(service["Service"]["TimeoutStopSec"]) > 10


def test_what_docker_is_told():
    """Instructions that there are; nobody is root; the program gets the signals."""
    [block] = documents("dockerfile")
    lines = dict(re.findall(r"^([A-Z]+) (.+)$", block.text, re.MULTILINE))

    assert len(block.text.splitlines()) == len(
        re.findall(r"^(?:FROM|RUN|COPY|WORKDIR|ENV|USER|EXPOSE|CMD) ", block.text, re.M)
    )
    assert "nobody" == lines["USER"]
    assert ["python", "serve.py"] == yaml.safe_load(lines["CMD"])
    assert "ADDRESS=0.0.0.0" in lines["ENV"]
