"""Two web processes, restarted in turn under load: no acknowledged write is lost."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.load import Visitor, settled

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Process:
    """One web process on the shared port."""

    def __init__(self, dsn: str, port: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.apps.restarted", dsn, str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert b"ready" in self.process.stdout.readline()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


async def test_restarts_lose_nothing(database: str, free_port: int, long: bool):
    """SIGTERM in the middle of requests: they finish, or were never acknowledged."""
    loop = asyncio.get_running_loop()

    def start() -> Process:
        return Process(database, free_port)

    processes = [await loop.run_in_executor(None, start) for _ in range(2)]
    acknowledged: list[set[str]] = [set() for _ in range(10)]
    broken = 0
    stop = False
    visitors = [Visitor(f"http://127.0.0.1:{free_port}") for _ in acknowledged]

    async def write(n: int) -> None:
        nonlocal broken
        count = 0
        while not stop:
            count += 1
            try:
                status, _, _ = await visitors[n].ask(f"/?key=k{count}", "POST")
            except (OSError, asyncio.IncompleteReadError):
                broken += 1  # it met a socket that was being closed
                continue
            assert 200 == status
            acknowledged[n].add(f"k{count}")
            await asyncio.sleep(0.005)

    try:
        writers = [asyncio.ensure_future(write(n)) for n in range(len(visitors))]
        await asyncio.sleep(0.3)
        for n in range(20 if long else 4):
            old = processes[n % 2]
            assert 0 == await loop.run_in_executor(None, old.stop)
            processes[n % 2] = await loop.run_in_executor(None, start)
        stop = True
        await asyncio.gather(*writers)
        total = sum(map(len, acknowledged))
        print(f"{total} writes acknowledged, {broken} connections broken")
        assert total > 100
        for n, visitor in enumerate(visitors):
            _, _, body = await visitor.ask("/")
            assert set() == acknowledged[n] - set(json.loads(body)["keys"])
            visitor.drop()
    finally:
        stop = True
        for process in processes:
            await loop.run_in_executor(None, process.stop)
    found = await settled(database, most=0)
    assert not found
