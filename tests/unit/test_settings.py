"""The environment and the options: every default, every value, every complaint."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import traceback
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import (
    KEY,
    NEWER_KEY,
    OLDER_KEY,
    PRODUCTION,
    make_environment,
    make_options,
)
from tornado_compas_session import (
    MemorySessionStore,
    PostgresSessionStore,
    SessionError,
    SessionOptions,
    SettingsError,
    session_settings,
)
from tornado_compas_session.settings import OPTIONS, Environment

DAY = 86400


def problems_of(**options):
    with pytest.raises(SettingsError) as caught:
        make_options(**options)
    return caught.value.problems


# -- the options -----------------------------------------------------------------------


def test_defaults():
    """The defaults of docs/options.md, in development."""
    assert (
        SessionOptions(
            key="counter.sess",
            max_age=6 * DAY,
            renew=30.0,
            overwrite=True,
            secure=False,
            domain=None,
            path="/",
            same_site="Lax",
            http_only=True,
            signed=True,
            auto_commit=True,
            keep_public_cookie=False,
            absolute_max_age=None,
            timeout=5.0,
            max_data_size=65536,
            regenerate_grace=5.0,
            anonymous_max_age=None,
            previous_keys=(),
            record_client=False,
            websocket_check=15.0,
            max_sessions_per_user=None,
            partitioned=False,
            cookie_url=None,
        )
        == make_options()
    )


def test_an_option_is_one_line_of_the_table():
    """Names, checks and defaults have no second list beside that of the class."""
    attributes = {one.name for one in dataclasses.fields(SessionOptions)}

    assert attributes == {*OPTIONS, "cookie_url"}


def test_defaults_in_production():
    """Secure, and the domain of COOKIE_URL."""
    environment = make_environment(production=True, cookie_url="example.com")
    options = make_options(environment=environment)

    assert (True, "example.com") == (options.secure, options.domain)
    assert "example.com" == options.cookie_url


def test_the_domain_is_for_production():
    """In development COOKIE_URL would keep the cookie from localhost."""
    environment = make_environment(production=False, cookie_url="example.com")
    options = make_options(environment=environment)

    assert (None, None) == (options.domain, options.cookie_url)


def test_the_domain_of_former_days_is_known():
    """COOKIE_URL is kept where the cookie has no domain, to clear what once had it."""
    production = make_environment(production=True, cookie_url="example.com")
    prefixed = make_options(environment=production, key="__Host-sid")
    other = make_options(environment=production, domain="other.example")

    assert (None, "example.com") == (prefixed.domain, prefixed.cookie_url)
    assert ("other.example", "example.com") == (other.domain, other.cookie_url)


def test_cookie_url_is_no_option():
    """It is the environment's, so that it has one place."""
    assert [
        "cookie_url is no option of sessions; it is the environment's COOKIE_URL"
    ] == problems_of(cookie_url="example.com")


def test_the_name_is_that_of_the_application():
    """In lower case, and it tells nothing about what runs here (ID-8)."""
    key = make_options(environment=make_environment(app_name="MyShop")).key

    assert "myshop.sess" == key
    for word in ("tornado", "compas", "py"):
        assert word not in key


