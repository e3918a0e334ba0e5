"""`Session`: a mapping of plain values that knows what changed."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta

import pytest
from tornado.escape import json_encode

from tests.factories import make_manager, make_record, make_session
from tornado_compas_session import (
    ResponseAlreadySent,
    SessionDataError,
)
from tornado_compas_session.core.jsondata import encode

STORED = '{"a":1,"b":{"c":[1,2]},"d":"x","user_id":7}'


def stored(data=STORED, **options):
    return make_session(data, **options)


def difference(session):
    return session.ledger.difference(session)


def written(session):
    change = difference(session)
    return dict(change.changed), set(change.removed)


def saved(session, change):
    session.ledger.written(change, session.get("user_id"))


# -- what changed ----------------------------------------------------------------------


def test_untouched_costs_nothing():
    """A session that nobody touched is not even decoded."""
    record = make_record("this is no JSON")
    session = make_manager().session(record)
    session.life.found(record, record.secret_hash)

    assert not session.modified
    assert ({}, set()) == written(session)


def test_reading_is_no_change():
    """Values are handed out, compared at the end, and found equal."""
    session = stored()
    assert {"a": 1, "b": {"c": [1, 2]}, "d": "x", "user_id": 7} == dict(session)
    assert 4 == len(session)
    assert "a" in session
    assert "z" not in session
    assert session.get("z") is None
    assert list(session.items())

    assert not session.modified
    assert ({}, set()) == written(session)


def test_only_what_changed_is_written():
    """Set, removed, and the rest left alone."""
    session = stored()
    session["a"] = 2
    session["new"] = None
    del session["d"]

    assert session.modified
    assert ({"a": "2", "new": "null"}, {"d"}) == written(session)


def test_setting_the_same_value_is_no_change():
    """The values are compared, and not who set them."""
    session = stored()
    session["a"] = 1
    session["b"] = {"c": [1, 2]}
    del session["d"]
    session["d"] = "x"

    assert not session.modified


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s["b"]["c"].append(3),
        lambda s: s["b"].update(x=1),
        lambda s: s["b"]["c"].__setitem__(0, True),
        lambda s: s["b"].pop("c"),
        lambda s: s.get("b").clear(),
        lambda s: next(v for v in s.values() if isinstance(v, dict)).popitem(),
        lambda s: dict(s)["b"].update(y=2),
        lambda s: s.setdefault("b", {}).update(z=3),
        lambda s: next(v for k, v in s.items() if k == "b").update(x=1),
        lambda s: {**s}["b"].update(x=1),
        lambda s: (s | {"z": 1})["b"].update(x=1),
        lambda s: ({"z": 1} | s)["b"].update(x=1),
        lambda s: s.copy()["b"].update(x=1),
        lambda s: copy.copy(s)["b"].update(x=1),
        lambda s: (lambda b, **rest: b.update(x=1))(**s),
        lambda s: s.typed(dict)["b"].update(x=1),
        lambda s: [s[key] for key in reversed(s)][2].update(x=1),
        lambda s: list(s.values())[1]["c"].reverse(),
        lambda s: s.update(b=json.loads(json.dumps(s))["b"] | {"x": 1}),
    ],
)
def test_nested_changes_are_noticed(edit):
    """However the value was reached, a change deep inside is saved (ST-4)."""
    session = stored()
    edit(session)

    assert session.modified
    assert {"b"} == set(written(session)[0])


def test_one_and_true_differ():
    """Values are compared as JSON has them (fault 5 of docs/compas.md)."""
    session = stored()
    session["a"] = True
    assert ({"a": "true"}, set()) == written(session)
    session["a"] = 1.0
    assert ({"a": "1.0"}, set()) == written(session)


def test_a_new_key_that_goes_again_is_no_change():
    """It never was in the store."""
    session = stored()
    session["new"] = 1
    del session["new"]

    assert not session.modified


def test_replacing_writes_exactly_the_new_content():
    """`self.session = {…}`: what is not in it goes."""
    session = stored()
    session.replace({"x": [1]})
    session["y"] = 2
    change = difference(session)

    assert change.exact is not None
    assert {"x": "[1]", "y": "2"} == dict(change.changed)
    assert {"x": [1], "y": 2} == dict(session)


def test_the_dict_that_was_assigned_is_not_kept():
    """Setting a key of it later is not setting one of the session."""
    content = {"x": 1}
    session = stored()
    session.replace(content)
    content["y"] = 2

    assert {"x": 1} == dict(session)


@pytest.mark.parametrize("wrong", [5, "text", [("a", 1)], True, object()])
def test_only_a_mapping_is_content(wrong):
    """Any other type is a TypeError at the assignment, which changes nothing."""
    session = stored()
    with pytest.raises(TypeError, match="a session is a dict with string keys"):
        session.replace(wrong)

    assert not session.modified


@pytest.mark.parametrize("key", [1, None, ("a",), b"a", "a\x00", "\ud800"])
def test_a_wrong_key_is_refused_at_once(key):
    """Where the line is that set it (ST-2)."""
    session = stored()
    with pytest.raises(SessionDataError):
        session[key] = 1
    with pytest.raises(SessionDataError):
        session.replace({key: 1})

    assert not session.modified


def test_a_wrong_value_counts_as_modified():
    """It is not forgotten: saving it raises."""
    session = stored()
    session["a"] = {1, 2}

    assert session.modified
    with pytest.raises(SessionDataError, match="cannot keep a: a set is not JSON"):
        difference(session)


def test_a_missing_key():
    """As with a dict."""
    session = stored()
    with pytest.raises(KeyError):
        session["z"]
    with pytest.raises(KeyError):
        del session["z"]
    assert 5 == session.pop("z", 5)
    assert not session.modified


def test_after_a_save_only_later_changes_are_written():
    """Values handed out before it are watched all the same (ST-4)."""
    session = stored()
    inner = session["b"]["c"]
    session["a"] = 2
    inner.append(3)
    saved(session, difference(session))
    assert not session.modified

    inner.append(4)
    assert ({"b": '{"c":[1,2,3,4]}'}, set()) == written(session)


def test_a_key_from_before_a_replacement_is_written_anew():
    """
    What the row lost by `self.session = {…}` and a save is not believed to be there:
    setting it to the old value once was no change, and was lost.
    """
    session = stored()
    session["d"] = "y"
    session.replace({"a": 1})
    saved(session, difference(session))
    session["d"] = "x"

    assert ({"d": '"x"'}, set()) == written(session)


def test_a_change_during_a_save_stays_a_change():
    """It is written by the next one."""
    session = stored()
    session["a"] = 2
    change = difference(session)
    session["a"] = 3
    saved(session, change)

    assert ({"a": "3"}, set()) == written(session)


def test_a_replacement_during_a_save_stays_one():
    """The content that came later is still to be written."""
    session = stored()
    session.replace({"a": 2})
    change = difference(session)
    session.replace({"z": 1})
    saved(session, change)

    assert difference(session).exact is not None
    assert {"z": "1"} == dict(difference(session).changed)


# -- identity --------------------------------------------------------------------------


def test_new_and_live():
    """A new session has no times, no handle, and nothing to save."""
    new, live = make_session(), stored()

    assert new.is_new
    assert not live.is_new
    assert (None, None, None, None) == (
        new.created_at,
        new.expires,
        new.handle,
        new.auth_time,
    )
    assert datetime.fromtimestamp(1000, UTC) == live.created_at
    assert live.expires is not None
    assert live.expires - live.created_at == timedelta(days=6)
    assert "a" * 12 == live.handle
    assert not new.modified


def test_an_empty_new_session_is_nothing_to_save():
    """Assigning {} to one that is new creates nothing (LC-5)."""
    session = make_session()
    session.replace({})
    assert not session.modified
    session.clear()
    assert not session.modified


def test_destroying_empties_at_once():
    """The mapping is empty and new; the row is remembered for the end."""
    session = stored()
    session.destroy()

    assert session.is_new
    assert {} == dict(session)
    assert session.modified
    assert "a" * 12 == session.life.doomed.handle


def test_destroying_nothing_is_nothing():
    """Fault 12 of docs/compas.md: no delete, no cookie."""
    session = make_session()
    session.destroy()

    assert not session.modified
    assert session.life.doomed is None


def test_destroying_and_starting_anew():
    """The old one ends, and the new one is another session."""
    session = stored()
    session.destroy()
    session["fresh"] = True

    assert session.is_new
    assert "a" * 12 == session.life.doomed.handle
    assert {"fresh": True} == dict(session)


def test_clearing_writes_that_nothing_is_left():
    """
    `clear()` empties the row. Changed: it asks for a new id only where somebody was
    signed in, who is so no more; that is the commit's to see (test_commit.py).
    """
    session = stored()
    session.clear()

    assert {} == dict(session)
    assert session.modified
    assert not session.life.regenerating
    assert difference(session).exact is not None


def test_regenerating_a_new_one_is_nothing():
    """Nobody can know an id that it does not have."""
    session = make_session()
    session.regenerate()

    assert not session.modified


def test_what_needs_a_cookie_comes_before_the_headers():
    """Once they have left: no new session, no new id; data is free (T9)."""
    new, live = make_session(), stored()
    for session in (new, live):
        session.life.headers_left("the headers have left")
    live["a"] = 5
    live.max_age = 60
    del live["d"]
    live.replace({"a": 6, "user_id": 7})

    with pytest.raises(ResponseAlreadySent):
        new["a"] = 1
    with pytest.raises(ResponseAlreadySent):
        new.replace({"a": 1})
    with pytest.raises(ResponseAlreadySent):
        live.regenerate()
    live.destroy()
    assert live.modified


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.__setitem__("user_id", 8),
        lambda s: s.__setitem__("user_id", None),
        lambda s: s.__delitem__("user_id"),
        lambda s: s.pop("user_id"),
        lambda s: s.update(user_id="8"),
        lambda s: s.setdefault("a", s.replace({})),
        lambda s: s.clear(),
    ],
)
def test_who_the_visitor_is_cannot_change_after_the_headers(edit):
    """It needs a new id: the line that asks for it raises, and changes nothing."""
    session = stored()
    session.life.headers_left("the headers have left")
    with pytest.raises(ResponseAlreadySent):
        edit(session)

    assert {"a": 1, "b": {"c": [1, 2]}, "d": "x", "user_id": 7} == session
    assert not session.modified


def test_the_same_user_is_no_other_one():
    """7 and "7" are one user, so nothing is refused once the headers have left."""
    session = stored()
    session.life.headers_left("the headers have left")
    session["user_id"] = "7"
    session["user_id"] = 7
    session.update(session)

    assert not session.modified


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.__setitem__("a", 2),
        lambda s: s.__delitem__("a"),
        lambda s: s.pop("a"),
        lambda s: s.popitem(),
        lambda s: s.update(a=2),
        lambda s: s.setdefault("new", 2),
        lambda s: s.__ior__({"a": 2}),
        lambda s: s.replace({"a": 2}),
        lambda s: s.clear(),
        lambda s: s.destroy(),
        lambda s: s.regenerate(),
        lambda s: setattr(s, "max_age", 60),
        lambda s: setattr(s, "absolute_max_age", 60),
    ],
)
def test_after_the_end_every_change_raises(edit):
    """What comes after `finish()` would be lost, so it says so and changes nothing."""
    session = stored()
    before = dict(session)
    session.life.finish("the response is finished")
    with pytest.raises(ResponseAlreadySent, match="the response is finished"):
        edit(session)

    assert before == session
    assert not session.modified


def test_reading_is_free_after_the_end():
    """And so is ending what does not exist."""
    session, new = stored(), make_session()
    for one in (session, new):
        one.life.finish("the response is finished")
    new.destroy()

    assert 1 == session["a"]
    assert 7 == session.get("user_id")
    assert session.setdefault("a", 5) == 1
    assert {} == new


# -- lifetimes -------------------------------------------------------------------------


def test_lifetimes_follow_the_options():
    """In seconds, or "session"."""
    assert 6 * 86400 == stored().max_age
    assert 60 == stored(max_age=60).max_age
    assert "session" == stored(max_age="session").max_age
    assert stored().absolute_max_age is None
    assert 99 == stored(absolute_max_age=99).absolute_max_age


@pytest.mark.parametrize(
    ("value", "shown", "kept"),
    [
        (60, 60, 60),
        (timedelta(minutes=5), 300, 300),
        ("session", "session", -1800),
        (None, 6 * 86400, None),
    ],
)
def test_own_lifetime(value, shown, kept):
    """A session can have one of its own, as for "remember me"."""
    session = stored()
    session.max_age = value

    assert shown == session.max_age
    assert session.modified
    assert (True, kept) == (session.own_set, session.own_idle)


def test_own_lifetime_can_leave_the_browser_session():
    """A number of seconds makes the cookie outlive the browser again."""
    session = stored(max_age="session")
    session.max_age = 60

    assert 60 == session.max_age


@pytest.mark.parametrize("value", [0, -1, 34_560_001, float("nan")])
def test_a_wrong_lifetime_is_refused_at_once(value):
    """As at start-up (CK-5)."""
    session = stored()
    with pytest.raises(ValueError, match="between 1 second and 400 days"):
        session.max_age = value
    with pytest.raises(ValueError, match="between 1 second and 400 days"):
        session.absolute_max_age = value

    assert not session.modified


def test_a_lifetime_of_another_type_is_refused():
    """ "session" is for `max_age` alone."""
    session = stored()
    with pytest.raises(TypeError):
        session.max_age = "long"
    with pytest.raises(TypeError):
        session.max_age = True
    with pytest.raises(ValueError, match="absolute_max_age is a number of seconds"):
        session.absolute_max_age = "session"

    assert not session.modified


def test_freshness_by_the_stores_clock():
    """A recent sign-in, as the store's clock has it (LC-13)."""
    record = make_record(now=1000.0, authenticated=940.0)
    session = make_manager().session(record)
    session.life.found(record, record.secret_hash)

    assert session.is_fresh(60)
    assert session.is_fresh(timedelta(minutes=1))
    assert not session.is_fresh(59)
    assert not stored().is_fresh(10**9)
    assert not make_session().is_fresh(10**9)


