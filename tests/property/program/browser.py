"""A browser's cookie jar, by RFC 6265bis, for one host and what lies above it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tornado_compas_session.testing.jar import Cookie as Told

HOST = "shop.example.com"


@dataclass
class Cookie:
    """One cookie of the jar; of one name there may be a host-only and a domain one."""

    name: str
    domain: str | None
    value: str
    #: When it ends, by the browser's clock; None with the browser.
    ends: float | None
    #: For the model: which request's answer brought it, or who planted it.
    origin: Any = None


class Jar:
    """What a browser keeps and sends. Cookies that are older go first."""

    def __init__(self) -> None:
        self._cookies: dict[tuple[str, str | None], Cookie] = {}

    def take(self, told: Told, now: float, origin: Any = None) -> None:
        """Does as a Set-Cookie header says, if it is for this host."""
        domain = told.domain or None
        if domain is not None and HOST != domain and not HOST.endswith("." + domain):
            return
        if told.attributes.get("path", "/") != "/":
            return
        key = told.name, domain
        if told.expired(now):
            self._cookies.pop(key, None)
            return
        cookie = Cookie(told.name, domain, told.value, told.ends(now), origin)
        # A cookie that is set again keeps its place.
        self._cookies[key] = cookie

    def plant(self, cookie: Cookie) -> None:
        """A cookie that did not come with an answer of ours."""
        self._cookies[cookie.name, cookie.domain] = cookie

    def drop_ended(self, now: float) -> list[Cookie]:
        """Forgets what has ended by now, and returns it."""
        ended = [
            cookie
            for cookie in self._cookies.values()
            if cookie.ends is not None and cookie.ends <= now
        ]
        for cookie in ended:
            del self._cookies[cookie.name, cookie.domain]
        return ended

    def named(self, name: str) -> list[Cookie]:
        """The cookies of this name, in the order in which they are sent."""
        return [cookie for cookie in self._cookies.values() if cookie.name == name]

    def header(self) -> str:
        """The Cookie header; empty without cookies."""
        return "; ".join(f"{c.name}={c.value}" for c in self._cookies.values())
