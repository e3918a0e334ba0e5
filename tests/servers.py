"""
The example application in a process of its own, as a person runs it; and pages of a
test's own, in a thread.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.ports import free_port

ROOT = Path(__file__).parent.parent


@dataclass
class Server:
    """A running example; leaving its `with` block stops it."""

    url: str
    process: subprocess.Popen[bytes]
    _log: IO[bytes]

    @property
    def output(self) -> str:
        """What the process has printed so far, its standard error included."""
        self._log.flush()
        return Path(self._log.name).read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, *, patience: float = 30) -> int:
        """Sends the signal and returns the exit status; who does not obey is killed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(patience)
            raise AssertionError(
                f"still running {patience} s after signal {number}:\n{self.output}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            self._log.close()


def start_example(
    *flags: str,
    env: Mapping[str, str] | None = None,
    port: int | None = None,
    cwd: Path = ROOT,
    patience: float = 60,
) -> Server:
    """
    Starts `example_app.py` with these flags, and returns when it answers.

    `env` comes on top of the test's own environment. If the process ends or does not
    answer, the failure shows what it printed.
    """
    port = port or free_port()
    # Closed by Server.__exit__, and deleted with that.
    log = tempfile.NamedTemporaryFile(prefix="example-", suffix=".log")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-u", str(cwd / "example_app.py"), f"--port={port}", *flags],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    limit = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < limit:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{server.url}/_health", timeout=2).close()
            return server
        time.sleep(0.05)
    with server:
        ended = process.poll()
        why = "it does not answer" if ended is None else f"it ended with {ended}"
        raise AssertionError(f"the example did not start: {why}\n{server.output}")


@contextlib.contextmanager
def pages(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    """What a handler of the standard library serves, on this machine; the port."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
