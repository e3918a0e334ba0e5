"""What caches must know of an answer that depends on a cookie, or takes one along."""

from __future__ import annotations

import logging

from tornado.httputil import HTTPHeaders

logger = logging.getLogger("tornado_compas_session")

#: No shared cache may keep it; the browser may, and asks again.
_PRIVATE = "private, no-cache"
_warned: set[type] = set()


def may_be_shared(headers: HTTPHeaders) -> bool:
    """Whether the handler has said that shared caches may keep the answer."""
    if "Cache-Control" not in headers:
        return False
    policy = headers["Cache-Control"].lower()
    return "public" in policy or "s-maxage" in policy


def keep_private(headers: HTTPHeaders, *, cookie_of: type | None = None) -> None:
    """
    Tells shared caches not to keep it, where the handler has set no policy; and with a
    session cookie in it (`cookie_of` the handler's class), where it said they may.
    """
    if "Cache-Control" not in headers:
        headers["Cache-Control"] = _PRIVATE
    elif cookie_of is not None and may_be_shared(headers):
        # One visitor's cookie would be everybody's.
        headers["Cache-Control"] = _PRIVATE
        if cookie_of not in _warned:
            _warned.add(cookie_of)
            logger.warning(
                "%s says Cache-Control: public for an answer with a session cookie; "
                "private leaves instead",
                cookie_of.__name__,
            )


def vary(headers: HTTPHeaders, on: str = "Cookie") -> None:
    """The answer depends on this header, so caches must tell them apart."""
    if "Vary" not in headers:
        headers["Vary"] = on
        return
    named = headers["Vary"]
    known = {name.strip() for name in named.lower().split(",")}
    if known.isdisjoint({on.lower(), "*"}):
        headers["Vary"] = f"{named}, {on}" if named else on
