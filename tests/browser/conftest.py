"""Debian's Chromium, driven by Selenium: what a person would see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.firefox import Firefox, Words
from tests.programs import program

FLAGS = """
    --headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --disable-dev-shm-usage --window-size=1200,900
"""
T = TypeVar("T")


class Browser(Words):
    """A browser with a profile of its own, and with the words of the tests."""

    def __init__(self, profile: Path, *flags: str) -> None:
        options = ChromeOptions()
        options.binary_location = program("chromium")
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}", *flags):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = Service(program("chromedriver", "chromium-driver"))
        self.driver = Chrome(options, service)
        self.driver.set_script_timeout(5)

    def open(self, url: str) -> None:
        self.driver.get(url)

    def click(self, name: str) -> None:
        """Presses the button that is called so, as soon as it is there."""
        xpath = f"//button[normalize-space()={name!r}]"

        def press() -> bool:
            for button in self.driver.find_elements(By.XPATH, xpath):
                if button.is_displayed():
                    button.click()
                    return True
            return False

        self.eventually(press)

    def type(self, text: str, element_id: str) -> None:
        self.driver.find_element(By.ID, element_id).send_keys(text)

    def text(self, element_id: str) -> str:
        return self.driver.find_element(By.ID, element_id).text.strip()

    def address(self) -> str:
        return self.driver.current_url

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page, awaiting what it returns."""
        return self.driver.execute_async_script(
            f"""
            const done = arguments[arguments.length - 1];
            (async (...args) => {{ {script} }})(...arguments)
                .then(done, (error) => done(String(error)));
            """,
            *arguments,
        )

    def cookies(self) -> dict[str, dict[str, Any]]:
        """Every cookie that the browser has, those that scripts cannot see included."""
        found = self.driver.execute_cdp_cmd("Storage.getCookies", {})
        return {cookie["name"]: cookie for cookie in found["cookies"]}

    def complaints(self) -> list[str]:
        """What the console shows: errors of scripts, and what a policy has refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def eventually(self, condition: Callable[[], T]) -> T:
        """Waits until the condition holds, and returns what it gave."""
        # A script whose page is left in the meantime never answers.
        wait = WebDriverWait(self.driver, 15, 0.05, [WebDriverException])
        return wait.until(lambda _: condition())

    def close(self) -> None:
        self.driver.quit()


OpenBrowser = Callable[..., Any]
KINDS: dict[str, Callable[..., Any]] = {"chromium": Browser, "firefox": Firefox}


@pytest.fixture
def open_browser(tmp_path: Path) -> Iterator[OpenBrowser]:
    """
    Opens Chromium, or what `kind` names; each profile has its own cookies, and all are
    closed in the end.
    """
    browsers: list[Any] = []

    def open_browser(
        url: str, *flags: str, profile: str = "profile", kind: str = "chromium"
    ) -> Any:
        browser = KINDS[kind](tmp_path / profile, *flags)
        browsers.append(browser)
        browser.open(url)
        return browser

    yield open_browser
    for browser in browsers:
        browser.close()


@pytest.fixture(params=KINDS)
def open_either(
    open_browser: OpenBrowser, request: pytest.FixtureRequest
) -> OpenBrowser:
    """Opens Chromium in the one run of the test, Firefox in the other."""
    return functools.partial(open_browser, kind=request.param)
