"""Measure on noisy machines.

All contenders run in each round, in random order, and ratios are computed within a round, so anything that slows the
machine down slows all of them. The median over the rounds is reported. A contender's absolute times differ by half
between runs, ratios by a tenth, so the goals are ratios.
"""

from __future__ import annotations

import asyncio
import gc
import platform
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

AsyncRun = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class Report:
    """The results of a subject: each figure's values by round, and why some peers were not measured."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        """Add one round's value of a figure."""
        self.figures.setdefault(name, []).append(value)

    def add(self, other: Report) -> None:
        self.figures.update(other.figures)
        self.not_measured.update(other.not_measured)


def noise(values: list[float]) -> float | None:
    """Half the distance between the quartiles, as a share of the median; None for too few rounds."""
    if len(values) < 4:
        return None
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / 2 / abs(median) if median else None


@dataclass(slots=True)
class Table:
    """Seconds per operation of each contender, by round; `cpu_s` is this process's processor time."""

    seconds: dict[str, list[float]]
    cpu_s: dict[str, list[float]] = field(default_factory=dict)

    def ratios(self, name: str, to: str, *, less: str | None = None) -> list[float]:
        """`name` / `to` in each round; with `less`, the time of `less` is subtracted from both first."""
        return [a / b for a, b in zip(self._net(name, less), self._net(to, less), strict=True)]

    def over_us(self, name: str, bare: str) -> list[float]:
        """The cost of `name` over `bare` in each round, in microseconds."""
        return [seconds * 1e6 for seconds in self._net(name, bare)]

    def _net(self, name: str, less: str | None) -> list[float]:
        if less is None:
            return self.seconds[name]
        return [a - b for a, b in zip(self.seconds[name], self.seconds[less], strict=True)]


async def compare(
    contenders: Mapping[str, AsyncRun], *, times: int | Mapping[str, int], rounds: int
) -> Table:
    """Run each contender this many times in each round; `times` overrides the number for slow ones."""
    of = {name: times if isinstance(times, int) else times[name] for name in contenders}
    table = Table({name: [] for name in contenders}, {name: [] for name in contenders})
    for name, run in contenders.items():
        await run(max(of[name] // 20, 10))
    for _ in range(rounds):
        names = list(contenders)
        random.shuffle(names)
        for name in names:
            gc.collect()
            began, began_cpu = time.perf_counter(), time.process_time()
            await contenders[name](of[name])
            table.seconds[name].append((time.perf_counter() - began) / of[name])
            table.cpu_s[name].append((time.process_time() - began_cpu) / of[name])
    return table


async def add_up(times: int) -> None:
    """A thousand additions in a warm function's loop, `times` times: a yardstick for the machine's speed."""
    for _ in range(times):
        _add()


def _add() -> int:
    total = 0
    for i in range(1000):
        total += i
    return total


async def additions_us() -> float:
    """The yardstick alone, for the machine's description."""
    table = await compare({"additions": add_up}, times=2000, rounds=7)
    return statistics.median(table.seconds["additions"]) * 1e6


def machine() -> dict[str, str]:
    """The machine that the figures were measured on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "additions_us": f"{asyncio.run(additions_us()):.2f}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
