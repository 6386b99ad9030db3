"""Pieces of a stream that arrive together are yielded one by one, without reading a clock or setting a timer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from koo.ai.providers.base import CompletionChunk, Request
from koo.ai.types import Usage
from koo.errors import Kind, ServiceFailed, StreamTruncated
from koo.policies.verdict import FAILURE, SUCCESS
from koo.testing.clock import VirtualClock, run_virtual
from tests.ai.virtual import ONCE, MemoryProvider, VirtualWorld

END = CompletionChunk(final=True, usage=Usage(input_tokens=10, output_tokens=3))


class CountingClock(VirtualClock):
    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return super().monotonic()


class Together(MemoryProvider):
    """A stream of `portions`. The pieces of one arrive together, `pause_s` after the portion before. It may fail at its
    end.
    """

    pause_s = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.portions: list[list[str]] = []
        self.failure: Exception | None = None
        self.closed = False

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        try:
            for portion in self.portions:
                await asyncio.sleep(self.pause_s)
                for text in portion:
                    yield CompletionChunk(text=text)
            if self.failure is not None:
                raise self.failure
            yield END
        finally:
            self.closed = True


class PortionWorld(VirtualWorld):
    first: Together
    clock: CountingClock

    def __init__(self, *portions: list[str], **options: Any) -> None:
        super().__init__(retry=ONCE, **options)
        self.first.portions = list(portions)

    def make_clock(self) -> CountingClock:
        return CountingClock()

    def make_providers(self) -> tuple[MemoryProvider, MemoryProvider]:
        return Together(), MemoryProvider()

    def count(self, verdict: int) -> int:
        return self.service.default_guard.tally.totals().verdicts[verdict]


def test_pieces_that_have_arrived_are_yielded_without_reading_the_clock() -> None:
    async def main() -> None:
        world = PortionWorld(["a"] * 1000, ["b"] * 1000)
        stream = world.stream()
        assert str(await anext(stream)) == "a"
        world.clock.looks = 0
        for _ in range(999):
            assert str(await anext(stream)) == "a"
        assert world.clock.looks == 0
        assert str(await anext(stream)) == "b"
        assert world.clock.looks > 0
        await stream.aclose()

    run_virtual(main)


def test_the_readers_time_between_pieces_that_arrived_together_is_not_latency() -> None:
    async def main() -> None:
        world = PortionWorld(
            ["a"] * 5, ["b"] * 5, stall_timeout_s=2.0, timeout_s=20.0, attempt_timeout_s=10.0
        )
        texts = ""
        async for piece in world.stream():
            texts += str(piece)
            await asyncio.sleep(100)
        assert texts == "aaaaabbbbb"
        assert world.count(SUCCESS) == 1
        assert world.service.default_guard.tally.totals().percentile_s(0.99) <= 3.0

    run_virtual(main)


def test_an_error_is_raised_after_the_pieces_before_it() -> None:
    async def main() -> None:
        world = PortionWorld(["a", "b"])
        world.first.failure = ServiceFailed("first", "it failed", kind=Kind.SERVER_ERROR)
        stream = world.stream()
        assert [str(await anext(stream)) for _ in range(2)] == ["a", "b"]
        with pytest.raises(StreamTruncated) as caught:
            await anext(stream)
        assert caught.value.partial_text == "ab"
        assert world.count(FAILURE) == 1 and world.first.closed

    run_virtual(main)


@pytest.mark.parametrize("seen", [1, 2])
def test_leaving_or_cancelling_the_next_wait_closes_the_provider(seen: int) -> None:
    async def main() -> None:
        world = PortionWorld(["a", "b"], ["c"])
        stream = world.stream()
        for _ in range(seen):
            await anext(stream)
        if seen == 1:
            await stream.aclose()
        else:
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.5)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert world.first.closed and world.budgets.view("first").held_usd == 0
        assert world.service.gates.bulkhead.used == 0

    run_virtual(main)
