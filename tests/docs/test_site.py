"""The site is built, and can be read: on a phone, in the dark, without a network."""

from __future__ import annotations

import functools
import http.server
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import presence_of_element_located
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.conftest import Browser
from tests.docs.pages import DOCS, ROOT
from tests.servers import pages

pytestmark = pytest.mark.slow

#: Pages whose tables are of measurements, and may be moved sideways on a phone.
MEASURED = ("performance", "reliability", "scaling")

#: What people look for, and what one of the first two hits leads them to.
SOUGHT = {
    "docker": "deployment.html#docker",
    "prometheus": "monitoring.html#prometheus",
    "logging": "monitoring.html#the-log",
    "oauth": "cookbook.html#openid-connect",
    "redis": "deployment.html#redis",
    "flash": "cookbook.html#flash-messages",
    "fork": "deployment.html#processes-and-fork",
    "nginx": "deployment.html#nginx",
    "remember me": "cookbook.html#sign-in-and-remember-me",
    "logout": "cookbook.html#sign-out-logout",
    "lost update": "handlers.html#lock-no-lost-update",
    "race condition": "handlers.html#lock-no-lost-update",
    "CSRF": "security.html#planted-cookies-and-login-csrf",
    "rotate key": "environment.html#changing-the-key-in-two-steps",
    "pgbouncer": "pools.html#pgbouncer",
    "testing": "testing.html",
    "cookie not set": "cookies.html",
    "login redirect": "cookbook.html#the-redirect-after-login",
    "log out everywhere": "user-sessions.html#end-them-sign-out-everywhere",
    "max_age": "options.html#max_age",
}

#: The addresses that the first two hits offer, in pages and in sections of them.
HITS = """
return [...document.querySelectorAll(".md-search-result__item")].slice(0, 2)
    .flatMap((hit) => [...hit.querySelectorAll("a.md-search-result__link")])
    .map((link) => link.pathname.slice(1) + link.hash);
"""

TOO_NARROW = """
return [...document.querySelectorAll(".md-typeset table:not([class])")]
    .map((table) => [...table.querySelectorAll("td")])
    .filter((cells) => cells.some((cell) => cell.innerText.length > 40))
    .filter((cells) => Math.max(...cells.map((cell) => cell.clientWidth)) < 160)
    .map((cells) => cells[0].innerText);
"""

TOO_WIDE = """
const wide = [...document.querySelectorAll(".md-typeset__scrollwrap")]
    .filter((table) => table.scrollWidth > table.clientWidth + 1)
    .map((table) => table.innerText.slice(0, 60));
const page = document.documentElement;
return [page.scrollWidth > page.clientWidth, wide];
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; a warning would fail."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert 0 == result.returncode, result.stdout + result.stderr
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    """The address of the site; the search needs one, as it works in a thread."""
    handler = functools.partial(_Quiet, directory=str(site))
    with pages(handler) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium, without a network."""
    opened = Browser(
        tmp_path / "profile", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    )
    yield opened.driver
    opened.close()


def width(browser: Any, pixels: int) -> None:
    metrics = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Scripts, styles, pictures: all of them are in the site."""
    for page in site.glob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)', html)
        loaded += re.findall(r'<link[^>]* rel="stylesheet"[^>]* href="([^"]+)', html)

        assert loaded
        assert [] == [address for address in loaded if "//" in address], page.name


@pytest.mark.parametrize("pixels", [390, 1280])
def test_nothing_overflows(site: Path, browser: Any, pixels: int) -> None:
    """No page is wider than the window, and a phone shows tables as wide as it is."""
    width(browser, pixels)
    for page in sorted(site.glob("*.html")):
        browser.get(page.as_uri())
        overflows, tables = browser.execute_script(TOO_WIDE)

        assert not overflows, page.name
        if not page.stem.startswith(MEASURED):
            assert [] == tables, page.name
            assert [] == browser.execute_script(TOO_NARROW), page.name


def test_the_search_finds_what_people_look_for(served: str, browser: Any) -> None:
    """One of the first two hits is the page, or the section, that helps them."""
    missed = {}
    for words, wanted in SOUGHT.items():
        browser.get(f"{served}/index.html?q={quote(words)}")
        hits = WebDriverWait(browser, 20).until(lambda it: it.execute_script(HITS))
        if wanted not in hits:
            missed[words] = hits

    assert {} == missed


def test_pictures_follow_the_page(site: Path, browser: Any) -> None:
    """Each is there, and is another one in the dark that the page's switch makes."""
    shown = set()
    for page in sorted(DOCS.glob("*.md")):
        names = set(re.findall(r"\(pictures/([\w-]+\.svg)\)", page.read_text()))
        if not names:
            continue
        browser.get((site / f"{page.stem}.html").as_uri())
        for picture in browser.find_elements(By.CSS_SELECTOR, "img[src*=pictures]"):
            looks = set()
            # What is behind it changes too, and is not what is looked at.
            browser.execute_script("arguments[0].style.background = 'white'", picture)
            for scheme in ("default", "slate"):
                browser.execute_script(
                    "document.body.dataset.mdColorScheme = arguments[0]", scheme
                )
                looks.add(picture.screenshot_as_png)
            assert 2 == len(looks), page.name
            assert picture.get_property("naturalWidth"), page.name
        shown |= names

    assert shown == {path.name for path in (DOCS / "pictures").glob("*.svg")}


def test_pages_are_as_dark_as_the_system(served: str, browser: Any) -> None:
    """Also where the first visit was by day, as long as nobody has chosen."""
    for scheme, wanted in {"light": "default", "dark": "slate"}.items():
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(f"{served}/index.html")
        shown = f"body[data-md-color-scheme={wanted}]"
        found = presence_of_element_located((By.CSS_SELECTOR, shown))
        WebDriverWait(browser, 20).until(found)
