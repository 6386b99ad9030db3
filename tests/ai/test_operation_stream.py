"""A stream of a user's own operation, in each form that libraries have: one permit, slot and hold until its end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any

import openai
import pytest

from koo.deadlines import Deadline
from koo.errors import (
    BudgetExceeded,
    InvalidRequest,
    Kind,
    RateLimited,
    ServiceFailed,
    ServiceSaturated,
    ServiceTimeout,
    StreamTruncated,
)
from koo.policies.breaker import CLOSED, HALF_OPEN
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED, Verdict
from koo.testing.clock import run_virtual
from tests.ai.own import PRICED, Eager, Library, Own

ITERATORS = ["generator", "awaited", "answered"]
MANAGERS = ["manager", "awaited_manager"]


def run(test: Callable[[Own], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        await test(Own(**{**PRICED, **options}))

    run_virtual(main)


async def settled() -> None:
    """Wait until a separate task has closed what belonged to a dropped stream."""
    for _ in range(10):
        await asyncio.sleep(0)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ITERATORS)
def test_pieces_arrive_unchanged_in_every_form_of_stream(form: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a", None, 1.0, "b")
        assert [piece async for piece in own.stream(getattr(library, form))] == ["a", None, "b"]
        assert own.verdicts[SUCCESS] == 1 and own.spent_usd == 5
        assert own.nothing_is_taken() and (library.asked, library.open) == (1, 0)

    run(test)


@pytest.mark.parametrize("form", MANAGERS)
def test_a_managers_own_object_is_available_in_its_block(form: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a", 1.0, "b")
        async with own.stream(getattr(library, form)) as opened:
            assert opened.headers == {"x-request-id": "req_1"}
            assert [text async for text in opened.text_stream] == ["a", "b"]
            assert [text async for text in opened.iter_lines()] == ["a", "b"]
            assert [text async for text in await opened.parse()] == ["a", "b"]
            assert await opened.whole() == "ab"
            assert own.breaker.running, "until the end of the block"
        assert own.verdicts[SUCCESS] == 1 and own.nothing_is_taken()
        assert library.left_by == [None] and library.open == 0

    run(test)


def test_an_iterator_can_be_read_in_a_block_and_keeps_its_attributes() -> None:
    async def test(own: Own) -> None:
        async with own.stream(Library("a", "b").answered) as opened:
            assert opened.request_id == "req_1"
            assert [piece async for piece in opened] == ["a", "b"]
            assert own.nothing_is_taken(), "at the stream's own end, not the block's"
        assert own.verdicts[SUCCESS] == 1

    run(test)


@pytest.mark.parametrize("form", ITERATORS)
def test_awaiting_a_stream_opens_it_and_it_is_read_as_usual(form: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a", "b")
        stream = await own.stream(getattr(library, form))
        assert library.asked == 1 and own.breaker.running
        assert await list_of(stream) == ["a", "b"]
        async with await own.stream(getattr(library, form)) as opened:
            assert await list_of(opened) == ["a", "b"]
        assert own.verdicts[SUCCESS] == 2 == sum(own.verdicts) and own.nothing_is_taken()

    run(test)


def test_an_awaited_manager_ends_with_its_block_or_when_it_is_dropped() -> None:
    async def test(own: Own) -> None:
        library = Library("a", "b")
        async with await own.stream(library.manager) as opened:
            assert await opened.whole() == "ab"
        stream = await own.stream(library.manager)
        del stream
        await settled()
        assert own.verdicts[SUCCESS] == 1 == own.verdicts[NEUTRAL]
        assert own.nothing_is_taken() and len(library.left_by) == 2

    run(test)


@pytest.mark.parametrize("wrong", [None, ConnectionError("gone")])
def test_a_stream_read_directly_in_its_block_ends_there(wrong: Exception | None) -> None:
    """`async with stream: async for piece in stream`, with a manager whose object can be iterated too."""

    async def test(own: Own) -> None:
        library = Library("a", wrong or "b")
        given = Eager(library)
        library.open = 1

        async def read() -> list[Any]:
            stream = own.stream(lambda: _Gives(given))
            async with stream:
                return await list_of(stream)

        if wrong is None:
            assert await read() == ["a", "b"]
        else:
            with pytest.raises(ConnectionError, match="gone"):
                await read()
        assert own.verdicts[SUCCESS if wrong is None else FAILURE] == 1 == sum(own.verdicts)
        assert own.nothing_is_taken()

    run(test)


def test_the_error_for_a_manager_without_pieces_says_how_to_read_it() -> None:
    async def test(own: Own) -> None:
        library = Library("a")
        with pytest.raises(TypeError, match="async with stream_with_error_handling"):
            await anext(own.stream(library.manager))
        assert own.nothing_is_taken() and library.open == 0

    run(test)


def test_a_result_that_is_not_a_stream_is_refused() -> None:
    async def whole() -> str:
        return "an answer"

    async def test(own: Own) -> None:
        with pytest.raises(TypeError, match="for a whole answer call execute"):
            await anext(own.stream(whole))
        with pytest.raises(TypeError, match="not a coroutine"):
            _ = own.stream(whole())  # type: ignore[arg-type]
        assert own.nothing_is_taken() and own.verdicts[FAILURE] == 0

    run(test)


def test_a_stream_that_would_block_the_loop_is_refused_and_closed() -> None:
    class Blocking:
        closed = False

        def __next__(self) -> str:
            raise AssertionError("it would block")

        def close(self) -> None:
            self.closed = True

    async def test(own: Own) -> None:
        blocking = Blocking()
        with pytest.raises(TypeError, match="use the asynchronous client"):
            await anext(own.stream(lambda: blocking))
        assert blocking.closed and own.nothing_is_taken() and own.spent_usd == 5

    run(test)


def test_an_asynchronous_generator_is_accepted_even_if_its_object_has_a_blocking_client() -> None:
    """LangChain's models have a blocking client as well as an asynchronous one."""

    class Model:
        def __init__(self) -> None:
            self._client = openai.OpenAI(api_key="test-key")

        async def astream(self) -> AsyncGenerator[str, None]:
            yield "a"

    async def test(own: Own) -> None:
        assert await list_of(own.stream(Model().astream)) == ["a"]

    run(test)


