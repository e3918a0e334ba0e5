"""
What the environment and the options say: read once, checked at once, frozen.

Every fault is found before anything is raised, so that one start shows them all.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.origins import parse_origins

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
#: Browsers keep no cookie longer (RFC 6265bis, section 5.5).
MAX_MAX_AGE = 400 * 24 * 60 * 60
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


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """
    The options, after those of Compas, checked and resolved.

    Made by `SessionOptions.build(environment, **options)`; lifetimes in seconds.
    """

    key: str
    #: Idle lifetime in seconds; negative: the cookie ends with the browser.
    max_age: int = 6 * 24 * 60 * 60
    #: Seconds between two writes of the expiry; None: the lifetime is fixed.
    renew: float | None = 30.0
    overwrite: bool = True
    secure: bool = True
    domain: str | None = None
    path: str = "/"
    same_site: str = "Lax"
    http_only: bool = True
    signed: bool = True
    auto_commit: bool = True
    keep_public_cookie: bool = False
    absolute_max_age: int | None = None
    timeout: float = 5.0
    max_data_size: int = 64 * 1024
    #: Seconds for which the old id still finds the session after `regenerate`.
    regenerate_grace: float = 5.0
    #: Idle lifetime of sessions in which nobody has signed in; None: `max_age`.
    anonymous_max_age: int | None = None
    #: Cookie names of former days that are still read.
    previous_keys: tuple[str, ...] = ()
    #: Whether sessions record the visitor's user agent and address.
    record_client: bool = False
    #: Seconds between two looks whether an open WebSocket's session still lives.
    websocket_check: float = 15.0
    #: The most sessions a user may have at once; the one unused longest ends.
    max_sessions_per_user: int | None = None

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

        Raises `SettingsError` with every fault at once.
        """
        return _Check(environment, has_store, options).result()


#: The options that `SessionOptions.build` takes.
OPTION_NAMES = tuple(f for f in SessionOptions.__dataclass_fields__)


