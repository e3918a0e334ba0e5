"""Errors with a key: raised by the application, answered as JSON."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tornado.log import app_log
from tornado.web import HTTPError, RequestHandler

from tornado_compas_session.exceptions import SessionGone, StoreError
from tornado_compas_session.settings import PRODUCTION

_INTERNAL = "error.server.internal"
_KEYS = {
    404: "error.server.notFound",
    405: "error.server.notImplemented",
    500: _INTERNAL,
}


class AppError(HTTPError):
    """
    Ends the request with a status and a key that programs can tell apart.

    `AppErrorMixin` answers `{"key": key, "message": key, "info": info}`. The log gets
    one line below 500, and the traceback from 500 on. `raise … from error` keeps the
    cause for the log; the client never sees it.
    """

    def __init__(
        self, key: str, status: int = 400, info: Mapping[str, Any] | None = None
    ) -> None:
        if not key or not isinstance(key, str):
            raise TypeError(f"the key of an AppError is a text, and not {key!r}")
        if not 400 <= status <= 599:
            raise ValueError(f"the status of an AppError is 400 to 599, not {status!r}")
        self.key = key
        self.info = dict(info or {})
        super().__init__(status, f"{key} {self.info}" if self.info else key)

    @classmethod
    def validation_error(
        cls, key: str, info: Mapping[str, Any] | None = None
    ) -> AppError:
        """400: what the client sent cannot be used."""
        return cls(key, 400, info)

    @classmethod
    def not_found(cls, info: Mapping[str, Any] | None = None) -> AppError:
        """404 `error.server.notFound`."""
        return cls(_KEYS[404], 404, info)

    @classmethod
    def not_implemented(cls, info: Mapping[str, Any] | None = None) -> AppError:
        """405 `error.server.notImplemented`."""
        return cls(_KEYS[405], 405, info)

    @classmethod
    def server_error(cls, info: Mapping[str, Any] | None = None) -> AppError:
        """500 `error.server.internal`; `info` is for the log."""
        return cls(_INTERNAL, 500, info)


class AppErrorMixin(RequestHandler):
    """
    Answers every error as JSON: `{"key", "message", "info"}`.

    From 500 on `info` is empty, except in development, where it tells the exception.
    """

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Writes the body; may correct the status where the exception knows better."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        status, key, info = _describe(status_code, error)
        if status != status_code:
            self.set_status(status)
        if isinstance(error, StoreError):
            self.set_header("Retry-After", "2")
        if status >= 500:
            info = {**info, **_details(error)} if self._shows_details else {}
        body = {"key": key, "message": key, "info": info}
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps(body, default=str, skipkeys=True))

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """An `AppError` from 500 on is a fault of the server: logged with its cause."""
        if isinstance(value, AppError) and value.status_code >= 500:
            summary = self._request_summary()
            app_log.error("%s: %s", summary, value, exc_info=value)
        else:
            super().log_exception(typ, value, tb)

    @property
    def _shows_details(self) -> bool:
        # Where `session_settings()` has said what this is, that decides.
        production = self.settings.get(PRODUCTION)
        if production is None:
            production = not self.settings.get("serve_traceback")
        return not production


def _describe(
    status: int, error: BaseException | None
) -> tuple[int, str, dict[str, Any]]:
    if isinstance(error, AppError):
        return status, error.key, error.info
    if isinstance(error, StoreError):
        return 503, "error.session.unavailable", {}
    if isinstance(error, SessionGone):
        return 409, "error.session.gone", {}
    return status, _KEYS.get(status, f"error.http.{status}"), {}


def _details(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {}
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": traceback.format_exception(error),
    }
