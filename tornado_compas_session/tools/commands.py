"""What the commands do. What they are called, and their flags: cli.py."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from tornado_compas_session.cookies.signing import new_key
from tornado_compas_session.core.types import SessionInfo
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.stores import migrations
from tornado_compas_session.stores.pools import opened
from tornado_compas_session.stores.postgres import PostgresSessionStore
from tornado_compas_session.tools.findings import Finding
from tornado_compas_session.tools.terminal import (
    ask,
    moment,
    passwords_of,
    print_table,
    progress,
    redacted,
    say,
)

Arguments: TypeAlias = argparse.Namespace


async def migrate(arguments: Arguments) -> None:
    """Applies what is pending, and names it."""
    if arguments.print:
        print(migrations.script(distributed=arguments.distributed), end="")
        return
    async with opened(_database_url(arguments), arguments.timeout) as pool:
        for name in (names := await migrations.migrate(pool)):
            print(name)
        total = len(migrations.migrations())
        say(f"{len(names)} of {total} migrations applied; the schema is up to date")
        if arguments.distributed:
            done = await migrations.distribute(pool)
            say("the table is distributed by handle" + ("" if done else " already"))


async def keygen(arguments: Arguments) -> None:
    """Prints a new key, and nothing else on stdout."""
    print(new_key())
    say(
        "put it first in APP_KEYS, before the keys that are there; to rotate without "
        'a gap, put it last everywhere first (see "Changing the key, in two steps" in '
        "the documentation)"
    )


async def cleanup(arguments: Arguments) -> None:
    """Deletes expired sessions, so many at a time, until none is left."""
    total = 0
    async with _store(arguments) as store:
        with progress("deleting expired sessions") as advance:
            deleted = limit = arguments.limit
            while deleted >= limit:
                deleted = await store.delete_expired(limit=limit)
                total += deleted
                advance(deleted)
        left = (await store.stats())["expired"]
    print(total)
    say("expired sessions deleted" + (f"; another cleaner has {left}" if left else ""))


async def stats(arguments: Arguments) -> None:
    """Counts the sessions."""
    async with _store(arguments) as store:
        found = await store.stats()
        top = await store.top_users(limit=arguments.top)
    if arguments.json:
        users = [{"user_id": user, "sessions": count} for user, count in top]
        _print_json({**found, "top_users": users})
        return
    oldest = found["oldest_seconds"]
    rows = [
        *((name, found[name]) for name in ("live", "expired", "anonymous", "users")),
        ("oldest", "none" if oldest is None else timedelta(seconds=int(oldest))),
        ("size", f"{found['bytes'] / 1e6:,.1f} MB"),
        *((f"user {user}", count) for user, count in top),
    ]
    print_table(("what", "how much"), [(name, str(value)) for name, value in rows])


async def sessions(arguments: Arguments) -> None:
    """Lists the live sessions of a user."""
    async with _store(arguments) as store:
        found = await store.sessions_of(arguments.user, limit=arguments.limit)
    if arguments.json:
        _print_json([_described(info) for info in found])
    elif found:
        rows = [_described(info, between=" ") for info in found]
        columns = [name.replace("_", " ") for name in rows[0]]
        print_table(columns, [[cell or "" for cell in row.values()] for row in rows])
        say("to end one: tornado-compas-session revoke --handle HANDLE")
    else:
        say("this user has no live sessions")


def _described(info: SessionInfo, between: str = "T") -> dict[str, str | None]:
    return {
        "handle": info.handle,
        "created_at": moment(info.created_at, between),
        "last_used_at": moment(info.last_used_at, between),
        "expires": moment(info.expires, between),
        "address": info.address,
        "user_agent": info.user_agent,
    }


async def revoke(arguments: Arguments) -> int:
    """Ends sessions, and prints how many; 1 if it is a handle that nothing has."""
    if arguments.all and not arguments.yes:
        parts = urlsplit(_database_url(arguments))
        place = f"{parts.path.strip('/')} at {parts.hostname or 'this machine'}"
        if not ask(f"End every session in {place}, and sign all visitors out?"):
            say("error: revoke --all was not confirmed; without a terminal: --yes")
            return 2
    async with _store(arguments) as store:
        if arguments.all:
            ended = await store.revoke_all()
        elif arguments.user:
            ended = await store.revoke_user(arguments.user)
        else:
            ended = int(await store.revoke(arguments.handle))
    print(ended)
    if arguments.handle and not ended:
        say("error: no live session has this handle")
        return 1
    say("sessions ended")
    return 0


async def doctor(arguments: Arguments) -> int:
    """Says what it finds; 1 if a problem is among it."""
    from tornado_compas_session.tools.doctor import diagnose

    findings = await diagnose(
        os.environ,
        database_url=arguments.database_url,
        url=arguments.url,
        method=arguments.method,
        options=dict(_option(text) for text in arguments.option),
    )
    secrets = secrets_of(arguments)
    findings = [
        Finding(level, name, *(redacted(words, secrets) for words in said))
        for level, name, *said in findings
    ]
    problems = sum(finding.level == "problem" for finding in findings)
    if arguments.json:
        _print_json([finding._asdict() for finding in findings])
    else:
        print(*findings, sep="\n")
        say(f"{problems or 'no'} problem{'s' * (problems > 1)} found")
    return 1 if problems else 0


async def import_compas(arguments: Arguments) -> None:
    """Copies the live sessions of a table of Compas."""
    from tornado_compas_session.tools import compas_import

    async with opened(_database_url(arguments), arguments.timeout) as pool:
        total = await compas_import.count_live(pool, arguments.table)
        with progress("copying sessions", total) as advance:
            outcome = await compas_import.import_compas(
                pool, arguments.table, batch=arguments.limit, progress=advance
            )
    print(outcome.copied)
    say(
        f"sessions copied; {outcome.present} were there already, {outcome.empty} were "
        "empty. Their cookies cannot be carried over, so visitors sign in again; what "
        "is copied shows in lists and counts"
    )


# -- what they share -------------------------------------------------------------------


def secrets_of(arguments: Arguments) -> list[str]:
    """What no output may show: the passwords of the DSN, and the keys."""
    keys = os.environ.get("APP_KEYS", "").split(",")
    return [
        *passwords_of(getattr(arguments, "database_url", None) or ""),
        *(key.strip() for key in [*keys, os.environ.get("PGPASSWORD", "")]),
    ]


def _database_url(arguments: Arguments) -> str:
    if not arguments.database_url:
        raise SettingsError(
            "there is no database to work on; set DATABASE_URL, or pass --database-url"
        )
    return str(arguments.database_url)


@asynccontextmanager
async def _store(arguments: Arguments) -> AsyncIterator[PostgresSessionStore]:
    async with opened(_database_url(arguments), arguments.timeout) as pool:
        yield PostgresSessionStore(pool, timeout=arguments.timeout)


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