def test_none_is_the_default():
    """Every option can be given as None, as from a configuration without it."""
    given = dict.fromkeys(OPTIONS)

    assert make_options() == make_options(**given)


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [
        ("key", "sid", "sid"),
        ("key", "a!#$%&'*+-.^_`|~Z9", "a!#$%&'*+-.^_`|~Z9"),
        ("key", "k" * 128, "k" * 128),
        ("max_age", 1, 1),
        ("max_age", 90.5, 90),
        ("max_age", 400 * DAY, 34_560_000),
        ("max_age", timedelta(days=400), 34_560_000),
        ("max_age", timedelta(hours=2), 7200),
        ("max_age", "session", -1800),
        ("renew", True, 30.0),
        ("renew", False, None),
        ("renew", 0, 0.0),
        ("renew", 5, 5.0),
        ("renew", timedelta(minutes=1), 60.0),
        ("overwrite", False, False),
        ("secure", True, True),
        ("domain", "example.com", "example.com"),
        ("domain", ".Example.COM", "example.com"),
        ("domain", "localhost", "localhost"),
        ("path", "/app", "/app"),
        ("path", "/" + "a" * 1023, "/" + "a" * 1023),
        ("same_site", "lax", "Lax"),
        ("same_site", "STRICT", "Strict"),
        ("http_only", False, False),
        ("signed", False, False),
        ("auto_commit", False, False),
        ("keep_public_cookie", True, True),
        ("absolute_max_age", timedelta(days=1), DAY),
        ("anonymous_max_age", 600, 600),
        ("timeout", 0.5, 0.5),
        ("timeout", timedelta(seconds=2), 2.0),
        ("max_data_size", 1000, 1000),
        ("regenerate_grace", 0, 0.0),
        ("previous_keys", ["old", "older"], ("old", "older")),
        ("previous_keys", "old", ("old",)),
        ("record_client", True, True),
        ("websocket_check", 1, 1.0),
        ("max_sessions_per_user", 3, 3),
    ],
)
def test_other_values(option, value, kept):
    """Each option takes what docs/options.md allows (CK-5 at 400 days)."""
    assert kept == getattr(make_options(**{option: value}), option)


def test_same_site_none():
    """It is for those who ask for it, with Secure (CK-3)."""
    assert "None" == make_options(same_site="none", secure=True).same_site


def test_a_browser_session():
    """`"session"` lives 30 minutes in the store, with a cookie without a lifetime."""
    options = make_options(max_age="session")

    assert 1800 == options.idle
    assert options.max_age < 0


FLAGS = (
    "overwrite",
    "secure",
    "http_only",
    "signed",
    "auto_commit",
    "keep_public_cookie",
    "record_client",
    "partitioned",
)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        *(
            (flag, value, f"{flag} is True or False")
            for flag in FLAGS
            for value in ("yes", 1)
        ),
        ("key", "", "no cookie name"),
        ("key", "a b", "no cookie name"),
        ("key", "a;b", "no cookie name"),
        ("key", "a=b", "no cookie name"),
        ("key", "a\r\nSet-Cookie: x", "no cookie name"),
        ("key", "a\n", "no cookie name"),
        ("key", "käse", "no cookie name"),
        ("key", 7, "no cookie name"),
        ("key", "k" * 129, "longer than 128"),
        ("max_age", 0, "between 1 second and 400 days"),
        ("max_age", -1, "between 1 second and 400 days"),
        ("max_age", 34_560_001, "between 1 second and 400 days"),
        ("max_age", timedelta(days=400, seconds=1), "between 1 second and 400 days"),
        ("max_age", float("nan"), "between 1 second and 400 days"),
        ("max_age", float("inf"), "between 1 second and 400 days"),
        ("max_age", "6 days", "max_age is a number of seconds, a timedelta"),
        ("max_age", True, "max_age is a number of seconds, a timedelta"),
        ("max_age", [1], "max_age is a number of seconds, a timedelta"),
        ("renew", -1, "renew is a number between"),
        ("renew", "yes", "renew is a number between"),
        ("domain", "", "no domain"),
        ("domain", "https://example.com", "no domain"),
        ("domain", "example.com; Secure", "no domain"),
        ("domain", "example.com\r\n", "no domain"),
        ("domain", "example.com:80", "no domain"),
        ("domain", ["example.com"], "no domain"),
        ("path", "", "must begin with /"),
        ("path", "app", "must begin with /"),
        ("path", "/a;b", "must begin with /"),
        ("path", "/a b", "must begin with /"),
        ("path", "/a\r\nX: y", "must begin with /"),
        ("path", "/ä", "must begin with /"),
        ("path", 1, "must begin with /"),
        ("path", "/" + "a" * 1024, "path is longer than 1024"),
        ("same_site", "", 'same_site is "lax"'),
        ("same_site", "bogus", 'same_site is "lax"'),
        ("same_site", "Lax; Secure", 'same_site is "lax"'),
        ("same_site", False, 'same_site is "lax"'),
        ("same_site", "none", 'same_site="none" needs secure=True'),
        ("absolute_max_age", 0, "absolute_max_age must be between"),
        ("absolute_max_age", "session", "absolute_max_age is a number of seconds"),
        ("anonymous_max_age", "x", "anonymous_max_age is a number of seconds"),
        ("timeout", 0, "timeout is a number between"),
        ("timeout", "5", "timeout is a number between"),
        ("timeout", True, "timeout is a number between"),
        ("timeout", float("nan"), "timeout is a number between"),
        ("max_data_size", 1, "max_data_size is a number between"),
        ("regenerate_grace", -1, "regenerate_grace is a number between"),
        ("previous_keys", ["a b"], "previous_keys 'a b' is no cookie name"),
        ("previous_keys", 7, "previous_keys is a list of cookie names"),
        ("previous_keys", ["old", "old"], "previous_keys repeats 'old'"),
        ("previous_keys", "counter.sess", "previous_keys repeats 'counter.sess'"),
        ("partitioned", True, 'partitioned=True needs secure=True and same_site="no'),
        ("websocket_check", 0, "websocket_check is a number between"),
        ("max_sessions_per_user", 0, "max_sessions_per_user is a number between"),
        ("max_agee", 5, "max_agee is no option of sessions; did you mean max_age?"),
        ("qqq", 5, "qqq is no option of sessions; there are key, previous_keys, domai"),
    ],
)
def test_wrong_values(option, value, complaint):
    """What a wrong value says at start-up: one problem with its name (CK-3, 5, 13)."""
    [problem] = problems_of(**{option: value})

    assert complaint in problem


