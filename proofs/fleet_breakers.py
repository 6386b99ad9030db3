"""Breakers of many processes with one provider: what an outage costs, how it ends, and which process acts for all.

A provider goes down while all processes call it. Processes that call often open on their own failures; the others are
primed, and open with their first failure. While the provider is down the fleet probes it as one process would. When it
is back, the first success is published, and the others recover in rounds that double. A reset reaches all processes.
The leader is killed.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Self

from koo.testing.polling import until
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeAnthropic, Step, answer, error
from koo.testing.providers.script import Failure
from koo.testing.providers.wire import Connection, ReceivedRequest
from proofs.fleet_caller import Task
from proofs.fleet_part import Part

OFTEN_S = 0.1
RESET_S = 1.5
LEADS_AFTER_S = 7.0
"""Four beats without a renewal, the beat that notices it, and time to report it."""
TELLING_S = 5.0
"""Several rounds of the alert engine and of sending, by the remaining processes."""
PATIENCE_S = 60.0
DOWN = error(500, "api_error")


@dataclass
class Attempt:
    """One request at the provider, from its arrival to its response."""

    number: int
    began: float
    failed: bool
    ended: float | None = None


class Provider(FakeAnthropic):
    """Records which process calls, and when. A response takes a moment, so that concurrent calls can be seen."""

    def __init__(self) -> None:
        super().__init__(strict=False)
        self.tries: list[Attempt] = []

    async def _play(self, step: Step, request: ReceivedRequest, connection: Connection) -> bool:
        if request.method == "GET":
            return await super()._play(step, request, connection)
        number = int(request.prompt.split()[-1])
        attempt = Attempt(number, time.monotonic(), isinstance(step, Failure))
        self.tries.append(attempt)
        if not attempt.failed:
            await asyncio.sleep(0.2)
        try:
            return await super()._play(step, request, connection)
        finally:
            attempt.ended = time.monotonic()

    def since(self, at: float) -> list[Attempt]:
        return [one for one in self.tries if one.began >= at]


class Hook:
    """Receives the processes' notices: counts the key of each message every time that it arrives."""

    def __init__(self) -> None:
        self.keys: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
        await reader.readexactly(int(fields["content-length"]))
        self.keys[fields["webhook-id"]] += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


