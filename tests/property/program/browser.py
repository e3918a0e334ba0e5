"""A browser's cookie jar, by RFC 6265bis, for one host and what lies above it."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

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


@dataclass
class Told:
    """One Set-Cookie header."""

    name: str
    value: str
    attributes: dict[str, str]

    @property
    def domain(self) -> str | None:
        return self.attributes.get("domain", "").lstrip(".").lower() or None

    def ends(self, now: float) -> float | None:
        """Max-Age goes before Expires; None without either."""
        if "max-age" in self.attributes:
            return now + int(self.attributes["max-age"])
        if "expires" in self.attributes:
            return parsedate_to_datetime(self.attributes["expires"]).timestamp()
        return None

    def clears(self, now: float) -> bool:
        ends = self.ends(now)
        return ends is not None and ends <= now


def parse(header: str) -> Told:
    """What a Set-Cookie header says."""
    pair, *rest = header.split(";")
    name, _, value = pair.strip().partition("=")
    attributes = {}
    for attribute in rest:
        key, _, text = attribute.strip().partition("=")
        attributes[key.strip().lower()] = text.strip()
    return Told(name.strip(), value.strip().strip('"'), attributes)


class Jar:
    """What a browser keeps and sends. Cookies that are older go first."""

    def __init__(self) -> None:
        self._cookies: dict[tuple[str, str | None], Cookie] = {}

    def take(self, told: Told, now: float, origin: Any = None) -> None:
        """Does as a Set-Cookie header says, if it is for this host."""
        domain = told.domain
        if domain is not None and HOST != domain and not HOST.endswith("." + domain):
            return
        if told.attributes.get("path", "/") != "/":
            return
        key = told.name, domain
        if told.clears(now):
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
