"""
Where a session stands: which row it is, whether this request may write to it, what is
to become of it, and what the browser is yet to be told.

Manager and handler move it by named transitions; nobody sets its fields from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tornado_compas_session.core.types import NewSecret, Saved, SessionRecord
from tornado_compas_session.exceptions import ResponseAlreadySent

#: A cookie is cleared for a row that was not there so many seconds ago at the most: the
#: browser may have got another one since.
_GONE_FRESH = 1.0
#: What has happened to the response, which no rollback undoes.
_OF_THE_RESPONSE = {"_finished", "_headers_left", "renews_cookie", "unreachable"}


class Life:
    """The life of one session within one request (or one open WebSocket)."""

    #: The row, as it was last seen; None while there is none.
    record: SessionRecord | None = None
    #: Whether this request has the secret that opens it now, not the one before.
    current = False
    #: The secret before this one, where it counts as the current one.
    superseding: bytes | None = None
    #: The hash that the browser presented, where it is yet to be noted that it did.
    shows: bytes | None = None
    #: Its cookie is signed by an older key or came under an older name.
    outdated = False
    #: Several cookies of the name came: the others are cleared with the next one.
    several = False
    #: `regenerate()` was called.
    regenerating = False
    #: The response clears the cookie: this request has ended the session.
    clears = False
    #: The row was written since it was read, which has extended its life.
    renewed = False
    #: Whether this response may take a renewed cookie along.
    renews_cookie = True
    #: Why no cookie can reach the browser, where none can.
    unreachable: str | None = None
    #: The row has moved on to another secret or visitor: nothing is written to it.
    strange = False
    strange_user: str | None = None
    #: The row that is to be deleted.
    doomed: SessionRecord | None = None
    #: The secret that the browser is yet to be sent: this request has committed it.
    secret: str | None = None
    #: The handle and secret of a try that is not known to be committed.
    _tried: tuple[str, str] | None = None
    _gone_at: float | None = None
    _in_cookie = False
    _headers_left: str | None = None
    _finished: str | None = None

    # ── how it begins ────────────────────────────────────────────────────────────

    def came_with(self, cookies: int) -> None:
        """So many verified cookies of the name came with the request."""
        self.several = cookies > 1

    def found(
        self,
        record: SessionRecord,
        presented: bytes,
        *,
        outdated: bool = False,
        supersedes: bool = False,
    ) -> None:
        """
        The browser showed a secret that opens this row.

        `supersedes`: it is the one before, and the answer with the new one was lost; so
        it counts as the current one, as long as nobody shows the other.
        """
        self.record = record
        is_it = presented == record.secret_hash
        self.current = is_it or supersedes
        self.superseding = presented if supersedes and not is_it else None
        self.outdated = outdated and self.current
        if is_it and record.shown is None:
            self.shows = presented

    def found_strange(self, user: str | None) -> None:
        """
        The row has moved on: to another secret, or to another visitor (`user`).

        The session is empty, and saving what it is told raises `SessionGone`: a new
        session's cookie would throw the good one out.
        """
        self.strange, self.strange_user = True, user

    def found_nothing(self, waited: float = 0.0) -> None:
        """
        There is no row of the handle that the browser showed; `waited` seconds ago the
        request began to come in.
        """
        self._gone_at = time.monotonic() - waited

    # ── what may be done ─────────────────────────────────────────────────────────

    def check_open(self, *, cookie: bool = False) -> None:
        """
        Raises `ResponseAlreadySent` if a change comes too late, or one that needs a
        cookie does.
        """
        if self._finished is not None:
            raise ResponseAlreadySent(self._finished)
        # A new session needs a cookie, so its content is as late as its cookie.
        needed = cookie or self.record is None or self._in_cookie
        if self._headers_left is not None and needed:
            raise ResponseAlreadySent(self._headers_left)

    def kept_in_cookie(self) -> None:
        """There is no row: the content itself is in the cookie."""
        self._in_cookie = True

    def headers_left(self, why: str) -> None:
        """From now on no cookie can follow."""
        self._headers_left = why
        self.renews_cookie = False

    def no_cookie(self, why: str) -> None:
        """No cookie can reach the browser; `why` is for the log, if there is a log."""
        self.unreachable = why
        self.renews_cookie = False

    def no_renewal(self) -> None:
        """This response takes no renewed cookie along."""
        self.renews_cookie = False

    def check_cookie(self) -> None:
        """Raises `ResponseAlreadySent` if the headers have left."""
        if self._headers_left is not None:
            raise ResponseAlreadySent(self._headers_left)

    @property
    def is_finished(self) -> bool:
        """Whether the response has been finished, if not sent."""
        return self._finished is not None

    def finish(self, why: str) -> None:
        """From now on nothing can follow."""
        self._finished = why

    def reopen(self) -> None:
        """An error page replaces the response, so a cookie can go out again."""
        self._headers_left = self._finished = None

    # ── what is to become of it ──────────────────────────────────────────────────

    def end(self) -> None:
        """The row is to be deleted; from now on this is a new session."""
        self.doomed = self.doomed or self.record
        self._forget()

    def ended(self, *, done: bool) -> None:
        """It was deleted, or else was somebody else's by then: that is done as well."""
        self.doomed = None
        self.clears = self.clears or done

    def spare(self) -> None:
        """The row is not to be deleted after all: the request failed."""
        self.doomed = None

    @property
    def may_regenerate(self) -> bool:
        """
        Whether a new secret would do any good: this request has the current one, and
        has not made one already that the browser is yet to be sent.
        """
        return self.current and self.secret is None

    def regeneration_done(self) -> None:
        """There is nothing left to do of what `regenerate()` asked for."""
        self.regenerating = False

    def draw(
        self, handle: Callable[[], str], secret: Callable[[], str]
    ) -> tuple[str, str]:
        """What to try; the same again while it is unknown how the last try went."""
        if self._tried is None:
            self._tried = handle(), secret()
        return self._tried

    def redraw(self) -> None:
        """What was tried is somebody else's."""
        self._tried = None

    # ── what has become of it ────────────────────────────────────────────────────

    def created(self, record: SessionRecord) -> None:
        """The row was made, or found to be made, with the secret that was drawn."""
        if self._tried is None:  # the session was ended meanwhile
            self.doomed = record
            return
        self.record = record
        self.renewed = True
        self._take_secret()

    def regenerated(self, saved: Saved, secret: NewSecret) -> None:
        """The row has the secret that was drawn."""
        if self.record is None:  # the session was ended meanwhile
            if self.doomed is not None:
                self.doomed = self.doomed.turned_to(secret, saved)
            return
        self.record = self.record.turned_to(secret, saved)
        self.renewed = True
        self._take_secret()

    def _take_secret(self) -> None:
        assert self._tried is not None
        self.secret, self._tried = self._tried[1], None
        self.current = True
        self.shows = self.superseding = None
        self.regenerating = self.outdated = self.clears = False

    def saved(self, saved: Saved) -> None:
        """The row was written."""
        if self.record is None:  # the session was ended meanwhile
            return
        self.renewed = True
        self.record = self.record.saved(saved)
        if self.shows is not None:
            self.record = self.record._replace(shown=saved.now)
            self.shows = None

    def owns(self, idle: int | None, absolute: int | None) -> None:
        """The row has these lifetimes of its own."""
        if self.record is not None:
            self.record = self.record._replace(own_idle=idle, own_absolute=absolute)

    def seen(self, record: SessionRecord) -> None:
        """The row was read again: it is the same visitor's."""
        self.current = self.current and (
            self.record is not None
            and record.secret_hash == self.record.secret_hash
            and (self.superseding is None or record.shown is None)
        )
        self.record = record
        self.renewed = False

    def lost(self) -> None:
        """The row is gone, or is another visitor's; whoever writes now hears of it."""
        self._forget()
        self.strange, self.strange_user = True, None

    def checkpoint(self) -> dict[str, Any]:
        """What the row has to do with, as it is now, for `roll_back`."""
        return dict(vars(self))

    def roll_back(self, checkpoint: dict[str, Any], record: SessionRecord) -> None:
        """As it was at the checkpoint, with the row as it was read since."""
        response = {k: v for k, v in vars(self).items() if k in _OF_THE_RESPONSE}
        self.__dict__ = checkpoint | response
        self.seen(record)

    def unbound(self) -> None:
        """The row is left to whoever has it; from now on this is a new session."""
        self._forget()
        self.strange = False

    def _forget(self) -> None:
        self.record = self.shows = self.secret = self._tried = None
        self.current = self.outdated = self.regenerating = False

    # ── what the browser is to be told ───────────────────────────────────────────

    @property
    def clears_cookie(self) -> bool:
        """
        Whether the cookie is to be cleared: the session was ended by this request, or
        was gone when this request came, a moment ago.
        """
        if self.record is not None or self.strange:
            return False
        return self.clears or (
            self._gone_at is not None
            and time.monotonic() - self._gone_at <= _GONE_FRESH
        )

    @property
    def blank(self) -> bool:
        """Whether there is nothing to save, renew, end or clear."""
        return (
            self.record is None
            and self.doomed is None
            and self._gone_at is None
            and not self.clears
        )
