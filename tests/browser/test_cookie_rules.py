"""What the doctor and settings.py say of browsers is what a browser does."""

from __future__ import annotations

import http.server
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.servers import pages
from tornado_compas_session.browsers import PREFIXES, public_name
from tornado_compas_session.testing.jar import Cookie

pytestmark = pytest.mark.slow

SUFFIXES = "--host-resolver-rules=MAP *.co.uk 127.0.0.1, MAP *.github.io 127.0.0.1"


@contextmanager
def page_with(cookies: list[str]) -> Iterator[int]:
    """A page that sets these cookies; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            for cookie in cookies:
                self.send_header("Set-Cookie", cookie)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with pages(Handler) as port:
        yield port


def prefixed() -> Iterator[str]:
    """Every prefix, in several cases of letters, with and without each attribute."""
    texts = [letters(p.text) for p in PREFIXES for letters in (str, str.upper)]
    attributes = ["Secure", "HttpOnly", "Path=/", "Domain=shop.localhost"]
    for text in texts:
        for chosen in itertools.product(*((None, one) for one in attributes)):
            given = [one for one in chosen if one]
            name = text + "-".join(one.partition("=")[0] for one in given)
            yield "; ".join([f"{name}=1", *given])


def kept(url: str, cookies: list[str]) -> set[str]:
    """The names of those that the doctor says a browser keeps."""
    parsed = [Cookie.parse(cookie) for cookie in cookies]
    return {cookie.name for cookie in parsed if not any(cookie.refusals(url))}


def test_prefixes(open_browser):
    """128 cookies: the browser keeps those that the doctor says it keeps (CK-1)."""
    cookies = list(prefixed())
    with page_with(cookies) as port:
        url = f"http://shop.localhost:{port}/"
        found = set(open_browser(url).cookies())

    expected = kept(url, cookies)
    assert 20 < len(expected) < len(cookies)
    assert expected == found


def test_public_cookies(open_browser):
    """Scripts can read each of them, though none has HttpOnly (CK-15)."""
    keys = [f"{prefix.text}shop{n}" for n, prefix in enumerate(PREFIXES)]
    names = {public_name(key) for key in keys}
    with page_with([f"{name}=truthy; Path=/; Secure" for name in names]) as port:
        browser = open_browser(f"http://shop.localhost:{port}/")
        shown = browser.run("return document.cookie")

    assert names == {pair.partition("=")[0] for pair in shown.split("; ")}


@pytest.mark.parametrize("host", ["shop.co.uk", "me.github.io"])
def test_public_suffixes(open_browser, host):
    """A cookie for strangers is dropped; one for a domain of one's own is kept."""
    suffix = host.partition(".")[2]
    cookies = [f"all=1; Domain={suffix}", f"own=1; Domain={host}", "host=1"]
    with page_with(cookies) as port:
        url = f"http://{host}:{port}/"
        found = set(open_browser(url, SUFFIXES).cookies())

    assert {"own", "host"} == found == kept(url, cookies)
