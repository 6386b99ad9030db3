"""Limits of a fleet, counted at the provider: no minute has more calls than allowed, and most of the limit is used.

Limits of 60 and 600 a minute are shared by one, four and ten processes on PostgreSQL, which they reach through a proxy.
While they request 1.5 times the limit, two of them are killed and replaced, the connection to the store gets a latency
of 50 ms, and then all its traffic is dropped for some seconds. `python -m proofs.fleet_limits JSON` is one of the
processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from koo import Query
from koo.errors import ExternalServiceError
from koo.options import BreakerOptions, LimitOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.platform import Platform
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeCompatible
from koo.testing.providers.script import Answer, Step
from koo.testing.proxy import FaultProxy
from proofs.fleet_part import Part
from proofs.running import ROOT

SERVICE = "lab"
MINUTE_S = 60.0
LASTS_S = 150.0
RUNS = ((60, 1), (60, 4), (60, 10), (600, 1), (600, 4), (600, 10))
DEMAND = 1.5
CUT_S = 6.0


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does: `calls_a_s` calls a second until it is stopped."""

    base_url: str
    state_url: str
    home: str
    limit: int
    calls_a_s: float
    seed: int

    def options(self) -> PlatformOptions:
        """A service whose only limit is the number of requests per minute."""
        service = ServiceOptions(
            name=SERVICE,
            kind="openai_compatible",
            model="m",
            base_url=self.base_url,
            declared=True,
            limits=LimitOptions(per_minute=self.limit),
            retry=RetryOptions(attempts_max=1),
            breaker=BreakerOptions(failure_threshold=1000),
        )
        return PlatformOptions(home=Path(self.home), state_url=self.state_url, services=(service,))


async def ask(task: Task) -> None:
    """Call at random moments, until killed."""
    rng, calls = random.Random(task.seed), set[asyncio.Task[None]]()
    async with Platform(task.options()) as platform:

        async def call() -> None:
            with contextlib.suppress(ExternalServiceError):
                await platform.query(Query(service=SERVICE, prompt="hi", max_tokens=5, timeout_s=20))

        print("ready", flush=True)
        while True:
            await asyncio.sleep(rng.expovariate(task.calls_a_s))
            one = asyncio.create_task(call())
            calls.add(one)
            one.add_done_callback(calls.discard)


class Provider(FakeCompatible):
    """Responds immediately, and records the time of each request."""

    def __init__(self) -> None:
        self.asked_at: list[float] = []
        self._checks_fail = False
        super().__init__(key=None, models=("m",), latency_s=0.01)

    @property
    def default(self) -> Step:
        """The next response."""
        self.asked_at.append(time.monotonic())
        return Answer(output_tokens=1)

    @default.setter
    def default(self, step: Step) -> None:
        pass


UNREPORTED = "SELECT sum(CASE WHEN lapsed > 0 THEN lapsed ELSE granted - used - back END) FROM koo_leases"
"""The units that count as used because their process could not report, as after a kill, and those still leased."""


@dataclass
class Run:
    """One limit shared by some processes. `unreported`: the units of `UNREPORTED` at the end."""

    limit: int
    processes: int
    asked_at: list[float] = field(default_factory=list)
    lasted_s: float = 0.0
    unreported: int = 0

    @property
    def worst(self) -> int:
        """The most calls in any minute."""
        first = most = 0
        for last, at in enumerate(self.asked_at):
            while at - self.asked_at[first] >= MINUTE_S:
                first += 1
            most = max(most, last - first + 1)
        return most

    @property
    def used(self) -> float:
        """The share of the limit that was used."""
        return len(self.asked_at) / (self.limit * self.lasted_s / MINUTE_S)

    def found(self) -> list[str]:
        """What does not hold."""
        found = []
        if self.worst > self.limit:
            found.append(f"{self.worst} of {self.limit} a minute over {self.processes} processes")
        if self.used < 0.85:
            found.append(f"{self.used:.0%} of {self.limit} a minute used over {self.processes} processes")
        return found

    def line(self) -> str:
        """The row of the table."""
        return (
            f"| {self.limit} | {self.processes} | {self.worst} | {self.used:.0%} | {len(self.asked_at):,} |"
        )


