"""Random edits: what was loaded and the saved change are what the handler had."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from tests.factories import make_manager, make_record
from tornado_compas_session.core.jsondata import encode

MANAGER = make_manager()
KEYS = ("a", "b", "c", "user_id", "ü")


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(10 if depth < 3 else 7)
    if kind == 0:
        return None
    if kind == 1:
        return chance.random() < 0.5
    if kind == 2:
        return chance.randrange(-2, 3)
    if kind == 3:
        return float(chance.randrange(-2, 3))
    if kind < 7:
        return chance.choice(("", "x", 'q"\\', "ü€😀", "0"))
    if kind < 9:
        return {
            chance.choice(KEYS): value(chance, depth + 1)
            for _ in range(chance.randrange(4))
        }
    return [value(chance, depth + 1) for _ in range(chance.randrange(4))]


def user(chance: random.Random) -> Any:
    """What may be a `user_id`."""
    return chance.choice((None, 7, -1, "7", "ü", "x" * 255))


def edit_inside(chance: random.Random, inside: Any) -> None:
    """Changes something at a random depth of a dict or list, or nothing."""
    while isinstance(inside, dict | list) and inside:
        if isinstance(inside, dict):
            at: Any = chance.choice(sorted(inside))
        else:
            at = chance.randrange(len(inside))
        if chance.random() < 0.5:
            step = chance.randrange(3)
            if step == 0:
                inside[at] = value(chance, 2)
            elif step == 1:
                del inside[at]
            return
        inside = inside[at]
    if isinstance(inside, list):
        inside.append(value(chance, 2))
    elif isinstance(inside, dict):
        inside["new"] = value(chance, 2)


def edit(chance: random.Random, session: Any, held: list[Any]) -> None:
    step = chance.randrange(12)
    key = chance.choice(KEYS)
    if step < 3:
        session[key] = user(chance) if key == "user_id" else value(chance)
    elif step == 3:
        session.pop(key, None)
    elif step < 7:
        edit_inside(chance, session.get(key))
    elif step == 7:
        held.append(session.get(key))  # edited later, perhaps after a save
    elif step == 8 and held:
        edit_inside(chance, chance.choice(held))
    elif step == 9:
        key = chance.choice(KEYS)
        session.update({key: user(chance) if key == "user_id" else value(chance)})
    elif step == 10 and chance.random() < 0.2:
        session.replace({key: user(chance) if key == "user_id" else value(chance)})
    else:
        list(session.items())


def apply(stored: dict[str, str], change: Any) -> dict[str, str]:
    """`data = (data - removed) || changed`, or the whole content."""
    if change.exact is not None:
        return dict(change.changed)
    kept = {k: v for k, v in stored.items() if k not in change.removed}
    return {**kept, **change.changed}


def texts(content: Any) -> dict[str, str]:
    return {key: encode(item) for key, item in content.items()}


@pytest.mark.slow
def test_loaded_and_saved_is_what_the_handler_had(long):
    """
    20,000 random sequences of edits, nested ones and late ones included: the stored
    data with the change merged is exactly what the handler had, types and all; and
    what did not change is not written. Issue 2, point 4 (ST-4).
    """
    for seed in range(200_000 if long else 20_000):
        chance = random.Random(seed)
        before = {key: value(chance) for key in KEYS if chance.random() < 0.7}
        record = make_record(json.dumps(before))
        session = MANAGER.session(record)
        session.life.found(record, record.secret_hash)
        session.open()
        stored = texts(before)
        held: list[Any] = []
        for _ in range(chance.randrange(1, 4)):  # requests that save more than once
            for _ in range(chance.randrange(6)):
                edit(chance, session, held)
            change = session.ledger.difference(session)
            after = apply(stored, change)
            assert texts(copy.deepcopy(dict(session))) == after, seed
            if change.exact is None:
                for key, text in change.changed.items():
                    assert stored.get(key) != text, seed
                assert set(change.removed) <= set(stored), seed
            session.ledger.written(change, dict(session).get("user_id"))
            stored = after
