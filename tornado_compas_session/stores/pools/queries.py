"""
The statements of `schema/queries.sql`, by name.

In the file a statement begins with a line `-- name --`, and has `:name` parameters with
a type (`:handles::text[]`). `-- define name --` begins a part that statements share, as
the head of that file explains. Drivers get a statement as they want it: with `$1` or
with `%(name)s`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

_HEADING = re.compile(r"^-- (define )?([a-z_]+) --$", re.M)
_COMMENT = re.compile(r"--[^\n]*")
_USE = re.compile(r"@(?:(one|many)\.)?([a-z_]+)@")
_VALUE = re.compile(r"\{([a-z_]+)\}")
_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")


class Statement(NamedTuple):
    """One statement in the two spellings that drivers know, with its parameters."""

    name: str
    #: With `$1`, `$2`: one number a parameter.
    numbered: str
    #: With `%(name)s`, and a percent sign doubled.
    named: str
    parameters: tuple[str, ...]


def compile_statement(name: str, sql: str) -> Statement:
    """Makes a statement from SQL with `:name` parameters, numbered as they come."""
    sql = " ".join(_COMMENT.sub("", sql).split()).rstrip(";")
    parameters = tuple(dict.fromkeys(m[1] for m in _PARAMETER.finditer(sql)))
    return Statement(
        name,
        _PARAMETER.sub(lambda m: f"${parameters.index(m[1]) + 1}", sql),
        _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%")),
        parameters,
    )


def schema_dir() -> Path:
    """Where the SQL is: in the installed package, else beside it in a checkout."""
    package = Path(__file__).parents[2]
    inside = package / "schema"
    return inside if inside.is_dir() else package.parent / "schema"


@cache
def statements() -> dict[str, Statement]:
    """All statements of `queries.sql`, by name."""
    parts = _HEADING.split((schema_dir() / "queries.sql").read_text("utf-8"))
    definitions: dict[str, str] = {}
    given: dict[str, str] = {}
    for define, name, sql in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        (definitions if define else given)[name] = _COMMENT.sub("", sql).strip()
    types = dict(each.split() for each in given.pop("types").split(","))

    def fill(sql: str, kind: str = "") -> str:
        def use(match: re.Match[str]) -> str:
            return fill(definitions[match[2]], match[1] or kind)

        def value(match: re.Match[str]) -> str:
            name = match[1]
            return f":{name}::{types[name]}" if kind == "one" else f"c.{name}"

        return _VALUE.sub(value, _USE.sub(use, sql)) if kind else _USE.sub(use, sql)

    found: dict[str, Statement] = {}
    for name, sql in given.items():
        if "@row@" in sql:
            waiting = f"{name}_waiting"
            found[waiting] = compile_statement(waiting, fill(sql))
            sql = sql.replace("@row@", "@row_unlocked@")
        found[name] = compile_statement(name, fill(sql))
    return found
