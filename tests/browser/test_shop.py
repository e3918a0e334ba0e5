"""The shop in two browsers, as two devices of one person."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest
from selenium.webdriver.common.by import By

from tests.browser.test_page import FAINT
from tests.ports import free_port
from tests.servers import ROOT

pytestmark = pytest.mark.slow

PATHS = ["/", "/cart", "/account", "/devices", "/admin", "/chat", "/account/password"]
PASSWORD = "correct horse battery"
#: A picture of one pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGPY"
    "bCkPAAKuAQxrjZAhAAAAAElFTkSuQmCC"
)


@pytest.fixture
def shop(empty_database) -> Iterator[str]:
    """A shop that `make shop` has started, over an empty database; its address."""
    port = free_port()
    command = [sys.executable, "-m", "examples.shop", f"--port={port}"]
    command += ["--database-url", empty_database]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(f"{url}/_health", timeout=2).close()
            break
        time.sleep(0.05)
    yield url
    process.terminate()
    assert 0 == process.wait(30)


def come_in(browser, url, *, sign_up=False):
    browser.open(url + ("/sign-up" if sign_up else "/sign-in"))
    browser.type("ada", "name")
    browser.type(PASSWORD, "password")
    browser.click("Sign up" if sign_up else "Sign in")
    shows(browser, "Hello, ada.")


def shows(browser, text):
    script = "return document.body?.innerText ?? ''"
    browser.eventually(lambda: text in browser.run(script))


def test_two_devices(shop, open_either):
    """Signed in on both; signed out from the other one; the chat there closes."""
    laptop = open_either(shop, profile="laptop")
    phone = open_either(shop, profile="phone")
    come_in(laptop, shop, sign_up=True)
    come_in(phone, shop)
    phone.open(shop + "/chat")
    phone.shows("Everybody here can read it.", "chat-says")
    phone.type("<b>Moons?", "text")
    phone.click("Say")
    phone.shows("ada <b>Moons?", "said")

    laptop.open(shop + "/devices")
    laptop.click("Sign out there")
    shows(laptop, "Signed out there.")
    phone.shows("Closed: you have signed out.", "chat-says")
    phone.open(shop + "/account")
    shows(phone, "Remember me")

    assert [] == laptop.complaints()
    assert [] == phone.complaints()


def test_an_upload_shows_how_far_it_is(shop, open_browser, tmp_path):
    """The bar moves while it is on its way, and the photo is there afterwards."""
    picture = tmp_path / "photo.png"
    # One pixel, and a long tail that no decoder reads.
    picture.write_bytes(PIXEL + bytes(2**20))
    browser = open_browser(shop)
    come_in(browser, shop, sign_up=True)
    browser.open(shop + "/account")
    conditions = {"offline": False, "latency": 0, "download_throughput": -1}
    browser.driver.set_network_conditions(**conditions, upload_throughput=2**20)
    browser.type(str(picture), "photo")
    browser.click("Upload")
    seen = set()

    def done() -> bool:
        with suppress(Exception):
            seen.add(browser.text("upload-says"))
        return "A new photo." in browser.driver.page_source

    browser.eventually(done)
    assert any(text.endswith("%") and text not in ("0 %", "100 %") for text in seen)
    assert 1 == browser.run("return document.querySelector('img.photo').naturalWidth")
    assert [] == browser.complaints()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(shop, open_browser, scheme):
    """No page is wider than a phone, and text stands out (WCAG AA)."""
    browser = open_browser(shop)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    come_in(browser, shop, sign_up=True)
    for title in ("Moons", "Leaf"):
        browser.open(shop)
        browser.driver.find_element(
            By.CSS_SELECTOR, f"form[action='/add/{title.lower()}'] button"
        ).click()
        shows(browser, f"“{title}” is in your cart.")
    for path in PATHS:
        browser.open(shop + path)
        assert [] == browser.run(FAINT), path
        for width in (320, 390, 1280):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1}
            browser.driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride", {**size, "mobile": True}
            )
            assert width == browser.run("return document.documentElement.scrollWidth")
            small = browser.run(
                "return [...document.querySelectorAll('button, input')]"
                ".filter((b) => b.offsetParent && b.offsetHeight < 36)"
                ".map((b) => b.outerHTML)"
            )
            assert [] == small
    assert [] == browser.complaints()
