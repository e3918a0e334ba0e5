"""What takes over half a second is marked slow: who finds that, and how surely."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pace import AGAIN, still_slow

ROOT = Path(__file__).parents[2]

SUITE = """
import time
from pathlib import Path

import pytest

def test_quick():
    pass

def test_held_up_once():
    mark = Path(__file__).with_name("held_up")
    time.sleep(0 if mark.exists() else 0.6)
    mark.touch()

def test_unmarked():
    time.sleep(0.6)

@pytest.mark.slow
def test_marked():
    time.sleep(0.6)
"""


def test_what_is_quick_once_is_quick() -> None:
    """Only what takes too long each time is told, with its best time."""
    runs = [{"a": 0.1, "b": 2.0, "c": 0.9}, {"b": 0.7, "c": 0.4}, {"b": 0.8}]

    def again(tests: list[str]) -> dict[str, float]:
        return {test: seconds.pop(0) for test, seconds in rest.items() if test in tests}

    rest = {"b": [run["b"] for run in [*runs[1:], {"b": 3.0}]], "c": [0.4]}

    assert {"b": 0.7} == still_slow(runs[0], again)


def test_nothing_is_run_again_where_all_are_quick() -> None:
    """Which is nearly always."""

    def again(tests: list[str]) -> dict[str, float]:
        raise AssertionError(tests)

    assert {} == still_slow({"a": 0.1, "b": 0.5}, again)


def test_one_that_fails_when_it_is_run_again_stays_slow() -> None:
    """It is asked for so often, and then told with the time that it took."""
    asked: list[list[str]] = []

    def again(tests: list[str]) -> dict[str, float]:
        asked.append(tests)
        return {}

    assert {"a": 0.9} == still_slow({"a": 0.9}, again)
    assert [["a"]] * AGAIN == asked


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_a_slow_test_without_its_mark_fails_the_run(
    tmp_path: Path, processes: int
) -> None:
    """Named, with its time; a bad moment of the machine is no reason."""
    (tmp_path / "test_some.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    slow\naddopts = -p tests.pace -p no:randomly\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--slow", "--pace", f"-n{processes}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]

    assert 1 == run.returncode
    assert "4 passed" in run.stdout
    assert 1 == len(told), run.stdout
    assert " test_some.py::test_unmarked - took 0." in told[0]


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ([], "3 passed"),
        (["--slow"], "4 passed"),
        (["-m", "slow"], "1 passed"),
        (["test_some.py"], "4 passed"),
    ],
)
@pytest.mark.slow
def test_slow_tests_run_when_they_are_asked_for(
    tmp_path: Path, options: list[str], outcome: str
) -> None:
    """By the option, by the mark or by their file; else they are left out."""
    (tmp_path / "test_some.py").write_text(SUITE.replace("0.6", "0"))
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    slow\naddopts = -p tests.pace -p no:randomly\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert outcome in run.stdout
    assert ("left out" in run.stdout) == (options == [])
