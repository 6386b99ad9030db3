"""`query_ai` and `stream_ai` against a server that responds immediately, 50 in flight, with the durable ledger and one
core.

The servers run in separate processes on the first core, and each contender runs in a process on the last one. In each
round the contenders are measured one after another, in random order, while the others sleep.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from benchmarks.contenders import ANTHROPIC, CALLS, COMPATIBLE, CONTENDERS, FLOOR, KOO, OPENAI, Contender
from benchmarks.measure import Report
from benchmarks.peers import APART_PYTHON, NotMeasured, is_installed, why_missing
from benchmarks.streamers import STREAMED, STREAMERS
from koo.testing.providers import InstantServer
from koo.testing.providers.instant import Vendor

ROUND_S = 0.8
VENDORS: dict[str, Vendor] = {ANTHROPIC: "anthropic", OPENAI: "openai", COMPATIBLE: "compatible"}
RATIOS = {CALLS: "koo / aiohttp and msgspec", STREAMED: "koo / aiohttp and msgspec, a streamed event"}
ALL = CONTENDERS | STREAMERS
ROOT = Path(__file__).parents[1]


class Process:
    """A contender's process, which is told how long to send queries."""

    def __init__(self, contender: Contender, url: str) -> None:
        if contender.distribution and not is_installed(contender.distribution, apart=contender.apart):
            raise NotMeasured(why_missing(contender.distribution))
        self.contender = contender
        python = str(APART_PYTHON) if contender.apart else sys.executable
        self._said: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # see close()
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.query_process", contender.name, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=ROOT,
        )

    def wait_until_ready(self) -> None:
        """Wait for its first correct response."""
        answer = self._read()
        if "not_measured" in answer:
            raise NotMeasured(answer["not_measured"])

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._said.close()

    def measure(self, for_s: float) -> float:
        """The contender's figure: calls per second, or processor time per event."""
        assert self._process.stdin
        self._process.stdin.write(f"{for_s}\n")
        self._process.stdin.flush()
        return float(self._read()["figure"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        code = self._process.wait()
        self._said.seek(0)
        print(self._said.read()[-4000:], file=sys.stderr)
        if not self.contender.distribution:
            raise RuntimeError(f"{self.contender.name} ended with code {code}")
        raise NotMeasured(f"its process ended with code {code}")


def first_core() -> int | None:
    """The servers' core. A server that moves to its client's core halves the client's rate."""
    return min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def start(stack: ExitStack, report: Report) -> dict[str, Process]:
    """Start the contenders that are installed; the reasons for the others go into the report."""
    urls = {
        kind: stack.enter_context(InstantServer(vendor, core=first_core())).base_url
        for kind, vendor in VENDORS.items()
    }
    started: dict[str, Process] = {}
    for name, contender in ALL.items():
        try:
            started[name] = Process(contender, urls[contender.format])
        except NotMeasured as missing:
            report.not_measured[name] = str(missing)
        else:
            stack.callback(started[name].close)
    return {name: process for name, process in started.items() if is_ready(process, report)}


def is_ready(process: Process, report: Report) -> bool:
    try:
        process.wait_until_ready()
    except NotMeasured as missing:
        report.not_measured[process.contender.name] = str(missing)
        return False
    return True


async def report(rounds: int = 5) -> Report:
    """The figure of each contender, and koo's compared with the floor's."""
    found = Report()
    figures: dict[str, list[float]] = {}
    with ExitStack() as stack:
        running = start(stack, found)
        for _ in range(rounds):
            for name in random.sample(list(running), len(running)):
                try:
                    figures.setdefault(name, []).append(running[name].measure(ROUND_S))
                except NotMeasured as ended:
                    found.not_measured[name] = str(ended)
                    del running[name]
    found.figures = {name: figures[name] for name in ALL if name in running}
    for kind in VENDORS:
        for figure, ratio in RATIOS.items():
            koo, floor = (found.figures.get(f"{who}: {kind}, {figure}") for who in (KOO, FLOOR))
            if koo and floor:
                found.figures[f"{ratio}, {kind}"] = [
                    one / other for one, other in zip(koo, floor, strict=True)
                ]
    return found
