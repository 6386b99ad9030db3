"""The cost of importing koo and its peers, and the memory of a server before a model is loaded."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.measure import Report
from benchmarks.peers import APART_PYTHON, is_installed, why_missing

TIMED = "import time; began = time.perf_counter(); import {modules}; print(time.perf_counter() - began)"

MODULES = {
    "koo": "koo",
    "asyncio": "asyncio",
    "the stack by hand": "stamina, purgatory, limits, limits.aio.strategies, prometheus_client",
    "interlock": "interlock",
    "anthropic": "anthropic",
    "openai": "openai",
}
MODULES_APART = {"litellm": "litellm", "tensorzero": "tensorzero"}


def import_s(python: str, modules: str) -> float | None:
    """Seconds for an import in a new interpreter; None if it fails."""
    # Otherwise LiteLLM downloads a price table.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [python, "-c", TIMED.format(modules=modules)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def imports(rounds: int) -> Report:
    """Time each import with warm files, in rounds of random order."""
    found = Report()
    pythons = dict.fromkeys(MODULES, sys.executable) | dict.fromkeys(MODULES_APART, str(APART_PYTHON))
    modules = MODULES | MODULES_APART
    for name in MODULES_APART:
        if not is_installed(name, apart=True):
            found.not_measured[f"{name}: import, s"] = why_missing(name)
            del pythons[name]
    for name in list(pythons):  # the first import is not counted: it writes bytecode and warms the file cache
        if import_s(pythons[name], modules[name]) is None:
            found.not_measured[f"{name}: import, s"] = "it cannot be imported"
            del pythons[name]
    for _ in range(rounds):
        for name in random.sample(list(pythons), len(pythons)):
            took_s = import_s(pythons[name], modules[name])
            if took_s is not None:
                found.figures.setdefault(f"{name}: import, s", []).append(took_s)
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def server_figures() -> tuple[float, float]:
    """Seconds until `koo serve` is ready, and its resident memory then."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "KOO_HOME": home, "KOO_PORT": str(port)}
        command = [str(Path(sys.executable).with_name("koo")), "serve"]
        began = time.perf_counter()
        server = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not is_ready(port):
                if server.poll() is not None or time.perf_counter() - began > 30:
                    raise RuntimeError("the server did not become ready")
                time.sleep(0.02)
            return time.perf_counter() - began, resident_mib(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(10)


def is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no resident memory in /proc")


async def report(rounds: int = 5) -> Report:
    """Measure imports and the server."""
    found = imports(rounds)
    starts = [server_figures() for _ in range(rounds)]
    found.figures["server: ready after, s"] = [ready_s for ready_s, _ in starts]
    found.figures["server: resident memory, MiB"] = [mib for _, mib in starts]
    return found
