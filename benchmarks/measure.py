"""Measuring on noisy machines.

All contenders run in each round, in random order, and ratios are taken inside a round: what slows the machine down
slows all of them. The median over the rounds is reported. Absolute times of one contender move by half between runs,
ratios by a tenth; so goals are ratios.
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
class Series:
    """Seconds for one operation, by round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median_us(self) -> float:
        return statistics.median(self.seconds) * 1e6


@dataclass(slots=True)
class Table:
    """The contenders of one benchmark, by name; each has a time for each round."""

    title: str
    series: dict[str, Series]

    def ratio(self, name: str, to: str, *, less: str | None = None) -> float:
        """The median over rounds of `name` / `to`; with `less`, both without the time of `less`."""
        rounds = range(len(self.series[name].seconds))
        return statistics.median(self._net(name, less, i) / self._net(to, less, i) for i in rounds)

    def over_us(self, name: str, bare: str) -> float:
        """The median of what `name` costs over `bare`, in microseconds."""
        pairs = zip(self.series[name].seconds, self.series[bare].seconds, strict=True)
        return statistics.median(a - b for a, b in pairs) * 1e6

    def _net(self, name: str, less: str | None, i: int) -> float:
        off = self.series[less].seconds[i] if less else 0.0
        return self.series[name].seconds[i] - off


async def compare(title: str, contenders: Mapping[str, AsyncRun], *, times: int, rounds: int = 7) -> Table:
    """Run each contender `times` times in each of `rounds` rounds."""
    table = Table(title, {name: Series() for name in contenders})
    for run in contenders.values():
        await run(max(times // 20, 10))
    for _ in range(rounds):
        names = list(contenders)
        random.shuffle(names)
        for name in names:
            gc.collect()
            began = time.perf_counter()
            await contenders[name](times)
            table.series[name].seconds.append((time.perf_counter() - began) / times)
    return table


async def add_up(times: int) -> None:
    """A thousand additions in a warmed function's loop, `times` times: a yardstick for the machine."""
    for _ in range(times):
        _add()


def _add() -> int:
    total = 0
    for i in range(1000):
        total += i
    return total


async def additions_us() -> float:
    """The yardstick alone, for the machine's description."""
    table = await compare("The machine", {"additions": add_up}, times=2000)
    return table.series["additions"].median_us


def machine() -> dict[str, str]:
    """What the numbers were taken on."""
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
