"""DSNs as people have them: what asyncpg gets of each, and what is said of others."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tornado_compas_session import SettingsError
from tornado_compas_session.stores.pools.dsn import read_dsn, target_of

BASE = "postgresql://ada@db.example.com:5433/shop"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("sslmode=require", "sslmode=require"),
        ("sslmode=verify-full&sslrootcert=%2Fca.pem", None),
        ("application_name=shop", "application_name=shop"),
        ("options=-c%20search_path%3Dshop", "options=-c%20search_path%3Dshop"),
        ("target_session_attrs=read-write", "target_session_attrs=read-write"),
        ("search_path=shop&statement_timeout=5000", None),
        ("connect_timeout=3", ""),
        ("keepalives=1&keepalives_idle=30&keepalives_interval=5", ""),
        ("keepalives_count=3&tcp_user_timeout=5000", ""),
        ("channel_binding=prefer", ""),
        ("gssencmode=disable&sslmode=require", "sslmode=require"),
        ("client_encoding=latin1", ""),
        ("fallback_application_name=x&application_name=y", "application_name=y"),
        ("sslcertmode=allow&sslsni=1&load_balance_hosts=random", ""),
    ],
)
def test_asyncpg_gets_what_it_understands(given: str, kept: str | None):
    """What only libpq knows would be a setting of the server to it, and refused."""
    dsn = f"{BASE}?{given}" if given else BASE
    expected = given if kept is None else kept

    assert (f"{BASE}?{expected}" if expected else BASE) == read_dsn(dsn).url


def test_what_asyncpg_has_by_another_way_is_translated():
    """The time to connect, and what the kernel is told of the socket."""
    about = read_dsn(
        f"{BASE}?connect_timeout=3&keepalives=0&keepalives_idle=7"
        "&keepalives_interval=2&keepalives_count=4&tcp_user_timeout=900"
    )
    assert {"timeout": 3.0} == about.options
    assert {
        "SO_KEEPALIVE": 0,
        "TCP_KEEPIDLE": 7,
        "TCP_KEEPINTVL": 2,
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": 900,
    } == about.link


@pytest.mark.parametrize("never", ["connect_timeout=0", "keepalives_idle=0"])
def test_zero_is_the_default(never: str):
    """As with libpq, where it means: whatever the system does."""
    about = read_dsn(f"{BASE}?{never}")
    assert ({}, {}) == (about.options, about.link)


def test_what_is_left_out_is_logged_once(caplog: pytest.LogCaptureFixture):
    """In one line, and without the values."""
    caplog.set_level(logging.INFO, logger="tornado_compas_session")
    read_dsn(f"{BASE}?gssencmode=disable&channel_binding=prefer&connect_timeout=3")
    assert ["asyncpg does without channel_binding, gssencmode of the DSN"] == [
        record.getMessage() for record in caplog.records
    ]
    caplog.clear()
    read_dsn(f"{BASE}?sslmode=require&connect_timeout=3&keepalives=1")
    assert not caplog.records


@pytest.mark.parametrize(
    "needed",
    [
        "channel_binding=require",
        "gssencmode=require",
        "require_auth=scram-sha-256",
        "sslcertmode=require",
        "requirepeer=postgres",
        "sslcrldir=/crl",
        "hostaddr=10.0.0.1",
    ],
)
def test_a_connection_is_never_less_safe_than_its_dsn(needed: str):
    """What asyncpg cannot see to is refused, and the way out is named."""
    name = needed.partition("=")[0]
    with pytest.raises(SettingsError, match=rf"{name}.*asyncpg.*pool of psycopg"):
        read_dsn(f"{BASE}?sslmode=require&{needed}")


def test_the_systems_certificates_are_checked_to_the_full():
    """libpq's `sslrootcert=system`, which is no file."""
    context = read_dsn(f"{BASE}?sslrootcert=system").options["ssl"]
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


