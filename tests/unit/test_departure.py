"""Which cookies a response takes along: with a new secret, with an end, or none."""

from __future__ import annotations

import pytest

from tests.factories import NAME, Jar, make_environment, make_manager, make_record
from tornado_compas_session.core.departure import Departures
from tornado_compas_session.core.lifetimes import Lifetimes


def departures(*, cookies=1, **options):
    """What writes them, and a session that came with so many cookies."""
    manager = make_manager(**options)
    session = manager.session()
    record = make_record(expires=1060.0)
    session.start(record)
    session.life.came_with(cookies)
    session.life.found(record, record.secret_hash)
    return Departures(manager.options, Lifetimes(manager.options)), session


def names(headers):
    return [header.partition("=")[0] for header in headers]


def test_the_cookie_and_nothing_else():
    """One header, which ends with the row."""
    writes, session = departures()

    assert [f"{NAME}=v; Max-Age=60; Path=/; HttpOnly; SameSite=Lax"] == (
        writes.set(session, "v")
    )
    assert [NAME] == names(writes.clear(session))


def test_the_public_cookie_is_in_step():
    """Set and cleared together, with the same lifetime."""
    writes, session = departures(keep_public_cookie=True)

    own, public = writes.set(session, "v")
    assert f"{NAME}.public=truthy; Max-Age=60; Path=/; SameSite=Lax" == public
    assert own.replace("; HttpOnly", "").replace(f"{NAME}=v", "") == (
        public.replace(f"{NAME}.public=truthy", "")
    )
    assert [NAME, f"{NAME}.public"] == names(writes.clear(session))


def test_an_end_clears_former_names_as_well():
    """A cookie of `previous_keys` would be taken up again by the next request."""
    writes, session = departures(previous_keys=["old.sess"])

    assert [NAME] == names(writes.set(session, "v"))
    assert [NAME, "old.sess"] == names(writes.clear(session))


@pytest.mark.parametrize("cookies", [1, 2])
@pytest.mark.parametrize("domain", [None, "example.com"])
@pytest.mark.parametrize("public", [False, True])
def test_twins_are_cleared_before_the_cookie_is_set(cookies, domain, public):
    """Where several came, or where there may be one of the host alone beside it."""
    writes, session = departures(
        cookies=cookies, domain=domain, keep_public_cookie=public
    )
    headers = writes.set(session, "v")
    set_ones = [header for header in headers if "Max-Age=0" not in header]

    assert headers[-len(set_ones) :] == set_ones
    assert 1 + public == len(set_ones)
    jar = Jar("https://www.example.com/")
    for name in names(set_ones):
        jar.take(f"{name}=twin; Path=/")
        jar.take(f"{name}=twin; Path=/; Domain=example.com")
    for header in headers:
        jar.take(header)
    left = [cookie.value for cookie in jar.kept.values()]
    if domain:
        assert sorted(["v", "truthy"][: 1 + public]) == sorted(left)
    else:  # nobody knows of the other domain
        assert 2 * (1 + public) == len(left)


@pytest.mark.parametrize("domain", [None, "example.com"])
def test_an_end_clears_all_forms(domain):
    """With the domain and without it."""
    environment = make_environment(cookie_url="example.com", production=True)
    writes, session = departures(cookies=2, domain=domain, environment=environment)
    jar = Jar("https://www.example.com/")
    jar.take(f"{NAME}=twin; Path=/")
    jar.take(f"{NAME}=twin; Path=/; Domain=example.com")
    for header in writes.clear(session):
        jar.take(header)

    assert {} == jar.kept
