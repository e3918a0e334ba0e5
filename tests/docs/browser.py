"""A browser for the hidden blocks of the pages: keeps cookies, raises nothing."""

from __future__ import annotations

import json as json_module
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application


class Browser:
    """Visits an application, which it serves itself unless `url` is given."""

    def __init__(self, app: Application | None = None, url: str = "") -> None:
        self.cookies: dict[str, str] = {}
        self.url = url
        if app is not None:
            sock, port = bind_unused_port()
            HTTPServer(app).add_sockets([sock])
            self.url = f"http://127.0.0.1:{port}"

    def another(self) -> Browser:
        """Another browser at the same server, without cookies."""
        return Browser(url=self.url)

    async def get(self, path: str, **options: Any) -> HTTPResponse:
        """GET; redirects are not followed."""
        return await self._fetch(path, "GET", options)

    async def post(self, path: str, json: Any = None, **options: Any) -> HTTPResponse:
        """POST, of JSON or of nothing."""
        options["body"] = b"" if json is None else json_module.dumps(json)
        return await self._fetch(path, "POST", options)

    async def _fetch(
        self, path: str, method: str, options: dict[str, Any]
    ) -> HTTPResponse:
        headers = dict(options.pop("headers", {}))
        if self.cookies:
            pairs = [f"{name}={value}" for name, value in self.cookies.items()]
            headers["Cookie"] = "; ".join(pairs)
        response = await AsyncHTTPClient().fetch(
            self.url + path,
            method=method,
            headers=headers,
            raise_error=False,
            follow_redirects=False,
            **options,
        )
        for line in response.headers.get_list("Set-Cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            if "Max-Age=0;" in line:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return response
