"""How the example is run: its flags, its database, its processes, and a clean stop."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import hashlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado import httputil
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tornado_compas_session import (
    PostgresSessionStore,
    SessionError,
    StoreUnavailable,
)

HERE = Path(__file__).parent
# Subdomains of localhost lead to this machine in browsers. It takes two levels to make
# one site of two hosts: `localhost` is to a browser what `com` is.
SITE = "counter.localhost"
PATIENCE = 10.0  # seconds that requests under way get to finish when the server stops

#: Sent with everything; the page adds its own policy. None: Tornado's version.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": None,
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
}


@functools.cache
def page(api: str) -> tuple[str, str]:
    """The page, and the policy under which nothing runs on it but its own script."""
    html = (HERE / "example_page.html").read_text(encoding="utf-8")
    html = html.replace('name="api" content=""', f'name="api" content="{api}"')
    policy = {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": f"'self' {api}",
    }
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        policy[f"{tag}-src"] = f"'sha256-{digest}'"
    policy |= dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'")
    return html, "; ".join(f"{name} {value.strip()}" for name, value in policy.items())


def main(make_app: Callable[..., Application]) -> None:
    """Serves until Ctrl-C or SIGTERM; then ends what is under way, and exits with 0."""
    # From here on SIGTERM unwinds like Ctrl-C, so that the database is stopped as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    arguments = parse_arguments()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            run(make_app, arguments)
        except (SessionError, OSError, ImportError) as error:
            sys.exit(f"The example cannot start: {error}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The counter example of tornado-compas-session.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=8888, help="where to listen")
    add("--address", default="127.0.0.1", help="where to listen")
    add("--processes", type=int, default=1, help="how many processes serve")
    add(
        "--database-url",
        default=os.environ.get("DATABASE_URL"),
        metavar="URL",
        help="a migrated PostgreSQL; without one (and without DATABASE_URL) the "
        "example starts a PostgreSQL of its own, kept in .pgdata/",
    )
    add(
        "--pool",
        choices=["asyncpg", "psycopg", "momoko"],
        default="asyncpg",
        help="driver",
    )
    add(
        "--two-origins",
        action="store_true",
        help=f"the page on app.{SITE}, the API on api.{SITE} and the next port",
    )
    add(
        "--max-age", default=None, metavar="SECONDS", help='or "session": idle lifetime'
    )
    return parser.parse_args()


def run(make_app: Callable[..., Application], arguments: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    port, host = arguments.port, arguments.address
    here = api = f"http://{host}:{port}"
    options: dict[str, Any] = {}
    if arguments.two_origins:
        here, api = f"http://app.{SITE}:{port}", f"http://api.{SITE}:{port + 1}"
        os.environ.setdefault("CORS_URL", here)
        options = {"api": api, "domain": SITE}
    if arguments.max_age is not None:
        own = arguments.max_age
        options["max_age"] = own if own == "session" else float(own)
    if "APP_NAME" not in os.environ:
        os.environ["APP_NAME"] = "counter"
        if "APP_KEYS" not in os.environ:
            os.environ.setdefault("APP_ENV", "development")

    sockets = listen(host, [port, port + 1] if arguments.two_origins else [port])
    with database(arguments.database_url) as (dsn, where):
        print(
            f"The counter is on {here} (Ctrl-C stops it).",
            f"Sessions are kept in {where}, through {arguments.pool}.",
            f"Without a browser: curl -i -b jar -c jar -X POST {api}/counter/init",
            sep="\n",
            flush=True,
        )
        if arguments.processes != 1:
            fork(arguments.processes or os.cpu_count() or 1, sockets)
        asyncio.run(serve(make_app, options, sockets, dsn, arguments.pool))


def listen(address: str, ports: list[int]) -> list[socket.socket]:
    sockets = []
    for port in ports:
        try:
            sockets += bind_sockets(port, address)
        except OSError as error:
            raise OSError(
                f"port {port} of {address} cannot be had ({error.strerror}); "
                "choose another with --port"
            ) from error
    return sockets


@contextlib.contextmanager
def database(url: str | None, *, migrates: bool = False) -> Iterator[tuple[str, str]]:
    """
    The DSN of the database, and what to call it; one of our own while it is used.

    Somebody's database without our table is a `SchemaMissing`, unless `migrates`.
    """
    if url:
        parts = urlsplit(url)
        if not migrates:
            asyncio.run(check_table(url))
        yield url, f"PostgreSQL on {parts.hostname or 'this machine'}{parts.path}"
        return
    from tornado_compas_session.stores.migrations import migrate
    from tornado_compas_session.testing.embedded import EmbeddedPostgres

    with EmbeddedPostgres(HERE / ".pgdata") as postgres:
        asyncio.run(migrate(postgres.dsn()))
        yield postgres.dsn(), "a PostgreSQL of its own (.pgdata/)"


async def check_table(dsn: str) -> None:
    """Raises `SchemaMissing`, which says what to run; who is away may come later."""
    store = await PostgresSessionStore.connect(dsn)
    with contextlib.suppress(StoreUnavailable):
        await store.check()
    await store.close()


async def open_store(dsn: str, driver: str) -> PostgresSessionStore:
    """A store through this driver; each of them waits for no database at the start."""
    pool: Any
    if driver == "psycopg":
        from psycopg_pool import AsyncConnectionPool

        pool = AsyncConnectionPool(dsn, min_size=0, max_size=10, open=False)
        await pool.open(wait=False)
    elif driver == "momoko":
        import momoko

        pool = momoko.Pool(dsn, size=1, max_size=10, raise_connect_errors=False)
        await pool.connect()
    else:
        return await PostgresSessionStore.connect(dsn)
    return PostgresSessionStore(pool)


async def serve(
    make_app: Callable[..., Application],
    options: dict[str, Any],
    sockets: list[socket.socket],
    dsn: str,
    driver: str,
) -> None:
    """One process, with a store of its own."""
    store = await open_store(dsn, driver)
    await serve_until_stopped(make_app(store, **options), sockets)
    await store.close()


async def serve_until_stopped(
    app: Application, sockets: list[socket.socket], *, max_body_size: int = 2**20
) -> None:
    """Serves until it is told to stop, then finishes the requests under way."""
    stopping = asyncio.Event()
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    # Tornado's own limits are an hour and 100 MB; and nothing here takes such forms.
    httputil.set_parse_body_config(
        httputil.ParseBodyConfig(multipart=httputil.ParseMultipartConfig(enabled=False))
    )
    server = DrainingServer(
        app, idle_connection_timeout=30, body_timeout=30, max_body_size=max_body_size
    )
    server.add_sockets(sockets)
    await stopping.wait()
    await server.drain(PATIENCE)


class DrainingServer(HTTPServer):
    """An HTTP server that knows which connections await an answer."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        self.busy: set[object] = set()
        super().initialize(*args, **kwargs)

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        # A connection asks for its next request when the answer to the last has left.
        self.busy.discard(server_conn)
        delegate = super().start_request(server_conn, request_conn)
        return _Watched(delegate, functools.partial(self.busy.add, server_conn))

    def on_close(self, server_conn: object) -> None:
        self.busy.discard(server_conn)
        super().on_close(server_conn)

    async def drain(self, patience: float) -> None:
        """Takes no more connections, lets requests finish, and closes what is left."""
        self.stop()
        self.conn_params.no_keep_alive = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self.busy:
                    await asyncio.sleep(0.02)
        await self.close_all_connections()


