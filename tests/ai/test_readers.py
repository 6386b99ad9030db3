"""A reader's time is not latency, thinking is not silence, and any task may close a stream."""

from __future__ import annotations

import asyncio

import pytest

from koo.ai.providers.base import CompletionChunk
from koo.alerts.rules import find
from koo.errors import ExternalServiceError, Kind, ServiceFailed, ServiceTimeout, StreamTruncated
from koo.monitoring.snapshot import service_view
from koo.options import BreakerOptions
from koo.policies.breaker import CLOSED, HALF_OPEN
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS
from koo.testing.clock import run_virtual
from tests.ai.test_time import PROBING, half_open
from tests.ai.virtual import ONCE, Chunks, VirtualWorld, words

FINAL = CompletionChunk(final=True)


def thoughts(count: int, pause_s: float) -> Chunks:
    return [(pause_s, CompletionChunk(text="hm", reasoning=True))] * count


def verdicts(world: VirtualWorld) -> list[int]:
    return world.service.default_guard.tally.totals().verdicts


# ── thinking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [40, 90])
def test_a_model_that_streams_its_thinking_is_not_silent(seconds: int) -> None:
    """The model may reason for longer than the first-token timeout and for longer than an attempt."""

    async def main() -> None:
        world = VirtualWorld()
        world.first.chunks = [*thoughts(seconds, 1.0), *words("42", pause_s=1.0)]
        assert [str(chunk) async for chunk in world.stream()] == ["42"]
        assert verdicts(world)[SUCCESS] == world.first.asked == 1

    run_virtual(main)


def test_twenty_long_thinking_streams_are_not_slow_calls() -> None:
    async def main() -> None:
        world = VirtualWorld(daily_budget_usd=None)
        world.first.chunks = [*thoughts(50, 1.0), *words("42", pause_s=1.0)]

        async def read() -> None:
            async for _ in world.stream():
                pass

        reading = [asyncio.create_task(read()) for _ in range(25)]
        await asyncio.sleep(45.0)
        world.service.tick()
        assert world.service.default_guard.breaker.phase is CLOSED
        await asyncio.gather(*reading)
        assert verdicts(world)[SUCCESS] == 25

    run_virtual(main)


def test_thinking_renews_the_stall_timer_until_it_stops() -> None:
    async def main() -> None:
        world = VirtualWorld(stall_timeout_s=5.0, retry=ONCE)
        world.first.chunks = [*words("one", pause_s=1.0)[:1], *thoughts(20, 3.0), *words("two", pause_s=30.0)]
        chunks, began = world.stream(), world.clock.monotonic()
        with pytest.raises(StreamTruncated) as caught:
            async for _ in chunks:
                pass
        assert caught.value.kind == Kind.STALLED and world.clock.monotonic() - began == 1.0 + 60.0 + 5.0

    run_virtual(main)


def test_after_thinking_stops_the_first_content_has_the_first_token_timeout() -> None:
    async def main() -> None:
        world = VirtualWorld(first_token_timeout_s=7.0, retry=ONCE)
        world.first.chunks = [*thoughts(20, 1.0), (100.0, FINAL)]
        began = world.clock.monotonic()
        with pytest.raises(ServiceTimeout):
            await anext(world.stream())
        assert world.clock.monotonic() - began == 27.0 and verdicts(world)[FAILURE] == 1

    run_virtual(main)


def test_a_probe_that_thinks_keeps_its_lease() -> None:
    async def main() -> None:
        world = VirtualWorld(breaker=PROBING, retry=ONCE)
        await half_open(world)
        world.first.chunks = [*thoughts(50, 1.0), *words("42", pause_s=1.0)]
        async for _ in world.stream():
            pass
        assert world.service.default_guard.breaker.phase is CLOSED

    run_virtual(main)


# ── a reader's own time ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_slow_readers_time_is_in_no_percentile_alert_or_answer() -> None:
    async def main() -> None:
        world = VirtualWorld(daily_budget_usd=None)
        world.first.chunks = words("x", "y", pause_s=0.1)
        latencies = []

        async def read() -> None:
            chunks = world.stream()
            async for _ in chunks:
                await asyncio.sleep(40.0)
            assert chunks.answer is not None
            latencies.append(chunks.answer.latency_s)

        await asyncio.gather(*[read() for _ in range(25)])
        view = service_view(world.service, world.budgets.view("first"), world.clock)
        assert view["metrics"]["p95"] < 0.5 and view["metrics"]["recent"]["slow"] == 0
        assert latencies == pytest.approx([0.3] * 25)
        assert [one.kind for one in find(None, {"first": view})] == []

    run_virtual(main)


