"""`origins.py`: what CORS_URL may hold, and which origin is allowed by it."""

from __future__ import annotations

import pytest

from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.origins import Origins, parse_origins


@pytest.mark.parametrize("text", [None, "", "  ", ",", " , ,"])
def test_nothing_listed_allows_nobody(text):
    """Without CORS_URL no other origin is allowed."""
    assert () == parse_origins(text)
    assert not Origins(parse_origins(text)).allows("https://example.com")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://app.example.com", ("https://app.example.com",)),
        (
            " https://a.example ,\thttp://b.example\n",
            ("https://a.example", "http://b.example"),
        ),
        ("https://a.example,https://a.example,", ("https://a.example",)),
        ("HTTPS://App.Example.COM:8443", ("https://app.example.com:8443",)),
        (
            "https://a.example:443,http://a.example:80",
            ("https://a.example", "http://a.example"),
        ),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("http://192.0.2.7:8080", ("http://192.0.2.7:8080",)),
        ("http://[2001:DB8::1]:8080", ("http://[2001:db8::1]:8080",)),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
    ],
)
def test_origins_are_normalised(text, expected):
    """CO-1: what people write becomes what browsers send, in the order of the list."""
    assert expected == parse_origins(text)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("*", "is a pattern"),
        ("https://*.example.com", "is a pattern"),
        ("null", "sandboxed"),
        ("NULL", "sandboxed"),
        ("https://a.example/", "must not end with a slash"),
        ("https://a.example/app", "must end after the host and port"),
        ("https://a.example//", "must end after the host and port"),
        ("https://a.example?x=1", "must end after the host and port"),
        ("https://a.example#top", "must end after the host and port"),
        ("https://a.example\\", "must end after the host and port"),
        ("a.example", "must begin with http:// or https://"),
        ("//a.example", "must begin with http:// or https://"),
        ("ws://a.example", "must begin with http:// or https://"),
        ("file://", "must begin with http:// or https://"),
        ("https://", "has a wrong host name"),
        ("https://a b.example", "has a wrong host name"),
        ("https://.example", "has a wrong host name"),
        ("https://a..example", "has a wrong host name"),
        ("https://a.example\r\nSet-Cookie: x", "has a wrong host name"),
        ("https://2001:db8::1", "has a wrong port"),
        ("https://a.example:", "has a wrong port"),
        ("https://a.example:0", "has a wrong port"),
        ("https://a.example:65536", "has a wrong port"),
        ("https://a.example:\uff18\uff10", "xn--"),
        ("https://bücher.example", "xn--"),
    ],
)
def test_a_faulty_entry_is_refused_with_its_position(entry, complaint):
    """CO-1: what can never match an Origin header, or matches too much, is refused."""
    with pytest.raises(SettingsError) as caught:
        parse_origins(f"https://fine.example, {entry}")

    assert str(caught.value).startswith("CORS_URL entry 2: ")
    assert complaint in str(caught.value)
    assert caught.value.__cause__ is None


def test_all_faults_come_in_one_message():
    """The operator hears of every fault at once."""
    with pytest.raises(SettingsError) as caught:
        parse_origins("*,https://fine.example,null,example.com")

    positions = [problem.split(":")[0] for problem in caught.value.problems]
    assert ["CORS_URL entry 1", "CORS_URL entry 3", "CORS_URL entry 4"] == positions


@pytest.mark.parametrize("entry", ["https://u:hunter2@a.example", "hunter2@a.example/"])
def test_a_password_is_refused_and_never_shown(entry):
    """An entry with a user and password is refused without being quoted."""
    with pytest.raises(SettingsError, match="remove the user and password") as caught:
        parse_origins(entry)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com.evil",
        "https://evil-app.example.com",
        "https://appXexample.com",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://app.example.com/",
        "https://APP.example.com",
        "https://app.example.com, https://app.example.com",
        "https://xn--pp-xka.example.com",
        "null",
        "*",
        "",
        "https://" + "a" * 65_000,
    ],
)
@pytest.mark.parametrize("development", [False, True])
def test_only_the_exact_origin_is_allowed(origin, development):
    """CO-1: an origin that merely looks like a listed one is refused."""
    origins = Origins(("https://app.example.com",), development)

    assert origins.allows("https://app.example.com")
    assert not origins.allows(origin)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("http://localhost:5173", True),
        ("http://127.0.0.1:8080", True),
        ("https://localhost:5173", False),
        ("http://localhost.evil", False),
        ("http://localhost:5173.evil", False),
        ("http://localhost:", False),
        ("http://127x0x0x1:80", False),
        ("http://app.localhost:5173", False),
        ("http://localhost:5173\n", False),
    ],
)
def test_localhost_is_allowed_in_development_only(origin, allowed):
    """In development a dev server on any port of this machine works unlisted."""
    assert allowed == Origins((), development=True).allows(origin)
    assert not Origins(()).allows(origin)
