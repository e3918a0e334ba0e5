"""
The errors of the library.

    SessionError
    ├── SettingsError          a setting is wrong; all faults at once, at start-up
    ├── SessionNotLoaded       `prepare()` was overridden, and not called
    ├── SessionDataError       a value cannot be kept; names its path  (a ValueError)
    ├── SessionGone            the session ended while the request ran    (409)
    ├── ResponseAlreadySent    the change needs a cookie and the headers have left
    └── StoreError             the store failed                           (503)
        ├── StoreUnavailable   it cannot be reached, or not in time
        │   ├── ConnectionLost the connection broke
        │   └── LockTimeout    `lock()` did not get the row in time
        ├── SchemaMissing      the table is not there or not up to date
        ├── WriteConflict      another transaction was in the way  (tried again)
        ├── UnstorableText     the database's encoding has no room for a text
        └── RowExists          the row is there already

No message, attribute or cause of these carries a session id, a cookie value, a key, a
password or session data.
"""

from __future__ import annotations

import inspect

__all__ = [
    "ConnectionLost",
    "HandleTaken",
    "LockTimeout",
    "ResponseAlreadySent",
    "RowExists",
    "SchemaMissing",
    "SessionDataError",
    "SessionError",
    "SessionGone",
    "SessionNotLoaded",
    "SettingsError",
    "StoreError",
    "StoreUnavailable",
    "UnstorableText",
    "WriteConflict",
]


class SessionError(Exception):
    """Something about the session went wrong."""

    #: What handlers read of Tornado's `HTTPError` in `write_error`.
    status_code = 500
    reason: str | None = None

    @property
    def log_message(self) -> str:
        """The message, under the name that Tornado's `HTTPError` has for it."""
        return str(self)

    def __init__(self, message: str | None = None) -> None:
        # The docstring is the default message: what happened, and the way out.
        super().__init__(message or " ".join((inspect.getdoc(self) or "").split()))


class SettingsError(SessionError):
    """The settings of the sessions are wrong."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        count = len(self.problems)
        suffix = f" ({count} problems)" if count > 1 else ""
        super().__init__("; ".join(self.problems) + suffix)


class SessionNotLoaded(SessionError):
    """
    The session was not loaded for this request; a handler that overrides `prepare`
    must begin it with: `await super().prepare()` (in an `async def prepare(self)`).
    """


class SessionDataError(SessionError, ValueError):
    """
    A value cannot be kept in a session: sessions hold JSON.

    `path` names the place, like `cart.items[3]`; the value itself is not shown.
    """

    def __init__(self, path: str, problem: str, verb: str = "keep") -> None:
        self.path = path
        super().__init__(f"the session cannot {verb} {path or 'this'}: {problem}")


class SessionGone(SessionError):
    """
    The session was ended by another request (or expired) while this one was running;
    its changes were not saved. Ask the visitor to sign in again.
    """

    status_code = 409


class ResponseAlreadySent(SessionError):
    """
    The response has left already, so the session can no longer change; make the
    change before `flush()` or `finish()`, or change data only.
    """


class StoreError(SessionError):
    """The session store failed."""

    status_code = 503


class StoreUnavailable(StoreError):
    """The session store cannot be reached; the request can be tried again shortly."""


class ConnectionLost(StoreUnavailable):
    """
    The connection to the database broke; whether the statement happened is unknown.
    """


class LockTimeout(StoreUnavailable):
    """
    The lock on the session did not come in time, because another request holds it;
    nothing was changed. Keep the block short, or pass a longer `timeout`.
    """


class SchemaMissing(StoreError):
    """
    The session table is missing or not up to date; run
    `tornado-compas-session migrate`.
    """


class WriteConflict(StoreError):
    """Another transaction was in the way; nothing changed, so it can be repeated."""


class UnstorableText(StoreError):
    """
    The database's encoding has no place for a character of the data; nothing was
    written. A database made with ENCODING 'UTF8' keeps them all.
    """


class RowExists(StoreError):
    """A row with this key exists already; nothing was changed."""


class HandleTaken(SessionError):
    """The new session's handle exists already; the caller draws another one."""


# Users meet these as tornado_compas_session.X, in tracebacks as well.
for _name in __all__:
    globals()[_name].__module__ = "tornado_compas_session"
