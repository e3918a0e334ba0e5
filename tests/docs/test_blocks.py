"""The pages are true: their code runs, and their transcripts are what happens."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks
from tests.ports import free_port
from tests.programs import program
from tests.servers import start_example

#: What the transcripts listen on; here it is a free port, since others may run too.
PORT = "8888"
#: Console transcripts that the command line's own tests run, against a filled database.
RUN_ELSEWHERE = {"cli.md": "tests/integration/test_cli.py"}
#: Programs that a page may show and these tests do not have: read, and not run.
ONLY_READ = {
    "createdb",
    "docker",
    "nginx",
    "pgbouncer",
    "pip-audit",
    "psql",
    "pytest",
    "systemctl",
}


def page_id(page: Path) -> str:
    return page.stem


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a page's files are written; embedded servers run there as another user."""
    with tempfile.TemporaryDirectory(prefix="compas-docs-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_of_a_page_runs(page: Path, database: str, folder: Path):
    """
    The Python blocks of a page run in their order, with a real database at hand; those
    in comments check what the page says about the others.
    """
    runnable = [
        [str(block.page), block.line, block.text]
        for block in blocks(page)
        if block.language == "python" and block.file is None and block.reason is None
    ]
    if not runnable:
        return  # A page without code of this kind.

    result = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_blocks"],
        input=json.dumps(runnable),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, "DATABASE_URL": database, "PYTHONPATH": str(ROOT)},
    )

    assert 0 == result.returncode, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_blocks_say_what_they_are(page: Path):
    """Each block has a language, and what is Python is Python."""
    for block in blocks(page):
        assert block.language, f"{block.place}: which language is it?"
        if block.language == "python" and block.reason is None:
            flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            compile(block.text, block.place, "exec", flags=flags)
        if block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_is_quoted_is_there(page: Path):
    """A block with the name of one of our files is a passage of it, word by word."""
    for block in blocks(page):
        if block.quoted:
            assert block.file is not None
            source = (ROOT / block.file).read_text(encoding="utf-8")
            forms = [textwrap.indent(block.text, " " * n) for n in (0, 4, 8)]
            found = any(f"\n{form}" in f"\n{source}" for form in forms)
            assert found, f"{block.place}: not so in {block.file}"


@pytest.mark.parametrize("page", RUN_ELSEWHERE)
def test_transcripts_that_run_elsewhere_do(page: str):
    """The other tests read them from the page."""
    assert f'"{page}"' in (ROOT / RUN_ELSEWHERE[page]).read_text(encoding="utf-8")


def test_few_blocks_cannot_run():
    """What is not run says why, and there is little of it."""
    reasons = [
        f"{block.place}: {block.reason}"
        for page in PAGES
        for block in blocks(page)
        if block.reason
    ]

    assert len(reasons) <= 4, "\n".join(reasons)


