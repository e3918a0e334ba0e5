"""The example's page, clicked through."""

from __future__ import annotations

import json

import pytest
from selenium.webdriver.common.keys import Keys

from tests.servers import start_example

pytestmark = pytest.mark.slow

NONE = "–"


@pytest.fixture
def example(database):
    with start_example("--database-url", database) as server:
        yield server


def test_the_counter(example, open_either):
    """Increment too early, init, increment, reload, destroy: as the page shows it."""
    browser = open_either(example.url)
    browser.shows(NONE, "value")
    browser.shows("No cookie.", "cookies")

    browser.click("Increment")
    browser.shows("Please call /counter/init first", "say")
    assert NONE == browser.text("value")

    browser.click("Init")
    browser.shows("0", "value")
    for value in ("1", "2", "3"):
        browser.click("Increment")
        browser.shows(value, "value")
    browser.shows("", "say")
    assert {"counter": 3} == json.loads(browser.text("data"))
    assert browser.text("expires").startswith("in 6 days")
    assert browser.text("log").startswith('POST /counter/increment → 200 {"value":3}')

    browser.open(example.url)
    browser.shows("3", "value")

    browser.click("Destroy")
    browser.shows("Gone, row and cookies.", "say")
    assert NONE == browser.text("value")
    assert {} == browser.cookies()


def test_what_scripts_see_of_it(example, open_either):
    """CK-2, CK-15: the public cookie, and never the session's own."""
    browser = open_either(example.url)
    browser.click("Init")
    browser.shows("counter.sess.public=truthy", "cookies")

    assert "counter.sess.public=truthy" == browser.run("return document.cookie")
    cookies = browser.cookies()
    assert {"counter.sess", "counter.sess.public"} == cookies.keys()
    assert cookies["counter.sess"]["httpOnly"]
    assert not cookies["counter.sess.public"]["httpOnly"]
    sites = [cookie["sameSite"].lower() for cookie in cookies.values()]
    assert ["lax", "lax"] == sites


def test_clicking_faster_than_the_server_answers(example, open_either):
    """Every click counts, and the last number is the one that stays."""
    browser = open_either(example.url)
    browser.click("Init")
    browser.shows("0", "value")
    browser.run(
        "for (let i = 0; i < 25; i++) document.getElementById('increment').click()"
    )

    browser.eventually(lambda: '"value":25' in browser.text("log"))
    browser.shows("25", "value")


def test_the_counter_survives_a_restart_of_the_server(database, open_browser):
    """While the server is away the page says so; afterwards it counts on."""
    with start_example("--database-url", database) as server:
        browser = open_browser(server.url)
        browser.click("Init")
        browser.click("Increment")
        browser.shows("1", "value")
        port = int(server.url.rpartition(":")[2])
    browser.click("Increment")
    browser.shows("The server does not answer.", "say")
    with start_example("--database-url", database, port=port):
        browser.click("Increment")
        browser.shows("2", "value")
        browser.shows("", "say")


def test_while_the_database_is_away(free_port, open_browser):
    """The page says what is the matter and when to try again."""
    dsn = f"postgresql://postgres@127.0.0.1:{free_port}/postgres"
    with start_example("--database-url", dsn) as server:
        browser = open_browser(server.url)
        browser.click("Init")
        browser.shows("The sessions cannot be reached. Try again in 2 seconds.", "say")

        assert NONE == browser.text("value")


def test_with_cookies_blocked(example, open_browser, tmp_path):
    """The page notices that the cookie did not come back, and says what to do."""
    preferences = tmp_path / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    blocked = {"default_content_setting_values": {"cookies": 2}}
    preferences.write_text(json.dumps({"profile": blocked}))
    browser = open_browser(example.url)
    why = "The cookie did not come back: your browser blocks cookies of this page."
    browser.click("Init")
    browser.shows(f"{why} Allow them, and try again.", "say")
    browser.type("Ada" + Keys.ENTER, "name")
    browser.eventually(lambda: "/sign-in" in browser.text("log"))
    browser.shows(f"{why} Allow them, and try again.", "say")

    assert NONE == browser.text("value")
    assert {} == browser.cookies()


def test_signing_in_and_out_with_the_keyboard(example, open_either):
    """The id changes, the counter stays; after signing out nothing is left."""
    browser = open_either(example.url)
    browser.click("Init")
    browser.shows("0", "value")
    before = browser.cookies()["counter.sess"]["value"]
    browser.type("Ada <b>&amp;" + Keys.ENTER, "name")
    browser.shows("Hello, Ada <b>&amp;.", "say")

    assert "Ada <b>&amp;" == browser.text("user")
    assert before != browser.cookies()["counter.sess"]["value"]
    assert "0" == browser.text("value")

    browser.click("Sign out")
    browser.shows("Signed out.", "say")
    assert {} == browser.cookies()


def test_two_browsers_end_each_other(example, open_either):
    """Each sees both; what one signs out is anonymous at its next request."""
    one = open_either(example.url, profile="one")
    two = open_either(example.url, profile="two")
    for browser in (one, two):
        browser.type("Grace" + Keys.ENTER, "name")
        browser.shows("Hello, Grace.", "say")

    one.open(example.url)
    one.eventually(lambda: one.text("sessions").count(" on Linux") == 2)
    one.click("Sign out there")
    one.shows("Signed out there.", "say")
    assert 1 == one.text("sessions").count(" on Linux")

    two.click("Increment")
    two.shows("Please call /counter/init first", "say")
    assert {} == two.cookies()

    two.type("Grace" + Keys.ENTER, "name")
    two.shows("Hello, Grace.", "say")
    two.click("Sign out everywhere else")
    two.shows("Signed out of 1 other session.", "say")
    one.open(example.url)
    one.eventually(lambda: one.cookies() == {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(example, open_browser, scheme):
    """
    Nothing is wider than a phone, text stands out from what is behind it (WCAG AA),
    buttons are large enough for a thumb, and the console has nothing to complain of.
    """
    browser = open_browser(example.url)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.click("Init")
    browser.type("A" * 40 + Keys.ENTER, "name")
    browser.shows(f"Hello, {'A' * 40}.", "say")

    assert [] == browser.run(FAINT)
    for width in (320, 390, 1200):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert width == browser.run("return document.documentElement.scrollWidth")
        assert [] == browser.run(
            "return [...document.querySelectorAll('button')]"
            ".filter((b) => b.offsetParent && b.offsetHeight < 36).map((b) => b.id)"
        )
    assert [] == browser.complaints()


# Texts whose contrast with the nearest background is below 4.5 to 1.
FAINT = r"""
const light = (color) => {
  const [r, g, b] = color.match(/[\d.]+/g).map((c) => c / 255).map(
    (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (!color.endsWith(", 0)")) return color;
  }
};
return [...document.querySelectorAll("body *")]
  .filter((e) => e.offsetParent && [...e.childNodes].some(
    (n) => n.nodeType === 3 && n.textContent.trim()))
  .filter((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  })
  .map((e) => e.outerHTML);
"""
