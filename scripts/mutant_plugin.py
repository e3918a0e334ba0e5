"""
What pytest loads for `scripts.mutants`: it puts the fault in, or notes who runs a line.

`MUTATE=path=file` has the file's text in place of that path's; `MUTANT_LINES=file` gets
the tests of each line.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = "tornado_compas_session"
ROOT = Path(__file__).resolve().parent.parent


class _Faulty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from another text."""

    def __init__(self, path: str, text: str) -> None:
        self._path = str(ROOT / path)
        self._name = path.removesuffix(".py").replace("/", ".")
        self._text = text

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=self._path)

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self._path
        exec(compile(self._text, self._path, "exec"), module.__dict__)


def _put_in(path: str, file: str) -> None:
    text = Path(file).read_text(encoding="utf-8")
    if path.endswith(".py"):
        # The package's plugin for pytest was loaded before, and may have brought it in.
        for loaded in [name for name in sys.modules if name.startswith(PACKAGE)]:
            del sys.modules[loaded]
        sys.meta_path.insert(0, _Faulty(path, text))
        return
    from tornado_compas_session.stores.pools import queries

    folder = Path(tempfile.mkdtemp(prefix="compas-mutant-"))
    shutil.copytree(ROOT / "schema", folder / "schema")
    (folder / path).write_text(text, encoding="utf-8")
    queries.schema_dir = lambda: folder / "schema"


if _given := os.environ.get("MUTATE"):
    _put_in(*_given.split("=", 1))


class _Lines:
    """Notes with coverage which test runs which line."""

    def __init__(self, target: str) -> None:
        import coverage

        self._target = target
        self._seconds: dict[str, float] = defaultdict(float)
        self._coverage = coverage.Coverage(
            data_file=None, include=[f"{ROOT / PACKAGE}/*"], config_file=False
        )
        self._coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            # It fails without any fault, or is skipped: it finds nothing.
            self._seconds[report.nodeid] = float("inf")

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        found: dict[str, dict[str, list[str]]] = {}
        for file in data.measured_files():
            lines: dict[str, list[str]] = {}
            everybody: set[str] = set()
            for line, contexts in data.contexts_by_lineno(file).items():
                tests = {test for test in contexts if self._is_good(test)}
                everybody |= tests
                lines[str(line)] = sorted(tests, key=self._seconds.__getitem__)
            lines[""] = sorted(everybody, key=self._seconds.__getitem__)
            found[Path(file).relative_to(ROOT).as_posix()] = lines
        Path(self._target).write_text(json.dumps(found), encoding="utf-8")

    def _is_good(self, test: str) -> bool:
        return 0 < self._seconds.get(test, 0) < float("inf")


# From the start, so that the lines are seen that run as a module is imported.
_lines = _Lines(_target) if (_target := os.environ.get("MUTANT_LINES")) else None


def pytest_configure(config: pytest.Config) -> None:
    if _lines is not None:
        config.pluginmanager.register(_lines)
