"""
The load: wrk where it is installed (Debian's package `wrk`), else a small client.

`python -m benchmarks.load …` is that client, a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

WRK = shutil.which("wrk")
_LUA = Path(__file__).with_name("wrk.lua")


class Load(NamedTuple):
    """What the client saw; times in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def run(
    port: int,
    connections: int,
    seconds: float,
    cookies: Path,
    posts: int,
    path: str = "/",
    first: int = 0,
) -> Load:
    """
    Asks over so many connections for so long, `posts` of 100 requests being POSTs;
    begins with the cookie of this number.

    Raises `RuntimeError` if any answer is not a 200: then nothing was measured.
    """
    if WRK:
        command = [
            *(WRK, "--threads=1", f"--connections={connections}"),
            *(f"--duration={max(1, round(seconds))}s", f"--script={_LUA}"),
            *(f"http://127.0.0.1:{port}{path}", "--"),
            *(str(cookies), str(posts), str(first)),
        ]
    else:
        command = [sys.executable, "-m", "benchmarks.load"]
        command += map(str, (port, connections, seconds, cookies, posts, path, first))
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=seconds + 60
    ).stdout
    told = json.loads(output.splitlines()[-1])
    if told["errors"] or not told["requests"]:
        raise RuntimeError(f"{told['errors']} of {told['requests']} requests failed")
    return Load(told["requests"], told["seconds"], told["p50"] / 1e6, told["p99"] / 1e6)


# ── the small client ─────────────────────────────────────────────────────────────────


class _Client(asyncio.Protocol):
    """One connection: asks, waits for the whole answer, asks again."""

    def __init__(self, requests: Iterator[bytes], times: list[float]) -> None:
        self.requests, self.times = requests, times
        self.errors = 0
        self.answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.answer = b""
        self.asked = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.answer += data
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if found:
            length = int(
                head.lower().partition(b"content-length:")[2].split(None, 1)[0]
            )
            if len(body) >= length:
                self.times.append(time.perf_counter() - self.asked)
                self.errors += b" 200 " not in head[:20]
                self.ask()


async def _main() -> None:
    port, connections, seconds, file, posts, path, first = sys.argv[1:]
    cookies = Path(file).read_text().splitlines()
    share = int(posts)
    requests = []
    for number in range(max(len(cookies), 100)):
        method = "POST" if (number + 1) * share % 100 < share else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        if method == "POST":
            head += "Content-Length: 0\r\n"
        if cookies:
            head += f"Cookie: {cookies[number % len(cookies)]}\r\n"
        requests.append(f"{head}\r\n".encode())
    start = int(first) % len(requests)
    rotating = itertools.cycle(requests[start:] + requests[:start])
    times: list[float] = []
    loop = asyncio.get_running_loop()
    clients: deque[_Client] = deque()
    begin = time.perf_counter()
    for _ in range(int(connections)):
        made = await loop.create_connection(
            lambda: _Client(rotating, times), "127.0.0.1", int(port)
        )
        clients.append(made[1])
    await asyncio.sleep(float(seconds))
    took = time.perf_counter() - begin
    times.sort()
    result = {
        "requests": len(times),
        "seconds": took,
        "p50": times[len(times) // 2] * 1e6,
        "p99": times[len(times) * 99 // 100] * 1e6,
        "errors": sum(client.errors for client in clients),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(_main())
