"""
Helpers for the tests of applications: a browser, a visitor who is signed in, a clock
that is moved by hand, a store that is slow or away.

As fixtures of pytest: `plugin.py`. For those who write a store of their own:
`conformance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.types import JSON
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.settings import MANAGER
from tornado_compas_session.testing.browser import Browser
from tornado_compas_session.testing.trouble import store_away, store_slow

__all__ = [
    "Browser",
    "Clock",
    "session_cookie",
    "signed_in",
    "store_away",
    "store_slow",
]


class Clock:
    """
    A clock that stands still until it is moved.

    `MemorySessionStore(clock=Clock())` expires sessions by it, without any waiting.
    """

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        #: Seconds since the epoch.
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float = 0.0, **units: float) -> None:
        """
        Lets time pass: `clock.move(30)`, `clock.move(days=6)`; units as of `timedelta`.
        """
        self.now += timedelta(seconds=seconds, **units).total_seconds()


async def session_cookie(
    settings: Mapping[str, Any], data: Mapping[str, JSON], **attributes: Any
) -> str:
    """
    The Cookie header of a visitor whose session holds `data`; the session is created.

    `settings` is what `session_settings()` returned, or an application's `settings`.
    `attributes` are set on the session: `max_age=…`, `absolute_max_age=…`. Raises
    whatever the store raises, and `SettingsError` if `data` is empty, because such a
    session is never stored.
    """
    headers = await _session(settings, data, attributes)
    pairs = [header.partition(";")[0] for header in headers]
    # Without what only clears a cookie of another form.
    return "; ".join(pair for pair in pairs if not pair.endswith("="))


async def signed_in(browser: Browser, user_id: str | int, **data: JSON) -> Browser:
    """
    Gives the browser a new session of this user, which holds `data` too; returns it.

    As if somebody had just signed in there: the cookies are in the browser's jar.
    Raises what `session_cookie` does, also for a browser that has no `app`.
    """
    settings = browser.app.settings if browser.app else {}
    for header in await _session(settings, {**data, "user_id": user_id}, {}):
        browser.jar.take(header)
    return browser


async def _session(
    settings: Mapping[str, Any], data: Mapping[str, JSON], attributes: Mapping[str, Any]
) -> list[str]:
    """The Set-Cookie headers of a new session."""
    manager: SessionManager | None = settings.get(MANAGER)
    if manager is None:
        raise SettingsError("these are no settings from session_settings()")
    session = manager.session()
    session.replace(data)
    for name, value in attributes.items():
        setattr(session, name, value)
    await session.save()
    if session.is_new:
        raise SettingsError("a session without data is not stored, so it has no cookie")
    return manager.cookies(session)
