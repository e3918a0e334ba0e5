"""What the pages say about the code is what the code says."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, anchors, links, prose, rows
from tornado_compas_session import get_app, session_settings
from tornado_compas_session.settings import OPTIONS, Environment, SessionOptions
from tornado_compas_session.tools.findings import CATALOGUE
from tornado_compas_session.tools.flags import PREFIX

PACKAGE = ROOT / "tornado_compas_session"
ENVIRONMENT = Environment("Shop", ("a-key-for-the-tests-only",), True, "example.com")
#: Their defaults come from the environment, and are said in words.
IN_WORDS = {"key", "domain", "secure"}
#: Arguments of `session_settings` that are no options of the cookie.
ARGUMENTS = {"environ", "on_event", "on_reuse", "store"}


def table(page: str, head: str) -> dict[str, str]:
    """The rows of a page's tables that begin with this head: first cell to second."""
    found: dict[str, str] = {}
    wanted = False
    for cells in rows(DOCS / page):
        if not cells[0].startswith("`"):
            wanted = cells[0] == head
        elif wanted:
            found[cells[0].strip("`")] = cells[1]
    return found


def entries(page: str) -> dict[str, str]:
    """The default that a page states under each heading that has one."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^### (\w+)\n\nDefault: (.+)$", text, re.MULTILINE))


def value(text: str) -> Any:
    """The Python value in a cell: the first text in backticks."""
    names = {"timedelta": timedelta}
    match = re.match(r"`([^`]+)`", text)
    assert match, f"{text!r} is no Python"
    return eval(match[1], names)


# -- options ---------------------------------------------------------------------------


def test_every_option_is_documented():
    """options.md has the options that there are, and no others."""
    assert {*OPTIONS, *ARGUMENTS} == entries("options.md").keys()


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - IN_WORDS))
def test_documented_default_is_the_default(name: str):
    """LC-14: what options.md names as the default is what leaving it out means."""
    stated = value(entries("options.md")[name])
    default = SessionOptions.build(ENVIRONMENT, has_store=True)

    assert stated is not ...
    assert default == SessionOptions.build(
        ENVIRONMENT, has_store=True, **{name: stated}
    )


def test_a_wrong_default_would_be_found():
    """The test above is able to fail, for each of them."""
    default = SessionOptions.build(ENVIRONMENT, has_store=True)
    others: dict[str, Any] = {
        "max_age": timedelta(days=7),
        "renew": 60,
        "path": "/shop",
        "same_site": "strict",
        "previous_keys": ("old",),
        "absolute_max_age": 9,
        "anonymous_max_age": 9,
        "timeout": 9,
        "max_data_size": 999,
        "regenerate_grace": 9,
        "websocket_check": 9,
        "max_sessions_per_user": 9,
    }
    for name in set(OPTIONS) - IN_WORDS:
        was = getattr(default, name)
        wrong = others.get(name, not was)
        needed = {"same_site": "none"} if name == "partitioned" else {}

        assert was != getattr(
            SessionOptions.build(
                ENVIRONMENT, has_store=True, **{name: wrong, **needed}
            ),
            name,
        )


def test_defaults_in_words():
    """The three defaults that come from the environment are what options.md says."""
    production = SessionOptions.build(ENVIRONMENT, has_store=True)
    development = SessionOptions.build(
        Environment("Shop", ("a-key",), False, "example.com"), has_store=True
    )

    assert ("shop.sess", "example.com", True) == (
        production.key,
        production.domain,
        production.secure,
    )
    assert (None, False) == (development.domain, development.secure)


def test_arguments_are_documented():
    """The arguments of session_settings and get_app are in the tables."""
    settings = {
        name: parameter
        for name, parameter in inspect.signature(session_settings).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert ARGUMENTS == settings.keys()

    app = table("handlers.md", "argument")
    parameters = inspect.signature(get_app).parameters
    assert app.keys() == parameters.keys() - {"routes", "store", "options"}
    for name, cell in app.items():
        if name != "headers":
            assert parameters[name].default == value(cell)


def test_every_finding_of_the_doctor_is_documented():
    """cli.md has all that `doctor` can find, and nothing else."""
    cells = table("cli.md", "name")
    documented = {name for cell in cells for name in re.findall(r"[\w-]+", cell)}

    assert CATALOGUE.keys() == documented


# -- environment -----------------------------------------------------------------------


def test_every_variable_is_documented():
    """environment.md names each variable that the library, or the example, reads."""
    read = {"APP_NAME", "APP_KEYS"}
    sources = [*PACKAGE.rglob("*.py"), ROOT / "example_app.py"]
    for source in [*sources, ROOT / "example_server.py"]:
        read |= set(
            re.findall(
                r"environ(?:ment)?(?:\.get|\.setdefault)?[(\[]\"([A-Z][A-Z_]+)\"",
                source.read_text(encoding="utf-8"),
            )
        )
    documented = set(table("environment.md", "variable"))
    text = (DOCS / "environment.md").read_text(encoding="utf-8")

    assert all(name in text for name in read)
    assert PREFIX in text
    read = {name for name in read if not name.startswith("PG")}
    assert read <= documented
    assert documented <= read | {"NODE_ENV", "DATABASE_URL"}


# -- names, links, the reference -------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    """Each relative link is to a file that is there, and each anchor to a heading."""
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_navigation():
    """mkdocs.yml has all pages, and no page that is not there."""
    named = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)

    assert sorted(page.name for page in DOCS.glob("*.md")) == sorted(named)


def test_pages_name_no_machine():
    """No path of anybody's machine is in a page."""
    for page in PAGES:
        assert not re.search(r"/(home|root|Users|work)/", page.read_text()), page.name


