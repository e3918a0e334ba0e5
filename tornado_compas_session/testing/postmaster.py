"""The process of a PostgreSQL server: found, launched, ended."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tornado_compas_session.testing.programs import (
    EmbeddedPostgresError,
    Programs,
    telling,
)

_READY = ("ready", "standby")
_PATIENCE = 60.0

# Servers that run on for other processes after we stopped using them. Somebody has to
# hold their Popen objects, which otherwise complain about a child that still runs.
_left_running: list[subprocess.Popen[bytes]] = []


class Postmaster:
    """
    The server over a data folder: whichever process has launched it.

    `pid` and `port` are those of the server, and None while we know of none.
    """

    def __init__(self, data: Path, log: Path, programs: Programs) -> None:
        self.pid: int | None = None
        self.port: int | None = None
        self._data = data
        self._log = log
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def launched(self) -> bool:
        """Whether it was this process that launched the server."""
        return self._process is not None

    def find(self) -> bool:
        """Takes over what is known of a server that is ready; False if none is."""
        found = self._file()
        if len(found) < 8 or found[7] not in _READY or not self._is_ours(int(found[0])):
            return False
        self.pid, self.port = int(found[0]), int(found[3])
        return True

    def launch(self, port: int | None, settings: Mapping[str, object]) -> None:
        """
        Starts the server, on any port if none is given, and waits until it is ready.

        Raises `EmbeddedPostgresError` with the server's own words if it gives up.
        """
        for attempts_left in (2, 1, 0):
            written = self._log.stat().st_size if self._log.exists() else 0
            self._spawn(port or free_port(), settings)
            if self._becomes_ready():
                return
            self._forget()
            with self._log.open("rb") as log:
                log.seek(written)
                words = log.read().decode(errors="replace")
            # The backends of a killed server live a moment longer than it does, and
            # another program may have been quicker to take the port.
            passing = "shared memory block" in words or (
                "could not bind" in words and port is None
            )
            if not passing or not attempts_left:
                raise EmbeddedPostgresError(
                    f"PostgreSQL did not start: {telling(words)}"
                )
            time.sleep(1)

    def end(self) -> None:
        """Ends the server, and waits for its end, with ever harder means."""
        # By now somebody else may have ended it, and its pid may be a stranger's.
        if self.pid is not None and self._is_ours(self.pid):
            # SIGINT ends the connections and writes everything down, SIGQUIT leaves at
            # once, and the next start recovers.
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                with contextlib.suppress(_psutil().NoSuchProcess):
                    _psutil().Process(self.pid).send_signal(number)
                if self._is_gone(self.pid):
                    break
        self._forget()

    def let_go(self) -> None:
        """Ends our part in the server, which may run on for others."""
        if self._process is not None and self._process.poll() is None:
            _left_running.append(self._process)
        self.pid = self.port = self._process = None

    def _spawn(self, port: int, settings: Mapping[str, object]) -> None:
        if found := self._file():
            # PostgreSQL would take the pid of a zombie, or one that has another process
            # since, for a server that still runs.
            if self._is_ours(int(found[0])):
                raise EmbeddedPostgresError(
                    f"a server runs over {self._data.parent} (process {found[0]})"
                    " and does not become ready"
                )
            (self._data / "postmaster.pid").unlink(missing_ok=True)
        # No unix socket: its path may have 107 bytes, and temporary folders have more.
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            **settings,
        }
        options = [f"--{name}={_written(value)}" for name, value in settings.items()]
        with self._log.open("ab") as log:
            self._process = self._programs.start(
                "postgres", "-D", self._data, *options, log=log
            )
        self.pid, self.port = self._process.pid, port

    def _becomes_ready(self) -> bool:
        """Whether the server takes connections; False means that it gave up."""
        assert self._process is not None
        limit = time.monotonic() + _PATIENCE
        while self._process.poll() is None:
            found = self._file()
            mine = len(found) >= 8 and int(found[0]) == self._process.pid
            if mine and found[7] in _READY:
                return True
            if time.monotonic() > limit:
                self._process.send_signal(signal.SIGQUIT)
                limit += _PATIENCE
            time.sleep(0.02)
        return False

    def _is_gone(self, pid: int) -> bool:
        limit = time.monotonic() + _PATIENCE / 2
        while time.monotonic() < limit:
            if self._process is not None and self._process.poll() is not None:
                return True
            if not self._is_ours(pid):
                return True
            time.sleep(0.02)
        return False

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait(_PATIENCE)
        self.pid = self.port = self._process = None

    def _file(self) -> list[str]:
        """Pid, folder, start, port, socket folder, address, memory, state; or none."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.strip() for line in lines] if lines and lines[0].strip() else []

    def _is_ours(self, pid: int) -> bool:
        """Whether the process lives and is a server over this folder."""
        psutil = _psutil()
        try:
            process = psutil.Process(pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and str(self._data) in process.cmdline()
        except psutil.Error:
            return False


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise EmbeddedPostgresError from error
    return psutil


def _written(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value
