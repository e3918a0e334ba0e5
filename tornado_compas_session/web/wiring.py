"""`session_settings`: from the environment and the options to Tornado's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tornado

from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.core.cookie_only import CookieSessionManager
from tornado_compas_session.core.manager import ReuseHook, SessionManager
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.origins import Origins
from tornado_compas_session.settings import (
    MANAGER,
    ORIGINS,
    PRODUCTION,
    Environment,
    SessionOptions,
)

MIN_TORNADO = (6, 5, 9)


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
    Tornado 6.6 on `trusted_origins`. `on_reuse` is called with a `RetiredId` when an id
    is used that a session had before it was regenerated, and its grace is over: as a
    rule the work of a thief; `await store.revoke(retired.handle)` ends the session.
    """
    if tornado.version_info < MIN_TORNADO:
        raise SettingsError(
            f"Tornado {tornado.version} has known holes that touch cookies; "
            "upgrade with: pip install 'tornado>=6.5.9'"
        )
    problems: list[str] = []
    try:
        environment = Environment.from_env(environ)
    except SettingsError as error:
        problems += error.problems
        # The options are checked all the same, so that one start shows every fault.
        environment = Environment("app", (), production=True)
    given: object = store
    if given is not None and not isinstance(given, SessionStore):
        problems.append(
            f"store: a {type(given).__name__} is no session store; pass a "
            "PostgresSessionStore or a MemorySessionStore"
        )
    try:
        resolved = SessionOptions.build(
            environment, has_store=store is not None, **options
        )
    except SettingsError as error:
        raise SettingsError([*problems, *error.problems]) from None
    if problems:
        raise SettingsError(problems)
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
            else SessionManager(resolved, keys, store, on_reuse=on_reuse)
        ),
    }
    if tornado.version_info >= (6, 6):
        trusted = _TrustedOrigins(origins.listed)
        trusted.origins = origins
        settings["trusted_origins"] = trusted
    return settings
