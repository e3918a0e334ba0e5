"""
What pytest does for `scripts.mutants` in place of running the tests once.

`Nursery` is the process that has the tests collected, and forks one for each fault. The
fault is put into the functions that are there. One that is in what runs as a module is
imported needs a process that imports it anew: pytest, with `MUTATE=path=file`, loads
this file as a plugin.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

import pytest

from scripts.mutations import Mutant

PACKAGE = "tornado_compas_session"
ROOT = Path(__file__).resolve().parent.parent
SQL = "schema/queries.sql"
#: A test may take so many seconds, and so many times what it takes without a fault.
SECONDS, TIMES = 5.0, 20
#: For tests in a process that imports the package anew.
SECONDS_ANEW = 300.0
#: A loop that does not end may not take the machine's memory.
MEMORY = 8 << 30
#: How a child ends that has said why it could not try a fault.
UNTRIED = 70


class Nursery:
    """A plugin that meets each fault with the tests, in a process of its own."""

    OPTIONS = (
        *("-q", "-s", "--tb=no", "--no-header", "--no-summary"),
        *("-pno:randomly", "-pno:cacheprovider", "-ofaulthandler_timeout=0"),
        *("--async-test-timeout=10", "-Wignore::pytest.PytestAssertRewriteWarning"),
    )

    def __init__(
        self, mutants: list[Mutant], folder: Path, beside: int, *, tell: bool
    ) -> None:
        self._mutants = mutants
        self._folder = folder
        self._beside = beside
        self._tell = tell
        #: None until all is known.
        self.survivors: list[Mutant] | None = None
        self._failed = False
        self._items: dict[str, pytest.Item] = {}
        self._functions: dict[CodeType, list[FunctionType]] = defaultdict(list)
        self._seconds: dict[str, float] = {}
        #: For each file the tests that run a line of it, or read a statement.
        self._tests: dict[str, dict[str, set[str]]] = defaultdict(
            lambda: defaultdict(set)
        )

    def pytest_configure(self, config: pytest.Config) -> None:
        from hypothesis import settings

        # The same examples for each fault, and none that is kept for tomorrow.
        settings.register_profile("mutants", database=None, derandomize=True)
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            return True  # what could not be collected has been said
        self._items = {item.nodeid: item for item in session.items}
        for one in gc.get_objects():
            if isinstance(one, FunctionType) and _is_ours(one):
                self._functions[one.__code__].append(one)
        gc.freeze()  # so that no collection in a child copies all of it
        self._trace()
        self.survivors = []
        began = time.monotonic()
        waiting = list(self._mutants)
        running: dict[int, Mutant] = {}
        while waiting or running:
            while waiting and len(running) < self._beside:
                mutant = waiting.pop(0)
                running[self._fork(partial(self._meet, mutant))] = mutant
            mutant, status = self._ended(running)
            if status in (0, UNTRIED):
                self.survivors.append(mutant)
                _say(f"survives: {mutant}")
            done = len(self._mutants) - len(waiting) - len(running)
            if done % 50 == 0:
                _say(f"{done}/{len(self._mutants)}, {time.monotonic() - began:.0f} s")
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed = self._failed or report.failed

    # -- processes ---------------------------------------------------------------------

    def _fork(self, work: Callable[[], int]) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        status = UNTRIED
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            # Its own standard error is for what it has to say, and for no test.
            sys.__stderr__ = os.fdopen(os.dup(2), "w")  # type: ignore[misc]
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(nothing, number)
            status = work()
        except BaseException as error:
            _say(f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)

    def _ended(self, running: dict[int, Mutant]) -> tuple[Mutant, int]:
        while True:
            pid, status = os.wait()
            if pid in running:
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it has started
        code = os.waitstatus_to_exitcode(status)
        if self._tell and code < 0:
            _say(f"does not end ({code}): {running[pid]}")
        return running.pop(pid), code

    # -- which tests -------------------------------------------------------------------

    def _trace(self) -> None:
        """Runs all tests, and notes which run which line and read which statement."""
        files = list(dict.fromkeys(item.path for item in self._items.values()))
        _say(f"{len(self._items)} tests: which of them run which line?")
        children: dict[int, Path] = {}
        for part in range(min(self._beside, len(files))):
            mine = set(files[part :: self._beside])
            items = [item for item in self._items.values() if item.path in mine]
            target = self._folder / f"lines-{part}.json"
            pid = self._fork(partial(self._note, items, target))
            children[pid] = target
        for pid, target in children.items():
            os.waitpid(pid, 0)
            found = json.loads(target.read_text())
            self._seconds |= found["seconds"]
            for test in found["failed"]:
                _say(f"fails without a fault, and is left out: {test}")
            for path, places in found["places"].items():
                for place, tests in places.items():
                    self._tests[path][place] |= self._seconds.keys() & tests

    def _note(self, items: list[pytest.Item], target: Path) -> int:
        import coverage

        from tornado_compas_session.stores.pools.queries import Statement

        os.environ["COVERAGE_CORE"] = "ctrace"  # of those that can tell tests apart
        watcher = coverage.Coverage(
            data_file=None, include=[f"{ROOT / PACKAGE}/*"], config_file=False
        )
        places: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        test = ""

        def read(place: int, statement: Statement) -> object:
            places[SQL][statement.name].add(test)
            return statement[place]

        for place, name in enumerate(Statement._fields[1:], 1):
            setattr(Statement, name, property(partial(read, place)))
        watcher.start()
        seconds, failed = {}, []
        for item, after in pairwise([*items, None]):
            assert item is not None
            test = item.nodeid
            watcher.switch_context(test)
            began = time.monotonic()
            if self._fails(item, after):
                failed.append(test)
            else:
                seconds[test] = time.monotonic() - began
        watcher.stop()
        data = watcher.get_data()
        for file in data.measured_files():
            path = Path(file).relative_to(ROOT).as_posix()
            for line, tests in data.contexts_by_lineno(file).items():
                places[path][str(line)] |= set(tests)
        sets = {
            path: {place: sorted(tests) for place, tests in found.items()}
            for path, found in places.items()
        }
        found = {"seconds": seconds, "failed": failed, "places": sets}
        target.write_text(json.dumps(found), encoding="utf-8")
        return 0

    # -- one fault ---------------------------------------------------------------------

    def _meet(self, mutant: Mutant) -> int:
        """0 if no test finds the fault."""
        places = self._tests[mutant.path]
        if mutant.path == SQL:
            changed = _put_in_sql(mutant, self._folder)
            return self._run(mutant, set().union(*(places[name] for name in changed)))
        tree = mutant.make()
        assert isinstance(tree, ast.Module)
        if self._put_in(mutant.path, tree):
            # Where an `await` has raised, the tracer does not see what follows.
            others = set().union(*(places[str(line)] for line in mutant.lines))
            return self._run(mutant, places[str(mutant.line)], others)
        return self._anew(mutant, ast.unparse(tree), set().union(*places.values()))

    def _run(
        self, mutant: Mutant, tests: Set[str], others: Set[str] = frozenset()
    ) -> int:
        names = [*self._quickest_first(tests), *self._quickest_first(others - tests)]
        chosen = [self._items[name] for name in names]
        for item, after in pairwise([*chosen, None]):
            assert item is not None
            seconds = SECONDS + TIMES * self._seconds[item.nodeid]
            signal.setitimer(signal.ITIMER_REAL, seconds)
            # Twice, as anything may fail once on a busy machine.
            if self._fails(item, after) and self._fails(item, None):
                if self._tell:
                    _say(f"{mutant}\n    {item.nodeid}")
                return 1
        return 0

    def _quickest_first(self, tests: Set[str]) -> list[str]:
        return sorted(tests, key=lambda test: (self._seconds[test], test))

    def _fails(self, item: pytest.Item, after: pytest.Item | None) -> bool:
        self._failed = False
        item.ihook.pytest_runtest_protocol(item=item, nextitem=after)
        return self._failed

    def _put_in(self, path: str, tree: ast.Module) -> bool:
        """
        Gives the functions of a module the code of the faulty ones; false if the fault
        is in no function. Whoever has imported them by name has them as well.
        """
        text = (ROOT / path).read_text(encoding="utf-8")
        module = path.removesuffix(".py").replace("/", ".")
        is_put = False
        try:
            for was, becomes in _changed(
                compile(text, path, "exec"), compile(tree, path, "exec")
            ):
                for function in self._functions[was]:
                    if function.__module__ == module:
                        function.__code__ = becomes
                        is_put = True
        except ValueError:  # the faulty one has other variables of its surroundings
            return False
        return is_put

    def _anew(self, mutant: Mutant, text: str, tests: set[str]) -> NoReturn:
        """The same in a process that imports the module with its fault."""
        target = self._folder / f"{os.getpid()}.txt"
        target.write_text(text, encoding="utf-8")
        arguments = self._folder / f"{os.getpid()}-tests.txt"
        arguments.write_text("\n".join(self._quickest_first(tests)), encoding="utf-8")
        os.environ["MUTATE"] = f"{mutant.path}={target}"
        options = [*self.OPTIONS, "-x", "-pscripts.mutant_plugin", f"@{arguments}"]
        signal.setitimer(signal.ITIMER_REAL, SECONDS_ANEW)
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *options])


def _say(text: str) -> None:
    print(text, file=sys.__stderr__, flush=True)


def _is_ours(function: FunctionType) -> bool:
    return (function.__module__ or "").startswith(PACKAGE)


def _put_in_sql(mutant: Mutant, folder: Path) -> list[str]:
    """The names of the statements that are others now."""
    from tornado_compas_session.stores.pools import queries

    text = mutant.make()
    assert isinstance(text, str)
    own = folder / str(os.getpid())
    own.mkdir()
    (own / "queries.sql").write_text(text, encoding="utf-8")
    former = queries.statements()
    queries.statements.cache_clear()
    queries.schema_dir = lambda: own
    return [name for name, one in queries.statements().items() if former[name] != one]


def _changed(was: CodeType, becomes: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The code of each function that differs; `ValueError` if other code does."""
    if was.co_flags & inspect.CO_OPTIMIZED:
        if was != becomes:
            yield was, becomes
    elif _bare(was) != _bare(becomes):
        raise ValueError
    parts = [one for one in was.co_consts if isinstance(one, CodeType)]
    others = [one for one in becomes.co_consts if isinstance(one, CodeType)]
    if len(parts) == len(others):
        for part, other in zip(parts, others, strict=True):
            yield from _changed(part, other)


def _bare(code: CodeType) -> CodeType:
    """The code without that of what is defined in it."""
    consts: tuple[Any, ...] = tuple(
        None if isinstance(one, CodeType) else one for one in code.co_consts
    )
    return code.replace(co_consts=consts)


# -- a process that imports it anew ----------------------------------------------------


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


if _given := os.environ.pop("MUTATE", None):
    _path, _file = _given.split("=", 1)
    # The package's plugin for pytest was loaded before, and may have brought it in.
    for _loaded in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[_loaded]
    sys.meta_path.insert(0, _Faulty(_path, Path(_file).read_text(encoding="utf-8")))
