"""A provider that hangs is detected, and its fallback is called in time, whichever limit ends the wait. All on virtual
time.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.types import Answer
from koo.deadlines import Deadline
from koo.errors import ExternalServiceError, Kind, ServiceFailed
from koo.monitoring.snapshot import service_view
from koo.options import BreakerOptions
from koo.policies.breaker import CLOSED
from koo.policies.verdict import FAILURE, NEUTRAL
from koo.testing.clock import run_virtual
from tests.ai.virtual import ONCE, VirtualWorld, words

TIMES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "a short query": {"timeout_s": 10.0},
    "a query of a second": {"timeout_s": 1.0},
    "a long query": {"timeout_s": 600.0},
    "a short attempt": {"attempt_timeout_s": 4.0},
    "an attempt as long as the query": {"timeout_s": 20.0, "attempt_timeout_s": 20.0},
    "a short first token": {"first_token_timeout_s": 3.0},
    "a short stall": {"stall_timeout_s": 3.0},
    "a query shorter than a stall": {
        "timeout_s": 5.0,
        "first_token_timeout_s": 60.0,
        "stall_timeout_s": 60.0,
    },
}
CALLERS = {"no deadline": None, "timeout_s": 8.0, "koo.deadline": 8.0}
CHAINS: list[tuple[str, ...]] = [(), ("second",), ("second", "third")]
CALLS = 6


async def hang(request: Request) -> Completion:
    await asyncio.sleep(1e6)
    raise AssertionError("no test waits so long")


async def fail(request: Request) -> Completion:
    raise ServiceFailed("first", "it failed", kind=Kind.SERVER_ERROR)


def state(world: VirtualWorld) -> str:
    return service_view(world.service, world.budgets.view("first"), world.clock)["state"]


async def ask_once(world: VirtualWorld, streamed: bool, caller: str, chain: tuple[str, ...]) -> Answer | None:
    """The answer, or None if the caller's deadline passes first."""
    options: dict[str, Any] = {"fallback": chain, "max_tokens": 20}
    if caller == "timeout_s":
        options["timeout_s"] = CALLERS[caller]
    try:
        async with Deadline(8.0 if caller == "koo.deadline" else 1e6):
            if not streamed:
                return await world.ask(**options)
            async with world.stream(**options) as chunks:
                async for _ in chunks:
                    pass
                return chunks.answer
    except (ExternalServiceError, TimeoutError):
        return None


@pytest.mark.parametrize("chain", CHAINS, ids=["alone", "one fallback", "two fallbacks"])
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("way", ["whole", "a silent stream", "a stream that stalls"])
def test_a_hung_service_is_detected_and_its_fallback_answers_in_time(
    way: str, times: str, caller: str, chain: tuple[str, ...]
) -> None:
    """If one of koo's limits ends the wait, that is a failure and the circuit opens. If the caller's deadline ends it,
    that is not a failure, but the service is no longer healthy.
    """

    async def main() -> None:
        world = VirtualWorld(**TIMES[times])
        world.first.script = [hang] * 100
        begins = [(0.1, CompletionChunk(text="one"))] if way == "a stream that stalls" else []
        world.first.chunks = [*begins, (1e6, CompletionChunk(text="never"))]
        world.second.chunks = words("ok", pause_s=0.1)
        answers = []
        for _ in range(CALLS):
            began = world.clock.monotonic()
            answers.append(await ask_once(world, way != "whole", caller, chain))
            longest_s = CALLERS[caller] or TIMES[times].get("timeout_s", 120.0)
            assert world.clock.monotonic() - began <= longest_s + 0.5
        guard = world.service.default_guard
        assert state(world) != "healthy"
        if caller == "no deadline":
            assert guard.breaker.phase is not CLOSED and guard.tally.totals().verdicts[NEUTRAL] == 0
        if chain and way != "a stream that stalls":
            assert all(answer is not None and answer.service == "second" for answer in answers)
        assert world.budgets.view("first").held_usd == 0 and world.service.gates.bulkhead.used == 0
        assert world.first.open == 0

    run_virtual(main)


