"""What crosses to PostgreSQL and back: changes as values, rows as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tornado_compas_session.core.jsondata import encode, join_object
from tornado_compas_session.core.protocols import Row
from tornado_compas_session.core.types import (
    Identity,
    NewSecret,
    Saved,
    SessionChange,
    SessionInfo,
    SessionRecord,
)


def record_of(row: Row) -> SessionRecord:
    """The session in a row of `@record@`."""
    record = SessionRecord._make(row)
    if type(record.secret_hash) is bytes:
        return record
    former = record.former_hash
    return record._replace(
        secret_hash=bytes(record.secret_hash),
        former_hash=None if former is None else bytes(former),
    )


def saved_of(row: Row) -> Saved:
    """The times in a row of `@written@`."""
    return Saved(row[1], row[2], row[3])


def info_of(row: Row, current: str | None) -> SessionInfo:
    """The session in a row of `sessions_of`."""
    return SessionInfo(
        handle=row[0],
        user_id=row[1],
        created_at=datetime.fromtimestamp(row[2], UTC),
        last_used_at=datetime.fromtimestamp(row[3], UTC),
        expires=datetime.fromtimestamp(row[4], UTC),
        user_agent=row[5],
        address=row[6],
        current=row[0] == current,
    )


def one(change: SessionChange) -> dict[str, Any]:
    """A change as the parameters of a statement for one row."""
    writes = change.changed or change.removed or change.replace
    return {
        **change._asdict(),
        # What is set, as one JSON object; None where the data stays.
        "set": join_object(change.changed) if writes else None,
        "removed": list(change.removed),
    }


def new(
    secret_hash: bytes, change: SessionChange, identity: Identity | None
) -> dict[str, Any]:
    """A new session as the parameters of `create_session`, but its handle."""
    values = one(change)
    return {
        **values,
        "set": values["set"] or "{}",
        "secret_hash": secret_hash,
        "user_id": None if identity is None else identity.user_id,
    }


def turned(secret: NewSecret, change: SessionChange) -> dict[str, Any]:
    """A new secret as the parameters of `regenerate_session`, but its row."""
    identity = secret.identity
    return {
        **one(change),
        **secret._asdict(),
        "identity": identity is not None,
        "user_id": None if identity is None else identity.user_id,
    }


def many(each: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The parameters of statements for one row as those of one for all of them."""
    columns = {name: [values[name] for values in each] for name in each[0]}
    # PostgreSQL has no array of arrays of several lengths.
    columns["removed"] = [encode(keys) if keys else None for keys in columns["removed"]]
    return columns
