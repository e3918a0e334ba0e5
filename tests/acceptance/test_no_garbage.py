"""A request leaves nothing that only the garbage collector can take away."""

from __future__ import annotations

import gc

import pytest
from tornado.web import Application, RequestHandler

from tornado_compas_session import MemorySessionStore, SessionMixin, session_settings


class Counter(SessionMixin, RequestHandler):
    def get(self) -> None:
        self.write({"value": self.session.get("counter", 0)})

    def post(self) -> None:
        self.session["counter"] = self.session.get("counter", 0) + 1
        self.get()


@pytest.fixture
def app() -> Application:
    return Application([("/", Counter)], **session_settings(MemorySessionStore()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_leaves_no_circles(http_client, base_url, method):
    """Neither reading nor writing a session does; it cost a tenth of all CPU time."""
    body = "" if method == "POST" else None
    made = await http_client.fetch(base_url, method="POST", body="")
    headers = {"Cookie": made.headers["Set-Cookie"].partition(";")[0]}
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            await http_client.fetch(base_url, method=method, body=body, headers=headers)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [thing for thing in gc.garbage if isinstance(thing, Counter)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()

    assert [] == left
