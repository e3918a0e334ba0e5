"""
What the environment and the options say: read once, checked at once, frozen.

Every fault is found before anything is raised, so that one start shows them all. An
option is one line of `SessionOptions`: its name, default, check and meaning. The rest,
that of the documentation included, follows from there.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tornado_compas_session.browsers import (
    MAX_MAX_AGE,
    prefix_of,
    public_name,
    unmet,
)
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.origins import parse_origins

__all__ = [
    "CLEANER",
    "HEADERS",
    "MANAGER",
    "MAX_MAX_AGE",
    "OPTIONS",
    "OPTION_NAMES",
    "ORIGINS",
    "PRODUCTION",
    "Environment",
    "FromEnvironment",
    "Option",
    "SessionOptions",
    "lifetime_seconds",
    "meant_option",
    "public_name",
    "unknown_option",
]

logger = logging.getLogger("tornado_compas_session")

# Our keys in an application's `settings`, beside Tornado's and those of others
# (jupyter_server has a `session_manager` of its own).
MANAGER = "compas_session_manager"
PRODUCTION = "compas_session_production"
ORIGINS = "compas_session_origins"
CLEANER = "compas_session_cleaner"
HEADERS = "compas_session_headers"

#: A session whose cookie ends with the browser lives so long without use (Compas).
BROWSER_SESSION_IDLE = 30 * 60
MIN_KEY_LENGTH = 20
#: "changemechangemechangeme" has seven, and no chance makes so few.
MIN_KEY_VARIETY = 8

# RFC 6265: a cookie name is a token.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Signed value, signature, name and all must stay below what browsers keep.
_MAX_NAME = 128
# Browsers ignore longer attributes (RFC 6265bis, section 5.6).
_MAX_ATTRIBUTE = 1024
_DOMAIN = re.compile(
    r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.I
)
_PATH = re.compile(r"/[!-:<-~]*")
_SAME_SITE = {"lax": "Lax", "strict": "Strict", "none": "None"}


# ── the environment ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables of the environment that the library reads, checked."""

    app_name: str
    #: Newest first. Never shown.
    keys: tuple[str, ...] = field(repr=False)
    production: bool
    cookie_url: str | None = None
    cors_origins: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Environment:
        """
        Reads APP_NAME, APP_KEYS, APP_ENV (else NODE_ENV), COOKIE_URL and CORS_URL.

        Raises `SettingsError` with every fault at once. A key is never shown, only
        its place in the list.
        """
        environ = os.environ if environ is None else environ
        problems: list[str] = []
        app_name = environ.get("APP_NAME", "").strip()
        if not app_name:
            problems.append("APP_NAME is not set; it names the session cookie")
        mode = environ.get("APP_ENV") or environ.get("NODE_ENV") or "production"
        production = mode.strip().lower() != "development"

        keys = _parse_keys(environ.get("APP_KEYS"), app_name, production, problems)
        cookie_url = (environ.get("COOKIE_URL") or "").strip() or None
        if cookie_url:
            cookie_url = _host(cookie_url, problems)
        origins: tuple[str, ...] = ()
        try:
            origins = parse_origins(environ.get("CORS_URL"))
        except SettingsError as error:
            problems += error.problems
        if problems:
            raise SettingsError(problems)
        return cls(app_name, keys, production, cookie_url, origins)


def _parse_keys(
    text: str | None, app_name: str, production: bool, problems: list[str]
) -> tuple[str, ...]:
    if text is None or not text.strip():
        if production:
            problems.append(
                "APP_KEYS is not set; make a key with `tornado-compas-session keygen` "
                "(or set APP_ENV=development to do without on your own machine)"
            )
        elif app_name:
            logger.warning(
                "APP_KEYS is not set: cookies are signed with a key derived from "
                "APP_NAME, which anybody can guess; fine for development only"
            )
            return (f"development-only-key-of-{app_name}",)
        return ()
    keys = tuple(key.strip() for key in text.split(","))
    for place, key in enumerate(keys, 1):
        where = f"APP_KEYS: key {place} of {len(keys)}"
        if not key:
            problems.append(f"{where} is empty (a comma too many?)")
        elif len(key) < MIN_KEY_LENGTH:
            problems.append(
                f"{where} is shorter than {MIN_KEY_LENGTH} characters; "
                "make one with `tornado-compas-session keygen`"
            )
        elif not key.isprintable():
            problems.append(f"{where} has characters that cannot be printed")
        elif key in keys[: place - 1]:
            problems.append(f"{where} repeats key {keys.index(key) + 1}")
        elif len(set(key)) < MIN_KEY_VARIETY:
            logger.warning(
                "%s is easy to guess: it has fewer than %d different characters; "
                "make one with `tornado-compas-session keygen`",
                where,
                MIN_KEY_VARIETY,
            )
    return keys


