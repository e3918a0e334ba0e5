"""
The command line: `tornado-compas-session`, also `python -m tornado_compas_session`.

Results go to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 misused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

from tornado_compas_session.cookies.signing import new_key
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.stores.migrations import migrate, migrations, script
from tornado_compas_session.stores.postgres import PostgresSessionStore
from tornado_compas_session.tools.terminal import (
    Progress,
    data_size,
    duration,
    moment,
    passwords_of,
    print_table,
    report_failure,
    say,
)

PROGRAM = "tornado-compas-session"
#: The environment twin of a flag is this and the flag's name; but for DATABASE_URL.
PREFIX = "TORNADO_COMPAS_SESSION_"

Arguments: TypeAlias = argparse.Namespace
Command = Callable[[Arguments], Awaitable[int | None]]
_TRUE = {"1", "true", "yes", "on"}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command and returns its exit code.

    A failure is one sentence on stderr with its causes, without any password; the
    traceback comes with `-v`. Misuse ends by `SystemExit(2)`, as argparse does it.
    """
    arguments = _parser().parse_args(argv)
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
        report_failure(error, arguments.verbose, _secrets(arguments))
        return 2 if isinstance(error, SettingsError) else 1


# ── the commands ─────────────────────────────────────────────────────────────────────


async def _migrate(arguments: Arguments) -> None:
    if arguments.print:
        print(script(), end="")
        return
    for name in (names := await migrate(_database_url(arguments))):
        print(name)
    total = len(migrations())
    say(f"{len(names)} of {total} migrations applied; the schema is up to date")


async def _keygen(arguments: Arguments) -> None:
    print(new_key())
    say(
        "put it first in APP_KEYS, before the keys that are there; to rotate without "
        "a gap, put it last everywhere first (docs/environment.md)"
    )


async def _cleanup(arguments: Arguments) -> None:
    total = 0
    async with _store(arguments) as store:
        with Progress("deleting expired sessions") as progress:
            deleted = limit = arguments.limit
            while deleted >= limit:
                deleted = await store.delete_expired(limit=limit)
                total += deleted
                progress.advance(deleted)
        left = (await store.stats())["expired"]
    print(total)
    say("expired sessions deleted" + (f"; another cleaner has {left}" if left else ""))


async def _stats(arguments: Arguments) -> None:
    async with _store(arguments) as store:
        stats = await store.stats()
        top = await store.top_users(limit=arguments.top)
    if arguments.json:
        users = [{"user_id": user, "sessions": count} for user, count in top]
        _print_json({**stats, "top_users": users})
        return
    oldest = stats["oldest_seconds"]
    rows = [
        ("live", str(stats["live"])),
        ("expired", str(stats["expired"])),
        ("anonymous", str(stats["anonymous"])),
        ("users", str(stats["users"])),
        ("oldest", "none" if oldest is None else duration(oldest)),
        ("size", data_size(stats["bytes"])),
        *((f"user {user}", str(count)) for user, count in top),
    ]
    print_table(("what", "how much"), rows, numbers=frozenset({1}))


async def _sessions(arguments: Arguments) -> None:
    async with _store(arguments) as store:
        found = await store.sessions_of(arguments.user, limit=arguments.limit)
    if arguments.json:
        _print_json(
            [
                {
                    "handle": info.handle,
                    "created_at": moment(info.created_at),
                    "last_used_at": moment(info.last_used_at),
                    "expires": moment(info.expires),
                    "address": info.address,
                    "user_agent": info.user_agent,
                }
                for info in found
            ]
        )
        return
    rows = [
        (
            info.handle,
            moment(info.created_at),
            moment(info.last_used_at),
            moment(info.expires),
            info.address or "",
            info.user_agent or "",
        )
        for info in found
    ]
    columns = ("handle", "created", "last used", "expires", "address", "user agent")
    if rows:
        print_table(columns, rows)
    else:
        say("this user has no live sessions")


