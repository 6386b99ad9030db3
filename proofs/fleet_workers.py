"""Several workers on one port under load: one is killed, and then all are replaced, one after the other.

The servers are `koo serve --workers 4`, and gunicorn with uvicorn's workers, with and without `--preload`. Clients send
one request after another, each on a new connection, and count the results. An answered request is billed and in the
ledger. Under `koo serve` only the killed worker's requests are lost. The bill never exceeds the cap. Any worker's
/metrics includes everything counted before, and no counter falls.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import aiohttp

from koo.testing.providers import FakeCompatible
from koo.testing.providers.script import Answer
from proofs.fleet_part import Part
from proofs.money import read_books, tables
from proofs.running import ROOT, ProofFailed
from proofs.spending import INPUT_PRICE, OUTPUT_PRICE, OUTPUT_TOKENS_MAX, SERVICE

WORKERS = 4
KOO = "koo serve --workers 4"
SNAPSHOT_S = 1.5
"""A worker saves its counts once a second; a kill loses those that are not saved yet."""
CLIENTS = 12
CAP_USD = "30"
CALLS_A_PHASE = 120
CLEAN_ENV = ("PATH", "HOME", "TMPDIR", "LANG")
SUCCESSES = f'koo_service_requests_total{{outcome="success",service="{SERVICE}"}}'
STARTS_WITHIN_S = 90.0
GUNICORN = (
    "-m",
    "gunicorn",
    "--chdir",
    "backend",
    "-k",
    "uvicorn.workers.UvicornWorker",
    "--workers",
    str(WORKERS),
)
SERVERS: dict[str, tuple[tuple[str, ...], signal.Signals]] = {
    KOO: (("-m", "koo.cli", "serve", "--workers", str(WORKERS)), signal.SIGUSR2),
    "gunicorn": ((*GUNICORN, "main:app"), signal.SIGHUP),
    "gunicorn --preload": ((*GUNICORN, "--preload", "main:app"), signal.SIGHUP),
}
"""How each server is started, and which signal replaces its workers."""


@dataclass
class Load:
    """The clients' requests, and their results."""

    url: str
    answered: int = 0
    refused: int = 0
    lost: list[float] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    stopping: bool = False
    may_be_uncounted: int = 0

    async def client(self) -> None:
        body = {"service": SERVICE, "prompt": "spend"}
        while not self.stopping:
            try:
                async with (
                    aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
                    session.post(
                        f"{self.url}/api/v1/ai/query", json=body, headers={"Connection": "close"}
                    ) as reply,
                ):
                    await reply.read()
                    self._note(reply.status)
            except aiohttp.ClientError:
                self.lost.append(time.monotonic())
                await asyncio.sleep(0.05)

    def _note(self, status: int) -> None:
        if status == 200:
            self.answered += 1
        elif status == 429:
            self.refused += 1
        else:
            self.other.append(str(status))

    async def until(self, answered: int) -> None:
        """Wait until this many more requests are answered."""
        goal = self.answered + answered
        await wait(
            lambda: self.answered >= goal or self.refused > 200, "the server does not answer the clients"
        )


async def wait(met: Callable[[], object], otherwise: str, within_s: float = STARTS_WITHIN_S) -> None:
    ends_at = time.monotonic() + within_s
    while not met():
        if time.monotonic() > ends_at:
            raise ProofFailed(otherwise)
        await asyncio.sleep(0.02)


def children(pid: int) -> list[int]:
    """The workers of a parent."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment(home: str, provider: FakeCompatible, port: int) -> dict[str, str]:
    prefix = f"AI_SERVICES__{SERVICE.upper()}__"
    service = {
        "KIND": "openai", "BASE_URL": provider.base_url, "API_KEY": "k", "MODEL": "m", "DAILY_BUDGET": CAP_USD,
        "INPUT_PRICE": str(INPUT_PRICE), "OUTPUT_PRICE": str(OUTPUT_PRICE), "MAX_TOKENS": str(OUTPUT_TOKENS_MAX),
        "REQUESTS_PER_MINUTE": "100000", "REQUESTS_PER_HOUR": "1000000", "REQUESTS_PER_DAY": "1000000",
    }  # fmt: skip
    kept = {name: os.environ[name] for name in CLEAN_ENV if name in os.environ}
    return {
        **kept, **{prefix + name: value for name, value in service.items()},
        "KOO_HOME": home, "KOO_PORT": str(port), "AI_LOCAL_ENABLED": "false", "AI_MAX_RETRIES": "0",
        "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port} --graceful-timeout 20",
    }  # fmt: skip


@contextlib.asynccontextmanager
async def serving(
    name: str, home: str, provider: FakeCompatible
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start the server; returns when all of its workers respond."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (Path(home) / "server.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *SERVERS[name][0],
        cwd=ROOT,
        env=environment(home, provider, port),
        stdout=log,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await _until_all_answer(url)
        yield process, url
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(60):
            await process.wait()
        log.close()


async def scraped(url: str) -> dict[str, float]:
    """The /metrics of some worker."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as reply:
        lines = (
            line.rpartition(" ") for line in (await reply.text()).splitlines() if not line.startswith("#")
        )
        return {name: float(value) for name, _, value in lines}


