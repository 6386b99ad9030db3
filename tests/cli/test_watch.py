"""`koo watch`: a frame shows what is wrong and what to do; the terminal is redrawn, and restored at the end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from koo.cli import watch
from koo.cli.client import connect
from koo.cli.terminal import Progress
from koo.testing import until
from tests.cli.canned import ALERT, AT, NOW, canned, health_of, service_of
from tests.cli.running import Here, command, environment

FLEET: dict[str, Any] = {
    "processes": [
        {"state": "live", "host": "vm", "pid": 7},
        {"state": "silent", "host": "vm", "pid": 8},
    ],
    "guards": [{"name": "claude", "open": 1, "processes": 2}],
    "differences": [],
    "leader": None,
    "purses": [],
    "leases": [],
}


def dashboard_of(overall: str, **services: dict[str, Any]) -> dict[str, Any]:
    health: Any = health_of(overall, **services)["/monitoring/health"]
    data = {"next_attempt": AT, "last_error": {"kind": "overloaded", "sentence": "status 529"}}
    alert = {**ALERT, "component": "ai:claude", "message": "claude cannot be called", "data": data}
    summary = {"overall_health": overall, "severity": "critical"}
    ended = {**alert, "active": False, "message": "this is over"}
    return {
        "summary": summary,
        "database": health["database"],
        "ai_services": health["ai_services"],
        "alerts": [alert | {"timestamp": "2026-11-28T14:04:24+00:00"}, ended],
        "timestamp": NOW,
    }


def test_in_a_pipe_watch_prints_one_frame_with_the_most_severe_first(here: Here) -> None:
    sick = service_of(
        state="circuit_open",
        reason="5 failures in a row",
        health={"circuit_breaker_state": "open", "next_attempt": AT},
    )
    documents = {
        "/monitoring/dashboard": dashboard_of("unhealthy", lab=service_of(), claude=sick),
        "/monitoring/fleet": FLEET,
    }
    with canned(documents) as url:
        here.set({"KOO_URL": url})
        code, out, err = here.run("watch")
        _, document, _ = here.run("watch", "--json")
    lines = out.splitlines()
    assert (code, err) == (4, "") and "\x1b" not in out
    assert lines[0] == f"koo at {url}: unhealthy · 1 alert · 2026-11-28T14:06:24Z"
    assert lines[2] == "critical ai:claude: claude cannot be called, for 2 min"
    assert lines[3].split("; ") == [
        "    last error overloaded: status 529",
        "next attempt 2026-11-28T14:07:06Z (in 43 s)",
        "what to do: koo runbook circuit_open",
    ]
    assert "this is over" not in out
    rows = [line.split() for line in lines if line.startswith(("claude", "lab"))]
    figures = "1.6 1.2 ms 1.9 ms 62.5 % 31 $0.000082 of $10.00"
    assert [" ".join(row) for row in rows] == [
        f"claude circuit_open open {figures} in 43 s",
        f"lab healthy closed {figures}",
    ]
    assert "database: circuit_open on db.example:5432/shop, 1 of 30 connections in use" in lines
    assert "fleet: 1 process, vm:8 is silent, claude open in 1 of 2, no leader" in lines
    assert json.loads(document)["summary"]["overall_health"] == "unhealthy"


def test_the_alert_of_a_forced_breaker_has_no_next_attempt(here: Here) -> None:
    """Its message says when the override ends, and nothing is tried before or then."""
    forced = service_of(
        state="circuit_open", models={"m": {"override": "forced_open", "state": "forced_open"}}
    )
    with canned({"/monitoring/dashboard": dashboard_of("unhealthy", claude=forced)}) as url:
        here.set({"KOO_URL": url})
        _, out, _ = here.run("watch")
    assert "critical ai:claude: claude cannot be called, for 2 min\n    what to do: koo runbook" in out


# ── in a terminal ─────────────────────────────────────────────────────────────────────────────────────────────────


class Screen:
    """A window in which a command runs, and everything that was written into it."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self._ours = ours
        self.process = process
        self.seen = b""
        os.set_blocking(ours, False)

    def read_until(self, words: bytes, within_s: float = 30.0) -> None:
        """Read until these words have been written since the last call."""
        ends_at, new = time.monotonic() + within_s, b""
        while words not in new:
            assert time.monotonic() < ends_at, (words, new[-2000:])
            try:
                new += os.read(self._ours, 65536)
            except BlockingIOError:
                threading.Event().wait(0.02)
            except OSError:
                break
        assert words in new, new
        self.seen += new

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def press_ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)


@contextmanager
def screen_of(home: Path, *arguments: str, **settings: str) -> Iterator[Screen]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    given = environment(home, TERM="xterm", **settings)
    del given["COLUMNS"]  # the variable would be the window's width, whatever the window's real width
    with subprocess.Popen(command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=given) as run:
        os.close(theirs)
        try:
            yield Screen(ours, run)
        finally:
            run.kill()
            os.close(ours)


