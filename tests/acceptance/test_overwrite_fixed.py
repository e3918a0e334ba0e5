"""`overwrite=False` with a fixed lifetime: only a new session's cookie goes out."""

from __future__ import annotations

import pytest
from tornado.web import Application, RequestHandler

from tornado_compas_session import MemorySessionStore, SessionMixin, session_settings


class Counting(SessionMixin, RequestHandler):
    def get(self):
        self.session["n"] = self.session.get("n", 0) + 1
        self.write(str(self.session["n"]))


@pytest.fixture
def app():
    settings = session_settings(
        store=MemorySessionStore(), overwrite=False, renew=False
    )
    return Application([("/", Counting)], **settings)


async def test_a_save_that_moves_no_expiry_sends_no_cookie(http_client, base_url):
    """The cookie that the browser has is as good as a new one would be."""
    first = await http_client.fetch(base_url)
    [cookie] = first.headers.get_list("Set-Cookie")
    again = await http_client.fetch(
        base_url, headers={"Cookie": cookie.partition(";")[0]}
    )

    assert b"2" == again.body
    assert [] == again.headers.get_list("Set-Cookie")
