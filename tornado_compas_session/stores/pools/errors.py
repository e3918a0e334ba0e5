"""
What a driver's error means to the store, and why there is no connection: one table of
each for all drivers.
"""

from __future__ import annotations

import errno
import os
import re
import socket

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

#: What is said best in our own words.
_OURS: dict[str, type[StoreError]] = {
    "42P01": SchemaMissing,  # no table
    "42703": SchemaMissing,  # no column
    "22P05": UnstorableText,  # a character that the encoding has no place for
    "22021": UnstorableText,
    "55P03": LockTimeout,
    "23505": RowExists,
}
#: The connection is of no more use: the server ends it, or it is the wrong server now
#: (25006: read-only, as a primary is after a failover).
_LOST = {"25006", "57P01", "57P02", "57P03", "57P04", "57P05"}
#: Too many connections, no such database, not allowed, the statement was cancelled.
_UNAVAILABLE = {"53300", "3D000", "42501", "57014"}
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

#: By what a driver says of a connection that it could not make; the first that fits.
_REASONS = (
    (r"password authentication failed|no password supplied", _WHO),
    (r"(root certificate file \S+ does not exist)", r"\1"),
    (r"not match host name", "the server's certificate is for another host name"),
    (
        r"certificate verify failed: (.+?)\.? \(_ssl",
        r"the server's certificate is not trusted: \1",
    ),
    (r"certificate", "the server's certificate is not trusted"),
    (r"\[SSL: (\w+)\]", r"TLS failed: \1"),
    (r"FATAL:\s+(.+)", r"the database said: \1"),
    (rf"refused|\[Errno {errno.ECONNREFUSED}\]", "connection refused"),
    (r"translate host|to resolve|service not known", "unknown host name"),
    (r"timeout", "no answer in time"),
    (r"closed the connection", "the server closed the connection"),
    (r"does not support SSL|rejected SSL", "the server speaks no TLS"),
    (r"No such file", "there is no such socket, or no such certificate file"),
    (r"invalid port", "invalid port number"),
    (r"target attribute", "no server of the wanted kind"),
)


def ours(error: Exception) -> StoreError:
    """
    The error for a driver's, which is to be raised `from None`: it quotes data.

    asyncpg has what the server said on the error itself, the others have it in `diag`.
    """
    name = type(error).__name__
    if isinstance(error, TimeoutError):
        return StoreUnavailable(TOO_LATE)
    if isinstance(error, UnicodeError):
        return UnstorableText()
    if "statement pooling mode" in str(error):
        return StoreError(
            "a PgBouncer in pool_mode=statement is in between, which allows no "
            "transactions; sessions need pool_mode=transaction or session"
        )
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if sqlstate is None and name == "DataError":  # it was never sent
        return StoreError("the driver refused a value")
    if (diag := getattr(error, "diag", None)) is not None:
        return error_of(sqlstate, name, diag.message_primary, diag.source_function)
    function = getattr(error, "server_source_function", None)
    return error_of(sqlstate, name, next(iter(error.args), None), function)


def error_of(
    sqlstate: str | None, name: str, message: str | None, function: str | None = None
) -> StoreError:
    """
    The error for an SQLSTATE; without one the connection broke.

    `name` is the driver's for the error, `message` the server's main sentence, and
    `function` the one of the server that said it. The server's DETAIL is for nobody: it
    quotes the row.
    """
    if sqlstate is None:
        return ConnectionLost(f"the connection to the database broke: {name}")
    if sqlstate in _OURS:
        return _OURS[sqlstate]()
    if sqlstate[:2] == "40":
        return WriteConflict()
    if sqlstate == "28P01":
        return StoreUnavailable(_WHO)
    # What another server said may be the words of a trigger there.
    hidden = function in (_RAISE, "ReportResultError")
    quotable = _OWN_WORDS.match(sqlstate) and not hidden
    said = f"{(quotable and message) or name} ({sqlstate})"
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


def reason_of(error: Exception) -> str:
    """
    Why a driver made no connection, in words that show no password.

    libpq tells the server's answer as text only, without an SQLSTATE, and quotes what
    it takes for the host's name, which is half of a password that holds an "@".
    """
    if isinstance(error, socket.gaierror | UnicodeError):
        return "unknown host name"
    for sign, reason in _REASONS:
        if found := re.search(sign, str(error)):
            return found.expand(reason)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()  # asyncio's own has the address in it
    return f"{type(error).__name__} in the driver"