# -- transcripts -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in RUN_ELSEWHERE], ids=page_id
)
def test_transcripts_of_a_page_are_true(page: Path, database: str, folder: Path):
    """
    The commands of a page are run in their order, and print what the page shows; of
    headers, the page may leave some out.
    """
    found = [block for block in blocks(page) if block.reason is None]
    if not any(block.language == "console" for block in found):
        return

    with Terminal(folder, database) as terminal:
        for block in found:
            if block.quoted:
                continue
            if block.file is not None:
                terminal.write(block)
            elif block.language == "console":
                for command, shown in commands(block):
                    terminal.run(command, shown, block.place)


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a transcript, each with the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    lines = iter(block.text.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command = command[:-1] + next(lines).strip()
            found.append((command, []))
        else:
            assert found, f"{block.place}: a transcript begins with a command"
            found[-1][1].append(line)
    return found


class Terminal:
    """Runs commands as a reader would, in a folder of their own."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.port = str(free_port())
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": database,
        }
        self.environment.pop("APP_KEYS", None)  # readers have none yet
        self.files: set[str] = set()
        self.server: ExitStack = ExitStack()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server.close()

    def write(self, block: Block) -> None:
        """Saves a file that the page shows."""
        assert block.file is not None
        (self.folder / block.file).write_text(block.text.replace(PORT, self.port))
        self.files.add(block.file)

    def run(self, command: str, shown: list[str], place: str) -> None:
        """Runs a command, or checks that it would, and compares what it prints."""
        words = shlex.split(command)
        match words:
            case ["export", *pairs]:
                for pair in pairs:
                    name, _, value = pair.partition("=")
                    if name != "DATABASE_URL":  # the page has one of its own
                        self.environment[name] = value
            case ["pip", "install", *what]:
                self._check_install(what, place)
            case ["make", "run", *_]:
                self._start_example()
            case ["make", target, *_]:
                makefile = (ROOT / "Makefile").read_text()
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), place
            case ["python", file] if file in self.files:
                self._start(file, shown, place)
            case ["tornado-compas-session", *rest]:
                self._compare([*MAIN, *rest], shown, place)
            case ["curl", *rest]:
                arguments = [word.replace(PORT, self.port) for word in rest]
                self._compare([program("curl"), "-sS", *arguments], shown, place)
            case [name, *_]:
                assert name in ONLY_READ, f"{place}: cannot check {command!r}"

    def _compare(self, command: list[str], shown: list[str], place: str) -> None:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.folder,
            env=self.environment,
        )
        assert 0 == result.returncode, f"{place}: {result.stderr}"
        printed = [masked(line) for line in result.stdout.splitlines()]
        wanted = [masked(line) for line in shown if line]
        if "-i" in command:
            missing = [line for line in wanted if line not in printed]
            assert not missing, f"{place}: {missing} not in\n" + "\n".join(printed)
        elif wanted:
            assert wanted == printed, place

    def _check_install(self, what: list[str], place: str) -> None:
        for requirement in what:
            if match := re.match(r"(?:tornado-compas-session|\.)\[(.+)\]", requirement):
                assert set(match[1].split(",")) <= extras(), place
            else:
                assert re.match(r"-|[a-z]", requirement), place

    def _start(self, file: str, shown: list[str], place: str) -> None:
        self.server.close()
        log = self.server.enter_context(
            (self.folder / f"{file}.log").open("w+", encoding="utf-8")
        )
        process = subprocess.Popen(
            [sys.executable, file],
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=log,
        )
        self.server.callback(process.wait, 30)
        self.server.callback(process.send_signal, signal.SIGKILL)
        (self.folder / "jar").unlink(missing_ok=True)
        wanted = {line.replace(PORT, self.port) for line in shown}
        printed = ""
        limit = time.monotonic() + 60
        while time.monotonic() < limit and process.poll() is None:
            printed = Path(log.name).read_text(encoding="utf-8")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", int(self.port)), 1).close()
                if wanted <= set(printed.splitlines()):
                    return
            time.sleep(0.05)
        raise AssertionError(f"{place}: {file} printed only:\n{printed}")

    def _start_example(self) -> None:
        self.server.close()
        dsn = self.environment["DATABASE_URL"]
        self.server.enter_context(
            start_example(port=int(self.port), env={"DATABASE_URL": dsn})
        )
        (self.folder / "jar").unlink(missing_ok=True)


MAIN = [sys.executable, "-m", "tornado_compas_session"]


def masked(line: str) -> str:
    """The line without what differs from run to run."""
    line = re.sub(r"2\|\d+:\d+\|10:\d+\|[^;\s]+", "SIGNED", line)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.+]+Z?", "TIME", line).rstrip()


def extras() -> set[str]:
    """The extras in setup.py."""
    source = ast.parse((ROOT / "setup.py").read_text())
    for node in ast.walk(source):
        if isinstance(node, ast.keyword) and node.arg == "extras_require":
            assert isinstance(node.value, ast.Dict)
            keys = [key for key in node.value.keys if isinstance(key, ast.Constant)]
            return {str(key.value) for key in keys}
    raise AssertionError("no extras_require in setup.py")
