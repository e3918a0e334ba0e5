"""How the command line talks: tables, progress, sentences for failures."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

#: Columns where nobody looks: wide enough that nothing is cut for a program.
_WIDE = 250


def say(text: str) -> None:
    """Talk, as opposed to results."""
    print(text, file=sys.stderr)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: frozenset[int] = frozenset(),
) -> None:
    """A table on stdout; whatever strangers have put into it stays plain text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(columns):
        side: Any = "right" if place in numbers else "left"
        table.add_column(name, justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row))
    console.print(table)


class Progress:
    """
    A bar on stderr for what takes over a second, on a terminal; else nothing.

    Without a `total` it counts.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total = what, total
        self._started = time.monotonic()
        self._done = 0
        self._bar: Any = None

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is None:
            if not sys.stderr.isatty() or time.monotonic() - self._started < 1:
                return
            self._start()
        self._bar.update(self._task, completed=self._done)

    def _start(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._what, total=self._total)
        self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


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


def moment(when: datetime) -> str:
    """A time as people and programs read it, in UTC."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