class _Watched(httputil.HTTPMessageDelegate):
    """Tells when a request begins to come in."""

    def __init__(
        self, delegate: httputil.HTTPMessageDelegate, begun: Callable[[], None]
    ) -> None:
        self.begun = begun
        self.delegate = delegate

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        self.begun()
        return self.delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self.delegate.data_received(chunk)

    def finish(self) -> None:
        self.delegate.finish()

    def on_connection_close(self) -> None:
        self.delegate.on_connection_close()


def stop_signals() -> list[signal.Signals]:
    """Ctrl-C, `kill`, and a terminal that is closed; not where `nohup` has a say."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM] + [signal.SIGHUP] * hangs_up


def fork(processes: int, sockets: list[socket.socket]) -> None:
    """Returns in each of so many children; the parent ends when all have ended."""
    children: set[int] = set()
    wanted = processes

    def stop(*_: object) -> None:
        nonlocal wanted
        wanted = 0
        for listening in sockets:  # or else nobody would be refused yet
            listening.close()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signals = stop_signals()
    for number in signals:
        signal.signal(number, stop)
    failed = 0
    while children or wanted:
        while len(children) < wanted:
            child = os.fork()
            if child == 0:
                for number in signals:
                    signal.signal(number, signal.SIG_DFL)
                return
            children.add(child)
            if not wanted:  # told to stop while forking
                stop()
        child, status = os.wait()
        if child in children:  # The database's process is a child as well.
            children.discard(child)
            if os.WIFEXITED(status):  # Else it was killed, and is replaced.
                wanted = max(0, wanted - 1)
                if os.WEXITSTATUS(status):
                    failed = 1
                    stop()
    sys.exit(failed)
