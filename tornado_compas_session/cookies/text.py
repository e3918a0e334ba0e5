"""
Cookies as text: reading one name exactly, writing one with its attributes.

Tornado's `request.cookies` is not used: it takes the last of several cookies of a name,
strips U+0085 and U+00A0 from names (so that a cookie can pose as a `__Host-` one), and
joins several Cookie lines by commas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tornado_compas_session.browsers import prefix_of
from tornado_compas_session.settings import SessionOptions

#: So many cookies of one name are looked at; browsers send a handful at the most.
MAX_CANDIDATES = 8


def cookie_reader(name: str) -> Callable[[Iterable[str]], list[str]]:
    """
    A function that finds the values of exactly this cookie in Cookie header lines.

    Only space and tab around a name are ignored (RFC 6265bis, section 5.6). At most
    `MAX_CANDIDATES` values are returned, doubles once.
    """
    start = name + "="

    def read(lines: Iterable[str]) -> list[str]:
        values: list[str] = []
        for line in lines:
            if start not in line:  # most requests have no such cookie
                continue
            for pair in line.split(";"):
                pair = pair.strip(" \t")
                if not pair.startswith(start):
                    continue
                value = pair[len(start) :].lstrip(" \t")
                if '"' in value:
                    if value.count('"') != 2 or value[0] + value[-1] != '""':
                        continue  # a quote that does not close
                    value = value[1:-1].rstrip(" \t")
                if value not in values:
                    values.append(value)
                    if len(values) == MAX_CANDIDATES:
                        return values
        return values

    return read


class CookieWriter:
    """
    Builds Set-Cookie headers of one cookie; all attributes come from the options.

    A cookie is cleared with the attributes that it was set with, or browsers would keep
    it (RFC 6265bis, section 5.7).
    """

    __slots__ = ("_attributes", "_twins", "has_twin", "name")

    def __init__(
        self, options: SessionOptions, name: str | None = None, *, public: bool = False
    ) -> None:
        self.name = name or options.key
        flags = ""
        if options.http_only and not public:
            flags += "; HttpOnly"
        if options.secure:
            flags += "; Secure"
        flags += f"; SameSite={options.same_site}"
        if options.partitioned:
            flags += "; Partitioned"

        def attributes(domain: str | None, path: str) -> str:
            return f"; Path={path}" + (f"; Domain={domain}" if domain else "") + flags

        self._attributes = attributes(options.domain, options.path)
        #: The other forms that a cookie of the name may have in the browser, since
        #: COOKIE_URL, `domain` or `path` was changed. A name that is for the host alone
        #: has none.
        self._twins: list[str] = []
        prefix = prefix_of(self.name)
        if prefix is None or not prefix.host_only:
            forms = [
                attributes(domain, path)
                for path in dict.fromkeys((options.path, "/"))
                for domain in dict.fromkeys((None, options.domain, options.cookie_url))
            ]
            self._twins = [form for form in forms if form != self._attributes]
        #: With a domain there may always be a cookie of the host alone beside it, which
        #: browsers send as well, and first.
        self.has_twin = bool(options.domain)

    def set(self, value: str, max_age: int | None) -> str:
        """The header's value; with `max_age` None the cookie ends with the browser."""
        lifetime = "" if max_age is None else f"; Max-Age={max_age}"
        return f"{self.name}={value}{lifetime}{self._attributes}"

    def clear(self) -> str:
        """The header's value that makes the browser forget the cookie."""
        return self._forget(self._attributes)

    def clear_twins(self) -> list[str]:
        """The headers' values that make it forget the other forms of the cookie."""
        return [self._forget(attributes) for attributes in self._twins]

    def _forget(self, attributes: str) -> str:
        return (
            f"{self.name}=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
            + attributes
        )
