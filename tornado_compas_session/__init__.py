"""
Sessions for Tornado, kept in PostgreSQL: loaded before your handler, committed before
your response.
"""

from __future__ import annotations

from tornado_compas_session.compas.apperror import AppError, AppErrorMixin
from tornado_compas_session.compas.cors import CorsMixin
from tornado_compas_session.compas.get_app import get_app, install
from tornado_compas_session.core.protocols import Pool, SessionStore
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import SessionInfo
from tornado_compas_session.exceptions import (
    LockTimeout,
    ResponseAlreadySent,
    SchemaMissing,
    SessionDataError,
    SessionError,
    SessionGone,
    SessionNotLoaded,
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.settings import SessionOptions
from tornado_compas_session.stores.memory import MemorySessionStore
from tornado_compas_session.stores.postgres import PostgresSessionStore
from tornado_compas_session.web.handler import SessionMixin
from tornado_compas_session.web.wiring import session_settings

__version__ = "0.1.0"

__all__ = [
    "AppError",
    "AppErrorMixin",
    "CorsMixin",
    "LockTimeout",
    "MemorySessionStore",
    "Pool",
    "PostgresSessionStore",
    "ResponseAlreadySent",
    "SchemaMissing",
    "Session",
    "SessionDataError",
    "SessionError",
    "SessionGone",
    "SessionInfo",
    "SessionMixin",
    "SessionNotLoaded",
    "SessionOptions",
    "SessionStore",
    "SettingsError",
    "StoreError",
    "StoreUnavailable",
    "get_app",
    "install",
    "session_settings",
]
