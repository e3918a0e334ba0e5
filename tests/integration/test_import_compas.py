"""`import-compas` against the table that Compas's own migration makes."""

from __future__ import annotations

import psycopg
import pytest

from tornado_compas_session import PostgresSessionStore, SettingsError
from tornado_compas_session.stores.pools import opened
from tornado_compas_session.tools.cli import main
from tornado_compas_session.tools.compas_import import (
    Outcome,
    count_live,
    import_compas,
)

# As in Compas's migration of sessions, but for the extension that makes its uuids.
COMPAS = """
CREATE TABLE "session" (
  "id"        uuid PRIMARY KEY NOT NULL DEFAULT gen_random_uuid(),
  "expires"   timestamptz      NOT NULL,
  "data"      jsonb            NOT NULL,
  "createdAt" timestamptz      NOT NULL DEFAULT now(),
  "updatedAt" timestamptz      NOT NULL DEFAULT now()
);
CREATE INDEX "sessionExpiresIdx" ON "session" ("expires");
INSERT INTO "session" ("expires", "data", "createdAt")
SELECT now() + interval '1 day',
       jsonb_build_object('user_id', n % 10, 'n', n, '_expire', 17, '_maxAge', 1),
       now() - interval '2 days'
  FROM generate_series(1, 2500) n;
INSERT INTO "session" ("expires", "data")
VALUES (now() - interval '1 second', '{"user_id": 3, "n": -1}'),
       (now() + interval '1 day', '{"_expire": 17}'),
       (now() + interval '1 day', '[1]'),
       (now() + interval '1 day', 'null');
"""


@pytest.fixture
def compas(database: str) -> str:
    """A database with both tables, Compas's one filled."""
    with psycopg.connect(database) as connection:
        connection.execute(COMPAS.encode())
    return database


async def test_live_rows_are_copied_without_compas_own_keys(compas: str) -> None:
    """Expired and empty ones stay behind, and so does what begins with `_`."""
    seen: list[int] = []
    async with opened(compas, 30) as pool:
        assert 2503 == await count_live(pool)
        outcome = await import_compas(pool, batch=1000, progress=seen.append)

    assert Outcome(copied=2500, present=0, empty=3) == outcome
    assert [1000, 1000, 503] == seen
    with psycopg.connect(compas) as connection:
        rows = connection.execute(
            "SELECT count(*), sum((data ->> 'n')::int), bool_or(data ? '_expire'),"
            " max(expires_at) < now() + interval '25 hours',"
            " max(created_at) < now() - interval '1 day',"
            " bool_and(user_id = data ->> 'user_id' AND epoch = 0),"
            " bool_and(handle ~ '^[A-Za-z0-9_-]{12}$'), count(DISTINCT secret_hash)"
            " FROM compas_session"
        ).fetchall()
    assert [(2500, 2500 * 2501 // 2, False, True, True, True, True, 2500)] == rows


async def test_second_import_changes_nothing(compas: str) -> None:
    """What is there already is left as it is, however it has changed since."""
    async with opened(compas, 30) as pool:
        await import_compas(pool)
        with psycopg.connect(compas) as connection:
            connection.execute("UPDATE compas_session SET data = data || '{\"n\": 0}'")
        outcome = await import_compas(pool)

    assert Outcome(copied=0, present=2500, empty=3) == outcome
    with psycopg.connect(compas) as connection:
        [row] = connection.execute(
            "SELECT max((data ->> 'n')::int) FROM compas_session"
        ).fetchall()
    assert 0 == row[0]


async def test_imported_sessions_are_found_and_ended_by_user(compas: str) -> None:
    """Lists and revocation go on from where Compas was."""
    async with opened(compas, 30) as pool:
        await import_compas(pool)
        store = PostgresSessionStore(pool)

        assert 50 == len(await store.sessions_of(3))
        assert 250 == await store.revoke_user(3)


async def test_ids_are_not_copied(compas: str) -> None:
    """No id of Compas's is anywhere in the table, nor opens anything there."""
    async with opened(compas, 30) as pool:
        await import_compas(pool)
    with psycopg.connect(compas) as connection:
        [row] = connection.execute(
            'SELECT count(*) FROM compas_session c JOIN "session" s'
            " ON c.data -> 'n' = s.data -> 'n'"
            " WHERE c::text NOT LIKE '%' || s.id || '%'"
            " AND c.secret_hash <> sha256(s.id::text::bytea)"
        ).fetchall()
    assert 2500 == row[0]


async def test_users_are_those_that_a_session_can_have(compas: str) -> None:
    """Texts and integers; where something else is under `user_id`, nobody is."""
    users = {
        '"ada"': "ada",
        '"7"': "7",
        "-9223372036854775808": "-9223372036854775808",
        "9223372036854775808": None,
        "1.5": None,
        "1e400": None,
        '""': None,
        '"' + "x" * 255 + '"': "x" * 255,
        '"' + "x" * 256 + '"': None,
        "true": None,
        "null": None,
        '["ada"]': None,
    }
    with psycopg.connect(compas) as connection:
        connection.execute('DELETE FROM "session"')
        for user in users:
            connection.execute(
                'INSERT INTO "session" ("expires", "data") VALUES (now() +'
                " interval '1 day', jsonb_build_object('user_id', %s::jsonb))",
                (user,),
            )
    async with opened(compas, 30) as pool:
        await import_compas(pool)
    with psycopg.connect(compas) as connection:
        rows = connection.execute(
            "SELECT (data -> 'user_id')::text, user_id FROM compas_session"
        ).fetchall()
    assert len(users) == len(rows)
    for text, user in rows:
        wanted = users["1e400"] if text.startswith("10000") else users[text]
        assert wanted == user


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("nothing_here", "no table nothing_here"),
        ("compas_session", "lacks createdAt, expires, id, updatedAt"),
        ('session"; DROP TABLE compas_session; --', 'no table session"; DROP'),
    ],
)
async def test_other_tables_are_refused(
    table: str, complaint: str, database: str
) -> None:
    """A name that is none, a table that is absent, or one of another shape."""
    async with opened(database, 30) as pool:
        with pytest.raises(SettingsError, match=complaint):
            await import_compas(pool, table)


def test_command_says_that_cookies_stay_behind(
    compas: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number is the result; that visitors sign in again is said beside it."""
    code = main(["import-compas", "--database-url", compas])
    printed, talk = capsys.readouterr()

    assert (0, "2500\n") == (code, printed)
    assert "cookies cannot be carried over" in talk
