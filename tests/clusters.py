"""PostgreSQL servers for tests that crash, freeze, replace or copy theirs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import psutil

from tests.ports import free_port
from tornado_compas_session.testing.embedded import EmbeddedPostgres

#: Fast: it ends its connections and writes everything down. Immediate: it leaves at
#: once, and the next start recovers. Kill: a crash of all its processes.
StopMode = Literal["fast", "immediate", "kill"]


def cluster_folder() -> TemporaryDirectory[str]:
    """
    A folder for a server. Not `tmp_path`: whenever a pytest of the same user starts, it
    closes the folder above that to others, and root's servers run as another user.

    In memory where there is enough: a database takes 10 ms to make there, and up to
    200 ms on a disk that is slow at new files.
    """
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > 4 * 10**9
    return TemporaryDirectory(prefix="compas-tests-", dir=memory if enough else None)


class Cluster(EmbeddedPostgres):
    """A server that has one port for good, and can come to harm."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        port: int | None = None,
        settings: Mapping[str, object] | None = None,
        bin_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(
            directory, port=port or free_port(), settings=settings, bin_dir=bin_dir
        )

    def stop(self, mode: StopMode = "fast") -> None:
        """Stops the server; in the other modes for all who have joined it."""
        if mode != "fast" and self.running:
            server = psutil.Process(self.pid)
            number = signal.SIGKILL if mode == "kill" else signal.SIGQUIT
            helpers = server.children(recursive=True) if mode == "kill" else []
            for process in [server, *helpers]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            _wait_for_the_end(server)
        super().stop()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stops the server and starts it again."""
        self.stop(mode)
        self.start()

    def promote(self) -> None:
        """Makes a standby the primary; returns when it takes writes."""
        self.programs.run("pg_ctl", "promote", "--wait", "-D", str(self.data))

    def standby(self, directory: str, **options: Any) -> Cluster:
        """
        A streaming standby over a copy in another folder, not started yet.

        Its settings are this server's, with `settings` on top.
        """
        settings = {**self.settings, **options.pop("settings", {})}
        bin_dir = self.programs.bin_dir
        copy = Cluster(directory, settings=settings, bin_dir=bin_dir, **options)
        owner = self.data.stat()
        os.chown(directory, owner.st_uid, owner.st_gid)
        self.programs.run(
            "pg_basebackup",
            f"--dbname={self.dsn()}",
            f"--pgdata={copy.data}",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--wal-method=stream",
        )
        return copy

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All processes of the server stand still."""
        server = psutil.Process(self.pid)
        stopped: list[psutil.Process] = []
        try:
            for process in [server, *server.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGSTOP)
                    stopped.append(process)
            yield
        finally:
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)


def _wait_for_the_end(server: psutil.Process) -> None:
    # A zombie stays until its parent asks for it, which need not be soon.
    limit = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while server.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < limit, f"process {server.pid} does not end"
            time.sleep(0.01)