async def _until_all_answer(url: str) -> None:
    ends_at = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < ends_at:
        with contextlib.suppress(aiohttp.ClientError):
            if (await scraped(url)).get("koo_workers") == WORKERS:
                return
        await asyncio.sleep(0.1)
    raise ProofFailed("not all workers respond")


@dataclass
class Outcome:
    """One server's row."""

    name: str
    answered: int
    lost_by_kill: int
    lost_by_replacing: int
    bill_usd: Decimal
    booked_usd: Decimal
    counted: int
    found: list[str]

    def line(self) -> str:
        numbers = f"{self.answered:,} | {self.lost_by_kill} | {self.lost_by_replacing} | {self.counted:,}"
        money = f"{self.bill_usd:.4f} | {self.booked_usd:.4f}"
        return f"| {self.name} | {numbers} | {money} | {'; '.join(self.found) or 'holds'} |"


async def try_server(name: str) -> Outcome:
    """Run one server from its start to its orderly end."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as home:
        async with FakeCompatible(
            models=("m",), input_price=INPUT_PRICE, output_price=OUTPUT_PRICE, latency_s=0.05
        ) as provider:
            provider.default = Answer(output_tokens=20)
            async with serving(name, home, provider) as (process, url):
                load = Load(url)
                clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
                await load.until(CALLS_A_PHASE)
                killed = await _kill_one(process, load, url, found)
                replaced = await _replace_all(process, name, load, found)
                load.stopping = True
                await asyncio.gather(*clients)
                counted = await _last_count(url, load)
                if load.other:
                    found.append(f"{len(load.other)} answers were {', '.join(sorted(set(load.other)))}")
                if counted < load.answered - load.may_be_uncounted:
                    found.append(f"/metrics counts {counted} of {load.answered} answers")
            if process.returncode != 0:
                found.append(f"it ended with code {process.returncode}")
            books = await asyncio.to_thread(read_books, tables(f"sqlite:///{home}/data/koo-state.db"))
            bill = provider.billed_usd
    if not bill <= books.booked <= Decimal(CAP_USD):
        found.append(f"the bill is {bill}, {books.booked} is booked, the cap is {CAP_USD}")
    if books.purses != books.booked:
        found.append(f"{books.booked} is booked, but the purses add up to {books.purses}")
    if killed > CLIENTS or (replaced and name == KOO):
        found.append(f"{killed} requests were lost by the kill, {replaced} by replacing")
    return Outcome(name, load.answered, killed, replaced, bill, books.booked, counted, found)


async def _kill_one(process: asyncio.subprocess.Process, load: Load, url: str, found: list[str]) -> int:
    before = (await scraped(url))[SUCCESSES]
    answered = load.answered
    await asyncio.sleep(SNAPSHOT_S)
    load.may_be_uncounted = load.answered - answered + CLIENTS
    dead = children(process.pid)[0]
    os.kill(dead, signal.SIGKILL)
    await load.until(CALLS_A_PHASE)
    await wait(
        lambda: len(children(process.pid)) == WORKERS and dead not in children(process.pid),
        "the killed worker was not replaced",
    )
    await _until_all_answer(url)
    if (await scraped(url))[SUCCESSES] < before:
        found.append("a counter fell when a worker was killed")
    return len(load.lost)


async def _replace_all(process: asyncio.subprocess.Process, name: str, load: Load, found: list[str]) -> int:
    before, lost = set(children(process.pid)), len(load.lost)
    process.send_signal(SERVERS[name][1])
    await wait(lambda: not before & set(children(process.pid)), "the workers were not replaced", 180.0)
    await load.until(CALLS_A_PHASE)
    return len(load.lost) - lost


async def _last_count(url: str, load: Load) -> int:
    counted = 0
    for _ in range(200):
        counted = int((await scraped(url))[SUCCESSES])
        if counted >= load.answered:
            break
        await asyncio.sleep(0.02)
    return counted


async def prove() -> Part:
    """Try all three servers."""
    outcomes = [await try_server(name) for name in SERVERS]
    lines = [
        f"{CLIENTS} clients send each request on a new connection. In the middle one of {WORKERS} workers is killed,",
        "then all are replaced, one after the other (`SIGUSR2`; gunicorn: `SIGHUP`). A lost request got no response.",
        "`counted` is the number that /metrics of one worker reports in the end; what the killed worker counted in its",
        "last second may be missing. Under gunicorn, uvicorn's own server closes accepted connections that have not",
        "sent a request yet when it ends; koo's server waits for their first request.",
        "",
        "| server | answered | lost by the kill | lost by replacing | counted | bill | booked | result |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
        *(one.line() for one in outcomes),
    ]
    return Part(
        "Workers of one port", lines, [f"{one.name}: {what}" for one in outcomes for what in one.found]
    )