def test_koos_deadline_moves_by_the_readers_time_and_the_callers_does_not() -> None:
    async def main() -> None:
        world = VirtualWorld(timeout_s=30.0, stall_timeout_s=30.0)
        world.first.chunks = words("x", "y", "z", pause_s=1.0)

        async def read(timeout_s: float | None) -> int:
            chunks = world.stream(timeout_s=timeout_s)
            async for _ in chunks:
                await asyncio.sleep(20.0)
            assert chunks.answer is not None
            return len(chunks.answer.text)

        assert await read(None) == 3
        with pytest.raises(ServiceTimeout) as caught:
            await read(30.0)
        assert caught.value.kind == Kind.DEADLINE and verdicts(world) == [1, 0, 1, 0]

    run_virtual(main)


def test_koos_deadline_cuts_an_endless_stream_and_that_is_a_failure() -> None:
    async def main() -> None:
        world = VirtualWorld(timeout_s=30.0, retry=ONCE)
        world.first.chunks = words(*["x"] * 100, pause_s=1.0)
        with pytest.raises(ServiceTimeout) as caught:
            async for _ in world.stream():
                pass
        assert caught.value.kind == Kind.TIMEOUT and len(caught.value.partial_text) == 29
        assert verdicts(world)[FAILURE] == 1

    run_virtual(main)


def test_a_slow_reader_fails_no_probe() -> None:
    async def main() -> None:
        world = VirtualWorld(breaker=PROBING, retry=ONCE)
        await half_open(world)
        world.first.chunks = words("x", "y", pause_s=1.0)
        breaker = world.service.default_guard.breaker
        async for _ in world.stream():
            for _ in range(29):
                await asyncio.sleep(1.0)
                world.service.tick()
            assert breaker.phase is HALF_OPEN
        assert breaker.phase is CLOSED and breaker.trips == 1

    run_virtual(main)


def test_a_probe_whose_reader_stays_away_makes_room_for_another_and_can_still_be_read() -> None:
    async def main() -> None:
        world = VirtualWorld(breaker=PROBING, retry=ONCE)
        await half_open(world)
        world.first.chunks = words("x", "y", pause_s=1.0)
        chunks, breaker = world.stream(), world.service.default_guard.breaker
        await anext(chunks)
        for _ in range(31):
            await asyncio.sleep(1.0)
            world.service.tick()
        assert breaker.phase is HALF_OPEN
        assert str(await world.ask()) == "ok" and breaker.phase is CLOSED
        await asyncio.sleep(300.0)
        assert [str(chunk) async for chunk in chunks] == ["y"] and breaker.trips == 1

    run_virtual(main)


def test_an_operators_reset_does_not_cut_a_stream_that_probes() -> None:
    """The stream's first lease ends in the middle of a long silence."""

    async def main() -> None:
        world = VirtualWorld(breaker=PROBING, retry=ONCE, stall_timeout_s=300.0, timeout_s=600.0)
        await half_open(world)
        world.first.chunks = [*words("x", pause_s=1.0)[:1], *words("y", pause_s=100.0)]
        chunks = world.stream()
        await anext(chunks)
        reading = asyncio.create_task(anext(chunks))
        await asyncio.sleep(10.0)
        world.service.reset()
        assert str(await reading) == "y"

    run_virtual(main)


def test_an_operators_reset_does_not_cut_a_whole_answer_that_probes() -> None:
    async def main() -> None:
        world = VirtualWorld(breaker=PROBING, retry=ONCE)
        await half_open(world)

        async def slowly(request: object) -> object:
            await asyncio.sleep(45.0)
            return await world.second.complete(request)  # type: ignore[arg-type]

        world.first.script = [slowly]  # type: ignore[list-item]
        asking = asyncio.create_task(world.ask())
        await asyncio.sleep(10.0)
        world.service.reset()
        assert str(await asking) == "ok"

    run_virtual(main)