def test_an_unread_stream_sends_nothing_takes_no_permit_and_causes_no_warning() -> None:
    async def test(own: Own) -> None:
        library = Library("a")
        streams = [own.stream(getattr(library, form)) for form in ITERATORS + MANAGERS]
        del streams
        gc.collect()
        await settled()
        assert library.asked == 0 and own.nothing_is_taken() and sum(own.verdicts) == 0

    run(test)


# ── until the first piece, and after it ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ITERATORS)
def test_failures_of_an_operation_before_the_first_piece_are_retried_unseen(form: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a")
        library.failures = [ConnectionError(), ConnectionError()]
        assert [piece async for piece in own.stream(getattr(library, form))] == ["a"]
        assert library.asked == 3 and own.verdicts[FAILURE] == 2 and own.verdicts[SUCCESS] == 1

    run(test, idempotent=True)


def test_entering_a_block_is_retried_but_nothing_inside_it() -> None:
    async def test(own: Own) -> None:
        library = Library("a", ConnectionError("gone"))
        library.failures = [ConnectionError()]
        with pytest.raises(ConnectionError, match="gone"):
            async with own.stream(library.manager) as opened:
                await opened.whole()
        assert library.asked == 2 and own.verdicts[FAILURE] == 2 and library.open == 0

    run(test, idempotent=True)


@pytest.mark.parametrize("form", ITERATORS)
def test_a_stream_that_breaks_off_is_a_failure_and_is_not_retried(form: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a", ConnectionError("gone"))
        stream = own.stream(getattr(library, form))
        assert await anext(stream) == "a"
        with pytest.raises(ConnectionError, match="gone"):
            await anext(stream)
        with pytest.raises(ServiceFailed, match="already failed"):
            await anext(stream)
        assert library.asked == 1 and own.verdicts[FAILURE] == 1 and own.breaker.consecutive == 1
        assert own.nothing_is_taken() and own.spent_usd == 5 and library.open == 0

    run(test, idempotent=True)


def test_an_external_service_error_becomes_a_truncated_stream() -> None:
    async def test(own: Own) -> None:
        overloaded = ServiceFailed("own", "too many callers", kind=Kind.OVERLOADED)
        stream = own.stream(Library("a", overloaded).generator)
        await anext(stream)
        with pytest.raises(StreamTruncated, match="the stream broke off: too many callers") as caught:
            await anext(stream)
        assert caught.value.kind is Kind.OVERLOADED and caught.value.__cause__ is overloaded
        assert own.spent_usd == 5, "a partial answer is paid for, however it ends"

    run(test)


def test_a_failure_caught_in_the_block_is_still_a_failure() -> None:
    async def test(own: Own) -> None:
        async with own.stream(Library("a", ConnectionError()).manager) as opened:
            with pytest.raises(ConnectionError):
                await opened.whole()
            assert await opened.count() == 2, "a later successful call does not make the stream whole"
        assert own.verdicts[FAILURE] == 1 == sum(own.verdicts) and own.nothing_is_taken()

    run(test)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (RateLimited("own", "too fast", 30.0, kind=Kind.THROTTLED), THROTTLED),
        (ServiceFailed("own", "it failed", kind=Kind.SERVER_ERROR), FAILURE),
        (InvalidRequest("own", "no such page", kind=Kind.NOT_FOUND), NEUTRAL),
        (TypeError("no such argument"), NEUTRAL),
    ],
)
def test_an_error_raised_by_the_objects_own_method_counts_without_a_wait_too(
    error: Exception, verdict: Verdict
) -> None:
    """`raise_for_status` of a streamed response, for example. A refusal before anything was read costs nothing."""

    async def test(own: Own) -> None:
        library = Library("a")

        async def read() -> None:
            async with own.stream(library.manager) as opened:
                library.failures.append(error)
                opened.check()

        with pytest.raises(type(error)) as caught:
            await read()
        assert caught.value is error
        assert own.verdicts[verdict] == 1 == sum(own.verdicts) and own.nothing_is_taken()
        assert own.spent_usd == (5 if isinstance(error, TypeError) else 0)

    run(test, **PRICED)


