"""What crosses to PostgreSQL and back: changes as values, rows as records."""

from __future__ import annotations

from collections.abc import Iterable
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


def content_of(change: SessionChange) -> str | None:
    """What is set, as one JSON object; None where the data stays."""
    if change.changed or change.removed or change.replace:
        return join_object(change.changed)
    return None


def one(change: SessionChange) -> dict[str, Any]:
    """A change as the parameters of a statement for one row."""
    return {
        "set": content_of(change),
        "removed": list(change.removed),
        "replaces": change.replace,
        **lifetime(change),
    }


def lifetime(change: SessionChange) -> dict[str, Any]:
    """What a change says of the lifetime, as parameters for one row."""
    return {
        "renews": None if change.idle is None else 1.0,
        "idle": change.idle,
        "absolute": change.absolute,
        "own": change.own,
        "own_idle": change.own_idle,
        "own_absolute": change.own_absolute,
        "shown": change.shown,
    }


def many(changes: Iterable[SessionChange]) -> dict[str, list[Any]]:
    """Changes as the parameters of a statement for a batch."""
    changes = list(changes)
    return {
        "sets": [content_of(change) for change in changes],
        "removals": [
            encode(change.removed) if change.removed else None for change in changes
        ],
        "replacements": [change.replace for change in changes],
        "renewals": [None if change.idle is None else 1.0 for change in changes],
        "idles": [change.idle for change in changes],
        "absolutes": [change.absolute for change in changes],
        "owns": [change.own for change in changes],
        "own_idles": [change.own_idle for change in changes],
        "own_absolutes": [change.own_absolute for change in changes],
        "showns": [change.shown for change in changes],
    }


def new(
    secret_hash: bytes, change: SessionChange, identity: Identity | None
) -> dict[str, Any]:
    """A new session as the parameters of `create_session`, but its handle."""
    user_id = None if identity is None else identity.user_id
    return {
        "secret_hash": secret_hash,
        "set": join_object(change.changed),
        "user_id": user_id,
        "idle": change.idle,
        "absolute": change.absolute,
        "signs_in": None if user_id is None else 1.0,
        "own_idle": change.own_idle,
        "own_absolute": change.own_absolute,
        "user_agent": change.user_agent,
        "address": change.address,
    }


def turned(secret: NewSecret, change: SessionChange) -> dict[str, Any]:
    """A new secret as the parameters of `regenerate_session`, but its row."""
    values = one(change)
    del values["shown"]
    identity = secret.identity
    return {
        **values,
        "mine": secret.mine,
        "new_hash": secret.new,
        "former": secret.former,
        "identity": identity is not None,
        "user_id": None if identity is None else identity.user_id,
        "keeps_sign_in": secret.signed_in is None,
        "signs_in": 1.0 if secret.signed_in else None,
        "user_agent": change.user_agent,
        "address": change.address,
    }