# ── another task closes it ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first_s", [0.0, 100.0])
def test_a_stream_may_be_closed_from_another_task_while_its_reader_waits(first_s: float) -> None:
    """The reader waits for the first content or a later one.

    When `aclose` returns, the provider's stream is closed, and the reader's iteration ends.
    """

    async def main() -> None:
        world = VirtualWorld(first_token_timeout_s=300.0, attempt_timeout_s=60.0, stall_timeout_s=300.0)
        world.first.chunks = [*words("one", pause_s=first_s)[:1], *words("two", pause_s=100.0)]
        chunks, read = world.stream(), list[str]()

        async def reader() -> None:
            async for chunk in chunks:
                read.append(str(chunk))

        reading = asyncio.create_task(reader())
        await asyncio.sleep(1.0)
        assert world.first.open == 1
        await asyncio.gather(chunks.aclose(), chunks.aclose())
        assert world.first.open == 0 and world.service.gates.bulkhead.used == 0
        await reading
        assert read == ([] if first_s else ["one"]) and chunks.answer is None
        assert verdicts(world)[NEUTRAL] == 1 and world.budgets.view("first").held_usd == 0
        assert reading.cancelling() == 0

    run_virtual(main)


def test_a_reader_that_is_cancelled_while_another_task_closes_its_stream_receives_the_cancellation() -> None:
    async def main() -> None:
        world = VirtualWorld()
        world.first.chunks = [*words("one", pause_s=0.0)[:1], *words("two", pause_s=100.0)]
        chunks = world.stream()
        await anext(chunks)
        reading = asyncio.create_task(anext(chunks))
        await asyncio.sleep(1.0)
        closing = asyncio.create_task(chunks.aclose())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await closing
        assert world.first.open == 0

    run_virtual(main)


def test_two_tasks_cannot_read_one_stream() -> None:
    async def main() -> None:
        world = VirtualWorld()
        world.first.chunks = words("one", pause_s=1.0)
        chunks = world.stream()
        reading = asyncio.create_task(anext(chunks))
        await asyncio.sleep(0.5)
        with pytest.raises(RuntimeError, match="a stream has one reader"):
            await anext(chunks)
        assert str(await reading) == "one"
        await chunks.aclose()

    run_virtual(main)


# ── how long an error lives ──────────────────────────────────────────────────────────────────────────────────────────

WAYS = ["fails", "hangs", "falls back", "all fail", "stalls", "hangs in a stream", "is read on"]


@pytest.mark.parametrize("way", WAYS)
def test_a_failed_calls_error_is_freed_when_its_caller_drops_it(way: str) -> None:
    """In a reference cycle, the error and everything in its frames would stay until the cycle collector runs."""
    import gc

    async def main() -> None:
        world = VirtualWorld(retry=ONCE, breaker=BreakerOptions(failure_threshold=1000))

        async def fail(request: object) -> object:
            raise ServiceFailed("first", "it failed", kind=Kind.SERVER_ERROR)

        async def hang(request: object) -> object:
            await asyncio.sleep(1e6)
            raise AssertionError

        act = hang if way == "hangs" else fail
        world.first.script, world.second.script = [act] * 9, [fail] * 9  # type: ignore[list-item]
        if way == "falls back":
            world.second.script = []
        begins = [] if way == "hangs in a stream" else [(0.1, CompletionChunk(text="one"))]
        world.first.chunks = [*begins, (1e6, FINAL)]
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await let_go(world, way)
            task = asyncio.create_task(let_go(world, way, caught=False))
            await asyncio.wait([task])
            assert isinstance(task.exception(), ExternalServiceError) or way == "falls back"
            del task
            gc.collect()
            kept = [one for one in gc.garbage if isinstance(one, ExternalServiceError)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert kept == []

    run_virtual(main)


async def let_go(world: VirtualWorld, way: str, *, caught: bool = True) -> None:
    try:
        if way in ("stalls", "hangs in a stream", "is read on"):
            chunks = world.stream()
            try:
                async for _ in chunks:
                    pass
            except ExternalServiceError:
                if way != "is read on":
                    raise
            await anext(chunks)
        else:
            await world.ask(fallback=("second",) if way in ("falls back", "all fail") else ())
    except ExternalServiceError:
        if not caught:
            raise
