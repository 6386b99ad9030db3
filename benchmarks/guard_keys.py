"""The cost of many tenants: calls over one guard, a thousand and ten thousand, in random order, compared with
`limits`.

In the comparison each call gives the loop one turn, as every call does that really waits for something. In that turn
the cleanup task that `limits` starts for a hit looks at all its keys.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.guard_peers import bare, fixed_windows
from benchmarks.measure import AsyncRun, Report, compare
from benchmarks.peers import NotMeasured
from koo.deadlines import Deadlines
from koo.guard import Guard

COUNTS = (1, 1000, 10_000)
ORDER = 20_000
KOO, PEER = "koo", "limits x3"
TIMES = {1: 4000, 1000: 1000, 10_000: 200}
"""Calls of `limits` to measure: with ten thousand keys, each takes more than a millisecond."""

MakeGuard = Callable[[str, Deadlines], Guard]


async def turn() -> None:
    await asyncio.sleep(0)


def shuffled(count: int) -> list[int]:
    return random.Random(7).choices(range(count), k=ORDER)


def over_guards(guards: list[Guard], operation: Callable[[], Awaitable[Any]]) -> AsyncRun:
    order = shuffled(len(guards))

    async def run(times: int) -> None:
        for i in range(times):
            await guards[order[i % ORDER]].call(operation)

    return run


async def over_keys(count: int) -> AsyncRun:
    """`limits` with this many live keys."""
    hit = fixed_windows()
    keys = [f"bench {i}" for i in range(count)]
    for key in keys:
        await hit(key)
    order = shuffled(count)

    async def run(times: int) -> None:
        for i in range(times):
            await hit(keys[order[i % ORDER]])
            await turn()

    return run


async def alone(rounds: int, guards: list[Guard]) -> Report:
    """koo's own goals: only the guards."""
    contenders = {f"{count}": over_guards(guards[:count], bare) for count in COUNTS}
    table = await compare(contenders, times=20_000, rounds=rounds)
    return Report(
        {
            "10,000 guards / one": table.ratios("10000", "1"),
            "10,000 guards / 1,000": table.ratios("10000", "1000"),
        }
    )


async def beside(rounds: int, guards: list[Guard]) -> Report:
    """koo and `limits`, each call with one turn of the loop, whose time is subtracted."""

    async def run_turns(times: int) -> None:
        for _ in range(times):
            await turn()

    contenders: dict[str, AsyncRun] = {"turn": run_turns}
    times = {"turn": 4000}
    report = Report()
    for count in COUNTS:
        own, other = (f"{who}: with {count:,} keys, us" for who in (KOO, PEER))
        contenders[own] = over_guards(guards[:count], turn)
        times[own] = 4000
        try:
            contenders[other] = await over_keys(count)
            times[other] = TIMES[count]
        except NotMeasured as error:
            report.not_measured[other] = str(error)
    table = await compare(contenders, times=times, rounds=rounds)
    for name in contenders.keys() - {"turn"}:
        report.figures[name] = table.over_us(name, "turn")
    return report


async def report(make_guard: MakeGuard, rounds: int) -> Report:
    deadlines = Deadlines()
    guards = [make_guard(f"bench {i}", deadlines) for i in range(COUNTS[-1])]
    found = await alone(rounds, guards)
    found.add(await beside(rounds, guards))
    return found
