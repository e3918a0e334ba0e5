"""The nginx block of docs/cookies.md, in a real nginx: https, cookies, a WebSocket."""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import create_connection

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler, websocket_connect

from tests.docs.pages import DOCS, blocks
from tests.factories import (
    PRODUCTION,
    Browser,
    MemorySessionStore,
    make_app,
    port_of,
    serve,
    set_cookies,
)
from tests.ports import free_port
from tests.programs import program
from tornado_compas_session import SessionMixin

pytestmark = pytest.mark.slow

CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {block}
}}
"""
LISTEN = """
    listen 127.0.0.1:{port} ssl;
    ssl_certificate cert.pem;
    ssl_certificate_key key.pem;
"""


class SignIn(SessionMixin, RequestHandler):
    def get(self):
        self.session["user_id"] = "ada"
        self.write(str(self.request.remote_ip))


class Chat(SessionMixin, WebSocketHandler):
    def on_message(self, message):
        self.write_message(f"{self.session['user_id']}: {message}")


@contextmanager
def nginx(folder: Path, block: str) -> Iterator[int]:
    """An nginx with this block of a page; its port, where it speaks https."""
    port = free_port()
    command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    block = block.replace("# listen, server_name, certificates …", LISTEN)
    assert "ssl_certificate" in block
    text = CONFIGURATION.format(block=block.replace("{port}", str(port)))
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(
        [program("nginx"), "-p", str(folder), "-c", "nginx.conf"],
        stderr=subprocess.PIPE,
    )
    try:
        limit = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < limit:
            with suppress(OSError):
                create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.02)
        else:
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=20)


def page_block(port: int) -> str:
    """What docs/cookies.md shows, in front of this port."""
    [block] = [one for one in blocks(DOCS / "cookies.md") if one.language == "nginx"]
    return block.text.replace(":8888", f":{port}")


async def test_the_block_of_the_page(tmp_path):
    """A Secure cookie goes out, the visitor's address arrives, and a socket opens."""
    routes = [("/", SignIn), ("/chat", Chat)]
    app = make_app(routes, MemorySessionStore(), environ=PRODUCTION)
    unverified = ssl._create_unverified_context()
    with (
        serve(app, xheaders=True) as url,
        nginx(tmp_path, page_block(port_of(url))) as port,
    ):
        browser = Browser(f"https://127.0.0.1:{port}")
        answer = await browser.get("/", ssl_options=unverified)
        cookies = {"Cookie": browser.jar.header()}
        request = HTTPRequest(
            f"wss://127.0.0.1:{port}/chat", headers=cookies, ssl_options=unverified
        )
        socket = await websocket_connect(request)
        await socket.write_message("hello")
        said = await socket.read_message()
        socket.close()

    assert b"127.0.0.1" == answer.body
    assert "; Secure" in set_cookies(answer)[0]
    assert "ada: hello" == said


async def test_without_its_upgrade_lines_a_socket_is_refused(tmp_path):
    """What the page says that they are for: the handshake is a 400 without them."""
    app = make_app([("/chat", Chat)], MemorySessionStore(), environ=PRODUCTION)
    with serve(app, xheaders=True) as url:
        lines = page_block(port_of(url)).splitlines()
        block = "\n".join(line for line in lines if "proxy_set_header Up" not in line)
        with nginx(tmp_path, block) as port:
            request = HTTPRequest(
                f"wss://127.0.0.1:{port}/chat",
                ssl_options=ssl._create_unverified_context(),
            )
            with pytest.raises(HTTPClientError, match="400"):
                await websocket_connect(request)
