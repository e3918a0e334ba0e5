"""
Beside a slow row: what others wait for while one session cannot be written.

Somebody holds the row of one session in a transaction, and some requests of that
session wait for it. All the others ask for sessions of their own.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from typing import Any

import psycopg

from benchmarks import load
from benchmarks.world import WebProcess, World

#: Of 100 requests of the others so many write.
POSTS = 50


def others(
    world: World, server: WebProcess, connections: int, seconds: float, waiting: int
) -> load.Load:
    """
    What clients of other sessions see while so many requests wait for the row of one.

    With 0 the row is free and nobody waits, which is what the rest is compared with.
    Raises `RuntimeError` if one of the others gets anything but a 200.
    """
    *cookies, slow = world.cookies.read_text().splitlines()
    file = world.cookies.with_name("other-cookies")
    file.write_text("\n".join(cookies) + "\n")
    first = random.randrange(len(cookies))
    world.used()  # nobody is due to be renewed
    with ExitStack() as stack:
        if waiting:
            stack.enter_context(_slow(world, server, slow, waiting))
        return load.run(server.port, connections, seconds, file, POSTS, first=first)


@contextmanager
def _slow(
    world: World, server: WebProcess, cookie: str, waiting: int
) -> Iterator[None]:
    """The row of the last session is held, and so many requests want to write to it."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/", b"", {"Cookie": cookie}
    )

    def ask() -> None:
        # What becomes of them is not what is measured.
        with suppress(OSError, HTTPException):
            urllib.request.urlopen(request, timeout=30).close()

    clients = [threading.Thread(target=ask) for _ in range(waiting)]
    try:
        with psycopg.connect(world.dsn) as holder:
            _hold(holder, world.ids[-1])
            for client in clients:
                client.start()
            time.sleep(0.2)  # until they wait
            yield
    finally:
        for client in clients:
            client.join()


def _hold(holder: psycopg.Connection[Any], slow: str) -> None:
    """Locks the session's row in the table of each variant, for this transaction."""
    for table, column, name in (
        ("compas_session", "handle", slow[:12]),
        ("hand_written", "id", slow),
        ("careful", "id", hashlib.sha256(slow.encode()).digest()),
    ):
        found = holder.execute(
            f"SELECT 1 FROM {table} WHERE {column} = %s FOR UPDATE", (name,)
        )
        if found.fetchone() is None:
            raise RuntimeError(f"the session is not in {table}")