@pytest.mark.parametrize("wrong", [{"secure": False}, {"same_site": "lax"}])
def test_partitioned_needs_both(wrong):
    """CHIPS: a cookie in frames of other sites, so SameSite=None and Secure (CK-14)."""
    fitting = {"partitioned": True, "secure": True, "same_site": "none"}

    assert make_options(**fitting).partitioned
    assert 'partitioned=True needs secure=True and same_site="none"' in problems_of(
        **fitting | wrong
    )


FITTING: dict[str, Any] = {"secure": True, "http_only": True, "path": "/"}
Demand = tuple[dict[str, Any], str]
SECURE: Demand = ({"secure": False}, "needs secure=True")
HTTP_ONLY: Demand = ({"http_only": False}, "needs http_only=True")
HOST_ONLY: tuple[Demand, ...] = (
    ({"path": "/x"}, "needs path='/'"),
    ({"domain": "example.com"}, "cannot have a domain"),
)
DEMANDS = {
    "__Secure-": [SECURE],
    "__Host-": [SECURE, *HOST_ONLY],
    "__Http-": [SECURE, HTTP_ONLY],
    "__Host-Http-": [SECURE, HTTP_ONLY, *HOST_ONLY],
}


@pytest.mark.parametrize("letters", [str, str.lower, str.upper])
@pytest.mark.parametrize("prefix", DEMANDS)
def test_prefixes_are_checked(prefix, letters):
    """In any case of letters, against all that they promise and no more (CK-1)."""
    key = letters(prefix) + "sid"
    demanded = dict.fromkeys(says for _, says in DEMANDS[prefix])

    assert key == make_options(key=key, **FITTING).key
    for wrong, says in [SECURE, HTTP_ONLY, *HOST_ONLY]:
        options = {**FITTING, **wrong}
        if says in demanded:
            assert [f"a cookie named {key} {says}"] == problems_of(key=key, **options)
        else:
            assert key == make_options(key=key, **options).key


@pytest.mark.parametrize("prefix", ["__Host-", "__host-", "__Host-Http-"])
def test_cookie_url_is_not_for_a_host_prefix(prefix):
    """The name says that there is no domain, so that of COOKIE_URL is not taken."""
    production = make_environment(production=True, cookie_url="example.com")
    options = make_options(key=prefix + "sid", environment=production)

    assert options.domain is None


