"""The variables of the environment, as an application that is served shows them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from tornado.web import RequestHandler

from tests.factories import (
    KEY,
    NEWER_KEY,
    PRODUCTION,
    Browser,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import MemorySessionStore, SessionMixin


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.session["n"] = 1


def start(environ, **options):
    app = make_app([("/", Page)], MemorySessionStore(), environ=environ, **options)
    return serve(app, xheaders=True)


async def header_of(environ):
    with start(environ) as url:
        browser = Browser(url, seen_as="https://www.example.com")
        # The last one: before it the form without the domain is cleared, if there is
        # a domain.
        return set_cookies(await browser.get("/"), None)[-1]


async def test_app_name_names_the_cookie(io_loop):
    """In lower case, with `.sess`."""
    header = await header_of({**PRODUCTION, "APP_NAME": "My-Shop"})

    assert header.startswith("my-shop.sess=")


@pytest.mark.parametrize("mode", [None, "production", "staging"])
async def test_production_is_the_default(io_loop, mode):
    """Secure and for the domain, unless it says development (CK-17)."""
    environ = {**PRODUCTION, "COOKIE_URL": "example.com"}
    if mode:
        environ["APP_ENV"] = mode
    header = await header_of(environ)

    assert "; Secure" in header
    assert "; Domain=example.com" in header


async def test_development(io_loop):
    """Works over http on localhost; the domain is left out."""
    environ = {"APP_ENV": "development", "COOKIE_URL": "example.com"}
    header = await header_of({**PRODUCTION, **environ})

    assert "; Secure" not in header
    assert "; Domain" not in header


async def test_no_secret_in_any_log(io_loop, caplog):
    """With everything at DEBUG, for good, bad and old cookies (SG-4, LG-1)."""
    caplog.set_level(logging.DEBUG)
    environ = {**PRODUCTION, "APP_KEYS": f"{NEWER_KEY},{KEY}"}
    with start(environ) as url:
        browser = Browser(url, seen_as="https://www.example.com")
        for _ in range(3):
            await browser.get("/")
        browser.jar.kept.clear()
        await browser.get("/", headers={"Cookie": "counter.sess=forged"})

    assert caplog.records
    for secret in (KEY, NEWER_KEY):
        assert secret not in caplog.text


def test_a_start_with_faults_shows_them_and_ends():
    """A process with a wrong environment dies with one message, and no secret."""
    code = (
        "from tornado_compas_session import MemorySessionStore, session_settings\n"
        "session_settings(MemorySessionStore(), max_age=0)\n"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("APP_")}
    environ |= {"APP_KEYS": f"{KEY},hunter2", "COOKIE_URL": "a b"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 1 == done.returncode
    last = done.stderr.strip().splitlines()[-1]
    for fault in ("APP_NAME is not set", "key 2 of 2", "COOKIE_URL", "max_age"):
        assert fault in last
    assert "(4 problems)" in last
    assert KEY not in done.stderr
    assert "hunter2" not in done.stderr
