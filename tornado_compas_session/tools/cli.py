"""
The command line: `tornado-compas-session`, also `python -m tornado_compas_session`.

Results go to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 misused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.tools import commands
from tornado_compas_session.tools.completion import SHELLS, completion
from tornado_compas_session.tools.flags import Parser, count, flag, seconds
from tornado_compas_session.tools.terminal import report_failure, say

PROGRAM = "tornado-compas-session"

#: A handle that looks like a flag; there is no flag that looks like a handle.
_HYPHENED = re.compile(r"-[A-Za-z0-9_][A-Za-z0-9_-]{10}")

Command = Callable[[argparse.Namespace], Awaitable[int | None]]


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command and returns its exit code.

    A failure is one sentence on stderr with its causes, without any password; the
    traceback comes with `-v`. Misuse ends by `SystemExit(2)`, as argparse does it.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["revoke"]:
        words = _marked(words)
    arguments = (whole := parser()).parse_args(words)
    if not hasattr(arguments, "command"):
        whole.print_help(sys.stderr)
        return 2
    try:
        with _logging(arguments.verbose):
            return asyncio.run(arguments.command(arguments)) or 0
    except BrokenPipeError:
        # Who read the results has gone (`… | head`); the rest is for nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("interrupted; what was done so far stays done")
        return 1
    except Exception as error:
        report_failure(error, arguments.verbose, commands.secrets_of(arguments))
        return 2 if isinstance(error, SettingsError) else 1


@contextlib.contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """The library's log: all of it with `-v`, else none; what fails is said here."""
    logger = logging.getLogger("tornado_compas_session")
    level, handler = logger.level, logging.StreamHandler()
    logger.setLevel(logging.DEBUG if verbose else logging.CRITICAL)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


# -- the commands and their flags ------------------------------------------------------


def parser() -> Parser:
    """Knows every command; what a flag's variable says is read here."""
    whole = Parser(
        prog=PROGRAM,
        description="Runs what keeps the sessions of Tornado in PostgreSQL.",
        epilog=f"Flags can be given in the environment: `{PROGRAM} COMMAND -h` "
        "names the variable. Exit codes: 0 done, 1 failed, 2 misused.",
    )
    whole.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    group = whole.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Command, about: str) -> Parser:
        made: Parser = group.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + "."
        )
        made.set_defaults(command=run, parser=made)
        flag(made, "--verbose", "-v", switch="show the log and tracebacks")
        return made

    def on_database(name: str, run: Command, about: str) -> Parser:
        made = command(name, run, about)
        flag(
            made,
            "--database-url",
            twin="DATABASE_URL",
            metavar="URL",
            help="the database, postgresql://user@host/name; a password is better "
            "given in the variable, where other users of the machine don't see it",
        )
        flag(
            made,
            "--timeout",
            type=seconds,
            default="60",
            metavar="SECONDS",
            help="the longest to wait for one answer of the database (60)",
        )
        return made

    made = on_database("migrate", commands.migrate, "create or update the tables")
    flag(made, "--print", switch="print the SQL instead; needs no database")
    flag(
        made,
        "--distributed",
        switch="spread the sessions over the servers of a Citus, in 32 shards",
    )

    command("keygen", commands.keygen, "make a key for APP_KEYS")

    made = on_database("cleanup", commands.cleanup, "delete expired sessions; for cron")
    _limit(made, "1000", "so many at a time (1000)")

    made = on_database("stats", commands.stats, "count the sessions")
    flag(made, "--top", type=count, default="5", help="so many users (5)")
    flag(made, "--json", switch="for programs")

    made = on_database("sessions", commands.sessions, "list the sessions of a user")
    made.add_argument("user", metavar="USER", help="as kept under user_id")
    _limit(made, "50", "so many at most (50)")
    flag(made, "--json", switch="for programs")

    made = on_database("revoke", commands.revoke, "end sessions")
    _whom(made)

    made = on_database("doctor", commands.doctor, "find out why a session is not kept")
    flag(made, "--url", metavar="URL", help="a page that begins a session; it is got")
    flag(made, "--method", default="GET", help="how the page is asked for (GET)")
    flag(
        made,
        "--option",
        action="append",
        metavar="NAME=VALUE",
        help="an option that the application passes to session_settings(); repeatable, "
        "in the variable separated by blanks",
    )
    flag(made, "--json", switch="for programs")

    about = "copy live sessions out of a table of Compas"
    made = on_database("import-compas", commands.import_compas, about)
    flag(made, "--table", default="session", help="its name (session)")
    _limit(made, "1000", "so many at a time (1000)")

    about = "print what a shell needs to complete all this"
    made = command("completion", _completion(group.choices), about)
    made.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return whole


def _limit(made: Parser, default: str, about: str) -> None:
    flag(made, "--limit", type=count, default=default, help=about)


def _whom(made: Parser) -> None:
    """Which sessions end is said on the command line; no variable can mean it."""
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "named",
        nargs="?",
        metavar="HANDLE",
        help="the session with this handle; if it begins with two hyphens, "
        "put -- before it",
    )
    which.add_argument("--handle", metavar="HANDLE", help="the same")
    which.add_argument("--user", metavar="USER", help="all sessions of a user")
    which.add_argument(
        "--all",
        action="store_true",
        help="every session there is: all visitors are signed out; asks first",
    )
    made.add_argument("--yes", action="store_true", help="don't ask before --all")


def _marked(words: list[str]) -> list[str]:
    """
    The arguments of `revoke`, none of which argparse takes for a flag that is none.

    One handle in 64 begins with a hyphen, and a user may.
    """
    end = words.index("--") if "--" in words else len(words)
    found = iter(words[:end])
    marked = []
    for word in found:
        if word in {"--handle", "--user"} and (value := next(found, None)) is not None:
            marked.append(f"{word}={value}")
        elif _HYPHENED.fullmatch(word):
            marked.append(f"--handle={word}")
        else:
            marked.append(word)
    return marked + words[end:]


def _completion(known: Mapping[str, Any]) -> Command:
    async def run(arguments: argparse.Namespace) -> None:
        print(completion(arguments.shell, PROGRAM, known), end="")

    return run


def _version() -> str:
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "(not installed)"
