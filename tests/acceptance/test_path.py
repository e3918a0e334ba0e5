"""`path`: a cookie that browsers would not send back is not made."""

from __future__ import annotations

import pytest
from tornado.web import RequestHandler

from tests.factories import Browser, MemorySessionStore, make_app, serve, set_cookies
from tornado_compas_session import SessionMixin


class Page(SessionMixin, RequestHandler):
    def get(self):
        self.write({"n": self.session.get("n")})

    def post(self):
        self.session["n"] = self.session.get("n", 0) + 1

    def put(self):
        self.session["user_id"] = "anna"


@pytest.fixture
def store():
    return MemorySessionStore()


@pytest.fixture
def browser(io_loop, store):
    with serve(make_app([("/.*", Page)], store, path="/foo")) as url:
        yield Browser(url)


@pytest.mark.parametrize("path", ["/", "/bar", "/foobar", "/fo"])
async def test_a_handler_outside_of_the_path_makes_no_session(
    browser, store, caplog, path
):
    """
    Each visit would make a row, and its cookie replace the good one. It is refused with
    one line in the log that names the option, the path, and the way out.
    """
    await browser.post("/foo")
    good = browser.jar.header("/foo")

    for method in ("POST", "PUT", "POST"):
        response = await browser.ask(path, method)
        assert (200, []) == (response.code, set_cookies(response))

    assert 1 == len(store)
    assert good == browser.jar.header("/foo")
    assert b'{"n": 1}' == (await browser.get("/foo")).body
    [line] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    for part in ("path /foo", path, "option `path`"):
        assert part in line


@pytest.mark.parametrize("path", ["/foo", "/foo/", "/foo/bar", "/foo/bar?x=/"])
async def test_a_handler_inside_of_it_does(browser, store, caplog, path):
    """As browsers match paths: by whole segments."""
    for number in (1, 2):
        await browser.post(path)
        assert f'{{"n": {number}}}'.encode() == (await browser.get(path)).body

    assert 1 == len(store)
    assert [] == [r for r in caplog.records if r.levelname == "WARNING"]
