"""The documentation as data: its blocks of code, its tables, its links."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

_FENCE = re.compile(r"( *)(`{3,})([\w+-]*)(.*)")
_TITLE = re.compile(r'title="([^"]+)"')
#: A block that cannot run says why, in a comment before it.
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
#: A file that the text names: `hello.py`:
_NAMED = re.compile(r"`(\w+\.py)`:$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_ROW = re.compile(r"^\|(.+)\|$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code; `hidden` ones stand in a comment and check what is said."""

    page: Path
    #: The line of the page on which its first line is.
    line: int
    language: str
    text: str
    #: The file that it is.
    file: str | None = None
    #: Why it is not run.
    reason: str | None = None
    hidden: bool = False

    @property
    def quoted(self) -> bool:
        """Whether it is a passage of a file of ours."""
        return self.file is not None and "/" in self.file

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    numbered = iter(enumerate(lines, start=1))
    before = ""
    for number, line in numbered:
        if line.strip() == "<!-- run":
            body = _until(numbered, "-->")
            yield Block(page, number + 1, "python", body, hidden=True)
        elif match := _FENCE.fullmatch(line):
            body = _until(numbered, match[1] + match[2])
            title, named = _TITLE.search(match[4]), _NAMED.search(before)
            marker = _NOT_RUN.fullmatch(before)
            file = title[1] if title else named[1] if named else None
            yield Block(
                page,
                number + 1,
                match[3],
                textwrap.dedent(body),
                file=file if match[3] == "python" else None,
                reason=marker[1] if marker else None,
            )
        if line.strip():
            before = line.strip()


def _until(numbered: Iterator[tuple[int, str]], end: str) -> str:
    body: list[str] = []
    for _, line in numbered:
        if line.rstrip() == end:
            return "\n".join(body) + "\n"
        body.append(line)
    raise ValueError(f"{end!r} is missing")


def prose(page: Path) -> str:
    """The text of a page without its blocks and its comments."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(
        r"^( *)(`{3,})[^`].*?^\1\2$", "", text, flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def links(page: Path) -> list[str]:
    """The targets of the links of a page."""
    return _LINK.findall(prose(page))


def rows(page: Path) -> list[list[str]]:
    """The rows of all tables of a page, heads included, cell by cell."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", match[1])]
        for match in _ROW.finditer(prose(page))
        if not set(match[1]) <= set("-:| ")
    ]


def anchors(page: Path) -> set[str]:
    """What `#…` links can point to: the headings, as Markdown's renderers name them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text)))
    return found | set(re.findall(r'<a id="([^"]+)">', page.read_text("utf-8")))
