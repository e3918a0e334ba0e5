"""
`Browser`: asks an application as a browser does. It keeps cookies by the rules of
`jar.py`, follows redirects, fills in forms, and shows the XSRF token.
"""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from typing import Any, Self
from urllib.parse import urlencode, urljoin, urlsplit

from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.netutil import bind_sockets
from tornado.web import Application

from tornado_compas_session.testing.jar import Jar

_REDIRECTS = 10


class Browser:
    """
    A browser at an application: `Browser(app)` serves it, on a port of its own, until
    the end of `async with` or `close()`; `Browser(app, url)` asks where it is served.

    With `seen_as="https://shop.example"` the application believes to be asked there, as
    behind a proxy (one that is served elsewhere needs `xheaders=True`), and so do the
    cookies. They end by `clock`. Statuses raise nothing.
    """

    def __init__(
        self,
        app: Application | None = None,
        url: str = "",
        *,
        seen_as: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self._server: HTTPServer | None = None
        if app is not None and not url:
            self._server = HTTPServer(app, xheaders=bool(seen_as))
            [listening] = bind_sockets(0, "127.0.0.1")
            self._server.add_socket(listening)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.url = url.rstrip("/")
        self.seen_as = (seen_as or self.url).rstrip("/")
        self.jar = Jar(self.seen_as, clock)
        #: What goes with every request: User-Agent, Accept-Language.
        self.headers: dict[str, str] = {}
        if seen_as:
            parts = urlsplit(seen_as)
            self.headers = {"Host": parts.netloc, "X-Scheme": parts.scheme}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the server, if it is this browser's."""
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()

    def another(self) -> Browser:
        """Another browser at the same server, without cookies."""
        seen_as = self.seen_as if "X-Scheme" in self.headers else ""
        return Browser(self.app, self.url, seen_as=seen_as, clock=self.jar.clock)

    @property
    def cookies(self) -> dict[str, str]:
        """The values of the cookies that it has, by name."""
        return {cookie.name: cookie.value for cookie in self.jar.live()}

    async def get(self, path: str = "/", **options: Any) -> HTTPResponse:
        """GET; the options are those of `ask`."""
        return await self.ask(path, "GET", **options)

    async def post(self, path: str = "/", **options: Any) -> HTTPResponse:
        """POST; the options are those of `ask`."""
        return await self.ask(path, "POST", **options)

    async def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        json: Any = None,
        form: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        follow: bool = False,
        xsrf: bool = True,
        **options: Any,
    ) -> HTTPResponse:
        """
        Sends `json`, a `form`, a `body` or nothing, with the cookies; keeps those that
        come back. Other options are those of Tornado's `HTTPRequest`.

        With `follow`, redirects within the application are followed. Unless `xsrf` is
        False, whatever changes something shows the token of the cookie `_xsrf`, as a
        script of the page would (X-XSRFToken).
        """
        own = HTTPHeaders(headers or {})
        if json is not None:
            own["Content-Type"] = "application/json"
            options["body"] = json_module.dumps(json)
        elif form is not None:
            own["Content-Type"] = "application/x-www-form-urlencoded"
            options["body"] = urlencode(form, doseq=True)
        elif method in ("POST", "PUT", "PATCH"):
            options.setdefault("body", b"")
        for _ in range(_REDIRECTS):
            response = await self._once(path, method, own, xsrf, options)
            location = response.headers.get("Location")
            if not (follow and location and response.code in (301, 302, 303, 307, 308)):
                return response
            target = urljoin(self.seen_as + path, location).partition("#")[0]
            if urlsplit(target)[:2] != urlsplit(self.seen_as)[:2]:
                return response  # to somebody else's
            path = target[len(self.seen_as) :] or "/"
            if response.code not in (307, 308):
                method = "GET"
                options.pop("body", None)
                own.pop("Content-Type", None)
        raise ValueError(f"more than {_REDIRECTS} redirects, the last to {path}")

    async def submit(
        self,
        page: HTTPResponse,
        fields: Mapping[str, Any] | None = None,
        *,
        to: str | None = None,
        follow: bool = True,
    ) -> HTTPResponse:
        """
        Fills in a form of the page, and sends it: the first that has all these fields
        (and goes to this action). What is hidden in it, the XSRF token for example, is
        sent as it is. Raises `ValueError` if the page has no such form.
        """
        fields = fields or {}
        parser = _Forms()
        parser.feed(page.body.decode())
        parser.close()
        for form in parser.forms:
            if fields.keys() <= form.names and to in (None, form.action):
                break
        else:
            raise ValueError(
                f"no form of the page has {sorted(fields)}"
                + ("" if to is None else f" and the action {to}")
                + f"; there are {[sorted(form.names) for form in parser.forms]}"
            )
        here = page.effective_url.removeprefix(self.url)
        path = urljoin(here or "/", form.action)
        filled = {**form.values, **fields}
        if form.method == "GET":
            path = f"{path.partition('?')[0]}?{urlencode(filled, doseq=True)}"
            return await self.get(path, follow=follow)
        return await self.post(path, form=filled, follow=follow, xsrf=False)

    async def _once(
        self,
        path: str,
        method: str,
        own: Mapping[str, str],
        xsrf: bool,
        options: Mapping[str, Any],
    ) -> HTTPResponse:
        sent = HTTPHeaders(self.headers)
        if cookies := self.jar.header(path.partition("?")[0]):
            sent["Cookie"] = cookies
        if xsrf and method != "GET" and (token := self.jar.script().get("_xsrf")):
            sent["X-XSRFToken"] = token
        sent.update(own)
        response = await AsyncHTTPClient().fetch(
            self.url + path,
            method=method,
            headers=sent,
            raise_error=False,
            follow_redirects=False,
            **options,
        )
        for header in response.headers.get_list("Set-Cookie"):
            self.jar.take(header)
        return response


class _Form:
    def __init__(self, attributes: Mapping[str, str | None]) -> None:
        self.action = attributes.get("action") or ""
        self.method = (attributes.get("method") or "GET").upper()
        #: Of all fields, and what is sent of those that nobody fills in.
        self.names: set[str] = set()
        self.values: dict[str, str] = {}


class _Forms(HTMLParser):
    """The forms of a page: inputs, selections and text areas."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[_Form] = []
        self._open = False
        #: Of the selection or the text area that is open.
        self._name = ""
        self._in_text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "form":
            self.forms.append(_Form(attributes))
            self._open = True
        if not self._open:
            return
        form, name = self.forms[-1], attributes.get("name") or ""
        value = attributes.get("value") or ""
        kind = attributes.get("type")
        if tag == "option" and self._name:
            if "selected" in attributes or self._name not in form.values:
                form.values[self._name] = value
        elif tag in ("input", "select", "textarea") and name:
            form.names.add(name)
            if tag != "input":
                self._name, self._in_text = name, tag == "textarea"
            elif kind in ("checkbox", "radio"):
                if "checked" in attributes:
                    form.values[name] = value or "on"
            elif kind not in ("submit", "button", "image", "reset", "file"):
                form.values[name] = value

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = False
        elif tag in ("select", "textarea"):
            self._name, self._in_text = "", False

    def handle_data(self, data: str) -> None:
        if self._in_text:
            self.forms[-1].values[self._name] = data