# -- manners ---------------------------------------------------------------------------


def test_a_session_shows_neither_id_nor_data():
    """Its repr ends up in logs (LG-1)."""
    session = stored('{"card":"4111"}')
    session["card"] = "4222"

    assert "<Session live, modified>" == repr(session)
    assert "<Session new>" == repr(make_session())


def test_equality_is_that_of_mappings():
    """With dicts and with sessions; and it is not hashable, as no dict is."""
    assert stored('{"a":1}') == {"a": 1}
    assert stored('{"a":1}') == stored('{"a":1}')
    assert stored('{"a":1}') != {"a": 2}
    assert stored('{"a":1}') != 5
    with pytest.raises(TypeError):
        hash(stored())


def test_unknown_attributes_are_refused():
    """`self.session.counter = 1` would be lost without a word."""
    with pytest.raises(AttributeError):
        stored().counter = 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.__setitem__("user_id", 8),
        lambda s: s.__delitem__("user_id"),
        lambda s: s.pop("user_id"),
        lambda s: s.update(user_id=9),
        lambda s: s.replace({"user_id": 9}),
        lambda s: s.regenerate(),
        lambda s: s.destroy(),
        lambda s: s.clear(),
    ],
)
def test_who_the_visitor_is_may_have_changed(edit):
    """The handler hears of it, because Tornado caches `current_user` (T25)."""
    told = []

    class Handler:
        def _session_changed(self):
            told.append(True)

    session, handler = stored(), Handler()
    session.bind(lambda: handler)
    edit(session)

    assert told


