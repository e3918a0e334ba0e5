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
    """A name that comes twice is one parameter for `$1`, and two places for `%s`."""
    statement = compile_statement(
        "x", "SELECT :b::int, :a::text -- and :c\n WHERE x = :b AND y LIKE '50%';"
    )

    assert "SELECT $1::int, $2::text WHERE x = $1 AND y LIKE '50%'" == (
        statement.numbered
    )
    assert "SELECT %s::int, %s::text WHERE x = %s AND y LIKE '50%%'" == (
        statement.formatted
    )
    assert ("b", "a") == statement.parameters
    assert ["B", "A", "B"] == statement.spread(("B", "A"))


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
    assert len(statement.order) == statement.formatted.count("%s")


def test_only_creating_inserts_and_it_never_overwrites():
    """No statement can bring back what was deleted (LC-3, ID-6)."""
    for name, statement in statements().items():
        sql = statement.numbered.upper()
        assert ("INSERT" in sql) == (name == "create_sessions")
        assert "DO UPDATE" not in sql


def test_every_write_asks_whether_the_session_is_live():
    """One predicate for expiry, in each statement that reads or writes one (LC-8)."""
    for name in ("load_sessions", "lock_session", "save_sessions", "save_session"):
        assert "expires_at > now()" in statements()[name].numbered
    assert "expires_at > now()" in statements()["regenerate_session"].numbered


def test_the_schema_is_beside_the_package_or_in_it():
    """A checkout and a wheel both find their SQL."""
    assert (schema_dir() / "queries.sql").is_file()
    assert list((schema_dir() / "migrations").glob("*.sql"))
