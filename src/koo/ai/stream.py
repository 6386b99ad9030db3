"""A streamed answer: an object with an end, not a generator.

A generator that held a timeout across its `yield` would cancel its consumer's own awaits. So each wait for the next
content has its own bound, and nothing is armed while the consumer has the turn.

What is bounded is silence. Each piece of content or reasoning renews all timers and a probe's lease; a ping renews
none. The consumer's own time between two pieces is nobody's latency: our own deadline moves on by it, a probe's lease
stands still, and no percentile sees it. Only a deadline that the caller brought stays where it is.

Until the first content the guard may repeat; from then on nothing is repeated. One permit lasts for the whole stream.
It ends in exactly one way: at the provider's own end (success), with an error (its kind decides), or because the
consumer left (neutral). Each time what was used is booked: leaving does not make the provider's bill smaller.

Another task than the consumer's may close it. The consumer's wait is then ended as a deadline ends it, in the
consumer's own task: a generator that is running cannot be closed from outside.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from typing import NoReturn

from koo.ai.open_answer import Begun, learn_pace
from koo.ai.providers.base import Completion, CompletionChunk, Pace
from koo.ai.providers.transport import bound_text
from koo.ai.query_charge import QueryCharge
from koo.ai.service import AIService
from koo.ai.types import Answer, Chunk, Usage
from koo.attempt import OVERDUE, TIMED_OUT
from koo.clock import Clock
from koo.deadlines import Alarm, Deadlines, Lasting, resumed
from koo.errors import ExternalServiceError, Kind, ServiceFailed, ServiceTimeout, StreamTruncated
from koo.guard import Scope
from koo.http.connector import departure
from koo.options import NEVER
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, Fault


class Silence(Lasting):
    """Rings when a stream has been silent for `longest_s`, or a probe's lease or the call's own time is over.

    `since` is when it last gave a sign of life, in monotonic seconds; `until` is the end of the call, whatever comes.
    """

    __slots__ = ("_clock", "_scope", "longest_s", "since", "until")

    def __init__(self, registry: Deadlines, clock: Clock, scope: Scope[StreamedCompletion]) -> None:
        super().__init__(registry)
        self._clock = clock
        self._scope = scope
        self.longest_s = self.until = NEVER
        self.since = clock.monotonic()

    def ends(self) -> float:
        return min(self.since + self.longest_s, self.until, self._scope.permit.lease_ends_at)

    def renew(self) -> None:
        """A sign of life, or the reader is back."""
        self.since = self._clock.monotonic()
        self._scope.renew()


class StreamedCompletion:
    """The chunks of one attempt, and the completion that they have become so far. `first` is its first content.

    `silence` is renewed by what the model thinks. Each usage report goes on to the `charge`. What came since the last
    one, reasoning included, is counted in bytes: no tokenizer makes more tokens of a text than that.
    """

    __slots__ = ("_charge", "_cost_usd", "_hear", "_model", "_request_id", "_stop_reason", "_texts", "_unreported",
                 "_usage", "chunks", "first", "silence")  # fmt: skip

    def __init__(
        self,
        chunks: AsyncGenerator[CompletionChunk, None],
        charge: QueryCharge,
        silence: Silence,
        hear: Callable[[tuple[Pace, ...]], None],
    ) -> None:
        self.chunks = chunks
        self.silence = silence
        self._charge = charge
        self.first = ""
        self._hear = hear
        self._texts: list[str] = []
        self._usage: Usage | None = None
        self._cost_usd: Decimal | None = None
        self._unreported = 0
        self._model: str | None = None
        self._stop_reason: str | None = None
        self._request_id: str | None = None

    async def next_text(self) -> str | None:
        """The next content, or None at the provider's own end; pings and reports are taken in on the way."""
        async for chunk in self.chunks:
            self._take_in(chunk)
            if chunk.text:
                if not chunk.reasoning:
                    self._texts.append(chunk.text)
                    return chunk.text
                self.silence.renew()
                if not self._texts:
                    self.silence.until = (
                        NEVER  # it has begun to answer: an attempt's time is for those that do not
                    )
            if chunk.final:
                break
        return None

    def _take_in(self, chunk: CompletionChunk) -> None:
        if chunk.pace:
            self._hear(chunk.pace)
        self._unreported += bound_text(chunk.text)
        if chunk.usage is not None and not chunk.usage.estimated:
            self._take_report(chunk, chunk.usage)
        self._cost_usd = chunk.cost_usd if chunk.cost_usd is not None else self._cost_usd
        self._model = chunk.model or self._model
        self._stop_reason = chunk.stop_reason or self._stop_reason
        self._request_id = chunk.request_id or self._request_id

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def _take_report(self, chunk: CompletionChunk, usage: Usage) -> None:
        self._usage = usage if self._usage is None else self._usage.grown(usage)
        if chunk.output_counted and usage.output_tokens:
            self._unreported = 0
        self._charge.report(self._usage, input_counted=chunk.input_counted)

    def completion(self) -> Completion:
        """What it came to; where not all of it was reported, its usage is an upper bound, marked as an estimate."""
        return Completion(
            text=self.text,
            model=self._model or self._charge.model,
            usage=self._usage_so_far(),
            stop_reason=self._stop_reason,
            request_id=self._request_id,
            cost_usd=self._cost_usd,
        )

    def _usage_so_far(self) -> Usage:
        usage = self._usage or Usage()
        if not usage.read_tokens:
            usage = replace(usage, input_tokens=self._charge.input_tokens_max, estimated=True)
        if self._unreported:
            # A token may be each byte; but there are no more of them than were asked for.
            written = min(usage.output_tokens + self._unreported, self._charge.request.max_tokens)
            usage = replace(usage, output_tokens=max(written, usage.output_tokens), estimated=True)
        return usage