class Members:
    """The processes of one run."""

    def __init__(self, task: Task, processes: int) -> None:
        self._task = task
        self._started = 0
        self.running: list[asyncio.subprocess.Process] = []
        self._processes = processes

    async def start(self, count: int) -> None:
        """Start this many, and wait until they are ready."""
        for _ in range(count):
            self._started += 1
            task = json.dumps(asdict(self._task) | {"seed": self._started})
            self.running.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "proofs.fleet_limits",
                    task,
                    cwd=ROOT,
                    stdout=asyncio.subprocess.PIPE,
                )
            )
        for one in self.running[-count:]:
            assert one.stdout is not None
            await one.stdout.readline()

    async def replace(self) -> None:
        """Kill one, and start another."""
        one = self.running.pop(0)
        one.kill()
        await one.wait()
        await self.start(1)

    async def end(self) -> None:
        """Kill all running processes."""
        for one in self.running:
            one.kill()
        await asyncio.gather(*(one.wait() for one in self.running))


async def run(
    server: PostgresServer, limit: int, processes: int, lasts_s: float, *, demand: float = DEMAND
) -> Run:
    """One run with its faults."""
    result = Run(limit, processes)
    with tempfile.TemporaryDirectory() as home, Provider() as provider:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            database = server.create_database()
            url = server.url("psycopg", database).replace(f":{server.port}/", f":{proxy.port}/")
            task = Task(provider.base_url, url, home, limit, limit / MINUTE_S * demand / processes, 0)
            members = Members(task, processes)
            try:
                began = await _with_faults(members, proxy, processes, lasts_s)
                result.lasted_s = time.monotonic() - began
                result.unreported = int(server.sql(UNREPORTED, database) or 0)
            finally:
                await members.end()
            result.asked_at = sorted(at for at in provider.asked_at if at < began + result.lasted_s)
    print(result.line(), flush=True)
    return result


async def _with_faults(members: Members, proxy: FaultProxy, processes: int, lasts_s: float) -> float:
    """Returns when all processes were ready."""
    await members.start(processes)
    began = time.monotonic()
    await asyncio.sleep(lasts_s * 0.2)
    await members.replace()
    await asyncio.sleep(lasts_s * 0.15)
    proxy.delay_s = 0.05
    await asyncio.sleep(lasts_s * 0.15)
    proxy.delay_s = 0.0
    await members.replace()
    proxy.black_hole()
    await asyncio.sleep(CUT_S)
    proxy.heal()
    await asyncio.sleep(max(0.0, began + lasts_s - time.monotonic()))
    return began


async def prove() -> Part:
    """All runs at the same time, because each spends most of its time waiting."""
    with PostgresServer(18) as server:
        runs = await asyncio.gather(*(run(server, limit, many, LASTS_S) for limit, many in RUNS))
    lines = [
        f"Each run lasts {LASTS_S:.0f} seconds. The processes request 1.5 times the limit, through koo on PostgreSQL.",
        "Two are killed and replaced, the connection to the store has a latency of 50 ms for a while, and then all its",
        f"traffic is dropped for {CUT_S:.0f} seconds. The provider counts the calls.",
        "",
        "| limit per minute | processes | most calls in any minute | share of the limit used | calls |",
        "|---:|---:|---:|---:|---:|",
        *(one.line() for one in sorted(runs, key=lambda one: (one.limit, one.processes))),
    ]
    return Part("A limit of the fleet", lines, [word for one in runs for word in one.found()])


if __name__ == "__main__":
    asyncio.run(ask(Task(**json.loads(sys.argv[1]))))
