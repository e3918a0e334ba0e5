"""
The doctor's visit to a running server: what a browser would do with each cookie.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urljoin

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

from tornado_compas_session.core.ids import parse_id
from tornado_compas_session.testing.jar import Cookie
from tornado_compas_session.tools.findings import Finding, good, problem

_REDIRECTS = 5
#: The part of an id that stays when its secret is renewed.
_HANDLE = 12
_SECONDS = 10.0


def session_id(cookie: Cookie) -> str | None:
    """The session id in the value, signed or not; None if there is none."""
    fields = cookie.value.strip('"').split("|")
    text = fields[4].rpartition(":")[2] if len(fields) == 6 else fields[0]
    try:
        signed = b64decode(text, validate=True)
    except ValueError:
        signed = b""
    for value in (signed, text.encode()):
        if parse_id(value) is not None:
            return value.decode("ascii")
    return None


async def visit(
    url: str, method: str, key: str | None, origins: Sequence[str] = ()
) -> list[Finding]:
    """
    Asks for the page twice, the second time with the cookies that a browser has kept.
    Where it begins a session again, the first was not found.

    `key` is the name of the session cookie, `origins` are those of CORS_URL.
    """
    try:
        first = await _ask(url, method, {})
        jar, findings = _keep(first)
        if key is not None and key not in jar:
            other = _another_name(jar.values(), key)
            if other is None:
                if not any(finding.level == "problem" for finding in findings):
                    findings.append(_none_came(first, url, method, key))
                return findings
            key, finding = other
            findings.append(finding)
        second = await _ask(url, method, jar)
    except (OSError, ValueError) as error:
        return [
            problem(
                "server-unreachable",
                f"{url} cannot be had: {str(error) or type(error).__name__}",
                "without an answer there is no cookie",
                "check the URL and that the server runs",
            )
        ]
    if key is not None:
        findings.append(_compare(jar[key], second, key))
    findings += _caching(first)
    if origins:
        findings += await _cors(url, origins)
    return findings


class _Answer:
    """A response after its redirects, with all the cookies on the way."""

    def __init__(self) -> None:
        self.cookies: list[tuple[str, str]] = []
        self.response: HTTPResponse | None = None


async def _ask(url: str, method: str, jar: dict[str, Cookie]) -> _Answer:
    answer = _Answer()
    jar = dict(jar)
    client = AsyncHTTPClient()
    for _ in range(_REDIRECTS):
        sent = [f"{c.name}={c.value}" for c in jar.values() if c.goes_to(url)]
        request = HTTPRequest(
            url,
            method=method,
            headers={"Cookie": "; ".join(sent)} if sent else {},
            body=b"" if method in ("POST", "PUT", "PATCH") else None,
            follow_redirects=False,
            request_timeout=_SECONDS,
            connect_timeout=_SECONDS,
        )
        response = await client.fetch(request, raise_error=False)
        if response.code == 599:
            raise OSError(str(response.error))
        answer.response = response
        for header in response.headers.get_list("Set-Cookie"):
            answer.cookies.append((url, header))
            cookie = Cookie.parse(header)
            if not any(cookie.refusals(url)):
                jar[cookie.name] = cookie
        location = response.headers.get("Location")
        if response.code not in (301, 302, 303, 307, 308) or not location:
            break
        url = urljoin(url, location)
        method = method if response.code in (307, 308) else "GET"
    return answer


def _keep(answer: _Answer) -> tuple[dict[str, Cookie], list[Finding]]:
    """The cookies that a browser has now, and what is to say about each."""
    jar: dict[str, Cookie] = {}
    findings = []
    for url, header in answer.cookies:
        cookie = Cookie.parse(header)
        reasons = list(cookie.refusals(url))
        if reasons:
            findings.append(
                problem(
                    "cookie-dropped",
                    f"a browser drops the cookie {cookie.name}: {'; '.join(reasons)}",
                    "it is not sent with the next request, so there is no session",
                    "change COOKIE_URL or the options secure, domain, path, same_site, "
                    "key; or how the server is reached",
                )
            )
        elif cookie.expired(time.time()):
            jar.pop(cookie.name, None)
        else:
            jar[cookie.name] = cookie
            lasts = cookie.attributes.get("max-age")
            what = f"for {lasts} s" if lasts else "until it is closed"
            findings.append(good("browser", f"keeps the cookie {cookie.name} {what}"))
    return jar, findings


def _another_name(cookies: Iterable[Cookie], key: str) -> tuple[str, Finding] | None:
    """The name under which a session cookie came after all."""
    for cookie in cookies:
        if session_id(cookie) or cookie.name.lower().endswith(".sess"):
            return cookie.name, problem(
                "another-name",
                f"the session cookie came as {cookie.name}, and {key} is expected",
                "the server runs with another APP_NAME or another key; servers that "
                "call the cookie differently do not see each other's sessions",
                "give all of them the same APP_NAME and key, and the doctor too "
                f"(--option key={cookie.name})",
            )
    return None


#: What a page that is no page means for the session, and what to do about it.
_STATUSES = {
    401: (
        "the page is for those who have signed in",
        "name a page that is for anybody",
    ),
    403: (
        "the page refused the request, for its XSRF token or its origin as a rule",
        "name a page that begins a session without a form",
    ),
    404: ("there is no such page", "see to the path of --url"),
    405: ("the page does not take this method", "say which it takes: --method POST"),
    503: (
        "the server could not reach the store, or is overloaded",
        "look into its log, and at what is said here of the database",
    ),
}


def _none_came(answer: _Answer, url: str, method: str, key: str) -> Finding:
    if answer.response is not None and answer.response.code >= 400:
        status = answer.response.code
        why, fix = _STATUSES.get(
            status,
            ("a page that fails begins no session", "look into the log of the server"),
        )
        return problem(
            "page-status",
            f"{method} {url} is answered with {status}, and sets no cookie {key}",
            why,
            fix,
        )
    https = url.startswith("https:")
    return problem(
        "no-cookie",
        f"{method} {url} sets no cookie {key}",
        "a session begins when a handler puts something into it and does not fail; "
        "until then there is no cookie. "
        + (
            "Behind a proxy that speaks https, a server that does not know so begins "
            "no session with a Secure cookie"
            if https
            else "Over plain http no session with a Secure cookie begins"
        ),
        "name a page that writes to the session (--method POST if need be)"
        + ("; start Tornado with xheaders=True behind a proxy" if https else ""),
    )


def _compare(kept: Cookie, answer: _Answer, key: str) -> Finding:
    for url, header in answer.cookies:
        cookie = Cookie.parse(header)
        if cookie.name != key or any(cookie.refusals(url)):
            continue
        if cookie.expired(time.time()):
            return problem(
                "session-lost",
                "the server clears the session cookie that it has just set",
                "it verified the cookie and found no such session: it looks into "
                "another database, or the session is ended at once",
                "give all processes the same DATABASE_URL; see that the page does not "
                "end the session",
            )
        mine = session_id(kept)
        if mine is None:
            return good("session", "it is in the cookie itself, without a store")
        if (session_id(cookie) or "")[:_HANDLE] != mine[:_HANDLE]:
            return problem(
                "session-not-kept",
                "the second request began another session",
                "the server did not accept its own cookie: processes with different "
                "APP_KEYS, keys made anew at each start, or another APP_NAME",
                "give all processes the same APP_KEYS and APP_NAME",
            )
        return good("session", "the second request found the session of the first")
    response = answer.response
    if response is not None and response.code >= 500:
        return problem(
            "page-status",
            f"the second request, with the session, is answered with {response.code}",
            "the session cannot be loaded or saved, or the page does not expect one",
            "look into the log of the server",
        )
    # The same page began a session before; it needs no new cookie, so it has found it.
    return good("session", "the second request found the session of the first")


def _caching(answer: _Answer) -> Iterator[Finding]:
    response = answer.response
    if response is None or not response.headers.get_list("Set-Cookie"):
        return
    policy = response.headers.get("Cache-Control", "").lower()
    if "public" in policy or "s-maxage" in policy:
        yield problem(
            "cached-cookie",
            f"the response with the cookie says Cache-Control: {policy}",
            "a shared cache may give one visitor's session to all the others",
            "no public and no s-maxage where a session is; the library's own default "
            "is private, no-cache",
        )


async def _cors(url: str, origins: Sequence[str]) -> list[Finding]:
    findings = []
    for origin in origins:
        response = await AsyncHTTPClient().fetch(
            HTTPRequest(url, headers={"Origin": origin}, request_timeout=_SECONDS),
            raise_error=False,
        )
        headers = response.headers
        if (
            headers.get("Access-Control-Allow-Origin") != origin
            or headers.get("Access-Control-Allow-Credentials") != "true"
        ):
            findings.append(
                problem(
                    "cors",
                    f"the server does not let pages of {origin} read its answers",
                    "a browser hides the answer, and keeps no cookie of it",
                    "give the server the same CORS_URL, and its handlers CorsMixin (or "
                    "use get_app)",
                )
            )
        else:
            findings.append(good("cors", f"pages of {origin} may ask with cookies"))
    return findings
