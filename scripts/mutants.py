"""
Does the suite find faults? Puts in one at a time, and sees a test fail.

    python -m scripts.mutants                     all of them; some hours
    python -m scripts.mutants signing.py life.py  those of two files
    python -m scripts.mutants queries.sql         each condition of the SQL
    python -m scripts.mutants --list              which there are

Of Python, each fault meets the tests that run its line, the quickest first; of SQL, the
tests of the store. What survives is printed; those that docs/mutants.md lists, with the
reason why they change nothing, are not.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.mutations import Mutant, of_python, of_sql
from tornado_compas_session.testing.embedded import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "tornado_compas_session"
MODULES = [
    "cookies/*.py",
    "core/change.py",
    "core/life.py",
    "core/manager.py",
    "core/plan.py",
    "core/keeper.py",
    "core/locking.py",
]
SQL = "schema/queries.sql"
#: Everything of it runs in the test's own process, where the fault is.
TESTS = ["tests/unit", "tests/property", "tests/acceptance", "tests/integration"]
#: One driver is enough for the SQL, which is the same with each.
SQL_TESTS = [
    *("tests/integration/test_store.py", "tests/integration/test_user_sessions.py"),
    *("tests/integration/test_cleaner.py", "tests/integration/test_plans.py"),
    *("tests/acceptance", "tests/property"),
    *("-k", "not asyncpg and not psycopg and not momoko"),
]
KNOWN = ROOT / "docs" / "mutants.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Ends in 1 if a fault survives that is not known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[1])
    parser.add_argument("parts", nargs="*", help="of the lines that --list prints")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--beside", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    mutants = [
        mutant
        for mutant in every_mutant()
        if not options.parts or any(part in described(mutant) for part in options.parts)
    ]
    if options.list:
        for mutant in mutants:
            print(described(mutant))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="compas-mutants-") as folder,
        EmbeddedPostgres(
            Path(folder, "postgres"),
            settings={"fsync": False, "max_connections": 400},
        ) as postgres,
    ):
        os.environ["DATABASE_URL"] = postgres.dsn()
        survivors = tried(mutants, Path(folder), options.beside)
    known = KNOWN.read_text(encoding="utf-8") if KNOWN.exists() else ""
    fresh = [one for one in survivors if described(one, line=False) not in known]
    found = len(mutants) - len(survivors)
    share = 100 * found / max(1, len(mutants))
    print(f"{found} of {len(mutants)} faults found ({share:.1f} %)")
    for mutant in fresh:
        print(f"survived: {described(mutant)}")
    return 1 if fresh else 0


def every_mutant() -> Iterator[Mutant]:
    """All faults, in the order of the files."""
    for pattern in MODULES:
        for path in sorted((ROOT / PACKAGE).glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            yield from of_python(name, path.read_text(encoding="utf-8"))
    yield from of_sql(SQL, (ROOT / SQL).read_text(encoding="utf-8"))


def described(mutant: Mutant, *, line: bool = True) -> str:
    """A fault in a line; without the number it outlives changes of the file."""
    place = f"{mutant.path}:{mutant.line}" if line else mutant.path
    return f"{place} {mutant.fault}"


def tried(mutants: list[Mutant], folder: Path, beside: int) -> list[Mutant]:
    """Those that no test has found."""
    tests: dict[str, dict[str, list[str]]] = {}
    if any(mutant.path != SQL for mutant in mutants):
        print("which tests run which line?", file=sys.stderr)
        tests = tests_of_lines(folder)
    if any(mutant.path == SQL for mutant in mutants) and run(SQL_TESTS) != 0:
        raise SystemExit(f"no fault is in, and a test fails: {' '.join(SQL_TESTS)}")
    survivors = []
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(beside) as threads:
        running = {
            threads.submit(_is_found, mutant, tests, folder): mutant
            for mutant in mutants
        }
        for done, future in enumerate(concurrent.futures.as_completed(running), 1):
            if not future.result():
                survivors.append(running[future])
                print(f"survives: {described(running[future])}", file=sys.stderr)
            if done % 20 == 0:
                passed = time.monotonic() - began
                print(f"{done}/{len(mutants)}, {passed:.0f} s", file=sys.stderr)
    return [mutant for mutant in mutants if mutant in survivors]


def _is_found(
    mutant: Mutant, tests: dict[str, dict[str, list[str]]], folder: Path
) -> bool:
    if mutant.path == SQL:
        arguments = SQL_TESTS
    else:
        lines = tests.get(mutant.path, {})
        arguments = lines.get(str(mutant.line)) or lines.get("", [])
        if not arguments:
            return False  # no test comes by
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".txt") as file:
        file.write(mutant.text)
        file.flush()
        return run(arguments, mutate=f"{mutant.path}={file.name}") != 0


def tests_of_lines(folder: Path) -> dict[str, dict[str, list[str]]]:
    """For each file and line the tests that run it, the quickest first."""
    target = folder / "lines.json"
    run(TESTS, lines=str(target), stop=False)
    if not target.exists():
        raise SystemExit(f"the tests do not run: python -m pytest {' '.join(TESTS)}")
    found: dict[str, dict[str, list[str]]] = json.loads(target.read_text())
    return found


def run(
    arguments: list[str],
    *,
    mutate: str | None = None,
    lines: str | None = None,
    stop: bool = True,
) -> int:
    """Runs tests in a process of their own; what does not end is found as well."""
    options = ["-q", "-pno:randomly", "-pno:cacheprovider", "-pscripts.mutant_plugin"]
    options += ["-x"] if stop else []
    environment = {**os.environ, "MUTATE": mutate or "", "MUTANT_LINES": lines or ""}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(arguments))
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, f"@{file.name}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(1800 if lines else 300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
