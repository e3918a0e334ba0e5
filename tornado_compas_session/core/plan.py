"""
What there is to write of a session: decided here and nowhere else, in `Planner.next`.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from tornado_compas_session.core.change import NOTHING, Difference, Ledger
from tornado_compas_session.core.jsondata import size_of
from tornado_compas_session.core.lifetimes import Lifetimes
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import Identity, SessionChange, user_text
from tornado_compas_session.exceptions import SessionDataError, SessionGone
from tornado_compas_session.settings import SessionOptions

logger = logging.getLogger("tornado_compas_session")


class Step(NamedTuple):
    """One write: what the store is told, and what the session knows once it is done."""

    verb: str
    difference: Difference = NOTHING
    change: SessionChange = SessionChange()
    #: Set where the write changes who the visitor is.
    identity: Identity | None = None
    signed_in: bool | None = None

    @property
    def renews_cookie(self) -> bool:
        """Whether the new secret is only there for the browser to get its cookie."""
        return (
            self.verb == "regenerate"
            and self.identity is None
            and self.signed_in is None
        )


class Planner:
    """Decides what is to be written next, and writes nothing."""

    def __init__(self, options: SessionOptions, lifetimes: Lifetimes) -> None:
        self._options = options
        self._lifetimes = lifetimes
        self._warned: set[str] = set()

    def next(self, session: Session, *, automatic: bool) -> Step | None:
        """
        The next write, if there is anything to write.

        Raises `SessionDataError` for what cannot be kept, `SessionGone` where the
        session is another visitor's by now, and `ResponseAlreadySent` for what needs a
        cookie too late.
        """
        life = session.life
        if session.untouched and self._lifetimes.is_quiet(session):
            return None  # as for most reads
        if life.doomed is not None:
            return Step("delete")  # an end waits for nobody, auto_commit or not
        difference = NOTHING
        own = regenerating = False
        if not ((automatic and not self._options.auto_commit) or session.untouched):
            if not session.ledger.untouched:
                difference = session.ledger.difference(session)
            own, regenerating = session.own_set, life.regenerating
        if life.record is None:
            return self._creation(session, difference)
        if difference is not NOTHING and self._changes_identity(session, difference):
            return self._identity(session, difference)
        if regenerating and life.may_regenerate and life.unreachable is None:
            life.check_cookie()
            return self._step("regenerate", session, difference, signed_in=True)
        if life.renews_cookie and (
            self._lifetimes.cookie_is_due(session)
            or (own and self._lifetimes.cookie_is_wrong(session))
        ):
            return self._step("regenerate", session, difference, own=own)
        if difference is not NOTHING or own:
            return self._step("save", session, difference)
        if life.shows is not None or self._lifetimes.row_is_due(session):
            return Step("save", difference, self._lifetimes.of_change(session))
        life.regeneration_done()  # one that would do no good
        return None

    def _creation(self, session: Session, difference: Difference) -> Step | None:
        if not difference.changed:
            return None
        life = session.life
        if life.strange:
            if session.user is None or session.user != life.strange_user:
                raise SessionGone
            life.unbound()  # a double click on "sign in": the second gets its own
        life.check_cookie()
        if life.unreachable is not None:
            self._warn_once(life.unreachable)
            return None
        return self._step(
            "create", session, difference, self._identity_of(session.user)
        )

    def _identity(self, session: Session, difference: Difference) -> Step | None:
        life = session.life
        if life.current:
            life.check_cookie()
            if life.unreachable is not None and session.user is not None:
                self._warn_once(life.unreachable)
                return None
            identity = self._identity_of(session.user) or Identity(None)
            signed_in = identity.user_id is not None
            return self._step("regenerate", session, difference, identity, signed_in)
        # A change of who the visitor is needs the current secret, and is never merged.
        if session.user is not None:
            life.lost()
            raise SessionGone
        life.end()
        session.ledger = Ledger(None)
        session.ledger.untouched = False
        return Step("delete")

    def _identity_of(self, user: str | None) -> Identity | None:
        if user is None:
            return None
        return Identity(user, self._options.max_sessions_per_user)

    def _changes_identity(self, session: Session, difference: Difference) -> bool:
        if not (
            "user_id" in difference.changed
            or "user_id" in difference.removed
            or difference.exact is not None
        ):
            return False
        try:
            before = user_text(session.ledger.user)
        except SessionDataError:  # written to the row by somebody else
            return True
        return session.user != before

    def _step(
        self,
        verb: str,
        session: Session,
        difference: Difference,
        identity: Identity | None = None,
        signed_in: bool | None = None,
        *,
        own: bool | None = None,
    ) -> Step:
        limit = self._options.max_data_size
        if difference is not NOTHING and session.ledger.at_most(difference) > limit:
            self._check_size(session, difference, limit)
        own = session.own_set if own is None else own
        change = self._lifetimes.of_change(session, difference, own=own)
        return Step(verb, difference, change, identity, signed_in)

    def _check_size(self, session: Session, difference: Difference, limit: int) -> None:
        size = size_of(dict(dict.items(session)))
        if size > limit and (
            session.is_new
            or (
                size > session.ledger.stored
                and difference.changed.keys() != {"user_id"}
            )
        ):
            # One that has grown too large in parallel can shrink, sign in and sign out.
            raise SessionDataError(
                "all of it",
                f"{size} bytes of JSON, and max_data_size is {limit}; keep what is "
                "large in a table of your own, and its key here",
            )

    def _warn_once(self, message: str) -> None:
        if message and message not in self._warned:
            self._warned.add(message)
            logger.warning(message)