def _host(url: str, problems: list[str]) -> str | None:
    """The domain for cookies: a bare host, as in COOKIE_URL=example.com, or a URL's."""
    try:
        host = urlsplit(url).hostname if "://" in url else url.lstrip(".")
    except ValueError:
        host = None
    if not host or not _DOMAIN.fullmatch(host):
        problems.append(
            f"COOKIE_URL {url!r} is not a domain; it should be like example.com"
        )
        return None
    return host.lower()


# ── what a value may be: each takes it and the option's name, and says what is kept ──


def lifetime_seconds(value: float | timedelta | str, name: str = "max_age") -> int:
    """
    Checks a lifetime: whole seconds, negative for `"session"`.

    Raises `TypeError` or `ValueError`, naming what is allowed.
    """
    if value == "session":
        return -BROWSER_SESSION_IDLE
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f'{name} is a number of seconds, a timedelta or "session", '
            f"and not {value if isinstance(value, str) else type(value).__name__!r}"
        )
    if not 1 <= value <= MAX_MAX_AGE:
        raise ValueError(
            f"{name} must be between 1 second and 400 days ({MAX_MAX_AGE} seconds), "
            "the longest that a browser keeps a cookie"
        )
    return int(value)


def _seconds(value: Any, name: str) -> int:
    if value == "session":
        raise ValueError(f'{name} is a number of seconds, and not "session"')
    return lifetime_seconds(value, name)


def _number(
    low: float, high: float, kind: type[int] | type[float] = float
) -> Callable[[Any, str], float]:
    def check(value: Any, name: str) -> float:
        number = value.total_seconds() if isinstance(value, timedelta) else value
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not low <= number <= high
        ):
            raise ValueError(
                f"{name} is a number between {low:g} and {high:g}, and not {value!r}"
            )
        return kind(number)

    return check


def _renew(value: Any, name: str) -> float | None:
    if isinstance(value, bool):
        return 30.0 if value else None
    return _number(0, 86400)(value, name)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, and not {value!r}")
    return value


def _name(value: Any, name: str) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError(
            f"{name} {value!r} is no cookie name; letters, digits and any of "
            "!#$%&'*+-.^_`|~ are allowed"
        )
    if len(value) > _MAX_NAME:
        raise ValueError(f"{name} is longer than {_MAX_NAME} characters")
    return value


def _names(value: Any, name: str) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) and value else value or ()
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} is a list of cookie names, and not {value!r}")
    return tuple(_name(one, name) for one in values)


def _domain(value: Any, name: str) -> str:
    if not isinstance(value, str) or not _DOMAIN.fullmatch(value.lstrip(".")):
        raise ValueError(f"{name} {value!r} is no domain, like example.com")
    return value.lstrip(".").lower()


def _path(value: Any, name: str) -> str:
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        raise ValueError(
            f"{name} {value!r} must begin with / and have no semicolon, space or "
            "control character"
        )
    if len(value) > _MAX_ATTRIBUTE:
        raise ValueError(f"{name} is longer than {_MAX_ATTRIBUTE} characters")
    return value


def _same_site(value: Any, name: str) -> str:
    if not isinstance(value, str) or value.lower() not in _SAME_SITE:
        raise ValueError(f'{name} is "lax", "strict" or "none", and not {value!r}')
    return _SAME_SITE[value.lower()]


# ── the options ──────────────────────────────────────────────────────────────────────


class FromEnvironment(NamedTuple):
    """A default that the environment decides."""

    #: How the documentation says it.
    words: str
    #: From the environment and the cookie's name.
    decide: Callable[[Environment, str], Any]


class Option(NamedTuple):
    """All that is known of an option, but its name and type."""

    #: The part of the page "Options" that it stands in.
    part: str
    #: As a user would write it.
    default: Any
    #: Takes a value and the option's name; raises `TypeError` or `ValueError`.
    check: Callable[[Any, str], Any]
    #: For the documentation.
    meaning: str


def _option(
    part: str, default: Any, check: Callable[[Any, str], Any], meaning: str
) -> Any:
    metadata = {"option": Option(part, default, check, meaning)}
    if isinstance(default, FromEnvironment):
        return field(metadata=metadata)
    kept = None if default is None else check(default, part)
    return field(default=kept, metadata=metadata)


# In which part of that page it stands.
_cookie = partial(_option, "cookie")
_lifetime = partial(_option, "lifetimes")
_data = partial(_option, "data")


