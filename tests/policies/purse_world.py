"""A random world that tries to spend more than a budget. It has lost, late and repeated beats, kills, stops, forks,
clones, restored copies, write-offs, changing limits, and a midnight in the middle. The provider's own bill decides:

    bill ≤ the highest limit in force + E     at every instant

E counts, to the unit, what the rules do not promise: the room of a cloned purse, a bill above its bound, a default
budget used without the store, a write-off, and what an older copy of the store has lost. All times are virtual.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from koo.policies.purse import Budget, Hold, Refusal, Waiter
from koo.policies.purses import PATIENCE, Purses
from koo.policies.treasury import DAY_MS, Beat, Key, Reply, period_at
from koo.storage.treasuries import MemoryTreasuries, Treasuries

BEAT_MS = 1000
TICK_MS = 250
BEATS = 130
LIMITS = {"tag": 400, "service": 900}
"""The budget `tag` was set; `service` is a default."""
BOUND = 20
PURSES = Purses
"""The classes that a world uses; a test that removes a rule passes its own."""


class Broken(AssertionError):
    """A rule was broken."""


@dataclass(slots=True, eq=False)
class Call:
    """A call: its budgets, its bound and what it will cost."""

    names: tuple[str, ...]
    amount: int
    cost: int
    hold: Hold | None = None


@dataclass(slots=True, eq=False)
class Process:
    """One process: its purses, and its running calls."""

    purses: Purses
    limits: dict[str, int]
    calls: list[Call] = field(default_factory=list)
    waiting: dict[int, tuple[Call, Waiter]] = field(default_factory=dict)
    rung: bool = False
    next_ms: int = 0
    sent_ms: int = 0
    alive: bool = True
    ends: bool = False
    stopped_until: int = -1
    track: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)
    written: list[int] = field(default_factory=list)


class World:
    """kind: "calm" has no faults, "rough" has the faults that must never exceed the limit, "wild" has all faults."""

    def __init__(
        self,
        seed: int,
        kind: str,
        store: Treasuries | None = None,
        *,
        beats: int = BEATS,
        make: Callable[..., Purses] | None = None,
        fork_is_empty: bool = True,
        restores: bool = True,
    ) -> None:
        self.rng = random.Random(seed)
        self.kind = kind
        self.store: Treasuries = store if store is not None else MemoryTreasuries()
        self.make = make or PURSES
        self.fork_is_empty = fork_is_empty
        self.restores = restores
        self.start_ms = 20_000 * DAY_MS - 55 * BEAT_MS
        self.now_ms, self.end_ms = self.start_ms, self.start_ms + beats * BEAT_MS
        self.calm_since = -(10**15) if kind == "calm" else 10**15
        self.limits = dict(LIMITS)
        self.moved_ms = self.start_ms
        self.away_until = -1
        self.mail: list[tuple[int, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.words = itertools.count(1)
        self.highest: dict[Key, int] = {}
        self.bill: dict[Key, int] = {}
        self.excess: dict[Key, int] = {}
        self.heard: dict[tuple[str, str], Process] = {}
        self.older: Any = None
        self.told: dict[tuple[str, str], tuple[int | None, int]] = {}
        self.idle: dict[tuple[Key, int], list[int]] = {}
        self.stats = dict.fromkeys(("calls", "refused", "beats", "kills", "stranded"), 0)
        self.load = self.rng.choice((0.1, 0.5, 1.5))
        self.processes = [self.born() for _ in range(self.rng.choice((1, 2, 4)))]

    # ── processes ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def now(self) -> float:
        return self.now_ms / 1000

    def word(self) -> str:
        return f"{next(self.words)}"

    def born(self) -> Process:
        def ring() -> None:
            process.rung = True

        skew_ms = self.rng.randint(-10, 10) * BEAT_MS  # a machine whose clock is wrong
        purses = self.make(
            self.word, beat_s=BEAT_MS / 1000, wall_ms=self.now_ms + skew_ms, now=self.now, ring=ring
        )
        process = Process(purses, dict(self.limits))
        for name, limit in process.limits.items():
            purses.add(Budget(name, limit, is_default=name == "service"), self.now)
        return process

    def living(self) -> list[Process]:
        return [p for p in self.processes if p.alive]

    def running(self) -> list[Process]:
        return [p for p in self.processes if p.alive and p.stopped_until <= self.now_ms]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def post(self, delay_ticks: int, do: Callable[[], None]) -> None:
        heapq.heappush(self.mail, (self.now_ms + delay_ticks * TICK_MS, next(self.order), do))

    def lag(self) -> int:
        return self.rng.randint(1, 2) if self.kind == "calm" else self.rng.choice((1, 1, 2, 2, 3, 14))

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, process: Process) -> None:
        rng = self.rng
        amount = rng.randint(4, BOUND)
        cost = rng.randint(1, max(1, amount // 3)) if self.chance(0.7) else rng.randint(1, amount)
        if self.kind == "wild" and self.chance(0.02):
            cost = amount + rng.randint(1, 9)
        names = rng.choice((("tag",), ("service",), ("tag", "service"), ("tag", "service")))
        call = Call(names, amount, cost)
        purses = process.purses
        budgets = tuple(purses.budgets[name] for name in names)
        hold = None if purses.waiting else purses.hold(budgets, amount, self.now)
        away = purses.flying is not None and self.now_ms - process.sent_ms > 2 * BEAT_MS
        if hold is None and away:
            hold = purses.hold_without(budgets, amount, self.now)
        if hold is not None:
            self.begin(process, call, hold)
        elif len(purses.waiting) < 40:
            waiter = Waiter(budgets, amount, PATIENCE, lambda verdict: self.decided(process, call, verdict))
            process.waiting[id(call)] = (call, waiter)
            purses.wait(waiter)

    def decided(self, process: Process, call: Call, verdict: Hold | Refusal) -> None:
        del process.waiting[id(call)]
        if isinstance(verdict, Hold):
            self.begin(process, call, verdict)
        else:
            self.refuse(call, verdict)

    def begin(self, process: Process, call: Call, hold: Hold) -> None:
        self.stats["calls"] += 1
        call.hold = hold
        process.calls.append(call)
        today = period_at("day", self.now_ms)
        for purse in hold.purses:
            key = purse.key
            if (
                key.period > today and purse not in hold.without
            ):  # until the store replies, it has only its own clock
                raise Broken("money of the next day was spent early")
            self.bill[key] = self.bill.get(key, 0) + call.cost
            if purse in hold.without:
                self.allow(key, call.cost)
            elif call.cost > hold.amount:
                self.allow(key, call.cost - hold.amount)
            cap = self.highest.get(key, self.limits[key.budget]) + self.excess.get(key, 0)
            if self.bill[key] > cap:
                raise Broken(f"a bill of {self.bill[key]} is above {cap}")
        self.post(self.rng.randint(1, 12), lambda: self.end(process, call))

    def allow(self, key: Key, amount: int) -> None:
        self.excess[key] = self.excess.get(key, 0) + amount

    def end(self, process: Process, call: Call) -> None:
        if not process.alive or call not in process.calls:
            return
        if process.stopped_until > self.now_ms:
            later = (process.stopped_until - self.now_ms) // TICK_MS
            self.post(later, lambda: self.end(process, call))
            return
        process.calls.remove(call)
        assert call.hold is not None
        process.purses.settle(call.hold, call.cost)

    def refuse(self, call: Call, why: Refusal) -> None:
        self.stats["refused"] += 1
        if self.now_ms - self.calm_since < 9 * BEAT_MS:
            return
        keys = {Key(name, period_at("day", self.now_ms)) for name in call.names}
        lay = {
            key: sum(min(h) for (k, _), h in self.idle.items() if k == key and len(h) > PATIENCE * 4)
            for key in keys
        }
        if all(amount >= call.amount for amount in lay.values()):
            raise Broken(f"a call of {call.amount} was refused ({why}) while {lay} lay idle")

    # ── beats ─────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, process: Process) -> None:
        is_new = process.purses.flying is None
        if process.ends:
            process.purses.send_home()
        beat = process.purses.beat(self.now, is_last=process.ends)
        if is_new:
            process.written.append(self.now_ms)
            process.sent_ms = self.now_ms
        process.next_ms, process.rung = self.now_ms + BEAT_MS, False
        self.stats["beats"] += 1
        beat = copy.deepcopy(beat)
        if self.kind == "calm" or not self.chance(0.08):  # otherwise it is lost before the commit
            self.post(self.lag(), lambda: self.arrive(process, beat))
        if self.kind != "calm" and self.chance(0.05):  # repeated, much later
            self.post(self.rng.randint(1, 40), lambda: self.arrive(None, beat))

    def arrive(self, process: Process | None, beat: Beat) -> None:
        if self.now_ms < self.away_until:
            return
        before, number = self.granted_to(beat.process), self.number_of(beat.process)
        answer = copy.deepcopy(self.store.receive(beat, self.now_ms, BEAT_MS))
        self.look()
        if answer.is_you and number != self.number_of(beat.process):  # a repeated beat carries nothing new
            self.told |= {
                (name, beat.process): (limit.amount, self.now_ms) for name, limit in beat.limits.items()
            }
            self.look_at_limits(beat, before)
        if process is not None and (
            self.kind == "calm" or not self.chance(0.08)
        ):  # otherwise it is lost after the commit
            self.post(self.lag(), lambda: self.hear(process, answer))

    def number_of(self, process: str) -> int:
        if not isinstance(self.store, MemoryTreasuries) or process not in self.store.processes:
            return 0
        return self.store.processes[process].number

    def granted_to(self, process: str) -> dict[Key, int]:
        if not isinstance(self.store, MemoryTreasuries):
            return {}
        return {key: row.granted for (key, name), row in self.store.purses.items() if name == process}

    def look_at_limits(self, beat: Beat, before: dict[Key, int]) -> None:
        """No grant exceeds the lower of two limits that were both reported within three beats.

        With three limits at the same time, the middle one may be missed for a moment, so that case is not checked.
        """
        if not isinstance(self.store, MemoryTreasuries):
            return
        for key, granted in self.granted_to(beat.process).items():
            told_granted = beat.totals[key].granted if key in beat.totals else 0
            if granted <= max(before.get(key, 0), told_granted):
                continue
            told = [one for (name, _), one in self.told.items() if name == key.budget]
            recent = {limit for limit, at_ms in told if at_ms >= self.now_ms - 9 * BEAT_MS}
            near = [
                limit for limit, at_ms in told if at_ms >= self.now_ms - 3 * BEAT_MS and limit is not None
            ]
            booked = self.store.treasuries[key].booked
            if len(recent) < 3 and near and booked > min(near):
                raise Broken(f"{booked} is booked after a grant, and a limit of {min(near)} was reported")

    def look(self) -> None:
        """Check the store's rows, if they can be read without I/O."""
        if not isinstance(self.store, MemoryTreasuries):
            return
        sums: dict[Key, int] = {}
        for (key, _), row in self.store.purses.items():
            sums[key] = sums.get(key, 0) + row.net
        for key, treasury in self.store.treasuries.items():
            if treasury.limit is not None:
                self.highest[key] = max(self.highest.get(key, 0), treasury.limit)
            if treasury.booked != sums.get(key, 0):
                raise Broken(
                    f"{key}: {treasury.booked} is booked, but the purses add up to {sums.get(key, 0)}"
                )

    def hear(self, process: Process, answer: Reply) -> None:
        if not process.alive:
            return
        if process.stopped_until > self.now_ms:
            later = (process.stopped_until - self.now_ms) // TICK_MS
            self.post(later, lambda: self.hear(process, answer))
            return
        purses = process.purses
        granted = {key: purse.granted for key, purse in purses.purses.items()}
        name, was_flying = purses.name, purses.flying is not None
        purses.hear(answer, self.now)
        if was_flying and answer.is_you and purses.flying is None and purses.name == name:
            other = self.heard.setdefault((name, answer.beat.token), process)
            if other is not process:  # Both copies of a clone have received the reply to the beat in flight.
                for key, purse in purses.purses.items():
                    self.allow(key, purse.granted - granted.get(key, 0))
        if process.ends and answer.beat.is_last and answer.is_you and not purses.has_news():
            process.alive = False
        for purse in purses.purses.values():
            if purse.room < 0:
                raise Broken(f"{purse.key}: spent and held are above what was granted")
            if purse.room != purse.totals().net - purse.spent - purse.held:
                raise Broken(f"{purse.key}: the room {purse.room} is not the rest of the grant")

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────

    def kill(self, process: Process) -> None:
        """Kill a process. What stays booked is at most what it held or waited for since two beats before its last
        answered beat, plus twice the spending since then, plus one bound."""
        process.alive = False
        if not isinstance(self.store, MemoryTreasuries):
            return
        for (key, name), row in self.store.purses.items():
            if name != process.purses.name:
                continue
            purse = process.purses.purses.get(key)
            if purse is None:
                continue  # a purse of a past day, already settled
            stranded = row.net - purse.spent - purse.held
            since = ([0] * 4 + process.written)[-4] - 2 * BEAT_MS
            history = process.track.get(key, [(0, 0)])[-((self.now_ms - since) // TICK_MS + 1) :]
            spent = history[-1][1] - history[0][1]
            if self.kind == "rough":
                self.stats["kills"] += 1
                self.stats["stranded"] += max(0, stranded)
                if stranded > max(held for held, _ in history) + 2 * spent + BOUND:
                    raise Broken(
                        f"a kill left {stranded} booked, more than its calls and two beats of spending"
                    )

    def clone(self, process: Process) -> None:
        """Copy a process with its machine. The copy's connections break, so it books its calls at their bounds."""
        calls, waiting = process.calls, process.waiting
        in_line, process.purses.waiting = process.purses.waiting, []
        process.calls, process.waiting = [], {}
        ring, process.purses._ring = process.purses._ring, lambda: None  # the copy gets its own
        draw, process.purses._draw = process.purses._draw, self.word
        memo: dict[int, Any] = {id(self): self, id(draw): draw}
        holds = [call.hold for call in calls if call.hold is not None]
        twin_purses, twin_holds = copy.deepcopy((process.purses, holds), memo)
        process.calls, process.waiting, process.purses.waiting = calls, waiting, in_line
        process.purses._ring, process.purses._draw = ring, draw
        twin = Process(twin_purses, dict(process.limits))
        twin_purses._ring, twin_purses._draw = lambda: setattr(twin, "rung", True), self.word
        self.processes.append(twin)
        for hold in twin_holds:
            twin_purses.settle(hold, hold.amount)
        for key, purse in twin_purses.purses.items():
            self.allow(key, purse.room)
        if process.purses.flying is not None:
            self.send(twin)

    def fork(self, process: Process) -> None:
        if self.fork_is_empty:
            self.processes.append(self.born())
            return
        twin = self.born()
        memo: dict[int, Any] = {id(self): self}
        in_line, process.purses.waiting = process.purses.waiting, []
        ring, process.purses._ring = process.purses._ring, lambda: None
        twin.purses = copy.deepcopy(process.purses, memo)
        process.purses.waiting, process.purses._ring = in_line, ring
        twin.purses._ring = lambda: setattr(twin, "rung", True)
        twin.purses._draw = self.word
        self.processes.append(twin)

    def move_limits(self) -> None:
        """Change the limits as in a rolling deployment: two versions run at the same time."""
        for process in self.living():
            if process.limits != self.limits:
                self.kill(process)
        share = self.rng.choice((0.6, 1.5))
        self.limits = {name: max(60, int(limit * share)) for name, limit in self.limits.items()}
        self.moved_ms = self.now_ms
        self.processes.append(self.born())

    def restore(self) -> None:
        assert isinstance(self.store, MemoryTreasuries)
        before = {place: row.net for place, row in self.store.purses.items()}
        older = copy.deepcopy(self.older)
        self.store.treasuries, self.store.purses, self.store.processes, self.store.frozen_until_ms = older
        self.told = {}
        for (key, name), net in before.items():
            row = self.store.purses.get((key, name))
            self.allow(key, max(0, net - (row.net if row else 0)))

    def act(self) -> None:
        rng, running = self.rng, self.running()
        busy = self.load * (1 if ((self.now_ms - self.start_ms) // (20 * BEAT_MS)) % 3 else 0.1)
        for process in [one for one in running if not one.ends]:
            for _ in range(rng.choice((0, 1, 2)) if self.chance(busy) else 0):
                self.call(process)
            if self.chance(0.004):
                for _ in range(30):
                    self.call(process)
        if self.kind == "calm" or not running:
            return
        process = rng.choice(running)
        if self.chance(0.006):
            self.kill(process)
        process.ends = process.ends or self.chance(0.01)
        if self.chance(0.006):
            process.stopped_until = self.now_ms + rng.randint(4, 40) * TICK_MS
        if len(self.living()) < 2 or (len(self.living()) < 5 and self.chance(0.01)):
            self.processes.append(self.born())
        if process.alive and self.chance(0.004 if self.fork_is_empty else 0.05):
            self.fork(process)
        if self.chance(0.01) and self.now_ms - self.moved_ms > 16 * BEAT_MS:
            self.move_limits()
        if self.kind == "wild":
            self.act_wildly(process)

    def act_wildly(self, process: Process) -> None:
        if process.alive and self.chance(0.003):
            self.clone(process)
        if self.chance(0.004):
            self.away_until = self.now_ms + self.rng.randint(4, 60) * TICK_MS
        if self.restores:
            assert isinstance(self.store, MemoryTreasuries)
            store = self.store
            if self.chance(0.01) or self.older is None:
                self.older = copy.deepcopy(
                    (store.treasuries, store.purses, store.processes, store.frozen_until_ms)
                )
            if self.chance(0.003):
                self.restore()
        if self.chance(0.003):
            name = self.rng.choice(self.processes).purses.name
            for key, amount in self.store.write_off(name).items():
                self.allow(key, amount)

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> dict[str, int]:
        """Run to the end, with no faults in the last thirty beats; then nothing unspent may stay granted."""
        while self.now_ms < self.end_ms:
            self.now_ms += TICK_MS
            while self.mail and self.mail[0][0] <= self.now_ms:
                heapq.heappop(self.mail)[2]()
            is_quiet = self.now_ms > self.end_ms - 30 * BEAT_MS
            if is_quiet and self.kind != "calm":
                self.kind, self.away_until = "calm", -1
                self.calm_since = self.now_ms + 12 * BEAT_MS
            if not is_quiet:
                self.act()
            self.beat()
            self.note()
        self.finish()
        return self.stats

    def beat(self) -> None:
        for process in self.running():
            purses = process.purses
            idly = (self.now_ms // TICK_MS) % 12 == 0
            is_due = self.now_ms >= process.next_ms and (
                purses.flying is not None or purses.has_news() or idly or process.ends
            )
            if is_due or (process.rung and purses.flying is None):
                self.send(process)

    def note(self) -> None:
        """Record what is held, spent and idle, to judge kills and refusals by."""
        for process in self.running():
            for key, purse in process.purses.purses.items():
                wanted = sum(
                    call.amount
                    for call, waiter in process.waiting.values()
                    if any(budget.purse is purse for budget in waiter.budgets)
                )
                process.track[key] = [*process.track.get(key, [])[-99:], (purse.held + wanted, purse.spent)]
        idle: dict[tuple[Key, int], int] = {}
        if isinstance(self.store, MemoryTreasuries):
            for key, row in self.store.treasuries.items():
                idle[key, 0] = max(0, (row.limit or 0) - row.booked)
        for process in self.running():
            for key, purse in process.purses.purses.items():
                idle[key, id(process)] = purse.room
        self.idle = {
            place: [*self.idle.get(place, []), amount][-PATIENCE * 4 - 1 :] for place, amount in idle.items()
        }

    def finish(self) -> None:
        """Check that nothing of today stays granted.

        Money of a past day may stay granted if the store has lost the report that it was returned.
        """
        if not isinstance(self.store, MemoryTreasuries):
            return
        today = period_at("day", self.now_ms)
        for process in self.running():
            for (key, name), row in self.store.purses.items():
                if key.period == today and name == process.purses.name and row.net > row.spent:
                    raise Broken(f"without traffic {row.net - row.spent} of {key} stayed granted")
