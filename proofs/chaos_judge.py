"""The conditions that a chaos run must meet, and how they are checked."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from statistics import linear_regression

from prometheus_client.parser import text_string_to_metric_families

from koo.testing.postgres import PostgresServer
from proofs.chaos_faults import Fault
from proofs.chaos_world import Child, Sample

PICO = Decimal(10**12)
MIB_PER_MINUTE_MAX = 1.0
"""If each of some 60 calls a second left a kilobyte behind, that would be 3.5 MiB per minute. An allocator keeps less
memory than that, and stops growing."""
WARM = 2
"""This many of the first pauses are the warm-up: caches are full only after each fault has occurred once."""
DESCRIPTORS_MORE, THREADS_MORE, TASKS_MORE = 12, 6, 6
"""Allowed above the first pause: a probe, a check or a beat that happens to run, and connections within the pool."""
LINES_A_MINUTE_MAX = 600
"""Ten a second, under two concurrent faults and some 60 calls a second. Each event has a line, and so do the first
failed call and each later count. Audit and request lines are left out, because every act and every failed request is
promised one."""
FIRES_LATE_S = 6.0
"""A pending alert, a beat, and the interval of koo's checks."""


@dataclass
class Struck:
    """One fault, as it occurred."""

    fault: Fault
    began_s: float
    ended_s: float = 0.0


@dataclass
class Pause:
    """A check of both processes without any requests, and how long it took until nothing was open."""

    at_s: float
    took_s: float
    open: dict[str, str]
    samples: dict[str, Sample]
    database: int
    providers: int


