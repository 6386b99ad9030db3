"""The world of the chaos proof: two processes of koo, their dependencies, and the proxies and levers in between.

`koo serve` keeps its state in its own PostgreSQL, the application in SQLite on a small disk. Both use the same two
providers and the same database, each through a proxy that breaks connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from koo.testing.postgres import PostgresServer
from koo.testing.providers import Answer, FakeAnthropic, FakeCompatible, FakeProvider, Nothing, Step, Stream
from koo.testing.proxy import FaultProxy
from proofs.running import ROOT, ProofFailed

DISK_MIB = 192
KEY = "test-key"
MODEL = {"alpha": "m", "beta": "claude-sonnet-5-5"}
INPUT_PRICE, OUTPUT_PRICE = Decimal(2), Decimal(10)
READY_S = 120.0
STEP_S = 1.0
TROUBLE = re.compile(
    r"never awaited|never retrieved|Task was destroyed|Traceback|Exception ignored|ResourceWarning"
)
SETTINGS = {
    "AI_LOCAL_ENABLED": "false",
    "AI_QUERY_TIMEOUT": "8",
    "AI_ATTEMPT_TIMEOUT": "2",
    "AI_FIRST_TOKEN_TIMEOUT": "1.5",
    "AI_STALL_TIMEOUT": "1.5",
    "AI_DEFAULT_MAX_TOKENS": "100",
    "AI_DEFAULT_REQUESTS_PER_MINUTE": "100000",
    "AI_DEFAULT_REQUESTS_PER_HOUR": "1000000",
    "AI_DEFAULT_REQUESTS_PER_DAY": "10000000",
    "AI_MAX_RETRIES": "1",
    "AI_RETRY_BASE_DELAY": "0.1",
    "AI_CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "3",
    "AI_HEALTH_CHECK_INTERVAL": "5",
    "DATABASE_POOL_SIZE": "6",
    "DATABASE_MAX_OVERFLOW": "2",
    "DATABASE_POOL_TIMEOUT": "2",
    "DATABASE_SCOPE_TIMEOUT": "8",
    "DB_CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "3",
    "DB_HEALTH_CHECK_INTERVAL": "3",
    "DB_MAX_RETRIES": "1",
    "HEALTH_CHECK_TIMEOUT": "2",
    "KOO_SHUTDOWN_DELAY": "0",
    "KOO_LOG_FORMAT": "json",
}


def good_step(rng: random.Random) -> Step:
    """The behaviour of a healthy provider, with an occasional failure, as in reality."""
    chance, tokens = rng.random(), rng.randint(1, 60)
    if chance < 0.01:
        return Nothing(billed=True)
    if chance < 0.6:
        return Answer(output_tokens=tokens)
    cut_after = rng.randint(1, tokens) if chance < 0.62 else None
    return Stream(pieces=["abcd"] * tokens, cut_after=cut_after, interval_s=0.001)


class Well:
    """A fake's default behaviour. It keeps only the sum of its bills, because their number is unbounded."""

    rng: random.Random
    told: Step | None = None

    @property
    def default(self) -> Step:
        return self.told or good_step(self.rng)

    @default.setter
    def default(self, step: Step) -> None:
        self.told = step
        self._checks_fail = False


class Alpha(Well, FakeCompatible):
    """A server in OpenAI's form."""


class Beta(Well, FakeAnthropic):
    """Anthropic's."""


@dataclass
class Sample:
    """One sample of a process: its own report, and the kernel's numbers."""

    at_s: float
    rss_mib: float
    descriptors: int
    threads: int
    said: dict[str, Any]


