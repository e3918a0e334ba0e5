"""The statements by name, in the two spellings that drivers know."""

from __future__ import annotations

import re

import pytest

from tornado_compas_session.stores.pools.queries import (
    compile_statement,
    schema_dir,
    statements,
)


def test_parameters_are_numbered_as_they_come():
    """A name that comes twice is one parameter."""
    statement = compile_statement(
        "x", "SELECT :b::int, :a::text -- and :c\n WHERE x = :b AND y LIKE '50%';"
    )

    assert "SELECT $1::int, $2::text WHERE x = $1 AND y LIKE '50%'" == (
        statement.numbered
    )
    assert "SELECT %(b)s::int, %(a)s::text WHERE x = %(b)s AND y LIKE '50%%'" == (
        statement.named
    )
    assert ("b", "a") == statement.parameters


def test_a_cast_is_no_parameter():
    """`data::text` and `now()::date` are left alone."""
    assert () == compile_statement("x", "SELECT data::text, now()::date").parameters


@pytest.mark.parametrize("name", sorted(statements()))
def test_every_statement_is_complete(name):
    """Nothing is left to be filled in, and each is one statement (ID-5)."""
    statement = statements()[name]

    assert ";" not in statement.numbered
    assert "@" not in re.sub(r"[<>]@", "", statement.numbered)
    assert not re.search(r"(?<!:):[a-z]", statement.numbered)
    assert set(statement.parameters) == set(re.findall(r"%\((\w+)\)s", statement.named))


def test_only_creating_inserts_and_it_never_overwrites():
    """No statement can bring back what was deleted (LC-3, ID-6)."""
    for name, statement in statements().items():
        sql = statement.numbered.upper()
        assert ("INSERT" in sql) == (name in {"create_session", "create_sessions"})
        assert ("ON CONFLICT DO NOTHING" in sql) == ("INSERT" in sql)
        assert "DO UPDATE" not in sql


def test_every_write_asks_whether_the_session_is_live():
    """One predicate for expiry, in each statement that reads or writes one (LC-8)."""
    names = {
        *("load_session", "load_sessions", "lock_session", "sessions_of"),
        *("revoke", "revoke_waiting", "revoke_user", "revoke_user_unlocked"),
        *("save_sessions", "increment_sessions", "surplus_sessions"),
    }
    for verb in ("save", "increment", "regenerate", "delete"):
        names |= {f"{verb}_session", f"{verb}_session_waiting"}
    for name in names:
        assert "expires_at > now()" in statements()[name].numbered, name


def test_every_write_is_under_an_epoch():
    """What began before a sign-in or sign-out finds nothing (DESIGN.md, 3a)."""
    names = {"save_sessions", "increment_sessions"}
    for verb in ("save", "increment", "regenerate", "delete"):
        names |= {f"{verb}_session", f"{verb}_session_waiting"}
    for name in names:
        assert re.search(r"\.epoch = ", statements()[name].numbered), name


def test_only_a_new_secret_moves_the_identity():
    """Neither user, secret nor epoch is set by a write of data; only by its owner."""
    for name, statement in statements().items():
        sets = re.findall(
            r"(?<![.\w])(user_id|secret_hash|epoch) = ", statement.numbered
        )
        if name.startswith("regenerate_session"):
            assert ["epoch", "secret_hash", "user_id"] == sorted(sets)
            assert "s.secret_hash = $" in statement.numbered
        else:
            assert [] == sets, name


def test_whoever_is_batched_waits_for_nobody():
    """A row that is locked is left out; only the one by one `_waiting` waits for it."""
    for name, statement in statements().items():
        sql = statement.numbered
        if name.endswith("_sessions") and "UPDATE compas_session s" in sql:
            assert "SKIP LOCKED" in sql, name
        if name.endswith("_waiting"):
            assert "SKIP LOCKED" not in sql
            assert "SKIP LOCKED" in statements()[name.removesuffix("_waiting")].numbered


def test_the_schema_is_beside_the_package_or_in_it():
    """A checkout and a wheel both find their SQL."""
    assert (schema_dir() / "queries.sql").is_file()
    assert list((schema_dir() / "migrations").glob("*.sql"))