def test_previous_keys_beside_a_prefix():
    """A cookie that anybody may have planted is promoted only if it is signed."""
    options: dict[str, Any] = {"key": "__Host-sid", **FITTING}

    def kept(**others):
        return make_options(**others).previous_keys

    assert ("old",) == kept(**options, previous_keys="old")
    assert ("__host-old",) == kept(**options, previous_keys="__host-old", signed=False)
    assert ("old",) == kept(previous_keys="old", signed=False)
    [problem] = problems_of(**options, previous_keys="old", signed=False)
    assert (
        "previous_keys 'old' beside a cookie named __Host-sid needs signed=True: "
        "without __Host- anybody may have set it"
    ) == problem


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("maxAge", "max_age"),
        ("MAX_AGE", "max_age"),
        ("maxage", "max_age"),
        ("max_ages", "max_age"),
        ("ttl", "max_age"),
        ("expire", "max_age"),
        ("session_cookie_age", "max_age"),
        ("permanent_session_lifetime", "max_age"),
        ("name", "key"),
        ("cookie_name", "key"),
        ("SESSION_COOKIE_NAME", "key"),
        ("samesite", "same_site"),
        ("cookie_samesite", "same_site"),
        ("httponly", "http_only"),
        ("httpOnly", "http_only"),
        ("cookie_secure", "secure"),
        ("session_cookie_domain", "domain"),
        ("rolling", "renew"),
        ("touch_after", "renew"),
        ("absolute_timeout", "absolute_max_age"),
        ("autoCommit", "auto_commit"),
        ("keep_public", "keep_public_cookie"),
        ("max_sessions", "max_sessions_per_user"),
    ],
)
def test_what_was_meant(name, meant):
    """A misspelling, another case of letters, and the names that peers have."""
    assert [f"{name} is no option of sessions; did you mean {meant}?"] == problems_of(
        **{name: 1}
    )


@pytest.mark.parametrize(
    ("name", "variable"),
    [("secret", "APP_KEYS"), ("keys", "APP_KEYS"), ("origins", "CORS_URL")],
)
def test_what_is_a_variable(name, variable):
    """What others take as an option and we take from the environment."""
    assert [
        f"{name} is no option of sessions; it is the environment's {variable}"
    ] == problems_of(**{name: 1})


def test_without_a_store():
    """What needs a store says so."""
    assert ["keep_public_cookie needs a store"] == problems_of(
        has_store=False, keep_public_cookie=True
    )
    assert ["max_sessions_per_user needs a store"] == problems_of(
        has_store=False, max_sessions_per_user=3
    )
    [problem] = problems_of(has_store=False, signed=False)
    assert "signed=False would let visitors write it" in problem


def test_all_faults_at_once():
    """One start shows them all, and how many there are."""
    with pytest.raises(SettingsError) as caught:
        make_options(key="a b", max_age=0, same_site="x", timeout="y", nonsense=1)

    assert 5 == len(caught.value.problems)
    assert str(caught.value).endswith(" (5 problems)")
    assert isinstance(caught.value, SessionError)


def test_faults_of_environment_store_and_options_together():
    """They come in one message as well, wherever they were made."""
    environ = {"APP_KEYS": "short", "COOKIE_URL": "::", "CORS_URL": "*"}
    with pytest.raises(SettingsError) as caught:
        session_settings({}, environ=environ, max_age=0, same_site="x")  # type: ignore[arg-type]

    text = str(caught.value)
    for name in ("APP_NAME", "APP_KEYS", "COOKIE_URL", "CORS_URL"):
        assert name in text
    assert "store: a dict is no session store" in text
    assert "max_age must be" in text
    assert "same_site is" in text
    assert 7 == len(caught.value.problems)


def test_options_are_frozen():
    """Settings are read once; nobody changes them later."""
    with pytest.raises(AttributeError):
        make_options().max_age = 5  # type: ignore[misc]


# -- the environment -------------------------------------------------------------------


def environment(**variables):
    return Environment.from_env({**PRODUCTION, **variables})


def faults(**variables):
    values = {k: v for k, v in {**PRODUCTION, **variables}.items() if v is not None}
    with pytest.raises(SettingsError) as caught:
        Environment.from_env(values)
    return caught.value.problems


