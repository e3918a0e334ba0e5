"""
What a distributed planner (Citus) refuses is in no statement of ours.

Without such a server: the statements are read as text. Each rule stands for an answer
that Citus 14 gave (0A000), and the statements of before, which it refused, are the
control. A table is distributed by its key, `handle`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from tornado_compas_session.stores.distributed import DELETE_THEM, EXPIRED
from tornado_compas_session.stores.pools.queries import Statement, statements

#: They are for plain PostgreSQL; where the table is distributed, those for one row go
#: out side by side.
BATCHES = {
    *("load_sessions", "create_sessions", "save_sessions", "increment_sessions"),
    *("end_surplus", "delete_expired", "revoke_user_unlocked"),
}
#: They ask every shard, for a person or a clock.
MANY = {
    *("sessions_of", "revoke_user", "surplus_sessions"),
    *("revoke_all", "stats", "top_users", "check_session_table"),
}
#: They name no table.
NO_TABLE = {"queue_for_user", "encoding"}
ONE_ROW = sorted(set(statements()) - BATCHES - MANY - NO_TABLE)


# -- reading SQL -----------------------------------------------------------------------

Tree = list[Any]  # of words, and of such trees for what is in parentheses

_WORD = re.compile(
    r"'(?:[^']|'')*'|::|->>?|#>>?|\|\||<>|[<>]=|\$\d+|[A-Za-z_][\w.]*|[\d.]+|\S"
)
_BEGIN_QUERY = {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}
_BEGIN_CLAUSE = {
    *("SELECT", "FROM", "USING", "WHERE", "SET", "RETURNING", "VALUES", "ON"),
    *("FOR", "ORDER", "GROUP", "LIMIT", "OFFSET", "INSERT", "UPDATE", "DELETE"),
}
#: They depend on the time zone or the settings of the server, so that they may stand in
#: a modification, but not over a column.
_STABLE = {
    *("date_part", "extract", "date_trunc", "to_char", "age", "to_jsonb"),
    *("jsonb_build_object", "jsonb_build_array", "row_to_json"),
}
_NOW = {"now", "current_timestamp", "statement_timestamp", "transaction_timestamp"}


def parsed(sql: str) -> Tree:
    stack: list[Tree] = [[]]
    for word in _WORD.findall(sql):
        if word == "(":
            stack.append([])
        elif word == ")":
            group = stack.pop()
            stack[-1].append(group)
        else:
            stack[-1].append(word)
    assert 1 == len(stack), "parentheses that do not match"
    return stack[0]


def groups(tree: Tree) -> Iterator[Tree]:
    """All that is in parentheses, at any depth."""
    for part in tree:
        if isinstance(part, list):
            yield part
            yield from groups(part)


def is_query(tree: Tree) -> bool:
    return any(tree[:1] == [word] for word in _BEGIN_QUERY)


class Clause(NamedTuple):
    name: str
    parts: Tree


def clauses(query: Tree) -> list[Clause]:
    found = [Clause("", [])]
    depth = 0
    for part in query:
        if part == "CASE":
            depth += 1
        elif part == "END":
            depth -= 1
        if isinstance(part, str) and part in _BEGIN_CLAUSE and not depth:
            if part == "UPDATE" and found[-1].name == "FOR":
                continue
            found.append(Clause(part, []))
        else:
            found[-1].parts.append(part)
    return found


# -- what is refused -------------------------------------------------------------------


def refusals(
    sql: str, key: str, *, one_row: bool, locks_many: bool = False
) -> set[str]:
    """Why a distributed planner would not take the statement; empty if it would."""
    tree = parsed(sql)
    everything = [tree, *groups(tree)]
    writes = any(part in ("INSERT", "UPDATE", "DELETE") for part in _starts(everything))
    found = set()
    for query in filter(is_query, everything):
        found |= set(_in_query(query, key, writes=writes, locks_many=locks_many))
    if one_row and not _names_one_row(tree, key):
        found.add("names more than one row")
    if "UNION" in tree:
        found.add("UNION")
    return found


def _starts(trees: list[Tree]) -> Iterator[str]:
    """What the queries begin with, and what follows a WITH."""
    for tree in filter(is_query, trees):
        for clause in clauses(tree):
            yield clause.name


def _in_query(
    query: Tree, key: str, *, writes: bool, locks_many: bool
) -> Iterator[str]:
    parts = clauses(query)
    of_table = any(
        "compas_session" in clause.parts for clause in parts if clause.name != "WHERE"
    )
    for name, words in parts:
        if name == "FOR" and not locks_many and not _finds_one(parts, key):
            yield "FOR UPDATE over more than one row"
        listed = of_table and name in ("SELECT", "SET", "RETURNING")
        if listed and any(is_query(group) for group in groups(words)):
            yield "a subquery in a target list"
        if name == "SET" and key in _assigned(words):
            yield "a change of the column that the table is distributed by"
        if name == "ON" and words[:1] == ["CONFLICT"] and words[1] not in ("DO", [key]):
            yield "ON CONFLICT with another column"
        if writes:
            returned = name == "RETURNING"
            yield from _in_expression(words, returned=returned, chosen=False)


def _in_expression(words: Tree, *, returned: bool, chosen: bool) -> Iterator[str]:
    """`chosen` is what is inside of CASE or COALESCE."""
    depth = 0
    before: Any = None
    for word, after in pairwise([*words, None]):
        if isinstance(word, list):
            if is_query(word):
                continue  # looked at by itself
            inside = chosen or bool(depth) or before in ("coalesce", "COALESCE")
            yield from _in_expression(word, returned=returned, chosen=inside)
            if isinstance(before, str) and before in _STABLE and _of_a_column(word):
                yield "a STABLE function of a column"
        elif word == "CASE":
            depth += 1
            if after != "WHEN":
                yield "a CASE with an operand"  # arrives at the shard as another one
        elif word == "END":
            depth -= 1
        elif word in _NOW:
            if chosen or depth:
                yield "now() in CASE or COALESCE"
            if returned:
                yield "now() in RETURNING"
        elif word == "make_interval" or (
            word == "interval" and isinstance(after, str) and after.startswith("'")
        ):
            yield "timestamptz + interval"
        before = word


def _of_a_column(words: Tree) -> bool:
    """Whether it depends on a column, and not just on how far two times are apart."""
    if "-" in words:
        return False
    return any(
        isinstance(word, str) and word.startswith("s.") for word in words
    ) or any(map(_of_a_column, (word for word in words if isinstance(word, list))))


def _assigned(words: Tree) -> set[str]:
    """The columns that a SET writes to."""
    places = [0, *(n + 1 for n, word in enumerate(words) if word == ",")]
    return {words[n] for n in places if words[n + 1 : n + 2] == ["="]}


def _finds_one(parts: list[Clause], key: str) -> bool:
    """Whether a query has `key = $n`, and nothing that would widen it."""
    where: Tree = next((words for name, words in parts if name == "WHERE"), [])
    if "OR" in where:
        return False
    return any(
        isinstance(word, str)
        and word.split(".")[-1] == key
        and where[n + 1 : n + 2] == ["="]
        and re.fullmatch(r"\$\d+", str(where[n + 2]))
        for n, word in enumerate(where)
    )


def _names_one_row(tree: Tree, key: str) -> bool:
    parts = clauses(tree)
    if tree[0] == "INSERT":
        return any(name == "VALUES" for name, _ in parts)
    return _finds_one(parts, key)


# -- ours ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_ROW)
def test_what_serves_a_request_goes_to_one_shard(name: str) -> None:
    """Each names its row by the key, and has nothing in it that is refused."""
    sql = statements()[name].numbered
    assert set() == refusals(sql, "handle", one_row=True)


@pytest.mark.parametrize("name", sorted(MANY))
def test_what_asks_every_shard_may_do_so(name: str) -> None:
    """Lists, revocations and statistics."""
    sql = statements()[name].numbered
    assert set() == refusals(sql, "handle", one_row=False)


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_batches_lock_many_rows_and_are_fine_otherwise(name: str) -> None:
    """So that what they have in common with those for one row stays that way."""
    sql = statements()[name].numbered
    assert set() == refusals(sql, "handle", one_row=False, locks_many=True)
    locks = {"FOR UPDATE over more than one row"} if "FOR UPDATE" in sql else set()
    assert locks == refusals(sql, "handle", one_row=False)


@pytest.mark.parametrize("statement", [EXPIRED, DELETE_THEM])
def test_the_cleanup_asks_every_shard_and_locks_nothing_first(
    statement: Statement,
) -> None:
    """In place of `delete_expired`."""
    assert set() == refusals(statement.numbered, "handle", one_row=False)


def test_every_statement_has_its_place() -> None:
    """A new one is for one row, unless it is named above."""
    assert BATCHES | MANY | NO_TABLE < set(statements())
    assert {"load_session", "save_session", "create_session"} < set(ONE_ROW)


# -- the control -----------------------------------------------------------------------

_LIFETIME = (
    "CASE WHEN c.change ->> 'idle' IS NULL THEN s.expires_at"
    " ELSE now() + least("
    " coalesce(abs(s.own_idle), (c.change ->> 'idle')::float8),"
    " coalesce(s.own_absolute, (c.change ->> 'absolute')::float8)"
    "  - extract(epoch FROM now() - s.created_at)::float8"
    " ) * interval '1 second' END"
)
_TIMES = (
    "extract(epoch FROM s.created_at)::float8,"
    " extract(epoch FROM s.expires_at)::float8, extract(epoch FROM now())::float8"
)
_FOUND = (
    "(s.id_hash = $1::bytea"
    " OR (s.previous_id_hash = $1::bytea AND s.previous_until > now()))"
    " AND s.expires_at > now()"
)
#: Statements of the design before this one, and why Citus refused them.
BEFORE = {
    "load": (
        f"SELECT s.id_hash, s.data::text, {_TIMES} FROM compas_session s"
        " WHERE s.id_hash = ANY (ARRAY(SELECT unnest($1::bytea[])))"
        " AND s.expires_at > now() UNION ALL"
        f" SELECT s.previous_id_hash, s.data::text, {_TIMES} FROM compas_session s"
        " WHERE s.previous_id_hash = ANY (ARRAY(SELECT unnest($1::bytea[])))"
        " AND s.expires_at > now()",
        {"UNION", "names more than one row"},
    ),
    "lock": (
        f"SELECT s.id_hash, {_TIMES} FROM compas_session s WHERE {_FOUND} FOR UPDATE",
        {"FOR UPDATE over more than one row", "names more than one row"},
    ),
    "create": (
        "INSERT INTO compas_session AS s (id_hash, data, expires_at)"
        " SELECT c.id_hash, c.change -> 'set', now() + least("
        "  coalesce(abs((c.change ->> 'own_idle')::integer),"
        "   (c.change ->> 'idle')::float8)) * interval '1 second'"
        " FROM unnest($1::bytea[], $2::jsonb[]) AS c(id_hash, change)"
        f" ON CONFLICT (id_hash) DO NOTHING RETURNING s.id_hash, {_TIMES}",
        {
            "timestamptz + interval",
            "now() in RETURNING",
            "a STABLE function of a column",
            "names more than one row",
        },
    ),
    "save": (
        "UPDATE compas_session s SET data = s.data - ARRAY("
        " SELECT jsonb_array_elements_text(c.change -> 'remove')),"
        f" expires_at = {_LIFETIME}, authenticated_at = CASE"
        "  WHEN c.change #> '{set,user_id}' IS DISTINCT FROM s.data -> 'user_id'"
        "  THEN now() ELSE s.authenticated_at END"
        f" FROM (SELECT $2::text::jsonb AS change) AS c WHERE {_FOUND}"
        f" RETURNING s.id_hash, {_TIMES}",
        {
            "a subquery in a target list",
            "now() in CASE or COALESCE",
            "timestamptz + interval",
            "now() in RETURNING",
            "a STABLE function of a column",
            "names more than one row",
        },
    ),
    "regenerate": (
        "UPDATE compas_session s SET data = s.data, id_hash = $2::bytea,"
        " previous_until = now() + $3::float8 * interval '1 second'"
        " WHERE s.id_hash = $1::bytea AND s.expires_at > now()"
        " RETURNING s.id_hash",
        {
            "a change of the column that the table is distributed by",
            "timestamptz + interval",
        },
    ),
    "revoke_oldest": (
        "DELETE FROM compas_session s WHERE s.user_id = $1::text AND s.id_hash IN ("
        " SELECT o.id_hash FROM compas_session o WHERE o.user_id = $1::text"
        " ORDER BY o.updated_at DESC OFFSET $2::integer FOR UPDATE SKIP LOCKED)"
        " RETURNING s.id_hash",
        {"FOR UPDATE over more than one row", "names more than one row"},
    ),
    "stats": (
        "SELECT count(*), coalesce((SELECT sum(pg_total_relation_size(relid))"
        " FROM pg_partition_tree('compas_session'))::bigint, 0)"
        " FROM compas_session s WHERE s.id_hash = $1::bytea",
        {"a subquery in a target list"},
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_the_statements_of_before_are_refused(name: str) -> None:
    """Each for its own reasons, so that every rule is seen to find something."""
    sql, reasons = BEFORE[name]
    assert reasons == refusals(sql, "id_hash", one_row=True)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("epoch = CASE s.epoch WHEN 1 THEN 2 ELSE 3 END", "a CASE with an operand"),
        (
            "updated_at = coalesce(s.updated_at, greatest(now(), now()))",
            "now() in CASE or COALESCE",
        ),
        (
            "updated_at = s.updated_at + make_interval(secs => s.own_idle)",
            "timestamptz + interval",
        ),
        (
            "updated_at = to_timestamp(date_part('epoch', s.created_at) + 1)",
            "a STABLE function of a column",
        ),
        (
            "data = s.data || jsonb_build_object('n', (s.epoch + 1))",
            "a STABLE function of a column",
        ),
    ],
)
def test_other_ways_to_be_refused(expression: str, reason: str) -> None:
    """What was met on the way to the statements of today."""
    sql = f"UPDATE compas_session s SET {expression} WHERE s.handle = $1::text"
    assert {reason} == refusals(sql, "handle", one_row=True)


@pytest.mark.parametrize(
    "expression",
    [
        "updated_at = greatest(s.updated_at, now())",
        "updated_at = to_timestamp(date_part('epoch', now()) + 60)",
        "updated_at = to_timestamp(date_part('epoch', now() - s.created_at))",
        "shown_at = greatest(now(), CASE WHEN s.epoch = 1 THEN s.shown_at END)",
        "data = (s.data - ARRAY['handle'])",
    ],
)
def test_what_is_taken(expression: str) -> None:
    """The ways around, as Citus took them."""
    sql = f"UPDATE compas_session s SET {expression} WHERE s.handle = $1::text"
    assert set() == refusals(sql, "handle", one_row=True)
