"""The command line without a database: flags, twins, exit codes, failures."""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tornado_compas_session.stores.migrations import migrations, script
from tornado_compas_session.tools import cli
from tornado_compas_session.tools.cli import main
from tornado_compas_session.tools.terminal import (
    Progress,
    data_size,
    duration,
    passwords_of,
    redacted,
)

ROOT = Path(__file__).parents[2]
# Nothing listens on port 1 of this machine.
NOBODY = "postgresql://someone:s3cret-w%40rd@127.0.0.1:1/shop"


def commands() -> dict[str, argparse.ArgumentParser]:
    [choices] = [
        action.choices
        for action in cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(choices)


@pytest.fixture(autouse=True)
def no_twins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None of the variables that stand in for flags is set."""
    for parser in commands().values():
        for twin in re.findall(r"env: (\w+)", parser.format_help()):
            monkeypatch.delenv(twin, raising=False)
    yield


def test_every_flag_names_its_environment_twin() -> None:
    """Whoever reads the help of a flag knows the variable that stands in for it."""
    without = [
        f"{name} {action.option_strings}"
        for name, parser in commands().items()
        for action in parser._actions
        if action.option_strings
        and "-h" not in action.option_strings
        and not re.search(r"\[env: [A-Z_]+\]$", action.help or "")
    ]

    assert [] == without


def test_module_and_command_are_the_same() -> None:
    """`python -m tornado_compas_session` runs from a checkout, without installing."""
    run = subprocess.run(
        [sys.executable, "-m", "tornado_compas_session", "migrate", "--print"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert script() == run.stdout
    assert "" == run.stderr


def test_printed_migrations_need_no_database(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`migrate --print` shows each migration and the record of it, and connects not."""
    code = main(["migrate", "--print", "--database-url", NOBODY])
    printed = capsys.readouterr().out

    assert 0 == code
    for migration in migrations():
        assert migration.sql.strip() in printed
        assert migration.checksum in printed


def test_keygen_prints_a_key_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`APP_KEYS=$(tornado-compas-session keygen)` works; what to do with it is talk."""
    keys = set()
    for _ in range(3):
        assert 0 == main(["keygen"])
        printed, talk = capsys.readouterr()
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", printed)
        assert "APP_KEYS" in talk
        keys.add(printed)

    assert 3 == len(keys)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["stats", "--no-such-flag"],
        ["stats"],  # and no DATABASE_URL
        ["cleanup", "--limit", "0"],
        ["cleanup", "--limit", "many"],
        ["sessions"],
        ["revoke", "--database-url", NOBODY],
        ["revoke", "--database-url", NOBODY, "--all", "--user", "7"],
    ],
)
def test_misuse_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that makes no sense does nothing, says why on stderr, and ends in 2."""
    try:
        code: object = main(arguments)
    except SystemExit as misused:
        code = misused.code
    printed, talk = capsys.readouterr()

    assert 2 == code
    assert "" == printed
    assert talk


@pytest.mark.parametrize("command", ["migrate", "stats", "cleanup", "import-compas"])
def test_unreachable_database_is_exit_code_1_and_a_sentence(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure is said in words, without traceback and without the password."""
    code = main([command, "--database-url", NOBODY])
    printed, talk = capsys.readouterr()

    assert 1 == code
    assert "" == printed
    assert talk.startswith("error: no connection to 127.0.0.1:1")
    assert "Traceback" not in talk
    assert "s3cret" not in talk


def test_verbose_failure_shows_the_traceback_but_no_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With -v the traceback is there, for a report; still nothing secret."""
    code = main(["stats", "-v", "--database-url", NOBODY])
    _, talk = capsys.readouterr()

    assert 1 == code
    assert "Traceback (most recent call last)" in talk
    assert "s3cret" not in talk


@pytest.mark.parametrize(
    "url",
    ["mysql://me:s3cret-word@host/db", "me:s3cret-word@host/db", "postgresql://["],
)
def test_strange_urls_are_a_sentence_too(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped DATABASE_URL is misuse, no traceback, and gives no password away."""
    assert 2 == main(["stats", "--database-url", url])
    _, talk = capsys.readouterr()

    assert "error:" in talk
    assert "Traceback" not in talk
    assert "s3cret" not in talk


def test_variable_stands_in_for_a_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the twin says holds where the flag is absent; nonsense in it is misuse."""
    monkeypatch.setenv("TORNADO_COMPAS_SESSION_PRINT", "yes")
    assert 0 == main(["migrate"])
    assert script() == capsys.readouterr().out

    monkeypatch.setenv("TORNADO_COMPAS_SESSION_LIMIT", "some")
    with pytest.raises(SystemExit) as misused:
        main(["cleanup"])
    assert 2 == misused.value.code


def test_flag_of_revoke_outdoes_a_variable() -> None:
    """A forgotten TORNADO_COMPAS_SESSION_ALL widens no `revoke --user 7`."""
    parser = argparse.ArgumentParser()
    for name, value in {"user": None, "handle": None, "all": True}.items():
        parser.add_argument(f"--{name}", default=value)
    seen = {}

    async def command(arguments: argparse.Namespace) -> None:
        seen.update(vars(arguments))

    run = cli._one_of(parser, command)
    list(run(parser.parse_args(["--user", "7"])).__await__())

    assert {"user": "7", "handle": None, "all": None} == seen


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://me:word@host/db", "word"),
        ("postgresql://me:w%40rd@host/db", "w@rd"),
        ("postgresql://host/db?user=me&password=word", "word"),
        ("me:word@host/db", "word"),
    ],
)
def test_passwords_of_a_url_are_found(url: str, password: str) -> None:
    """As it stands in the URL, and as the server gets it."""
    assert password in passwords_of(url)
    assert password not in redacted(f"{url} {password}", passwords_of(url))


def test_text_of_strangers_cannot_take_over_the_terminal() -> None:
    """Control characters are replaced."""
    assert "a\N{REPLACEMENT CHARACTER}[2Jb" == redacted("a\x1b[2Jb", [])


class Screen(io.StringIO):
    """A terminal, as far as a program can tell."""

    def isatty(self) -> bool:
        return True


def test_progress_shows_for_what_takes_over_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a terminal, after a second; before that, and into a file, there is nothing."""
    monkeypatch.setenv("TERM", "xterm")
    screen, file = Screen(), io.StringIO()
    for out, waited in ((file, 2.0), (screen, 0.0), (screen, 2.0)):
        monkeypatch.setattr(sys, "stderr", out)
        before = out.getvalue()
        with Progress("copying sessions", 100) as progress:
            progress._started -= waited
            progress.advance(40)
            progress.advance(2)
        shown = out.getvalue() != before
        assert (out is screen and waited > 1) == shown

    assert "copying sessions" in screen.getvalue()
    assert "42/100" in screen.getvalue()


@pytest.mark.parametrize(
    ("expected", "seconds"),
    [("0 min", 5), ("59 min", 3599), ("2 h 5 min", 7500), ("3 d 1 h", 262800)],
)
def test_durations_have_two_units(expected: str, seconds: float) -> None:
    """So that a glance is enough."""
    assert expected == duration(seconds)


@pytest.mark.parametrize(
    ("expected", "count"), [("512 bytes", 512), ("41 kB", 41_000), ("1.2 GB", 12e8)]
)
def test_sizes_are_rounded(expected: str, count: float) -> None:
    """Three figures and a unit."""
    assert expected == data_size(int(count))
