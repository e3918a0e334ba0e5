"""
What a browser does with a Set-Cookie header, and the jar in which it keeps the cookies.

The rules are those of RFC 6265bis, sections 5.5 to 5.8, and the newer prefixes; of the
list of public suffixes there is what `browsers.is_public_suffix` knows.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from urllib.parse import urlsplit

from tornado_compas_session.browsers import (
    MAX_MAX_AGE,
    is_public_suffix,
    prefix_of,
    unmet,
)


@dataclass(slots=True)
class Cookie:
    """A Set-Cookie header as a browser reads it."""

    name: str
    value: str
    #: Attribute names in lower case; the last of a name counts.
    attributes: dict[str, str]
    #: When it ends; None with the browser. The jar knows, when it takes it.
    expires: float | None = None

    @classmethod
    def parse(cls, header: str) -> Cookie:
        """Section 5.6."""
        pair, *parts = header.split(";")
        name, equals, value = pair.partition("=")
        if not equals:
            name, value = "", name
        attributes = {}
        for part in parts:
            key, _, content = part.partition("=")
            attributes[key.strip(" \t").lower()] = content.strip(" \t")
        return cls(name.strip(" \t"), value.strip(" \t"), attributes)

    def ends(self, now: float) -> float | None:
        """When it ends if it comes now; None with the browser."""
        try:
            return now + min(int(self.attributes["max-age"]), MAX_MAX_AGE)
        except (KeyError, ValueError):
            date = parsedate_tz(self.attributes.get("expires", ""))
            return None if date is None else mktime_tz(date)

    def expired(self, now: float) -> bool:
        """Whether it makes a browser forget the cookie."""
        ends = self.ends(now)
        return ends is not None and ends <= now

    def refusals(self, url: str) -> Iterator[str]:
        """Why a browser drops it, coming from this URL; nothing if it keeps it."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        secure = parts.scheme == "https"
        domain = self.domain
        same_site = self.attributes.get("samesite", "").lower()
        marked = "secure" in self.attributes
        if len(self.name) + len(self.value) > 4096:
            yield "name and value have more than 4096 bytes"
        if domain and not domain_matches(host, domain):
            yield f"it is for {domain}, and came from {host}"
        elif domain != host and domain and is_public_suffix(domain):
            yield f"{domain} is a top-level domain, or strangers have names under it"
        # Browsers trust this machine without https.
        if marked and not secure and not _is_here(host):
            yield "it is Secure, and came over plain http"
        if same_site == "none" and not marked:
            yield "SameSite=None needs Secure"
        if "partitioned" in self.attributes and not marked:
            yield "Partitioned needs Secure"
        if prefix := prefix_of(self.name):
            for demand in unmet(
                self.name,
                secure=marked,
                http_only="httponly" in self.attributes,
                path=self.attributes.get("path"),
                domain=domain,
            ):
                yield f"a name with {prefix.text} needs {demand}"

    @property
    def domain(self) -> str:
        """The domain that it is for; empty for one that only its host gets."""
        return self.attributes.get("domain", "").lstrip(".").lower()

    @property
    def path(self) -> str:
        """Where it is sent: there, and below."""
        path = self.attributes.get("path", "")
        return path if path.startswith("/") else "/"

    def goes_to(self, url: str) -> bool:
        """Whether its path sends it there; the rest was seen to when it was kept."""
        path = urlsplit(url).path or "/"
        return path == self.path or path.startswith(self.path.rstrip("/") + "/")


def domain_matches(host: str, domain: str) -> bool:
    """RFC 6265bis, section 5.1.3."""
    host, domain = host.lower().rstrip("."), domain.lower()
    return host == domain or (host.endswith("." + domain) and not is_address(host))


def is_address(host: str) -> bool:
    """Whether this is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_here(host: str) -> bool:
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


class Jar:
    """The cookies that a browser has for the server at `url`."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self.url = url
        self.clock = clock
        #: By name, domain and path, in the order in which they came.
        self.kept: dict[tuple[str, str, str], Cookie] = {}
        #: Of each cookie that was dropped, its name and why.
        self.refused: dict[str, str] = {}

    def take(self, header: str) -> None:
        """Keeps, replaces or forgets a cookie, as a Set-Cookie header says."""
        cookie, now = Cookie.parse(header), self.clock()
        if reasons := "; ".join(cookie.refusals(self.url)):
            self.refused[cookie.name] = reasons
            return
        domain = cookie.domain or urlsplit(self.url).hostname or ""
        place = cookie.name, domain, cookie.path
        if cookie.expired(now):
            self.kept.pop(place, None)
        else:
            cookie.expires = cookie.ends(now)
            self.kept[place] = cookie

    def live(self) -> list[Cookie]:
        """The cookies that have not ended."""
        now = self.clock()
        return [c for c in self.kept.values() if c.expires is None or c.expires > now]

    def header(self, path: str = "/") -> str:
        """The Cookie header of a request for this path; empty without cookies."""
        sent = [cookie for cookie in self.live() if cookie.goes_to(path)]
        sent.sort(key=lambda cookie: -len(cookie.path))
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in sent)

    def script(self) -> dict[str, str]:
        """What `document.cookie` shows to the scripts of a page."""
        return {c.name: c.value for c in self.live() if "httponly" not in c.attributes}

    def restart(self) -> None:
        """The browser is closed and opened again."""
        self.kept = {
            place: c for place, c in self.kept.items() if c.expires is not None
        }