def test_the_blocks_own_error_is_not_the_services_failure() -> None:
    async def test(own: Own) -> None:
        library = Library("a", "b")

        async def read() -> None:
            async with own.stream(library.manager) as opened:
                await anext(opened.text_stream)
                raise ConnectionError("another host")

        with pytest.raises(ConnectionError, match="another host") as caught:
            await read()
        assert own.verdicts[NEUTRAL] == 1 and own.verdicts[FAILURE] == 0
        assert library.left_by == [caught.value], "the manager sees how its block ended"

    run(test)


@pytest.mark.parametrize("way", ["raised again", "handled", "replaced", "answered"])
def test_how_a_reader_ended_reaches_the_generator(way: str) -> None:
    """`asynccontextmanager`, and so a dependency of FastAPI, throws the error of its block into the generator."""
    seen: list[BaseException] = []

    async def operation() -> AsyncGenerator[str]:
        try:
            yield "open"
        except ConnectionError as error:
            seen.append(error)
            if way == "raised again":
                raise
            if way == "replaced":
                raise ConnectionResetError("here") from error
            if way == "answered":
                yield "closing"

    async def test(own: Own) -> None:
        stream, error = own.stream(operation), ConnectionError("another host")
        assert await anext(stream) == "open"
        ends = {
            "handled": StopAsyncIteration,
            "replaced": ConnectionResetError,
            "raised again": ConnectionError,
        }
        if way == "answered":
            assert await stream.athrow(error) == "closing"
            await stream.aclose()
        else:
            with pytest.raises(ends[way]):
                await stream.athrow(error)
        verdict = {"handled": SUCCESS, "replaced": FAILURE}.get(way, NEUTRAL)
        assert seen == [error] and own.verdicts[verdict] == 1 == sum(own.verdicts)
        assert own.nothing_is_taken()

    run(test)


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_a_readers_stop_iteration_is_not_the_services_failure(kind: type[Exception]) -> None:
    """A `next()` in the block raises it, and the generator a RuntimeError in its place."""

    async def operation() -> AsyncGenerator[str]:
        yield "open"

    async def test(own: Own) -> None:
        with pytest.raises(kind):
            async with asynccontextmanager(own.stream)(operation):
                raise kind("of the reader")
        assert own.verdicts[NEUTRAL] == 1 == sum(own.verdicts) and own.nothing_is_taken()

    run(test)


