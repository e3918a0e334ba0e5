"""
The page on one origin and the API on another, of one site; and pages that are neither.

The hosts are app.counter.localhost and api.counter.localhost. Two levels are needed:
to a browser `localhost` is what `com` is, so app.localhost and api.localhost are two
sites, of which neither can have cookies that the other's pages may use.
"""

from __future__ import annotations

import http.server
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.ports import neighbouring_ports
from tests.servers import pages, start_example

pytestmark = pytest.mark.slow

NONE = "–"
# A site of somebody else, on this machine. The browser asks no name server for it.
EVIL = "evil.example"
MAP_EVIL = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"


class Hosts:
    """The addresses of an example that runs with `--two-origins` on this port."""

    def __init__(self, port: int) -> None:
        self.page = f"http://app.counter.localhost:{port}"
        self.api = f"http://api.counter.localhost:{port + 1}"
        #: Of the same site, but not in CORS_URL. The example answers to any name.
        self.sibling = f"http://other.counter.localhost:{port}"


@pytest.fixture
def hosts(database):
    port = neighbouring_ports()
    with start_example("--database-url", database, "--two-origins", port=port):
        yield Hosts(port)


@contextmanager
def evil_site(html: str) -> Iterator[str]:
    """Somebody else's site, with this page on every path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with pages(Handler) as port:
        yield f"http://{EVIL}:{port}"


def test_the_counter_works_across_origins(hosts, open_either):
    """The page of one origin counts on the other, with a preflight for the sign-in."""
    browser = open_either(hosts.page)
    browser.click("Init")
    browser.shows("0", "value")
    browser.click("Increment")
    browser.shows("1", "value")
    browser.type("Ada", "name")
    browser.click("Sign in")
    browser.shows("Hello, Ada.", "say")
    browser.open(hosts.page)
    browser.shows("1", "value")

    assert [] == browser.complaints()


def test_scripts_read_the_public_cookie_only_and_destroy_ends_both(hosts, open_either):
    """What the page sees of the session is in step with it."""
    browser = open_either(hosts.page)
    assert "" == browser.run("return document.cookie")
    browser.click("Init")
    browser.shows("0", "value")

    assert "counter.sess.public=truthy" == browser.run("return document.cookie")
    cookies = browser.cookies()
    assert {"counter.sess", "counter.sess.public"} == cookies.keys()
    assert cookies["counter.sess"]["httpOnly"]
    assert {".counter.localhost"} == {cookie["domain"] for cookie in cookies.values()}

    browser.click("Destroy")
    browser.shows("Gone, row and cookies.", "say")
    assert "" == browser.run("return document.cookie")
    assert {} == browser.cookies()


def test_an_origin_that_is_not_listed_is_refused(hosts, open_either):
    """CO-1, CO-6: a page of the same site has the cookies, and no use of them."""
    browser = open_either(hosts.page)
    browser.click("Init")
    browser.shows("0", "value")

    browser.open(hosts.sibling)
    browser.shows("The server does not answer.", "say")
    assert NONE == browser.text("value")
    browser.click("Increment")
    browser.eventually(
        lambda: "POST /counter/increment → no answer" in browser.text("log")
    )

    browser.open(hosts.page)
    browser.shows("0", "value")


def test_a_form_of_another_site_does_not_move_the_counter(hosts, open_either):
    """CO-6: the browser posts it, without the cookie, and nothing is counted."""
    form = f"""
        <form method="post" action="{hosts.api}/counter/increment" enctype="text/plain">
        <button>Increment</button></form>
    """
    browser = open_either(hosts.page, MAP_EVIL)
    browser.click("Init")
    browser.shows("0", "value")
    with evil_site(form) as evil:
        browser.open(evil)
        browser.click("Increment")
        browser.eventually(lambda: browser.address().startswith(hosts.api))
        answer = browser.run("return document.body.textContent")

    assert '"key"' in answer
    assert '"value"' not in answer
    browser.open(hosts.page)
    browser.shows("0", "value")


def test_a_script_of_another_site_reads_nothing_and_moves_nothing(hosts, open_either):
    """CO-6: neither its simple requests nor those that need a preflight."""
    browser = open_either(hosts.page, MAP_EVIL)
    browser.click("Init")
    browser.shows("0", "value")
    with evil_site("<title>evil</title>") as evil:
        browser.open(evil)
        for options in (
            {},
            {"method": "POST"},
            {"method": "POST", "headers": {"Content-Type": "application/json"}},
        ):
            outcome = browser.run(
                "const [url, options] = args;"
                "return await (await fetch(url, options)).text()",
                f"{hosts.api}/counter/increment",
                {"credentials": "include", **options},
            )
            assert outcome.startswith("TypeError: ")

    browser.open(hosts.page)
    browser.shows("0", "value")


@pytest.mark.parametrize(
    ("max_age", "after_restart"), [("session", NONE), ("518400", "1")]
)
def test_what_a_restart_of_the_browser_leaves(
    database, open_either, max_age, after_restart
):
    """CK-7: a browser-session cookie ends with the browser; a six-day one does not."""
    flags = ("--database-url", database, "--two-origins", "--max-age", max_age)
    port = neighbouring_ports()
    with start_example(*flags, port=port):
        page = Hosts(port).page
        browser = open_either(page)
        browser.click("Init")
        browser.click("Increment")
        browser.shows("1", "value")
        browser.close()

        browser = open_either(page)
        browser.shows(after_restart, "value")
        browser.eventually(lambda: bool(browser.text("kept")) == (after_restart == "1"))
