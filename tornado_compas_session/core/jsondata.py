"""
Session data as JSON text: what cannot be kept is refused, with its path.

One function encodes and checks in a single walk, because `json.dumps` alone turns keys
that are no strings into strings without a word, and lets pass what PostgreSQL's jsonb
refuses (NUL, lone surrogates) or changes (a float like 1e23 would come back an int).
"""

from __future__ import annotations

import decimal
import json
import re
from collections.abc import Mapping
from typing import Any

from tornado_compas_session.exceptions import SessionDataError

MAX_DEPTH = 64
# Python refuses to read an integer of more digits (sys.set_int_max_str_digits).
_MAX_INT = 10**4000

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_quote = json.encoder.encode_basestring
_decode = json.JSONDecoder().raw_decode


def encode(value: Any, path: str = "", depth: int = 0) -> str:
    """
    The JSON text of a value, keys sorted, without needless space.

    Equal values give equal texts, so comparing texts compares values (and tells
    1 from True and 1.0). Raises `SessionDataError` naming the path for everything
    that is not JSON or that PostgreSQL cannot keep: NUL, lone surrogates, NaN,
    infinities, integers of over 4,000 digits, keys that are no strings, nesting deeper
    than 64 (which a cycle is), and values of any other type.
    """
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return _encode_str(value, path)
    if isinstance(value, int):
        if not -_MAX_INT < value < _MAX_INT:
            raise SessionDataError(path, "an integer of more than 4,000 digits")
        return int.__repr__(value)
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise SessionDataError(path, "NaN and infinities are not JSON")
        text = float.__repr__(value)
        # jsonb keeps numbers as decimals: 1e+23 would come back as an int.
        return f"{value:.1f}" if "e+" in text else text
    if depth >= MAX_DEPTH:
        raise SessionDataError(
            path[:200], f"nested deeper than {MAX_DEPTH} levels, or contains itself"
        )
    if isinstance(value, Mapping):
        parts = []
        for key in value:
            check_key(key, path)
        for key in sorted(value):
            where = f"{path}.{key}" if path else key
            parts.append(f"{_quote(key)}:{encode(value[key], where, depth + 1)}")
        return "{" + ",".join(parts) + "}"
    if isinstance(value, list | tuple):
        return (
            "["
            + ",".join(
                encode(item, f"{path}[{index}]", depth + 1)
                for index, item in enumerate(value)
            )
            + "]"
        )
    kind = type(value).__name__
    problem = f"a {kind} is not JSON; keep text, a number, a list or a dict"
    raise SessionDataError(path, problem)


def check_key(key: object, path: str = "") -> None:
    """Raises `SessionDataError` unless the key of an object can be kept."""
    if not isinstance(key, str):
        raise SessionDataError(
            path or "this", f"keys are strings, and not {type(key).__name__}"
        )
    _encode_str(key, f"the key {key[:40]!r}" + (f" in {path}" if path else ""))


def _encode_str(value: str, path: str) -> str:
    if not value.isascii() or "\x00" in value:
        found = _UNSTORABLE.search(value)
        if found:
            what = "NUL" if found[0] == "\x00" else "a lone surrogate"
            raise SessionDataError(path, f"PostgreSQL's JSON cannot hold {what}")
    return _quote(value)


def join_object(encoded: Mapping[str, str]) -> str:
    """One JSON object from keys and JSON texts."""
    return "{" + ",".join(f"{_quote(k)}:{v}" for k, v in encoded.items()) + "}"


def decode_object(text: str) -> dict[str, Any]:
    """The dict of a JSON object that `encode` or the database wrote."""
    # As `json.loads`, without its look for white space around it: there is none.
    return _decode(text)[0]  # type: ignore[no-any-return]


def size_of(content: Mapping[str, Any]) -> int:
    """How many bytes its JSON has, as `encode` writes it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "surrogatepass"))


# Digits enough for what `encode` lets pass, so that nothing is ever rounded.
_exactly = decimal.Context(prec=9000, Emax=9000, Emin=-9000)


def add_numbers(*texts: str) -> str:
    """
    The sum of JSON numbers, as PostgreSQL's numeric adds them: as decimals, exactly.

    Raises `ValueError` for a text that is no number.
    """
    total = decimal.Decimal(0)
    for text in texts:
        try:
            total = _exactly.add(total, decimal.Decimal(text))
        except decimal.InvalidOperation:
            raise ValueError("no number") from None
    return format(total, "f")
