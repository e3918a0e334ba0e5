"""CHIPS: what a page in somebody's frame has with `partitioned=True`, and without."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tests.factories import MemorySessionStore
from tornado_compas_session import SessionMixin, session_settings

pytestmark = pytest.mark.slow


class Framed(SessionMixin, RequestHandler):
    """Counts, and tells whoever frames it."""

    def get(self):
        self.session["n"] = self.session.get("n", 0) + 1
        n = json.dumps(str(self.session["n"]))
        self.write(
            f"<p id=n></p><script>document.getElementById('n').textContent = {n};"
        )
        self.write(f"parent.postMessage({n}, '*')</script>")


class Framing(RequestHandler):
    def get(self, port):
        self.write(
            "<p id=n></p><script>onmessage = (event) =>"
            " document.getElementById('n').textContent = event.data</script>"
            f"<iframe src=http://shop.localhost:{port}/></iframe>"
        )


@contextmanager
def serving(**options: Any) -> Iterator[int]:
    """An application that answers to every host; its port."""
    ready = threading.Event()
    port = 0

    async def serve() -> None:
        nonlocal port
        settings = session_settings(
            store=MemorySessionStore(), secure=True, same_site="none", **options
        )
        app = Application(
            [("/", Framed), (r"/framing/(\d+)", Framing)],
            **settings,
            log_function=lambda handler: None,
        )
        [listening] = bind_sockets(0, "127.0.0.1")
        port = listening.getsockname()[1]
        # Browsers take *.localhost for as good as https.
        server = HTTPServer(app, protocol="https")
        server.add_socket(listening)
        stopping.append(asyncio.Event())
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stopping[0].wait()
        server.stop()
        await server.close_all_connections()

    stopping: list[asyncio.Event] = []
    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(20)
    try:
        yield port
    finally:
        loops[0].call_soon_threadsafe(stopping[0].set)
        thread.join()


def test_each_site_that_frames_it_has_a_session_of_its_own(open_either):
    """And none of them is that of the site itself."""
    with serving(partitioned=True) as port:
        browser = open_either(f"http://one.localhost:{port}/framing/{port}")
        browser.shows("1", "n")
        browser.open(f"http://one.localhost:{port}/framing/{port}")
        browser.shows("2", "n")
        browser.open(f"http://two.localhost:{port}/framing/{port}")
        browser.shows("1", "n")
        browser.open(f"http://shop.localhost:{port}/")
        browser.shows("1", "n")
        browser.open(f"http://one.localhost:{port}/framing/{port}")
        browser.shows("3", "n")


@pytest.mark.parametrize(("partitioned", "second"), [(False, "1"), (True, "2")])
def test_where_third_party_cookies_are_blocked(
    open_browser, tmp_path, partitioned, second
):
    """Without the option no session is kept in a frame; with it there is one."""
    preferences = tmp_path / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    preferences.write_text(json.dumps({"profile": {"cookie_controls_mode": 1}}))
    with serving(partitioned=partitioned) as port:
        browser = open_browser(f"http://one.localhost:{port}/framing/{port}")
        browser.shows("1", "n")
        browser.open(f"http://one.localhost:{port}/framing/{port}")
        browser.shows(second, "n")
