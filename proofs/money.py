"""No fault makes a fleet spend more than its budget: `python -m proofs.money [short]`.

Several processes with two hundred callers in total spend one budget at a fake provider, over one SQLite file or one
PostgreSQL. Processes are killed, stopped for ten seconds and restarted; PostgreSQL is killed and cut off. The
provider's own bill is the judge:

* The bill never exceeds the cap.
* Without kills the whole cap can be spent, except for less than one call's bound.
* A kill leaves unsettled at most three amounts: what the dead process's callers held or waited for since two beats
  before the last answered one, twice what it spent since then, and one bound. The process reports these numbers until
  it is killed.
* In the end the ledger matches the bill, except for entries marked as estimates, and the purses add up to what is
  booked.

The control counts in each process and synchronises in batches, as gateways do. It exceeds the cap.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg

from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeCompatible
from koo.testing.providers.script import Answer, Nothing, Step, Stream
from koo.testing.proxy import FaultProxy
from proofs.running import ROOT, ProofFailed, write_page
from proofs.spending import BOUND_USD, INPUT_PRICE, OUTPUT_PRICE, OUTPUT_TOKENS_MAX, SERVICE, Task
from proofs.streams import ENDS, FORMATS, cut_and_left

CALLERS = 200
QUIET_S = 4.0
"""The budget counts as used up when nothing is billed for this long: longer than any refusal's wait."""
LONGEST_S = 120.0
STREAMS = 10_000
PICO = Decimal(10**12)


