"""What an error page keeps, and what it throws away."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.web import Finish, HTTPError, RequestHandler

from tests.factories import (
    Browser,
    Raw,
    TroubledStore,
    make_app,
    rewrite,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionGone, SessionMixin, SessionNotLoaded


class Handler(SessionMixin, RequestHandler):
    async def get(self, how, status="0"):
        if how == "read":
            self.write({"data": dict(self.session)})
        else:
            await getattr(self, how)(int(status or 0))

    async def change_and_raise(self, status):
        self.session["changed"] = True
        raise HTTPError(status)

    async def change_and_send_error(self, status):
        self.session["changed"] = True
        self.send_error(status)

    async def change_and_set_status(self, status):
        self.session["changed"] = True
        self.set_status(status)
        self.write("my own page")

    async def change_and_crash(self, status):
        self.session["changed"] = True
        raise KeyError("a bug")

    async def change_and_finish(self, status):
        self.session["changed"] = True
        self.set_status(status)
        raise Finish

    async def destroy_and_crash(self, status):
        self.session = None
        raise KeyError("a bug")

    async def start_and_crash(self, status):
        self.session = {"changed": True}
        raise KeyError("a bug")

    async def save_and_crash(self, status):
        self.session["changed"] = True
        await self.session.save()
        self.session["lost"] = True
        raise KeyError("a bug")

    async def regenerate_save_and_crash(self, status):
        self.session.regenerate()
        await self.session.save()
        raise KeyError("a bug")

    async def bad_value(self, status):
        self.session["ok"] = 1
        self.session["bad"] = {1, 2}
        self.write("never seen")

    async def cancelled(self, status):
        self.session["changed"] = True
        raise asyncio.CancelledError

    async def gone(self, status):
        await self.settings["compas_session_manager"].store.revoke_all()
        self.session["changed"] = "again"
        self.write("never seen")

    async def gone_and_handled(self, status):
        await self.settings["compas_session_manager"].store.revoke_all()
        self.session["changed"] = "again"
        try:
            await self.session.save()
        except SessionGone:
            self.write("handled")

    async def gone_but_only_read(self, status):
        await self.settings["compas_session_manager"].store.revoke_all()
        self.write({"data": dict(self.session)})


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
def url(io_loop, store):
    with serve(make_app([(r"/(\w+)/?(\d*)", Handler)], store, renew=0)) as url:
        yield url


async def data_of(browser):
    return json.loads((await browser.get("/read")).body)["data"]


async def live(url):
    """A browser with a session that holds {"changed": True}."""
    browser = Browser(url)
    await browser.get("/change_and_set_status/200")
    await browser.get("/read")
    return browser


WAYS = ["change_and_raise", "change_and_send_error", "change_and_set_status"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 499])
async def test_a_4xx_saves(url, way, status):
    """What was changed before it is kept, with the cookie (T13)."""
    browser = Browser(url)
    response = await browser.get(f"/{way}/{status}")

    assert status == response.code
    assert 1 == len(set_cookies(response))
    assert {"changed": True} == await data_of(browser)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_5xx_discards(url, store, way, status):
    """No row, no cookie, no change (T13)."""
    browser = Browser(url)
    response = await browser.get(f"/{way}/{status}")

    assert status == response.code
    assert [] == set_cookies(response, None)
    assert 0 == len(store)


async def test_a_crash_discards(url, store):
    """A bug in a handler leaves the session as it was, a destruction undone."""
    browser = await live(url)
    before = await data_of(browser)
    for way in ("change_and_crash", "destroy_and_crash", "start_and_crash"):
        cookie = browser.jar.get()
        response = await browser.get(f"/{way}")
        assert 500 == response.code
        assert [] == set_cookies(response, None)
        assert cookie == browser.jar.get()
        assert before == await data_of(browser)


async def test_finish_is_no_error(url):
    """`raise Finish` saves, whatever the status below 500 (T24)."""
    browser = Browser(url)
    await browser.get("/change_and_finish/200")

    assert {"changed": True} == await data_of(browser)


async def test_what_was_saved_before_a_crash_is_saved(url, store):
    """`await save()` has committed; the browser gets the cookie of that, no more."""
    browser = Browser(url)
    response = await browser.get("/save_and_crash")

    assert 500 == response.code
    assert 1 == len(store)
    assert {"changed": True} == await data_of(browser)


async def test_a_crash_after_a_regeneration_does_not_log_out(url, store):
    """
    The new id is committed, so it goes out with the error page: with the old one the
    browser would be taken for a thief a few seconds later.
    """
    browser = await live(url)
    old = browser.jar.get()
    response = await browser.get("/regenerate_save_and_crash")

    assert 500 == response.code
    assert old != browser.jar.get()
    rewrite(store, former_hash=None)  # the grace is over
    assert {"changed": True} == await data_of(browser)


async def test_what_cannot_be_kept_is_a_500(url, store, caplog):
    """The path is logged, the row untouched, and no cookie goes out (ST-2)."""
    browser = Browser(url)
    response = await browser.get("/bad_value")

    assert 500 == response.code
    assert b"never seen" not in response.body
    assert [] == set_cookies(response, None)
    assert 0 == len(store)
    assert "the session cannot keep bad: a set is not JSON" in caplog.text


async def test_a_cancelled_handler_is_answered(url, store):
    """Tornado 6.5 would leave the client waiting for ever (T18)."""
    response = await Browser(url).get("/cancelled")

    assert 500 == response.code
    assert 0 == len(store)


async def test_a_session_that_ended_meanwhile_is_a_409(url, store):
    """Who had changed it is told; nothing comes back (LC-3)."""
    browser = await live(url)
    response = await browser.get("/gone")

    assert 409 == response.code
    assert b"never seen" not in response.body
    assert [] == set_cookies(response, None)
    assert 0 == len(store)


async def test_a_handler_can_deal_with_it(url):
    """`SessionGone` can be caught, where it is raised by `save()`."""
    browser = await live(url)
    response = await browser.get("/gone_and_handled")

    assert (200, b"handled") == (response.code, response.body)


async def test_who_only_read_is_not_told(url, store):
    """The page was right when it was made; the next one finds the cookie dead."""
    browser = await live(url)
    response = await browser.get("/gone_but_only_read")

    assert 200 == response.code
    assert 0 == len(store)
    assert browser.jar.get() is not None
    await data_of(browser)
    assert browser.jar.get() is None


async def test_errors_before_prepare(io_loop, store):
    """A forged form, a broken body, an unknown verb: Tornado's own answers (T14)."""

    class Form(SessionMixin, RequestHandler):
        def post(self):
            self.session["posted"] = True

    tornado = {"xsrf_cookies": True}
    with serve(make_app([("/", Form)], store, tornado=tornado)) as url:
        assert 403 == (await Browser(url).post("/", body="a=1")).code
        broken = {"Content-Type": "multipart/form-data; boundary=x"}
        response = await Browser(url).post("/", headers=broken, body="--x\r\n\r\n")
        assert response.code in (400, 403)
        async with await Raw.open(url) as client:
            status, headers, _ = await client.ask(method=b"BREW")
            assert 405 == status
            assert "Set-Cookie" not in headers

    assert 0 == len(store)


