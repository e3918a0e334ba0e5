"""
`Session`: what `self.session` is. A dict of plain values that knows what changed.

What it holds is its `Content` (content.py); what the row holds is in its `Ledger`
(change.py), and where it stands in its `Life` (life.py). Its keeper (keeper.py) does
what needs a store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from tornado_compas_session.core.change import Ledger
from tornado_compas_session.core.content import Content
from tornado_compas_session.core.life import Life
from tornado_compas_session.core.types import SessionInfo, SessionRecord
from tornado_compas_session.exceptions import SessionDataError
from tornado_compas_session.settings import lifetime_seconds

T = TypeVar("T")


class Keeper(Protocol):
    """What a session needs of its keeper."""

    async def save(self, session: Session) -> None: ...

    async def reload(self, session: Session) -> None: ...

    def lock(
        self, session: Session, timeout: float | None
    ) -> AbstractAsyncContextManager[None]: ...

    async def increment(self, session: Session, key: str, by: float) -> int | float: ...

    async def end_others(self, session: Session) -> int: ...

    async def devices(self, session: Session) -> list[SessionInfo]: ...

    def lifetime(self, session: Session) -> tuple[int, int | None]: ...

    def ends_with_browser(self, session: Session) -> bool: ...


class Session(Content):
    """
    The session of one visitor: a mapping from strings to plain JSON values.

    Changes, nested ones included, are saved at the end of the request; reading costs
    nothing beyond the load. Values are plain dicts, lists, strings, numbers, booleans
    and None. A value that cannot be kept raises `SessionDataError`, naming its path,
    when it is saved, and then nothing is.

    `user_id` is who the visitor is: a string of 1 to 255 characters or an integer of 64
    bits; None or absent is nobody. Setting it to somebody else, or removing it, gives
    the session a new id, as `regenerate()` does.
    """

    __slots__ = (
        "_busy",
        "_handler",
        "_keeper",
        "block_error",
        "busy_task",
        "client",
        "locked",
        "own_absolute",
        "own_idle",
        "own_set",
        "planned",
        "saving",
        "used",
    )

    def __init__(self, keeper: Keeper, record: SessionRecord | None = None) -> None:
        self._keeper = keeper
        self.life = Life()
        #: The handler asked for it, so the answer may depend on the cookie.
        self.used = False
        #: User agent and address, where they are to be recorded.
        self.client: tuple[str, str | None] | None = None
        #: The handler whose `current_user` depends on it, weakly.
        self._handler: Callable[[], Any] | None = None
        #: The save that is under way without a task.
        self.saving: asyncio.Future[Any] | None = None
        #: One commit at a time; and the block of `lock()` that is open now.
        self._busy: asyncio.Lock | None = None
        self.busy_task: asyncio.Task[Any] | None = None
        self.locked = False
        #: What is to be written first, where that was decided already.
        self.planned: Any = None
        #: What a block of `lock()` failed with in which the response was finished.
        self.block_error: BaseException | None = None
        self._start(record)

    def start(self, record: SessionRecord | None) -> None:
        """Forgets the content, and starts from a stored session or from none."""
        dict.clear(self)
        self._start(record)

    def _start(self, record: SessionRecord | None) -> None:
        self.ledger = Ledger(None if record is None else record.data)
        self.opened = record is None
        self.own_set = False
        self.own_idle = None if record is None else record.own_idle
        self.own_absolute = None if record is None else record.own_absolute

    # ── what it is ───────────────────────────────────────────────────────────────

    @property
    def is_new(self) -> bool:
        """True while no stored session stands behind this one."""
        return self.life.record is None

    def __repr__(self) -> str:
        # Neither data nor id: this ends up in logs.
        state = "new" if self.is_new else "live"
        return f"<Session {state}{', modified' if self.modified else ''}>"

    def typed(self, kind: type[T]) -> T:
        """
        This same session, for the type checker as a TypedDict of yours.

        Nothing is checked or copied when the program runs: what is set, deleted or
        changed in it is so in the session.
        """
        return cast(T, self)

    @property
    def untouched(self) -> bool:
        """True if nothing was set, ended or handed out that could have been changed."""
        life = self.life
        return (
            self.ledger.untouched
            and not self.own_set
            and not life.regenerating
            and life.doomed is None
        )

    @property
    def modified(self) -> bool:
        """Whether there is anything to save; a due renewal does not count."""
        life = self.life
        if life.doomed is not None:
            return True
        if life.record is not None and (life.regenerating or self.own_set):
            return True
        if self.ledger.untouched:
            return False
        try:
            difference = self.ledger.difference(self)
        except SessionDataError:
            return True
        return bool(difference if life.record is not None else difference.changed)

    @property
    def created_at(self) -> datetime | None:
        """When the session was created, by the store's clock; None if it is new."""
        record = self.life.record
        return None if record is None else _datetime(record.created)

    @property
    def expires(self) -> datetime | None:
        """When the session expires unless it is used; None if it is new."""
        record = self.life.record
        return None if record is None else _datetime(record.expires)

    @property
    def auth_time(self) -> datetime | None:
        """
        When the user last signed in: `regenerate()` was called, or `user_id` set.

        None for a session in which nobody has.
        """
        record = self.life.record
        return None if record is None else _datetime(record.authenticated)

    def is_fresh(self, seconds: float | timedelta) -> bool:
        """Whether the user signed in at most so many seconds ago (store's clock)."""
        record = self.life.record
        if record is None or record.authenticated is None:
            return False
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        return record.now - record.authenticated <= seconds

    @property
    def handle(self) -> str | None:
        """
        Names the session in lists and in `revoke`, from its creation to its end; it is
        not the id, and opens nothing. None if it is new.
        """
        record = self.life.record
        return None if record is None else record.handle or None

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
        self.life.check_open()
        self.own_idle = None if value is None else lifetime_seconds(value)
        self.own_set = True

    @property
    def absolute_max_age(self) -> float | None:
        """The longest that the session may live, in seconds; set like `max_age`."""
        return self._keeper.lifetime(self)[1]

    @absolute_max_age.setter
    def absolute_max_age(self, value: float | timedelta | None) -> None:
        self.life.check_open()
        seconds = None if value is None else lifetime_seconds(value, "absolute_max_age")
        if seconds is not None and seconds < 0:
            raise ValueError('absolute_max_age is a number of seconds, not "session"')
        self.own_absolute = seconds
        self.own_set = True

    # ── what it can be told ──────────────────────────────────────────────────────

    def regenerate(self) -> None:
        """
        Gives the session a new id with the next save, and keeps its data.

        Call it when the visitor's rights change; where `user_id` changes it happens by
        itself. The former id is honoured until the new one has been shown, and for
        `regenerate_grace` seconds after that, for requests in flight: so a reply that
        is lost signs nobody out, and a copied id lives until then. (Where `user_id`
        changes, the former id is of no use from that moment on.) A session that is new
        has no id that anybody could know, so nothing happens. Raises
        `ResponseAlreadySent` when the cookie cannot be sent any more.
        """
        life = self.life
        life.check_open(cookie=True)
        if life.record is not None:
            life.regenerating = True
        self._changed_identity()

    def destroy(self) -> None:
        """
        Ends the session; what `self.session = None` does.

        The row is deleted and the cookie cleared with the next save; the mapping is
        empty and new at once. Does nothing if there is no session. Once the headers
        have left, the row is deleted all the same, and the cookie is cleared when the
        browser next shows it. One that belongs to another visitor by now is left alone.
        """
        if not self.life.strange:
            if self.life.record is not None:
                self.life.check_open()
            self.life.end()
        self.start(None)
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

        Raises `SessionGone` if it has ended meanwhile, or belongs to another visitor. A
        new session becomes empty.
        """
        await self._keeper.reload(self)

    async def increment(self, key: str, by: float = 1) -> int | float:
        """
        Adds to a number in the store, at once and without a lock; returns the sum.

        A key that is absent counts as 0. However many requests do so at the same
        moment, each addition counts once, and each gets its own sum. The addition is
        committed when this returns, and an error later in the request does not undo it.
        In a session that is new it is a change like any other, saved at the end.
        Raises `SessionDataError` if the key holds anything but a number, or `by` is
        none; after `StoreUnavailable` it may have happened or not.
        """
        return await self._keeper.increment(self, key, by)

    def lock(self, timeout: float | None = None) -> AbstractAsyncContextManager[None]:
        """
        `async with session.lock():` no other request changes it inside this block.

        The row is locked and its data is taken afresh; at the end of the block what
        changed is saved and the lock released; an exception undoes the block's
        changes, here and in the store. Raises `LockTimeout` if the lock does not come
        within `timeout` seconds (the option `timeout` unless given; 0 does not wait),
        `SessionGone` if the session has ended, `ValueError` for a timeout that is no
        number of seconds. Keep the block short: it holds a
        connection. To count, use `increment()`.
        """
        return _Block(self._keeper.lock(self, timeout))

    async def end_others(self) -> int:
        """
        Signs the user out everywhere else: ends all sessions of this `user_id` but this
        one, at once; returns how many. Raises `SessionDataError` where nobody is signed
        in.
        """
        return await self._keeper.end_others(self)

    async def devices(self) -> list[SessionInfo]:
        """
        The live sessions of this `user_id`, last used first, this one marked `current`.

        Raises `SessionDataError` where nobody is signed in.
        """
        return await self._keeper.devices(self)

    # ── for the manager ──────────────────────────────────────────────────────────

    @property
    def is_busy(self) -> bool:
        """Whether somebody has, or had, a turn with it."""
        return self._busy is not None or self.saving is not None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Of those who commit this session, or lock its row, one at a time."""
        if self._busy is None:
            self._busy = asyncio.Lock()
        async with self._busy:
            while self.saving is not None:
                await asyncio.wait({self.saving})
                await asyncio.sleep(0)  # what is called back is so now
            yield

    def bind(self, handler: Callable[[], Any]) -> None:
        """Names the handler to tell when who the visitor is may have changed."""
        self._handler = handler

    def _changed_identity(self) -> None:
        self.planned = None
        handler = None if self._handler is None else self._handler()
        if handler is not None:
            handler._session_changed()


def _datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class _Block(AbstractAsyncContextManager[None]):
    """What `lock()` returns; where `async` is missing, it says so."""

    def __init__(self, block: AbstractAsyncContextManager[None]) -> None:
        self._block = block

    async def __aenter__(self) -> None:
        await self._block.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._block.__aexit__(*error)

    if not TYPE_CHECKING:

        def __enter__(self) -> None:
            raise TypeError("lock() is asynchronous: `async with session.lock():`")

        __exit__ = __enter__
