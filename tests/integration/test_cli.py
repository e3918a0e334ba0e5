"""The command line against a filled database: the transcripts of docs/cli.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.servers import start_example
from tornado_compas_session.tools.cli import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"

FILL = """
INSERT INTO compas_session
       (handle, secret_hash, data, user_id, created_at, updated_at, expires_at,
        user_agent, address)
SELECT handle, sha256(handle::bytea), data::jsonb, data::jsonb ->> 'user_id',
       now() - age, now() - age / 2, now() + lasts, agent, address
  FROM (VALUES
       ('u7Kfn5aNDVJg', '{"user_id": "ada"}', interval '73 hours', interval '5 days',
        'Mozilla/5.0 (X11; Linux x86_64)', '192.0.2.7'),
       ('-1XnJiWljXIW', '{"user_id": "ada"}', interval '2 hours', interval '6 days',
        'Mozilla/5.0 (Android 14; Mobile)', '192.0.2.99'),
       ('H8n0VJLwVFuu', '{"user_id": "grace"}', interval '1 hour', interval '6 days',
        'curl/8.5.0', '2001:db8::17'),
       ('kMz0q8kOT1Xn', '{"counter": 1}', interval '1 hour', interval '6 days',
        '', ''),
       ('p4w_9sQe2hLa', '{"counter": 2}', interval '2 hours', interval '6 days',
        '', ''),
       ('Yb3-vT6cRm0i', '{"counter": 3}', interval '8 days', interval '-2 days',
        '', ''),
       ('zE5oXd1UgS8f', '{"user_id": "ada"}', interval '9 days', interval '-3 days',
        '', '')
       ) AS given(handle, data, age, lasts, agent, address);
CREATE TABLE "session" (
  "id" uuid PRIMARY KEY, "expires" timestamptz NOT NULL, "data" jsonb NOT NULL,
  "createdAt" timestamptz NOT NULL DEFAULT now(),
  "updatedAt" timestamptz NOT NULL DEFAULT now());
INSERT INTO "session" ("id", "expires", "data")
SELECT gen_random_uuid(), now() + n * interval '1 day',
       '{"user_id": "joan", "_expire": 1}'
  FROM generate_series(-1, 3) n;
