"""Runs commands against fake providers, in this process if that is enough, otherwise in a separate one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from koo.cli.app import run
from koo.configuration.variables import BUILT_IN
from koo.testing.providers import FakeAnthropic

OURS = ("DATABASE_", "DB_", "AI_", "KOO_")
KEYS = tuple(variable for _, variable in BUILT_IN.values() if variable)
OLD_TEST_CLIENT = "ignore:The anyio.abc.BlockingPortal alias:DeprecationWarning"
"""Caused by the TestClient of the oldest supported Starlette with a newer anyio."""
PLAIN = {
    "NO_COLOR": "1",
    "COLUMNS": "120",
    "PYTHONWARNINGS": f"error,{OLD_TEST_CLIENT}",
    "PYTHONUNBUFFERED": "1",
}


def settings_of(fake: FakeAnthropic | None = None, **more: str) -> dict[str, str]:
    """Settings in which `claude` is the fake provider, without retries and with a known price."""
    given = {
        "AI_MAX_RETRIES": "0",
        "AI_SERVICES__CLAUDE__INPUT_PRICE": "2",
        "AI_SERVICES__CLAUDE__OUTPUT_PRICE": "10",
        "AI_SERVICES__CLAUDE__MAX_TOKENS": "100",
    }
    if fake is not None:
        given |= {"ANTHROPIC_API_KEY": "test-key", "AI_SERVICES__CLAUDE__BASE_URL": fake.base_url}
    return given | more


class Here:
    """Commands in this process, with their own home and environment."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._patch = patch
        self._capture = capture
        for name in list(os.environ):
            if name.startswith(OURS) or name in KEYS:
                patch.delenv(name)
        self.set({**PLAIN, "KOO_HOME": str(home)})
        patch.chdir(home)

    def set(self, environment: Mapping[str, str]) -> None:
        for name, value in environment.items():
            self._patch.setenv(name, value)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error. A traceback fails the test."""
        code = run(list(arguments))
        out, err = self._capture.readouterr()
        assert "Traceback" not in out + err
        return code, out, err


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "koo.cli", *arguments]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a separate process."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return {**kept, **PLAIN, "PYTHONPATH": os.pathsep.join(sys.path), "KOO_HOME": str(home), **more}


@contextmanager
def serving(home: Path, *arguments: str, **more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `koo serve` as a process and yield its URL and the process, which is killed at the end if it is still
    running.
    """
    log = (home / "serve.log").open("w")
    # No load balancer here needs time to see `/readyz` before connections are refused.
    more.setdefault("KOO_SHUTDOWN_DELAY", "0.2")
    process = subprocess.Popen(
        command("serve", "--port", "0", *arguments),
        env=environment(home, **more),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"http://[\w.:]+", first)
        assert found, first + (home / "serve.log").read_text()
        yield found[0], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        log.close()
