"""
`get_app`: a Tornado application with all that Compas's `getApp` brings; `install`: the
same for an application that is there already.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from tornado.web import Application, RequestHandler

from tornado_compas_session.compas.apperror import AppErrorMixin
from tornado_compas_session.compas.cors import CorsMixin
from tornado_compas_session.compas.dressing import (
    DefaultHeadersMixin,
    HealthHandler,
    NotFoundHandler,
    RequestIdMixin,
    dress,
)
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.settings import (
    CLEANER,
    HEADERS,
    MANAGER,
    OPTIONS,
    meant_option,
    unknown_option,
)
from tornado_compas_session.stores.cleaner import cleaner_of
from tornado_compas_session.web.wiring import session_settings

#: What is for `session_settings`; Tornado's `Application` takes whatever else there is.
_FOR_SESSIONS = {*OPTIONS, *inspect.signature(session_settings).parameters}


def get_app(
    routes: Iterable[Any],
    *,
    store: SessionStore | None = None,
    cors: bool = True,
    errors: bool = True,
    health: bool = True,
    not_found: bool = True,
    request_id: bool = True,
    cleaner: bool = True,
    headers: Mapping[str, str | None] | None = None,
    **options: Any,
) -> Application:
    """
    Makes an application in which every handler speaks CORS, answers errors as JSON and
    has a request id, with a JSON 404 and `/_health` (200, empty, asks no store).

    Handlers need not name the mixins; what a handler defines itself wins. `headers` go
    out with every response; None takes one of Tornado's away. `options` are those of
    `session_settings()`, and settings of the application, Tornado's or its own; a name
    that is nearly an option's is a `TypeError`.
    From the first request on, a `Cleaner` deletes expired sessions now and then.
    Requests that pages of other origins forge get a 403, unless
    `cross_origin_protection=False` (before Tornado 6.6: or `cors=False`).
    """
    settings = {n: options.pop(n) for n in options.keys() - _FOR_SESSIONS}
    _refuse_misspelt(settings)
    return install(
        Application(list(routes), **settings),
        store=store,
        cors=cors,
        errors=errors,
        health=health,
        not_found=not_found,
        request_id=request_id,
        cleaner=cleaner,
        headers=headers,
        **options,
    )


def install(
    app: Application,
    *,
    store: SessionStore | None = None,
    cors: bool = True,
    errors: bool = True,
    health: bool = True,
    not_found: bool = True,
    request_id: bool = True,
    cleaner: bool = True,
    headers: Mapping[str, str | None] | None = None,
    **options: Any,
) -> Application:
    """
    Adds to an application, of any class, all that `get_app` adds; returns it.

    To be called before the first request. What the application has set itself stays:
    its `cookie_secret`, `trusted_origins`, `default_handler_class` and
    `cross_origin_protection`. `options` are those of `session_settings()`.

    For sessions alone their settings are enough:
    `app.settings.update({**session_settings(store=store), **app.settings})`.
    """
    _refuse_misspelt(options)
    if MANAGER in app.settings:
        raise SettingsError("this application has sessions already")
    ours = session_settings(store=store, **options)
    if app.settings.get("cookie_secret"):
        # Its own signed cookies; the sessions' are signed by their manager.
        del ours["cookie_secret"], ours["key_version"]
    else:
        app.settings["cookie_secret"] = ours["cookie_secret"]
        app.settings["key_version"] = ours["key_version"]
    ours[HEADERS] = dict(headers or {})
    ours[CLEANER] = cleaner_of(store) if cleaner else None
    ours["cross_origin_protection"] = True
    if not_found:
        ours["default_handler_class"] = NotFoundHandler
    for name, value in ours.items():
        app.settings.setdefault(name, value)
    if health:
        app.add_handlers(".*", [("/_health", HealthHandler, {"store": store})])
    mixins: dict[type[RequestHandler], bool] = {
        DefaultHeadersMixin: bool(headers),
        RequestIdMixin: request_id,
        CorsMixin: cors,
        AppErrorMixin: errors,
    }
    dress(app, [mixin for mixin, wanted in mixins.items() if wanted])
    return app


def _refuse_misspelt(options: Iterable[str]) -> None:
    known = [*_FOR_SESSIONS, *inspect.signature(get_app).parameters]
    for name in options:
        if name not in known and meant_option(name, known):
            raise TypeError(unknown_option(name, known))