async def _revoke(arguments: Arguments) -> int:
    async with _store(arguments) as store:
        if arguments.handle is not None:
            ended = int(await store.revoke(arguments.handle))
        elif arguments.user is not None:
            ended = await store.revoke_user(arguments.user)
        else:
            ended = await store.revoke_all()
    print(ended)
    if arguments.handle is not None and not ended:
        say("error: no live session has this handle")
        return 1
    say("sessions ended")
    return 0


async def _doctor(arguments: Arguments) -> int:
    from tornado_compas_session.tools.doctor import diagnose

    options = dict(_option(text) for text in arguments.option)
    findings = await diagnose(
        os.environ,
        database_url=arguments.database_url,
        url=arguments.url,
        method=arguments.method,
        options=options,
    )
    secrets = _secrets(arguments)
    if arguments.json:
        _print_json([finding.as_dict(secrets) for finding in findings])
    else:
        for finding in findings:
            print(finding.as_text(secrets))
    problems = sum(finding.level == "problem" for finding in findings)
    if not arguments.json:
        say(f"{problems or 'no'} problem{'s' * (problems > 1)} found")
    return 1 if problems else 0


async def _import_compas(arguments: Arguments) -> None:
    from tornado_compas_session.tools.compas_import import count_live, import_compas

    async with _pool(arguments) as pool:
        total = await count_live(pool, arguments.table)
        with Progress("copying sessions", total) as progress:
            outcome = await import_compas(
                pool, arguments.table, batch=arguments.limit, progress=progress.advance
            )
    print(outcome.copied)
    say(
        f"sessions copied; {outcome.present} were there already, {outcome.empty} were "
        "empty. Their cookies cannot be carried over, so visitors sign in again; what "
        "is copied shows in lists and counts (docs/cli.md)"
    )


# ── what the commands share ──────────────────────────────────────────────────────────


def _database_url(arguments: Arguments) -> str:
    if not arguments.database_url:
        raise SettingsError(
            "there is no database to work on; set DATABASE_URL, or pass --database-url"
        )
    return str(arguments.database_url)


@contextlib.asynccontextmanager
async def _store(arguments: Arguments) -> AsyncIterator[PostgresSessionStore]:
    store = await PostgresSessionStore.connect(
        _database_url(arguments), max_size=2, timeout=arguments.timeout
    )
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _pool(arguments: Arguments) -> AsyncIterator[Any]:
    from tornado_compas_session.stores.pools.asyncpg import AsyncpgPool, open_pool

    seconds = arguments.timeout
    pool = AsyncpgPool(
        await open_pool(
            _database_url(arguments), min_size=0, max_size=1, timeout=seconds
        ),
        timeout=seconds,
    )
    try:
        yield pool
    finally:
        await pool.close()


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


def _secrets(arguments: Arguments) -> list[str]:
    """What no output may show: the passwords of the DSN, and the keys."""
    keys = os.environ.get("APP_KEYS", "").split(",")
    return [
        *passwords_of(getattr(arguments, "database_url", None)),
        *(key.strip() for key in [*keys, os.environ.get("PGPASSWORD", "")]),
    ]


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _option(text: str) -> tuple[str, Any]:
    """`name=value`, the value as JSON, or else as it stands."""
    name, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--option {text!r} should be like same_site=none")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), {"True": True, "False": False}.get(value, value)


