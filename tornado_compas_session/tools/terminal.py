"""How the command line talks: sentences, tables, progress; what it never shows."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Self, TextIO
from unicodedata import east_asian_width
from urllib.parse import parse_qs, unquote, urlsplit

#: To this many characters words stay in one piece where a table is too wide: a handle
#: has twelve, and is there to be copied.
_UNBROKEN = 12
_STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}

Style = Literal["bold", "red", "green", "yellow"]


def say(text: str) -> None:
    """Talk, as opposed to results."""
    if text.startswith("error:"):
        text = styled("error:", "red", sys.stderr) + text.removeprefix("error:")
    print(text, file=sys.stderr)


def ask(question: str) -> bool:
    """Whether somebody at the terminal says yes; without a terminal nobody does."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def styled(text: str, style: Style, stream: TextIO) -> str:
    """The text in a colour, where the stream is a terminal and NO_COLOR is not set."""
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    if os.environ.get("NO_COLOR") or dumb or not stream.isatty():
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def styled_mark(text: str) -> str:
    """The text with its first character, a mark, in the colour of what it says."""
    colour: dict[str, Style] = {"✗": "red", "✓": "green", "!": "yellow"}
    mark = text[:1]
    return styled(mark, colour[mark], sys.stdout) + text[1:] if mark in colour else text


# -- tables ----------------------------------------------------------------------------


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: frozenset[int] = frozenset(),
) -> None:
    """
    A table on stdout; whatever strangers have put into it stays plain text.

    On a terminal it is as wide as that at most: what does not fit goes on below, in its
    column.
    """
    cells = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    limit = shutil.get_terminal_size().columns
    if sys.stdout.isatty() and sum(widths) + 2 * (len(widths) - 1) > limit:
        _squeeze(widths, cells, limit)
    for place, row in enumerate(cells):
        for line in _folded(row, widths):
            shown = "  ".join(
                _aligned(cell, width, right=column in numbers)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            print(shown if place else styled(shown, "bold", sys.stdout))


def _squeeze(widths: list[int], cells: list[list[str]], limit: int) -> None:
    """Takes from the widest column what is too much, but breaks no short word."""
    least = [
        max(min(_UNBROKEN, _width(word)) for word in " ".join(column).split())
        for column in zip(*cells, strict=True)
    ]
    while sum(widths) + 2 * (len(widths) - 1) > limit:
        spare = [width - floor for width, floor in zip(widths, least, strict=True)]
        if max(spare) <= 0:
            break
        widest = max(range(len(widths)), key=lambda i: (spare[i] > 0, widths[i]))
        widths[widest] -= 1
    # Words that are shorter than their column leave room, which the last one can use.
    for place, column in enumerate(zip(*cells, strict=True)):
        pieces = [piece for cell in column for piece in _fold(cell, widths[place])]
        widths[place] = max(map(_width, pieces))
    widths[-1] = max(widths[-1], limit - sum(widths[:-1]) - 2 * (len(widths) - 1))


def _folded(row: list[str], widths: list[int]) -> Iterable[list[str]]:
    """The lines of a row."""
    folded = [_fold(cell, width) for cell, width in zip(row, widths, strict=True)]
    height = max(map(len, folded))
    lines = zip(*(part + [""] * (height - len(part)) for part in folded), strict=True)
    return map(list, lines)


def _fold(cell: str, width: int) -> list[str]:
    """The lines of a cell, broken at blanks: a hyphen is part of a handle or a date."""
    if _width(cell) <= width:
        return [cell]
    return textwrap.wrap(cell, width, break_on_hyphens=False) or [""]


def _aligned(cell: str, width: int, *, right: bool) -> str:
    blanks = " " * (width - _width(cell))
    return blanks + cell if right else cell + blanks


def _width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


# -- progress --------------------------------------------------------------------------


class Progress:
    """
    A bar on stderr for what takes over a second, on a terminal; else nothing.

    Without a `total` it counts.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._started = self._drawn = clock()
        self._done = 0
        self._shown = False

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = self._clock()
        pause = 0.1 if self._shown else 1.0
        if now - self._drawn < pause or not sys.stderr.isatty():
            return
        self._drawn, self._shown = now, True
        print(f"\r\x1b[K{self._line(now)}", end="", file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        minutes, seconds = divmod(int(now - self._started), 60)
        of, bar = "", ""
        if self._total:
            of = f"/{self._total}"
            filled = min(30, 30 * self._done // self._total)
            bar = f"[{'#' * filled}{'.' * (30 - filled)}] "
        return f"{self._what} {bar}{self._done}{of} {minutes}:{seconds:02}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# -- what failed, and what stays secret ------------------------------------------------


def report_failure(error: BaseException, verbose: bool, secrets: list[str]) -> None:
    """What failed, in a sentence, and each cause below; secrets are blotted out."""
    if verbose:
        say(redacted("".join(traceback.format_exception(error)).rstrip(), secrets))
    lines: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(lines) < 10:
        said = str(seen).strip() or type(seen).__name__
        if said not in lines:
            lines.append(said)
        hidden = None if seen.__suppress_context__ else seen.__context__
        seen = seen.__cause__ or hidden
    say(redacted("error: " + "\n  because: ".join(lines), secrets))


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets, and fit for a terminal."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return "\n".join(printable(line) for line in text.splitlines())


def passwords_of(url: str | None) -> list[str]:
    """The passwords in a database's URL, as they stand there and decoded."""
    if not url:
        return []
    try:
        parts = urlsplit(url)
        found = [parts.password or "", *parse_qs(parts.query).get("password", [])]
    except ValueError:
        # Not to be taken apart: then none of it may show.
        return [url]
    if "@" in url and not found[0]:
        # Without a scheme, say; what stands before the host may be a password.
        before = url.rpartition("@")[0]
        found.append(before.rpartition(":")[2] if ":" in before else "")
    return [*found, *(unquote(word) for word in found)]


def printable(text: str) -> str:
    """Without the control characters by which text can take over a terminal."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text
    )


# -- how things are written ------------------------------------------------------------


def moment(when: datetime, *, between: str = "T") -> str:
    """A time as people and programs read it, in UTC."""
    return when.astimezone(UTC).strftime(f"%Y-%m-%d{between}%H:%M:%SZ")


def duration(seconds: float) -> str:
    """A length of time in its largest two units."""
    minutes = int(seconds // 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def data_size(count: int) -> str:
    """A number of bytes, rounded."""
    size, units = float(count), ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
