"""What importing costs, and what a server weighs before a model is loaded."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

TIMED = "import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"


def import_s(module: str, times: int = 7) -> float:
    """Median seconds of an import in a fresh interpreter, files warm."""
    runs = [
        float(
            subprocess.run(
                [sys.executable, "-c", TIMED.format(module=module)], capture_output=True, check=True
            ).stdout
        )
        for _ in range(times)
    ]
    return statistics.median(runs)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def server_figures() -> dict[str, float]:
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
            ready_s = time.perf_counter() - began
            return {
                "server: ready after, s": ready_s,
                "server: resident memory, MiB": resident_mib(server.pid),
            }
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


async def report() -> dict[str, float]:
    """The figures that have goals."""
    figures = {
        f"import {module}, s": import_s(module) for module in ("koo", "asyncio", "anthropic", "openai")
    }
    figures.update(await asyncio.to_thread(server_figures))
    return figures