def test_a_terminal_is_redrawn_and_restored(tmp_path: Path) -> None:
    """The frame follows the window's width, and shows that the server is gone and the data's age. Ctrl-C ends it."""
    documents = {
        "/monitoring/dashboard": dashboard_of("unhealthy", lab=service_of()),
        "/monitoring/fleet": FLEET,
    }
    with (
        ExitStack() as server,
        screen_of(tmp_path, "watch", KOO_URL=server.enter_context(canned(documents))) as screen,
    ):
        screen.read_until(b"fleet: 1 process")
        assert b"\x1b[?1049h" in screen.seen and b"breaker" in screen.seen
        screen.resize(30, 60)
        screen.read_until(b"fleet: 1 process")
        before = len(screen.seen)
        screen.read_until(b"fleet: 1 process")
        assert b"breaker" not in screen.seen[before:], "there is no room for that column"
        server.close()
        screen.read_until(b"no koo server answers at")
        screen.read_until(b" s old")
        screen.press_ctrl_c()
        screen.read_until(b"\x1b[?1049l")
        assert screen.process.wait(20) == 0
        assert b"Traceback" not in screen.seen and b"\x1b[31m" not in screen.seen, "NO_COLOR is set"


def test_ctrl_z_returns_to_the_shells_screen_until_fg(tmp_path: Path) -> None:
    documents = {"/monitoring/dashboard": dashboard_of("healthy"), "/monitoring/fleet": FLEET}
    with canned(documents) as url, screen_of(tmp_path, "watch", KOO_URL=url) as screen:
        screen.read_until(b"fleet: 1 process")
        screen.process.send_signal(signal.SIGTSTP)
        screen.read_until(b"\x1b[?1049l")
        os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED | os.WNOWAIT)
        screen.process.send_signal(signal.SIGCONT)
        screen.read_until(b"\x1b[?1049h")
        screen.read_until(b"fleet: 1 process")
        screen.press_ctrl_c()
        assert screen.process.wait(20) == 0


class HeldBack(dict[str, object]):
    """Documents, and a stream that a proxy collects without passing it on."""

    def __init__(self, documents: Mapping[str, object]) -> None:
        super().__init__({**documents, "/monitoring/live": None})
        self.end = threading.Event()

    def __getitem__(self, path: str) -> object:
        if path == "/monitoring/live":
            assert self.end.wait(60)
        return super().__getitem__(path)


def test_behind_a_proxy_that_holds_the_stream_back_watch_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_S", 0.05)
    monkeypatch.setattr(watch, "EVERY_S", 0.01)
    documents, asked = HeldBack({"/monitoring/dashboard": dashboard_of("healthy")}), list[str]()

    async def main(url: str) -> None:
        async with connect(url) as client:
            asking = asyncio.create_task(watch._ask_over_and_over(watch.Watched(client)))
            await until(lambda: asked.count("/api/v1/monitoring/dashboard") > 4)
            asking.cancel()

    with canned(documents, asked=asked) as url:
        try:
            asyncio.run(main(url))
        finally:
            documents.end.set()


def test_a_stream_that_ends_after_its_first_event_is_not_opened_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy may cut it there: without polling, `koo watch` would send dozens of requests a second."""
    monkeypatch.setattr(watch, "REAL_S", 60.0)
    monkeypatch.setattr(watch, "EVERY_S", 0.01)
    documents = {"/monitoring/live": {"of": "one event"}, "/monitoring/dashboard": dashboard_of("healthy")}
    asked = list[str]()

    async def main(url: str) -> None:
        async with connect(url) as client:
            asking = asyncio.create_task(watch._ask_over_and_over(watch.Watched(client)))
            await until(lambda: asked.count("/api/v1/monitoring/dashboard") > 4)
            asking.cancel()

    with canned(documents, asked=asked) as url:
        asyncio.run(main(url))
    assert asked.count("/api/v1/monitoring/live") == 1


# ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Gated(dict[str, object]):
    """Documents that are returned when the gate is open."""

    def __init__(self, documents: Mapping[str, object]) -> None:
        super().__init__(documents)
        self.gate = threading.Event()

    def __getitem__(self, path: str) -> object:
        assert self.gate.wait(60)
        return super().__getitem__(path)


def test_a_noticeable_wait_is_shown_with_its_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Gated(health_of("healthy", lab=service_of()))
    with canned(slow) as url, screen_of(tmp_path, "status", KOO_URL=url) as screen:
        screen.read_until(f"querying {url}".encode())
        slow.gate.set()
        screen.read_until(b"koo at")
        assert screen.process.wait(20) == 0
    shown = Progress("looking")
    assert str(shown.__rich__()) == "looking"
    began_at = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began_at + 7.2)
    shown.tell("looked at [/x]")
    assert str(shown.__rich__()) == "looked at [/x] (7 s)"
