"""
How long tests take. What takes over half a second is marked `slow`, and left out of the
inner loop; that nothing else does is held by `--pace`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

#: Seconds that a test may take which is not marked slow; what it waits for in its
#: fixtures is not counted.
LIMIT = 0.5
#: How often a test that took longer is run again, alone, before that is believed: one
#: run says more about what else the machine was doing.
AGAIN = 3
#: The property of a report in which its test says how long it waited for a processor.
HELD_UP = "held_up"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests as well")
    parser.addoption(
        "--long",
        action="store_true",
        help="run the long forms of the tests as well, and the slow tests",
    )
    parser.addoption(
        "--pace",
        action="store_true",
        help=f"fail if a test that is not marked slow takes over {LIMIT} s",
    )
    parser.addoption("--write-seconds", metavar="FILE", help="seconds of each test")


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form is asked for: more rounds, more examples."""
    return bool(request.config.getoption("--long"))


def pytest_configure(config: pytest.Config) -> None:
    # The processes of xdist only run the tests; it is the first one that hears of all.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Pace(config), "pace")


# -- what is left out ------------------------------------------------------------------


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Left out and not skipped: nothing is wrong with this machine."""
    long = bool(config.getoption("--long"))
    slow = long or bool(config.getoption("--slow")) or _asked_for(config)
    cluster = bool(config.getoption("--citus", None))
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        wanted = (long or not item.get_closest_marker("long")) and (
            slow
            or not item.get_closest_marker("slow")
            or (cluster and item.path.parent.name == "citus")  # asked for as well
        )
        (kept if wanted else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)
    # xdist does not tell its first process what the others have left out.
    getattr(config, "workeroutput", {})["left_out"] = _slow_ones(left_out)


def _slow_ones(items: list[pytest.Item]) -> int:
    return sum(item.get_closest_marker("slow") is not None for item in items)


def _asked_for(config: pytest.Config) -> bool:
    """Whether tests are named: by their file, or by the mark."""
    files = any(".py" in str(argument) for argument in config.args)
    return files or "slow" in str(config.getoption("markexpr"))


# -- who is too slow -------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    before = _held_up()
    try:
        return (yield)
    finally:
        item.user_properties.append((HELD_UP, _held_up() - before))


def _held_up() -> float:
    """The seconds for which this thread could have run and others did, if known."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


class _Pace:
    """Hears how long each test took, and asks again where that was too long."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._seconds: dict[str, float] = {}
        self._left_out = 0
        self._too_slow: dict[str, float] = {}

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._left_out += _slow_ones(items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # Each of them has left out the same.
        self._left_out = getattr(node, "workeroutput", {}).get("left_out", 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and "slow" not in report.keywords:
            held_up = dict(report.user_properties).get(HELD_UP, 0.0)
            self._seconds[report.nodeid] = report.duration - float(str(held_up))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if target := self._config.getoption("--write-seconds"):
            Path(target).write_text(json.dumps(self._seconds))
        if self._config.getoption("--pace"):
            self._too_slow = still_slow(self._seconds, partial(run_again, self._config))
            if self._too_slow and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> None:
        say = terminalreporter.write_line
        for test, seconds in self._too_slow.items():
            say(
                f"FAILED {test} - took {seconds:.2f} s at best;"
                f" what takes over {LIMIT} s is marked slow",
                red=True,
            )
        if self._left_out:
            say(f"{self._left_out} slow tests left out; `make check` runs them")


def still_slow(
    seconds: dict[str, float], again: Callable[[list[str]], dict[str, float]]
) -> dict[str, float]:
    """Those that take too long however often they are run, and their best time."""
    best = {test: took for test, took in seconds.items() if took > LIMIT}
    for _ in range(AGAIN):
        if not best:
            break
        for test, took in again(list(best)).items():
            best[test] = min(took, best[test])
        best = {test: took for test, took in best.items() if took > LIMIT}
    return best


def run_again(config: pytest.Config, tests: list[str]) -> dict[str, float]:
    """The seconds of each, with nothing of ours beside them."""
    with TemporaryDirectory(prefix="compas-pace-") as folder:
        target = Path(folder, "seconds.json")
        options = [f"--write-seconds={target}", "-pno:randomly", "-pno:cacheprovider"]
        if postgres := config.getoption("--postgres", None):
            options.append(f"--postgres={postgres}")
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=config.rootpath,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        found: dict[str, float] = json.loads(target.read_text())
        return found
