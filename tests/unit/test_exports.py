"""What `import tornado_compas_session` offers."""

from __future__ import annotations

from types import ModuleType

import tornado_compas_session

# The names that users build on: the docs, the changelog and their code say them.
PROMISED = {
    "AppError",
    "AppErrorMixin",
    "CorsMixin",
    "MemorySessionStore",
    "Pool",
    "PostgresSessionStore",
    "ResponseAlreadySent",
    "SchemaMissing",
    "Session",
    "SessionDataError",
    "SessionError",
    "SessionGone",
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
}


def test_all_is_sorted_and_complete() -> None:
    """`__all__` is what is there: nothing public is left out, nothing is made up."""
    public = {
        name
        for name, value in vars(tornado_compas_session).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name != "annotations"
    }

    assert sorted(public) == sorted(
        name for name in tornado_compas_session.__all__ if not name.startswith("_")
    )
    assert sorted(tornado_compas_session.__all__) == list(
        tornado_compas_session.__all__
    )


def test_promised_names_are_there() -> None:
    """The names of the documentation can be imported from the package itself."""
    assert set() == PROMISED - set(tornado_compas_session.__all__)


def test_public_names_say_what_they_promise() -> None:
    """Each public class and function has a docstring, and one address."""
    for name in PROMISED:
        thing = getattr(tornado_compas_session, name)
        assert thing.__doc__, f"{name} has no docstring"
