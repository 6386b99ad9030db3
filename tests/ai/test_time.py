"""Deadlines, limits on a stream's silence, and leases of probes. All on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.types import Query, Usage
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


def ignore_cancellation_for(pause_s: float) -> Act:
    """Simulate code whose cleanup takes too long."""

    async def stubborn(request: Request) -> Completion:
        ends_at = asyncio.get_running_loop().time() + pause_s
        while (left_s := ends_at - asyncio.get_running_loop().time()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(left_s)
        raise asyncio.CancelledError

    return stubborn


def after(pause_s: float, act: Act) -> Act:
    async def later(request: Request) -> Completion:
        await asyncio.sleep(pause_s)
        return await act(request)

    return later


# ── a hold's time ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
def test_a_three_hour_call_keeps_its_hold_and_is_booked_at_its_real_cost(
    streamed: bool,
) -> None:
    """Holds do not expire: if one did while its call runs, another call would spend the same money."""

    async def main() -> None:
        long: dict[str, Any] = {"timeout_s": 14_400.0, "attempt_timeout_s": 14_400.0}
        world = VirtualWorld(stall_timeout_s=7200.0, first_token_timeout_s=7200.0, **long)
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


def test_silence_ends_at_the_first_token_timeout_and_is_booked_at_the_worst_case() -> None:
    """The first-token timeout ends long before the attempt. The provider may have read the prompt and reasoned about
    it, so it may bill.
    """

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


def test_pings_are_not_first_content() -> None:
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
    """The stream lasts four leases, and closes the breaker at its end."""

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
def test_each_service_of_a_chain_has_its_share_of_the_callers_deadline(streamed: bool) -> None:
    """Both services hang. The first one leaves half of the time to the second, and neither counts as a failure."""

    async def main() -> None:
        world = VirtualWorld(first_token_timeout_s=60.0)
        slow: dict[str, Any] = {"timeout_s": 30.0, "fallback": ("second",)}
        asked_at = []
        for provider in (world.first, world.second):
            provider.chunks = words("late", pause_s=50.0)
            provider.script = [hang]
            provider.on_asked = lambda: asked_at.append(world.clock.monotonic() - began)
        began = world.clock.monotonic()
        with pytest.raises(AllServicesFailed) as caught:
            await (anext(world.stream(**slow)) if streamed else world.ask(**slow))
        assert [getattr(error, "kind", None) for error in caught.value.exceptions] == [Kind.DEADLINE] * 2
        assert asked_at == [0.0, 15.0] and world.clock.monotonic() - began == 30.0
        assert world.service.default_guard.breaker.consecutive == 0

    run_virtual(main)


def test_no_service_is_called_after_the_deadline() -> None:
    """The first service takes so long that no time is left, and its own error is raised."""

    async def main() -> None:
        world = VirtualWorld()
        world.first.script = [ignore_cancellation_for(40.0)]
        with pytest.raises(AllServicesFailed) as caught:
            await world.ask(timeout_s=30.0, fallback=("second",))
        assert [getattr(error, "kind", None) for error in caught.value.exceptions] == [Kind.DEADLINE]
        assert world.second.asked == 0

    run_virtual(main)


@pytest.mark.parametrize("fallback", [(), ("second",), ("second", "first")])
def test_a_deadline_that_has_already_passed_raises_its_own_error(fallback: tuple[str, ...]) -> None:
    """This also applies with a fallback, which is not called. In a batch each query gets this error."""

    async def main() -> None:
        world = VirtualWorld()
        with pytest.raises(ServiceTimeout) as caught:
            async with Deadline(0.0):
                await world.ask(fallback=fallback)
        assert caught.value.kind == Kind.DEADLINE
        async with Deadline(0.0):
            query = Query(service="first", prompt="Hi", fallback=fallback)
            errors = await world.gateway.query_many([query, query])
        assert [(type(error), getattr(error, "kind", None)) for error in errors] == [
            (ServiceTimeout, Kind.DEADLINE)
        ] * 2
        assert world.first.asked == world.second.asked == 0

    run_virtual(main)


def test_one_querys_error_never_ends_a_batch() -> None:
    """This includes errors that koo does not expect."""

    async def main() -> None:
        world = VirtualWorld(retry=ONCE)

        async def bug(request: Request) -> Completion:
            raise RuntimeError("a bug")

        world.first.script = [bug, hang]
        ask = Query(service="first", prompt="Hi")
        found = await world.gateway.query_many([ask, ask, ask, Query(service="none", prompt="Hi")])
        assert [getattr(one, "text", None) or getattr(one, "kind", None) for one in found] == [
            Kind.UNKNOWN, Kind.TIMEOUT, "ok", Kind.UNKNOWN_SERVICE,
        ]  # fmt: skip

    run_virtual(main)


def test_latency_covers_the_whole_query() -> None:
    """The caller also waited for the service that failed first."""

    async def main() -> None:
        world = VirtualWorld(retry=ONCE)
        world.first.script = [after(4.0, fail)]
        answer = await world.ask(fallback=("second",))
        assert (answer.service, answer.latency_s, answer.attempts) == ("second", 4.0, 1)

    run_virtual(main)


@pytest.mark.parametrize("pause_s", [50.0, 0.5])
def test_reading_on_after_a_failure_raises_and_names_it(pause_s: float) -> None:
    """This applies before and after the first content: a silent end would make the text look complete."""

    async def main() -> None:
        world = VirtualWorld(first_token_timeout_s=1.0, stall_timeout_s=2.0, retry=ONCE)
        world.first.chunks = [*words("one", pause_s=pause_s)[:1], *words("late", pause_s=50.0)]
        chunks, partial = world.stream(), "one" if pause_s < 1 else ""
        with pytest.raises(ExternalServiceError) as first:
            async for _ in chunks:
                pass
        for _ in range(2):
            with pytest.raises(ServiceFailed) as again:
                await anext(chunks)
            assert again.value.kind == first.value.kind and again.value.partial_text == partial
            reason = "the stream fell silent" if partial else "no content arrived in time"
            assert str(again.value) == f"first: this stream has already failed ({reason}); start a new one"
        assert world.first.asked == 1

    run_virtual(main)


def test_reading_a_cancelled_stream_again_raises_that_its_reader_was_cancelled() -> None:
    async def main() -> None:
        world = VirtualWorld()
        world.first.chunks = words("one", "two", pause_s=5.0)
        chunks = world.stream()
        await anext(chunks)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await anext(chunks)
        with pytest.raises(ServiceFailed, match="its reader was cancelled"):
            await anext(chunks)

    run_virtual(main)