# ── the flags ────────────────────────────────────────────────────────────────────────


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Runs what keeps the sessions of Tornado in PostgreSQL.",
        epilog=f"Every flag can be given in the environment: `{PROGRAM} COMMAND -h` "
        "names the variable. Exit codes: 0 done, 1 failed, 2 misused.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Command, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + "."
        )
        made.set_defaults(command=run)
        _flag(made, "--verbose", "-v", switch="show the log and tracebacks")
        return made

    def on_database(name: str, run: Command, about: str) -> argparse.ArgumentParser:
        made = command(name, run, about)
        _flag(
            made,
            "--database-url",
            twin="DATABASE_URL",
            metavar="URL",
            help="the database, postgresql://user@host/name; a password is better "
            "given in the variable, where other users of the machine don't see it",
        )
        _flag(
            made,
            "--timeout",
            type=_seconds,
            default="60",
            metavar="SECONDS",
            help="the longest to wait for one answer of the database (60)",
        )
        return made

    made = on_database("migrate", _migrate, "create or update the tables")
    _flag(made, "--print", switch="print the SQL instead; needs no database")

    command("keygen", _keygen, "make a key for APP_KEYS")

    made = on_database("cleanup", _cleanup, "delete expired sessions; for cron")
    _flag(made, "--limit", type=_count, default="1000", help="so many at a time (1000)")

    made = on_database("stats", _stats, "count the sessions")
    _flag(made, "--top", type=_count, default="5", help="so many users (5)")
    _flag(made, "--json", switch="for programs")

    made = on_database("sessions", _sessions, "list the sessions of a user")
    made.add_argument("user", metavar="USER", help="as kept under user_id")
    _flag(made, "--limit", type=_count, default="50", help="so many at most (50)")
    _flag(made, "--json", switch="for programs")

    made = on_database("revoke", _revoke, "end sessions")
    which = made.add_mutually_exclusive_group()
    _flag(which, "--user", metavar="USER", help="all sessions of a user")
    _flag(which, "--handle", metavar="HANDLE", help="the session with this handle")
    _flag(which, "--all", switch="every session there is: all visitors are signed out")
    made.set_defaults(command=_one_of(made, _revoke))

    made = on_database("doctor", _doctor, "find out why a session is not kept")
    _flag(made, "--url", metavar="URL", help="a page that begins a session; it is got")
    _flag(made, "--method", default="GET", help="how the page is asked for (GET)")
    _flag(
        made,
        "--option",
        action="append",
        metavar="NAME=VALUE",
        help="an option that the application passes to session_settings(); repeatable, "
        "in the variable separated by blanks",
    )
    _flag(made, "--json", switch="for programs")

    made = on_database(
        "import-compas", _import_compas, "copy live sessions out of a table of Compas"
    )
    _flag(made, "--table", default="session", help="its name (session)")
    _flag(made, "--limit", type=_count, default="1000", help="so many at a time (1000)")
    return parser


def _flag(
    parser: Any,
    name: str,
    *short: str,
    twin: str | None = None,
    switch: str | None = None,
    **settings: Any,
) -> None:
    """Adds a flag, and its twin: a variable that stands in for it when it is absent."""
    twin = twin or PREFIX + name.strip("-").replace("-", "_").upper()
    value = os.environ.get(twin)
    if switch is not None:
        settings |= {"action": "store_true", "help": switch}
        settings["default"] = (value or "").strip().lower() in _TRUE
    elif settings.get("action") == "append":
        settings["default"] = (value or "").split()
    elif value:
        settings["default"] = value
    settings["help"] += f" [env: {twin}]"
    parser.add_argument(*short, name, **settings)


def _one_of(parser: argparse.ArgumentParser, command: Command) -> Command:
    """Misuse unless just one of revoke's flags is given; a flag outdoes variables."""

    async def run(arguments: Arguments) -> int | None:
        names = ("user", "handle", "all")
        defaults = {name: parser.get_default(name) for name in names}
        given = {name: getattr(arguments, name) for name in names}
        typed = [name for name in names if given[name] != defaults[name]]
        for name in names:
            if typed and name not in typed:
                setattr(arguments, name, None)
        wanted = [name for name in names if getattr(arguments, name)]
        if len(wanted) != 1:
            raise SettingsError("say which sessions: one of --user, --handle, --all")
        for name in names:
            if name not in wanted:
                setattr(arguments, name, None)
        return await command(arguments)

    return run


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 1000000")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.01 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 86400")
    return number