@pytest.mark.parametrize("caller", ["timeout_s", "koo.deadline"])
def test_a_callers_deadline_is_not_a_failure_of_a_healthy_service(caller: str) -> None:
    """Callers with short deadlines never get a slow answer, but the circuit stays closed for the others."""

    async def main() -> None:
        world = VirtualWorld()

        async def slow(request: Request) -> Completion:
            await asyncio.sleep(0.4)
            raise AssertionError("its caller has left")

        for _ in range(40):
            world.first.script = [slow]
            with pytest.raises((ExternalServiceError, TimeoutError)):
                async with Deadline(0.3 if caller == "koo.deadline" else 1e6):
                    await world.ask(timeout_s=0.3 if caller == "timeout_s" else None)
        guard = world.service.default_guard
        assert state(world) == "healthy" and guard.tally.totals().verdicts[FAILURE] == 0

    run_virtual(main)


def test_cut_calls_are_forgotten_after_a_success_a_reset_or_five_minutes() -> None:
    async def main() -> None:
        for remedy in ("a success", "a reset", "five minutes"):
            world = VirtualWorld()
            world.first.script = [hang] * 3
            for _ in range(3):
                assert state(world) == "healthy"
                await ask_once(world, False, "timeout_s", ())
            view = service_view(world.service, world.budgets.view("first"), world.clock)
            assert (view["state"], view["reason"]) == (
                "unhealthy",
                "the last 3 calls got no answer before their callers' deadlines",
            )
            if remedy == "a success":
                await asyncio.sleep(1.0)
                await world.ask()
            elif remedy == "a reset":
                world.service.reset()
            else:
                await asyncio.sleep(301.0)
            assert state(world) == "healthy", remedy

    run_virtual(main)


# ── a chain of services ───────────────────────────────────────────────────────────────────────────────────────────────


def test_services_have_equal_shares_of_the_time_and_unconfigured_ones_none() -> None:
    async def main() -> None:
        for configured in (True, False):
            world = VirtualWorld()
            began, asked_at = world.clock.monotonic(), list[float]()
            for provider in (world.first, world.second, world.third):
                provider.script = [hang] * 9
                provider.on_asked = lambda: asked_at.append(world.clock.monotonic() - began)  # noqa: B023
            if not configured:
                world.gateway.services["second"].service.obstacle = "no key"
                world.second.obstacle = lambda: "no key"  # type: ignore[method-assign]
            with pytest.raises(ExternalServiceError):
                await world.ask(timeout_s=30.0, fallback=("second", "third"))
            assert asked_at == ([0.0, 10.0, 20.0] if configured else [0.0, 15.0])

    run_virtual(main)


def test_a_failing_service_is_retried_only_within_its_share() -> None:
    async def main() -> None:
        world = VirtualWorld()

        async def fail_late(request: Request) -> Completion:
            await asyncio.sleep(14.5)
            return await fail(request)

        world.first.script = [fail_late] * 9
        answer = await world.ask(timeout_s=30.0, fallback=("second",))
        assert answer.service == "second" and world.first.asked == 1
        assert answer.latency_s == 14.5, "a second attempt would have had half a second"

    run_virtual(main)


def test_the_call_that_opens_the_breaker_falls_back_immediately() -> None:
    async def main() -> None:
        world = VirtualWorld(breaker=BreakerOptions(failure_threshold=2))
        world.first.script = [fail] * 9
        for on_limit in (None, "wait"):
            answer = await world.ask(fallback=("second",), on_limit=on_limit)
            assert answer.service == "second" and answer.latency_s < 5.0

    run_virtual(main)


def test_a_fallbacks_own_timeout_limits_its_share() -> None:
    async def main() -> None:
        world = VirtualWorld(retry=ONCE)
        second, began = world.gateway.services["second"], world.clock.monotonic()
        object.__setattr__(second.options, "timeout_s", 5.0)
        world.first.script, world.second.script = [fail], [hang]
        with pytest.raises(ExternalServiceError):
            await world.ask(fallback=("second",))
        assert second.service.default_guard.tally.totals().verdicts[FAILURE] == 1
        assert world.clock.monotonic() - began == 5.0

    run_virtual(main)