@dataclass
class Child:
    """One process of koo."""

    what: str
    environment: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    lines: list[float] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    rows: str = ""

    async def start(self) -> None:
        self.reads.set()
        window, out = os.pipe()
        command = [
            sys.executable,
            "-W",
            "default",
            "-m",
            "proofs.chaos_child",
            self.what,
            str(out),
        ]
        self.process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=self.environment, pass_fds=(out,), limit=2**20,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(out)
        reader = asyncio.StreamReader(limit=2**22)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(window, "rb")
        )
        self._listening = [asyncio.create_task(self._hear(reader)), asyncio.create_task(self._read_log())]

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self.said = json.loads(line)
            self.said["heard_s"] = time.monotonic()
            if text := self.said.pop("metrics", None):
                self.texts.append(text)

    async def _read_log(self) -> None:
        assert self.process.stdout is not None
        while True:
            await self.reads.wait()
            line = (await self.process.stdout.readline()).decode(errors="replace")
            if not line:
                return
            if line.startswith("ROWS"):
                self.rows = line
                continue
            if '"koo.audit"' not in line and '"what":"request"' not in line.replace(" ", ""):
                self.lines.append(time.monotonic())
            if TROUBLE.search(line) or (
                self.trouble and line.startswith((" ", "Traceback")) and len(self.trouble) < 60
            ):
                self.trouble.append(line.rstrip()[:2000])
            if log := self.environment.get("CHAOS_LOG"):
                with Path(log).open("a") as file:  # noqa: ASYNC230 - by hand
                    file.write(line)

    def lever(self, words: str) -> None:
        """See `chaos_child`."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"{words}\n".encode())

    def look(self, began: float) -> Sample:
        """Take a sample now."""
        pid = self.process.pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        status = Path(f"/proc/{pid}/status").read_text()
        threads = int(re.findall(r"Threads:\s+(\d+)", status)[0])
        rss = pages * resource.getpagesize() / 2**20
        sample = Sample(time.monotonic() - began, rss, len(os.listdir(f"/proc/{pid}/fd")), threads, self.said)  # noqa: PTH208
        self.samples.append(sample)
        return sample

    async def end(self, within_s: float) -> str:
        """Send SIGTERM; returns what is wrong with its end, if anything."""
        self.reads.set()
        if self.process.returncode is None:
            self.process.terminate()
        try:
            async with asyncio.timeout(within_s):
                code = await self.process.wait()
                await asyncio.gather(*self._listening)
        except TimeoutError:
            self.process.send_signal(signal.SIGUSR1)  # it writes to its working directory
            await asyncio.sleep(1)
            self.process.kill()
            await self.process.wait()
            return f"did not end within {within_s:g} s of SIGTERM"
        return "" if code == 0 else f"ended with code {code}"


@dataclass
class World:
    """The whole world."""

    rng: random.Random
    fakes: dict[str, Alpha | Beta]
    ways: dict[str, FaultProxy]
    database: PostgresServer
    store: PostgresServer
    served: Child
    application: Child
    url: str
    disk: Path
    is_own_disk: bool
    began: float = field(default_factory=time.monotonic)

    @property
    def children(self) -> tuple[Child, Child]:
        return self.served, self.application

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began

    def alerts(self) -> set[tuple[str, str, str]]:
        """Alerts that hold in one of the two processes: (process, kind, component)."""
        return {
            (child.what, kind, component)
            for child in self.children
            for kind, component, phase in child.said.get("alerts", ())
            if phase in ("firing", "recovering")
        }


@contextlib.contextmanager
def small_disk() -> Any:
    """A disk that one file can fill: a tmpfs if root may mount one, otherwise an ordinary folder."""
    with tempfile.TemporaryDirectory(prefix="koo-chaos-") as folder:
        mounted = os.geteuid() == 0 and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], capture_output=True, check=False
        ).returncode  # fmt: skip
        try:
            yield Path(folder), mounted
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@asynccontextmanager
async def world(seed: int) -> AsyncIterator[World]:
    """Start everything; both processes are ready."""
    rng = random.Random(seed)
    async with contextlib.AsyncExitStack() as stack:
        fakes: dict[str, Alpha | Beta] = {}
        for name, kind in (("alpha", Alpha), ("beta", Beta)):
            kind.rng = random.Random(seed)
            fake = kind(
                key=KEY,
                models=(MODEL[name],),
                input_price=INPUT_PRICE,
                output_price=OUTPUT_PRICE,
                latency_s=0.01,
                strict=False,
            )
            fake.told = None
            fakes[name] = await stack.enter_async_context(fake)
        database, store = (stack.enter_context(PostgresServer(18)) for _ in range(2))
        database.sql("CREATE TABLE notes (n int)")
        ways = {name: FaultProxy("127.0.0.1", fake.port) for name, fake in fakes.items()}
        ways["database"] = FaultProxy(database.host, database.port)
        ways["store"] = FaultProxy(store.host, store.port)
        for way in ways.values():
            await stack.enter_async_context(way)
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="koo-chaos-")))
        disk, mounted = stack.enter_context(small_disk())
        port = free_port()
        shared = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT}/src",
            "CHAOS_SEED": str(seed),
            **SETTINGS,
            **_services(ways),
        }
        shared["DATABASE_URL"] = _through(ways["database"], database)
        served = Child(
            "serve",
            {
                **shared,
                "KOO_HOME": str(home),
                "KOO_PORT": str(port),
                "KOO_STATE_URL": _through(ways["store"], store),
            },
        )
        application = Child("application", {**shared, "KOO_HOME": str(disk)})
        for child in (served, application):
            if "CHAOS_LOG" in os.environ:
                child.environment["CHAOS_LOG"] = f"{os.environ['CHAOS_LOG']}.{child.what}"
            await child.start()
        one = World(
            rng, fakes, ways, database, store, served, application, f"http://127.0.0.1:{port}", disk, mounted
        )
        try:
            await _until_ready(one)
            yield one
        finally:
            for child in one.children:
                if child.process.returncode is None:
                    child.process.kill()
                    await child.process.wait()


def _services(ways: dict[str, FaultProxy]) -> dict[str, str]:
    settings = {}
    for name, kind, path, host in (
        ("ALPHA", "openai", "/v1", "localhost"),
        ("BETA", "anthropic", "", "127.0.0.1"),
    ):
        about = {
            "KIND": kind, "BASE_URL": f"http://{host}:{ways[name.lower()].port}{path}", "API_KEY": KEY,
            "MODEL": MODEL[name.lower()], "INPUT_PRICE": str(INPUT_PRICE), "OUTPUT_PRICE": str(OUTPUT_PRICE),
            "DAILY_BUDGET": "100000",
        }  # fmt: skip
        settings.update({f"AI_SERVICES__{name}__{key}": value for key, value in about.items()})
    return settings


def _through(way: FaultProxy, server: PostgresServer) -> str:
    return server.url("psycopg").replace(f":{server.port}/", f":{way.port}/") + "?sslmode=disable"


async def _until_ready(one: World) -> None:
    until = time.monotonic() + READY_S
    while not all(child.said for child in one.children):
        if time.monotonic() > until or any(child.process.returncode is not None for child in one.children):
            raise ProofFailed(f"a process did not start: {[child.trouble for child in one.children]}")
        await asyncio.sleep(0.1)


def bill_usd(one: World) -> Decimal:
    """The total that all providers would bill."""
    return sum((fake.billed_usd for fake in one.fakes.values()), Decimal(0))


__all__ = ["FakeProvider", "World", "bill_usd", "world"]
