"""What time does to a query: deadlines, bounds of a stream's silence, leases of probes. All on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.types import Usage
from koo.deadlines import Deadline
from koo.errors import AllServicesFailed, ExternalServiceError, Kind, ServiceFailed, ServiceTimeout
from koo.options import BreakerOptions
from koo.policies.breaker import CLOSED, HALF_OPEN
from koo.testing.clock import run_virtual
from tests.ai.virtual import ONCE, VirtualWorld, words


async def hang(request: Request) -> Completion:
    await asyncio.sleep(3600)
    raise AssertionError("no test waits so long")


async def fail(request: Request) -> Completion:
    raise ServiceFailed("first", "it failed", kind=Kind.SERVER_ERROR)


async def respond(request: Request) -> Completion:
    return Completion(text="ok", model=request.model, usage=Usage(input_tokens=10, output_tokens=5))


async def ask(world: VirtualWorld, streamed: bool, **options: Any) -> None:
    if not streamed:
        await world.ask(**options)
        return
    async for _ in world.stream(**options):
        pass


Act = Callable[[Request], Awaitable[Completion]]


def after(pause_s: float, act: Act) -> Act:
    async def later(request: Request) -> Completion:
        await asyncio.sleep(pause_s)
        return await act(request)

    return later


# ── a hold's time ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_of_three_hours_keeps_its_hold_for_as_long_and_is_booked_at_its_real_cost(
    streamed: bool,
) -> None:
    """Nothing comes back by time: given back while the call runs, its money would be spent by another one."""

    async def main() -> None:
        world = VirtualWorld(stall_timeout_s=7200.0, first_token_timeout_s=7200.0, attempt_timeout_s=14_400.0)
        world.first.script = [after(10_800.0, respond)]
        world.first.chunks = words("slowly", pause_s=5400.0)
        asking = asyncio.create_task(ask(world, streamed, timeout_s=14_400.0, max_tokens=200))
        await asyncio.sleep(10_000.0)
        assert world.budgets.view("first").held_usd == world.bound_usd(200)
        await asking
        assert world.budgets.view("first").held_usd == 0
        assert world.spent_usd == Decimal(10 * 3 + (1 if streamed else 5) * 15) / 1_000_000

    run_virtual(main)


# ── a stream's first content ──────────────────────────────────────────────────────────────────────────────────────────


def test_silence_is_cut_at_the_bound_of_the_first_content_and_booked_at_the_worst_case() -> None:
    """Long before the attempt's own end; the provider may have read the prompt and thought, so it may bill."""

    async def main() -> None:
        world = VirtualWorld(first_token_timeout_s=7.0, attempt_timeout_s=60.0, retry=ONCE)
        world.first.chunks = words("late", pause_s=50.0)
        began = world.clock.monotonic()
        with pytest.raises(ServiceTimeout) as caught:
            await anext(world.stream(max_tokens=200))
        assert caught.value.kind == Kind.TIMEOUT
        assert world.clock.monotonic() - began == 7.0
        assert world.spent_usd == world.bound_usd(200) > 0
        assert world.budgets.view("first").held_usd == 0
        assert world.service.default_guard.breaker.consecutive == 1, "silence is the provider's failure"

    run_virtual(main)


def test_pings_are_no_first_content() -> None:
    async def main() -> None:
        world = VirtualWorld(first_token_timeout_s=7.0, retry=ONCE)
        world.first.chunks = [(1.0, CompletionChunk(model="m"))] * 20
        began = world.clock.monotonic()
        with pytest.raises(ServiceTimeout):
            await anext(world.stream())
        assert world.clock.monotonic() - began == 7.0

    run_virtual(main)


# ── a stream that probes ──────────────────────────────────────────────────────────────────────────────────────────────

PROBING = BreakerOptions(failure_threshold=1, success_threshold=1, recovery_s=60.0)


async def half_open(world: VirtualWorld) -> None:
    world.first.script = [fail]
    with pytest.raises(ServiceFailed):
        await world.ask()
    await asyncio.sleep(100.0)


def test_each_content_of_a_probing_stream_renews_its_lease() -> None:
    """It lasts four leases, and closes the breaker at its end."""

    async def main() -> None:
        world = VirtualWorld(breaker=PROBING, retry=ONCE, stall_timeout_s=300.0, timeout_s=600.0)
        breaker = world.service.default_guard.breaker
        await half_open(world)
        world.first.chunks = words("a", "b", "c", "d", "e", "f", pause_s=20.0)
        texts = []
        async for chunk in world.stream():
            texts.append(str(chunk))
            assert breaker.phase is HALF_OPEN
        assert texts == ["a", "b", "c", "d", "e", "f"] and breaker.phase is CLOSED

    run_virtual(main)


def test_a_probing_stream_without_content_ends_with_its_lease() -> None:
    async def main() -> None:
        world = VirtualWorld(breaker=PROBING, retry=ONCE, stall_timeout_s=300.0, timeout_s=600.0)
        await half_open(world)
        world.first.chunks = [*words("a", pause_s=1.0)[:1], *[(10.0, CompletionChunk(model="m"))] * 50]
        chunks = world.stream()
        assert str(await anext(chunks)) == "a"
        began = world.clock.monotonic()
        with pytest.raises(ExternalServiceError):
            await anext(chunks)
        assert world.clock.monotonic() - began <= 30.0

    run_virtual(main)


# ── the order of services, and the deadline ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
def test_no_service_is_asked_after_the_deadline(streamed: bool) -> None:
    """The first one used it up: its reason is raised, and an answer of the second would come too late."""

    async def main() -> None:
        world = VirtualWorld(first_token_timeout_s=60.0)
        slow: dict[str, Any] = {"timeout_s": 10.0, "fallback": ("second",)}
        world.first.script = [hang]
        world.first.chunks = words("late", pause_s=50.0)
        asked = anext(world.stream(**slow)) if streamed else world.ask(**slow)
        with pytest.raises(AllServicesFailed) as caught:
            await asked
        assert [getattr(error, "kind", None) for error in caught.value.exceptions] == [Kind.DEADLINE]
        assert world.second.asked == 0

    run_virtual(main)


def test_a_deadline_that_has_passed_already_is_told_with_and_without_fallback() -> None:
    async def main() -> None:
        world = VirtualWorld()
        for fallback in ((), ("second",)):
            with pytest.raises(ExternalServiceError) as caught:
                async with Deadline(0.0):
                    await world.ask(fallback=fallback)
            errors = getattr(caught.value, "exceptions", (caught.value,))
            assert [error.kind for error in errors] == [Kind.DEADLINE]
        assert world.first.asked == world.second.asked == 0

    run_virtual(main)


def test_the_latency_is_the_whole_querys() -> None:
    """The service that failed before is a part of what the caller waited for."""

    async def main() -> None:
        world = VirtualWorld(retry=ONCE)
        world.first.script = [after(4.0, fail)]
        answer = await world.ask(fallback=("second",))
        assert (answer.service, answer.latency_s, answer.attempts) == ("second", 4.0, 1)

    run_virtual(main)


def test_after_an_error_before_its_first_content_a_stream_is_over() -> None:
    async def main() -> None:
        world = VirtualWorld(first_token_timeout_s=1.0, retry=ONCE)
        world.first.chunks = words("late", pause_s=50.0)
        chunks = world.stream()
        with pytest.raises(ServiceTimeout):
            await anext(chunks)
        assert [chunk async for chunk in chunks] == [] and world.first.asked == 1

    run_virtual(main)
