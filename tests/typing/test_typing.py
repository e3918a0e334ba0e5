"""The types are of use: mypy, strict, passes what is right and finds what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tornado_compas_session import MemorySessionStore
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.settings import Environment, SessionOptions

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def mypy(file: str) -> set[tuple[int, str]]:
    """The errors in this file: line and kind."""
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", str(HERE / file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not run.stderr, run.stderr
    pattern = rf"{re.escape(file)}:(\d+): error: .*\[([\w-]+)\]$"
    return {
        (int(line), kind)
        for line, kind in re.findall(pattern, run.stdout, re.MULTILINE)
    }


@pytest.mark.slow
def test_typed_view_passes_mypy_strict() -> None:
    """A handler uses its session as a TypedDict without a cast or an ignore."""
    assert set() == mypy("typed_session.py")


def test_mistakes_are_found() -> None:
    """A key or a value that is none of the TypedDict's is an error, in each line."""
    source = (HERE / "wrong.py").read_text().splitlines()
    expected = {
        (number, line.rpartition("# error: ")[2])
        for number, line in enumerate(source, 1)
        if "# error: " in line
    }

    assert expected == mypy("wrong.py")


def test_typed_view_is_the_session() -> None:
    """It is no copy: a nested change through it is one of the session."""
    environment = Environment("shop", ("k" * 43,), production=False)
    options = SessionOptions.build(environment, has_store=True)
    manager = SessionManager(options, KeyRing(environment.keys), MemorySessionStore())
    session = manager.session()
    view = session.typed(dict[str, list[int]])

    view["cart"] = []
    view["cart"].append(7)

    assert {"cart": [7]} == dict(session)