@dataclass
class Course:
    """The observations of a run."""

    struck: list[Struck] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    alerts: list[tuple[float, set[tuple[str, str, str]]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    healthy_s: float | None = None


# ── alerts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Told:
    """When a fault's alert fired and ended, in seconds from the fault's beginning and from its end; None: never."""

    struck: Struck
    fired_s: float | None
    ended_s: float | None
    is_followed: bool

    def wrong(self) -> str:
        fault = self.struck.fault
        if self.fired_s is None:
            return f"{fault.name}: none of {', '.join(sorted(fault.alerts))} fired"
        if not self.is_followed and (self.ended_s is None or self.ended_s > fault.ends_s):
            return f"{fault.name}: its alert had not ended {fault.ends_s:g} s after it"
        return ""


def told(course: Course) -> list[Told]:
    """The alert of each fault that has one."""
    return [_told(course, one) for one in course.struck if one.fault.alerts]


def _told(course: Course, one: Struck) -> Told:
    def holds(seen: set[tuple[str, str, str]]) -> bool:
        return any(
            kind in one.fault.alerts and where.startswith(one.fault.component) for _, kind, where in seen
        )

    last = one.ended_s + FIRES_LATE_S
    fired = [at for at, seen in course.alerts if one.began_s <= at <= last and holds(seen)]
    ended = [at for at, seen in course.alerts if at > max([one.ended_s, *fired[:1]]) and not holds(seen)]
    until = ended[0] if ended else float("inf")
    followed = any(
        other.fault.component == one.fault.component and one.ended_s <= other.began_s <= until
        for other in course.struck
        if other is not one
    )
    return Told(
        one,
        fired[0] - one.began_s if fired else None,
        max(0.0, ended[0] - one.ended_s) if ended else None,
        followed,
    )


# ── what grows ────────────────────────────────────────────────────────────────────────────────────────────────────────


def slope_mib(pauses: Sequence[Pause], what: str) -> float:
    """The memory growth of a process in the pauses after the warm-up, MiB per minute."""
    points = [(one.at_s / 60, one.samples[what].rss_mib) for one in pauses[WARM:]]
    if len(points) < 2:
        return 0.0
    return linear_regression(*zip(*points, strict=True)).slope


def growth(pauses: Sequence[Pause], children: Iterable[Child]) -> Iterator[str]:
    """Values in a later pause that exceed what is allowed."""
    for child in children:
        slope = slope_mib(pauses, child.what)
        if slope > MIB_PER_MINUTE_MAX:
            yield f"{child.what}: {slope:.2f} MiB a minute more, above {MIB_PER_MINUTE_MAX:g}"
        first = pauses[0].samples[child.what]
        for pause in pauses[1:]:
            now = pause.samples[child.what]
            for name, before, after, more in (
                ("descriptors", first.descriptors, now.descriptors, DESCRIPTORS_MORE),
                ("threads", first.threads, now.threads, THREADS_MORE),
                ("tasks", tasks(first), tasks(now), TASKS_MORE),
            ):
                if after > before + more:
                    yield f"{child.what}: {after} {name} at {pause.at_s:.0f} s, and {before} in the first pause"


def tasks(sample: Sample) -> int:
    return sum(sample.said.get("tasks", {}).values())


def open_in(said: dict[str, object]) -> dict[str, object]:
    """What is held or still running without any requests, and should not be."""
    names = ("held_pico", "waiting", "permits", "admitted", "scopes")
    return {name: said[name] for name in names if said.get(name)}


def lines_a_minute(lines: Sequence[float]) -> int:
    """The most lines in any minute."""
    most = begin = 0
    for number, at in enumerate(lines):
        while at - lines[begin] > 60:
            begin += 1
        most = max(most, number - begin + 1)
    return most


# ── counters ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def counters(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All series of an exposition that may only grow."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


def falls(texts: Sequence[str]) -> list[str]:
    """Each counter that fell or disappeared."""
    found = []
    for before, after in pairwise([counters(text) for text in texts]):
        for series, value in before.items():
            now = after.get(series)
            if now is None:
                found.append(f"{series} was {value:g} and is gone")
            elif now < value:
                found.append(f"{series} fell from {value:g} to {now:g}")
    return found


# ── money and rows ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Books:
    """The final sums in both stores, USD."""

    entries: Decimal
    marked: Decimal
    unsettled: Decimal

    def wrong(self, bill: Decimal) -> Iterator[str]:
        if bill > self.entries:
            yield f"the providers' bill of {bill} is above the ledgers' {self.entries}"
        if bill < self.entries - self.marked:
            yield f"the ledgers say {self.entries}, of which {self.marked} is estimated, above the bill of {bill}"
        if self.unsettled:
            yield f"{self.unsettled} is left unsettled"


def read_books(server: PostgresServer, file: str) -> Books:
    """Read the tables directly, without koo."""
    with closing(sqlite3.connect(file)) as disk:
        asks: list[Callable[[str], object]] = [server.sql, lambda words: disk.execute(words).fetchone()[0]]

        def usd(words: str) -> Decimal:
            return sum((Decimal(int(str(ask(words) or 0))) for ask in asks), Decimal(0)) / PICO

        return Books(
            usd("SELECT sum(amount) FROM koo_entries"),
            usd("SELECT sum(amount) FROM koo_entries WHERE estimated = 1"),
            usd(
                "SELECT sum(granted - back + over_granted - spent) FROM koo_purses WHERE budget LIKE 'service/%'"
            ),
        )


def rows_wrong(said: str, rows: Sequence[int]) -> Iterator[str]:
    """`said`: the application's report at its end; `rows`: those of the table."""
    _, _, words = said.partition("ROWS")
    words, _, failed = words.partition("FAILED")
    known, _, perhaps = words.partition("UNKNOWN")
    acknowledged, unknown = set(map(int, known.split())), set(map(int, perhaps.split()))
    if not acknowledged:
        yield "the application reports no written row"
    if len(rows) != len(set(rows)):
        yield f"{len(rows) - len(set(rows))} rows exist twice"
    if lost := acknowledged - set(rows):
        yield f"{len(lost)} acknowledged rows are missing"
    if more := set(rows) - acknowledged - unknown:
        heard = json.loads(failed or "{}")
        words = "; ".join(heard.get(str(row), "nothing") for row in sorted(more)[:5])
        yield f"{len(more)} rows exist although their callers got an error: {words}"
