"""What people use around a call today, assembled as its documentation recommends."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.peers import load

Call = Callable[[], Awaitable[Any]]

MANY = 10**9
STACK = "stamina + purgatory + limits x3 + prometheus"
INTERLOCK = "interlock, breaker alone"
PIPELINE = "interlock: retry, breaker, bulkhead, timeout"


async def bare() -> int:
    return 1


def fixed_windows(limit: str = str(MANY)) -> Callable[[str], Awaitable[bool]]:
    """The three windows of `limits` in memory; returns False for a key whose limit is reached."""
    limits = load("limits", "limits")
    strategies = load("limits.aio.strategies", "limits")
    limiter = strategies.FixedWindowRateLimiter(load("limits.aio.storage", "limits").MemoryStorage())
    windows = [limits.parse(f"{limit}/{unit}") for unit in ("minute", "hour", "day")]

    async def hit(key: str) -> bool:
        for window in windows:
            if not await limiter.hit(window, key):
                return False
        return True

    return hit


def breakers() -> Any:
    return load("purgatory", "purgatory").AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=3600)


def hand_stack(factory: Any = None) -> Call:
    """Retry, breaker, three windows and metrics, each from the package that people usually choose."""
    stamina = load("stamina", "stamina")
    prometheus = load("prometheus_client", "prometheus_client")
    registry = prometheus.CollectorRegistry()
    calls = prometheus.Counter("calls", "Calls", ["outcome"], registry=registry)
    seconds = prometheus.Histogram("seconds", "Latency", ["service"], registry=registry)
    # The labels are bound once, as its documentation recommends. Looking them up in each call is a cost that a careful
    # user avoids.
    succeeded, latency = calls.labels("success"), seconds.labels("bench")
    hit = fixed_windows()
    factory = factory or breakers()

    async def call() -> int:
        if not await hit("bench"):
            raise RuntimeError("limited")
        began = time.perf_counter()
        async with await factory.get_breaker("bench"):
            result = await bare()
        succeeded.inc()
        latency.observe(time.perf_counter() - began)
        return result

    guarded: Call = stamina.retry(on=OSError, attempts=4)(call)
    return guarded


def interlock_breaker(breaker: Any = None) -> Call:
    """interlock's breaker as a decorator, with its own thresholds."""
    breaker = breaker or load("interlock", "interlock-cb").CircuitBreaker(name="bench")
    guarded: Call = breaker(bare)
    return guarded


def interlock_pipeline(breaker: Any = None) -> Call:
    """Everything that interlock has for one call, in the recommended order; it has no limits."""
    interlock = load("interlock", "interlock-cb")
    load("tenacity", "tenacity")  # interlock's retry
    breaker = breaker or interlock.CircuitBreaker(name="bench")
    builder = interlock.Pipeline.builder().retry(attempts=4).circuit_breaker(breaker)
    guarded: Call = builder.bulkhead(1000).timeout(30.0).build()(bare)
    return guarded


# ---- refusals: a call that is refused, and what it then raises ---------------------------------------------------

Refusal = tuple[Call, type[BaseException]]


async def opened() -> tuple[Any, type[BaseException]]:
    """purgatory's breakers with an open one named "bench", and its error."""
    factory = breakers()
    for _ in range(5):
        try:
            async with await factory.get_breaker("bench"):
                raise OSError("down")
        except OSError:
            pass
    return factory, load("purgatory.domain.model", "purgatory").OpenedState


async def purgatory_open() -> Refusal:
    factory, error = await opened()

    async def call() -> int:
        async with await factory.get_breaker("bench"):
            return await bare()

    return call, error


async def stack_open() -> Refusal:
    factory, error = await opened()
    return hand_stack(factory), error


async def interlock_open() -> Refusal:
    interlock = load("interlock", "interlock-cb")
    breaker = interlock.CircuitBreaker(name="bench")
    breaker.force_open()
    return interlock_breaker(breaker), interlock.CircuitOpenError


async def pipeline_open() -> Refusal:
    interlock = load("interlock", "interlock-cb")
    breaker = interlock.CircuitBreaker(name="bench")
    breaker.force_open()
    return interlock_pipeline(breaker), interlock.CircuitOpenError


class Limited(Exception):
    """`limits` returns False; its users raise an exception of their own."""


async def limits_full() -> Refusal:
    hit = fixed_windows("1")

    async def call() -> int:
        if not await hit("bench"):
            raise Limited("bench")
        return await bare()

    await call()
    return call, Limited
