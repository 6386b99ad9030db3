"""Priming and probe units of a fleet, decided without a store: every case, and whole recoveries."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.policies.fleet import LATELY_S, GuardKey, Opinion, ProbeAsk
from koo.policies.priming import is_primed, why_primed
from koo.policies.probing import (
    HELD_BEATS,
    RAMP_FACTOR,
    UNUSED_BEATS,
    Sight,
    Terms,
    Unit,
    granted,
    units_of_fleet,
)

KEY = GuardKey("claude", "")
RECOVERY_S = 30.0


def test_the_others_are_primed_by_three_processes_that_are_half_of_those_concerned() -> None:
    """Checked for every fleet of up to forty processes."""
    for concerned in range(41):
        for down in range(concerned + 1):
            primed = is_primed(down, concerned)
            assert primed == (down >= 3 and down / concerned >= 0.5)
            if primed:
                assert is_primed(down + 1, concerned + 1), "one more open breaker does not end the priming"


def test_the_reason_for_priming_names_the_numbers() -> None:
    assert why_primed(Opinion(KEY, 5, 8, 0.0)) == "5 of 8 processes have it open"
    assert why_primed(Opinion(KEY, 3, 7, 0.0)) == why_primed(None) == ""


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 5))
def test_no_more_units_are_granted_than_exist(
    wanted: int, others: int, recovered: int, concurrency: int
) -> None:
    units = units_of_fleet(concurrency, recovered)
    assert units >= concurrency
    assert 0 <= granted(wanted, units, others) <= max(0, units - others)


@dataclass
class Process:
    """A process that waits for recovery, with a call from time to time, and its units."""

    calls_every_s: float
    unit: Unit = field(default_factory=Unit)
    given: int = 0
    oks: int = 0
    opens_until: float = 0.0
    closed: bool = False
    probe_ends_at: float | None = None
    next_call: float = 0.0
    stopped_until: float = 0.0


class Fleet:
    """Processes and the store's rows of units on one clock: as `storage/probe_units.py` keeps them.

    `down_until`: until when each probe fails. A probe takes `probe_s`; two successes close a breaker.
    """

    def __init__(self, count: int, draw: random.Random, *, down_until: float, probe_s: float = 0.3) -> None:
        self.processes = [Process(draw.choice([0.2, 1.0, 5.0])) for _ in range(count)]
        self.down_until, self.probe_s, self.draw = down_until, probe_s, draw
        self.rows: dict[int, tuple[int, float]] = {}
        self.proved: dict[int, float] = {}
        self.now = 0.0
        self.began: list[float] = []
        self.worst = 0
        self.first_success: float | None = None
        self.beats = [draw.random() for _ in self.processes]

    def cap(self) -> int:
        return units_of_fleet(1, len([at for at in self.proved.values() if at > self.now - LATELY_S]))

    def run(self, until_s: float) -> None:
        while self.now < until_s and not all(one.closed for one in self.processes):
            self.now += 0.05
            for number, process in enumerate(self.processes):
                if self.now < process.stopped_until:
                    continue
                self.end_probe(number, process)
                if self.now >= self.beats[number]:
                    self.beats[number] = self.now + 1.0
                    self.beat(number, process)
                self.call(process)
            running = sum(one.probe_ends_at is not None for one in self.processes)
            assert running <= self.cap(), f"{running} probes at {self.now}"

    def end_probe(self, number: int, process: Process) -> None:
        if process.probe_ends_at is None or self.now < process.probe_ends_at:
            return
        process.probe_ends_at = None
        if self.now < self.down_until:
            process.oks, process.opens_until = 0, self.now + RECOVERY_S * (1 + 0.2 * self.draw.random())
        else:
            self.first_success = self.first_success or self.now
            process.oks += 1
            process.closed = process.oks >= 2
        self.beats[number] = self.now  # a change is reported in a separate beat

    def call(self, process: Process) -> None:
        if process.closed or self.now < process.next_call:
            return
        process.next_call = self.now + process.calls_every_s
        if self.now >= process.opens_until and process.probe_ends_at is None and process.unit.count:
            process.given += 1
            process.probe_ends_at = self.now + self.probe_s
            self.began.append(self.now)

    def beat(self, number: int, process: Process) -> None:
        if self.first_success is not None:
            process.opens_until = min(process.opens_until, self.now)  # another process's probe has succeeded
        sight = Sight(
            is_closed=process.closed,
            is_open=self.now < process.opens_until,
            is_due=not process.closed and process.opens_until - self.now < 1.0,
            is_probing=process.probe_ends_at is not None,
            is_wanted=True,
            given=process.given,
        )
        ask = process.unit.ask(Terms(KEY, 1, RECOVERY_S, 1.0), sight, self.now)
        if ask is not None:
            self.hand_out(number, process, ask)
        if process.closed:
            self.proved.setdefault(number, self.now)

    def hand_out(self, number: int, process: Process, ask: ProbeAsk) -> None:
        if ask.is_kept:
            self.rows[number] = (ask.units, self.now + ask.for_s)
        elif not ask.units:
            self.rows.pop(number, None)
        else:
            others = [row for other, row in self.rows.items() if other != number and row[1] > self.now]
            count = granted(ask.units, self.cap(), sum(units for units, _ in others))
            if count:
                self.rows[number] = (count, self.now + ask.for_s)
            process.unit.hear(count, process.given, self.now)


@pytest.mark.parametrize("seed", range(8))
def test_while_a_provider_is_down_a_fleet_probes_once_per_recovery_time(seed: int) -> None:
    fleet = Fleet(20, random.Random(seed), down_until=1e9)
    fleet.run(300.0)
    gaps = [later - earlier for earlier, later in zip(fleet.began, fleet.began[1:], strict=False)]
    assert len(fleet.began) >= 6 and min(gaps) >= RECOVERY_S


@pytest.mark.parametrize(("seed", "count"), [(seed, count) for seed in range(4) for count in (2, 8, 100)])
def test_a_fleet_recovers_in_rounds_that_double(seed: int, count: int) -> None:
    """At no moment do more processes probe than there are units."""
    fleet = Fleet(count, random.Random(seed), down_until=50.0)
    fleet.run(300.0)
    assert all(one.closed for one in fleet.processes)
    assert fleet.first_success is not None
    assert fleet.now - fleet.first_success < 60


def test_a_killed_process_loses_its_unit_after_five_beats() -> None:
    fleet = Fleet(2, random.Random(1), down_until=0.0)
    dead, other = fleet.processes
    other.calls_every_s = 0.2
    fleet.beats = [0.0, 0.5]
    fleet.run(0.3)
    assert dead.unit.count == 1
    dead.stopped_until, dead.probe_ends_at = 1e9, None
    dead.closed = False
    fleet.run(HELD_BEATS + 4.0)
    assert other.closed


def test_an_unused_unit_is_given_back_and_other_processes_come_first() -> None:
    unit, terms = Unit(), Terms(KEY, 1, RECOVERY_S, 1.0)
    idle = Sight(is_closed=False, is_open=False, is_due=True, is_probing=False, is_wanted=True, given=7)
    assert unit.ask(terms, idle, 0.0) == ProbeAsk(KEY, 1, HELD_BEATS, 1, False)
    unit.hear(1, 7, 0.0)
    assert unit.ask(terms, idle, 2.9) == ProbeAsk(KEY, 1, HELD_BEATS, 1, True)
    assert unit.ask(terms, idle, UNUSED_BEATS) == ProbeAsk(KEY, 0, 0.0, 1, False)
    assert unit.ask(terms, idle, UNUSED_BEATS + 2.9) is None
    assert unit.ask(terms, idle, UNUSED_BEATS + 3.0) == ProbeAsk(KEY, 1, HELD_BEATS, 1, False)


def test_no_process_requests_a_unit_for_a_guard_without_calls() -> None:
    sight = Sight(is_closed=False, is_open=False, is_due=True, is_probing=False, is_wanted=False, given=0)
    assert Unit().ask(Terms(KEY, 1, RECOVERY_S, 1.0), sight, 0.0) is None


def test_the_ramp_of_probes_is_that_of_a_breaker_that_has_closed() -> None:
    assert [units_of_fleet(1, recovered) for recovered in (0, 1, 3, 7)] == [1, 2, 6, 14]
    assert units_of_fleet(5, 1) == 5 and RAMP_FACTOR == 2
