"""What statements fail of, with each driver: named for what it is, quoting nobody."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from tornado.ioloop import IOLoop

from tests.conftest import Databases
from tests.drivers import DRIVERS, make_adapter, make_store
from tornado_compas_session import StoreError
from tornado_compas_session.core.protocols import Pool
from tornado_compas_session.exceptions import ConnectionLost, UnstorableText
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.stores.pools.queries import compile_statement

MakePool = Callable[..., Awaitable[Pool]]

WRITE = compile_statement(
    "write", "INSERT INTO kept (data) VALUES (:data::jsonb) RETURNING data::text"
)
READ = compile_statement("read", "SELECT data::text FROM kept")
ALL = compile_statement("all", "SELECT * FROM kept WHERE true OR :n::integer = 1")
PID = compile_statement("pid", "SELECT pg_backend_pid()")
ECHO = compile_statement("echo", "SELECT :text::text, :texts::text[]")


@pytest.fixture(params=["connect", *DRIVERS])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_pool(driver: str, io_loop: IOLoop) -> Iterator[MakePool]:
    """Makes pools of the driver, which are closed when the test ends."""
    made: list[Pool] = []

    async def make(dsn: str, **options: Any) -> Pool:
        # Nothing here is about time, whatever else the machine does.
        made.append(await make_adapter(driver, dsn, timeout=20, **options))
        return made[-1]

    yield make
    for pool in made:
        io_loop.run_sync(pool.close)


def run(dsn: str, sql: str) -> None:
    """Asks the database, past the pool."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.encode())


TABLE = "CREATE TABLE kept (data jsonb)"
TRIGGER = """
CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {}
END $$;
CREATE TRIGGER complain BEFORE INSERT ON kept
    FOR EACH ROW EXECUTE FUNCTION complain();
"""


@pytest.mark.parametrize(
    "complaint",
    [
        "RAISE EXCEPTION 'no: %', NEW.data;",
        "RAISE EXCEPTION 'no: %', NEW.data USING ERRCODE = '42501';",
        "RAISE EXCEPTION 'no: %', NEW.data USING ERRCODE = 'check_violation';",
        "PERFORM (NEW.data ->> 'who')::integer; RETURN NEW;",
        "EXECUTE 'SELECT ' || (NEW.data ->> 'who') || ' FROM'; RETURN NEW;",
    ],
)
async def test_a_triggers_words_are_not_repeated(
    make_pool: MakePool,
    empty_database: str,
    complaint: str,
    caplog: pytest.LogCaptureFixture,
):
    """It has the session's data before it; the SQLSTATE is said."""
    caplog.set_level(logging.DEBUG)
    run(empty_database, TABLE + ";" + TRIGGER.format(complaint))
    pool = await make_pool(empty_database)
    with pytest.raises(StoreError, match=r"\(\w{5}\)") as caught:
        await pool.fetch(WRITE, data='{"who": "classified"}')
    error = caught.value
    assert not isinstance(error, ConnectionLost)
    seen = f"{error} {error!r} {error.__cause__!r} {vars(error)} {caplog.text}"
    assert "classified" not in seen


async def test_what_is_not_supported_is_no_lost_connection(
    make_pool: MakePool, empty_database: str
):
    """0A000, as Citus answers; it is said as it is, and the connection stays."""
    pool = await make_pool(empty_database, size=1)
    before = tuple((await pool.fetch(PID))[0])
    with pytest.raises(StoreError, match=r"not (supported|implemented)") as caught:
        await pool.fetch(
            compile_statement("cross", "SELECT 1 FROM elsewhere.public.kept")
        )
    assert StoreError is type(caught.value)
    assert before == tuple((await pool.fetch(PID))[0])


async def test_a_statement_whose_columns_have_changed_recovers(
    make_pool: MakePool, driver: str, empty_database: str
):
    """A column is added while statements are prepared: a lost connection at most."""
    run(empty_database, TABLE + "; INSERT INTO kept VALUES ('1')")
    pool = await make_pool(empty_database, size=2)
    for added in range(2):
        for _ in range(8):  # psycopg prepares what it has seen five times
            assert 1 + added == len((await pool.fetch(ALL, n=1))[0])
        run(empty_database, f"ALTER TABLE kept ADD extra_{added} integer")
        lost = 0
        for _ in range(4):
            try:
                row = (await pool.fetch(ALL, n=1))[0]
            except ConnectionLost as error:
                assert "out of date" in str(error)
                lost += 1
            else:
                assert 2 + added == len(row)
        assert lost <= (driver == "psycopg")


