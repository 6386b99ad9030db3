"""One guarded call with everything on, beside the stack that people assemble by hand.

Everything on: a deadline, the breaker, three windows, a budget in memory, metrics. The stack by hand: stamina (retry),
purgatory (breaker), limits with three fixed windows, prometheus-client (counter and histogram).
"""

from __future__ import annotations

import time
from decimal import Decimal

import limits
import limits.aio.storage
import limits.aio.strategies
import prometheus_client
import purgatory
import stamina

from benchmarks.measure import Table, add_up, compare
from koo.deadlines import Deadlines
from koo.errors import BudgetExceeded, CircuitOpen
from koo.guard import Gates, Guard
from koo.options import GuardOptions
from koo.policies.breaker import FORCED_OPEN
from koo.policies.budget import Budget, Held
from koo.policies.concurrency import Slots
from koo.policies.limiter import DayCount, Limits, SlidingCount

MANY = 10**9
YARDSTICK = "a thousand additions"


async def bare() -> int:
    return 1


class Toll:
    """Money in memory: the worst case is held before the call, and what it cost is booked after it."""

    __slots__ = ("_budget", "_held")

    BOUND_USD, COST_USD = Decimal("0.001"), Decimal("0.0001")

    def __init__(self) -> None:
        self._budget = Budget(Decimal(1_000_000), time.monotonic() + 40_000.0, 1)
        self._held: Held | None = None

    def hold(self, deadline: float) -> None:
        self._held = self._budget.hold(self.BOUND_USD, time.monotonic())
        if self._held is None:
            raise BudgetExceeded("bench", "the budget is used up")

    def settle(self) -> None:
        if self._held is not None:
            self._budget.settle(self._held, self.COST_USD)

    def release(self) -> None:
        if self._held is not None:
            self._budget.release(self._held)


def make_guard(name: str = "bench", deadlines: Deadlines | None = None) -> Guard:
    """A guard with three windows that never fill."""
    now = time.monotonic()
    windows = Limits(
        SlidingCount("requests a minute", MANY, 60.0, now),
        SlidingCount("requests an hour", MANY, 3600.0, now),
        DayCount("requests a day", MANY, now + 40_000.0, 1),
    )
    gates = Gates(limits=windows, slots=Slots(1000))
    return Guard(name, GuardOptions(idempotent=True), deadlines=deadlines or Deadlines(), gates=gates)


def make_stack() -> object:
    """The stack by hand, as its documentation puts it together."""
    breakers = purgatory.AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=60)
    limiter = limits.aio.strategies.FixedWindowRateLimiter(limits.aio.storage.MemoryStorage())
    windows = [limits.parse(f"{MANY}/{unit}") for unit in ("minute", "hour", "day")]
    registry = prometheus_client.CollectorRegistry()
    calls = prometheus_client.Counter("calls", "Calls", ["outcome"], registry=registry)
    seconds = prometheus_client.Histogram("seconds", "Latency", ["service"], registry=registry)

    @stamina.retry(on=OSError, attempts=4)
    async def call() -> int:
        for window in windows:
            if not await limiter.hit(window, "bench"):
                raise RuntimeError("limited")
        began = time.perf_counter()
        async with await breakers.get_breaker("bench"):
            result = await bare()
        calls.labels("success").inc()
        seconds.labels("bench").observe(time.perf_counter() - began)
        return result

    return call


async def call_table() -> Table:
    """Bare await, koo with and without money, and the stack by hand."""
    guard = make_guard()
    toll = Toll()
    stack = make_stack()

    async def run_bare(times: int) -> None:
        for _ in range(times):
            await bare()

    async def run_koo(times: int) -> None:
        for _ in range(times):
            await guard.call(bare, toll=toll)

    async def run_without_money(times: int) -> None:
        for _ in range(times):
            await guard.call(bare)

    async def run_stack(times: int) -> None:
        for _ in range(times):
            await stack()  # type: ignore[operator]

    contenders = {
        "bare await": run_bare,
        YARDSTICK: add_up,
        "koo, everything on": run_koo,
        "koo, without money": run_without_money,
        "stamina + purgatory + limits x3 + prometheus": run_stack,
    }
    return await compare("A guarded call", contenders, times=4000)


class Fresh(Exception):
    """Three fields, as a refusal has."""

    def __init__(self, service: str, reason: str, retry_after_s: float) -> None:
        self.service = service
        self.reason = reason
        self.retry_after_s = retry_after_s


async def refusal_table() -> Table:
    """A refusal by an open breaker, over raising and catching a fresh exception from an awaited coroutine."""
    guard = make_guard()
    guard.set_override(FORCED_OPEN)

    async def fail() -> None:
        raise Fresh("bench", "open", 1.0)

    async def run_raise(times: int) -> None:
        for _ in range(times):
            try:
                await fail()
            except Fresh:
                pass

    async def run_koo(times: int) -> None:
        for _ in range(times):
            try:
                await guard.call(bare)
            except CircuitOpen:
                pass

    return await compare("A refusal", {"raise and catch": run_raise, "koo, open": run_koo}, times=20_000)


async def many_table(count: int = 10_000) -> Table:
    """Calls over one guard, a thousand, and ten thousand, in random order."""
    import random

    deadlines = Deadlines()
    guards = [make_guard(f"bench {i}", deadlines) for i in range(count)]
    order = random.Random(7).choices(range(count), k=20_000)

    def runner(among: int):  # type: ignore[no-untyped-def]
        async def run(times: int) -> None:
            for i in range(times):
                await guards[order[i % 20_000] % among].call(bare)

        return run

    contenders = {"one guard": runner(1), "1,000 guards": runner(1000), "10,000 guards": runner(count)}
    return await compare("Many guards", contenders, times=20_000, rounds=5)


async def report() -> dict[str, float]:
    """The figures that have goals."""
    calls = await call_table()
    refusals = await refusal_table()
    many = await many_table()
    over = calls.over_us("koo, everything on", "bare await")
    stack = "stamina + purgatory + limits x3 + prometheus"
    return {
        "guarded call over a bare await, us": over,
        "guarded call over a bare await, in thousands of additions": over / calls.series[YARDSTICK].median_us,
        "guarded call without money over a bare await, us": calls.over_us("koo, without money", "bare await"),
        "stack by hand over a bare await, us": calls.over_us(stack, "bare await"),
        "stack by hand / koo": calls.ratio(stack, "koo, everything on", less="bare await"),
        "refusal over raise and catch, us": refusals.over_us("koo, open", "raise and catch"),
        "10,000 guards / one": many.ratio("10,000 guards", "one guard"),
        "10,000 guards / 1,000": many.ratio("10,000 guards", "1,000 guards"),
    }
