"""Starts the shop: its database, its tables, its server. `make shop`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys

import asyncpg

import example_server
from examples.shop.app import make_app
from examples.shop.users import TABLES
from tornado_compas_session import PostgresSessionStore, SessionError
from tornado_compas_session.stores.migrations import migrate


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser(description="A shop on tornado-compas-session.")
    parser.add_argument("--port", type=int, default=8889, help="where to listen")
    parser.add_argument(
        "--database-url",
        default=os.environ.get("DATABASE_URL"),
        help="a PostgreSQL; without one, one of its own, kept in .pgdata/",
    )
    arguments = parser.parse_args()
    os.environ.setdefault("APP_NAME", "shop")
    if "APP_KEYS" not in os.environ:
        os.environ.setdefault("APP_ENV", "development")
    try:
        sockets = example_server.listen("127.0.0.1", [arguments.port])
        with (
            contextlib.suppress(KeyboardInterrupt),
            example_server.database(arguments.database_url, migrates=True) as (
                dsn,
                where,
            ),
        ):
            print(
                f"The shop is on http://127.0.0.1:{arguments.port} (Ctrl-C stops it)."
            )
            print(f"All it keeps is in {where}.", flush=True)
            asyncio.run(serve(dsn, sockets))
    except (SessionError, OSError, asyncpg.PostgresError) as error:
        sys.exit(f"The shop cannot start: {error}")


async def serve(dsn: str, sockets: list[socket.socket]) -> None:
    await migrate(dsn)  # the table of the sessions
    store = await PostgresSessionStore.connect(dsn)
    async with asyncpg.create_pool(dsn, min_size=0) as db:
        await db.execute(TABLES)
        app = make_app(store, db)
        # The most that a photo may have, and no more.
        await example_server.serve_until_stopped(app, sockets, max_body_size=2**21)
    await store.close()


if __name__ == "__main__":
    main()
