"""
The mistakes of beginners: docs/mistakes.md has each, with what the library says to it.

The page is the list. Here each is made, and what is said must be what the page shows.
To read them aloud: `python -m tests.acceptance.test_mistakes`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from tornado.web import Application, RequestHandler

import tornado_compas_session
from tests.docs.pages import DOCS
from tests.factories import Browser, serve
from tornado_compas_session import (
    MemorySessionStore,
    SessionError,
    SessionMixin,
    session_settings,
)

PAGE = DOCS / "mistakes.md"
#: Where the mistakes of a part are made.
PLACES = ("At the start", "In a handler")


_MISTAKE = re.compile(
    r"^## ([^\n]+)$|^([^\n]+):\n\n```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


class Mistake(NamedTuple):
    title: str
    place: str
    code: str
    #: What is said to it, as the page shows it.
    said: str


def mistakes() -> Iterator[Mistake]:
    """Those of the page."""
    place = ""
    text = PAGE.read_text(encoding="utf-8")
    for match in _MISTAKE.finditer(text):
        if match[1]:
            place = match[1]
            continue
        lines = match[3].splitlines()
        code = [line for line in lines if line.startswith((">>> ", "... ", "..."))]
        said = [line for line in lines if line not in code]
        yield Mistake(
            match[2],
            place,
            "\n".join(line[4:] for line in code),
            in_one_line(" ".join(said)),
        )


def in_one_line(text: str) -> str:
    return " ".join(text.split())


class Heard(logging.Handler):
    """What the log says, from a warning on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


NAMES: dict[str, Any] = {
    **{
        name: getattr(tornado_compas_session, name)
        for name in tornado_compas_session.__all__
    },
    "Application": Application,
    "RequestHandler": RequestHandler,
    "production": {
        "APP_NAME": "shop",
        "APP_KEYS": "a-key-for-the-tests-and-nothing-else",
    },
    "development": {
        "APP_NAME": "shop",
        "APP_ENV": "development",
        "APP_KEYS": "a-key-for-the-tests-and-nothing-else",
    },
}


async def made(mistake: Mistake) -> str:
    """Makes it, and returns what was said: lines of the log, then the exception."""
    heard = Heard()
    logger = logging.getLogger("tornado_compas_session")
    logger.addHandler(heard)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if mistake.place == "In a handler":
                await in_a_handler(mistake.code, heard)
            else:
                await attempt(mistake.code, {"store": MemorySessionStore()}, heard)
    finally:
        logger.removeHandler(heard)
    said = [f"{one.category.__name__}: {one.message}" for one in warned]
    return in_one_line(" ".join(heard.lines + said))


async def attempt(code: str, names: dict[str, Any], heard: Heard) -> None:
    compiled = compile(code, "mistake", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True)
    try:
        outcome = eval(compiled, {**NAMES, **names})
        if inspect.isawaitable(outcome):
            await outcome
    except Exception as error:
        heard.lines.append(f"{type(error).__name__}: {error}")
        if "self" in names and not isinstance(error, SessionError):
            # What the log adds to it, where nobody catches it.
            names["self"].log_exception(type(error), error, error.__traceback__)
            heard.lines += getattr(error, "__notes__", [])


async def in_a_handler(code: str, heard: Heard) -> None:
    """`self` is a handler whose visitor has a session already."""

    class Handler(SessionMixin, RequestHandler):
        def get(self) -> None:
            self.session.update({"name": "Ada", "visits": 1})

        async def post(self) -> None:
            await attempt(code, {"self": self}, heard)

    settings = session_settings(
        store=MemorySessionStore(), environ=NAMES["development"]
    )
    app = Application([("/", Handler)], **settings, log_function=lambda handler: None)
    with serve(app) as url:
        browser = Browser(url)
        await browser.get()
        await browser.post()


@pytest.mark.parametrize("mistake", list(mistakes()), ids=lambda mistake: mistake.title)
async def test_what_is_said_to_it(mistake):
    """It is what the page shows: which mistake it was, and the way out."""
    assert mistake.place in PLACES
    assert mistake.said == await made(mistake)


def test_there_are_forty():
    """And none of them is silent."""
    found = list(mistakes())

    assert len(found) >= 40
    assert all(mistake.said for mistake in found)


async def read_aloud() -> None:
    for number, mistake in enumerate(mistakes(), 1):
        print(
            f"\n{number}. {mistake.title}\n    {mistake.code}\n→ {await made(mistake)}"
        )


if __name__ == "__main__":
    asyncio.run(read_aloud())
