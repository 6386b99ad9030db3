"""A killed test run leaves no server and no folder behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from koo.testing.orphans import LOCK, Watcher, end_what_was_left

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/cwd").exists(), reason="a server is recognised by its working directory in /proc"
)
PATIENCE_S = 60.0
RUN = """
import sys
from koo.testing.postgres import PostgresServer
server = PostgresServer(18).start()
print(server.pid, server.directory.parent, flush=True)
sys.stdin.read()
"""


def lives(pid: int) -> bool:
    """True if a process lives and is not a zombie. A container's first process may never reap zombies."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, folder: Path) -> None:
    """Poll the operating system: no event reports the end of another process's child."""
    command = (
        'while [ -d "$1" ] || { [ -d /proc/$2 ] && ! grep -q ") Z " /proc/$2/stat; }; do sleep 0.05; done'
    )
    subprocess.run(["sh", "-c", command, "sh", str(folder), str(pid)], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_no_postgres_outlives_its_test_run(number: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout is not None
        pid, folder = run.stdout.readline().split()
        assert lives(int(pid)) and (Path(folder) / LOCK).exists()
        run.send_signal(number)
    assert run.returncode == -number
    wait_until_gone(int(pid), Path(folder))


def test_the_next_run_ends_leftover_servers_and_no_others(tmp_path: Path) -> None:
    left, used = tmp_path / "koo-servers-left", tmp_path / "koo-servers-used"
    for folder in (left, used):
        (folder / "one").mkdir(parents=True)
    (left / LOCK).touch()
    watcher = Watcher(used)
    servers = [subprocess.Popen(["sleep", "600"], cwd=folder / "one") for folder in (left, used)]
    try:
        end_what_was_left(tmp_path, "koo-servers-*")
        assert servers[0].wait(PATIENCE_S) == -signal.SIGQUIT and not left.exists()
        assert servers[1].poll() is None and used.exists()
    finally:
        for one in servers:
            one.kill()
            one.wait()
        watcher.end()
    assert not used.exists(), "a run that ends removes its own"


def test_a_forked_child_that_lives_on_keeps_no_server_alive(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from koo.testing.orphans import Watcher
watcher = Watcher(Path({str(tmp_path / "run")!r}))
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
os._exit(0)
"""
    (tmp_path / "run").mkdir()
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        wait_until_gone(run.pid, tmp_path / "run")
        assert lives(child)
        os.kill(child, signal.SIGKILL)
