"""
`python -m benchmarks.instructions`: what the library's own code costs a request.

Counts the instructions of the web process under valgrind, which come out the same on a
busy machine, where times do not. There is no network and no database here: requests are
given to the application directly, 16 at once, and a pool answers each query at once. So
this is for comparing two versions of the code; what a session costs in the end is
measured by `make bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any

from tornado.concurrent import Future
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPServerRequest,
    RequestStartLine,
)
from tornado.web import Application

from benchmarks.server import ENVIRON, NAME, Bare, Compas
from tornado_compas_session import PostgresSessionStore, session_settings
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.protocols import Connection
from tornado_compas_session.stores.pools.queries import Statement

CASES = ("bare", "anonymous", "read", "count")
AT_ONCE, SESSIONS = 16, 48
FEW, MANY = 160, 960
SECRET = new_secret()
HASH = hash_secret(SECRET)


class InstantPool:
    """
    Answers each batch in the loop's next round, with a row for each id.

    Nothing else of a pool is asked for here; if it were, it had to be an error.
    """

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Any]:
        await asyncio.sleep(0)
        now = time.time()
        handles = values["handles"] if "handles" in values else [values["handle"]]
        if statement.name in ("load_session", "load_sessions"):
            times = (now, now, now + 518400, now, now, now)
            rest = ('{"counter": 7}', HASH, None, 0, *times, None, None, None)
            return [(handle, *rest) for handle in handles]
        return [(handle, now + 518400, now, None) for handle in handles]

    def transaction(
        self, *, lock_timeout: float | None = None, timeout: float | None = None
    ) -> AbstractAsyncContextManager[Connection]:
        raise NotImplementedError

    async def expire(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Client(HTTPConnection):
    """Takes the response as Tornado's connection does, up to the socket."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set_close_callback(self, callback: object) -> None:
        pass

    def write_headers(
        self, start_line: Any, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> Future[None]:
        lines = [f"HTTP/1.1 {start_line.code} {start_line.reason}".encode()]
        lines += [f"{n}: {v}".encode("latin1") for n, v in headers.get_all()]
        b"\r\n".join([*lines, b"", chunk or b""])
        written: Future[None] = Future()
        written.set_result(None)
        return written

    def finish(self) -> None:
        self.done.set_result(None)


async def serve(case: str, requests: int) -> None:
    store = PostgresSessionStore(InstantPool())
    settings = session_settings(store=store, environ=ENVIRON)
    handler = Bare if case == "bare" else Compas
    app = Application([("/", handler)], log_function=lambda _: None, **settings)
    keys = settings["compas_session_manager"].keys
    # Under valgrind a second is over after a hundred requests, which is not so else.
    keys.clock = lambda: 1.7e9
    names = [keys.sign(f"{NAME}.sess", new_handle() + SECRET) for _ in range(SESSIONS)]
    method = "POST" if case == "count" else "GET"

    async def ask(number: int) -> None:
        headers = HTTPHeaders({"Host": "localhost"})
        if case in ("read", "count"):
            headers["Cookie"] = f"{NAME}.sess={names[number % SESSIONS]}"
        client = Client()
        request = HTTPServerRequest(
            connection=client,
            headers=headers,
            start_line=RequestStartLine(method, "/", "HTTP/1.1"),
        )
        delegate: Any = app.find_handler(request)
        delegate.request = request
        delegate.execute()
        await client.done

    async def visitor(first: int) -> None:
        for number in range(first, requests, AT_ONCE):
            await ask(number)

    await ask(0)  # alone, as on a server that has just started
    await asyncio.gather(*map(visitor, range(AT_ONCE)))


def count(case: str, requests: int) -> int:
    """The instructions of a whole process that answers so many requests."""
    command = [
        *("valgrind", "--tool=cachegrind", "--cache-sim=no"),
        "--cachegrind-out-file=/dev/null",
        *(sys.executable, "-m", "benchmarks.instructions"),
        *("--case", case, "--requests", str(requests)),
    ]
    # The order of sets and dicts must be the same each time.
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=600, check=True
    )
    [instructions] = re.findall(r"I +refs: +([\d,]+)", done.stderr)
    return int(instructions.replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", choices=CASES, help="of one process")
    parser.add_argument("--requests", type=int, default=MANY)
    arguments = parser.parse_args()
    if arguments.case:
        asyncio.run(serve(arguments.case, arguments.requests))
        return
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is needed: apt-get install valgrind")
    jobs = [(case, requests) for case in CASES for requests in (FEW, MANY)]
    with ThreadPoolExecutor(2) as pool:
        counts = dict(zip(jobs, pool.map(lambda job: count(*job), jobs), strict=True))
    each = {
        case: (counts[case, MANY] - counts[case, FEW]) / (MANY - FEW) / 1000
        for case in CASES
    }
    print("| request | thousand instructions | beyond bare |\n|---|---|---|")
    for case in CASES:
        print(f"| {case} | {each[case]:.0f} | {each[case] - each['bare']:.0f} |")


if __name__ == "__main__":
    main()
