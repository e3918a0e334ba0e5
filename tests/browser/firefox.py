"""Debian's Firefox, driven by WebDriver BiDi, so without a driver of its own."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import TimeoutException
from websocket import WebSocket, create_connection

from tests.programs import program

T = TypeVar("T")
#: Nothing is asked of the network, and nothing is shown at the start.
PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.auto": False,
    "browser.safebrowsing.provider.mozilla.updateURL": "",
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "http://127.0.0.1:1/",
}


class Words:
    """What the tests say to any browser, in the words that each has of its own."""

    eventually: Callable[[Callable[[], Any]], Any]
    text: Callable[[str], str]

    def shows(self, text: str, element_id: str) -> None:
        """Waits until the element has this text."""
        try:
            self.eventually(lambda: self.text(element_id) == text)
        except TimeoutException:
            assert text == self.text(element_id)


class Firefox(Words):
    """A browser with a profile of its own, and with the words of `Browser`."""

    def __init__(self, profile: Path, *flags: str) -> None:
        profile.mkdir(parents=True, exist_ok=True)
        # What Chromium calls `--host-resolver-rules=MAP evil.example 127.0.0.1`.
        mapped = ",".join(re.findall(r"MAP (\S+) 127", " ".join(flags)))
        preferences = {**PREFERENCES, "network.dns.localDomains": mapped}
        (profile / "user.js").write_text(
            "".join(
                f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
                for name, value in preferences.items()
            )
        )
        command = [program("firefox-esr"), "--headless", "--profile", str(profile)]
        self._process = subprocess.Popen(
            [*command, "--remote-debugging-port", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._numbers = itertools.count(1)
        self._socket = self._connect()
        self._ask("session.new", capabilities={})
        tree = self._ask("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]
        self._complaints: list[str] = []
        self._ask("session.subscribe", events=["log.entryAdded"])

    def _connect(self) -> WebSocket:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if match := re.search(r"BiDi listening on (ws://\S+)", line):
                return create_connection(
                    f"{match[1]}/session", timeout=30, suppress_origin=True
                )
        raise AssertionError("Firefox has ended")

    def _ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(command))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("method") == "log.entryAdded":
                if answer["params"]["level"] in ("error", "warn"):
                    self._complaints.append(str(answer["params"]["text"]))
            elif answer.get("id") == number:
                if answer["type"] == "error":
                    raise AssertionError(f"{method}: {answer['message']}")
                return answer["result"]

    def open(self, url: str) -> None:
        context = self._context
        self._ask("browsingContext.navigate", context=context, url=url, wait="complete")

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page, awaiting what it returns."""
        given = json.dumps(arguments)
        result = self._ask(
            "script.evaluate",
            target={"context": self._context},
            awaitPromise=True,
            expression=f"""
            (async (...args) => {{ {script} }})(...{given})
                .catch((error) => String(error))
                .then((value) => JSON.stringify(value ?? null))
            """,
        )
        assert result["type"] == "success", result
        return json.loads(result["result"]["value"])

    def click(self, name: str) -> None:
        """Presses the button that is called so, as soon as it is there."""
        script = """
        const found = [...document.querySelectorAll("button")].find((button) =>
            button.textContent.trim() === args[0] && button.offsetParent);
        if (found) setTimeout(() => found.click());
        return Boolean(found);
        """
        self.eventually(lambda: self.run(script, name))

    def type(self, text: str, element_id: str) -> None:
        self.run("document.getElementById(args[0]).focus()", element_id)
        keys = [
            {"type": kind, "value": letter}
            for letter in text
            for kind in ("keyDown", "keyUp")
        ]
        source = {"type": "key", "id": "keyboard", "actions": keys}
        self._ask("input.performActions", context=self._context, actions=[source])

    def text(self, element_id: str) -> str:
        script = """
        const element = document.getElementById(args[0]);
        return element?.checkVisibility() ? element.innerText.trim() : "";
        """
        return str(self.run(script, element_id))

    def address(self) -> str:
        return str(self.run("return location.href"))

    def cookies(self) -> dict[str, dict[str, Any]]:
        """Every cookie that the browser has, those that scripts cannot see included."""
        found = self._ask("storage.getCookies")["cookies"]
        return {cookie["name"]: cookie for cookie in found}

    def complaints(self) -> list[str]:
        """What the console shows: errors of scripts, and their warnings."""
        self.run("")  # whatever was on its way is here after that
        return self._complaints

    def eventually(self, condition: Callable[[], T]) -> T:
        """Waits until the condition holds, and returns what it gave."""
        limit = time.monotonic() + 15
        while not (found := condition()):
            if time.monotonic() > limit:
                raise TimeoutException
            time.sleep(0.05)
        return found

    def close(self) -> None:
        """Ends it, as a person does: what a profile keeps is written."""
        if self._process.poll() is None:
            self._ask("browser.close")
            self._process.wait(30)
        self._socket.close()
        assert self._process.stderr is not None
        self._process.stderr.close()
