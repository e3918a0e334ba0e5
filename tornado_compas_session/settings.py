"""
What the environment and the options say: read once, checked at once, frozen.

Every fault is found before anything is raised, so that one start shows them all. An
option is one entry of `SessionOptions`: its name, check and default, and above it what
it means. The rest, that of the documentation included, follows from there.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from tornado_compas_session.browsers import MAX_MAX_AGE, prefix_of, unmet
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
MIN_KEY_LENGTH = 20
#: "changemechangemechangeme" has seven, and no chance makes so few.
MIN_KEY_VARIETY = 8


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Puts what is found wrong in the block on the list, instead of raising it."""
    try:
        yield
    except SettingsError as error:
        problems += error.problems
    except (TypeError, ValueError) as error:
        problems.append(str(error))


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
        production = is_production(environ)
        keys: tuple[str, ...] = ()
        cookie_url: str | None = None
        origins: tuple[str, ...] = ()
        with collected(problems):
            keys = _keys(environ.get("APP_KEYS", ""), app_name, production)
        with collected(problems):
            if url := environ.get("COOKIE_URL", "").strip():
                # As a bare host, as in COOKIE_URL=example.com, or as that of a URL.
                host = re.sub(r"^\w+://([^/]*@)?([^/:]*).*", r"\2", url)
                cookie_url = _domain(host, "COOKIE_URL")
        with collected(problems):
            origins = parse_origins(environ.get("CORS_URL"))
        if problems:
            raise SettingsError(problems)
        return cls(app_name, keys, production, cookie_url, origins)


def is_production(environ: Mapping[str, str]) -> bool:
    """Everything is that does not say development."""
    mode = environ.get("APP_ENV") or environ.get("NODE_ENV") or ""
    return mode.strip().lower() != "development"


def _keys(text: str, app_name: str, production: bool) -> tuple[str, ...]:
    if not text.strip():
        if production:
            raise SettingsError(
                "APP_KEYS is not set; make a key with `tornado-compas-session keygen` "
                "(or set APP_ENV=development to do without on your own machine)"
            )
        if app_name:
            logger.warning(
                "APP_KEYS is not set: cookies are signed with a key derived from "
                "APP_NAME, which anybody can guess; fine for development only"
            )
        return (f"development-only-key-of-{app_name}",)
    keys = tuple(key.strip() for key in text.split(","))
    problems = []
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
    if problems:
        raise SettingsError(problems)
    return keys


# ── what a value may be: each takes it and the option's name, and says what is kept ──


def lifetime_seconds(value: float | timedelta | str, name: str = "max_age") -> int:
    """
    Checks a lifetime: whole seconds, negative for `"session"`.

    Raises `TypeError` or `ValueError`, naming what is allowed.
    """
    if value == "session":
        return -BROWSER_SESSION_IDLE
    number = _number_in(value)
    if number is None:
        raise TypeError(
            f'{name} is a number of seconds, a timedelta or "session", '
            f"and not {value if isinstance(value, str) else type(value).__name__!r}"
        )
    if not 1 <= number <= MAX_MAX_AGE:
        raise ValueError(
            f"{name} must be between 1 second and 400 days ({MAX_MAX_AGE} seconds), "
            "the longest that a browser keeps a cookie"
        )
    return int(number)


def _seconds(value: Any, name: str) -> int:
    if value == "session":
        raise ValueError(f'{name} is a number of seconds, and not "session"')
    return lifetime_seconds(value, name)


def _renew(value: Any, name: str) -> float | None:
    if isinstance(value, bool):
        return 30.0 if value else None
    return _number(0, 86400)(value, name)


def _number(
    low: float, high: float, kind: type[int] | type[float] = float
) -> Callable[[Any, str], float]:
    def check(value: Any, name: str) -> float:
        number = _number_in(value)
        if number is None or not low <= number <= high:
            raise ValueError(
                f"{name} is a number between {low:g} and {high:g}, and not {value!r}"
            )
        return kind(number)

    return check


def _number_in(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return None


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, and not {value!r}")
    return value


def _text(pattern: str, longest: int, wrong: str) -> Callable[[Any, str], str]:
    def check(value: Any, name: str) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.I | re.A):
            raise ValueError(f"{name} {value!r} {wrong}")
        if len(value) > longest:
            raise ValueError(f"{name} is longer than {longest} characters")
        return value

    return check


# RFC 6265: a token. Signed value, signature, name and all must stay below what browsers
# keep.
_name = _text(
    r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+",
    128,
    "is no cookie name; letters, digits and any of !#$%&'*+-.^_`|~ are allowed",
)
# Browsers ignore longer attributes (RFC 6265bis, section 5.6).
_path = _text(
    "/[!-:<-~]*",
    1024,
    "must begin with / and have no semicolon, space or control character",
)
_LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_host = _text(rf"\.?{_LABEL}(\.{_LABEL})*", 1024, "is no domain, like example.com")