# -- as a dict -------------------------------------------------------------------------


PLAIN = json.loads(STORED)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m | {"a": 2, "z": 1},
        lambda m: {"a": 2, "z": 1} | m,
        lambda m: m | m,
        lambda m: m.copy(),
        copy.copy,
        copy.deepcopy,
        lambda m: list(reversed(m)),
        list,
        lambda m: list(m.items()),
        lambda m: list(m.values()),
        lambda m: {**m},
        lambda m: dict(**m),
        dict,
        json.dumps,
        lambda m: json.dumps(m, sort_keys=True, indent=1),
        json_encode,
        lambda m: m.get("a"),
        lambda m: m.get("z", 5),
        lambda m: "a" in m,
        lambda m: m.keys() & {"a", "z"},
        lambda m: ("a", 1) in m.items(),
        lambda m: isinstance(m, dict),
        bool,
        len,
        lambda m: m == PLAIN,
        lambda m: PLAIN == m,
        lambda m: m != PLAIN,
        lambda m: encode(m),
    ],
)
def test_it_reads_as_a_dict_does(use):
    """Code that takes a dict takes a session, gets the same, and changes nothing."""
    session = stored()

    assert use(dict(PLAIN)) == use(session)
    assert type(use(dict(PLAIN))) is type(use(session))
    assert not session.modified


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update({"a": 2}, z=3),
        lambda m: m.update([("a", 2)]),
        lambda m: m.__ior__({"a": 2, "z": 3}),
        lambda m: m.__ior__([("a", 2)]),
        lambda m: m.pop("a"),
        lambda m: m.pop("z", None),
        lambda m: m.popitem() and None,
        lambda m: m.setdefault("z", []).append(1),
        lambda m: m.setdefault("a", 9),
        lambda m: m.clear(),
    ],
)
def test_it_changes_as_a_dict_does(edit):
    """And what a dict would hold then is what is written."""
    plain, session = dict(PLAIN), stored()
    edit(plain)
    edit(session)
    row = {**PLAIN}
    change = difference(session)
    if change.exact is not None:
        row.clear()
    for key in change.removed:
        del row[key]
    row.update({key: json.loads(text) for key, text in change.changed.items()})

    # `popitem` takes the first one: any will do, as long as it is the same here.
    assert dict(session) == row
    assert len(plain) == len(session)