def test_the_program_names_pages_by_their_headings():
    """A wheel has no docs/: messages name a heading, which the site's search finds."""
    headings = {
        heading
        for page in DOCS.glob("*.md")
        for heading in re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    }
    for source in PACKAGE.rglob("*.py"):
        texts = [
            node.value
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for text in texts:
            assert "docs/" not in text, source.name
            for named in re.findall(r'"([^"]+)" in\s+the\s+documentation', text):
                assert named in headings, source.name


def test_the_reference_is_up_to_date():
    """docs/reference.md is what the docstrings say now."""
    result = subprocess.run(
        [sys.executable, "scripts/reference.py", "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )

    assert "" == result.stderr
    assert 0 == result.returncode


def test_the_pictures_are_up_to_date():
    """docs/pictures/ has what scripts/pictures.py draws."""
    result = subprocess.run(
        [sys.executable, "scripts/pictures.py", "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )

    assert "" == result.stderr
    assert 0 == result.returncode


# -- the checklist --------------------------------------------------------------------

COUNTS = {
    "ID": 8,
    "CK": 17,
    "LC": 14,
    "SG": 9,
    "ST": 10,
    "CA": 2,
    "CO": 9,
    "WS": 2,
    "LG": 4,
    "AP": 6,
}
CHECKLIST = [
    *(f"{area}-{n}" for area, count in COUNTS.items() for n in range(1, count + 1)),
    "DOC-1",
    *(f"T{n}" for n in range(1, 37)),
    *(f"R{n}" for n in range(1, 27)),
]


def test_every_row_of_the_checklist_is_answered():
    """The page has one row for each, with an answer and its test, or a reason."""
    answered = {
        cells[0]: cells
        for cells in rows(DOCS / "security-checklist.md")
        if re.fullmatch(r"[A-Z]{1,3}-?\d+", cells[0])
    }

    assert sorted(CHECKLIST) == sorted(answered)
    for cells in answered.values():
        assert 3 == len(cells)
        assert cells[1] and cells[2], f"{cells[0]} is not answered"


@pytest.mark.slow
def test_named_tests_exist():
    """Each test that the page names is one of ours, or of the suite for stores."""
    named = set(re.findall(r"`(test_\w+)`", prose(DOCS / "security-checklist.md")))
    defined = {
        node.name
        for path in [
            *(ROOT / "tests").rglob("*.py"),
            *(PACKAGE / "testing/conformance").glob("*.py"),
        ]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert set() == named - defined


def test_what_has_no_test_says_so():
    """A row without the name of a test begins its answer with the reason."""
    for cells in rows(DOCS / "security-checklist.md"):
        if re.fullmatch(r"[A-Z]{1,3}-?\d+", cells[0]) and "`test_" not in cells[2]:
            assert cells[1].startswith("No test: "), cells[0]
