"""
The doctor's visit to a running server: what a browser would do with each cookie.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError

from tornado_compas_session.core.ids import parse_id
from tornado_compas_session.testing.browser import Browser
from tornado_compas_session.tools.findings import Finding, found, good

_LIMITS: dict[str, Any] = {"connect_timeout": 10.0, "request_timeout": 10.0}


async def visit(
    url: str, method: str, key: str | None, origins: Sequence[str] = ()
) -> AsyncIterator[Finding]:
    """
    Asks for the page twice, the second time with the cookies that a browser has kept.
    Where it begins a session again, the first was not found.

    `key` is the name of the session cookie, `origins` are those of CORS_URL.
    """
    try:
        async for finding in _visit(url, method, key, origins):
            yield finding
    except (HTTPClientError, OSError, ValueError) as error:
        what = str(error) or type(error).__name__
        yield found("server-unreachable", url=url, what=what)


async def _visit(
    url: str, method: str, key: str | None, origins: Sequence[str]
) -> AsyncIterator[Finding]:
    server = urlsplit(url)._replace(path="", query="", fragment="").geturl()
    browser, page = Browser(url=server), url.removeprefix(server) or "/"
    ask = partial(browser.ask, page, method, follow=True, **_LIMITS)
    first = await ask()
    for dropped, reasons in browser.jar.refused.items():
        yield found("cookie-dropped", name=dropped, reasons=reasons)
    for cookie in browser.jar.live():
        lasts = cookie.attributes.get("max-age")
        what = f"for {lasts} s" if lasts else "until it is closed"
        yield good("browser", f"keeps the cookie {cookie.name} {what}")
    before = browser.cookies
    name = key if key in before else _session_among(before)
    if name is not None and key not in (name, None):
        yield found("another-name", name=name, key=key)
    elif name is None and not browser.jar.refused:
        problem = "no-cookie" if first.code < 300 else "page-status"
        request = f"{method} {url}"
        wanted = key or "of a session"
        yield found(problem, request=request, status=first.code, key=wanted)
    if name is None:
        return
    second = await ask()
    yield _compared(before[name], browser.cookies.get(name), second.code)
    for origin in origins:
        headers = {"Origin": origin}
        answer = (await browser.ask(page, headers=headers, **_LIMITS)).headers
        if (
            answer.get("Access-Control-Allow-Origin") == origin
            and answer.get("Access-Control-Allow-Credentials") == "true"
        ):
            yield good("cors", f"pages of {origin} may ask with cookies")
        else:
            yield found("cors", origin=origin)


def _session_among(cookies: Mapping[str, str]) -> str | None:
    """The name under which a session cookie came after all."""
    for name, value in cookies.items():
        if handle_in(value) is not None or name.lower().endswith(".sess"):
            return name
    return None


def handle_in(value: str) -> str | None:
    """The handle in a cookie's value, signed or not; None if it is no session id."""
    fields = value.strip('"').split("|")
    text = fields[4].rpartition(":")[2] if len(fields) == 6 else fields[0]
    try:
        signed = b64decode(text, validate=True)
    except ValueError:
        signed = b""
    parts = parse_id(signed) or parse_id(text.encode())
    return parts and parts[0]


def _compared(before: str, after: str | None, status: int) -> Finding:
    """What became of the session, by its cookie before and after the second request."""
    if after is None:
        return found("session-lost")
    if handle_in(after) != handle_in(before):
        return found("session-not-kept")
    if status >= 500:
        request = "the second request, with the session,"
        return found("page-status", request=request, status=status)
    if handle_in(after) is None:
        return good("session", "it is in the cookie itself, without a store")
    # The same page began a session before; it needs no new cookie, so it has found it.
    return good("session", "the second request found the session of the first")
