"""Which web origins may use the application from a browser: the list in CORS_URL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tornado_compas_session.exceptions import SettingsError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_HOST = re.compile(rf"(?P<host>{_LABEL}(\.{_LABEL})*|\[[0-9a-f:.]+\])(:(?P<port>.*))?")
_LOCAL = re.compile(r"http://(localhost|127\.0\.0\.1)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Origins:
    """
    The origins that may read responses and send the visitor's cookies.

    An origin is compared as a whole, byte for byte, with what the browser sends; there
    are no patterns. In development every port of http://localhost and http://127.0.0.1
    is allowed as well.
    """

    listed: tuple[str, ...] = ()
    development: bool = False

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin may use the application."""
        return origin in self.listed or (
            self.development and _LOCAL.fullmatch(origin) is not None
        )


def parse_origins(text: str | None) -> tuple[str, ...]:
    """
    Gives the origins of a comma list as browsers write them: lower case, and without
    the default port. Spaces, repetitions and empty entries do not matter.

    Raises one `SettingsError` with every fault, each naming the entry's position.
    """
    origins: dict[str, None] = {}
    problems: list[str] = []
    for position, entry in enumerate((text or "").split(","), start=1):
        if not (entry := entry.strip()):
            continue
        try:
            origins[_parse_origin(entry)] = None
        except ValueError as fault:
            problems.append(f"CORS_URL entry {position}: {fault}")
    if problems:
        raise SettingsError(problems)
    return tuple(origins)


def _parse_origin(entry: str) -> str:
    # Never quote an entry with "@": what stands before it may be a password.
    if "@" in entry:
        raise ValueError("remove the user and password; an origin has none")
    shown = repr(entry)
    if entry.lower() == "null":
        raise ValueError(f"{shown} stands for any sandboxed page and cannot be allowed")
    if "*" in entry:
        raise ValueError(f"{shown} is a pattern; list each origin in full")
    if not entry.isascii():
        raise ValueError(f"{shown} must be written as browsers send it (xn--…)")
    scheme, separator, rest = entry.lower().partition("://")
    if not separator or scheme not in _DEFAULT_PORTS:
        raise ValueError(f"{shown} must begin with http:// or https://")
    if rest.endswith("/") and rest.count("/") == 1:
        raise ValueError(f"{shown} must not end with a slash")
    if any(mark in rest for mark in "/?#\\"):
        raise ValueError(f"{shown} must end after the host and port")
    if not (match := _HOST.fullmatch(rest)):
        raise ValueError(f"{shown} has a wrong host name")
    if (port := match["port"]) is None:
        return f"{scheme}://{match['host']}"
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"{shown} has a wrong port")
    default = int(port) == _DEFAULT_PORTS[scheme]
    return f"{scheme}://{match['host']}" + ("" if default else f":{int(port)}")
