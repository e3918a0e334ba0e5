"""
Does the suite find faults? Puts in one at a time, and sees a test fail.

    python -m scripts.mutants                     all of them
    python -m scripts.mutants signing.py life.py  those of two files
    python -m scripts.mutants queries.sql         each condition of the SQL
    python -m scripts.mutants --list              which there are

Of Python, each fault meets the tests that run its line; of SQL, those that read its
statement; the quickest first. What survives is printed, unless docs/mutants.md lists it
with the reason why it changes nothing.

Importing the package and collecting the tests takes seconds, meeting a fault
milliseconds. So one process does the former, and forks one for each fault.
"""

from __future__ import annotations

import argparse
import os
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
    parser.add_argument("--tell", action="store_true", help="say what found each")
    parser.add_argument("--beside", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    mutants = [
        mutant
        for mutant in every_mutant()
        if not options.parts or any(part in str(mutant) for part in options.parts)
    ]
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
    return report(mutants, nursery.survivors)


def every_mutant() -> Iterator[Mutant]:
    """All faults, in the order of the files."""
    for pattern in MODULES:
        for path in sorted((ROOT / "tornado_compas_session").glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            yield from of_python(name, path.read_text(encoding="utf-8"))
    yield from of_sql(SQL, (ROOT / SQL).read_text(encoding="utf-8"))


def report(mutants: list[Mutant], survivors: list[Mutant] | None) -> int:
    """How many were found of each file, and what survives that is not known."""
    if survivors is None:
        print("the tests do not run; see python -m pytest", *TESTS, file=sys.stderr)
        return 1
    faults = Counter(mutant.path for mutant in mutants)
    survived = Counter(mutant.path for mutant in survivors)
    print("| file | faults | found |", "|---|---|---|", sep="\n")
    for path, number in faults.items():
        print(f"| `{path}` | {number} | {number - survived[path]} |")
    known = KNOWN.read_text(encoding="utf-8")
    fresh = [one for one in survivors if f"`{one.path} {one.fault}`" not in known]
    for mutant in fresh:
        print(f"survives: {mutant}")
    return 1 if fresh else 0


if __name__ == "__main__":
    sys.exit(main())