def _domain(value: Any, name: str) -> str:
    return _host(value, name).lstrip(".").lower()


def _names(value: Any, name: str) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) and value else value or ()
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} is a list of cookie names, and not {value!r}")
    return tuple(_name(one, name) for one in values)


def _same_site(value: Any, name: str) -> str:
    if str(value).lower() not in ("lax", "strict", "none"):
        raise ValueError(f'{name} is "lax", "strict" or "none", and not {value!r}')
    return str(value).capitalize()


# ── the options ──────────────────────────────────────────────────────────────────────


class Option(NamedTuple):
    """What is known of an option, but its name, type and meaning."""

    #: Takes a value and the option's name; raises `TypeError` or `ValueError`.
    check: Callable[[Any, str], Any]
    #: As a user would write it; or what makes it of the environment and the name of
    #: the cookie.
    default: Any


def _option(check: Callable[[Any, str], Any], default: Any) -> Any:
    return field(metadata={"option": Option(check, default)})


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

    # What stands above an option is what docs/options.md says of it.

    #: The name of the cookie. What a [prefix](cookies.md#prefixes) demands of the other
    #: options is checked. Default: `APP_NAME` in lower case + `.sess`
    key: str = _option(
        _name, lambda environment, _: f"{environment.app_name}.sess".lower()
    )
    #: Names of former days that are still read; the cookie is sent anew under `key`,
    #: see [cookies](cookies.md#a-new-name).
    previous_keys: tuple[str, ...] = _option(_names, ())
    #: The `Domain` attribute; without it the cookie goes to this host alone.
    #: Default: `COOKIE_URL` in production, else none
    domain: str | None = _option(_domain, _cookie_domain)
    #: The `Path` attribute.
    path: str = _option(_path, "/")
    #: The `Secure` attribute: https only. Default: true in production
    secure: bool = _option(_flag, lambda environment, _: environment.production)
    #: Scripts cannot read it.
    http_only: bool = _option(_flag, True)
    #: `"lax"`, `"strict"` or `"none"`; `"none"` needs `secure`.
    same_site: str = _option(_same_site, "lax")
    #: The `Partitioned` attribute (CHIPS): in frames of other sites the browser keeps a
    #: cookie for each of these. Needs `secure` and `same_site="none"`.
    partitioned: bool = _option(_flag, False)
    #: Signed with the keys in APP_KEYS, in Tornado's format. `False` needs a store; the
    #: id alone is in the cookie then.
    signed: bool = _option(_flag, True)
    #: The cookie's lifetime restarts with use: it goes out whenever its secret is new,
    #: which a renewal makes it. `False`: only when the session is new or regenerated,
    #: so the cookie ends `max_age` after that.
    overwrite: bool = _option(_flag, True)
    #: A second cookie, `<key>.public`, that scripts can read. Its value is `truthy` for
    #: everybody; it comes and goes with the session cookie. Needs a store.
    keep_public_cookie: bool = _option(_flag, False)

    #: The idle lifetime: so long after its last use the session ends. A shorter one
    #: holds for sessions that live already. `"session"`: the cookie ends with the
    #: browser, and the row 30 minutes after its last use.
    max_age: int = _option(lifetime_seconds, timedelta(days=6))
    #: Use extends the session. The row's expiry is written at most every 30 seconds
    #: (where the lifetime is under 5 minutes, every tenth of it), and the data is not
    #: touched; the cookie, with a new secret, when it is older than a tenth of the
    #: lifetime, an hour at most. A number sets the seconds; `0` renews both with every
    #: request. `False`: the lifetime is fixed.
    renew: float | None = _option(_renew, True)
    #: So long after it was created the session ends, however busy.
    absolute_max_age: int | None = _option(_seconds, None)
    #: The idle lifetime of sessions without a `user_id`, where it should be shorter.
    anonymous_max_age: int | None = _option(_seconds, None)
    #: Seconds for which requests under way still find the session by the id from before
    #: `regenerate()`, once the new one has been shown.
    regenerate_grace: float = _option(_number(0, 300), 5)
    #: Seconds between two looks whether the session of an open WebSocket still lives;
    #: the socket is closed with 1008 if not.
    websocket_check: float = _option(_number(0.05, 86400), 15)

    #: Saved at the end of each request. `False`: only by `await self.session.save()`;
    #: ending the session works without it, and use extends the session all the same.
    auto_commit: bool = _option(_flag, True)
    #: Seconds that the store may take for one load or save; then 503.
    timeout: float = _option(_number(0.01, 3600), 5)
    #: The most bytes of one session's JSON.
    max_data_size: int = _option(_number(64, 2**27, int), 65536)
    #: Whether a session records the browser's `User-Agent` and address when it is
    #: created and at sign-in, for lists.
    record_client: bool = _option(_flag, False)
    #: The most sessions that a user may have at once; the one unused longest ends.
    max_sessions_per_user: int | None = _option(_number(1, 10**6, int), None)

    # What COOKIE_URL says in production, also where the cookie has no domain.
    cookie_url: str | None = None

    @property
    def idle(self) -> int:
        """The idle lifetime in seconds."""
        # That of a cookie that ends with the browser is negative.
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
        problems = [unknown_option(n, OPTIONS) for n in options if n not in OPTIONS]
        kept: dict[str, Any] = {}
        for name, (check, default) in OPTIONS.items():
            if callable(default):
                default = default(environment, kept.get("key", ""))
            # Kept where what is given is wrong, so that the rest is checked as well.
            kept[name] = default
            with collected(problems):
                value = default if options.get(name) is None else options[name]
                kept[name] = None if value is None else check(value, name)
        cookie_url = environment.cookie_url if environment.production else None
        built = cls(**kept, cookie_url=cookie_url)
        problems += _contradictions(built, has_store)
        if problems:
            raise SettingsError(problems)
        return built


