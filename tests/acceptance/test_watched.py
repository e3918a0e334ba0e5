"""Who measures an application records what the client got: the real packages."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.apps.watched import LOCKED

pytestmark = pytest.mark.slow
PACKAGES = ("opentelemetry", "ddtrace", "tornado_prometheus")


def watched(package: str, database: str, *control: str) -> tuple[list[Any], str]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.apps.watched", package, database, *control],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert 0 == result.returncode, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_they_record_what_left_and_how_long_it_took(package: str, database: str):
    """
    A quick commit, one that waits for a locked row, and one that fails: each is
    recorded once, with the status that the client got and the time of the commit in it;
    and nothing of theirs fails.
    """
    asked, log = watched(package, database)
    good, bad = ("2xx", "5xx") if package == "tornado_prometheus" else (200, 503)

    assert [200, 200, 503] == [got for got, *_ in asked]
    assert [[good], [good], [bad]] == [
        [status for status, _ in recorded] for *_, recorded in asked
    ]
    assert asked[1][2][0][1] >= LOCKED
    assert "Traceback" not in log, log


@pytest.mark.parametrize("package", PACKAGES)
def test_told_at_once_they_would_not(package: str, database: str):
    """The control: as Tornado tells them, they record first a quick 200 of each."""
    asked, _ = watched(package, database, "unheld")
    good = "2xx" if package == "tornado_prometheus" else 200

    assert [(200, good), (200, good), (503, good)] == [
        (got, recorded[0][0]) for got, _, recorded in asked
    ]
    assert asked[1][2][0][1] < LOCKED