class AnswerStream:
    """`async for chunk in stream:` yields `Chunk`s; afterwards `stream.answer` is the whole `Answer`.

    Leaving early (`break`, `aclose()`, cancellation) closes the connection and settles what was used; `aclose()` may
    come from another task. Raises `ExternalServiceError`: before the first content as a query does, later
    `StreamTruncated` with `partial_text`; read on after that, it says in a `ServiceFailed` that it has failed.
    """

    def __init__(
        self, service: str, start: Callable[[], Awaitable[Begun[StreamedCompletion]]], deadlines: Deadlines
    ) -> None:
        self._service = service
        self._start = start
        self._deadlines = deadlines
        self._begun: Begun[StreamedCompletion] | None = None
        self._closed = False
        self._failed: tuple[str, Kind] | None = (
            None  # not the error itself, whose traceback leads back to here
        )
        self._waits: Alarm | None = None  # of the reader, while it waits for a piece
        self._left: asyncio.Event | None = None  # another task has closed it: set when that is done
        self._turn_at = self._provider_s = self._away_s = 0.0
        self.answer: Answer | None = None

    def __aiter__(self) -> AnswerStream:
        return self

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Chunk:
        if self._closed:
            self._refuse()
        if self._waits is not None:
            raise RuntimeError("another task is reading this stream already: a stream has one reader")
        begun = self._begun
        try:
            text = await self._next_text(begun) if begun is not None else await self._begin()
        except BaseException as error:
            self._closed = True
            self._note_failure(error)
            raise
        finally:
            self._waits = None
            if self._left is not None:
                self._left.set()
        if text:
            return Chunk(text)
        assert self._begun is not None
        await self._finish(self._begun)
        raise StopAsyncIteration

    # ── the life of a stream ──────────────────────────────────────────────────────────────────────────────────

    async def _begin(self) -> str:
        self._waits = opening = Alarm(self._deadlines, NEVER)
        try:
            with opening:
                begun = self._begun = await self._start()
        except TimeoutError:
            if opening.expired:
                raise StopAsyncIteration from None
            raise
        await self._leave_if_asked(begun)
        begun.learn_pace((), None)
        silence = begun.scope.value.silence
        silence.until, silence.longest_s = begun.scope.deadline, begun.service.options.stall_timeout_s
        self._hand_over(begun, begun.scope.permit.given_at)
        return begun.scope.value.first

    async def _next_text(self, begun: Begun[StreamedCompletion]) -> str | None:
        silence, reading, silent_s = begun.scope.value.silence, begun.scope.value.next_text(), 0.0
        try:
            try:
                waits_for = reading.send(None)
            except StopIteration as come:
                # It was here already, so there is nothing to bound. Of events that come together this saves half.
                text: str | None = come.value
                return text
            silence.renew()
            asked_at = silence.since
            self._take_over(begun, asked_at)
            self._waits = silence
            with silence:
                text = await resumed(reading, waits_for)
        except BaseException as error:  # noqa: BLE001 - it is raised again, or what its reader is told in its place
            reading.close()  # else its generator would still be running, and could not be closed below
            if self._waits is not None:
                silent_s = begun.guard.now() - silence.since
            self._waits = None  # what waits from here on is the closing, which nobody else may end
            is_left = silence.expired and self._left is not None
            fault, seen = (CANCELLED, None) if is_left else _judge(begun, error, silence)
            try:
                await self._end(begun, fault, silent_s)
                if is_left:
                    raise StopAsyncIteration from None
                if seen is not None:
                    raise seen from error
                raise
            finally:
                del seen  # its traceback keeps this frame, and the frame would keep it
        await self._leave_if_asked(begun)
        self._hand_over(begun, asked_at)
        return text

    def _hand_over(self, begun: Begun[StreamedCompletion], asked_at: float) -> None:
        """The reader gets the turn."""
        self._turn_at = begun.guard.now()
        self._provider_s += self._turn_at - asked_at
        begun.scope.rest()

    def _take_over(self, begun: Begun[StreamedCompletion], now: float) -> None:
        """The reader is back: what it took is no time of the provider's, so ours is longer by it."""
        away_s = now - self._turn_at
        self._away_s += away_s
        passage = begun.scope.passage
        if passage.is_ours:
            passage.deadline += away_s
            begun.scope.value.silence.until = passage.deadline

    async def _leave_if_asked(self, begun: Begun[StreamedCompletion]) -> None:
        """Another task closed the stream in the step in which a piece came."""
        if self._left is not None:
            await self._end(begun, CANCELLED)
            raise StopAsyncIteration

    async def _finish(self, begun: Begun[StreamedCompletion]) -> None:
        """The provider's own end."""
        streamed = begun.scope.value
        self._closed = True
        # A long answer is not a slow one: what counts as slow is the time to the first content, which `begin` saw.
        self.answer = begun.end(
            streamed.completion(), slow=False, took_s=self._provider_s, away_s=self._away_s
        )
        begun.guarded.measure(begun.guard, self.answer.usage)
        await streamed.chunks.aclose()

    async def _end(self, begun: Begun[StreamedCompletion], fault: Fault, silent_s: float = 0.0) -> None:
        """An end before the provider's own, after a silence of so many seconds."""
        self._settle(begun, fault, silent_s)
        await begun.scope.value.chunks.aclose()

    def _settle(self, begun: Begun[StreamedCompletion], fault: Fault, silent_s: float = 0.0) -> None:
        self._closed = True
        begun.charge.note(begun.scope.value.completion())
        # A stream that was answered has been billed, whatever its end.
        begun.scope.settle(
            Fault(verdict=fault.verdict, kind=fault.kind, retry_after_s=fault.retry_after_s, billed=True),
            took_s=silent_s,
        )

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, StopAsyncIteration):
            return
        if isinstance(error, ExternalServiceError):
            self._failed = error.reason, error.kind
        else:
            self._failed = "its reader was cancelled", Kind.CANCELLED

    def _refuse(self) -> NoReturn:
        """It is over: the end, or that it had failed."""
        if self._failed is None:
            raise StopAsyncIteration
        reason, kind = self._failed
        sentence = f"this stream has failed already ({reason}); start a new one to ask again"
        error = ServiceFailed(self._service, sentence, kind=kind)
        if self._begun is not None:
            error.partial_text = self._begun.scope.value.text
        try:
            raise error
        finally:
            del error

    async def aclose(self) -> None:
        """Leave: the provider stops, what was used is settled, and the breaker learns nothing from it.

        From another task than the reader's: the reader's wait ends as at the end of the stream.
        """
        waits = self._waits
        if waits is not None and waits.task is not asyncio.current_task():
            if self._left is None:
                self._left = asyncio.Event()
                waits.cut()
            await self._left.wait()
            return
        closed, self._closed = self._closed, True
        if not closed and self._begun is not None:
            await self._end(self._begun, CANCELLED)

    def __del__(self) -> None:
        # `break` in an `async for` closes nothing: without this the permit and the hold would stay until their end.
        if not self._closed and self._begun is not None:
            self._settle(self._begun, CANCELLED)


