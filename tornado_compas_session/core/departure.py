"""
Which cookies a response takes along.

A session cookie leaves only with a new secret, and with the response whose own write
has made it. A read sends none: its answer may be late, and would put an id of the past
over the one of now.
"""

from __future__ import annotations

from tornado_compas_session.browsers import public_name
from tornado_compas_session.cookies.text import CookieWriter
from tornado_compas_session.core.lifetimes import Lifetimes
from tornado_compas_session.core.session import Session
from tornado_compas_session.settings import SessionOptions


class Departures:
    """Writes the Set-Cookie headers of an application's sessions."""

    def __init__(self, options: SessionOptions, lifetimes: Lifetimes) -> None:
        self._lifetimes = lifetimes
        self._cookie = CookieWriter(options)
        self._own = [self._cookie]
        if options.keep_public_cookie:
            self._own.append(
                CookieWriter(options, public_name(options.key), public=True)
            )
        self._former = [CookieWriter(options, name) for name in options.previous_keys]

    def set(self, session: Session, value: str) -> list[str]:
        """The headers that give the browser the session, and the public cookie."""
        max_age = self._lifetimes.cookie_max_age(session)
        values = (value, "truthy")
        headers = [
            cookie.set(text, max_age)
            for cookie, text in zip(self._own, values, strict=False)
        ]
        # First: where its domain is the host's own name, some browsers take the twin
        # for the same cookie.
        return self._clear_twins(session) + headers

    def clear(self, session: Session) -> list[str]:
        """The headers that make it forget the session."""
        headers = [cookie.clear() for cookie in (*self._own, *self._former)]
        return headers + self._clear_twins(session)

    def _clear_twins(self, session: Session) -> list[str]:
        """
        A cookie of the host alone and one of the domain live side by side in a browser
        after COOKIE_URL was changed, and both are sent.
        """
        if not (session.life.several or self._cookie.has_twin):
            return []
        return [text for cookie in self._own for text in cookie.clear_twins()]
