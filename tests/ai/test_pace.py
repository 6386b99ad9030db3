"""koo uses what a provider's announced limits allow and hardly ever exceeds them, for requests and for tokens.

The provider keeps its own count, on virtual time. 200 callers wait for it at the same time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from decimal import Decimal
from typing import Protocol

import pytest

from koo.ai.providers.base import Completion, CompletionChunk, Pace, Request
from koo.ai.types import Query, Usage
from koo.errors import ExternalServiceError, Kind, RateLimited
from koo.policies.pacer import PILOTS
from koo.testing.clock import BEGIN_S, run_virtual
from tests.ai.virtual import MemoryProvider, VirtualWorld

CALLERS = 200
A_MINUTE = 50
SIZE = Usage(input_tokens=100, output_tokens=50)


class Meter(Protocol):
    """A limit as a provider counts it, in units of what it limits."""

    limit: float

    def left(self, now: float) -> float: ...

    def take(self, now: float, amount: float) -> None: ...

    def resets_in_s(self, now: float) -> float: ...

    def allowed(self, until: float) -> float:
        """The units that may be taken from the beginning until that time."""
        ...


class Window:
    """A limit that resets completely at each full minute."""

    def __init__(self, limit: float) -> None:
        self.limit, self._minute, self._used = limit, 0, 0.0

    def _roll(self, now: float) -> None:
        if (minute := int((now - BEGIN_S) // 60)) != self._minute:
            self._minute, self._used = minute, 0.0

    def left(self, now: float) -> float:
        self._roll(now)
        return self.limit - self._used

    def take(self, now: float, amount: float) -> None:
        self._used += amount

    def resets_in_s(self, now: float) -> float:
        return 60.0 - (now - BEGIN_S) % 60.0

    def allowed(self, until: float) -> float:
        return self.limit * ((until - BEGIN_S) // 60 + 1)


class Bucket:
    """A limit that refills at a constant rate, like Anthropic's limits."""

    def __init__(self, limit: float) -> None:
        self.limit = self._level = limit
        self._at = BEGIN_S

    def left(self, now: float) -> float:
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / 60)
        self._at = now
        return math.floor(self._level + 1e-9)

    def take(self, now: float, amount: float) -> None:
        self._level -= amount

    def resets_in_s(self, now: float) -> float:
        return (self.limit - self._level) * 60 / self.limit

    def allowed(self, until: float) -> float:
        return self.limit * (1 + (until - BEGIN_S) / 60)