def _judge(
    begun: Begun[StreamedCompletion], error: BaseException, silence: Silence
) -> tuple[Fault, ExternalServiceError | None]:
    """What ended a stream, and what its consumer sees in place of `error`, if that is another."""
    guard, scope, name = begun.guard, begun.scope, begun.guard.name
    seen: ExternalServiceError
    if silence.expired and silence.when >= scope.deadline:
        kind = Kind.TIMEOUT if scope.passage.is_ours else Kind.DEADLINE
        seen = ServiceTimeout(name, "the deadline passed in the middle of the stream", kind=kind)
        fault = Fault(verdict=FAILURE if scope.passage.is_ours else NEUTRAL, kind=kind)
    elif silence.expired:
        seen = StreamTruncated(name, "the stream fell silent", kind=Kind.STALLED)
        fault = Fault(verdict=FAILURE, kind=Kind.STALLED)
    elif isinstance(error, ExternalServiceError):
        reason = f"the stream broke off: {error.reason}"
        seen = StreamTruncated(name, reason, error.retry_after_s, kind=error.kind)
        fault = guard.judge(error)
    elif isinstance(error, CancelledError) and guard.now() >= silence.when:
        # The caller's own timeout ends at the same moment, and its cancellation wins; the stream was as silent.
        is_callers = silence.when >= scope.deadline and not scope.passage.is_ours
        return OVERDUE if is_callers else TIMED_OUT, None
    else:
        return guard.judge(error), None
    seen.attempts, seen.partial_text = scope.attempts, scope.value.text
    return fault, seen


async def open_stream(
    one: AIService, charge: QueryCharge, scope: Scope[StreamedCompletion]
) -> StreamedCompletion:
    """Ask, and wait for the first content; on any error the connection is closed.

    What the model thinks is a sign of life: the first one has to come within an attempt's time, and each later one, and
    the first content, within that of a first token.
    """
    departure.set(charge.departure)
    options = one.options
    silence = Silence(one.service.deadlines, one.service.clock, scope)
    guard = one.service.guard(charge.model)

    def hear(paces: tuple[Pace, ...]) -> None:
        learn_pace(one.service, guard, scope.permit, charge, paces, None)

    streamed = StreamedCompletion(one.provider.stream(charge.request), charge, silence, hear)
    silence.longest_s = options.first_token_timeout_s
    silence.until = scope.permit.given_at + options.attempt_timeout_s
    try:
        with silence:
            streamed.first = await streamed.next_text() or ""
    except BaseException as error:
        await streamed.chunks.aclose()
        if silence.expired:
            raise ServiceTimeout(options.name, "no content came in time", kind=Kind.TIMEOUT) from error
        raise
    return streamed
