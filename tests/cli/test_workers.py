"""`koo serve --workers`: one port, several processes, and a parent that replaces those that end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from koo.testing.polling import wait_until
from koo.testing.providers import FakeAnthropic
from koo.web.workers import Worker, Workers
from tests.cli.running import Here, command, environment, serving, settings_of
from tests.cli.test_serve import ask, question

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are read from /proc")


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """The workers of this parent, oldest first."""
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(int(pid) for pid in file.read_text().split())


def lines_of(home: Path) -> list[dict[str, Any]]:
    """The log's lines, without the last one."""
    lines = (home / "serve.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def said(home: Path, what: str, times: int = 1) -> Callable[[], bool]:
    return lambda: sum(line.get("what") == what for line in lines_of(home)) >= times


def test_all_workers_serve_one_port_and_the_banner_is_printed_once(here: Here, tmp_path: Path) -> None:
    with FakeAnthropic() as fake, serving(tmp_path, "--workers", "2", **settings_of(fake)) as (url, process):
        wait_until(said(tmp_path, "workers_answer"))
        here.set({"KOO_URL": url})
        wait_until(lambda: "cover one process of 2; money covers all" in here.run("status")[1])
        assert len(children_of(process)) == 2
        assert ask(f"{url}/livez") == {"status": "alive"}
        assert question(url)["response"] == "Paris."
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout is not None
        out = process.stdout.read()
    assert "Ctrl-C" in out and "koo is ready" not in out  # the first line was read by `serving`
    assert (tmp_path / "serve.log").read_text().splitlines().count("koo has stopped") == 1


def test_pausing_the_database_says_that_the_other_worker_is_unchanged(here: Here, tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as (url, process):
        wait_until(said(tmp_path, "workers_answer"))
        here.set({"KOO_URL": url})
        workers = "|".join(map(str, children_of(process)))
        says_it = re.compile(f"this is process ({workers}), and 1 other process is unchanged")
        # A worker knows of the other one with its first beat.
        wait_until(lambda: says_it.search(here.run("db", "pause")[1]) is not None)


def test_a_killed_worker_is_replaced_and_its_end_is_logged(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as (url, process):
        wait_until(said(tmp_path, "workers_answer"))
        dead = children_of(process)[0]
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: len(children_of(process)) == 2 and dead not in children_of(process), 60)
        assert ask(f"{url}/livez") == {"status": "alive"}
        (line,) = (one for one in lines_of(tmp_path) if one.get("what") == "worker_ended")
    assert f"(process {dead}) was ended by SIGKILL, as the kernel does when memory runs out" in line["event"]


def test_a_worker_that_ends_soon_after_its_start_is_replaced_after_a_growing_pause() -> None:
    now, pauses = 100.0, []
    with socket.socket() as listener:
        workers = Workers(2, lambda *place: [], listener, 0.0, monotonic=lambda: now)
        slot = workers.slots[1]
        for code in (-9, 1, 1, 1, 1, 1, 1):
            workers._lost(slot, Worker(2, 4711, -1, now - 5.0), code)
            pauses.append(slot.starts_at - now)
        workers._lost(slot, Worker(2, 4711, -1, now - 60.0), 1)
        assert (pauses, slot.failed) == ([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0], 0)
        workers._lost(
            slot, Worker(2, 4711, -1, now - 5.0), 0
        )  # it was asked to end, so this is not a failure
        assert slot.failed == 0


def test_usr2_replaces_all_workers_one_by_one(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as (url, process):
        wait_until(said(tmp_path, "workers_answer"))
        before = set(children_of(process))
        process.send_signal(signal.SIGUSR2)

        def are_others() -> bool:
            assert ask(f"{url}/livez") == {"status": "alive"}
            now = set(children_of(process))
            return len(now) == 2 and not now & before

        wait_until(are_others, 90)
        assert not [one for one in lines_of(tmp_path) if one.get("what") == "worker_ended"]


def test_sigterm_drains_all_workers_and_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", KOO_SHUTDOWN_DELAY="600") as (url, process):
        wait_until(said(tmp_path, "workers_answer"))
        workers = children_of(process)
        wait_until(lambda: _status(f"{url}/readyz") == 200)  # a load balancer is watching
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: _status(f"{url}/readyz") == 503)
        assert ask(f"{url}/livez") == {"status": "alive"}
        for pid in workers:  # as systemd does, which signals every process of a service
            os.kill(pid, signal.SIGTERM)
        assert [_status(f"{url}/livez") for _ in range(20)] == [200] * 20
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as (_, process):
        wait_until(said(tmp_path, "workers_answer"))
        workers = children_of(process)
        process.kill()
        wait_until(lambda: not any(_runs(pid) for pid in workers), 60)


def test_an_error_found_only_by_a_worker_is_reported_once_and_ends_the_parent(tmp_path: Path) -> None:
    wrong = environment(tmp_path, DATABASE_URL="mysql://user:hunter2@host/name")
    serve = command("serve", "--workers", "3", "--port", "0")
    done = subprocess.run(
        serve, env=wrong, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("DATABASE_URL") == 1 and "hunter2" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create a namespace")
def test_as_process_1_the_parent_reaps_adopted_processes_and_ends_with_its_workers(tmp_path: Path) -> None:
    """Processes left by a worker's children are adopted by process 1. Not reaped, they would fill the process table."""
    orphan = "import os, subprocess, sys; subprocess.Popen(['sh', '-c', 'sleep 0 &']); os.environ['KOO_PORT'] = '0'"
    code = f"{orphan}; import koo.cli; koo.cli.main(['serve', '--workers', '2'])"
    enter = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", code]
    with (tmp_path / "serve.log").open("w") as log:
        outer = subprocess.Popen(
            enter, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert outer.stdout is not None
            if not outer.stdout.readline():
                pytest.skip("this container cannot create namespaces")
            (first,) = children_of(outer)
            wait_until(said(tmp_path, "workers_answer"))
            children = Path(f"/proc/{first}/task/{first}/children")
            wait_until(lambda: len(children.read_text().split()) == 2)
            os.kill(first, signal.SIGTERM)
            assert outer.wait(60) == 0
        finally:
            outer.kill()
            outer.communicate()


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_with_a_blocked_loop_is_killed_and_replaced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A worker that beats is left alone. A stuck one prints its stacks before it is killed."""
    monkeypatch.setattr("koo.web.workers.HUNG_AFTER_S", 0.0)
    stuck = (
        "import faulthandler, os, signal, sys, time; faulthandler.register(signal.SIGQUIT, chain=False);"
        "os.write(int(sys.argv[1]), b'+'); open(sys.argv[2], 'w').close(); time.sleep(600)"
    )
    begun: list[int] = []

    def start(number: int, said: int, announces: bool) -> list[str]:
        begun.append(number)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return [sys.executable, "-c", stuck, str(said), str(tmp_path / "answers")]

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert Workers(1, start, listener, 0.0).run() == 0
    assert begun == [1, 1]
    said = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert "has blocked its event loop" in said[0] and "was stuck and has been killed" in said[1]
    assert "most recent call first" in capfd.readouterr().err


def test_a_parents_own_sleep_is_not_counted_as_a_workers_silence() -> None:
    now = [100.0]

    def monotonic() -> float:
        now[0] += 3600.0
        return now[0]

    beats, said = os.pipe()
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    with socket.socket() as listener:
        workers = Workers(1, lambda *place: [], listener, 0.0, monotonic=monotonic)
        worker = workers.slots[0].worker = Worker(1, 4711, beats, 0.0, answers=True)
        os.write(waker, b"!")
        workers._wait(wake)
        assert worker.silent_s == 1.0
        os.write(said, b"+")
        workers._wait(wake)
        assert worker.silent_s == 0.0
    for one in (beats, said, wake, waker):
        os.close(one)
