"""What the doctor says: one finding, in three parts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from tornado_compas_session.tools.terminal import redacted

#: A problem keeps sessions from being kept, or soon will; advice is worth a thought.
Level = Literal["problem", "advice", "good"]
_MARKS = {"problem": "✗", "advice": "!", "good": "✓"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor has seen."""

    level: Level
    #: Its short name, the same every time.
    name: str
    #: What is the case.
    what: str
    #: Why it matters; empty where all is well.
    why: str = ""
    #: What to do about it.
    fix: str = ""

    def as_text(self, secrets: Iterable[str] = ()) -> str:
        """For people, without the secrets."""
        lines = [f"{_MARKS[self.level]} {self.name}: {self.what}"]
        lines += [f"    why: {self.why}"] if self.why else []
        lines += [f"    fix: {self.fix}"] if self.fix else []
        wrapped = (
            textwrap.fill(line, 88, subsequent_indent=" " * (4 if i == 0 else 9))
            for i, line in enumerate(lines)
        )
        return redacted("\n".join(wrapped), secrets)

    def as_dict(self, secrets: Iterable[str] = ()) -> dict[str, str]:
        """For programs, without the secrets."""
        return {name: redacted(text, secrets) for name, text in asdict(self).items()}


def problem(name: str, what: str, why: str, fix: str) -> Finding:
    """Something that keeps sessions from being kept."""
    return Finding("problem", name, what, why, fix)


def advice(name: str, what: str, why: str, fix: str) -> Finding:
    """Something that is worth a thought."""
    return Finding("advice", name, what, why, fix)


def good(name: str, what: str) -> Finding:
    """Something that is as it should be."""
    return Finding("good", name, what)