def test_in_place_or_keeps_the_session():
    """`self.session |= {…}` would otherwise replace its whole content."""
    session = before = stored()
    session |= {"z": 1}

    assert session is before
    assert ({"z": "1"}, set()) == written(session)


def test_or_with_what_is_no_mapping():
    """A TypeError, as with dicts."""
    with pytest.raises(TypeError):
        stored() | [("a", 1)]
    with pytest.raises(TypeError):
        [("a", 1)] | stored()


def test_a_deep_copy_is_free():
    """Nobody edits the session with it."""
    session = stored()
    copy.deepcopy(session)["b"]["c"].append(3)

    assert [1, 2] == session["b"]["c"]
    assert not session.modified


def test_json_of_a_session_nobody_touched():
    """Encoding is often the first that happens to it."""
    record = make_record(STORED)
    session = make_manager().session(record)
    session.life.found(record, record.secret_hash)

    assert json.loads(STORED) == json.loads(json_encode(session.open()))


# -- who the visitor is ----------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [True, False, 1e22, 7.0, [7], {"id": 7}, "", "x" * 256, "x" * 3000, 2**63, b"7"],
)
def test_a_user_that_could_not_be_found_is_refused(value):
    """
    What prints in two ways would be listed and revoked under one and kept under the
    other; what is too long would be a 503 for ever. At the line that sets it.
    """
    for edit in (
        lambda s: s.__setitem__("user_id", value),
        lambda s: s.update(user_id=value),
        lambda s: s.replace({"user_id": value}),
    ):
        session = stored()
        with pytest.raises(SessionDataError, match="user_id"):
            edit(session)
        assert 7 == session["user_id"]
        assert not session.modified
        new = make_session()
        with pytest.raises(SessionDataError, match="user_id"):
            edit(new)
        assert {} == new


@pytest.mark.parametrize(
    ("value", "user"),
    [
        ("7", "7"),
        (7, "7"),
        (-(2**63), str(-(2**63))),
        (2**63 - 1, str(2**63 - 1)),
        ("x" * 255, "x" * 255),
        ("ü€😀", "ü€😀"),
        (None, None),
    ],
)
def test_a_user_is_a_text_or_an_integer(value, user):
    """An int and its text are one user; None is nobody."""
    session = make_session()
    session["user_id"] = value

    assert user == session.user


def test_a_user_that_somebody_else_wrote_is_nobody():
    """A row that holds what cannot be set here breaks neither reading nor changing."""
    session = stored('{"user_id":true,"a":1}')

    assert session.user is None
    session["a"] = 2
    assert ({"a": "2"}, set()) == written(session)
    session["user_id"] = 7
    assert "7" == session.user
