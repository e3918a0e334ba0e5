"""`Ledger`: what the row holds, against what is there now."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from tornado_compas_session import SessionDataError
from tornado_compas_session.core.change import NOTHING, Difference, Ledger
from tornado_compas_session.core.jsondata import encode, join_object, size_of

Content = dict[str, Any]


class World:
    """
    A row, a ledger of it, and the content that a request edits. What the row has is
    applied as PostgreSQL does: `data = (data - removed) || changed`.
    """

    def __init__(self, row: Content | None) -> None:
        self.row: dict[str, str] = {} if row is None else texts(row)
        self.ledger = Ledger(None if row is None else encode(row))
        self.content: Content = self.ledger.decode()
        #: What is being written, and is not known to be there yet.
        self.under_way: Difference | None = None
        #: A list in the content that the request still holds.
        self.held: list[Any] | None = None

    # -- what a request does -----------------------------------------------------------

    def set(self, key: str, value: Any) -> None:
        self.ledger.note(key, self.content)
        self.content[key] = value

    def remove(self, key: str) -> None:
        if key in self.content:
            self.ledger.note(key, self.content)
            del self.content[key]

    def edit(self, key: str) -> None:
        """Changes a list that was handed out, or makes one."""
        self.ledger.note(key, self.content)
        value = self.content.setdefault(key, [])
        if isinstance(value, list):
            value.append(len(value))
            self.held = value

    def give(self, key: str) -> None:
        """Sets a list, and goes on holding it."""
        self.held = []
        self.set(key, self.held)

    def edit_later(self) -> None:
        """Changes the list that it holds, without asking for it again."""
        if self.held is not None:
            self.held.append(len(self.held))

    def replace(self, content: Content) -> None:
        self.ledger.replace()
        self.content.clear()
        self.content.update(copy.deepcopy(content))

    # -- what the commit does ----------------------------------------------------------

    def difference(self) -> Difference:
        return self.ledger.difference(self.content)

    def begin(self) -> None:
        if self.under_way is None:
            self.under_way = self.difference()

    def end(self) -> None:
        """The write is in the row, and its answer has come."""
        if self.under_way is not None:
            self.row = merged(self.row, self.under_way)
            self.ledger.written(self.under_way, None)
            self.under_way = None

    # -- what must hold ----------------------------------------------------------------

    def check(self) -> None:
        """The row and what is still to be written are the content, and no more."""
        if self.under_way is not None:
            return
        quiet = self.ledger.untouched
        difference = self.difference()
        assert not (quiet and difference), "a change would be forgotten"
        assert texts(self.content) == merged(self.row, difference)
        if difference.exact is None:
            for key, text in difference.changed.items():
                assert self.row.get(key) != text, f"{key} is written for nothing"
            assert set(difference.removed) <= self.row.keys()
        size = len(join_object(merged(self.row, difference)).encode())
        assert size <= self.ledger.at_most(difference)


def texts(content: Content) -> dict[str, str]:
    return {key: encode(value) for key, value in content.items()}


def merged(row: dict[str, str], difference: Difference) -> dict[str, str]:
    if difference.exact is not None:
        return dict(difference.changed)
    kept = {key: row[key] for key in row if key not in difference.removed}
    return {**kept, **difference.changed}


STEPS: list[Callable[[World], None]] = [
    lambda world: world.set("a", 1),
    lambda world: world.set("a", 2),
    lambda world: world.remove("a"),
    lambda world: world.edit("b"),
    lambda world: world.give("b"),
    World.edit_later,
    lambda world: world.set("ü", "€"),
    lambda world: world.replace({"b": [0]}),
    lambda world: world.replace({}),
    World.begin,
    World.end,
]
#: A row, an empty row, and none.
ROWS: list[Content | None] = [{"a": 1, "b": [0], "z": {"y": None}}, {}, None]


def run(row: Content | None, steps: Any) -> World:
    world = World(row)
    for step in steps:
        step(world)
        world.check()
    world.end()
    world.check()
    # Written until nothing is left, as the commit does: twice is always enough.
    for _ in range(2):
        world.begin()
        world.end()
    quiet = world.ledger.untouched
    assert not world.difference()
    assert texts(world.content) == world.row
    if not any(isinstance(value, list | dict) for value in world.content.values()):
        assert quiet, "nothing is looked for where nothing can have changed"
    return world


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=["stored", "empty", "new"])
def test_every_order_of_a_few_edits(row: Content | None, long: bool) -> None:
    """
    In each order of sets, removals, nested edits, replacements, and writes that begin
    and end anywhere between them: row and difference together are the content, nothing
    is written that the row has, and the size is exact to the byte.
    """
    for steps in itertools.product(STEPS, repeat=5 if long else 4):
        run(row, steps)


@pytest.mark.parametrize("row", ROWS, ids=["stored", "empty", "new"])
def test_random_long_stories(row: Content | None, long: bool) -> None:
    """The same for hundreds of longer ones."""
    for seed in range(20_000 if long else 300):
        chance = random.Random(seed)
        run(row, [chance.choice(STEPS) for _ in range(chance.randrange(5, 25))])


# -- the stories that went wrong once --------------------------------------------------


def test_nothing_touched_is_nothing():
    """Not even decoded, and no difference is made up."""
    ledger = Ledger("this is no JSON")

    assert ledger.untouched
    assert not ledger.difference({})
    assert not NOTHING


def test_whatever_may_change_is_touched():
    """A value that is handed out, and a replacement."""
    noted, replaced = Ledger("{}"), Ledger("{}")
    noted.note("a", {})
    replaced.replace()

    assert not noted.untouched
    assert not replaced.untouched


def test_a_row_that_was_made_meanwhile_can_be_replaced():
    """Without a row there is nothing to be rid of; once it is there, there is."""
    world = World(None)
    world.replace({"a": 1})
    assert world.difference().exact is None
    world.begin()
    world.end()
    world.replace({"b": 1})

    assert world.difference().exact is not None


def test_a_renewal_leaves_what_was_not_yet_read():
    """The row was written without a look at its content."""
    ledger = Ledger('{"a":1}')
    ledger.written(ledger.difference({}), None)

    assert {"a": 1} == ledger.decode()


def test_a_row_that_was_read_again_is_another():
    """Its content, its size, its user; what was changed here is still to come."""
    world = World({"a": 1, "user_id": 7})
    world.set("a", 2)
    world.ledger.reread('{"a":2,"user_id":"ada","more":true}')

    assert not world.difference()
    assert "ada" == world.ledger.user
    assert 35 == world.ledger.stored
    assert {"a": 2, "user_id": "ada", "more": True} == world.ledger.decode()


def test_a_key_added_while_a_replacement_is_being_saved():
    """It was no part of what was written, so it is to come; and so is a removal."""
    world = World({"a": 1})
    world.replace({"b": 1, "c": 1})
    world.begin()
    world.set("new", 2)
    world.remove("c")
    world.end()

    assert ({"new": "2"}, ("c",)) == world.difference()[:2]
    assert world.difference().exact is None


def test_a_replacement_while_a_replacement_is_being_saved():
    """The later one is exact as well: keys of the one before do not stay."""
    world = World({"a": 1})
    world.replace({"b": 1})
    world.begin()
    world.replace({"c": 1})
    world.end()

    assert {"c": "1"} == world.difference().changed
    assert world.difference().exact is not None


def test_a_replacement_while_a_change_is_being_saved():
    """What was being written goes with the rest."""
    world = World({"a": 1})
    world.set("b", 1)
    world.begin()
    world.replace({"c": 1})
    world.end()

    assert {"c": "1"} == world.difference().changed
    assert world.difference().exact is not None


def test_a_change_undone_while_it_is_being_saved():
    """The old value is a change again, since the row has the new one."""
    world = World({"a": 1})
    world.set("a", 2)
    world.begin()
    world.set("a", 1)
    world.end()

    assert {"a": "1"} == world.difference().changed


def test_a_removal_undone_while_it_is_being_saved():
    """The key is to be written anew."""
    world = World({"a": 1})
    world.remove("a")
    world.begin()
    world.set("a", 1)
    world.end()

    assert {"a": "1"} == world.difference().changed


def test_a_value_handed_out_before_a_save_is_watched_after_it():
    """A list that the handler still holds."""
    world = World({"b": [0]})
    world.edit("b")
    held = world.content["b"]
    world.begin()
    world.end()
    assert not world.difference()
    assert not world.ledger.untouched
    held.append("late")

    assert {"b": '[0,1,"late"]'} == world.difference().changed


def test_a_value_of_a_replacement_is_watched_after_it():
    """As the row has no other keys, all of them are compared."""
    world = World({"a": 1})
    inner = {"b": [1]}
    world.ledger.replace()
    world.content.clear()
    world.content.update(inner)
    world.begin()
    world.end()
    assert not world.difference()
    inner["b"].append(2)

    assert {"b": "[1,2]"} == world.difference().changed


def test_an_increment_is_known_to_be_there():
    """What another statement has written is not written again."""
    world = World({"n": 1})
    world.content["n"] = 5
    world.ledger.holds("n", "5")

    assert not world.difference()
    world.set("n", 1)
    assert {"n": "1"} == world.difference().changed
    world.ledger.holds("n", "1")
    assert not world.difference()


def test_a_replacement_by_the_same_is_still_one():
    """Another request may have added a key meanwhile, which is to go."""
    world = World({"a": 1})
    world.replace({"a": 1})

    assert world.difference()
    assert {"a": "1"} == world.difference().changed


def test_a_write_that_failed_is_still_to_come():
    """Nothing is forgotten until it is known to be there."""
    world = World({"a": 1})
    world.set("a", 2)
    world.begin()
    world.under_way = None  # an exception
    assert {"a": "2"} == world.difference().changed
    world.replace({"b": 1})
    world.begin()
    world.under_way = None

    assert world.difference().exact is not None


def test_what_cannot_be_kept_names_its_key():
    """Changed or replaced; and nothing is believed to be written."""
    world = World({"a": 1})
    world.set("b", {"c": {1}})
    with pytest.raises(SessionDataError, match=r"cannot keep b\.c: a set"):
        world.difference()
    world.replace({"b": object()})
    with pytest.raises(SessionDataError, match="cannot keep b: a object"):
        world.difference()


# -- sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["a", "with space", "1", "ü", "€", "😀", 'q"uote', "back\\slash", "\n", ""]
)
@pytest.mark.parametrize("before", [{}, {"other": 1}, None], ids=repr)
@pytest.mark.parametrize("value", ["", "x" * 50, "ü€😀", {"k": [1.5]}], ids=repr)
def test_the_cheap_size_is_never_too_small(
    key: str, before: Content | None, value: Any
) -> None:
    """Set, set again, removed: of each kind of key and value (ST-3)."""
    world = World(before)
    for edit in (
        lambda: world.set(key, value),
        lambda: world.set(key, [value, value]),
        lambda: world.remove(key),
        lambda: world.set(key, 1),
        lambda: world.replace({key: value}),
    ):
        edit()
        size = len(encode(world.content).encode())
        assert size == size_of(world.content)
        assert size <= world.ledger.at_most(world.difference())
        world.begin()
        world.end()
        assert size <= world.ledger.at_most(NOTHING)
