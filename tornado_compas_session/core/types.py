"""The values that pass between the session, the manager and the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

#: What a session may hold. `Any` where Python's type system would need recursion that
#: makes `session["cart"]["items"]` unusable under mypy strict.
JSON: TypeAlias = Any


class SessionRecord(NamedTuple):
    """
    One live session as the store has it. Times are seconds since the epoch by the
    clock of the store; `now` is that clock at the moment of reading.
    """

    #: Its id now. Differs from the id that was asked for while the latter is honoured
    #: after a `regenerate`.
    id: str
    #: The JSON object, as text; decoded when the session is first touched.
    data: str
    created: float
    expires: float
    now: float
    #: When the user last signed in (`regenerate`, or `user_id` was set); None if never.
    authenticated: float | None = None
    #: This session's own lifetimes in seconds; None follows the options. A negative
    #: idle lifetime asks for a cookie that ends with the browser.
    own_idle: int | None = None
    own_absolute: int | None = None


class RetiredId(NamedTuple):
    """An id that a session had before `regenerate`, used after its grace was over."""

    #: The handle of the session that has moved on, for `revoke`.
    handle: str
    user_id: str | None


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
    #: Written when a session is created or regenerated, if recording is switched on.
    user_agent: str | None = None
    address: str | None = None

    @property
    def only_renews(self) -> bool:
        """Whether nothing but the expiry is written."""
        return not (self.changed or self.removed or self.replace or self.own)


class Saved(NamedTuple):
    """A committed write: the id that the session has now, and its times."""

    id: str
    created: float
    expires: float
    now: float
    authenticated: float | None = None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session of a user, for a list; carries neither its id nor its data."""

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
