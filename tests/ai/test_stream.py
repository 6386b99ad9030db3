"""A streamed answer has one permit and one hold for its whole life, however it ends."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from koo.ai.stream import AnswerStream
from koo.ai.types import Query
from koo.errors import ExternalServiceError, Kind, ServiceFailed, ServiceTimeout, StreamTruncated
from koo.options import RetryOptions
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, Fault
from koo.testing.polling import until
from koo.testing.providers import answer, error, hang, stream
from tests.ai.worlds import World, run

ONCE = RetryOptions(attempts_max=1)


def ask(world: World, **options: Any) -> AnswerStream:
    options.setdefault("service", "claude")
    return world.gateway.stream(Query(prompt="Count.", **options))


async def texts(chunks: AnswerStream) -> list[str]:
    return [str(chunk) async for chunk in chunks]


def verdicts(world: World) -> list[int]:
    return world.guard().tally.totals().verdicts


def test_pieces_arrive_unchanged_and_the_answer_is_complete_at_the_end() -> None:
    async def test(world: World) -> None:
        world.claude.script(stream(["one ", "two ", "three"], input_tokens=9))
        chunks = ask(world)
        assert await texts(chunks) == ["one ", "two ", "three"]
        assert chunks.answer is not None and chunks.answer.text == "one two three"
        assert chunks.answer.usage.input_tokens == 9 and not chunks.answer.usage.estimated
        assert chunks.answer.cost_usd == world.claude.billed_usd == world.spent_usd()
        assert verdicts(world)[SUCCESS] == 1 and world.nothing_is_taken()

    run(test)


def test_nothing_is_sent_before_the_first_piece_is_requested() -> None:
    async def test(world: World) -> None:
        ask(world)
        assert world.claude.requests == [] and world.nothing_is_taken()

    run(test)


@pytest.mark.parametrize(
    "first", [error(529, "overloaded_error"), stream([], error_after=0), stream([], end=False)]
)
def test_failures_before_the_first_piece_are_retried_unseen(first: Any) -> None:
    async def test(world: World) -> None:
        world.claude.script(first, stream(["ok"]))
        chunks = ask(world)
        assert await texts(chunks) == ["ok"]
        assert chunks.answer is not None and chunks.answer.attempts == 2 == len(world.claude.queries)

    run(test)


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (stream(["one ", "two "], cut_after=2), Kind.TRUNCATED_STREAM),
        (stream(["one ", "two "], error_after=2), Kind.OVERLOADED),
        (stream(["one ", "two "], end=False), Kind.TRUNCATED_STREAM),
        (stream(["one ", "two "], stall_after=2), Kind.STALLED),
        (stream(["one ", "two "], stall_after=2, ping_only=True), Kind.STALLED),
    ],
)
def test_after_the_first_piece_nothing_is_retried_and_the_error_has_the_text_so_far(
    step: Any, kind: Kind
) -> None:
    """Pings are not content: a server that only pings has stalled."""

    async def test(world: World) -> None:
        world.claude.script(step)
        chunks = ask(world)
        assert [str(await anext(chunks)), str(await anext(chunks))] == ["one ", "two "]
        with pytest.raises(StreamTruncated) as caught:
            await anext(chunks)
        assert caught.value.partial_text == "one two " and caught.value.kind == kind
        assert len(world.claude.queries) == 1 and verdicts(world)[FAILURE] == 1
        await until(lambda: world.claude.billed_usd > 0)
        assert world.spent_usd() >= world.claude.billed_usd, "at least what the provider billed is booked"
        assert world.nothing_is_taken()

    run(test, stall_timeout_s=0.2)


def test_silence_before_the_first_piece_ends_on_time() -> None:
    async def test(world: World) -> None:
        world.claude.script(hang())
        with pytest.raises(ServiceTimeout) as caught:
            await texts(ask(world))
        assert caught.value.kind == Kind.TIMEOUT and world.nothing_is_taken()

    run(test, first_token_timeout_s=0.1, retry=ONCE)


def test_the_callers_deadline_ends_a_stream_without_a_failure() -> None:
    async def test(world: World) -> None:
        world.claude.script(stream(["one "], stall_after=1, ping_only=True))
        with pytest.raises(ServiceTimeout) as caught:
            await texts(ask(world, timeout_s=0.3))
        assert caught.value.kind == Kind.DEADLINE and caught.value.partial_text == "one "
        assert verdicts(world)[NEUTRAL] == 1 and world.nothing_is_taken()

    run(test)


@pytest.mark.parametrize("way", ["aclose", "break", "cancel", "async with"])
def test_a_reader_that_leaves_stops_the_provider_and_pays_for_what_was_used(way: str) -> None:
    async def test(world: World) -> None:
        world.claude.script(stream(["one ", "two "], stall_after=2, ping_only=True))
        chunks: AnswerStream | None = ask(world)
        assert chunks is not None
        if way == "async with":
            async with chunks:
                await anext(chunks)
        elif way == "aclose":
            await anext(chunks)
            await chunks.aclose()
        elif way == "break":
            async for _ in chunks:
                break
            chunks = None
            gc.collect()
            await asyncio.sleep(0)  # it is settled by the loop, not by the garbage collector
        else:
            task = asyncio.ensure_future(texts(chunks))
            await until(lambda: bool(world.guard().breaker.running) and len(world.claude.queries) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert verdicts(world)[FAILURE] == 0 and verdicts(world)[NEUTRAL] == 1
        assert world.spent_usd() > 0 and world.nothing_is_taken()

    run(test)


def test_a_stream_dropped_in_another_thread_is_settled_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A settlement in the other thread would change a purse in the middle of another call's settlement."""
    settled_in: list[int] = []
    settle = AnswerStream._settle

    def watch(self: AnswerStream, fault: Fault, silent_s: float = 0.0) -> None:
        settled_in.append(threading.get_ident())
        settle(self, fault, silent_s)

    async def test(world: World) -> None:
        world.claude.script(stream(["one ", "two "], stall_after=2, ping_only=True))
        streams = [ask(world)]
        await anext(streams[0])
        await asyncio.to_thread(streams.clear)
        await until(lambda: bool(settled_in))
        assert settled_in == [threading.get_ident()]
        assert verdicts(world)[NEUTRAL] == 1 and world.spent_usd() > 0 and world.nothing_is_taken()

    monkeypatch.setattr(AnswerStream, "_settle", watch)
    run(test)