SECRET = "s3cret"


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        (None, "DSN is NoneType, no text; is DATABASE_URL set"),
        ("", "not a URL.*postgresql://user:password@host:5432/name"),
        ("shop", "not a URL.*postgresql://"),
        (f"ada:{SECRET}@db/shop", "not a URL"),
        (f"host=db dbname=shop password={SECRET}", "form name=value.*postgresql://"),
        (f"postgresql+asyncpg://a:{SECRET}@db/shop", "SQLAlchemy.*write postgresql://"),
        (f"postgres+psycopg2://a:{SECRET}@db/shop", "SQLAlchemy"),
        (f"mysql://ada:{SECRET}@db/shop", "not for PostgreSQL.*write it as"),
        (f"jdbc:postgresql://db/shop?password={SECRET}", "not for PostgreSQL"),
        (f"postgresql://ada:pa@{SECRET}@db/shop", "@ as %40"),
        (f"postgresql://ada:pa/{SECRET}@db/shop", "/ as %2F"),
        (f"postgresql://ada:pa?{SECRET}@db/shop", "percent-encoded"),
        (f"postgresql://ada:pa#{SECRET}@db/shop", "percent-encoded"),
        (f"postgresql://ada:[{SECRET}@db/shop", "percent-encoded"),
        (f"postgresql://ada:{SECRET}/1@db/shop", "percent-encoded"),
        (f"postgresql://db:{SECRET}/shop", "ports between 1 and 65535.*@ as %40"),
        (f"postgresql://ada:{SECRET}@db:99999/shop", "between 1 and 65535"),
        (f"postgresql://ada:{SECRET}@db:0/shop", "between 1 and 65535"),
        (f"postgresql:///shop?port=70000&password={SECRET}", "between 1 and 65535"),
        (f"postgresql://ada:{SECRET}@db1,,db2/shop", "something else than a host"),
        (f"postgresql://ada:{SECRET}@[::1/shop", "something else than a host"),
        ("postgresql://[", "something else than a host"),
        (f"postgresql://ada:{SECRET}@db/shop?x", "name=value"),
        (f"{BASE}?sslmode=on", "sslmode.*none of.*verify-full"),
        (f"{BASE}?target_session_attrs=master", "none of.*read-write"),
        (f"{BASE}?connect_timeout=5s", "connect_timeout.*whole number"),
        (f"{BASE}?keepalives=on", "keepalives.*whole number"),
    ],
)
def test_each_mistake_is_named_and_no_password_is_shown(dsn: Any, said: str):
    """With how to write it instead."""
    with pytest.raises(SettingsError, match=said) as caught:
        read_dsn(dsn)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("dsn", "where"),
    [
        (BASE, "db.example.com:5433"),
        ("postgres://ada:p%40ss@db/shop", "db:5432"),
        ("postgresql://ada@db1:1,db2/shop", "db1:1, db2:5432"),
        ("postgresql://ada@[::1]:5433/shop", "[::1]:5433"),
        ("postgresql:///shop?host=/run/pg&port=5433", "/run/pg:5433"),
        ("postgresql:///shop?host=db1,db2&port=1,2", "db1:1, db2:2"),
        ("postgresql://%2Frun%2Fpg/shop", "/run/pg:5432"),
        ("postgresql:///shop", "the database"),
        ("POSTGRESQL://db/shop", "db:5432"),
        ("postgresql://db/shop\n", "db:5432"),
    ],
)
def test_it_knows_where_it_leads(dsn: str, where: str):
    """For messages: every host with its port, and nothing else."""
    assert where == read_dsn(dsn).where


@pytest.mark.parametrize(
    ("hosts", "ports", "where"),
    [
        (["db"], [], "db:5432"),
        (["a", "b"], ["1"], "a:1, b:1"),
        (["a", "b"], ["1", "2"], "a:1, b:2"),
        (["ret@db"], ["1"], "db:1 (is the password in the DSN percent-encoded?)"),
    ],
)
def test_other_drivers_hosts(hosts: list[str], ports: list[str], where: Any):
    """As libpq takes them apart, which takes the end of a password for a host's."""
    given = {"host": ",".join(hosts), "port": ",".join(ports)}
    assert (where, None) == target_of(given)
