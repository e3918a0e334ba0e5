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

from tests.programs import program
from tornado_compas_session.stores.migrations import migrations, script
from tornado_compas_session.testing import Clock
from tornado_compas_session.tools import cli
from tornado_compas_session.tools.cli import main
from tornado_compas_session.tools.terminal import (
    passwords_of,
    print_table,
    progress,
    redacted,
)

ROOT = Path(__file__).parents[2]
# Nothing listens on port 1 of this machine.
NOBODY = "postgresql://someone:s3cret-w%40rd@127.0.0.1:1/shop"
REVOKED = {("revoke", f"--{name}") for name in ("handle", "user", "all", "yes")}


def commands() -> dict[str, argparse.ArgumentParser]:
    [choices] = [
        action.choices
        for action in cli.parser()._actions
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
        # Which sessions end is typed.
        and (name, action.option_strings[-1]) not in REVOKED
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
        ["--no-such-flag"],
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stat"], "invalid choice: 'stat' (choose from "),
        (["stats", "--js"], "unrecognized arguments: --js"),
        (["cleanup", "--limt=5"], "unrecognized arguments: --limt=5"),
        (["revoke", "--al", "--user=7"], "unrecognized arguments: --al"),
        (["completion", "fsh"], "invalid choice: 'fsh' (choose from "),
        (
            ["cleanup", "--limit", "x"],
            "--limit: 'x' is not a whole number between 1 and 1000000",
        ),
        (
            ["stats", "--timeout", "0"],
            "--timeout: '0' is not a number between 0.01 and 86400",
        ),
    ],
)
def test_misspelt_words_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And half a flag is not taken for the whole, least of all for --all."""
    with pytest.raises(SystemExit) as misused:
        main(arguments)

    assert 2 == misused.value.code
    assert said in capsys.readouterr().err


def test_wrong_value_in_a_variable_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody has typed --limit, so the variable is what to look for."""
    monkeypatch.setenv("TORNADO_COMPAS_SESSION_LIMIT", "some")
    with pytest.raises(SystemExit):
        main(["cleanup"])

    assert "TORNADO_COMPAS_SESSION_LIMIT=some" in capsys.readouterr().err


def test_no_variable_says_which_sessions_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A forgotten variable ends no session: all of `revoke` is typed."""
    for name, value in {"ALL": "1", "YES": "1", "USER": "7", "HANDLE": "x"}.items():
        monkeypatch.setenv(f"TORNADO_COMPAS_SESSION_{name}", value)

    with pytest.raises(SystemExit) as misused:
        main(["revoke", "--database-url", NOBODY])
    assert 2 == misused.value.code
    assert "--handle --user --all is required" in capsys.readouterr().err


def test_ending_all_sessions_needs_a_yes(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody can be asked, as in cron, nothing ends without --yes."""
    assert 2 == main(["revoke", "--all", "--database-url", NOBODY])
    assert "--yes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--handle", "abcdefghijkl"],
        ["--handle", "-bcdefghijkl"],
        ["--handle", "--cdefghijkl"],
        ["--handle", "-hvdefghijkl"],
        ["--handle=-bcdefghijkl"],
    ],
)
def test_handles_that_look_like_flags(words: list[str]) -> None:
    """Handles can be pasted as they are, a hyphen in front included."""
    found = cli.parser().parse_args(cli._joined(["revoke", *words]))

    assert words[-1].removeprefix("--handle=") == found.handle
    assert found.user is None


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The name and the number."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert 0 == ended.value.code
    assert re.fullmatch(
        r"tornado-compas-session \d+\.\d+\.\d+\n", capsys.readouterr().out
    )


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
    """On a terminal, after a second; it is gone in the end, and no file has it."""
    shown = ""
    for out, passed in ((io.StringIO(), 2.0), (Screen(), 0.9), (Screen(), 2.0)):
        monkeypatch.setattr(sys, "stderr", out)
        clock = Clock(0)
        with progress("copying sessions", 100, clock=clock) as advance:
            for _ in range(2):
                clock.move(passed / 2)
                advance(21)
        shown = out.getvalue()
        assert bool(shown) == (out.isatty() and passed > 1)

    assert "copying sessions [######" in shown
    assert "] 42/100 0:02" in shown
    assert shown.endswith("\r\x1b[K")


# -- tables ----------------------------------------------------------------------------

SESSIONS = [
    (
        "-bcdefghijk_",
        "2026-11-23 11:04:57Z",
        "2026-11-23 12:04:57Z",
        "2026-11-29 13:04:57Z",
        "192.0.2.99",
        "Mozilla/5.0 (Android 14; Mobile; rv:133.0) Gecko/133.0 Firefox/133.0",
    ),
    ("abcdefghijkl", *["2026-11-20 12:04:57Z"] * 3, "2001:db8:85a3::8a2e:370:7334", ""),
]
COLUMNS = ("handle", "created", "last used", "expires", "address", "user agent")


def test_handles_are_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each row, the handle first: it can be copied at 80 columns, too."""
    print_table(COLUMNS, SESSIONS)
    head, *lines = capsys.readouterr().out.splitlines()

    assert len(SESSIONS) == len(lines)
    for row, line in zip(SESSIONS, lines, strict=True):
        assert line.startswith(f"{row[0]}  ")
        assert all(cell in line for cell in row)
    assert head.index("address") == lines[1].index("2001:db8")


# -- completion ------------------------------------------------------------------------


def completed(shell: str, script: str, *typed: str) -> list[str]:
    """What the shell offers when Tab is pressed after these words."""
    path = program(shell)
    words = " ".join(f"'{word}'" for word in typed)
    if shell == "bash":
        script += (
            f"\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
            '_tornado_compas_session; printf "%s\\n" "${COMPREPLY[@]}"'
        )
    elif shell == "fish":
        script += f"\ncomplete -C '{' '.join(typed)}'"
    run = subprocess.run(
        [path, "-c", script], capture_output=True, text=True, check=True
    )
    return [line.partition("\t")[0] for line in run.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_tab_completes(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands, the flags of each, and the shells."""
    assert 0 == main(["completion", shell])
    script = capsys.readouterr().out

    assert ["revoke"] == completed(shell, script, cli.PROGRAM, "rev")
    offered = completed(shell, script, cli.PROGRAM, "")
    assert sorted(commands()) == sorted(word for word in offered if word[0] != "-")
    assert ["--limit"] == completed(shell, script, cli.PROGRAM, "cleanup", "--l")
    assert ["zsh"] == completed(shell, script, cli.PROGRAM, "completion", "z")


def test_zsh_takes_its_script(capsys: pytest.CaptureFixture[str]) -> None:
    """It is read without a complaint, and completes the command from then on."""
    assert 0 == main(["completion", "zsh"])
    script = capsys.readouterr().out
    lines = [
        "autoload -Uz compinit && compinit -D",
        script,
        f"print $_comps[{cli.PROGRAM}]",
    ]
    run = subprocess.run(
        [program("zsh"), "-f", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.startswith("_bash_complete ")
    assert "_tornado_compas_session" in run.stdout
    assert "" == run.stderr
