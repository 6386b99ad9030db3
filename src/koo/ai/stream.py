"""A streamed answer: an object with an end, not a generator.

A generator that held a timeout across its `yield` would cancel its consumer's own awaits. So each wait for the next
content has its own bound, and nothing is armed while the consumer has the turn.

Until the first content the guard may repeat; from then on nothing is repeated. One permit lasts for the whole stream.
It ends in exactly one way: at the provider's own end (success), with an error (its kind decides), or because the
consumer left (neutral). Each time what was used is booked: leaving does not make the provider's bill smaller.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from decimal import Decimal

from koo.ai.open_answer import Begun
from koo.ai.providers.base import Completion, CompletionChunk, Pace
from koo.ai.providers.transport import bound_text
from koo.ai.query_charge import QueryCharge
from koo.ai.service import AIService
from koo.ai.types import Answer, Chunk, Usage
from koo.deadlines import Alarm, Deadlines
from koo.errors import ExternalServiceError, Kind, ServiceTimeout, StreamTruncated
from koo.http import departure
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, Fault


class StreamedCompletion:
    """The chunks of one attempt, and the completion that they have become so far. `first` is its first content.

    Each usage report goes on to the `charge`. What came since the last one, reasoning included, is counted in bytes: no
    tokenizer makes more tokens of a text than that.
    """

    __slots__ = ("_charge", "_cost_usd", "_model", "_request_id", "_stop_reason", "_texts", "_unreported", "_usage",
                 "chunks", "first", "pace")  # fmt: skip

    def __init__(self, chunks: AsyncGenerator[CompletionChunk, None], charge: QueryCharge) -> None:
        self.chunks = chunks
        self._charge = charge
        self.first = ""
        self.pace: tuple[Pace, ...] = ()
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
            if chunk.text and not chunk.reasoning:
                self._texts.append(chunk.text)
                return chunk.text
            if chunk.final:
                break
        return None

    def _take_in(self, chunk: CompletionChunk) -> None:
        self.pace = chunk.pace or self.pace
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
            pace=self.pace,
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

    Leaving early (`break`, `aclose()`, cancellation) closes the connection and settles what was used. Raises
    `ExternalServiceError`: before the first content as a query does, later `StreamTruncated` with `partial_text`.
    """

    def __init__(
        self, start: Callable[[], Awaitable[Begun[StreamedCompletion]]], deadlines: Deadlines
    ) -> None:
        self._start = start
        self._deadlines = deadlines
        self._begun: Begun[StreamedCompletion] | None = None
        self._closed = False
        self.answer: Answer | None = None

    def __aiter__(self) -> AnswerStream:
        return self

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Chunk:
        if self._closed:
            raise StopAsyncIteration
        begun = self._begun
        text = await self._next_text(begun) if begun is not None else await self._begin()
        if text:
            return Chunk(text)
        assert self._begun is not None
        await self._finish(self._begun)
        raise StopAsyncIteration

    # ── the life of a stream ──────────────────────────────────────────────────────────────────────────────────

    async def _begin(self) -> str:
        try:
            begun = self._begun = await self._start()
        except BaseException:
            self._closed = True
            raise
        begun.scope.renew()
        begun.guarded.learn_pace(begun.scope.value.pace)
        return begun.scope.value.first

    async def _next_text(self, begun: Begun[StreamedCompletion]) -> str | None:
        scope = begun.scope
        stalls_at = begun.guard.now() + begun.service.options.stall_timeout_s
        alarm = Alarm(self._deadlines, min(stalls_at, scope.deadline, scope.permit.lease_ends_at))
        try:
            with alarm:
                text = await scope.value.next_text()
        except BaseException as error:
            fault, seen = _judge(begun, error, alarm)
            await self._end(begun, fault)
            if seen is not None:
                raise seen from error
            raise
        scope.renew()
        return text

    async def _finish(self, begun: Begun[StreamedCompletion]) -> None:
        """The provider's own end."""
        streamed = begun.scope.value
        self._closed = True
        # A long answer is not a slow one: what counts as slow is the time to the first content, which `begin` saw.
        self.answer = begun.end(streamed.completion(), slow=False)
        await streamed.chunks.aclose()

    async def _end(self, begun: Begun[StreamedCompletion], fault: Fault) -> None:
        """An end before the provider's own."""
        self._settle(begun, fault)
        await begun.scope.value.chunks.aclose()

    def _settle(self, begun: Begun[StreamedCompletion], fault: Fault) -> None:
        self._closed = True
        begun.charge.note(begun.scope.value.completion())
        # A stream that was answered has been billed, whatever its end.
        begun.scope.settle(
            Fault(verdict=fault.verdict, kind=fault.kind, retry_after_s=fault.retry_after_s, billed=True)
        )

    async def aclose(self) -> None:
        """Leave: the provider stops, what was used is settled, and the breaker learns nothing from it."""
        closed, self._closed = self._closed, True
        if not closed and self._begun is not None:
            await self._end(self._begun, CANCELLED)

    def __del__(self) -> None:
        # `break` in an `async for` closes nothing: without this the permit and the hold would stay until their end.
        if not self._closed and self._begun is not None:
            self._settle(self._begun, CANCELLED)


def _judge(
    begun: Begun[StreamedCompletion], error: BaseException, alarm: Alarm
) -> tuple[Fault, ExternalServiceError | None]:
    """What ended a stream, and what its consumer sees in place of `error`, if that is another."""
    guard, scope, name = begun.guard, begun.scope, begun.guard.name
    seen: ExternalServiceError
    if alarm.expired and alarm.when >= scope.deadline:
        seen = ServiceTimeout(name, "the deadline passed in the middle of the stream", kind=Kind.DEADLINE)
        fault = Fault(verdict=NEUTRAL, kind=Kind.DEADLINE)
    elif alarm.expired:
        seen = StreamTruncated(name, "the stream fell silent", kind=Kind.STALLED)
        fault = Fault(verdict=FAILURE, kind=Kind.STALLED)
    elif isinstance(error, ExternalServiceError):
        reason = f"the stream broke off: {error.reason}"
        seen = StreamTruncated(name, reason, error.retry_after_s, kind=error.kind)
        fault = guard.judge(error)
    else:
        return guard.judge(error), None
    seen.attempts, seen.partial_text = scope.attempts, scope.value.text
    return fault, seen


async def open_stream(one: AIService, charge: QueryCharge) -> StreamedCompletion:
    """Ask, and wait for the first content; on any error the connection is closed."""
    departure.set(charge.departure)
    streamed = StreamedCompletion(one.provider.stream(charge.request), charge)
    first_by = one.service.clock.monotonic() + one.options.first_token_timeout_s
    alarm = Alarm(one.service.deadlines, first_by)
    try:
        with alarm:
            streamed.first = await streamed.next_text() or ""
    except BaseException as error:
        await streamed.chunks.aclose()
        if alarm.expired:
            raise ServiceTimeout(one.options.name, "no content came in time", kind=Kind.TIMEOUT) from error
        raise
    return streamed
