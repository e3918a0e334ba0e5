"""A web process that ends well on SIGTERM: what is under way is finished first."""

from __future__ import annotations

import asyncio
import signal
import sys

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from tornado_compas_session import (
    PostgresSessionStore,
    SessionMixin,
    session_settings,
)

ended = asyncio.Event()
under_way: set[RequestHandler] = set()


class Write(SessionMixin, RequestHandler):
    async def prepare(self):
        under_way.add(self)
        await super().prepare()

    async def post(self):
        key = self.get_query_argument("key")
        await asyncio.sleep(0.01)
        self.session[key] = True

    def get(self):
        self.write({"keys": sorted(self.session)})

    def finish(self, chunk=None):
        if ended.is_set():
            self.set_header("Connection", "close")
        sent = super().finish(chunk)
        # It ends when the answer has left, which waits for the commit.
        sent.add_done_callback(lambda _: under_way.discard(self))
        return sent


async def main(dsn: str, port: int) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    store = await PostgresSessionStore.connect(dsn, max_size=4)
    app = Application([("/", Write)], **session_settings(store=store))
    server = HTTPServer(app)
    server.listen(port, "127.0.0.1", reuse_port=True)
    print("ready", flush=True)
    await ended.wait()
    server.stop()
    # Who keeps asking on an open connection is told to open another one; what is under
    # way is finished; then the idle connections are closed.
    await asyncio.sleep(0.3)
    while under_way:
        await asyncio.sleep(0.01)
    await server.close_all_connections()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