class Provider(FakeCompatible):
    """Sends answers of random length; cuts some streams, and closes some connections after the work was done."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        super().__init__(
            key=None,
            models=("m",),
            input_price=INPUT_PRICE,
            output_price=OUTPUT_PRICE,
            latency_s=0.02,
            strict=False,  # a query may receive a stream that would be cut
        )

    @property
    def default(self) -> Step:
        """The next response."""
        rng = self._rng
        tokens = rng.randint(1, OUTPUT_TOKENS_MAX)
        chance = rng.random()
        if chance < 0.02:
            return Nothing(billed=True)
        if chance < 0.5:
            return Answer(output_tokens=tokens)
        cut_after = rng.randint(1, tokens) if chance < 0.6 else None
        return Stream(pieces=["abcd"] * tokens, cut_after=cut_after, interval_s=0.001)

    @default.setter
    def default(self, step: Step) -> None:
        pass


class Process:
    """One process that spends."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.was_killed = False
        self.said: list[tuple[int, int, int]] = []

    async def start(self, python: str = sys.executable, folder: Path = ROOT) -> Process:
        """Start it and wait until it is ready; `python` and `folder` select another koo and other scripts."""
        self._child = await asyncio.create_subprocess_exec(
            python,
            *self.task.command()[1:],
            cwd=folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._child.stdout is not None
        if await self._child.stdout.readline() != b"ready\n":
            raise ProofFailed("a process did not start")
        self._listening = asyncio.create_task(self._listen(self._child.stdout))
        return self

    async def _listen(self, words: asyncio.StreamReader) -> None:
        while line := await words.readline():
            if line.endswith(b"\n"):
                wanted, spent, beats = map(int, line.split())
                self.said.append((wanted, spent, beats))

    def stranded_max(self) -> Decimal:
        """The most that a kill may leave, by the process's last report.

        That is what was held or waited for since two beats before the last answered one, twice what was spent since
        then, and one bound.
        """
        since = [said for said in self.said if said[2] >= self.said[-1][2] - 3] if self.said else [(0, 0, 0)]
        # It went on spending after its last report: at most as much as in the busiest interval between two reports.
        steps = [later[1] - one[1] for one, later in pairwise(since)] or [0]
        pico = max(said[0] for said in since) + 2 * (since[-1][1] - since[0][1] + max(steps))
        return Decimal(pico) / PICO + BOUND_USD

    @property
    def pid(self) -> str:
        """The process id, as in the name of its purses."""
        return str(self._child.pid)

    def go(self) -> None:
        """Let it begin to spend."""
        assert self._child.stdin is not None
        self._child.stdin.write(b"go\n")

    def kill(self) -> None:
        """Kill it, as the kernel does when memory runs out."""
        self.was_killed = True
        self._child.kill()

    async def stop_for(self, seconds: float) -> None:
        """Stop it for some seconds, like a suspended machine."""
        self._child.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._child.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        """Ask it to close, and wait until it has closed."""
        if not self.was_killed:
            self._child.terminate()
            self.go()  # A spare process that has not been started.
        async with asyncio.timeout(60):
            await self._listening
            await self._child.wait()


@dataclass
class Books:
    """The final sums in the store."""

    booked: Decimal
    spent: Decimal
    purses: Decimal
    entries: Decimal
    marked: Decimal
    unsettled: dict[str, Decimal]


@dataclass
class Fleet:
    """The processes, the provider and the store of one run."""

    cap_usd: str
    processes: int
    seed: int
    provider: Provider
    state_url: str
    home: str
    counts: bool = False
    spares: int = 0
    callers: int = CALLERS
    quiet_s: float = QUIET_S
    running: list[Process] = field(default_factory=list)
    _waiting: list[Process] = field(default_factory=list)
    ended: list[Process] = field(default_factory=list)

    async def start(self) -> None:
        """Start all of them, then let them spend at the same moment; `spares` wait until others are killed."""
        started = await asyncio.gather(
            *(self._start(number) for number in range(self.processes + self.spares))
        )
        self.running, self._waiting = started[: self.processes], started[self.processes :]
        for process in self.running:
            process.go()

    async def _start(self, number: int) -> Process:
        share = max(1, self.callers // self.processes)
        task = Task(
            self.provider.base_url,
            self.state_url,
            self.home,
            self.cap_usd,
            share,
            self.seed + number,
            self.counts,
        )
        return await Process(task).start()

    def kill_one(self, rng: random.Random) -> None:
        """Kill a busy process, and let a spare one spend in its place."""
        process = self.running.pop(rng.randrange(len(self.running)))
        process.kill()
        self.ended.append(process)
        self.running.append(self._waiting.pop())
        self.running[-1].go()

    def spent_share(self) -> float:
        """The share of the cap that is billed."""
        return float(self.provider.billed_usd / Decimal(self.cap_usd))

    async def until_share(self, share: float) -> None:
        """Wait until this share of the cap is billed, in the middle of the traffic."""
        await self._until(lambda: self.spent_share() >= share)

    async def finish(self) -> None:
        """Wait until the budget is used up and nothing more is billed; then ask all processes to close."""
        bills, since = 0, time.monotonic()

        def is_quiet() -> bool:
            nonlocal bills, since
            if len(self.provider.bills) != bills:
                bills, since = len(self.provider.bills), time.monotonic()
            return bills > 0 and time.monotonic() - since > self.quiet_s

        await self._until(is_quiet)
        await asyncio.gather(*(process.end() for process in self.running + self.ended + self._waiting))

    async def _until(self, met: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not met():
            if time.monotonic() - began > LONGEST_S:
                raise ProofFailed("the processes do not spend")
            await asyncio.sleep(0.005)


Fault = Callable[[Fleet, random.Random], Awaitable[None]]


async def no_fault(fleet: Fleet, rng: random.Random) -> None:
    """Cause no fault."""


async def kills(fleet: Fleet, rng: random.Random) -> None:
    """Kill three processes, and start others."""
    for share in (0.05, 0.15, 0.3):
        await fleet.until_share(share)
        fleet.kill_one(rng)


async def stop(fleet: Fleet, rng: random.Random) -> None:
    """Stop a process for ten seconds with everything that it holds, and let it continue."""
    await fleet.until_share(0.2)
    await rng.choice(fleet.running).stop_for(10)


def tables(url: str) -> Callable[[str], list[tuple[Any, ...]]]:
    """Query the store directly, without koo."""

    def ask(statement: str) -> list[tuple[Any, ...]]:
        if url.startswith("sqlite:///"):
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
                return file.execute(statement).fetchall()
        with psycopg.connect(url.replace("+psycopg", "")) as server:
            return server.execute(statement.encode()).fetchall()

    return ask


def read_books(ask: Callable[[str], list[tuple[Any, ...]]]) -> Books:
    """The sums of the service's budget."""
    name = f"'service/{SERVICE}'"

    def usd(statement: str) -> Decimal:
        return Decimal(int(ask(statement)[0][0] or 0)) / PICO

    return Books(
        booked=usd(f"SELECT sum(booked) FROM koo_treasuries WHERE budget = {name}"),
        spent=usd(f"SELECT sum(spent) FROM koo_treasuries WHERE budget = {name}"),
        purses=usd(f"SELECT sum(granted - back + over_granted) FROM koo_purses WHERE budget = {name}"),
        entries=usd("SELECT sum(amount) FROM koo_entries"),
        marked=usd("SELECT sum(amount) FROM koo_entries WHERE estimated = 1"),
        unsettled={
            str(process): Decimal(int(amount)) / PICO
            for process, amount in ask(
                "SELECT process, sum(granted - back + over_granted - spent) FROM koo_purses"
                f" WHERE budget = {name} GROUP BY process HAVING sum(granted - back + over_granted - spent) > 0"
            )
        },
    )


def faults_found(fleet: Fleet, books: Books) -> list[str]:
    """What does not hold."""
    bill, cap = fleet.provider.billed_usd, Decimal(fleet.cap_usd)
    killed = sum(process.was_killed for process in fleet.ended)
    found = []
    if bill > cap:
        found.append(f"the bill of {bill} is above the cap of {cap}")
    if books.purses != books.booked:
        found.append(f"{books.booked} is booked, but the purses add up to {books.purses}")
    if books.booked > cap:
        found.append(f"{books.booked} is booked, above the cap")
    if bill > books.booked:
        found.append(f"the bill of {bill} is above what is booked, {books.booked}")
    if len(books.unsettled) > killed:
        found.append(f"{len(books.unsettled)} processes left something unsettled, but {killed} were killed")
    found += _left_behind(fleet, books)
    if killed and cap > 100 * BOUND_USD and not books.unsettled:
        found.append("the kills came when no call ran")
    if not killed:
        if books.spent <= cap - BOUND_USD:
            found.append(f"{cap - books.spent} of the cap was never spent")
        if books.entries != books.spent:
            found.append(f"{books.spent} is spent, but the entries add up to {books.entries}")
        if not books.entries - books.marked <= bill <= books.entries:
            found.append(f"the bill of {bill} is not the ledger's, of which {books.marked} is marked")
    return found


def _left_behind(fleet: Fleet, books: Books) -> list[str]:
    """Kills that left more than they may."""
    limits = {process.pid: process.stranded_max() for process in fleet.ended}
    return [
        f"a kill left {amount:.4f} unsettled, above {limits.get(name.split(':')[1], 0):.4f}"
        for name, amount in books.unsettled.items()
        if amount > limits.get(name.split(":")[1], 0)
    ]


@dataclass(frozen=True)
class Run:
    """One line of the page."""

    where: str
    what: str
    fleet: Fleet
    books: Books
    lasted_s: float
    found: list[str]

    def line(self) -> str:
        """The row of the page's table."""
        unsettled = sum(self.books.unsettled.values(), Decimal(0))
        killed = sum(process.was_killed for process in self.fleet.ended)
        return (
            f"| {self.where} | {self.what} | {self.fleet.cap_usd} | {self.fleet.provider.billed_usd:.4f} |"
            f" {self.books.spent:.4f} | {self.books.marked:.4f} | {killed} | {unsettled:.4f} |"
            f" {len(self.fleet.provider.bills):,} | {self.lasted_s:.0f} s | {'; '.join(self.found) or 'holds'} |"
        )


async def run(where: str, what: str, fault: Fault, fleet: Fleet, ask_url: str) -> Run:
    """Run from the first process to the judgement."""
    rng = random.Random(fleet.seed)
    began = time.monotonic()
    await fleet.start()
    await fault(fleet, rng)
    await fleet.finish()
    lasted_s = time.monotonic() - began
    books = await asyncio.to_thread(read_books, tables(ask_url))
    found = faults_found(fleet, books)
    result = Run(where, what, fleet, books, lasted_s, found)
    print(result.line(), flush=True)
    return result


async def on_sqlite(
    what: str,
    fault: Fault,
    cap_usd: str,
    *,
    processes: int = 4,
    seed: int = 1,
    counts: bool = False,
    spares: int = 0,
) -> Run:
    """One run over a SQLite file."""
    with tempfile.TemporaryDirectory() as home, Provider(seed) as provider:
        url = f"sqlite:///{home}/state.db"
        fleet = Fleet(cap_usd, processes, seed, provider, url, home, counts, spares)
        return await run("SQLite", what, fault, fleet, url)


async def on_postgres(
    what: str,
    fault: Callable[[PostgresServer, FaultProxy], Fault],
    cap_usd: str,
    *,
    seed: int = 1,
    spares: int = 0,
) -> Run:
    """One run over a PostgreSQL server, reached through a proxy that can cut it off."""
    with tempfile.TemporaryDirectory() as home, Provider(seed) as provider, PostgresServer(18) as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            url = server.url("psycopg", server.create_database())
            through = url.replace(f":{server.port}/", f":{proxy.port}/")
            fleet = Fleet(cap_usd, 8, seed, provider, through, home, spares=spares)
            return await run("PostgreSQL", what, fault(server, proxy), fleet, url)


def over(fault: Fault) -> Callable[[PostgresServer, FaultProxy], Fault]:
    """A fault that does not involve the server."""
    return lambda server, proxy: fault


def server_killed(server: PostgresServer, proxy: FaultProxy) -> Fault:
    """Kill PostgreSQL twice, and start it again two seconds later; kill a process in between."""

    async def fault(fleet: Fleet, rng: random.Random) -> None:
        for share in (0.1, 0.35):
            await fleet.until_share(share)
            await asyncio.to_thread(server.kill)
            fleet.kill_one(rng)
            await asyncio.sleep(2)
            await asyncio.to_thread(server.start)

    return fault


def partitioned(server: PostgresServer, proxy: FaultProxy) -> Fault:
    """Drop all traffic to PostgreSQL for four seconds, then reset all connections, then cut COMMITs."""

    async def fault(fleet: Fleet, rng: random.Random) -> None:
        await fleet.until_share(0.05)
        proxy.black_hole()
        await asyncio.sleep(4)
        proxy.heal()
        await fleet.until_share(0.2)
        proxy.reset_all()
        await fleet.until_share(0.3)
        proxy.cut_commit("after", 8)
        await fleet.until_share(0.4)
        proxy.cut_commit("before", 8)

    return fault


async def prove() -> list[Run]:
    """All runs except the control."""
    runs = []
    for cap_usd, seed in (("1", 1), ("40", 2)):
        runs += [
            await on_sqlite("no fault", no_fault, cap_usd, seed=seed),
            await on_sqlite("three processes killed", kills, cap_usd, seed=seed + 10, spares=3),
            await on_sqlite("one process stopped for 10 s", stop, cap_usd, seed=seed + 20),
            await on_postgres("no fault", over(no_fault), cap_usd, seed=seed + 30),
            await on_postgres("three processes killed", over(kills), cap_usd, seed=seed + 40, spares=3),
            await on_postgres("one process stopped for 10 s", over(stop), cap_usd, seed=seed + 50),
            await on_postgres(
                "the server and two processes killed", server_killed, cap_usd, seed=seed + 60, spares=2
            ),
            await on_postgres(
                "connections cut off, then reset, then COMMITs cut", partitioned, cap_usd, seed=seed + 70
            ),
        ]
    return runs


async def control() -> Run:
    """The control: counters in batches."""
    return await on_sqlite("control: counters in batches", no_fault, "1", seed=99, counts=True)


def passes_the_cap(run: Run) -> bool:
    """Whether the bill exceeds the cap, as it should in a control."""
    return run.fleet.provider.billed_usd > Decimal(run.fleet.cap_usd)


def main() -> int:
    began = time.monotonic()
    streams = cut_and_left(STREAMS, random.randrange(10**6))
    runs = asyncio.run(prove())
    counted = asyncio.run(control())
    failed = [run for run in runs if run.found]
    if not passes_the_cap(counted):
        failed.append(counted)
    lines = [
        "# Money: no fault makes a fleet spend more than its budget",
        "",
        f"{CALLERS} callers run in four processes on SQLite and in eight on PostgreSQL. A call costs at most",
        f"{BOUND_USD} USD; its true cost is random. A fifth of the calls are cancelled at a random moment. A third are",
        "streams, of which half are abandoned after the first piece. Some are cut off by the provider, or closed",
        "without a response, and still billed.",
        "",
        "`bill` is the fake provider's total, and `spent` the ledger's. `estimated` is a part of `spent`: calls that",
        "ended without the provider's numbers are booked at the most that they can have cost. `unsettled` is what the",
        "killed processes left.",
        "",
        "| store | fault | cap | bill | spent | estimated | killed | unsettled | calls billed | took | result |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        *(run.line() for run in [*runs, counted]),
        "",
        f"{len(runs) - len([run for run in runs if run.found])} of {len(runs)} runs hold. The control exceeds the cap"
        f" by {counted.fleet.provider.billed_usd - Decimal(counted.fleet.cap_usd):.2f} USD.",
        "",
        f"{streams.total():,} streams in {len(FORMATS)} wire formats, cut, abandoned and broken in {len(ENDS)} ways:",
        "no estimate exceeds its hold, and none is booked below what its provider had reported.",
        "",
        f"The run took {(time.monotonic() - began) / 60:.0f} minutes.",
    ]
    write_page("money", "prove-money", lines)
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProofFailed as error:
        sys.exit(f"koo: {error}")