async def test_options_does_no_session_work(io_loop, store):
    """No query and no cookie, and `self.session` says why (T20, CO-4)."""

    class Asked(SessionMixin, RequestHandler):
        def get(self):
            self.session["a"] = 1

        def options(self):
            with pytest.raises(SessionNotLoaded, match="OPTIONS"):
                _ = self.session
            self.set_status(204)

    with serve(make_app([("/", Asked)], store)) as url:
        browser = Browser(url)
        await browser.get("/")
        store.calls.clear()
        response = await browser.ask("/", "OPTIONS")

    assert 204 == response.code
    assert [] == set_cookies(response, None)
    assert [] == store.calls


async def test_an_error_page_of_ones_own_may_use_the_session(io_loop, store):
    """`write_error` sees the session of the request, even when its save failed."""

    class Own(SessionMixin, RequestHandler):
        def get(self):
            self.session["name"] = "Ada"
            self.write("never seen")

        def write_error(self, status_code, **kwargs):
            self.finish(f"{status_code} {type(kwargs['exc_info'][1]).__name__}")

    with serve(make_app([("/", Own)], store)) as url:
        store.failing = "create"
        response = await Browser(url).get("/")

    assert b"503 StoreUnavailable" == response.body


async def test_serve_traceback(io_loop, store):
    """Tornado's setting for development works, for errors of the store as well."""

    class Crash(SessionMixin, RequestHandler):
        def get(self):
            self.session["card"] = "4111"
            if self.get_query_argument("crash", None):
                raise KeyError("a bug")

    tornado = {"serve_traceback": True}
    with serve(make_app([("/", Crash)], store, tornado=tornado)) as url:
        crash = await Browser(url).get("/?crash=1")
        store.failing = "create"
        failed = await Browser(url).get("/")

    assert 500 == crash.code
    assert b"KeyError" in crash.body
    assert 503 == failed.code
    assert b"StoreUnavailable" in failed.body
    for response in (crash, failed):
        assert b"4111" not in response.body.replace(
            b'self.session["card"] = "4111"', b""
        )


async def test_without_serve_traceback_nothing_is_told(url, store):
    """A status and its name, and no detail (LG-3)."""
    store.failing = "create"
    response = await Browser(url).get("/change_and_set_status/200")

    assert (
        b"<html><title>503: Service Unavailable</title>"
        b"<body>503: Service Unavailable</body></html>" == response.body
    )
