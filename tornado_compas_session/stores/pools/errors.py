"""What a driver's error means to the store: one table for all drivers."""

from __future__ import annotations

import re

from tornado_compas_session.exceptions import (
    ConnectionLost,
    LockTimeout,
    RowExists,
    SchemaMissing,
    StoreError,
    StoreUnavailable,
    UnstorableText,
    WriteConflict,
)

CLOSED = "the pool of the sessions is closed, or not open yet"
#: When a time limit is over.
TOO_LATE = "the database did not answer in time"
_WHO = "the database refused the user name or the password (28P01)"

#: No table, no column.
_SCHEMA = {"42P01", "42703"}
#: The connection is of no more use: the server ends it, or it is the wrong server now
#: (25006: read-only, as a primary is after a failover).
_LOST = {"25006", "57P01", "57P02", "57P03", "57P04", "57P05"}
#: Too many connections, no such database, not allowed, the statement was cancelled.
_UNAVAILABLE = {"53300", "3D000", "42501", "57014"}
#: A character that the database's encoding has no place for.
_UNSTORABLE = {"22P05", "22021"}
#: A prepared statement that is not there, or there already.
_PREPARED = {"26000", "42P05"}

#: SQLSTATEs under which the server says what is wrong without quoting anybody's data.
#: Class 22 quotes the value and 42601 the SQL, perhaps a trigger's. 23, P0, 38, XX000
#: and what somebody invents are a trigger's words, and it has the row before it.
_OWN_WORDS = re.compile(r"0A|08|25|26|28|34|3D|3F|40|42(?!601)|53|54|55|57|58|XX00[12]")
#: The function of the server that raises what PL/pgSQL says, under any SQLSTATE.
_RAISE = "exec_stmt_raise"
#: And the one that says that a prepared statement is out of date.
_REVALIDATE = "RevalidateCachedQuery"
#: Those of Citus that tell what another server said, and that it cannot be reached: the
#: connection to this one is as good as before.
_RELAYED = {"ReportResultError", "ReportConnectionError"}


def error_of(
    sqlstate: str | None, name: str, message: str | None, function: str | None = None
) -> StoreError:
    """
    The error for an SQLSTATE; without one the connection broke.

    `name` is the driver's for the error, `message` the server's main sentence, and
    `function` the one of the server that said it. The server's DETAIL is for nobody: it
    quotes the row.
    """
    if message and "statement pooling mode" in message:  # 08P01, or none
        return StoreError(
            "a PgBouncer in pool_mode=statement is in between, which allows no "
            "transactions; sessions need pool_mode=transaction or session"
        )
    if sqlstate is None:
        return ConnectionLost(f"the connection to the database broke: {name}")
    # What another server said may be the words of a trigger there.
    hidden = function in (_RAISE, "ReportResultError")
    quotable = _OWN_WORDS.match(sqlstate) and not hidden
    said = f"{(quotable and message) or name} ({sqlstate})"
    if sqlstate in _SCHEMA:
        return SchemaMissing()
    if sqlstate in _UNSTORABLE:
        return UnstorableText()
    if sqlstate == "55P03":
        return LockTimeout()
    if sqlstate == "23505":
        return RowExists()
    if sqlstate[:2] == "40":
        return WriteConflict()
    if sqlstate == "28P01":
        return StoreUnavailable(_WHO)
    if sqlstate == "0A000" and function == _REVALIDATE:
        return ConnectionLost(f"a prepared statement is out of date: {said}")
    if sqlstate[:2] == "08" or sqlstate in _LOST:
        if function in _RELAYED:
            # Without why, which changes as it goes down and comes up again.
            where = said.partition(" failed with")[0]
            return StoreUnavailable(f"a server of the database is away: {where}")
        return ConnectionLost(f"the database ended the connection: {said}")
    if sqlstate[:2] == "28" or sqlstate in _UNAVAILABLE:
        return StoreUnavailable(f"the database said: {said}")
    if sqlstate in _PREPARED:
        said += (
            "; a PgBouncer in between wants prepared statements off "
            '(see "PgBouncer" in the documentation)'
        )
    return StoreError(f"the database refused a statement: {said}")


def unreachable(
    where: str, reason: str, trusted: str | None = None
) -> StoreUnavailable:
    """
    No connection was to be had, so nothing was sent.

    `trusted` is where the certificates are that the server's was compared with.
    """
    if trusted and "certificate" in reason:
        reason += f"; checked against {trusted}"
    return StoreUnavailable(f"no connection to {where}: {reason}")


def none_free(size: int) -> StoreUnavailable:
    """All connections were in use, so nothing was sent."""
    return StoreUnavailable(
        f"none of the {size} connections to the database came free in time"
    )


def check_commit(tag: str) -> None:
    """What PostgreSQL answers to a COMMIT is not always yes, and never an error."""
    if tag != "COMMIT":
        raise StoreError(
            "the transaction was rolled back: a statement in it had failed before"
        )


def reason_of(text: str) -> str:
    """
    Why libpq made no connection, in words that show no password.

    libpq tells the server's answer as text only, without an SQLSTATE, and quotes what
    it takes for the host's name, which is half of a password that holds an "@".
    """
    if "password authentication failed" in text or "no password supplied" in text:
        return _WHO
    if found := re.search(r"(root certificate file \S+ does not exist)", text):
        return found[1]
    if "does not match host name" in text:
        return "the server's certificate is for another host name"
    if "certificate" in text:
        return "the server's certificate is not trusted"
    if found := re.search(r"FATAL:\s+(.+)", text):
        return f"the database said: {found[1].strip()}"
    for sign, reason in (
        ("refused", "connection refused"),
        ("translate host name", "unknown host name"),
        ("failed to resolve", "unknown host name"),
        ("Name or service not known", "unknown host name"),
        ("timeout", "no answer in time"),
        ("closed the connection", "the server closed the connection"),
        ("does not support SSL", "the server speaks no TLS"),
        ("No such file", "there is no server at this socket"),
        ("invalid port", "invalid port number"),
    ):
        if sign in text:
            return reason
    return "libpq could not connect"
