"""`AppErrorMixin`: what a client sees of an error, and what it never sees."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from tornado.web import Application, HTTPError, RequestHandler

from tornado_compas_session.compas.apperror import AppError, AppErrorMixin
from tornado_compas_session.exceptions import (
    SchemaMissing,
    SessionGone,
    StoreUnavailable,
)

ODD_INFO: dict[Any, Any] = {"at": {1}, "of": object, (1,): 2}
ERRORS = {
    "validation": lambda: AppError.validation_error(
        "error.nameMissing", {"at": "name"}
    ),
    "not_found": lambda: AppError.not_found({"id": 7}),
    "not_implemented": AppError.not_implemented,
    "server_error": lambda: AppError.server_error({"secret": "hunter2"}),
    "too_large": lambda: AppError("error.tooLarge", 413, {"limit": 5}),
    "bad_gateway": lambda: AppError("error.upstream", 502, {"secret": "hunter2"}),
    "unavailable": lambda: StoreUnavailable("no route to hunter2"),
    "schema": SchemaMissing,
    "gone": SessionGone,
    "bug": lambda: KeyError("hunter2"),
    "http403": lambda: HTTPError(403, "hunter2"),
    "http404": lambda: HTTPError(404, "hunter2"),
    "http405": lambda: HTTPError(405),
    "http500": lambda: HTTPError(500, "hunter2"),
    "http503": lambda: HTTPError(503, "hunter2"),
    "odd_info": lambda: AppError("error.x", 400, ODD_INFO),
}


class Raising(AppErrorMixin, RequestHandler):
    def get(self, name):
        self.write("half an answer")
        raise ERRORS[name]()

    def post(self, name):
        self.write({"name": self.get_argument("name")})


@pytest.fixture
def settings():
    return {}


@pytest.fixture
def app(settings):
    return Application([("/(.*)", Raising)], **settings)


async def get(client, url, **options):
    return await client.fetch(url, raise_error=False, **options)


@pytest.mark.parametrize(
    ("name", "status", "key", "info"),
    [
        ("validation", 400, "error.nameMissing", {"at": "name"}),
        ("not_found", 404, "error.server.notFound", {"id": 7}),
        ("not_implemented", 405, "error.server.notImplemented", {}),
        ("server_error", 500, "error.server.internal", {}),
        ("too_large", 413, "error.tooLarge", {"limit": 5}),
        ("bad_gateway", 502, "error.upstream", {}),
        ("unavailable", 503, "error.session.unavailable", {}),
        ("schema", 503, "error.session.unavailable", {}),
        ("gone", 409, "error.session.gone", {}),
        ("bug", 500, "error.server.internal", {}),
        ("http403", 403, "error.http.403", {}),
        ("http404", 404, "error.server.notFound", {}),
        ("http405", 405, "error.server.notImplemented", {}),
        ("http500", 500, "error.server.internal", {}),
        ("http503", 503, "error.http.503", {}),
    ],
)
async def test_every_error_is_json_with_a_key(
    http_client, base_url, name, status, key, info
):
    """The body is exactly key, message and info; from 500 on the info is empty."""
    response = await get(http_client, f"{base_url}/{name}")

    assert status == response.code
    assert {"key": key, "message": key, "info": info} == json.loads(response.body)
    assert "application/json; charset=UTF-8" == response.headers["Content-Type"]
    assert b"hunter2" not in response.body


async def test_the_body_of_the_compas_documentation(http_client, base_url):
    """The text of the body, byte for byte."""
    response = await get(http_client, f"{base_url}/not_implemented")

    assert (
        b'{"key": "error.server.notImplemented", '
        b'"message": "error.server.notImplemented", "info": {}}'
    ) == response.body


async def test_a_method_that_is_not_there_is_a_405(http_client, base_url):
    """Tornado's own errors have keys as well."""
    response = await get(http_client, f"{base_url}/x", method="DELETE")

    assert 405 == response.code
    assert "error.server.notImplemented" == json.loads(response.body)["key"]


async def test_a_missing_argument_is_a_400(http_client, base_url):
    """What Tornado finds wrong with a request keeps its status."""
    response = await get(http_client, f"{base_url}/x", method="POST", body="")

    assert 400 == response.code
    assert "error.http.400" == json.loads(response.body)["key"]


async def test_info_that_is_no_json_still_answers(http_client, base_url):
    """Values that JSON lacks are shown as text; the error is not lost."""
    response = await get(http_client, f"{base_url}/odd_info")

    assert 400 == response.code
    assert {"at": "{1}", "of": "<class 'object'>"} == json.loads(response.body)["info"]


async def test_head_has_no_body(http_client, base_url):
    """A HEAD request gets the status alone."""
    response = await get(http_client, f"{base_url}/x", method="HEAD")

    assert (405, b"") == (response.code, response.body)


async def test_a_client_error_is_one_warning(http_client, base_url, caplog):
    """Below 500 the log has a line without a traceback."""
    await get(http_client, f"{base_url}/validation")

    [record] = [r for r in caplog.records if "error.nameMissing" in r.getMessage()]
    assert (logging.WARNING, None) == (record.levelno, record.exc_info)
    assert record.getMessage().startswith("400 GET /validation (")


@pytest.mark.parametrize("name", ["server_error", "bad_gateway"])
async def test_a_server_error_is_logged_with_its_traceback(
    http_client, base_url, caplog, name
):
    """From 500 on somebody has to look: an error, with its info and its cause."""
    await get(http_client, f"{base_url}/{name}")

    [record] = [r for r in caplog.records if "hunter2" in r.getMessage()]
    assert logging.ERROR == record.levelno
    assert isinstance(record.exc_info[1], AppError)


@pytest.mark.usefixtures("settings")
class TestDevelopment:
    """In development a 500 tells what happened."""

    @pytest.fixture(
        params=[
            {"serve_traceback": True},
            {"compas_session_production": False},
            {"compas_session_production": False, "serve_traceback": False},
        ]
    )
    def settings(self, request):
        return request.param

    async def test_a_bug_shows_its_traceback(self, http_client, base_url):
        """Type, message and traceback are in the info."""
        response = await get(http_client, f"{base_url}/bug")

        body = json.loads(response.body)
        assert (500, "error.server.internal") == (response.code, body["key"])
        assert {"type", "message", "traceback"} == body["info"].keys()
        assert ("KeyError", "'hunter2'") == (
            body["info"]["type"],
            body["info"]["message"],
        )
        assert any("raise ERRORS[name]()" in line for line in body["info"]["traceback"])

    async def test_a_server_error_shows_its_info_too(self, http_client, base_url):
        """What the application said stands beside the traceback."""
        response = await get(http_client, f"{base_url}/server_error")

        info = json.loads(response.body)["info"]
        assert ("hunter2", "AppError") == (info["secret"], info["type"])

    async def test_a_client_error_stays_as_it_is(self, http_client, base_url):
        """Below 500 development and production answer alike."""
        response = await get(http_client, f"{base_url}/validation")

        assert {"at": "name"} == json.loads(response.body)["info"]


class TestProduction:
    """In production nothing does, whatever Tornado's `debug` says."""

    @pytest.fixture
    def settings(self):
        return {"compas_session_production": True, "serve_traceback": True}

    @pytest.mark.parametrize("name", ["bug", "server_error", "unavailable", "http500"])
    async def test_no_detail(self, http_client, base_url, name):
        """LG-3: key and status are all that there is."""
        response = await get(http_client, f"{base_url}/{name}")

        assert {} == json.loads(response.body)["info"]
        assert b"hunter2" not in response.body
