"""Shared code of the proofs: the time limit of a whole proof, the counts of a test run, and the page with the result.

A page says when the proof ran, with which versions, how long it took, and how many tests passed, failed and were
skipped. It is committed, so it contains no folder and no host name of the machine that wrote it.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "proofs"
# PROOF_MINUTES=… is for a machine that is busy with other things.
LIMIT_S = 60 * float(os.environ.get("PROOF_MINUTES", "20"))


class ProofFailed(Exception):
    """A sentence about what does not hold, or about what this machine lacks to run the proof."""


class TimeLimit:
    """The end of a proof, in monotonic time: a proof that hangs has failed."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self._ends_at = time.monotonic() + limit_s

    def run(self, command: Sequence[str | Path], *, cwd: Path = ROOT) -> int:
        """Run `command` to its end, and return its exit code. Raises ProofFailed if the time is up first."""
        return self.wait(start(command, cwd=cwd))

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a process of `start` to end; returns its exit code. Raises ProofFailed as in `run`."""
        try:
            return process.wait(self.left_s)
        except subprocess.TimeoutExpired:
            raise ProofFailed(f"did not end within {self.limit_s / 60:.0f} minutes") from None
        finally:
            end(process)

    @property
    def left_s(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())


def start(command: Sequence[str | Path], *, cwd: Path = ROOT) -> subprocess.Popen[bytes]:
    """Start a child in its own process group, for `end`."""
    return subprocess.Popen(command, cwd=cwd, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the rest of the group; otherwise pytest's workers and their servers would outlive a killed parent."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Counts(NamedTuple):
    """The outcome of a test run."""

    passed: int
    failed: list[str]
    skipped: Counter[str]

    def sentence(self) -> str:
        return f"{self.passed:,} passed, {len(self.failed)} failed, {self.skipped.total()} skipped"


def pip_install(python: Path, limit: TimeLimit, wanted: Sequence[str]) -> None:
    """Install into the environment of `python`. Raises ProofFailed if pip fails."""
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    command: list[str | Path] = [python, "-m", "pip", *quiet, "install", *wanted]
    if limit.run(command) != 0:
        raise ProofFailed(f"pip could not install {' '.join(wanted)}")


def read_counts(junit: Path) -> Counts:
    """The counts in pytest's `--junitxml`. Raises ProofFailed if the run ended without writing it."""
    if not junit.exists():
        raise ProofFailed("the tests ended without results")
    passed, failed, skipped = 0, list[str](), Counter[str]()
    for case in ET.parse(junit).iter("testcase"):
        reason = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        elif reason is not None:
            skipped[_without_paths(reason.get("message", ""))] += 1
        else:
            passed += 1
    return Counts(passed, failed, skipped)


def _without_paths(reason: str) -> str:
    return " ".join("a path" if word.count("/") > 1 else word for word in reason.split())


def skipped_lines(counts: Counts) -> list[str]:
    """A line of the page for each reason why tests were skipped."""
    return [f"- {number} skipped: {reason}" for reason, number in sorted(counts.skipped.items())]


def failed_lines(counts: Counts) -> list[str]:
    """A line of the page for each test that failed."""
    return [f"- failed: `{name}`" for name in counts.failed]


def state_of_koo() -> str:
    """The tested commit, or that there is none. A proof's own figure, written before its page, is not a change."""
    commit = _git("describe", "--always")
    if commit.returncode != 0:
        return "a tree without git"
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)docs/proofs").stdout.strip()
    return f"commit {commit.stdout.strip()}{', with changes' if changed else ''}"


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def write_page(name: str, target: str, lines: Iterable[str]) -> None:
    """Write docs/proofs/`name`.md, and print it."""
    today = dt.datetime.now(dt.UTC).date()
    page = "\n".join([*lines, "", f"Written by `make {target}` on {today}, koo at {state_of_koo()}.", ""])
    PAGES.mkdir(exist_ok=True)
    (PAGES / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)
