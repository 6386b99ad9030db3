"""A guard on virtual time, and checks that everything it takes is returned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from koo.clock import Clock
from koo.deadlines import Deadlines
from koo.errors import BudgetExceeded, Kind, RateLimited, ServiceFailed
from koo.events import Event
from koo.gates import Gates
from koo.guard import Guard
from koo.options import BreakerOptions, GuardOptions, LimitOptions, RetryOptions
from koo.policies.breaker import OPEN
from koo.policies.bulkhead import Bulkhead
from koo.policies.limiter import Count, DayCount, Limits, SlidingCount
from koo.policies.treatment import classify_error
from koo.policies.verdict import Classify
from koo.refusals import SERVICES, Family
from koo.testing.clock import BEGIN_S, VirtualClock, run_virtual
from koo.testing.taken import taken_of_gates, taken_of_guard

__all__ = ["BEGIN_S", "run_virtual"]


def no_jitter() -> float:
    return 0.0


class Wallet:
    """A charge that records how each hold ended. `wait_s`: a slow store; `refuse`: the budget is spent."""

    def __init__(self, wait_s: float = 0.0, *, refuse: bool = False) -> None:
        self.wait_s, self.refuse = wait_s, refuse
        self.held = self.settled = self.released = 0

    async def hold(self, deadline: float) -> None:
        if self.wait_s:
            await asyncio.sleep(self.wait_s)
        if self.refuse:
            raise BudgetExceeded("money", "the day's budget is spent", 3600.0)
        self.held += 1

    def settle(self) -> None:
        self.settled += 1

    def release(self) -> None:
        self.released += 1

    @property
    def open(self) -> int:
        """The number of holds that have not ended."""
        return self.held - self.settled - self.released


def hear(guard: Guard, limit: float, remaining: float, resets_in_s: float) -> None:
    """Feed the pacer as if the last response reported this provider limit."""
    sent = guard.breaker.given
    guard.pacer.learn([(limit, remaining, resets_in_s, "requests")], sent, sent, guard.now())
    guard.gates.watch_pace(guard.pacer)


def minute_limit(per_minute: int) -> Limits:
    now = asyncio.get_running_loop().time()
    counts: list[Count] = [
        SlidingCount("requests a minute", per_minute, 60.0, now),
        SlidingCount("requests an hour", 10_000, 3600.0, now),
        DayCount("requests a day", 100_000, now + 40_000.0, 7),
    ]
    return Limits(*counts)


def make_guard(
    *,
    name: str = "claude",
    model: str | None = None,
    per_minute: int = 10_000,
    limits: Limits | None = None,
    bulkhead: Bulkhead | None = None,
    attempts: int = 1,
    idempotent: bool = True,
    family: Family = SERVICES,
    classify: Classify = classify_error,
    events: list[Event] | None = None,
    publish: Callable[[Event], None] | None = None,
    breaker: BreakerOptions | None = None,
    retry: dict[str, Any] | None = None,
    draw: Callable[[], float] = no_jitter,
    clock: Clock | None = None,
    **options: Any,
) -> Guard:
    """Create a guard on the virtual loop, or with a clock. Without `attempts` nothing is repeated."""
    made = GuardOptions(
        idempotent=idempotent,
        breaker=breaker or BreakerOptions(),
        retry=RetryOptions(attempts_max=attempts, **(retry or {})),
        limits=LimitOptions(),
        **options,
    )
    listener = publish or (events.append if events is not None else None)
    gates = Gates(
        name, made, deadlines=Deadlines(), family=family, limits=limits or minute_limit(per_minute),
        bulkhead=bulkhead, clock=clock or VirtualClock(), draw=draw, publish=listener,
    )  # fmt: skip
    return Guard(gates, model=model, classify=classify)


def make_peers(*models: str, **about: Any) -> list[Guard]:
    """Guards of several models of one service, which share outages like those of a `Service`."""

    def spread(met_by: Guard, in_row: bool) -> None:
        for guard in peers:
            if guard is not met_by:
                guard.count_outage(in_row, met_by.breaker.last_error)

    classify = about.pop("classify", classify_error)
    gates = make_guard(**about).gates
    peers = [Guard(gates, model=model, classify=classify, on_outage=spread) for model in models]
    return peers


# ── operations ────────────────────────────────────────────────────────────────────────────────────────────────────


async def answer() -> str:
    return "answer"


async def answer_in(delay_s: float) -> str:
    await asyncio.sleep(delay_s)
    return "answer"


async def fail() -> str:
    raise ServiceFailed("claude", "it is down", kind=Kind.SERVER_ERROR)


async def reset_by_peer() -> str:
    raise ConnectionResetError("reset by peer")


async def hang() -> str:
    await asyncio.sleep(1e6)
    return "never"


def throttled(
    retry_after_s: float | None = None, kind: Kind = Kind.THROTTLED
) -> Callable[[], Awaitable[str]]:
    async def operation() -> str:
        raise RateLimited("claude", "too many requests", retry_after_s, kind=kind)

    return operation


class Script:
    """An operation that follows a list of steps and then succeeds. It records how often and when it was called."""

    def __init__(self, *steps: Callable[[], Awaitable[str]]) -> None:
        self._steps = list(steps)
        self.at: list[float] = []

    @property
    def calls(self) -> int:
        return len(self.at)

    async def __call__(self) -> str:
        self.at.append(asyncio.get_running_loop().time() - BEGIN_S)
        return await (self._steps.pop(0) if self._steps else answer)()


# ── invariants ────────────────────────────────────────────────────────────────────────────────────────────────────


async def error_of(awaitable: Awaitable[Any]) -> Any:
    """The exception that it raises, or None."""
    try:
        await awaitable
    except BaseException as error:
        return error
    return None


async def open_breaker(guard: Guard) -> None:
    """Make calls fail until the breaker opens."""
    for _ in range(guard.options.breaker.failure_threshold):
        assert await error_of(guard.call(fail)) is not None
    assert guard.breaker.phase is OPEN


def used(guard: Guard) -> list[int]:
    """The units of each limit in use."""
    return [count.used for count in guard.gates.limits.counts]


def nothing_is_taken(guard: Guard, wallet: Wallet | None = None) -> bool:
    """True if no slot, queue position, lease, running permit, open hold or deadline is left."""
    return (
        not taken_of_gates(guard.gates)
        and not taken_of_guard(guard)
        and (wallet is None or wallet.open == 0)
        and not any(guard.gates.deadlines.grains.values())
    )
