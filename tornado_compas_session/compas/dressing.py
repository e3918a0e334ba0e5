"""
What an application's handlers wear without naming it, and the two handlers that it gets
besides.
"""

from __future__ import annotations

import inspect
import logging
import re
import secrets
import types
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tornado.web import Application, ErrorHandler, RequestHandler

from tornado_compas_session.compas.apperror import AppErrorMixin
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.settings import CLEANER, HEADERS

logger = logging.getLogger("tornado_compas_session")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
#: Mixin methods that call `super()`, so that a handler's own ones take part.
_COOPERATIVE = frozenset({"flush", "prepare", "set_default_headers"})


def dress(app: Application, mixins: Sequence[type[RequestHandler]]) -> None:
    """
    Has the application put the mixins that a handler lacks in front of it, when it is
    first used; and start its cleaner with its first request.
    """
    undressed = app.get_handler_delegate

    dressed: dict[type[RequestHandler], type[RequestHandler]] = {}

    def get_handler_delegate(
        request: Any, target_class: type[RequestHandler], *args: Any, **kwargs: Any
    ) -> Any:
        if (cleaner := app.settings[CLEANER]) is not None:
            cleaner.start()  # here, because this is the process that serves
        if target_class not in dressed:
            dressed[target_class] = _dressed(target_class, mixins)
        return undressed(request, dressed[target_class], *args, **kwargs)

    # Every route ends here: nested, by host, added later, static and the 404.
    app.get_handler_delegate = get_handler_delegate  # type: ignore[method-assign]


class _Unannounced:
    """First of the bases, so that nobody's `__init_subclass__` hears of the class."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


def _dressed(
    handler: type[RequestHandler], mixins: Sequence[type[RequestHandler]]
) -> type[RequestHandler]:
    missing = [mixin for mixin in mixins if not issubclass(handler, mixin)]
    if not missing or handler is ErrorHandler:  # Tornado's 404: not_found=False
        return handler
    own = {
        name: inspect.getattr_static(handler, name)
        for mixin in missing
        for name in vars(mixin).keys() - _COOPERATIVE
        if not name.startswith("_") and _is_users(handler, name)
    }
    for name in ("__module__", "__qualname__", "__doc__"):
        own[name] = getattr(handler, name)
    bases = (_Unannounced, *missing, handler)
    made: type[RequestHandler] = types.new_class(
        handler.__name__, bases, exec_body=lambda space: space.update(own)
    )
    return made


def _is_users(handler: type, name: str) -> bool:
    owner = next((cls for cls in handler.__mro__ if name in vars(cls)), object)
    package = owner.__module__.partition(".")[0]
    return package not in ("builtins", "tornado", "tornado_compas_session")


class DefaultHeadersMixin(RequestHandler):
    """Sends the `headers` of `get_app` with every response."""

    def set_default_headers(self) -> None:
        """Sets them first, so that the handler can replace them."""
        headers: Mapping[str, str | None] = self.settings[HEADERS]
        for name, value in headers.items():
            # HSTS is for https only (RFC 6797, section 7.2).
            hsts = name.lower() == "strict-transport-security"
            if value is None:
                self.clear_header(name)
            elif not hsts or self.request.protocol == "https":
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
