"""Flags, the variables that stand in for them, and what is said of misspelt ones."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

#: The environment twin of a flag is this and the flag's name; but for DATABASE_URL.
PREFIX = "TORNADO_COMPAS_SESSION_"
_TRUE = {"1", "true", "yes", "on"}


class Parser(argparse.ArgumentParser):
    """A parser that knows what was meant, and takes no part of a flag for the whole."""

    def __init__(self, **settings: Any) -> None:
        # Half a word is no consent: `revoke --a` could be a slip.
        super().__init__(**{"allow_abbrev": False, **settings})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, with a hint for a flag that is not known."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser: argparse.ArgumentParser = getattr(found, "parser", self)
            parser.error(f"no such flag: {unknown[0]}{_hint(unknown[0], parser)}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = None if action.choices is None else [*map(str, action.choices)]
        if choices is not None and value not in choices:
            what = "command" if action.metavar == "COMMAND" else "choice"
            hint = did_you_mean(str(value), choices)
            among = hint or f"; there are {', '.join(choices)}"
            raise argparse.ArgumentError(None, f"no such {what}: {value}{among}")

    def error(self, message: str) -> NoReturn:
        """Says it, and where to read on; ends in 2."""
        self.exit(2, f"error: {message}\n  see: {self.prog} -h\n")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the nearest of those that are known; empty if none is near."""
    near = difflib.get_close_matches(word, [*known], n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _hint(word: str, parser: argparse.ArgumentParser) -> str:
    name = word.partition("=")[0]
    known = [name for action in parser._actions for name in action.option_strings]
    return did_you_mean(name, [one for one in known if one.startswith("--")])


class _OfVariable(str):
    """The value of a variable, which a complaint about it names."""

    name: str


def flag(
    parser: Any,
    name: str,
    *short: str,
    twin: str | None = None,
    switch: str | None = None,
    **settings: Any,
) -> None:
    """Adds a flag, and its twin: a variable that stands in for it when it is absent."""
    twin = twin or PREFIX + name.strip("-").replace("-", "_").upper()
    value = _OfVariable(os.environ.get(twin, ""))
    value.name = twin
    if switch is not None:
        settings |= {"action": "store_true", "help": switch}
        settings["default"] = value.strip().lower() in _TRUE
    elif settings.get("action") == "append":
        settings["default"] = value.split()
    elif value:
        settings["default"] = value
    settings["help"] += f" [env: {twin}]"
    parser.add_argument(*short, name, **settings)


# -- what values are allowed -----------------------------------------------------------


def count(text: str) -> int:
    """A whole number, as the value of a flag."""
    return int(_number(text, int, 1, 1_000_000, "a whole number"))


def seconds(text: str) -> float:
    """A length of time, as the value of a flag."""
    return _number(text, float, 0.01, 86_400, "a number of seconds")


def _number(
    text: str, kind: Callable[[str], float], least: float, most: float, what: str
) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = 0
    if not least <= number <= most:
        found = f"{text.name}={text}" if isinstance(text, _OfVariable) else repr(text)
        raise argparse.ArgumentTypeError(
            f"{found} is not {what} between {least} and {most}"
        )
    return number
