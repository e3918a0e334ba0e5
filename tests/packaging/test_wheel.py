"""What is built is what was meant: tested from the wheel, not from the tree."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes, message_from_string
from email.message import Message
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGE = "tornado_compas_session"
SQL = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "schema").rglob("*.sql")
)

WITHOUT_DRIVERS = """
import sys

DRIVERS = {"asyncpg", "psycopg", "psycopg_pool", "psycopg2", "momoko"}

class NoDriver:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in DRIVERS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoDriver())
from tornado_compas_session import *
import tornado_compas_session
print(tornado_compas_session.__file__)
"""

#: Everything but what tests need, where nothing is installed but what is required.
REQUIRED_ONLY = """
import importlib, pkgutil, sys

KNOWN = {"asyncpg", "tornado", "tornado_compas_session", *sys.stdlib_module_names}

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in KNOWN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
import tornado_compas_session as package
for module in pkgutil.walk_packages(package.__path__, "tornado_compas_session."):
    _, wing, *rest = module.name.split(".")
    if wing not in {"__main__", "testing"} and rest[:1] != ["pools"]:
        importlib.import_module(module.name)
from tornado_compas_session.tools.cli import main
sys.exit(main(["keygen"]))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed, run away from the checkout."""
    result = subprocess.run(
        command,
        cwd=cwd,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert 0 == result.returncode, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("CHANGELOG.md", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in (PACKAGE, "schema"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    # Without isolation: setuptools is here, and nothing has to be fetched.
    run(sys.executable, "-m", "build", "--no-isolation", source, cwd=folder)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The programs of a fresh virtual environment that has the wheel.

    The dependencies are lent by the environment of the tests. Only they are: the
    checkout itself must not be found.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    run(
        *(sys.executable, "-m", "pip", "--python", programs / "python"),
        *("install", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Plain lines: unlike site.addsitedir, these do not run the .pth file of the
    # editable install, which would bring the checkout back.
    lent = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "lent.pth").write_text("\n".join(lent))
    return programs


def test_wheel_has_the_schema_and_the_types(wheel: Path) -> None:
    """The wheel holds every SQL file, inside the package, and py.typed."""
    names = zipfile.ZipFile(wheel).namelist()

    assert SQL == sorted(
        name.removeprefix(f"{PACKAGE}/") for name in names if name.endswith(".sql")
    )
    assert f"{PACKAGE}/py.typed" in names


def test_wheel_has_every_module_and_nothing_else(wheel: Path) -> None:
    """The modules of the package, and no tests, examples or leftovers."""
    modules = sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py")
    )
    names = [
        name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name
    ]

    assert modules == sorted(name for name in names if name.endswith(".py"))
    assert {PACKAGE} == {name.split("/")[0] for name in names}


def test_source_distribution_can_build(built: Path) -> None:
    """The source distribution holds what the wheel was built from."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as archived:
        names = {name.partition("/")[2] for name in archived.getnames()}

    assert set() == {*SQL, "LICENSE", "pyproject.toml", "setup.py"} - names


def metadata_with(address: str, tmp_path: Path) -> Message:
    """What a package says of itself once setup.py has this address."""
    for name in ("README.md", "setup.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r'^ADDRESS = ".*"$', f'ADDRESS = "{address}"', text, flags=re.M)
        (tmp_path / name).write_text(text, encoding="utf-8")
    run(sys.executable, "setup.py", "-q", "dist_info", cwd=tmp_path)
    [folder] = tmp_path.glob("*.dist-info")
    return message_from_string((folder / "METADATA").read_text(encoding="utf-8"))


def test_links_are_absolute_once_there_is_an_address(tmp_path: Path) -> None:
    """Whoever reads the README at a registry can follow each of its links."""
    metadata = metadata_with("https://example.com/sessions", tmp_path)
    links = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))

    assert "https://example.com/sessions/blob/main/docs/quickstart.md" in links
    assert "https://example.com/sessions/blob/main/SECURITY.md" in links
    assert [] == [link for link in links if not link.startswith("https://")]
    assert "Source, https://example.com/sessions" in metadata.get_all("Project-URL", [])


def test_links_are_those_of_the_readme_without_an_address(tmp_path: Path) -> None:
    """No link leads to an address that nobody has."""
    metadata = metadata_with("", tmp_path)

    assert (
        str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text().strip()
    )
    assert [] == metadata.get_all("Project-URL", [])


def test_tornado_and_asyncpg_are_all_that_is_required(wheel: Path) -> None:
    """What else there is, users choose; what developers need is not published."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    needed = {
        re.split(r"[^\w-]", requirement)[0]
        for requirement in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in requirement
    }

    assert {"asyncpg", "tornado"} == needed
    assert ["embedded", "psycopg", "test"] == sorted(
        metadata.get_all("Provides-Extra", [])
    )


def test_library_and_command_run_with_what_is_required(
    installed: Path, tmp_path: Path
) -> None:
    """Tables, progress and the doctor need no package of their own."""
    printed = run(installed / "python", "-c", REQUIRED_ONLY, cwd=tmp_path)

    assert re.search(r"^[\w-]{43}$", printed, re.MULTILINE)


def test_wheel_imports_without_a_driver(installed: Path, tmp_path: Path) -> None:
    """The installed package, not the checkout, imports where no driver is found."""
    place = run(installed / "python", "-c", WITHOUT_DRIVERS, cwd=tmp_path)

    assert place.startswith(str(installed.parent))


def test_installed_command_prints_the_migrations(
    installed: Path, tmp_path: Path
) -> None:
    """`migrate --print` finds the SQL in the wheel, and asks no database."""
    printed = run(
        installed / "tornado-compas-session", "migrate", "--print", cwd=tmp_path
    )

    for path in sorted((ROOT / "schema" / "migrations").glob("*.sql")):
        assert path.read_text().strip() in printed


def test_module_is_the_command(installed: Path, tmp_path: Path) -> None:
    """`python -m tornado_compas_session` does the same as the command."""
    command = run(
        installed / "tornado-compas-session", "migrate", "--print", cwd=tmp_path
    )
    module = run(
        *(installed / "python", "-m", PACKAGE, "migrate", "--print"), cwd=tmp_path
    )

    assert command == module
