"""How long a session lives, when that is renewed, and when its cookie is."""

from __future__ import annotations

import math

from tornado_compas_session.core.change import NOTHING, Difference
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import SessionChange, SessionRecord
from tornado_compas_session.settings import SessionOptions

#: A cookie is renewed after so many seconds at the latest, where use renews it.
_COOKIE_RENEWED = 3600.0


class Lifetimes:
    """The lifetimes of an application's sessions, by its options and their own."""

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self._idle = options.idle
        #: With more seconds left than that, and no more than `_idle`, no row is due
        #: that has no idle lifetime of its own: all else only shortens them. Nor is a
        #: cookie in the first `_every` seconds.
        self._recent = self._idle - self._slack(self._idle)
        shortest = min(self._idle, options.anonymous_max_age or self._idle)
        self._every = self._cookie_every(shortest)

    def of(self, session: Session) -> tuple[int, int | None]:
        """The idle and the absolute lifetime of a session, its own ones first."""
        own, absolute = session.own_idle, session.own_absolute
        idle = self._default_idle(session) if own is None else abs(own)
        return idle, self.options.absolute_max_age if absolute is None else absolute

    def ends_with_browser(self, session: Session) -> bool:
        """Whether the cookie of a session has no lifetime of its own."""
        own = session.own_idle
        return (self.options.max_age if own is None else own) < 0

    def is_over(self, record: SessionRecord) -> bool:
        """
        Whether a session has ended by the options of today, which may be shorter than
        those it was written under. The idle lifetime counts from its last use.
        """
        options = self.options
        absolute = record.own_absolute
        if absolute is None:
            absolute = options.absolute_max_age
        if absolute is not None and record.created + absolute <= record.now:
            return True
        if record.own_idle is not None:
            return False
        since = record.created if options.renew is None else record.used
        return since + self._idle <= record.now

    def of_change(
        self, session: Session, difference: Difference = NOTHING, *, own: bool = False
    ) -> SessionChange:
        """
        The difference, with what the store needs to compute the expiry. `own`: with the
        session's own lifetimes as well.
        """
        options = self.options
        renewing = options.renew is not None or session.is_new or own
        agent, address = session.client or (None, None)
        return SessionChange(
            difference.changed,
            difference.removed,
            replace=difference.exact is not None,
            idle=float(self._default_idle(session)) if renewing else None,
            absolute=options.absolute_max_age,
            own=own,
            own_idle=session.own_idle,
            own_absolute=session.own_absolute,
            shown=session.life.shows,
            user_agent=agent,
            address=address,
        )

    def is_recent(self, session: Session) -> bool:
        """Whether neither the row nor the cookie can be due, as in most requests."""
        record = session.life.record
        return (
            record is not None
            and session.own_idle is None
            and self._recent < record.expires - record.now <= self._idle + 1
            and record.now - record.turned < self._every
        )

    def is_quiet(self, session: Session) -> bool:
        """Whether a request that changes nothing has nothing to write either."""
        life = session.life
        return life.shows is None and not life.outdated and self.is_recent(session)

    def row_is_due(self, session: Session) -> bool:
        """Whether the row's expiry is to be written, because the session is used."""
        record = session.life.record
        if record is None or self.options.renew is None or session.life.renewed:
            return False
        remaining = record.expires - record.now
        idle, absolute = self.of(session)
        full: float = idle
        if absolute is not None:
            full = min(full, record.created + absolute - record.now)
        # More than that is left of a longer one, from before the options were changed:
        # its last use is to be known, as it ends so long after that.
        return remaining <= full - self._slack(idle) or remaining > full + 1

    def cookie_is_due(self, session: Session) -> bool:
        """Whether the browser is to get a cookie anew, and a new secret with it."""
        life = session.life
        record = life.record
        if record is None or not life.may_regenerate:
            return False
        if life.outdated:
            return True
        if self.is_recent(session):
            return False
        return record.now - record.turned >= self._cookie_every(self.of(session)[0])

    def cookie_is_wrong(self, session: Session) -> bool:
        """Whether the session got other lifetimes of its own than its cookie has."""
        record = session.life.record
        if record is None or not session.life.may_regenerate:
            return False
        own = session.own_idle, session.own_absolute
        return own != (record.own_idle, record.own_absolute)

    def cookie_max_age(self, session: Session) -> int | None:
        """The Max-Age of a session's cookie; None if it ends with the browser."""
        record = session.life.record
        if record is None or self.ends_with_browser(session):
            return None
        return max(1, math.ceil(record.expires - record.now - 0.001))

    def _slack(self, idle: float) -> float:
        # A short lifetime is renewed more often, so that use always extends it.
        return min(self.options.renew or 0.0, idle / 10)

    def _cookie_every(self, idle: float) -> float:
        """After how many seconds use renews the cookie."""
        options = self.options
        if options.renew is None or not options.overwrite:
            return math.inf
        if options.renew == 0:
            return 0.0
        # A lifetime under five minutes is too short to wait for `renew`.
        return max(self._slack(idle), min(idle / 10, _COOKIE_RENEWED))

    def _default_idle(self, session: Session) -> int:
        shorter = self.options.anonymous_max_age
        if shorter is not None and session.open().user is None:
            return min(shorter, self._idle)
        return self._idle