@dataclass
class Process:
    """One child, and what it has reported: the word, and when."""

    task: Task
    said: list[tuple[str, float]] = field(default_factory=list)

    async def start(self) -> None:
        self.child = await asyncio.create_subprocess_exec(
            *self.task.command(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.child.stdout is not None
        async for line in self.child.stdout:
            told = json.loads(line)
            self.said.append((told["said"], told["at"]))

    def ask(self, line: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(f"{line}\n".encode())

    def is_open(self) -> bool:
        steps = [word for word, _ in self.said if word in ("open", "closed")]
        return bool(steps) and steps[-1] == "open"

    def has_said(self, word: str) -> bool:
        return any(one == word for one, _ in self.said)

    def last(self, word: str) -> float:
        """When it last reported this word; long ago if never."""
        return max((at for one, at in self.said if one == word), default=float("-inf"))

    async def end(self) -> None:
        if self.child.returncode is None:
            assert self.child.stdin is not None
            self.child.stdin.close()
        await self.child.wait()
        await self.listening


@dataclass(frozen=True)
class Size:
    """The size of the trial; the busy processes call ten times a second."""

    processes: int = 8
    busy: int = 4
    recovery_s: float = 6.0
    down_s: float = 24.0
    seldom_s: float = 4.0


class Fleet:
    """The processes, the provider and the receiver of alerts."""

    def __init__(self, url: str, home: str, provider: Provider, hook: Hook, size: Size) -> None:
        self.provider, self.hook = provider, hook
        self.size = size
        tasks = [
            Task(number, provider.base_url, url, home, hook.url, size.recovery_s)
            for number in range(size.processes)
        ]
        self.processes = [Process(task) for task in tasks]

    async def __aenter__(self) -> Self:
        for process in self.processes:  # one after the other, so that the first one leads
            await process.start()
            await self.until(partial(process.has_said, "ready"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(process.end() for process in self.processes))

    async def until(self, met: Callable[[], bool]) -> float:
        """Wait until the condition holds; returns how long it took."""
        began = time.monotonic()
        await until(met, PATIENCE_S)
        return time.monotonic() - began

    def pace(self, seldom_s: float) -> None:
        """The busy processes call often, the others at this pace."""
        for number, process in enumerate(self.processes):
            process.ask(f"pace {OFTEN_S if number < self.size.busy else seldom_s}")

    @property
    def living(self) -> list[Process]:
        return [process for process in self.processes if process.child.returncode is None]


@dataclass
class Findings:
    """One line for each measurement; what does not hold, and what took too long, which may be due to a busy machine."""

    lines: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    def note(self, line: str, *, holds: bool = True, in_time: bool = True) -> None:
        self.lines.append(f"- {line}")
        if not holds:
            self.found.append(line)
        elif not in_time:
            self.late.append(line)


async def goes_down(fleet: Fleet, findings: Findings) -> None:
    """At most half of the processes have more than one failed call."""
    fleet.pace(fleet.size.seldom_s)
    await fleet.until(lambda: len({one.number for one in fleet.provider.tries}) == len(fleet.processes))
    fleet.provider.default, down_at = DOWN, time.monotonic()
    took = await fleet.until(lambda: all(process.is_open() for process in fleet.living))
    fell = {process.task.number: process.last("open") for process in fleet.processes}
    failed = Counter(
        one.number for one in fleet.provider.since(down_at) if one.failed and one.began <= fell[one.number]
    )
    several = [number for number, count in failed.items() if count > 1]
    half = len(fleet.processes) // 2
    findings.note(
        f"provider down: all {len(fleet.processes)} breakers are open after {took:.1f} s and {failed.total()} failed "
        f"calls; {len(several)} processes had more than one failed call (at most {half} may)",
        holds=len(several) <= half,
    )


async def stays_down(fleet: Fleet, findings: Findings) -> None:
    """The fleet probes once in a recovery time."""
    fleet.pace(OFTEN_S)
    # The last failed calls from the beginning of the outage are not probes.
    began = max(process.last("open") for process in fleet.processes) + 0.5
    down_s = fleet.size.down_s
    await asyncio.sleep(down_s)
    probes = [one.began for one in fleet.provider.since(began)]
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    shortest = min(gaps, default=fleet.size.recovery_s)
    findings.note(
        f"down for {down_s:.0f} s, with ten calls per second in each process: {len(probes)} probes of the whole fleet, "
        f"at least {shortest:.1f} s apart (recovery time {fleet.size.recovery_s:g} s)",
        holds=bool(probes) and shortest >= fleet.size.recovery_s * 0.95,
    )


async def comes_back(fleet: Fleet, findings: Findings) -> None:
    """There are never more probes than units: one, then two for each process that has recovered."""
    fleet.pace(OFTEN_S)
    fleet.provider.default, up_at = answer(), time.monotonic()
    await fleet.until(lambda: not any(process.is_open() for process in fleet.living))
    first = min(one.began for one in fleet.provider.since(up_at) if not one.failed)
    back = max(process.last("closed") for process in fleet.living) - first
    worst = _most_at_once(fleet, up_at)
    findings.note(
        f"provider back: all breakers are closed {back:.1f} s after the first success; until the first one closed, "
        f"{worst[0]} probe ran at a time (at most 1 may); later at most {worst[1]} more ran than two for each closed "
        "breaker (0 may)",
        holds=worst[0] <= 1 and worst[1] <= 0,
    )


def _most_at_once(fleet: Fleet, since: float) -> tuple[int, int]:
    """The most concurrent probes before any process had closed, and how many exceeded the units afterwards."""
    closed = {process.task.number: process.last("closed") for process in fleet.processes}
    probes = [one for one in fleet.provider.since(since) if one.began < closed[one.number]]
    first, above = 0, 0
    for probe in probes:
        running = sum(one.began <= probe.began and (one.ended or 1e18) > probe.began for one in probes)
        recovered = sum(at < probe.began for at in closed.values())
        if recovered:
            above = max(above, running - 2 * recovered)
        else:
            first = max(first, running)
    return first, above


async def is_reset(fleet: Fleet, findings: Findings) -> None:
    """An operator's reset in one process closes all breakers."""
    fleet.provider.default = DOWN
    await fleet.until(lambda: all(process.is_open() for process in fleet.living))
    fleet.provider.default = answer()
    asked_at = time.monotonic()
    fleet.living[-1].ask("reset")
    await fleet.until(lambda: not any(process.is_open() for process in fleet.living))
    took = max(process.last("closed") for process in fleet.living) - asked_at
    findings.note(
        f"a reset in one process closes all breakers within {took:.2f} s (at most {RESET_S} s allowed)",
        in_time=took <= RESET_S,
    )


async def loses_its_leader(fleet: Fleet, findings: Findings) -> None:
    """Another process leads within seconds, and no notice is sent twice."""
    leader = max(fleet.living, key=lambda process: process.last("leads"))
    leader.child.kill()
    killed_at = time.monotonic()
    await leader.child.wait()
    await fleet.until(lambda: any(process.last("leads") > killed_at for process in fleet.living))
    took = min(at for process in fleet.living if (at := process.last("leads")) > killed_at) - killed_at
    findings.note(
        f"kill -9 of the leader: another process leads after {took:.1f} s (at most {LEADS_AFTER_S:g} s allowed)",
        in_time=took <= LEADS_AFTER_S,
    )
    fleet.provider.default = DOWN
    await fleet.until(lambda: all(process.is_open() for process in fleet.living))
    await asyncio.sleep(TELLING_S)
    twice = [key for key, count in fleet.hook.keys.items() if count > 1]
    findings.note(
        f"{sum(fleet.hook.keys.values())} notices were sent in total, {len(twice)} of them twice",
        holds=bool(fleet.hook.keys) and not twice,
    )


Trial = Callable[[Fleet, Findings], Awaitable[None]]
TRIALS: tuple[Trial, ...] = (goes_down, stays_down, comes_back, is_reset, loses_its_leader)


async def try_out(url: str, home: str, size: Size, trials: Sequence[Trial] = TRIALS) -> Findings:
    """Run the trials one after the other, on one store."""
    findings = Findings()
    async with Provider() as provider, Hook() as hook, Fleet(url, home, provider, hook, size) as fleet:
        for trial in trials:
            await trial(fleet, findings)
    return findings


async def prove() -> Part:
    """On SQLite and on PostgreSQL."""
    size, lines, found = Size(), list[str](), list[str]()
    with tempfile.TemporaryDirectory() as home, PostgresServer(18) as server:
        places: Sequence[tuple[str, str]] = (
            ("PostgreSQL 18", server.url("psycopg", server.create_database())),
            ("SQLite", f"sqlite:///{home}/state.db"),
        )
        for name, url in places:
            findings = await try_out(url, home, size)
            what = f"{size.processes} processes, {size.busy} of which call ten times a second"
            lines += [f"On {name}, {what}:", "", *findings.lines, ""]
            found += [f"{name}: {one}" for one in findings.found + findings.late]
    return Part("Breakers, probes, resets and the leader", lines[:-1], found)
