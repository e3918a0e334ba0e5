"""`AppError`: the errors that an application raises on purpose."""

from __future__ import annotations

import pytest
from tornado.web import HTTPError

from tornado_compas_session import exceptions
from tornado_compas_session.compas.apperror import AppError, _describe


@pytest.mark.parametrize(
    ("error", "key", "status"),
    [
        (AppError("error.tooLarge", 413), "error.tooLarge", 413),
        (AppError("error.x"), "error.x", 400),
        (AppError.validation_error("error.nameMissing"), "error.nameMissing", 400),
        (AppError.not_found(), "error.server.notFound", 404),
        (AppError.not_implemented(), "error.server.notImplemented", 405),
        (AppError.server_error(), "error.server.internal", 500),
    ],
)
def test_keys_and_statuses_are_those_of_compas(error, key, status):
    """The constructors give the key and the status that Compas gives."""
    assert (key, status, {}) == (error.key, error.status_code, error.info)
    assert isinstance(error, HTTPError)


def test_info_is_copied():
    """Changing the dict that was passed does not change the error."""
    info = {"field": "name"}
    errors = [
        AppError("error.x", 400, info),
        AppError.validation_error("error.x", info),
        AppError.not_found(info),
        AppError.not_implemented(info),
        AppError.server_error(info),
    ]
    info["field"] = "other"

    assert [{"field": "name"}] * 5 == [error.info for error in errors]


def test_the_log_line_is_one_line_and_takes_percent_signs():
    """What the log shows cannot be split or formatted by what a client sent."""
    error = AppError.validation_error("error.bad", {"sent": "100%s\r\nforged"})

    assert "error.bad {'sent': '100%s\\r\\nforged'}" == error.get_message()
    assert "error.bad" == AppError("error.bad").get_message()


@pytest.mark.parametrize("key", [None, "", 404])
def test_a_missing_key_is_refused(key):
    """An error without a key would tell the client nothing."""
    with pytest.raises(TypeError, match="the key of an AppError"):
        AppError(key)


@pytest.mark.parametrize("status", [0, 200, 302, 399, 600])
def test_a_status_that_is_no_error_is_refused(status):
    """An error is never answered with a success."""
    with pytest.raises(ValueError, match="400 to 599"):
        AppError("error.x", status)


ARGUMENTS = {
    "SessionDataError": ("cart", "a set is no JSON"),
    "SettingsError": (["one", "two"],),
}
OURS = [
    getattr(exceptions, name)(*ARGUMENTS.get(name, ())) for name in exceptions.__all__
]


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_errors_of_ours_can_be_read_like_tornados(error):
    """`write_error` of other people's handlers asks for what `HTTPError` has."""
    theirs = HTTPError(error.status_code, str(error))

    assert theirs.log_message == error.log_message
    assert theirs.reason == error.reason
    status, _, _ = _describe(500, error)
    assert error.status_code == status