def _cookie_domain(environment: Environment, key: str) -> str | None:
    # A name with the prefix says that there is no domain.
    prefix = prefix_of(key)
    host_only = prefix is not None and prefix.host_only
    return environment.cookie_url if environment.production and not host_only else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """
    The options, after those of Compas, checked and resolved.

    Made by `SessionOptions.build(environment, **options)`; lifetimes in seconds.
    """

    key: str = _cookie(
        FromEnvironment(
            "`APP_NAME` in lower case + `.sess`",
            lambda environment, _: environment.app_name.lower() + ".sess",
        ),
        _name,
        "The name of the cookie. What a [prefix](cookies.md#prefixes) demands of the "
        "other options is checked.",
    )
    previous_keys: tuple[str, ...] = _cookie(
        (),
        _names,
        "Names of former days that are still read; the cookie is sent anew under "
        "`key`, see [cookies](cookies.md#a-new-name).",
    )
    domain: str | None = _cookie(
        FromEnvironment("`COOKIE_URL` in production, else none", _cookie_domain),
        _domain,
        "The `Domain` attribute; without it the cookie goes to this host alone.",
    )
    path: str = _cookie("/", _path, "The `Path` attribute.")
    secure: bool = _cookie(
        FromEnvironment(
            "true in production", lambda environment, _: environment.production
        ),
        _flag,
        "The `Secure` attribute: https only.",
    )
    http_only: bool = _cookie(True, _flag, "Scripts cannot read it.")
    same_site: str = _cookie(
        "lax",
        _same_site,
        '`"lax"`, `"strict"` or `"none"`; `"none"` needs `secure`.',
    )
    partitioned: bool = _cookie(
        False,
        _flag,
        "The `Partitioned` attribute (CHIPS): in frames of other sites the browser "
        "keeps a cookie for each of these. Needs `secure` and "
        '`same_site="none"`.',
    )
    signed: bool = _cookie(
        True,
        _flag,
        "Signed with the keys in APP_KEYS, in Tornado's format. `False` needs a store; "
        "the id alone is in the cookie then.",
    )
    overwrite: bool = _cookie(
        True,
        _flag,
        "The cookie's lifetime restarts with use: it goes out whenever its secret is "
        "new, which a renewal makes it. `False`: only when the session is new or "
        "regenerated, so the cookie ends `max_age` after that.",
    )
    keep_public_cookie: bool = _cookie(
        False,
        _flag,
        "A second cookie, `<key>.public`, that scripts can read. Its value is `truthy` "
        "for everybody; it comes and goes with the session cookie. Needs a store.",
    )
    #: Negative: the cookie ends with the browser.
    max_age: int = _lifetime(
        timedelta(days=6),
        lifetime_seconds,
        "The idle lifetime: so long after its last use the session ends. A shorter one "
        'holds for sessions that live already. `"session"`: the cookie ends with the '
        "browser, and the row 30 minutes after its last use.",
    )
    #: None: the lifetime is fixed.
    renew: float | None = _lifetime(
        True,
        _renew,
        "Use extends the session. The row's expiry is written at most every 30 seconds "
        "(where the lifetime is under 5 minutes, every tenth of it), and the data is "
        "not touched; the cookie, with a new secret, when it is older than a tenth of "
        "the lifetime, an hour at most. A number sets the seconds; `0` renews both "
        "with every request. `False`: the lifetime is fixed.",
    )
    absolute_max_age: int | None = _lifetime(
        None, _seconds, "So long after it was created the session ends, however busy."
    )
    anonymous_max_age: int | None = _lifetime(
        None,
        _seconds,
        "The idle lifetime of sessions without a `user_id`, where it should be "
        "shorter.",
    )
    regenerate_grace: float = _lifetime(
        5,
        _number(0, 300),
        "Seconds for which requests under way still find the session by the id from "
        "before `regenerate()`, once the new one has been shown.",
    )
    websocket_check: float = _lifetime(
        15,
        _number(0.05, 86400),
        "Seconds between two looks whether the session of an open WebSocket still "
        "lives; the socket is closed with 1008 if not.",
    )
    auto_commit: bool = _data(
        True,
        _flag,
        "Saved at the end of each request. `False`: only by `await "
        "self.session.save()`; ending the session works without it, and use extends "
        "the session all the same.",
    )
    timeout: float = _data(
        5,
        _number(0.01, 3600),
        "Seconds that the store may take for one load or save; then 503.",
    )
    max_data_size: int = _data(
        65536, _number(64, 2**27, int), "The most bytes of one session's JSON."
    )
    record_client: bool = _data(
        False,
        _flag,
        "Whether a session records the browser's `User-Agent` and address when it is "
        "created and at sign-in, for lists.",
    )
    max_sessions_per_user: int | None = _data(
        None,
        _number(1, 10**6, int),
        "The most sessions that a user may have at once; the one unused longest ends.",
    )
    #: What COOKIE_URL says in production, also where the cookie has no domain.
    cookie_url: str | None = None

    @property
    def idle(self) -> int:
        """The idle lifetime in seconds."""
        return abs(self.max_age)

    @property
    def cookie_names(self) -> tuple[str, ...]:
        """The names under which a session cookie is looked for, own one first."""
        return (self.key, *self.previous_keys)

    @classmethod
    def build(
        cls, environment: Environment, *, has_store: bool, **options: Any
    ) -> SessionOptions:
        """
        Checks the options against each other and fills in the defaults.

        None is the default of every option. Raises `SettingsError` with every fault at
        once.
        """
        return _build(environment, has_store, options)