def test_after_its_end_a_stream_yields_nothing_more() -> None:
    async def test(world: World) -> None:
        world.claude.script(stream(["one"]))
        chunks = ask(world)
        assert await texts(chunks) == ["one"] and await texts(chunks) == []
        await chunks.aclose()
        assert len(world.claude.queries) == 1

    run(test)


def test_no_timer_of_koo_cuts_the_readers_own_awaits() -> None:
    async def test(world: World) -> None:
        world.claude.script(stream(["one ", "two"]))
        chunks = ask(world)
        await anext(chunks)
        await asyncio.sleep(0.3)
        assert await texts(chunks) == ["two"]

    run(test, stall_timeout_s=0.1, first_token_timeout_s=0.1, attempt_timeout_s=0.1)


def test_a_fallback_takes_over_before_the_first_piece() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(401, "authentication_error"))
        world.openai.script(answer("From the other."))
        chunks = ask(world, fallback=("openai",))
        assert "".join(await texts(chunks)) == "From the other."
        assert chunks.answer is not None and chunks.answer.service == "openai"

    run(test)


def test_an_error_of_a_stream_is_an_external_service_error() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(500, "api_error"))
        with pytest.raises(ExternalServiceError) as caught:
            await texts(ask(world))
        assert isinstance(caught.value, ServiceFailed)

    run(test, retry=ONCE)
