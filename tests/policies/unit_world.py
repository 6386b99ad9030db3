"""A fleet that leases units, on virtual time: with lost, late and repeated messages, kills, stops, drifting clocks, and
an unreachable store. The provider counts the calls: never more than the limit in any period, wherever it begins.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from koo.policies.hand import Hand
from koo.policies.limiter import Limits, SlidingCount
from koo.policies.units import Grant, Told
from koo.storage.windows import MemoryWindows, Windows

TIMEOUT_S = 2.0
RESET_S = 0.25
"""A message lost with its connection is detected before the timeout."""
KNOCK_S = 1.0
"""How often a store that did not reply is tried again."""


@dataclass(slots=True, eq=False)
class Process:
    """One process: its units in hand, and the error of its clock."""

    name: str
    limits: Limits
    hand: Hand
    drift: float
    is_alive: bool = True
    stopped_until: float = 0.0
    flying: int = 0
    waits_until: float = 0.0
    uses: int = 0
    refused: int = 0
    waiting: list[float] = field(default_factory=list)
    """When each waiting caller arrived."""


class World:
    """`demand`: calls per second of all processes. `faults`: lost and repeated messages, kills, stops. `uses`: the
    times of all uses."""

    def __init__(
        self,
        limit: int,
        processes: int,
        demand: float,
        *,
        seconds: float = 300.0,
        period_s: float = 60.0,
        seed: int = 1,
        faults: bool = True,
        drift: float = 0.01,
        lag_s: tuple[float, float] = (0.001, 0.03),
        away: tuple[float, float] | None = None,
        cut: tuple[float, float] | None = None,
        waits: bool = False,
        store: Windows | None = None,
        make: Callable[..., Hand] = Hand,
    ) -> None:
        self.rng = random.Random(seed)
        self.limit, self.demand, self.seconds, self.period_s = limit, demand, seconds, period_s
        self.faults, self.drift, self.lag_s, self.waits = faults, drift, lag_s, waits
        self.away, self.cut = away, cut
        self.store = store if store is not None else MemoryWindows()
        self.make = make
        self.now = 0.0
        self.uses: list[float] = []
        self.trips: list[float] = []
        self.mail: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.numbers = itertools.count()
        self.words = itertools.count()
        self.processes = [self.born() for _ in range(processes)]
        for process in self.processes:
            self.at(self.rng.expovariate(demand / processes), self.call, process)
            self.at(self.rng.random() * 0.01, self.look, process)
        if faults:
            self.at(seconds / 3, self.kill, 0)
            self.at(seconds / 2, self.kill, processes - 1)
            self.at(seconds / 2.5, self.stop, processes // 2)

    # ── the processes ─────────────────────────────────────────────────────────────────────────────────────────

    def born(self) -> Process:
        rng = self.rng
        drift = 1 + rng.uniform(-self.drift, self.drift)
        name = f"p{next(self.words)}"
        count = SlidingCount("requests a minute", self.limit, self.period_s, self.now * drift + 1000)
        hand: Hand = self.make("minute/x", self.limit, self.period_s, lambda: self.ring(hand))
        count.hand = hand
        return Process(name, Limits(count), hand, drift)

    def ring(self, hand: Hand) -> None:
        for process in self.processes:
            if process.hand is hand:
                self.at(0.0, self.look_now, process)

    def clock(self, process: Process) -> float:
        return self.now * process.drift + 1000

    def at(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.mail, (self.now + delay_s, next(self.numbers), act, args))

    def kill(self, place: int) -> None:
        self.processes[place].is_alive = False
        self.at(5.0, self.start, place)

    def start(self, place: int) -> None:
        process = self.born()
        self.processes[place] = process
        self.at(self.rng.expovariate(self.demand / len(self.processes)), self.call, process)
        self.at(0.0, self.look, process)

    def stop(self, place: int) -> None:
        self.processes[place].stopped_until = self.now + 10

    def runs(self, process: Process) -> bool:
        return process.is_alive and self.now >= process.stopped_until

    def call(self, process: Process) -> None:
        if not process.is_alive:
            return
        self.at(self.rng.expovariate(self.demand / len(self.processes)), self.call, process)
        if not self.runs(process):
            return
        if self.take(process):
            return
        if process.limits.lacks(self.clock(process)) or self.waits:
            process.waiting.append(self.now)
            self.look_now(process)
        else:
            process.refused += 1

    def take(self, process: Process) -> bool:
        if process.limits.take(self.clock(process)) is not None:
            return False
        process.uses += 1
        self.uses.append(self.now)
        return True

    # ── the way to the store ──────────────────────────────────────────────────────────────────────────────────

    def look(self, process: Process) -> None:
        """Act as the background task, which wakes when a message is due."""
        if not process.is_alive:
            return
        self.look_now(process)
        self.at(0.5, self.look, process)

    def look_now(self, process: Process) -> None:
        hand, now = process.hand, self.clock(process)
        if not self.runs(process) or process.flying or self.now < process.waits_until:
            return
        wants = bool(process.waiting) and now >= hand.shut_until
        if not wants and now < hand.due_at:
            return
        (count,) = process.limits.counts
        assert isinstance(count, SlidingCount)
        count.roll(now)
        asking = len(process.waiting) if now >= hand.shut_until else 0
        told = hand.ask(now, count, min(1, asking), asking)
        self.trips.append(self.now)
        process.flying = number = next(self.numbers) + 1
        is_away = self.is_away(process)
        self.at(TIMEOUT_S if is_away else RESET_S + self.lag_s[1] * 2, self.lost, process, number)
        if is_away or (self.faults and self.rng.random() < 0.02):
            return
        self.at(self.rng.uniform(*self.lag_s), self.serve, process, told, now, number)
        if self.faults and self.rng.random() < 0.02:
            self.at(self.rng.uniform(*self.lag_s), self.serve, process, told, now, -1)

    def is_away(self, process: Process) -> bool:
        if self.away is not None and self.away[0] <= self.now < self.away[1]:
            return True
        is_cut = self.cut is not None and self.cut[0] <= self.now < self.cut[1]
        return is_cut and process is self.processes[0]

    def serve(self, process: Process, told: Told, sent_at: float, number: int) -> None:
        if isinstance(self.store, MemoryWindows):
            self.store.processes = sum(one.is_alive for one in self.processes)
        (grant,) = self.store.receive(process.name, [told], int(self.now * 1000) + 5_000_000)
        if not (self.faults and self.rng.random() < 0.01):
            self.at(self.rng.uniform(*self.lag_s), self.hear, process, grant, sent_at, number)

    def hear(self, process: Process, grant: Grant, sent_at: float, number: int) -> None:
        if not process.is_alive or process.flying != number:
            return
        if self.now < process.stopped_until:
            self.at(process.stopped_until - self.now, self.hear, process, grant, sent_at, number)
            return
        process.flying = 0
        process.hand.is_away = False
        _ = process.limits.counts
        process.hand.hear(grant, sent_at, self.clock(process))
        while process.waiting and self.take(process):
            process.waiting.pop(0)
        for at in (process.hand.due_at, process.hand.shut_until):
            if at > self.clock(process):
                self.at(at - self.clock(process) + 0.001, self.look_now, process)
        if not self.waits and not process.limits.lacks(self.clock(process)):
            process.refused += len(process.waiting)
            process.waiting.clear()

    def lost(self, process: Process, number: int) -> None:
        if process.flying != number or not process.is_alive:
            return
        process.flying = 0
        process.hand.give_up()
        process.hand.is_away = self.is_away(process)
        process.waits_until = self.now + (KNOCK_S if process.hand.is_away else 0.0)
        self.at(0.0, self.look_now, process)
        if not self.waits and process.hand.is_away:
            process.refused += len(process.waiting)
            process.waiting.clear()

    # ── the verdict ───────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> World:
        while self.mail and self.mail[0][0] <= self.seconds:
            self.now, _, act, args = heapq.heappop(self.mail)
            act(*args)
        return self

    @property
    def worst(self) -> int:
        """The most uses in any period."""
        return worst(self.uses, self.period_s)

    @property
    def used(self) -> float:
        """The share of the limit that was used."""
        return len(self.uses) / (self.limit * self.seconds / self.period_s)

    @property
    def trips_a_use(self) -> float:
        return len(self.trips) / max(1, len(self.uses))


def worst(uses: list[float], period_s: float) -> int:
    """The most uses in any half-open period, wherever it begins."""
    first = most = 0
    for last, at in enumerate(uses):
        while at - uses[first] >= period_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def within(uses: list[float], begin: float, end: float) -> int:
    return bisect_left(uses, end) - bisect_left(uses, begin)
