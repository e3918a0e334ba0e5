"""
`Session`: what `self.session` is. A mapping of plain values that knows what changed.

A key can only have changed if it was set, deleted, or handed out while mutable. So the
JSON text of its old value is remembered at that moment, and compared at the end. No
proxies, no copies; a key that nobody touched costs nothing, and a session that nobody
touched is not even decoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar, cast

from tornado_compas_session.core.jsondata import (
    check_key,
    decode_object,
    encode,
    join_object,
)
from tornado_compas_session.core.types import JSON, Saved, SessionChange, SessionRecord
from tornado_compas_session.exceptions import ResponseAlreadySent, SessionDataError
from tornado_compas_session.settings import lifetime_seconds

T = TypeVar("T")

_IMMUTABLE = (str, int, float, bool, type(None))


class Keeper(Protocol):
    """What a session needs of its manager."""

    async def save(self, session: Session) -> None: ...

    async def reload(self, session: Session) -> None: ...

    def lock(
        self, session: Session, timeout: float | None
    ) -> AbstractAsyncContextManager[None]: ...

    def lifetime(self, session: Session) -> tuple[int, int | None]: ...

    def ends_with_browser(self, session: Session) -> bool: ...

    def handle(self, session: Session) -> str | None: ...


class Session(MutableMapping[str, JSON]):
    """
    The session of one visitor: a mapping from strings to plain JSON values.

    Changes, nested ones included, are saved at the end of the request; reading costs
    nothing beyond the load. Values are plain dicts, lists, strings, numbers, booleans
    and None. A value that cannot be kept raises `SessionDataError`, naming its path,
    when the response is about to leave, and then nothing is saved.
    """

    __slots__ = (
        "_before",
        "_client",
        "_data",
        "_doomed",
        "_fresh",
        "_handler",
        "_insecure",
        "_keeper",
        "_locked",
        "_own",
        "_own_absolute",
        "_own_idle",
        "_raw",
        "_record",
        "_regenerate",
        "_replaced",
        "_sealed",
        "_size",
        "_sized",
        "_used",
        "cookie",
    )

    def __init__(
        self,
        keeper: Keeper,
        record: SessionRecord | None = None,
        cookie: Any = None,
    ) -> None:
        self._keeper = keeper
        #: What the browser sent, as far as the manager needs it again.
        self.cookie = cookie
        #: Ids whose sessions end when this one is saved.
        self._doomed: tuple[str, ...] = ()
        #: Why a change that needs a cookie comes too late, once it does.
        self._sealed: str | None = None
        #: Set where no cookie can reach the browser (a Secure one over plain http).
        self._insecure = False
        #: Done when the `lock()` block that is open now has ended; None outside of one.
        self._locked: asyncio.Future[None] | None = None
        #: The handler asked for it, so the answer may depend on the cookie.
        self._used = False
        #: The cookie is due even where it is not sent with every response.
        self._fresh = False
        #: User agent and address, where they are to be recorded.
        self._client: tuple[str, str | None] | None = None
        #: The handler whose `current_user` depends on it, weakly.
        self._handler: Callable[[], Any] | None = None
        self._begin(record)

    def _begin(self, record: SessionRecord | None) -> None:
        """Forgets everything, and starts from a stored session or from none."""
        self._record = record
        self._raw = None if record is None else record.data
        self._data: dict[str, JSON] | None = None
        #: For each key that may have changed, its JSON text before (None: absent).
        self._before: dict[str, str | None] | None = None
        #: Set while the whole content is to be replaced.
        self._replaced: object | None = None
        self._regenerate = False
        #: Bytes of the stored JSON, counted when a change first asks.
        self._size: int | None = None
        #: The last answer of `size`, and for which change.
        self._sized: tuple[Mapping[str, str], int] | None = None
        self._own = False
        self._own_idle = None if record is None else record.own_idle
        self._own_absolute = None if record is None else record.own_absolute

    # ── the mapping ──────────────────────────────────────────────────────────────

    @property
    def _content(self) -> dict[str, JSON]:
        if self._data is None:
            self._data = {} if self._raw is None else decode_object(self._raw)
        return self._data

    def _remember(self, key: str) -> None:
        """Notes what a key held, the first time that it may change."""
        before = self._before
        if before is None:
            before = self._before = {}
        if self._replaced is None and key not in before:
            content = self._content
            # What was loaded was stored once, so this cannot fail; what was set in
            # this request is in `before` already.
            before[key] = encode(content[key]) if key in content else None

    def __getitem__(self, key: str) -> JSON:
        value = self._content[key]
        if not isinstance(value, _IMMUTABLE):
            self._remember(key)
        return value

    def get(self, key: str, default: JSON = None) -> JSON:
        """The value of a key, or the default."""
        # The inherited one raises and catches a KeyError, for most of its time.
        return self[key] if key in self._content else default

    def __setitem__(self, key: str, value: JSON) -> None:
        check_key(key)
        self._check_open()
        self._remember(key)
        self._content[key] = value
        if key == "user_id":
            self._changed_identity()

    def __delitem__(self, key: str) -> None:
        if key not in self._content:
            raise KeyError(key)
        self._check_open()
        self._remember(key)
        del self._content[key]
        if key == "user_id":
            self._changed_identity()

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __contains__(self, key: object) -> bool:
        return key in self._content

    def clear(self) -> None:
        """
        Empties the session. One that the browser holds an id of gets a new id as well,
        so that a known id never leads to what is written next.
        """
        if self._record is not None:
            self.regenerate()
        self.replace({})

    def replace(self, content: Mapping[str, JSON]) -> None:
        """Makes this the whole content; what `self.session = {…}` does."""
        if not isinstance(content, Mapping):
            raise TypeError(
                "a session is a dict with string keys, or None to end it; "
                f"got {type(content).__name__}"
            )
        self._check_open()
        content = dict(content)
        for key in content:
            check_key(key)
        self._data = content
        self._replaced = object()
        self._changed_identity()

    def typed(self, kind: type[T]) -> T:
        """
        This same session, for the type checker as a TypedDict of yours.

        Nothing is checked or copied when the program runs: what is set, deleted or
        changed in it is so in the session.
        """
        return cast(T, self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Session):
            return self is other or dict(self) == dict(other)
        return dict(self) == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Neither data nor id: this ends up in logs.
        state = "new" if self.is_new else "live"
        return f"<Session {state}{', modified' if self.modified else ''}>"

    # ── what it is ───────────────────────────────────────────────────────────────

    @property
    def is_new(self) -> bool:
        """True while no stored session stands behind this one."""
        return self._record is None

    @property
    def untouched(self) -> bool:
        """True if nothing was set, ended or handed out that could have been changed."""
        return not (
            self._before
            or self._own
            or self._regenerate
            or self._doomed
            or self._replaced is not None
        )

    @property
    def modified(self) -> bool:
        """Whether there is anything to save; a due renewal does not count."""
        if self._doomed or self._regenerate or self._own or self._replaced is not None:
            return bool(self._doomed or not self.is_new or self._content)
        try:
            return not self.change().only_renews
        except SessionDataError:
            return True

    @property
    def created_at(self) -> datetime | None:
        """When the session was created, by the store's clock; None if it is new."""
        return _datetime(self._record and self._record.created)

    @property
    def expires(self) -> datetime | None:
        """When the session expires unless it is used; None if it is new."""
        return _datetime(self._record and self._record.expires)

    @property
    def auth_time(self) -> datetime | None:
        """
        When the user last signed in: `regenerate()` was called, or `user_id` set.

        None for a session in which nobody has.
        """
        return _datetime(self._record and self._record.authenticated)

    def is_fresh(self, seconds: float | timedelta) -> bool:
        """Whether the user signed in at most so many seconds ago (store's clock)."""
        if self._record is None or self._record.authenticated is None:
            return False
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        return self._record.now - self._record.authenticated <= seconds

    @property
    def handle(self) -> str | None:
        """Names the session in lists and in `revoke`; not its id. None if it is new."""
        return self._keeper.handle(self)

    @property
    def max_age(self) -> float | str:
        """
        The idle lifetime in seconds, or `"session"`.

        Settable for this session alone (seconds, a `timedelta`, `"session"`), as for
        "remember me"; None returns to the option. The expiry restarts from now.
        """
        if self._keeper.ends_with_browser(self):
            return "session"
        return self._keeper.lifetime(self)[0]

    @max_age.setter
    def max_age(self, value: float | timedelta | str | None) -> None:
        self._check_open()
        self._own_idle = None if value is None else lifetime_seconds(value)
        self._own = True

    @property
    def absolute_max_age(self) -> float | None:
        """The longest that the session may live, in seconds; set like `max_age`."""
        return self._keeper.lifetime(self)[1]

    @absolute_max_age.setter
    def absolute_max_age(self, value: float | timedelta | None) -> None:
        self._check_open()
        seconds = None if value is None else lifetime_seconds(value, "absolute_max_age")
        if seconds is not None and seconds < 0:
            raise ValueError('absolute_max_age is a number of seconds, not "session"')
        self._own_absolute = seconds
        self._own = True

    # ── what it can be told ──────────────────────────────────────────────────────

    def regenerate(self) -> None:
        """
        Gives the session a new id with the next save, and keeps its data.

        Call it whenever the visitor's rights change: sign-in, sign-out of a role. The
        old id is honoured for a few seconds more (`regenerate_grace`), for requests in
        flight. A session that is new has no id that anybody could know, so nothing
        happens. Raises `ResponseAlreadySent` when the cookie cannot be sent any more.
        """
        if self._sealed:
            raise ResponseAlreadySent(self._sealed)
        if self._record is not None:
            self._regenerate = True
        self._changed_identity()

    def destroy(self) -> None:
        """
        Ends the session; what `self.session = None` does.

        The row is deleted and the cookie cleared with the next save; the mapping is
        empty and new at once. Does nothing if there is no session. Once the headers
        have left, the row is deleted all the same, and the cookie is cleared when the
        browser next shows it.
        """
        if self._record is not None:
            self._doomed = (*self._doomed, self._record.id)
        self._begin(None)
        self._changed_identity()

    async def save(self) -> None:
        """
        Commits what changed so far, now instead of at the end of the request.

        Raises `StoreUnavailable`, `SessionGone`, `SessionDataError` or
        `ResponseAlreadySent` (a new cookie would be needed); none of them has written
        anything, except that after `StoreUnavailable` the write may have happened.
        """
        await self._keeper.save(self)

    async def reload(self) -> None:
        """
        Takes the session afresh from the store; unsaved changes are dropped.

        Raises `SessionGone` if it has ended meanwhile. A new session becomes empty.
        """
        await self._keeper.reload(self)

    def lock(self, timeout: float | None = None) -> AbstractAsyncContextManager[None]:
        """
        `async with session.lock():` no other request changes it inside this block.

        The row is locked and its data is taken afresh; at the end of the block what
        changed is saved and the lock released; an exception undoes the block's
        changes, here and in the store. Raises `LockTimeout` if the lock does not come
        within `timeout` seconds (the option `timeout` unless given), `SessionGone` if
        the session has ended. Keep the block short: it holds a connection.
        """
        return self._keeper.lock(self, timeout)

    # ── for the manager ──────────────────────────────────────────────────────────

    def change(self) -> SessionChange:
        """What to write; raises `SessionDataError` for what cannot be kept."""
        changed: dict[str, str] = {}
        removed: list[str] = []
        if self._replaced is not None:
            for key, value in self._content.items():
                changed[key] = encode(value, key)
        elif self._before:
            content = self._content
            for key, before in self._before.items():
                if key not in content:
                    if before is not None:
                        removed.append(key)
                elif (text := encode(content[key], key)) != before:
                    changed[key] = text
        return SessionChange(
            changed,
            tuple(removed),
            replace=self._replaced is not None,
            own=self._own,
            own_idle=self._own_idle,
            own_absolute=self._own_absolute,
        )

    def committed(self, saved: Saved, change: SessionChange, mark: object) -> None:
        """
        Takes over the outcome of a save; `mark` is the `_replaced` that it wrote.

        Changes made while the save was under way stay changes, and so do those yet to
        come to values that were handed out before it.
        """
        self._size = self.size(change)
        before = self._record
        if before is None or (before.id, before.expires) != (saved.id, saved.expires):
            self._fresh = True
        self._record = SessionRecord(
            saved.id,
            self._raw or "{}",
            saved.created,
            saved.expires,
            saved.now,
            saved.authenticated,
            self._own_idle,
            self._own_absolute,
        )
        if self._replaced is mark:
            self._replaced = None
            if change.replace or self._before is None:
                self._before = {}  # the row has none of what was there before
            self._before.update(change.changed)
            for key in change.removed:
                self._before[key] = None
        if (self._own_idle, self._own_absolute) == (
            change.own_idle,
            change.own_absolute,
        ):
            self._own = False

    def rebase(self, record: SessionRecord, change: SessionChange) -> None:
        """Starts from what is stored now, with the unsaved changes on top of it."""
        own = self._own, self._own_idle, self._own_absolute
        regenerate = self._regenerate
        self._begin(record)
        self._regenerate = regenerate
        if own[0]:
            self._own, self._own_idle, self._own_absolute = own
        fresh = decode_object(join_object(change.changed))
        if change.replace:
            self.replace(fresh)
        else:
            self.update(fresh)
            for key in change.removed:
                self.pop(key, None)

    def size(self, change: SessionChange) -> int:
        """The bytes that the session's JSON will have, once the change is merged."""
        if self._sized is not None and self._sized[0] is change.changed:
            return self._sized[1]  # asked before the save, and again after it
        if self._size is None:
            self._size = len((self._raw or "{}").encode())
        base = total = 2 if change.replace else self._size
        if not change.replace and self._before is not None:
            for key in (*change.changed, *change.removed):
                before = self._before.get(key)
                if before is not None:
                    total -= _entry_size(key, before)
        for key, text in change.changed.items():
            total += _entry_size(key, text)
        if base == 2 and change.changed:
            total -= 1  # the first entry of an empty object needs no comma
        self._sized = change.changed, total
        return total

    @property
    def _blank(self) -> bool:
        """True if it came without a valid cookie, and nothing was done to it."""
        return self._record is None and self.cookie is None and self.untouched

    def _check_open(self) -> None:
        # A new session needs a cookie, so its content is as late as its cookie.
        if self._sealed and self._record is None:
            raise ResponseAlreadySent(self._sealed)

    def _changed_identity(self) -> None:
        handler = None if self._handler is None else self._handler()
        if handler is not None:
            handler._session_changed()


def _entry_size(key: str, text: str) -> int:
    plain = key.isascii() and key.isidentifier()  # as most are: they need no escapes
    quoted = len(key) + 2 if plain else len(encode(key).encode())
    return (
        quoted + (len(text) if text.isascii() else len(text.encode())) + 2
    )  # a colon, a comma


def _datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