class Log:
    """A limit whose units become free one minute after each was taken. The reset time is that of the oldest unit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._taken: list[tuple[float, float]] = []

    def left(self, now: float) -> float:
        self._taken = [one for one in self._taken if one[0] > now - 60 + 1e-9]
        return self.limit - sum(amount for _, amount in self._taken)

    def take(self, now: float, amount: float) -> None:
        self._taken.append((now, amount))

    def resets_in_s(self, now: float) -> float:
        return self._taken[0][0] + 60 - now if self._taken else 0.0

    def allowed(self, until: float) -> float:
        return self.limit * ((until - BEGIN_S) // 60 + 1)


class Metered(MemoryProvider):
    """Answers after `latency_s`, or with a 429. Each answer reports what was left when its call arrived."""

    def __init__(
        self, now: Callable[[], float], meters: dict[str, Meter], latency_s: float, whole: bool
    ) -> None:
        super().__init__()
        self._now, self._meters, self._latency_s, self._whole = now, meters, latency_s, whole
        self.refused = 0
        self.taken_at: list[float] = []

    async def complete(self, request: Request) -> Completion:
        pace = self._admit()
        await asyncio.sleep(self._latency_s)
        return Completion(text="ok", model=request.model, usage=SIZE, pace=pace)

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        yield CompletionChunk(pace=self._admit())
        await asyncio.sleep(self._latency_s)
        yield CompletionChunk(text="ok")
        yield CompletionChunk(final=True, usage=SIZE)

    def _admit(self) -> tuple[Pace, ...]:
        now = self._now()
        amounts = {"requests": 1, "tokens": SIZE.total_tokens, "output-tokens": SIZE.output_tokens}
        if any(meter.left(now) < amounts[name] for name, meter in self._meters.items()):
            self.refused += 1
            raise RateLimited("first", "too fast", 5.0, kind=Kind.THROTTLED)
        for name, meter in self._meters.items():
            meter.take(now, amounts[name])
        self.taken_at.append(now)
        return tuple(self._pace(name, meter, now) for name, meter in self._meters.items())

    def _pace(self, name: str, meter: Meter, now: float) -> Pace:
        resets_in_s = meter.resets_in_s(now)
        left = int(meter.left(now))
        return Pace(name, int(meter.limit), left, math.ceil(resets_in_s) if self._whole else resets_in_s)


def ask_all(
    meters: dict[str, Meter],
    *,
    latency_s: float = 2.0,
    whole: bool = False,
    streamed: bool = False,
    callers: int = CALLERS,
) -> Metered:
    """Start all callers together; returns the provider when each caller has its answer."""

    async def main() -> Metered:
        world = VirtualWorld(pilots=PILOTS, daily_budget_usd=Decimal(1000))
        metered = Metered(world.clock.monotonic, meters, latency_s, whole)
        world.provide(metered)
        query = Query(service="first", prompt="Hi", on_limit="wait", timeout_s=3600.0, max_tokens=100)

        async def ask() -> None:
            if streamed:
                async for _ in world.gateway.stream(query):
                    pass
            else:
                await world.gateway.query(query)

        await asyncio.gather(*(ask() for _ in range(callers)))
        world.beats.cancel()
        return metered

    return run_virtual(main)


@pytest.mark.parametrize("kind", [Window, Bucket, Log])
@pytest.mark.parametrize("whole", [False, True], ids=["exact", "whole seconds"])
def test_callers_use_what_a_provider_allows_and_get_at_most_two_429s(
    kind: Callable[[float], Meter], whole: bool
) -> None:
    meter = kind(A_MINUTE)
    metered = ask_all({"requests": meter}, whole=whole)
    assert metered.refused <= 2
    assert len(metered.taken_at) == CALLERS >= 0.95 * meter.allowed(metered.taken_at[-1])


@pytest.mark.parametrize("kind", [Window, Bucket])
def test_callers_use_what_a_token_limit_allows_and_hardly_ever_exceed_it(
    kind: Callable[[float], Meter],
) -> None:
    """The limit on tokens allows 50 answers a minute; that on requests allows more."""
    tokens = kind(A_MINUTE * SIZE.total_tokens)
    metered = ask_all({"requests": kind(1000), "tokens": tokens})
    assert metered.refused <= 2
    assert CALLERS * SIZE.total_tokens >= 0.95 * tokens.allowed(metered.taken_at[-1])


def test_callers_of_streams_use_what_a_provider_allows_and_get_at_most_two_429s() -> None:
    tokens = Window(A_MINUTE * SIZE.output_tokens)
    metered = ask_all({"requests": Window(60), "output-tokens": tokens}, streamed=True)
    assert metered.refused <= 2
    assert CALLERS * SIZE.output_tokens >= 0.95 * tokens.allowed(metered.taken_at[-1])


@pytest.mark.parametrize("latency_s", [0.0, 10.0])
def test_callers_with_fast_and_slow_answers_use_what_a_provider_allows(latency_s: float) -> None:
    meter = Window(A_MINUTE)
    metered = ask_all({"requests": meter}, latency_s=latency_s)
    assert metered.refused <= 2 and 0.95 * meter.allowed(metered.taken_at[-1]) <= CALLERS


def test_a_limit_above_the_number_of_slots_is_not_exceeded() -> None:
    """With 200 slots and a limit of 300, calls that need no cell and calls that book one are counted together."""
    assert ask_all({"requests": Window(300)}, callers=600).refused <= 2


def test_a_caller_that_does_not_wait_is_refused_with_a_retry_time() -> None:
    async def main() -> None:
        world = VirtualWorld(pilots=PILOTS)
        world.provide(Metered(world.clock.monotonic, {"requests": Window(2)}, 0.0, whole=False))
        await world.ask(on_limit="refuse")
        await world.ask(on_limit="refuse")
        with pytest.raises(RateLimited) as refused:
            await world.ask(on_limit="refuse")
        assert refused.value.kind is Kind.COOLING_DOWN
        assert refused.value.retry_after_s == pytest.approx(61.0)
        world.beats.cancel()

    run_virtual(main)


def test_before_the_first_answer_only_a_few_calls_are_sent() -> None:
    async def main() -> None:
        world = VirtualWorld(pilots=PILOTS)
        world.provide(metered := Metered(world.clock.monotonic, {}, 3.0, whole=False))
        callers = [asyncio.ensure_future(world.ask()) for _ in range(60)]
        await asyncio.sleep(2.5)
        assert len(metered.taken_at) == PILOTS
        await asyncio.sleep(1.0)
        assert len(metered.taken_at) == 60, "an answer that names no limit lets all other calls start"
        await asyncio.gather(*callers)
        world.beats.cancel()

    run_virtual(main)


def test_one_models_limit_delays_no_other_model() -> None:
    async def main() -> None:
        world = VirtualWorld(pilots=PILOTS)
        world.provide(Metered(world.clock.monotonic, {"requests": Window(1)}, 0.0, whole=False))
        await world.ask(on_limit="refuse")
        with pytest.raises(ExternalServiceError):
            await world.ask(on_limit="refuse")
        world.provide(Metered(world.clock.monotonic, {}, 0.0, whole=False))
        assert (await world.ask(model="another", on_limit="refuse")).text == "ok"
        world.beats.cancel()

    run_virtual(main)
