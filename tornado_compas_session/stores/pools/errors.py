"""What a driver's error means to the store: one table for all drivers."""

from __future__ import annotations

from tornado_compas_session.exceptions import (
    ConnectionLost,
    LockTimeout,
    RowExists,
    SchemaMissing,
    StoreError,
    StoreUnavailable,
    WriteConflict,
)

#: No table, no column.
_SCHEMA = {"42P01", "42703"}
#: The connection is of no more use: the server ends it, or it is the wrong server now
#: (25006: read-only, as a primary is after a failover), or a column was added and a
#: prepared statement is out of date (0A000).
_LOST = {"25006", "57P01", "57P02", "57P03", "57P04", "57P05", "0A000"}
#: Too many connections, no such database, not allowed, the statement was cancelled.
_UNAVAILABLE = {"53300", "3D000", "42501", "57014"}

#: A prepared statement that is not there, or there already.
_PREPARED = {"26000", "42P05"}


def error_of(sqlstate: str | None, name: str, message: str | None) -> StoreError:
    """
    The error for an SQLSTATE; without one the connection broke.

    `name` is the driver's for the error, and `message` the server's main sentence. The
    server's DETAIL is for nobody: it quotes the row.
    """
    if sqlstate is None:
        return ConnectionLost(f"the connection to the database broke: {name}")
    # Those of class 22 (data) quote the value.
    said = f"{message or name} ({sqlstate})" if sqlstate[:2] != "22" else sqlstate
    if sqlstate in _SCHEMA:
        return SchemaMissing()
    if sqlstate == "55P03":
        return LockTimeout()
    if sqlstate == "23505":
        return RowExists()
    if sqlstate[:2] == "40":
        return WriteConflict()
    if sqlstate[:2] == "08" or sqlstate in _LOST:
        return ConnectionLost(f"the database ended the connection: {said}")
    if sqlstate[:2] == "28" or sqlstate in _UNAVAILABLE:
        return StoreUnavailable(f"the database said: {said}")
    if sqlstate in _PREPARED:
        said += "; a PgBouncer in between wants prepared statements off (docs/pools.md)"
    return StoreError(f"the database refused a statement: {said}")
