"""How the command line talks: sentences, tables, progress; what it never shows."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import unquote


def say(text: str) -> None:
    """Talk, as opposed to results."""
    print(text, file=sys.stderr)


def ask(question: str) -> bool:
    """Whether somebody at the terminal says yes; without a terminal nobody does."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """
    A table on stdout; whatever strangers have put into it stays plain text.

    What is there to be copied belongs into the first column: where a terminal is too
    narrow and breaks a line, that stays in one piece.
    """
    cells = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        shown = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(shown).rstrip())


@contextmanager
def progress(
    what: str, total: int | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """
    A bar on stderr for what takes over a second, on a terminal; else nothing.

    Gives the function to call when so many more are done. Without a `total` it counts.
    """
    started, done, shown = clock(), 0, False

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        seconds = int(clock() - started)
        if seconds < 1 or not sys.stderr.isatty():
            return
        shown = True
        of = f"/{total}" if total else ""
        bar = f"[{'#' * min(30, 30 * done // total):.<30}] " if total else ""
        line = f"{what} {bar}{done}{of} {seconds // 60}:{seconds % 60:02}"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# -- what failed, and what stays secret ------------------------------------------------


def report_failure(error: BaseException, verbose: bool, secrets: list[str]) -> None:
    """What failed, in a sentence, and each cause below; secrets are blotted out."""
    if verbose:
        say(redacted("".join(traceback.format_exception(error)).rstrip(), secrets))
    said: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        said.append(str(seen).strip() or type(seen).__name__)
        hidden = None if seen.__suppress_context__ else seen.__context__
        seen = seen.__cause__ or hidden
    # Once each: a cause may say again what was said above.
    say(redacted("error: " + "\n  because: ".join(dict.fromkeys(said)), secrets))


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets, and fit for a terminal."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return "\n".join(printable(line) for line in text.splitlines())


def passwords_of(url: str) -> list[str]:
    """The passwords in a database's URL, as they stand there and decoded."""
    pairs = re.findall(r"^(?:[^:/]+://)?[^:@/]*:(?!//)(.*)@|[?&]password=([^&]*)", url)
    found = [word for pair in pairs for word in pair]
    return [*found, *map(unquote, found)]


def printable(text: str) -> str:
    """Without the control characters by which text can take over a terminal."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def moment(when: datetime, between: str = "T") -> str:
    """A time as people and programs read it, in UTC."""
    return when.astimezone(UTC).strftime(f"%Y-%m-%d{between}%H:%M:%SZ")
