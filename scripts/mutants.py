"""
Does the suite find faults? Puts in one at a time, and sees a test fail.

    python -m scripts.mutants                     all of them
    python -m scripts.mutants signing.py life.py  those of two files
    python -m scripts.mutants queries.sql         each condition of the SQL
    python -m scripts.mutants --list              which there are

Of Python, each fault meets the tests that run its line and then those that run its
function; of SQL, those that read its statement; the quickest first. What survives is
printed. What docs/mutants.md lists, with the reason why it changes nothing, meets tests
only with --known: all of them, which takes longer than for the others together.

Importing the package and collecting the tests takes seconds, meeting a fault
milliseconds. So one process does the former, and forks one for each fault.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scripts.mutant_plugin import ROOT, SQL, Nursery
from scripts.mutations import Mutant, of_python, of_sql
from tornado_compas_session.testing.embedded import EmbeddedPostgres

MODULES = [
    "cookies/*.py",
    "core/change.py",
    "core/life.py",
    "core/manager.py",
    "core/plan.py",
    "core/keeper.py",
    "core/locking.py",
]
#: Everything of it runs in the test's own process, where the fault is.
TESTS = ["tests/unit", "tests/property", "tests/acceptance", "tests/integration"]
KNOWN = ROOT / "docs" / "mutants.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Ends in 1 if a fault survives that is not known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[1])
    parser.add_argument("parts", nargs="*", help="of the lines that --list prints")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--known", action="store_true", help="the listed ones alone")
    parser.add_argument("--tell", action="store_true", help="say what found each")
    parser.add_argument("--beside", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    known = set(re.findall(r"^\| `(\S+ .+?)` \|", KNOWN.read_text("utf-8"), re.M))
    every = [
        mutant
        for mutant in every_mutant()
        if not options.parts or any(part in str(mutant) for part in options.parts)
    ]
    mutants = [one for one in every if (one.name in known) == options.known]
    if options.list:
        print(*mutants, sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="compas-mutants-") as folder:
        # What a process leaves behind that was ended in the middle goes with it.
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        nursery = Nursery(mutants, Path(folder), options.beside, tell=options.tell)
        settings = {"fsync": False, "max_connections": 400}
        with EmbeddedPostgres(Path(folder, "postgres"), settings=settings) as postgres:
            os.environ["DATABASE_URL"] = postgres.dsn()
            pytest.main([*TESTS, *nursery.OPTIONS], plugins=[nursery])
    if nursery.survivors is None:
        print("the tests do not run; see python -m pytest", *TESTS, file=sys.stderr)
        return 1
    if options.known:
        return told("found, and listed", [*{*mutants} - {*nursery.survivors}])
    report(every, nursery.survivors, known)
    return told("survives", nursery.survivors)


def every_mutant() -> Iterator[Mutant]:
    """All faults, in the order of the files."""
    for pattern in MODULES:
        for path in sorted((ROOT / "tornado_compas_session").glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            yield from of_python(name, path.read_text(encoding="utf-8"))
    yield from of_sql(SQL, (ROOT / SQL).read_text(encoding="utf-8"))


def report(every: list[Mutant], survivors: list[Mutant], known: set[str]) -> None:
    """How many were found, and are listed, of each file."""
    faults = Counter(mutant.path for mutant in every)
    listed = Counter(mutant.path for mutant in every if mutant.name in known)
    survived = Counter(mutant.path for mutant in survivors)
    print("| file | faults | found | listed |", "|---|---|---|---|", sep="\n")
    for path, number in faults.items():
        found = number - listed[path] - survived[path]
        print(f"| `{path}` | {number} | {found} | {listed[path]} |")


def told(what: str, mutants: list[Mutant]) -> int:
    """Prints them; 1 if there are any."""
    for mutant in mutants:
        print(f"{what}: {mutant}")
    return 1 if mutants else 0


if __name__ == "__main__":
    sys.exit(main())
