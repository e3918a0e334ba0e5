"""Flags, and the variables that stand in for them."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from functools import partial
from typing import Any

#: The environment twin of a flag is this and the flag's name; but for DATABASE_URL.
PREFIX = "TORNADO_COMPAS_SESSION_"
_TRUE = {"1", "true", "yes", "on"}


def flag(parser: argparse.ArgumentParser, *names: str, help: str, **how: Any) -> None:
    """Adds a flag, and its twin: a variable that stands in for it when it is absent."""
    twin = _twin(names[-1])
    given = os.environ.get(twin, "")
    if how.get("action") == "store_true":
        how["default"] = given.strip().lower() in _TRUE
    elif how.get("action") == "append":
        how["default"] = given.split()
    elif given:
        how["default"] = given
    parser.add_argument(*names, help=f"{help} [env: {twin}]", **how)


switch = partial(flag, action="store_true")


def number(
    parser: argparse.ArgumentParser,
    name: str,
    default: float,
    *,
    least: float = 1,
    most: float = 1_000_000,
    help: str,
) -> None:
    """Adds a flag that takes a number of the kind of its default."""

    def check(text: str) -> float:
        with suppress(ValueError):
            if least <= (value := type(default)(text)) <= most:
                return value
        whole = "whole " if isinstance(default, int) else ""
        source = (
            f"{_twin(name)}={text}"
            if text == os.environ.get(_twin(name))
            else repr(text)
        )
        raise argparse.ArgumentTypeError(
            f"{source} is not a {whole}number between {least} and {most}"
        )

    flag(
        parser,
        name,
        type=check,
        default=default,
        help=f"{help} ({default:g})",
        metavar="NUMBER",
    )


def _twin(name: str) -> str:
    plain = name.strip("-").replace("-", "_").upper()
    return plain if plain == "DATABASE_URL" else PREFIX + plain