class _Check:
    """Collects the faults of a set of options."""

    def __init__(
        self, environment: Environment, has_store: bool, options: dict[str, Any]
    ) -> None:
        self.environment = environment
        self.has_store = has_store
        self.options = options
        self.problems: list[str] = []

    def result(self) -> SessionOptions:
        for name in self.options:
            if name not in OPTION_NAMES:
                self.problems.append(
                    f"{name} is no option of sessions; there are "
                    + ", ".join(OPTION_NAMES)
                )
        env = self.environment
        values: dict[str, Any] = {
            "key": self.name("key", env.app_name.lower() + ".sess"),
            "max_age": self.lifetime("max_age", 6 * 24 * 60 * 60),
            "absolute_max_age": self.lifetime("absolute_max_age", None),
            "anonymous_max_age": self.lifetime("anonymous_max_age", None),
            "renew": self.renew(),
            "secure": self.flag("secure", env.production),
            "domain": self.domain(),
            "path": self.path(),
            "same_site": self.same_site(),
            "previous_keys": self.previous_keys(),
            "timeout": self.number("timeout", 5.0, 0.01, 3600),
            "max_data_size": int(self.number("max_data_size", 65536, 64, 2**27)),
            "regenerate_grace": self.number("regenerate_grace", 5.0, 0, 300),
            "websocket_check": self.number("websocket_check", 15.0, 0.05, 86400),
        }
        for name, default in {
            "overwrite": True,
            "http_only": True,
            "signed": True,
            "auto_commit": True,
            "keep_public_cookie": False,
            "record_client": False,
        }.items():
            values[name] = self.flag(name, default)
        bound = self.options.get("max_sessions_per_user")
        if bound is not None:
            bound = int(self.number("max_sessions_per_user", 0, 1, 10**6))
        values["max_sessions_per_user"] = bound
        self.together(values)
        if self.problems:
            raise SettingsError(self.problems)
        return SessionOptions(**values)

    def name(self, option: str, default: str) -> str:
        value = self.options.get(option)
        if value is None:
            value = default
        self.check_name(option, value)
        return str(value)

    def check_name(self, option: str, value: object) -> None:
        if not isinstance(value, str) or not _TOKEN.fullmatch(value):
            self.problems.append(
                f"{option} {value!r} is no cookie name; letters, digits and any of "
                "!#$%&'*+-.^_`|~ are allowed"
            )
        elif len(value) > _MAX_NAME:
            self.problems.append(f"{option} is longer than {_MAX_NAME} characters")

    def previous_keys(self) -> tuple[str, ...]:
        value = self.options.get("previous_keys") or ()
        if isinstance(value, str):
            value = (value,)
        for name in value:
            self.check_name("previous_keys", name)
        return tuple(value)

    def flag(self, option: str, default: bool) -> bool:
        value = self.options.get(option)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problems.append(f"{option} is True or False, and not {value!r}")
        return bool(value)

    def number(self, option: str, default: float, low: float, high: float) -> float:
        value = self.options.get(option)
        if value is None:
            return default
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            self.problems.append(
                f"{option} is a number between {low:g} and {high:g}, and not {value!r}"
            )
            return default
        return float(value)

    def lifetime(self, option: str, default: int | None) -> int | None:
        value = self.options.get(option)
        if value is None:
            return default
        if value == "session" and option != "max_age":
            self.problems.append(f'{option} is a number of seconds, and not "session"')
            return default
        try:
            return lifetime_seconds(value, option)
        except (TypeError, ValueError) as error:
            self.problems.append(str(error))
            return default

    def renew(self) -> float | None:
        value = self.options.get("renew", True)
        if value is False:
            return None
        if value is True or value is None:
            return 30.0
        return self.number("renew", 30.0, 0, 86400)

    def domain(self) -> str | None:
        value = self.options.get("domain")
        if value is None:
            env = self.environment
            default = env.cookie_url if env.production else None
            # A name with the prefix says that there is no domain (RFC 6265bis).
            prefixed = str(self.options.get("key", "")).lower().startswith("__host-")
            return None if prefixed else default
        if not isinstance(value, str) or not _DOMAIN.fullmatch(value.lstrip(".")):
            self.problems.append(f"domain {value!r} is no domain, like example.com")
            return None
        return value.lstrip(".").lower()

    def path(self) -> str:
        value = self.options.get("path")
        if value is None:
            return "/"
        if not isinstance(value, str) or not _PATH.fullmatch(value):
            self.problems.append(
                f"path {value!r} must begin with / and have no semicolon, space or "
                "control character"
            )
            return "/"
        if len(value) > _MAX_ATTRIBUTE:
            self.problems.append(f"path is longer than {_MAX_ATTRIBUTE} characters")
        return value

    def same_site(self) -> str:
        value = self.options.get("same_site")
        if value is None:
            return "Lax"
        if not isinstance(value, str) or value.lower() not in _SAME_SITE:
            self.problems.append(
                f'same_site is "lax", "strict" or "none", and not {value!r}'
            )
            return "Lax"
        return _SAME_SITE[value.lower()]

    def together(self, values: dict[str, Any]) -> None:
        """What two options say about each other."""
        say = self.problems.append
        if values["same_site"] == "None" and not values["secure"]:
            say('same_site="none" needs secure=True; browsers drop the cookie else')
        lower = values["key"].lower()
        if lower.startswith(("__host-", "__secure-")) and not values["secure"]:
            say(f"a cookie named {values['key']} needs secure=True")
        if lower.startswith("__host-"):
            if values["domain"]:
                say(f"a cookie named {values['key']} cannot have a domain")
            if values["path"] != "/":
                say(f"a cookie named {values['key']} needs path='/'")
        if not self.has_store:
            if values["keep_public_cookie"]:
                say("keep_public_cookie needs a store")
            if not values["signed"]:
                say(
                    "without a store the data is in the cookie, so signed=False "
                    "would let visitors write it"
                )