def test_a_piece_that_follows_a_thrown_error_is_paid_for() -> None:
    async def operation() -> AsyncGenerator[object]:
        try:
            yield "open"
        except ConnectionError:
            yield {"cost": 3}

    async def test(own: Own) -> None:
        stream = own.stream(operation)
        assert await anext(stream) == "open"
        assert await stream.athrow(ConnectionError()) == {"cost": 3}
        await stream.aclose()
        assert own.spent_usd == 3

    run(test, cost_usd=lambda piece: piece["cost"] if isinstance(piece, dict) else 0)


@pytest.mark.parametrize("form", ["generator", "answered"])
def test_an_error_thrown_into_a_stream_keeps_neither_the_stream_nor_itself_alive(form: str) -> None:
    class Mine(Exception):
        """An error that can be referred to weakly, as those of the standard library cannot."""

    async def throw(own: Own) -> list[weakref.ref[object]]:
        stream, error = own.stream(getattr(Library("a", "b"), form)), Mine()
        await anext(stream)
        with suppress(Mine):
            await stream.athrow(error)
        try:
            return [weakref.ref(stream), weakref.ref(error)]
        finally:
            del error

    async def test(own: Own) -> None:
        gc.disable()
        try:
            assert [kept() for kept in await throw(own)] == [None, None]
        finally:
            gc.enable()

    run(test)


def test_an_error_thrown_into_a_stream_that_is_not_a_generator_closes_it() -> None:
    async def test(own: Own) -> None:
        library, error = Library("a", "b"), ValueError("mine")
        stream = own.stream(library.answered)
        for _ in range(2):
            with pytest.raises(ValueError, match="mine") as caught:
                await stream.athrow(error)
            assert caught.value is error
        stream = own.stream(library.answered)
        await anext(stream)
        with pytest.raises(ValueError, match="mine"):
            await stream.athrow(error)
        assert (
            library.open == 0 and own.verdicts[NEUTRAL] == 1 == sum(own.verdicts) and own.nothing_is_taken()
        )

    run(test)


