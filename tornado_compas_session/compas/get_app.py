"""`get_app`: a Tornado application with all that Compas's `getApp` brings."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import secrets
import types
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from tornado.web import Application, ErrorHandler, RequestHandler

from tornado_compas_session.compas.apperror import AppErrorMixin
from tornado_compas_session.compas.cors import CorsMixin
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.settings import CLEANER, HEADERS, OPTION_NAMES
from tornado_compas_session.stores.cleaner import Cleaner, cleaner_of
from tornado_compas_session.web.wiring import session_settings

__all__ = ["get_app"]

logger = logging.getLogger("tornado_compas_session")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
#: Mixin methods that call `super()`, so that a handler's own ones take part.
_COOPERATIVE = frozenset({"flush", "prepare", "set_default_headers"})
#: Those that Tornado documents (see its `Application.settings`).
_TORNADO_SETTINGS = frozenset(
    """
    autoescape autoreload compiled_template_cache compress_response cookie_secret
    cross_origin_protection debug default_handler_args default_handler_class
    default_host facebook_api_key facebook_secret google_oauth gzip key_version
    log_function login_url redirect_base_uri serve_traceback static_handler_args
    static_handler_class static_hash_cache static_path static_url_prefix
    template_loader template_path template_whitespace transforms trusted_origins
    twitter_consumer_key twitter_consumer_secret ui_methods ui_modules
    websocket_max_message_size websocket_ping_interval websocket_ping_timeout
    xsrf_cookie_kwargs xsrf_cookie_name xsrf_cookie_version xsrf_cookies
    """.split()  # noqa: SIM905  (forty lines of quotes say no more)
)


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
    `session_settings()` and Tornado's own settings; any other name is a `TypeError`.
    From the first request on, a `Cleaner` deletes expired sessions now and then.
    Requests that pages of other origins forge get a 403, unless
    `cross_origin_protection=False` (before Tornado 6.6: or `cors=False`).
    """
    _refuse_unknown(options)
    tornado = {name: options.pop(name) for name in _TORNADO_SETTINGS & options.keys()}
    defaults: dict[str, Any] = {"cross_origin_protection": True}
    if not_found:
        defaults["default_handler_class"] = NotFoundHandler
    mixins = {
        DefaultHeadersMixin: bool(headers),
        RequestIdMixin: request_id,
        CorsMixin: cors,
        AppErrorMixin: errors,
    }
    health_route = [("/_health", HealthHandler, {"store": store})] if health else []
    settings = {**defaults, **session_settings(store=store, **options), **tornado}
    return DressingApplication(
        [*health_route, *routes],
        mixins=tuple(mixin for mixin, wanted in mixins.items() if wanted),
        **{
            **settings,
            HEADERS: dict(headers or {}),
            CLEANER: cleaner_of(store) if cleaner else None,
        },
    )


def _refuse_unknown(options: Mapping[str, object]) -> None:
    named = {*inspect.signature(get_app).parameters}
    named |= {*inspect.signature(session_settings).parameters}
    known = {*OPTION_NAMES, *_TORNADO_SETTINGS, *named}
    for name in options.keys() - known:
        near = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(
            f"get_app() has no option {name!r}{hint} "
            "(an application's own settings go into `app.settings`)"
        )


class DressingApplication(Application):
    """Puts the mixins that a handler lacks in front of it, when it is first used."""

    def __init__(
        self,
        routes: list[Any],
        *,
        mixins: tuple[type[RequestHandler], ...],
        **settings: Any,
    ) -> None:
        self._mixins = mixins
        self._dressed: dict[type[RequestHandler], type[RequestHandler]] = {}
        super().__init__(routes, **settings)

    def get_handler_delegate(
        self,
        request: Any,
        target_class: type[RequestHandler],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Every route ends here: nested, by host, added later, static and the 404."""
        cleaner: Cleaner | None = self.settings[CLEANER]
        if cleaner is not None:
            cleaner.start()  # here, because this is the process that serves
        if target_class not in self._dressed:
            self._dressed[target_class] = self._dress(target_class)
        dressed = self._dressed[target_class]
        return super().get_handler_delegate(request, dressed, *args, **kwargs)

    def _dress(self, handler: type[RequestHandler]) -> type[RequestHandler]:
        missing = [mixin for mixin in self._mixins if not issubclass(handler, mixin)]
        if not missing or handler is ErrorHandler:  # Tornado's 404: not_found=False
            return handler
        own = {
            name: inspect.getattr_static(handler, name)
            for mixin in missing
            for name in vars(mixin).keys() - _COOPERATIVE
            if not name.startswith("_") and _is_users(handler, name)
        }
        names = {
            "__module__": handler.__module__,
            "__qualname__": handler.__qualname__,
            "__doc__": handler.__doc__,
        }
        bases = (*missing, handler)
        dressed: type[RequestHandler] = types.new_class(
            handler.__name__, bases, exec_body=lambda space: space.update(own, **names)
        )
        return dressed


def _is_users(handler: type, name: str) -> bool:
    owner = next((cls for cls in handler.__mro__ if name in vars(cls)), object)
    package = owner.__module__.partition(".")[0]
    return package not in ("builtins", "tornado", "tornado_compas_session")


class DefaultHeadersMixin(RequestHandler):
    """Sends the `headers` of `get_app` with every response."""

    def set_default_headers(self) -> None:
        """Sets them first, so that the handler can replace them."""
        for name, value in self.settings[HEADERS].items():
            # HSTS is for https only (RFC 6797, section 7.2).
            if value is None:
                self.clear_header(name)
            elif name.lower() != "strict-transport-security" or (
                self.request.protocol == "https"
            ):
                self.set_header(name, value)
        super().set_default_headers()


class RequestIdMixin(RequestHandler):
    """Names the request in the answer and in the log: `X-Request-Id`."""

    @cached_property
    def request_id(self) -> str:
        """The caller's id, if it has the form of one, or else a new one."""
        given = self.request.headers.get("X-Request-Id", "")
        return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)

    def set_default_headers(self) -> None:
        """Sends the id, with an error as well."""
        super().set_default_headers()
        self.set_header("X-Request-Id", self.request_id)

    def _request_summary(self) -> str:
        return f"{super()._request_summary()} [{self.request_id}]"


class HealthHandler(RequestHandler):
    """200 and nothing else: the process answers. Asks neither session nor store."""

    def initialize(self, store: SessionStore | None) -> None:
        """Takes the store only to see what it has complained of by itself."""
        self._problem = getattr(store, "problem", None)

    def get(self) -> None:
        """Answers GET and HEAD; the log says what ails the store, if something does."""
        if self._problem is not None:
            logger.warning("healthy, but for the sessions: %s", self._problem)

    head = get


class NotFoundHandler(AppErrorMixin, ErrorHandler):
    """The JSON 404."""

    def initialize(self, status_code: int = 404) -> None:
        """Needs no arguments, unlike its base, whose `prepare` raises the error."""
        super().initialize(status_code)

    def check_trusted_origin(self, origin: str) -> bool:
        """There is nothing here to protect, so a 404 is a 404 for everybody."""
        return True

    # For preflights: so that a script sees the 404 and no failed preflight.
    get = head = post = put = patch = delete = ErrorHandler.prepare