def test_keys_are_trimmed_and_in_order():
    """A comma list, newest first, blanks around a key ignored."""
    found = environment(APP_KEYS=f" {NEWER_KEY} ,\t{KEY}\n,{OLDER_KEY}")

    assert (NEWER_KEY, KEY, OLDER_KEY) == found.keys


@pytest.mark.parametrize("key", ["a" * 40, "changeme" * 4])
def test_a_guessable_key_is_warned_of_and_not_shown(key, caplog):
    """What anybody can guess gets a warning; only its length is refused (SG-4)."""
    environ = {"APP_NAME": "shop", "APP_KEYS": key}

    assert (key,) == Environment.from_env(environ).keys
    assert "APP_KEYS: key 1 of 1 is easy to guess" in caplog.text
    assert key not in caplog.text


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (None, "APP_KEYS is not set"),
        ("", "APP_KEYS is not set"),
        ("  ", "APP_KEYS is not set"),
        (KEY + ",", "key 2 of 2 is empty"),
        ("," + KEY, "key 1 of 2 is empty"),
        (f"{KEY}, ,{NEWER_KEY}", "key 2 of 3 is empty"),
        ("secret", "key 1 of 1 is shorter than 20"),
        (f"{KEY},nineteen-characters", "key 2 of 2 is shorter than 20"),
        (f"{KEY},{NEWER_KEY}, {KEY} ", "key 3 of 3 repeats key 1"),
        (f"{KEY},with-bytes-that-are-not-utf8-\udcff", "key 2 of 2 has characters"),
        (f"{KEY},with-a-newline\nin-it-that-is-long", "key 2 of 2 has characters"),
    ],
)
def test_wrong_keys_are_named_by_their_place(keys, complaint):
    """Fault 3 of docs/compas.md: no empty, short or repeated key (SG-4)."""
    [problem] = faults(APP_KEYS=keys)

    assert complaint in problem


def test_a_key_of_twenty_characters_is_enough():
    """The bound itself is allowed."""
    assert ("twenty-characters-ok",) == environment(
        APP_KEYS="twenty-characters-ok"
    ).keys


@pytest.mark.parametrize(
    ("variables", "production"),
    [
        ({}, True),
        ({"APP_ENV": "development"}, False),
        ({"APP_ENV": " Development "}, False),
        ({"APP_ENV": "production"}, True),
        ({"APP_ENV": "staging"}, True),
        ({"APP_ENV": "dev"}, True),
        ({"NODE_ENV": "development"}, False),
        ({"APP_ENV": "production", "NODE_ENV": "development"}, True),
        ({"APP_ENV": "development", "NODE_ENV": "production"}, False),
        ({"APP_ENV": "", "NODE_ENV": "development"}, False),
        ({"APP_ENV": " "}, True),
    ],
)
def test_production_unless_it_says_development(variables, production):
    """APP_ENV, else NODE_ENV; unset is production (CK-17)."""
    assert production is environment(**variables).production


def test_development_does_without_keys(caplog):
    """A key is derived from the name, with one warning that says what it is worth."""
    found = Environment.from_env({"APP_NAME": "counter", "APP_ENV": "development"})

    assert 1 == len(found.keys)
    assert len(found.keys[0]) >= 20
    [record] = caplog.records
    assert logging.WARNING == record.levelno
    assert "APP_KEYS is not set" in record.getMessage()


def test_development_checks_the_keys_that_are_there():
    """A short key is one there as well."""
    [problem] = faults(APP_ENV="development", APP_KEYS="short")

    assert "key 1 of 1 is shorter" in problem


@pytest.mark.parametrize("name", [None, "", "   "])
def test_the_name_is_required(name):
    """It names the cookie."""
    assert ["APP_NAME is not set; it names the session cookie"] == faults(APP_NAME=name)


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("example.com", "example.com"),
        (" Example.com ", "example.com"),
        (".example.com", "example.com"),
        ("https://example.com/", "example.com"),
        ("https://api.example.com:8443/x", "api.example.com"),
        ("localhost", "localhost"),
        ("", None),
        ("  ", None),
    ],
)
def test_cookie_url(url, domain):
    """The cookie's domain: a bare host, or that of a URL."""
    assert domain == environment(COOKIE_URL=url).cookie_url