# ── streams left early ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ITERATORS)
@pytest.mark.parametrize("way", ["aclose", "break", "block", "cancel"])
def test_a_stream_left_early_is_neutral_closed_and_paid_for(way: str, form: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a", 5.0, "b", 5.0, "c")
        operation = getattr(library, form)
        if way == "aclose":
            stream = own.stream(operation)
            assert await anext(stream) == "a"
            await stream.aclose()
            assert [piece async for piece in stream] == []
        elif way == "break":
            async for piece in own.stream(operation):
                if piece == "b":
                    break
            gc.collect()
            await settled()
        elif way == "block":
            async with own.stream(operation) as opened:
                assert await anext(opened) == "a"
        else:
            reading = asyncio.create_task(list_of(own.stream(operation)))
            await asyncio.sleep(1.0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert own.verdicts[NEUTRAL] == 1 == sum(own.verdicts)
        assert own.nothing_is_taken() and library.open == 0 and own.spent_usd == 5

    run(test)


@pytest.mark.parametrize("way", ["block", "close", "cancel", "unasked", "parsed"])
def test_a_manager_left_early_is_neutral_closed_and_paid_for(way: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a", 5.0, "b")

        async def read() -> None:
            async with own.stream(library.manager) as opened:
                if way == "unasked":
                    return
                if way == "parsed":
                    await opened.parse()
                    return
                assert await opened.count() == 3, "an earlier successful call does not make the stream whole"
                assert await anext(opened.text_stream) == "a"
                if way == "close":
                    await opened.close()
                    assert own.nothing_is_taken()
                if way == "cancel":
                    await opened.whole()

        reading = asyncio.create_task(read())
        await asyncio.sleep(1.0)
        if way == "cancel":
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        else:
            await reading
        assert own.verdicts[NEUTRAL] == 1 == sum(own.verdicts)
        assert own.nothing_is_taken() and library.open == 0 and own.spent_usd == 5
        assert len(library.left_by) == 1

    run(test)


async def list_of(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


def test_a_readers_cancellation_that_the_operation_reports_as_its_own_error_is_not_a_failure() -> None:
    async def operation() -> AsyncGenerator[str]:
        yield "a"
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            raise ConnectionError("the connection was closed") from None

    async def test(own: Own) -> None:
        reader = asyncio.create_task(list_of(own.stream(operation)))
        await asyncio.sleep(1)
        reader.cancel()
        with pytest.raises(ConnectionError):
            await reader
        assert own.verdicts[NEUTRAL] == 1 == sum(own.verdicts) and own.nothing_is_taken()

    run(test)


def test_another_task_may_close_a_stream_and_the_readers_iteration_ends() -> None:
    async def test(own: Own) -> None:
        library = Library("a", 50.0, "b")
        stream = own.stream(library.generator)
        reading = asyncio.create_task(list_of(stream))
        await asyncio.sleep(1.0)
        await stream.aclose()
        assert await reading == ["a"]
        assert own.verdicts[NEUTRAL] == 1 and own.nothing_is_taken() and library.open == 0

    run(test)


def test_another_task_may_close_a_block_and_its_wait_raises() -> None:
    async def test(own: Own) -> None:
        library = Library("a", 50.0, "b")
        stream = own.stream(library.manager)

        async def read() -> None:
            async with stream as opened:
                await opened.whole()

        reading = asyncio.create_task(read())
        await asyncio.sleep(1.0)
        await stream.aclose()
        with pytest.raises(ServiceFailed, match="closed by another task"):
            await reading
        assert own.verdicts[NEUTRAL] == 1 and own.nothing_is_taken() and library.open == 0

    run(test)


def test_a_stream_has_one_reader() -> None:
    async def test(own: Own) -> None:
        stream = own.stream(Library(1.0, "a").generator)
        reading = asyncio.create_task(list_of(stream))
        await asyncio.sleep(0.5)
        with pytest.raises(RuntimeError, match="a stream has one reader"):
            await anext(stream)
        assert await reading == ["a"]

    run(test)


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

SHORT: dict[str, Any] = {"attempt_timeout_s": 10.0, "slow_s": 5.0, "timeout_s": 60.0}


def test_a_slot_is_taken_until_the_end() -> None:
    async def test(own: Own) -> None:
        first = own.stream(Library("a", "b").generator)
        assert await anext(first) == "a"
        second = own.stream(Library("c").generator)
        waiting = asyncio.create_task(anext(second))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        with pytest.raises(ServiceSaturated):
            await anext(own.stream(Library("d").generator))
        assert await anext(first) == "b"
        assert [piece async for piece in first] == []
        assert await waiting == "c"
        await second.aclose()

    run(test, concurrency_max=1, queue_max=1)


@pytest.mark.parametrize("form", [*ITERATORS, "manager"])
def test_silence_longer_than_the_attempt_timeout_is_a_failure(form: str) -> None:
    async def test(own: Own) -> None:
        library, began = Library("a", 9.0, "b", 50.0, "c"), own.clock.monotonic()

        async def read() -> None:
            async with own.stream(getattr(library, form)) as opened:
                await list_of(opened.iter_lines() if form == "manager" else opened)

        with pytest.raises(StreamTruncated, match="fell silent") as caught:
            await read()
        assert own.clock.monotonic() - began == 19.0
        assert caught.value.kind is Kind.STALLED and own.verdicts[FAILURE] == 1
        assert own.nothing_is_taken() and library.open == 0

    run(test, **SHORT)


def test_after_a_caught_silence_other_errors_are_judged_on_their_own() -> None:
    async def test(own: Own) -> None:
        async with own.stream(Library("a", 50.0).manager) as opened:
            with pytest.raises(StreamTruncated, match="fell silent"):
                await opened.whole()
            with pytest.raises(ValueError, match="no such row"):
                await opened.wrong()
        assert own.verdicts[FAILURE] == 1 == sum(own.verdicts)

    run(test, **SHORT)


@pytest.mark.parametrize("form", ITERATORS)
def test_the_first_piece_must_arrive_within_the_attempt_timeout(form: str) -> None:
    async def test(own: Own) -> None:
        library = Library(50.0, "a")
        began = own.clock.monotonic()
        with pytest.raises(ServiceTimeout):
            await anext(own.stream(getattr(library, form)))
        assert own.clock.monotonic() - began == 10.0
        assert own.verdicts[FAILURE] == 1 and own.nothing_is_taken() and library.open == 0

    run(test, **SHORT)


def test_the_deadline_ends_a_stream_and_excludes_the_readers_time() -> None:
    async def test(own: Own) -> None:
        came, began = 0, own.clock.monotonic()

        async def read() -> None:
            nonlocal came
            async for _ in own.stream(Library("a", *[5.0, "b"] * 20).generator):
                came += 1
                await asyncio.sleep(100.0)

        with pytest.raises(ServiceTimeout, match="the deadline passed") as caught:
            await read()
        assert caught.value.kind is Kind.TIMEOUT and own.verdicts[FAILURE] == 1
        assert came == 12 and own.clock.monotonic() - began == 60.0 + 12 * 100.0
        assert own.nothing_is_taken()

    run(test, **SHORT)


def test_the_callers_deadline_ends_an_operations_stream_without_a_failure() -> None:
    async def test(own: Own) -> None:
        library = Library("a", 5.0, "b", 5.0, "c")

        async def read() -> None:
            async with Deadline(7.0):
                await list_of(own.stream(library.generator))

        with pytest.raises(TimeoutError):
            await read()
        assert own.verdicts[NEUTRAL] == 1 and own.verdicts[FAILURE] == 0
        assert own.nothing_is_taken() and library.open == 0

    run(test, **SHORT)


def test_a_hanging_close_keeps_nothing_forever(caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn() -> AsyncGenerator[str, None]:
        try:
            yield "a"
        finally:
            await asyncio.sleep(1000.0)

    async def test(own: Own) -> None:
        stream, began = own.stream(stubborn), own.clock.monotonic()
        await anext(stream)
        await stream.aclose()
        assert own.clock.monotonic() - began == 10.0 and own.nothing_is_taken()

    run(test, **SHORT)
    assert [record.getMessage() for record in caplog.records] == [
        "own: a stream could not be closed: TimeoutError"
    ]


# ── probes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

PROBING: dict[str, Any] = {
    "failure_threshold": 1,
    "recovery_timeout": 60,
    "success_threshold": 1,
    "timeout_s": 600.0,
    "attempt_timeout_s": 300.0,
}


async def half_open(own: Own) -> None:
    async def fail() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await own.execute(fail)
    await asyncio.sleep(100.0)


@pytest.mark.parametrize("form", [*ITERATORS, "manager"])
def test_pieces_renew_the_lease_of_a_probe_and_only_the_end_closes_the_breaker(form: str) -> None:
    """The stream lasts four leases."""

    async def test(own: Own) -> None:
        await half_open(own)
        async with own.stream(getattr(Library("a", *[20.0, "b"] * 6), form)) as opened:
            async for _ in opened.iter_lines() if form == "manager" else opened:
                assert own.breaker.phase is HALF_OPEN
        assert own.breaker.phase is CLOSED

    run(test, **PROBING)


def test_a_silent_probe_ends_with_its_lease() -> None:
    async def test(own: Own) -> None:
        await half_open(own)
        stream = own.stream(Library("a", 250.0, "b").generator)
        await anext(stream)
        began = own.clock.monotonic()
        with pytest.raises(StreamTruncated):
            await anext(stream)
        assert own.clock.monotonic() - began == 30.0 and own.verdicts[FAILURE] == 2

    run(test, **PROBING)


@pytest.mark.parametrize("form", [*ITERATORS, "manager"])
def test_a_probe_left_immediately_does_not_close_the_breaker(form: str) -> None:
    async def test(own: Own) -> None:
        await half_open(own)
        async with own.stream(getattr(Library("a", "b"), form)):
            pass
        assert own.breaker.phase is HALF_OPEN and own.nothing_is_taken()

    run(test, **PROBING)


# ── money ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def told(piece: Any) -> Any:
    """A cost function that reads usage. It raises for most pieces, which have none."""
    return piece["usd"]


def test_the_last_amount_reported_by_a_piece_is_booked() -> None:
    async def test(own: Own) -> None:
        assert (
            len(await list_of(own.stream(Library("a", {"usd": 1}, "b", {"usd": "2.5"}, "c").generator))) == 5
        )
        assert own.spent_usd == Decimal("2.5")

    run(test, cost_usd=told)


def test_without_a_reported_amount_the_hold_is_booked(caplog: pytest.LogCaptureFixture) -> None:
    async def test(own: Own) -> None:
        await list_of(own.stream(Library("a", "b").generator))
        assert own.spent_usd == 5

    run(test, cost_usd=told)
    assert [record.getMessage() for record in caplog.records] == [
        "cost_usd failed for each piece, so the call's maximum cost is booked"
    ]


@pytest.mark.parametrize(("last", "booked"), [({"usd": 1}, 1), ("more than was reported", 5)])
def test_a_stream_left_early_is_booked_at_the_hold_unless_its_last_piece_had_the_cost(
    last: Any, booked: int
) -> None:
    async def test(own: Own) -> None:
        stream = own.stream(Library({"usd": 1}, last, "never read").generator)
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        assert own.spent_usd == booked

    run(test, cost_usd=told)


def test_the_result_of_a_call_in_the_block_may_report_the_cost() -> None:
    class Answering(Library):
        async def ask(self) -> dict[str, int]:
            return {"usd": 3}

    library = Answering()

    async def test(own: Own) -> None:
        async with own.stream(lambda: _Gives(library)) as opened:
            await opened.ask()
        assert own.spent_usd == 3 and own.verdicts[SUCCESS] == 1

    run(test, cost_usd=told)


class _Gives:
    """The simplest context manager."""

    def __init__(self, given: Any) -> None:
        self._given = given

    async def __aenter__(self) -> Any:
        return self._given

    async def __aexit__(self, kind: object, error: object, trace: object) -> None: ...


@pytest.mark.parametrize("form", [*ITERATORS, "manager"])
def test_with_a_used_up_budget_nothing_is_sent(form: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a")
        with pytest.raises(BudgetExceeded):
            async with own.stream(getattr(library, form)):
                pass
        assert library.asked == 0

    run(test, daily_budget=4)


def test_an_operation_refused_before_its_call_costs_nothing() -> None:
    def wrong() -> Any:
        raise ValueError("no such model")

    async def test(own: Own) -> None:
        with pytest.raises(ValueError, match="no such model"):
            await anext(own.stream(wrong))
        assert own.spent_usd == 0 and own.nothing_is_taken()

    run(test)