async def test_in_a_transaction_too(
    make_pool: MakePool, driver: str, empty_database: str
):
    """There asyncpg cannot repeat it either; the next transaction is well."""
    run(empty_database, TABLE + "; INSERT INTO kept VALUES ('1')")
    pool = await make_pool(empty_database, size=1)
    for _ in range(8):
        async with pool.transaction() as connection:
            await connection.fetch(ALL, n=1)
    run(empty_database, "ALTER TABLE kept ADD extra integer")
    found: list[int] = []
    for _ in range(2):
        try:
            async with pool.transaction() as connection:
                found.append(len((await connection.fetch(ALL, n=1))[0]))
        except ConnectionLost:
            found.append(0)
    assert ([2, 2] if driver == "momoko" else [0, 2]) == found


# -- encodings -------------------------------------------------------------------------


@pytest.fixture
def encoded(databases: Databases) -> Iterator[Callable[[str], str]]:
    """Makes databases of other encodings, with a table; they end with the test."""
    made: list[str] = []

    def make(encoding: str) -> str:
        name = databases.create()
        made.append(name)
        dsn = databases.dsn(name)
        server = urlsplit(dsn)._replace(path="/postgres").geturl()
        run(server, f"DROP DATABASE {name}")
        run(
            server,
            f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 "
            "LC_COLLATE 'C' LC_CTYPE 'C' STRATEGY file_copy",
        )
        run(dsn, TABLE)
        return dsn

    yield make
    for name in made:
        databases.drop(name)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "UTF8"])
async def test_what_the_encoding_has_no_place_for_is_one_visitors_trouble(
    make_pool: MakePool, driver: str, encoded: Callable[[str], str], encoding: str
):
    """
    An error of its own, on a connection that stays; what there is a place for is kept.
    SQL_ASCII keeps everything, momoko's part asked for UTF8 in its DSN.
    """
    dsn = encoded(encoding)
    if driver == "momoko":
        dsn += "?client_encoding=utf8"
    pool = await make_pool(dsn, size=1)
    before = tuple((await pool.fetch(PID))[0])
    assert '{"name": "Zoë"}' == (await pool.fetch(WRITE, data='{"name":"Zoë"}'))[0][0]
    asian = '{"name": "日本"}'
    if encoding == "LATIN1":
        with pytest.raises(UnstorableText):
            await pool.fetch(WRITE, data=asian)
        with pytest.raises(UnstorableText):
            await pool.fetch(ECHO, text="", texts=["日本"])
        with pytest.raises(UnstorableText):
            async with pool.transaction() as connection:
                await connection.fetch(WRITE, data=asian)
        expected = ['{"name": "Zoë"}']
    else:
        assert asian == (await pool.fetch(WRITE, data=asian))[0][0]
        expected = ['{"name": "Zoë"}', asian]
    assert expected == [row[0] for row in await pool.fetch(READ)]
    echo = (await pool.fetch(ECHO, text="é", texts=["é", "ü"]))[0]
    assert ("é", ["é", "ü"]) == tuple(echo)
    assert before == tuple((await pool.fetch(PID))[0])


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "UTF8"])
async def test_check_names_the_encoding(
    encoded: Callable[[str], str], encoding: str, caplog: pytest.LogCaptureFixture
):
    """As the doctor does: in a warning, for most texts are kept all the same."""
    dsn = encoded(encoding)
    await migrate(dsn)
    store = await make_store("connect", dsn)
    await store.check()
    await store.close()
    assert (encoding != "UTF8") == (f"keeps text in {encoding};" in caplog.text)


async def test_momoko_says_what_its_dsn_lacks(encoded: Callable[[str], str]):
    """psycopg2 learns the encoding when it connects, so the DSN has to have it."""
    pool = await make_adapter("momoko", encoded("SQL_ASCII"), size=1)
    for data in ('{"name": "Zoë"}', '{"name": "日本"}'):
        with pytest.raises(UnstorableText, match="client_encoding=utf8"):
            await pool.fetch(WRITE, data=data)
    assert '{"n": 1}' == (await pool.fetch(WRITE, data='{"n": 1}'))[0][0]
    await pool.close()


async def test_an_applications_encoding_is_its_own_again(
    encoded: Callable[[str], str],
):
    """Sessions speak UTF8 on psycopg's connections, and set back what there was."""
    pool: Any = await make_adapter("psycopg", encoded("LATIN1"), size=1)
    await pool.fetch(WRITE, data='{"name": "Zoë"}')
    async with pool.transaction() as connection:
        await connection.fetch(READ)
    with pytest.raises(UnstorableText):
        await pool.fetch(WRITE, data='{"name": "日本"}')
    with pytest.raises(KeyError):
        async with pool.transaction():
            raise KeyError
    async with pool._pool.connection() as own:
        assert "LATIN1" == own.info.parameter_status("client_encoding")
        assert not own.autocommit
    await pool.close()