@pytest.mark.parametrize(
    "url",
    ["exa mple.com", "example.com; Secure", "https://", "-a", "a..b", "http://[x"],
)
def test_a_wrong_cookie_url_is_refused(url):
    """It would break the cookie or end in it (CK-13)."""
    [problem] = faults(COOKIE_URL=url)

    assert problem.startswith("COOKIE_URL ")


def test_origins_are_a_trimmed_list():
    """CORS_URL: exact origins, checked at start-up."""
    found = environment(CORS_URL=" https://a.example.com ,http://b.example:8080")

    assert ("https://a.example.com", "http://b.example:8080") == found.cors_origins
    [problem] = faults(CORS_URL="https://a.example.com/,https://b.example")
    assert "CORS_URL entry 1" in problem


def test_every_fault_of_the_environment_at_once():
    """One start shows them all."""
    assert 4 == len(faults(APP_NAME="", APP_KEYS="x", COOKIE_URL=";", CORS_URL="*"))


@pytest.mark.parametrize(
    "keys",
    [
        f"{KEY},hunter2",
        f"{KEY},{KEY}",
        f"{KEY},",
        f"{KEY},hunter2-hunter2-hunter2-\udcff",
    ],
)
def test_no_key_is_shown(keys, caplog):
    """Not in the exception, its repr, its traceback or the log (SG-4, SG-8)."""
    caplog.set_level(logging.DEBUG)
    try:
        session_settings(MemorySessionStore(), environ={**PRODUCTION, "APP_KEYS": keys})
    except SettingsError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error) + str(error)
        shown += repr(error.problems) + repr(vars(error))
    else:
        pytest.fail("the keys were taken")

    for secret in (KEY, "hunter2"):
        assert secret not in shown + caplog.text


def test_the_environment_does_not_show_its_keys():
    """Its repr leaves them out."""
    assert KEY not in repr(environment())
    assert KEY not in str(environment())


def test_the_process_is_not_asked_when_an_environment_is_given(monkeypatch):
    """`environ=` stands for the whole environment."""
    monkeypatch.setenv("COOKIE_URL", "example.com")

    assert Environment.from_env(PRODUCTION).cookie_url is None
    assert "example.com" == Environment.from_env().cookie_url


# -- the wiring ------------------------------------------------------------------------


def test_settings_for_tornado():
    """Tornado's own settings come from the same keys and origins (T2)."""
    environ = {
        **PRODUCTION,
        "APP_KEYS": f"{NEWER_KEY},{KEY}",
        "CORS_URL": "https://app.example.com",
    }
    settings = session_settings(store=MemorySessionStore(), environ=environ)

    secrets = settings["cookie_secret"]
    assert [NEWER_KEY, KEY] == list(secrets.values())
    assert all(isinstance(version, int) and version > 0 for version in secrets)
    assert NEWER_KEY == secrets[settings["key_version"]]
    assert ["https://app.example.com"] == settings.get(
        "trusted_origins", ["https://app.example.com"]
    )


class UnderAnotherName(MemorySessionStore):
    """A store that somebody made of ours."""


async def connect() -> MemorySessionStore:
    """Stands for `PostgresSessionStore.connect`."""
    return MemorySessionStore()


class Momoko:
    """Looks as a pool of momoko does."""

    __module__ = "momoko.connection"


