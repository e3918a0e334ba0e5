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
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial

import tornado_compas_session
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.tools import commands
from tornado_compas_session.tools.completion import SHELLS, completion
from tornado_compas_session.tools.flags import flag, number, switch
from tornado_compas_session.tools.terminal import report_failure, say

PROGRAM = "tornado-compas-session"

Command = Callable[[argparse.Namespace], Awaitable[int | None]]


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command and returns its exit code.

    A failure is one sentence on stderr with its causes, without any password; the
    traceback comes with `-v`. Misuse ends by `SystemExit(2)`, as argparse does it.
    """
    words = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(_joined(words))
    try:
        with _logging(arguments.verbose):
            return asyncio.run(arguments.command(arguments)) or 0
    except BrokenPipeError:
        # Who read the results has gone (`… | head`); the rest is for nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        say("interrupted; what was done so far stays done")
    except Exception as error:
        report_failure(error, arguments.verbose, commands.secrets_of(arguments))
        return 2 if isinstance(error, SettingsError) else 1
    return 1


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


def parser() -> argparse.ArgumentParser:
    """Knows every command; what a flag's variable says is read here."""
    whole = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Runs what keeps the sessions of Tornado in PostgreSQL.",
        epilog=f"Flags can be given in the environment: `{PROGRAM} COMMAND -h` "
        "names the variable. Exit codes: 0 done, 1 failed, 2 misused.",
    )
    version = f"{PROGRAM} {tornado_compas_session.__version__}"
    whole.add_argument("--version", action="version", version=version)
    group = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Command, about: str, *, database: bool = True
    ) -> argparse.ArgumentParser:
        made = group.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            allow_abbrev=False,  # half a word is no consent: `revoke --a` is a slip
        )
        made.set_defaults(command=run)
        switch(made, "-v", "--verbose", help="show the log and tracebacks")
        if database:
            flag(
                made,
                "--database-url",
                metavar="URL",
                help="the database, postgresql://user@host/name; a password is better "
                "given in the variable, where other users of the machine don't see it",
            )
            about = "the longest to wait for one answer of the database, in seconds"
            number(made, "--timeout", 60.0, least=0.01, most=86_400, help=about)
        return made

    made = command("migrate", commands.migrate, "create or update the tables")
    switch(made, "--print", help="print the SQL instead; needs no database")
    about = "spread the sessions over the servers of a Citus, in 32 shards"
    switch(made, "--distributed", help=about)

    command("keygen", commands.keygen, "make a key for APP_KEYS", database=False)

    made = command("cleanup", commands.cleanup, "delete expired sessions; for cron")
    number(made, "--limit", 1000, help="so many at a time")

    made = command("stats", commands.stats, "count the sessions")
    number(made, "--top", 5, help="so many users")
    switch(made, "--json", help="for programs")

    made = command("sessions", commands.sessions, "list the sessions of a user")
    made.add_argument("user", metavar="USER", help="as kept under user_id")
    number(made, "--limit", 50, help="so many at most")
    switch(made, "--json", help="for programs")

    _whom(command("revoke", commands.revoke, "end sessions"))

    made = command("doctor", commands.doctor, "find out why a session is not kept")
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
    switch(made, "--json", help="for programs")

    about = "copy live sessions out of a table of Compas"
    made = command("import-compas", commands.import_compas, about)
    flag(made, "--table", default="session", help="its name (session)")
    number(made, "--limit", 1000, help="so many at a time")

    about = "print what a shell needs to complete all this"
    run = partial(_completion, group.choices)
    made = command("completion", run, about, database=False)
    made.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return whole


def _whom(made: argparse.ArgumentParser) -> None:
    """Which sessions end is said on the command line; no variable can mean it."""
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--handle", metavar="HANDLE", help="the session of this handle")
    which.add_argument("--user", metavar="USER", help="all sessions of a user")
    about = "every session there is: all visitors are signed out; asks first"
    which.add_argument("--all", action="store_true", help=about)
    made.add_argument("--yes", action="store_true", help="don't ask before --all")


def _joined(words: Sequence[str]) -> list[str]:
    """
    `--handle -x` as `--handle=-x`: argparse would take `-x` for a flag.

    One handle in 64 begins with a hyphen, and a user may.
    """
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in {"--handle", "--user"}:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


async def _completion(
    known: Mapping[str, argparse.ArgumentParser], arguments: argparse.Namespace
) -> None:
    words = {
        name: [
            word
            for action in made._actions
            for word in [*action.option_strings, *(action.choices or ())]
        ]
        for name, made in known.items()
    }
    print(completion(arguments.shell, PROGRAM, words), end="")
