"""The one table of errors: what each SQLSTATE is to the store, and what is repeated."""

from __future__ import annotations

import pytest

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
from tornado_compas_session.stores.pools.errors import error_of, reason_of


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        (None, ConnectionLost),
        ("08006", ConnectionLost),
        ("25006", ConnectionLost),
        ("57P01", ConnectionLost),
        ("57014", StoreUnavailable),
        ("53300", StoreUnavailable),
        ("28P01", StoreUnavailable),
        ("28000", StoreUnavailable),
        ("42501", StoreUnavailable),
        ("3D000", StoreUnavailable),
        ("0A000", StoreError),
        ("42P01", SchemaMissing),
        ("42703", SchemaMissing),
        ("55P03", LockTimeout),
        ("23505", RowExists),
        ("40001", WriteConflict),
        ("22P05", UnstorableText),
        ("22021", UnstorableText),
        ("22P02", StoreError),
        ("23514", StoreError),
        ("P0001", StoreError),
    ],
)
def test_what_an_sqlstate_is_to_the_store(
    sqlstate: str | None, expected: type[StoreError]
):
    """Only what says that the connection is of no use counts as lost."""
    assert expected is type(error_of(sqlstate, "DriverError", "words"))


@pytest.mark.parametrize("function", ["ReportConnectionError", "ReportResultError"])
@pytest.mark.parametrize("sqlstate", ["08006", "57P01"])
def test_a_server_behind_this_one_is_no_reason_to_connect_anew(
    sqlstate: str, function: str
):
    """A worker of Citus is away: its sessions are, and this connection is not."""
    words = "connection to the remote node 10.0.0.7 failed with the following error: it"
    error = error_of(sqlstate, "DriverError", words, function)
    assert StoreUnavailable is type(error)
    assert str(error).startswith("a server of the database is away: ")
    assert "failed" not in str(error)  # why changes, and would be a line each time
    # What is passed on may be a trigger's words over there.
    assert ("10.0.0.7" in str(error)) == (function == "ReportConnectionError")


@pytest.mark.parametrize(
    ("function", "expected"),
    [("RevalidateCachedQuery", ConnectionLost), ("DefineRelation", StoreError)],
)
def test_an_outdated_statement_is_told_from_what_is_unsupported(
    function: str, expected: type[StoreError]
):
    """Both are 0A000; by the server's function, for its words are in its language."""
    error = error_of("0A000", "FeatureNotSupported", "nicht unterstützt", function)
    assert expected is type(error)


@pytest.mark.parametrize(
    ("sqlstate", "function", "repeated"),
    [
        ("42883", "ParseFuncOrColumn", True),
        ("53100", "mdextend", True),
        ("0A000", "multi_planner", True),
        ("P0001", "exec_stmt_raise", False),
        ("42883", "exec_stmt_raise", False),
        ("22P02", "pg_strtoint32", False),
        ("23514", "ExecConstraints", False),
        ("42601", "scanner_yyerror", False),
        ("38000", "PLy_elog_impl", False),
        ("XX000", "PLy_elog_impl", False),
        ("T1234", "exec_stmt_raise", False),
    ],
)
def test_whose_words_are_repeated(sqlstate: str, function: str, repeated: bool):
    """The server's own; never what may quote the row, as a trigger's may."""
    said = str(error_of(sqlstate, "DriverError", "the words", function))
    assert repeated == ("the words" in said)
    assert repeated == ("DriverError" not in said)
    assert sqlstate in said


def test_a_refused_login_is_called_one():
    """Who reads the log looks for the password then."""
    error = error_of("28P01", "InvalidPassword", 'failed for user "ada"')
    assert "refused the user name or the password" in str(error)


AT = 'connection to server at "db" (10.0.0.1), port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (AT + "Connection refused\n\tIs the server running…?", "connection refused"),
        (
            AT + 'FATAL:  password authentication failed for user "ada"',
            "the database refused the user name or the password (28P01)",
        ),
        (
            AT + 'FATAL:  database "shop" does not exist\n',
            'the database said: database "shop" does not exist',
        ),
        (
            AT + "SSL error: certificate verify failed",
            "the server's certificate is not trusted",
        ),
        (
            AT + 'server certificate for "db" does not match host name "x"',
            "the server's certificate is for another host name",
        ),
        (
            AT + 'root certificate file "/ca.pem" does not exist',
            'root certificate file "/ca.pem" does not exist',
        ),
        (
            AT + "server does not support SSL, but SSL was required",
            "the server speaks no TLS",
        ),
        (
            'could not translate host name "half-a-secret@db" to address: …',
            "unknown host name",
        ),
        ('invalid dsn: missing "=" after "half-a-secret"', "Exception in the driver"),
        ("connection timeout expired", "no answer in time"),
    ],
)
def test_libpqs_reasons_without_what_it_quotes(text: str, reason: str):
    """It has no SQLSTATE for them, and repeats what it was given."""
    assert reason == reason_of(Exception(text))
    assert "half-a-secret" not in reason_of(Exception(text))
