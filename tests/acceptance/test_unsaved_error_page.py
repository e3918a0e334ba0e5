"""An error page whose session cannot be kept is still an answer."""

from __future__ import annotations

import pytest
from tornado.web import Application, HTTPError, RequestHandler

from tornado_compas_session import MemorySessionStore, SessionMixin, session_settings


class Refusing(SessionMixin, RequestHandler):
    def get(self):
        self.session["ratio"] = float("nan")
        raise HTTPError(403)


@pytest.fixture
def app():
    return Application(
        [("/", Refusing)], **session_settings(store=MemorySessionStore())
    )


async def test_data_that_cannot_be_kept_turns_a_4xx_into_a_500(
    app, http_client, base_url, caplog
):
    """The client is answered, no cookie goes out, and the log names the path."""
    response = await http_client.fetch(base_url, raise_error=False)

    assert 500 == response.code
    assert [] == response.headers.get_list("Set-Cookie")
    assert "the session cannot keep ratio" in caplog.text