"""
SHELL = (
    f'tornado-compas-session() {{ {sys.executable} -m tornado_compas_session "$@"; }}'
)


@pytest.fixture
def filled(database: str) -> str:
    with psycopg.connect(database) as connection:
        connection.execute(FILL.encode())
    return database


def transcripts() -> Iterator[tuple[str, list[str]]]:
    """The commands of the page, each with the lines that it prints."""
    for block in re.findall(r"```console\n\$ (.+?)```", PAGE.read_text(), re.DOTALL):
        command, *shown = block.splitlines()
        yield command, shown


def masked(line: str) -> str:
    """The line without what differs from run to run, or from server to server."""
    line = re.sub(r"^[\w-]{43}$", "KEY", line)
    line = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ", "TIME", line)
    line = re.sub(r"PostgreSQL \d.*, as \w+", "PostgreSQL, as USER", line)
    line = re.sub(r" +[\d.]+ MB$", " SIZE", line)
    line = re.sub(r"^(oldest +)\d.*", r"\1DURATION", line)
    line = re.sub(r'"(bytes|oldest_seconds)": [\d.]+', r'"\1": NUMBER', line)
    return line.rstrip()


def run(command: str, environ: dict[str, str]) -> list[str]:
    """What a person sees who runs it: results and talk."""
    result = subprocess.run(
        ["bash", "-c", f"{SHELL}; {command}"],
        cwd=ROOT,
        env={**os.environ, **environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return result.stdout.splitlines()


@pytest.mark.slow
def test_transcripts_are_what_happens(filled: str) -> None:
    """Each command of the page, in order, against one database."""
    environ = {"DATABASE_URL": filled, "APP_ENV": "production"}
    shown, happened = [], []
    with start_example(env={"DATABASE_URL": filled}) as server:
        for command, lines in transcripts():
            here = command.replace("http://127.0.0.1:8888", server.url)
            if here != command:
                environ = {**environ, "APP_ENV": "development"}
            shown += [f"$ {command}", *(masked(line) for line in lines if line)]
            got = (masked(line) for line in run(here, environ) if line)
            happened += [f"$ {command}", *got]

    assert shown == happened


def test_every_command_has_a_transcript() -> None:
    """And no transcript is of a command that is not there."""
    from tests.unit.test_cli import commands

    found = {
        name
        for command, _ in transcripts()
        for name in re.findall(r"tornado-compas-session ([\w-]+)", command)
    }

    assert commands().keys() == found


def test_programs_get_json(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json stdout is one value, and times are in ISO 8601."""
    assert 0 == main(["sessions", "ada", "--json", "--database-url", filled])
    [phone, laptop] = json.loads(capsys.readouterr().out)
    assert "192.0.2.99" == phone["address"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", laptop["last_used_at"])

    assert 0 == main(["stats", "--json", "--database-url", filled])
    stats = json.loads(capsys.readouterr().out)
    assert (5, 2, 2, 2) == tuple(
        stats[name] for name in ("live", "expired", "anonymous", "users")
    )
    assert {"user_id": "ada", "sessions": 2} == stats["top_users"][0]


def test_revoke_all_ends_every_session(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number is that of the live ones."""
    assert 0 == main(["revoke", "--all", "--yes", "--database-url", filled])
    assert "5\n" == capsys.readouterr().out
    assert 0 == main(["revoke", "--all", "--yes", "--database-url", filled])
    assert "0\n" == capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "ended", "left"), [("y", 0, 0), ("n", 2, 5), ("", 2, 5), ("all", 2, 5)]
)
def test_revoke_all_asks_first(filled: str, typed: str, ended: int, left: int) -> None:
    """On a terminal, naming the database; whatever is not a yes ends nothing."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "tornado_compas_session", "revoke", "--all"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": filled},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        asked = b""
        while b"[y/N]" not in asked:
            asked += os.read(ours, 1024)
        os.write(ours, f"{typed}\n".encode())
        code = process.wait(60)
    os.close(ours)
    with psycopg.connect(filled) as connection:
        [[live]] = connection.execute(
            "SELECT count(*) FROM compas_session WHERE expires_at > now()"
        ).fetchall()

    assert (ended, left) == (code, live)
    assert f"in {filled.rpartition('/')[2]} at 127.0.0.1" in asked.decode()


def test_unknown_handle_is_a_failure(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who means to end a certain session wants to know that it was not there."""
    for handle in ("0" * 12, "no handle"):
        command = ["revoke", "--handle", handle, "--database-url", filled]
        assert 1 == main(command)
        printed, talk = capsys.readouterr()
        assert "0\n" == printed
        assert "no live session has this handle" in talk


def test_unmigrated_database_is_named(
    empty_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the way out."""
    assert 1 == main(["stats", "--database-url", empty_database])
    assert "run `tornado-compas-session migrate`" in capsys.readouterr().err


def test_what_strangers_sent_cannot_take_over_the_terminal(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user agent may hold escape sequences, and words in brackets."""
    with psycopg.connect(filled) as connection:
        connection.execute(
            "UPDATE compas_session SET user_agent = E'\\x1b[2J[red]boo[/red]'"
        )
    assert 0 == main(["sessions", "ada", "--database-url", filled])
    printed = capsys.readouterr().out

    assert "\x1b" not in printed
    assert "[red]boo[/red]" in printed


@pytest.mark.slow
def test_reader_that_leaves_is_no_traceback(filled: str) -> None:
    """`… | head -1` ends quietly."""
    environ = {"DATABASE_URL": filled}
    [line] = run("tornado-compas-session migrate --print | head -1", environ)

    assert line.startswith("CREATE TABLE IF NOT EXISTS compas_session_migration")