#: By their names.
OPTIONS: dict[str, Option] = {
    one.name: one.metadata["option"]
    for one in dataclasses.fields(SessionOptions)
    if "option" in one.metadata
}
OPTION_NAMES = tuple(OPTIONS)

_MEETS = {
    "Secure": "needs secure=True",
    "HttpOnly": "needs http_only=True",
    "Path=/": "needs path='/'",
    "no Domain": "cannot have a domain",
}


def _build(
    environment: Environment, has_store: bool, options: Mapping[str, Any]
) -> SessionOptions:
    problems = [
        unknown_option(name, OPTIONS) for name in options if name not in OPTIONS
    ]
    kept: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        default, given = option.default, options.get(name)
        if isinstance(default, FromEnvironment):
            default = default.decide(environment, kept.get("key", ""))
        value = default if given is None else given
        try:
            kept[name] = None if value is None else option.check(value, name)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
            kept[name] = default
    cookie_url = environment.cookie_url if environment.production else None
    built = SessionOptions(**kept, cookie_url=cookie_url)
    problems += _contradictions(built, has_store)
    if problems:
        raise SettingsError(problems)
    return built


def _contradictions(options: SessionOptions, has_store: bool) -> Iterator[str]:
    """What two options say against each other."""
    key, prefix = options.key, prefix_of(options.key)
    if options.same_site == "None" and not options.secure:
        yield 'same_site="none" needs secure=True; browsers drop the cookie else'
    if options.partitioned and not (options.secure and options.same_site == "None"):
        yield 'partitioned=True needs secure=True and same_site="none"'
    for demand in unmet(
        key,
        secure=options.secure,
        http_only=options.http_only,
        path=options.path,
        domain=options.domain,
    ):
        yield f"a cookie named {key} {_MEETS[demand]}"
    seen = {key}
    for name in options.previous_keys:
        if name in seen:
            yield f"previous_keys repeats {name!r}"
        seen.add(name)
    if prefix and not options.signed:
        # Whoever could plant the weaker name would get it promoted.
        for name in options.previous_keys:
            if prefix_of(name) != prefix:
                yield (
                    f"previous_keys {name!r} beside a cookie named {key} needs "
                    f"signed=True: without {prefix.text} anybody may have set it"
                )
    if not has_store:
        if options.keep_public_cookie:
            yield "keep_public_cookie needs a store"
        if options.max_sessions_per_user is not None:
            yield "max_sessions_per_user needs a store"
        if not options.signed:
            yield (
                "without a store the data is in the cookie, so signed=False "
                "would let visitors write it"
            )


# ── names that are nearly right ──────────────────────────────────────────────────────

#: What others call our options, and what they have as an option and we in a variable.
_ELSEWHERE = {
    "key": ("name", "id"),
    "max_age": ("age", "ttl", "expire", "expires", "expiry", "lifetime", "idletimeout"),
    "absolute_max_age": ("absolutetimeout", "maxlifetime"),
    "renew": ("rolling", "sliding", "refresh", "saveeveryrequest", "touchafter"),
    "keep_public_cookie": ("public",),
    "auto_commit": ("autosave", "autocommit"),
    "APP_KEYS": ("secret", "secrets", "keys", "appkeys"),
    "CORS_URL": ("origins", "corsorigins", "corsurl"),
    "COOKIE_URL": ("cookieurl",),
    "APP_NAME": ("appname",),
}
_BY_NAME = {name: ours for ours, names in _ELSEWHERE.items() for name in names}


def unknown_option(name: str, known: Iterable[str]) -> str:
    """What to say of an option that is not known: the one that was meant, or all."""
    known = tuple(known)
    meant = meant_option(name, known)
    if meant is None:
        return f"{name} is no option of sessions; there are {', '.join(known)}"
    if meant in known:
        return f"{name} is no option of sessions; did you mean {meant}?"
    return f"{name} is no option of sessions; it is the environment's {meant}"


def meant_option(name: str, known: Sequence[str]) -> str | None:
    """The option, or the variable, that was probably meant by a name."""
    bare = re.sub(r"[^a-z]", "", name.lower())
    ours = {one.replace("_", ""): one for one in known}
    # Peers have session_cookie_secure, cookie_name, SESSION_COOKIE_AGE.
    for text in (bare, re.sub(r"^(permanent|session|cookie)+", "", bare)):
        found = ours.get(text) or _BY_NAME.get(text)
        if found is not None and (found in known or found.isupper()):
            return found
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return near[0] if near else None
