"""The values that pass between the session, the manager and the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from tornado_compas_session.core.jsondata import decode_object
from tornado_compas_session.exceptions import SessionDataError

#: What a session may hold. `Any` where Python's type system would need recursion that
#: makes `session["cart"]["items"]` unusable under mypy strict.
JSON: TypeAlias = Any


class SessionRecord(NamedTuple):
    """
    One live session as the store has it. Times are seconds since the epoch by the
    clock of the store; `now` is that clock at the moment of reading.
    """

    handle: str
    #: The JSON object, as text; decoded when the session is first touched.
    data: str
    #: SHA-256 of the secret that opens it now, and of the one before. The latter is
    #: None when who the visitor is has changed since: then nobody may use it any more.
    secret_hash: bytes
    former_hash: bytes | None
    #: How often who the visitor is has changed.
    epoch: int
    created: float
    #: When it was last written, which a use does at the latest after `renew` seconds.
    used: float
    expires: float
    now: float
    #: When the current secret was made, and when it was first presented, if it was.
    turned: float
    shown: float | None
    #: When the user last signed in (`regenerate`, or `user_id` was set); None if never.
    authenticated: float | None = None
    #: This session's own lifetimes in seconds; None follows the options. A negative
    #: idle lifetime asks for a cookie that ends with the browser.
    own_idle: int | None = None
    own_absolute: int | None = None

    @classmethod
    def made(
        cls, handle: str, secret_hash: bytes, change: SessionChange, saved: Saved
    ) -> SessionRecord:
        """
        A session that was made so, but for its data. Whoever makes one has its secret,
        and so has shown it.
        """
        now = saved.now
        return cls(
            handle,
            "{}",
            secret_hash,
            former_hash=None,
            epoch=0,
            created=now,
            used=now,
            expires=saved.expires,
            now=now,
            turned=now,
            shown=now,
            authenticated=saved.authenticated,
            own_idle=change.own_idle,
            own_absolute=change.own_absolute,
        )

    def saved(self, saved: Saved) -> SessionRecord:
        """The session once it was written, but for its data."""
        return self._replace(
            used=saved.now,
            expires=saved.expires,
            now=saved.now,
            authenticated=saved.authenticated,
        )

    def turned_to(self, secret: NewSecret, saved: Saved) -> SessionRecord:
        """The session once it got a new secret, but for its data."""
        return self.saved(saved)._replace(
            secret_hash=secret.new,
            former_hash=None if secret.identity else secret.former or secret.mine,
            epoch=self.epoch + (secret.identity is not None),
            turned=saved.now,
            shown=None,
        )


class RetiredId(NamedTuple):
    """An id that a session had before `regenerate`, used after its grace was over."""

    #: The handle of the session that has moved on, for `revoke`.
    handle: str
    user_id: str | None


class Identity(NamedTuple):
    """
    Who the visitor is from now on, where a write changes that: nobody's former secret
    opens the session any more, and no request from before writes to it.
    """

    #: `user_id` as text; None is nobody.
    user_id: str | None
    #: The most sessions that this user may have; those unused longest end in the same
    #: transaction, and never this one.
    allowed: int | None = None


class SessionChange(NamedTuple):
    """
    What a request writes to a session. With nothing set it only renews.

    The store computes the expiry, by its own clock: `idle` seconds from now (or the
    session's own idle lifetime), but no later than `absolute` seconds after its
    creation. With `idle` None the expiry stays (a fixed lifetime).
    """

    #: Top-level keys set, each with its JSON text.
    changed: Mapping[str, str] = {}
    removed: tuple[str, ...] = ()
    #: The content becomes exactly `changed`.
    replace: bool = False
    idle: float | None = None
    absolute: float | None = None
    #: New lifetimes of this session's own, when `own` is set.
    own: bool = False
    own_idle: int | None = None
    own_absolute: int | None = None
    #: The hash of the secret that this request came with: if it is the current one, it
    #: has been shown now, and the grace of the one before begins to end.
    shown: bytes | None = None
    #: Written when a session is created or gets a new secret, if it is to be recorded.
    user_agent: str | None = None
    address: str | None = None

    @property
    def only_renews(self) -> bool:
        """Whether nothing but the expiry is written."""
        return not (self.changed or self.removed or self.replace or self.own)


class NewSecret(NamedTuple):
    """A new secret for a live session: only whoever has the current one may set it."""

    #: The hash that the row must have, and the one that it gets.
    mine: bytes
    new: bytes
    #: Set where who the visitor is changes with it.
    identity: Identity | None = None
    #: Whether the user has just signed in (again): dates `authenticated`. None leaves
    #: the date, False removes it.
    signed_in: bool | None = None
    #: Set where the current secret was never shown and its answer is lost: then this is
    #: what the browser has, and stays the former one. Only while nobody has shown it.
    former: bytes | None = None


class Saved(NamedTuple):
    """A committed write: the times of the session now."""

    expires: float
    now: float
    authenticated: float | None = None


class Incremented(NamedTuple):
    """A committed increment: the number as JSON text, and the times."""

    text: str
    saved: Saved


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session of a user, for a list; carries neither its secret nor its data."""

    #: Names the session in `revoke(handle)`; safe to show, useless as a cookie.
    handle: str
    user_id: str | None
    created_at: datetime
    last_used_at: datetime
    expires: datetime
    user_agent: str | None = None
    address: str | None = None
    #: True for the session that asked.
    current: bool = False


def user_text(user_id: object) -> str | None:
    """
    `user_id` as the store knows it; None is nobody.

    Raises `SessionDataError` for anything but a string of 1 to 255 characters, an
    integer of 64 bits, or None: what prints in two ways (True, 1e22) would be listed
    and revoked under one and kept under the other.
    """
    if user_id is None:
        return None
    if isinstance(user_id, str):
        if not 1 <= len(user_id) <= 255:
            raise SessionDataError(
                "user_id", f"it has {len(user_id)} characters, and 1 to 255 are allowed"
            )
        return user_id
    if isinstance(user_id, int) and not isinstance(user_id, bool):
        if not -(2**63) <= user_id < 2**63:
            raise SessionDataError("user_id", "an integer of more than 64 bits")
        return int.__repr__(user_id)
    raise SessionDataError(
        "user_id",
        f"it is a string or an integer, and not {type(user_id).__name__}; keep the "
        "name or number of the user there, and the rest under keys of its own",
    )


def known_user(user_id: object) -> str:
    """As `user_text`, where nobody is no answer: sessions of None are not listed."""
    user = user_text(user_id)
    if user is None:
        raise SessionDataError("user_id", "None is nobody; name a user")
    return user


def user_of(record: SessionRecord) -> str | None:
    """Who the visitor of a session is, as text; None is nobody."""
    try:
        return user_text(decode_object(record.data).get("user_id"))
    except SessionDataError:  # written to the row by somebody else
        return None
