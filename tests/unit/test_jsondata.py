"""What a session can hold: JSON, checked before anything is sent."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from datetime import datetime
from decimal import Decimal
from enum import IntEnum

import pytest

from tornado_compas_session import SessionDataError
from tornado_compas_session.core.jsondata import (
    MAX_DEPTH,
    decode_object,
    encode,
    join_object,
)


class Colour(IntEnum):
    RED = 1


class Text(str):
    pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (2**200, str(2**200)),
        (Colour.RED, "1"),
        (1.5, "1.5"),
        (1.0, "1.0"),
        (1e23, "99999999999999991611392.0"),
        (1e-9, "1e-09"),
        ("", '""'),
        (Text("a"), '"a"'),
        ('"\\/\n\x7f', '"\\"\\\\/\\n\x7f"'),
        ("zürich €😀", '"zürich €😀"'),
        ([], "[]"),
        ((1, "2"), '[1,"2"]'),
        ({}, "{}"),
        ({"b": [1, {"c": None}], "a": True}, '{"a":true,"b":[1,{"c":null}]}'),
        (OrderedDict(b=1, a=2), '{"a":2,"b":1}'),
    ],
)
def test_encodes(value, text):
    """One text for one value, keys sorted, and json reads it back (ST-1)."""
    assert text == encode(value)
    decoded = json.loads(text)
    assert decoded == (list(value) if isinstance(value, tuple) else value)
    if isinstance(value, float):
        assert isinstance(decoded, float)


class Evil:
    def __reduce__(self):
        raise AssertionError("it was pickled")


deep: list[object] = []
for _ in range(MAX_DEPTH + 1):
    deep = [deep]
cycle: list[object] = []
cycle.append(cycle)


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        ("a\x00b", "it", "NUL"),
        ("\ud800", "it", "surrogate"),
        ("x\udfffy", "it", "surrogate"),
        (math.nan, "it", "NaN"),
        (math.inf, "it", "infinities"),
        (-math.inf, "it", "infinities"),
        (10**4001, "it", "4,000 digits"),
        (-(10**4001), "it", "4,000 digits"),
        ({1: 2}, "it", "keys are strings, and not int"),
        ({None: 2}, "it", "keys are strings, and not NoneType"),
        ({"a": {("x",): 1}}, "it.a", "keys are strings, and not tuple"),
        ({"a\x00": 1}, "the key", "NUL"),
        ({"\ud800": 1}, "the key", "surrogate"),
        ({"items": [1, 2, {"price": math.nan}]}, "it.items[2].price", "NaN"),
        (Evil(), "it", "a Evil is not JSON"),
        ({1, 2}, "it", "a set is not JSON"),
        (b"bytes", "it", "a bytes is not JSON"),
        (datetime(2020, 1, 1), "it", "a datetime is not JSON"),
        (Decimal("1.5"), "it", "a Decimal is not JSON"),
        (object, "it", "a type is not JSON"),
        (deep, "it", "nested deeper than 64"),
        (cycle, "it", "contains itself"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else ascii(value)[:30],
)
def test_refuses_with_the_path(value, path, problem):
    """What JSON or PostgreSQL cannot keep is named by its place (ST-1, ST-2)."""
    with pytest.raises(SessionDataError) as caught:
        encode(value, "it")

    assert problem in str(caught.value)
    assert caught.value.path.startswith(path)
    assert isinstance(caught.value, ValueError)


def test_the_value_is_not_shown():
    """A message names the place and never the value, which may be secret."""
    with pytest.raises(SessionDataError) as caught:
        encode({"card": "4111-1111\x00"}, "pay")

    assert "pay.card" == caught.value.path
    assert "4111" not in str(caught.value)


def test_the_deepest_that_is_allowed():
    """64 levels are kept and come back (ST-2)."""
    value: list[object] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]

    assert value == json.loads(encode(value))


def test_the_largest_integer_that_is_allowed():
    """Python reads what was written, in spite of its limit on digits (ST-2)."""
    value = 10**4000 - 1

    assert {"n": value} == decode_object(join_object({"n": encode(value)}))


def test_equal_texts_are_equal_values():
    """1, 1.0 and True are three values, as in JSON."""
    assert 3 == len({encode(1), encode(1.0), encode(True)})
