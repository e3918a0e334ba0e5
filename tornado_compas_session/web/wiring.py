"""`session_settings`: from the environment and the options to Tornado's settings."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import tornado

from tornado_compas_session.browsers import is_public_suffix
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.cookie_only import CookieSessionManager
from tornado_compas_session.core.events import EventHook
from tornado_compas_session.core.manager import ReuseHook, SessionManager
from tornado_compas_session.core.protocols import Pool, SessionStore
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.origins import Origins
from tornado_compas_session.settings import (
    MANAGER,
    OPTIONS,
    ORIGINS,
    PRODUCTION,
    Environment,
    SessionOptions,
    collected,
    unknown_option,
)

logger = logging.getLogger("tornado_compas_session")

MIN_TORNADO = (6, 5, 9)
#: The packages of the drivers whose pools a `PostgresSessionStore` takes.
_DRIVERS = {"asyncpg", "psycopg_pool", "momoko"}


class _TrustedOrigins(list[str]):
    """The listed origins; contains the local ones too where `Origins` allows them."""

    origins: Origins

    def __contains__(self, origin: object) -> bool:
        return isinstance(origin, str) and self.origins.allows(origin)


def session_settings(
    store: SessionStore | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    on_reuse: ReuseHook | None = None,
    on_event: EventHook | None = None,
    **options: Any,
) -> dict[str, Any]:
    """
    What `tornado.web.Application(routes, **session_settings(store=store))` needs.

    Reads APP_NAME, APP_KEYS, APP_ENV, COOKIE_URL and CORS_URL (from `environ` if given,
    else the process's environment), checks them and the options together, and raises
    `SettingsError` with every fault at once. Without a store the data is kept in the
    signed cookie.

    Among the settings are Tornado's own `cookie_secret` (a dict of versions) and
    `key_version`, so that `set_signed_cookie` works with the same keys, and from
    Tornado 6.6 on `trusted_origins`. The sessions need none of these, so they can be
    replaced: `{**session_settings(…), "cookie_secret": mine}`. `on_reuse` is called
    with a `RetiredId` when an id is used that a session had before it was regenerated,
    and its grace is over: as a rule the work of a thief;
    `await store.revoke(retired.handle)` ends the session. `on_event` is called with the
    name of what happens and a dict of what belongs to it ("Monitoring" in the
    documentation has them all); it must not wait. Without a store neither is called.
    """
    if tornado.version_info < MIN_TORNADO:
        raise SettingsError(
            f"Tornado {tornado.version} has known holes that touch cookies; "
            "upgrade with: pip install 'tornado>=6.5.9'"
        )
    known = [*OPTIONS, *inspect.signature(session_settings).parameters]
    problems = [
        *_wrong_store(store),
        *(unknown_option(name, known) for name in options if name not in OPTIONS),
    ]
    if inspect.iscoroutinefunction(on_event) or not callable(on_event or print):
        problems.append("on_event: it is called and not awaited; pass a plain function")
    # The options are checked in any case, so that one start shows every fault.
    environment = Environment("app", (), production=True)
    with collected(problems):
        environment = Environment.from_env(environ)
    with collected(problems):
        resolved = SessionOptions.build(
            environment,
            has_store=store is not None,
            **{name: options[name] for name in OPTIONS.keys() & options.keys()},
        )
    if problems:
        raise SettingsError(problems)
    _warn(environment, resolved, store)
    keys = KeyRing(environment.keys)
    origins = Origins(environment.cors_origins, not environment.production)
    settings: dict[str, Any] = {
        "cookie_secret": dict(keys.versions),
        "key_version": keys.current,
        ORIGINS: origins,
        PRODUCTION: environment.production,
        MANAGER: (
            CookieSessionManager(resolved, keys)
            if store is None
            else SessionManager(
                resolved, keys, store, on_reuse=on_reuse, on_event=on_event
            )
        ),
    }
    if tornado.version_info >= (6, 6):
        trusted = _TrustedOrigins(origins.listed)
        trusted.origins = origins
        settings["trusted_origins"] = trusted
    return settings


def _wrong_store(store: object) -> list[str]:
    """What is wrong with what was passed as the store; its text is never shown."""
    if store is None:
        return []
    made = "await PostgresSessionStore.connect(dsn)"
    if isinstance(store, type):
        if store.__name__ != "PostgresSessionStore":
            made = f"{store.__name__}()"
        return [f"store: {store.__name__} is a class; make one: store={made}"]
    if isinstance(store, str | bytes):
        return [f"store: a text is no store; with a DSN: store={made}"]
    kind = type(store)
    if isinstance(store, Pool) or kind.__module__.partition(".")[0] in _DRIVERS:
        return [
            f"store: a {kind.__name__} is a pool and no store; wrap it: "
            "store=PostgresSessionStore(pool)"
        ]
    if inspect.isawaitable(store):
        if inspect.iscoroutine(store):
            store.close()  # or Python would warn of it as well
        return [f"store: a {kind.__name__} that was not awaited; write store={made}"]
    if not isinstance(store, SessionStore):
        return [
            f"store: a {kind.__name__} is no session store; pass a "
            "PostgresSessionStore or a MemorySessionStore"
        ]
    return []


def _warn(environment: Environment, options: SessionOptions, store: object) -> None:
    """What starts all the same, and should be thought over."""
    # By its name, because web knows no store.
    kinds = {kind.__name__ for kind in type(store).__mro__}
    if environment.production and "MemorySessionStore" in kinds:
        logger.warning(
            "MemorySessionStore in production: sessions end with the process, and "
            "other processes do not see them; use PostgresSessionStore (on your own "
            "machine set APP_ENV=development)"
        )
    domain = options.domain
    if domain and domain != "localhost" and is_public_suffix(domain):
        logger.warning(
            "the cookie is for all of %s (COOKIE_URL, or domain), where strangers have "
            "names too: browsers refuse it; name a domain of your own, like shop.%s",
            domain,
            domain,
        )
