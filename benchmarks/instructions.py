"""
`python -m benchmarks.instructions`: what the library's own code costs a request.

Counts the instructions of the web process under valgrind, which come out the same on a
busy machine, where times do not. There is no network and no database here: requests are
given to the application directly, 16 at once, and a pool answers each query at once. So
this is for comparing two versions of the code; what a session costs in the end is
measured by `make bench`. From each case a bare handler of the same method is taken off.

With `--driver` there is a PostgreSQL and asyncpg, and one request at a time.
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
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any

from tornado.concurrent import Future
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPServerRequest,
    RequestStartLine,
)
from tornado.web import Application

from benchmarks.server import ENVIRON, NAME, Bare, compas_routes
from tornado_compas_session import PostgresSessionStore, session_settings
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.protocols import Connection
from tornado_compas_session.core.types import SessionChange
from tornado_compas_session.stores.migrations import migrate
from tornado_compas_session.stores.pools.queries import Statement
from tornado_compas_session.testing.embedded import EmbeddedPostgres

#: The method and the path of each; what begins with `bare` has no session.
CASES = {
    "bare GET": ("GET", "/"),
    "bare POST": ("POST", "/"),
    "anonymous": ("GET", "/"),
    "read": ("GET", "/"),
    "count": ("POST", "/"),
    "increment()": ("POST", "/increment"),
    "lock()": ("POST", "/lock"),
}
AT_ONCE, SESSIONS = 16, 48
FEW, MANY = 160, 960
SECRET = new_secret()
HASH = hash_secret(SECRET)


class InstantPool:
    """Answers each statement in the loop's next round, with a row for each id."""

    async def fetch(
        self, statement: Statement, *, timeout: float | None = None, **values: Any
    ) -> Sequence[Any]:
        await asyncio.sleep(0)
        now = time.time()
        if not values:  # whether the table is there, and Citus
            return [(True, False)]
        handles = values["handles"] if "handles" in values else [values["handle"]]
        if statement.name in ("load_session", "load_sessions", "lock_session"):
            times = (now, now, now + 518400, now, now, now)
            rest = ('{"counter": 7}', HASH, None, 0, *times, None, None, None)
            return [(handle, *rest) for handle in handles]
        more = ("8", "number") if statement.name.startswith("increment") else ()
        return [(handle, now + 518400, now, None, *more) for handle in handles]

    @asynccontextmanager
    async def transaction(
        self, *, lock_timeout: float | None = None, timeout: float | None = None
    ) -> AsyncIterator[Connection]:
        await asyncio.sleep(0)
        yield self
        await asyncio.sleep(0)

    async def run_script(self, sql: str) -> None:
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
        self.code = start_line.code
        lines = [f"HTTP/1.1 {start_line.code} {start_line.reason}".encode()]
        lines += [f"{n}: {v}".encode("latin1") for n, v in headers.get_all()]
        b"\r\n".join([*lines, b"", chunk or b""])
        written: Future[None] = Future()
        written.set_result(None)
        return written

    def finish(self) -> None:
        self.done.set_result(None)


async def serve(case: str, requests: int, dsn: str | None) -> None:
    handles = [new_handle() for _ in range(SESSIONS)]
    if dsn is None:
        store, at_once = PostgresSessionStore(InstantPool()), AT_ONCE
    else:
        store, at_once = await PostgresSessionStore.connect(dsn), 1
        for handle in handles:
            await store.create(
                handle, HASH, SessionChange({"counter": "7"}, idle=518400.0)
            )
    # Under valgrind `renew` is over soon, which is not so else.
    settings = session_settings(store=store, renew=7200, environ=ENVIRON)
    bare = case.startswith("bare")
    routes = [("/", Bare)] if bare else compas_routes()
    app = Application(routes, log_function=lambda _: None, **settings)
    keys = settings["compas_session_manager"].keys
    keys.clock = lambda: 1.7e9
    names = [keys.sign(f"{NAME}.sess", handle + SECRET) for handle in handles]
    method, path = CASES[case]

    async def ask(number: int) -> None:
        headers = HTTPHeaders({"Host": "localhost"})
        if not (bare or case == "anonymous"):
            headers["Cookie"] = f"{NAME}.sess={names[number % SESSIONS]}"
        client = Client()
        request = HTTPServerRequest(
            connection=client,
            headers=headers,
            start_line=RequestStartLine(method, path, "HTTP/1.1"),
        )
        delegate: Any = app.find_handler(request)
        delegate.request = request
        delegate.execute()
        await client.done
        assert client.code == 200, client.code

    async def visitor(first: int) -> None:
        for number in range(first, requests, at_once):
            await ask(number)

    await ask(0)  # alone, as on a server that has just started
    await asyncio.gather(*map(visitor, range(at_once)))


def count(case: str, requests: int, dsn: str | None) -> int:
    """The instructions of a whole process that answers so many requests."""
    command = [
        *("valgrind", "--tool=cachegrind", "--cache-sim=no"),
        "--cachegrind-out-file=/dev/null",
        *(sys.executable, "-m", "benchmarks.instructions"),
        *("--case", case, "--requests", str(requests)),
        *(() if dsn is None else ("--dsn", dsn)),
    ]
    # The order of sets and dicts must be the same each time.
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=600, check=True
    )
    [instructions] = re.findall(r"I +refs: +([\d,]+)", done.stderr)
    return int(instructions.replace(",", ""))


def report(cases: Sequence[str], dsn: str | None) -> None:
    """Counts the cases, and what each has beyond a bare handler of its method."""
    wanted = dict.fromkeys(f"bare {CASES[case][0]}" for case in cases)
    cases = [*wanted, *(case for case in cases if case not in wanted)]
    jobs = [(case, requests, dsn) for case in cases for requests in (FEW, MANY)]
    with ThreadPoolExecutor(2) as pool:
        counts = dict(zip(jobs, pool.map(lambda job: count(*job), jobs), strict=True))
    each = {
        case: (counts[case, MANY, dsn] - counts[case, FEW, dsn]) / (MANY - FEW) / 1000
        for case in cases
    }
    print("| request | thousand instructions | beyond bare |\n|---|---|---|")
    for case in cases:
        beyond = each[case] - each[f"bare {CASES[case][0]}"]
        print(f"| {case} | {each[case]:.0f} | {beyond:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--driver", action="store_true", help="asyncpg and a PostgreSQL, one at a time")
    add("--case", choices=CASES, help="run it, and count nothing")
    add("--requests", type=int, default=MANY)
    add("--dsn", help="of the PostgreSQL for --case")
    arguments = parser.parse_args()
    if arguments.case:
        asyncio.run(serve(arguments.case, arguments.requests, arguments.dsn))
        return
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is needed: apt-get install valgrind")
    if not arguments.driver:
        report(arguments.cases, None)
        return
    with (
        TemporaryDirectory(prefix="compas-count-") as folder,
        EmbeddedPostgres(folder) as postgres,
    ):
        asyncio.run(migrate(postgres.dsn()))
        report(arguments.cases, postgres.dsn())


if __name__ == "__main__":
    main()
