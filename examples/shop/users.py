"""The users: who they are, and whether a password is theirs."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Any, NamedTuple

TABLES = """
CREATE TABLE IF NOT EXISTS shop_user (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name     text    NOT NULL UNIQUE,
    password bytea   NOT NULL,
    admin    boolean NOT NULL,
    photo    bytea
);
CREATE TABLE IF NOT EXISTS shop_order (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id   bigint NOT NULL REFERENCES shop_user,
    placed_by bigint NOT NULL REFERENCES shop_user,
    cart      jsonb  NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT now()
);
"""
_USER = "SELECT id, name, admin, photo IS NOT NULL AS has_photo FROM shop_user"


class User(NamedTuple):
    id: int
    name: str
    admin: bool
    has_photo: bool


async def by_id(db: Any, user_id: int | None) -> User | None:
    row = user_id and await db.fetchrow(f"{_USER} WHERE id = $1", user_id)
    return User(*row) if row else None


async def everybody(db: Any) -> list[User]:
    return [User(*row) for row in await db.fetch(f"{_USER} ORDER BY name LIMIT 100")]


async def add(db: Any, name: str, password: str) -> User | None:
    """A new user; None if the name is taken. The first one is the administrator."""
    row = await db.fetchrow(
        "INSERT INTO shop_user (name, password, admin)"
        " VALUES ($1, $2, NOT EXISTS (SELECT FROM shop_user))"
        " ON CONFLICT DO NOTHING RETURNING id, name, admin, false",
        name,
        await hashed(password),
    )
    return User(*row) if row else None


async def with_password(db: Any, name: str, password: str) -> User | None:
    """The user of this name, if this is their password."""
    row = await db.fetchrow("SELECT id, password FROM shop_user WHERE name = $1", name)
    # A name that nobody has takes as long: how long it takes tells nothing.
    stored = row["password"] if row else bytes(SALT + 32)
    salt = stored[:SALT]
    right = secrets.compare_digest(stored, await hashed(password, salt))
    return await by_id(db, row["id"]) if right and row else None


async def set_password(db: Any, user: User, password: str) -> None:
    await db.execute(
        "UPDATE shop_user SET password = $1 WHERE id = $2",
        await hashed(password),
        user.id,
    )


SALT = 16


async def hashed(password: str, salt: bytes | None = None) -> bytes:
    """Salt and hash: a fifth of a second of work, in a thread, so that others go on."""
    salt = salt or secrets.token_bytes(SALT)
    # One of the settings that OWASP's Password Storage Cheat Sheet names.
    work = {"n": 2**14, "r": 8, "p": 5}
    return salt + await asyncio.to_thread(
        hashlib.scrypt, password.encode(), salt=salt, dklen=32, **work
    )