#: By their names.
OPTIONS: dict[str, Option] = {
    one.name: one.metadata["option"]
    for one in dataclasses.fields(SessionOptions)
    if one.metadata
}

_MEETS = {
    "Secure": "needs secure=True",
    "HttpOnly": "needs http_only=True",
    "Path=/": "needs path='/'",
    "no Domain": "cannot have a domain",
}


def _contradictions(options: SessionOptions, has_store: bool) -> Iterator[str]:
    """What two options say against each other."""
    key, names, prefix = options.key, options.cookie_names, prefix_of(options.key)
    none = options.same_site == "None"
    wrong = {
        'same_site="none" needs secure=True; browsers drop the cookie else': (
            none and not options.secure
        ),
        'partitioned=True needs secure=True and same_site="none"': (
            options.partitioned and not (options.secure and none)
        ),
        "keep_public_cookie needs a store": (
            options.keep_public_cookie and not has_store
        ),
        "max_sessions_per_user needs a store": (
            options.max_sessions_per_user is not None and not has_store
        ),
        "without a store the data is in the cookie, so signed=False would let visitors "
        "write it": not options.signed and not has_store,
    }
    yield from (text for text, is_so in wrong.items() if is_so)
    for demand in unmet(
        key,
        secure=options.secure,
        http_only=options.http_only,
        path=options.path,
        domain=options.domain,
    ):
        yield f"a cookie named {key} {_MEETS[demand]}"
    for place, name in enumerate(names):
        if name in names[:place]:
            yield f"previous_keys repeats {name!r}"
        # Whoever could plant the weaker name would get it promoted.
        if prefix and not options.signed and prefix_of(name) != prefix:
            yield (
                f"previous_keys {name!r} beside a cookie named {key} needs "
                f"signed=True: without {prefix.text} anybody may have set it"
            )


# ── names that are nearly right ──────────────────────────────────────────────────────

#: What others call our options, and what they have as an option and we in a variable.
_ELSEWHERE = {
    "key": "name id",
    "max_age": "age ttl expire expires expiry lifetime idletimeout",
    "absolute_max_age": "absolutetimeout maxlifetime",
    "renew": "rolling sliding refresh saveeveryrequest touchafter",
    "keep_public_cookie": "public",
    "auto_commit": "autosave",
    "APP_KEYS": "secret secrets keys appkeys keyversion",
    "CORS_URL": "origins corsorigins corsurl",
    "COOKIE_URL": "cookieurl",
    "APP_NAME": "appname",
}
_BY_NAME = {name: ours for ours, names in _ELSEWHERE.items() for name in names.split()}


def unknown_option(name: str, known: Iterable[str]) -> str:
    """What to say of an option that is not known: the one that was meant, or all."""
    if name in ("cookie_secret", "key_version"):
        return (
            f"{name} is Tornado's; sessions are signed with APP_KEYS. To sign cookies "
            "of your own with another key: "
            'Application(routes, **{**session_settings(store=store), "cookie_secret": '
            "…}), or install(Application(routes, cookie_secret=…), store=store)"
        )
    known = tuple(known)
    meant = meant_option(name, known)
    if meant is None:
        return f"{name} is no option of sessions; there are {', '.join(known)}"
    if meant in known:
        return f"{name} is no option of sessions; did you mean {meant}?"
    return f"{name} is no option of sessions; it is the environment's {meant}"


def meant_option(name: str, known: Iterable[str]) -> str | None:
    """The option, or the variable, that was probably meant by a name."""
    bare = re.sub(r"[^a-z]", "", name.lower())
    ours = _BY_NAME | {one.replace("_", ""): one for one in known}
    # Peers have session_cookie_secure, cookie_name, SESSION_COOKIE_AGE.
    for text in (bare, re.sub(r"^(permanent|session|cookie)+", "", bare)):
        if text in ours:
            return ours[text]
    near = difflib.get_close_matches(name.lower(), [*known], n=1, cutoff=0.7)
    return near[0] if near else None