def store_problem(store: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        session_settings(store=store)
    [problem] = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("store", "says"),
    [
        (
            MemorySessionStore,
            "store: MemorySessionStore is a class; make one: store=Me",
        ),
        (
            PostgresSessionStore,
            "store: PostgresSessionStore is a class; make one: "
            "store=await PostgresSessionStore.connect(dsn)",
        ),
        (
            "postgresql://ada:hunter2@localhost/shop",
            "store: a text is no store; with a DSN: "
            "store=await PostgresSessionStore.connect(dsn)",
        ),
        (Momoko(), "store: a Momoko is a pool and no store; wrap it: store=PostgresS"),
        (MemorySessionStore.load, "store: a function is no session store; pass a"),
        ({}, "store: a dict is no session store; pass a"),
        (False, "store: a bool is no session store; pass a"),
    ],
)
def test_what_is_no_store(store, says):
    """It is named at start-up, with what to write instead, and never shown."""
    problem = store_problem(store)

    assert problem.startswith(says)
    assert "hunter2" not in problem


@pytest.mark.parametrize("wrong", [{}, {"max_age": 0}])
def test_a_store_that_nobody_has_awaited(wrong):
    """It says so, and Python has nothing to warn of when it is forgotten."""
    forgotten = connect()
    with pytest.raises(SettingsError) as caught:
        session_settings(store=forgotten, **wrong)  # type: ignore[arg-type]

    assert inspect.CORO_CLOSED == inspect.getcoroutinestate(forgotten)
    assert caught.value.problems[0] == (
        "store: a coroutine that was not awaited; write "
        "store=await PostgresSessionStore.connect(dsn)"
    )


@pytest.mark.parametrize("kind", [MemorySessionStore, UnderAnotherName])
def test_memory_in_production_gets_one_warning(kind, caplog):
    """It works until the second process, or the first restart."""
    session_settings(store=kind(), environ=PRODUCTION)

    [record] = caplog.records
    assert logging.WARNING == record.levelno
    assert "MemorySessionStore in production" in record.getMessage()


def test_memory_in_development_gets_none(caplog):
    """It is what it is for; nor does a set-up without a store get one."""
    session_settings(store=MemorySessionStore())
    session_settings(environ=PRODUCTION)

    assert [] == caplog.records


@pytest.mark.parametrize(
    ("domain", "warned"),
    [("co.uk", True), ("com", True), ("shop.co.uk", False), ("localhost", False)],
)
def test_a_public_suffix_gets_one_warning(domain, warned, caplog):
    """Browsers refuse such a cookie without a word, so the server says it."""
    session_settings(environ={**PRODUCTION, "COOKIE_URL": domain})

    said = [record.getMessage() for record in caplog.records]
    assert warned == any(f"like shop.{domain}" in line for line in said)
    assert len(said) == warned


@pytest.mark.parametrize("name", ["cookie_secret", "key_version"])
def test_keys_of_ones_own_have_their_place(name):
    """It is named where somebody tries another; the key is not shown."""
    with pytest.raises(SettingsError) as caught:
        session_settings(MemorySessionStore(), **dict[str, Any]({name: "hunter2"}))

    [problem] = caught.value.problems
    assert problem.startswith(f"{name} is Tornado's; sessions are signed with APP_KEYS")
    assert '{**session_settings(store=store), "cookie_secret": …}' in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("name", "meant"),
    [("stor", "store"), ("onReuse", "on_reuse"), ("maxAge", "max_age")],
)
def test_arguments_are_meant_too(name, meant):
    """`session_settings` knows its own names beside those of the options."""
    with pytest.raises(SettingsError) as caught:
        session_settings(MemorySessionStore(), **dict[str, Any]({name: 1}))

    assert [f"{name} is no option of sessions; did you mean {meant}?"] == (
        caught.value.problems
    )


def test_settings_are_ours_or_tornados():
    """Beside jupyter_server's `session_manager` and other people's names."""
    settings = session_settings(store=MemorySessionStore())
    tornados = {"cookie_secret", "key_version", "trusted_origins"}

    assert "compas_session_manager" in settings
    for name in settings.keys() - tornados:
        assert name.startswith("compas_session_")


def test_an_old_tornado_is_refused(monkeypatch):
    """One with holes that touch cookies is named, with the cure."""
    monkeypatch.setattr("tornado.version_info", (6, 5, 8, 0))
    with pytest.raises(SettingsError, match=r"pip install 'tornado>=6\.5\.9'"):
        session_settings(MemorySessionStore())
