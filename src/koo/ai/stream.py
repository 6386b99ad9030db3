"""A streamed answer to a query.

The reader's turns, the limit on silence and the end of a stream are implemented in `guarded_stream.py`. Each piece of
content or reasoning renews all timers and a probe's lease. A ping renews none of them: a provider can keep sending
pings while its model is stuck.

Until the first content arrives the guard may retry. After that nothing is repeated, because the reader has already seen
part of an answer. One permit lasts for the whole stream, which ends in exactly one of three ways: the provider finishes
(success), an error occurs (its kind decides), or the reader leaves (neutral). In each case what was used is booked:
leaving early does not reduce the provider's bill.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal

from koo.ai.guarded_stream import GuardedStream, Held, Silence
from koo.ai.open_answer import Begun, learn_pace
from koo.ai.providers.base import Completion, CompletionChunk, Pace
from koo.ai.providers.transport import bound_text
from koo.ai.query_charge import QueryCharge
from koo.ai.service import AIService
from koo.ai.types import Answer, Chunk, Usage
from koo.deadlines import Deadlines
from koo.errors import Kind, ServiceTimeout
from koo.guard import Scope
from koo.http.connector import departure
from koo.options import NEVER
from koo.policies.verdict import CANCELLED, Fault


class StreamedCompletion:
    """The chunks of one attempt, and the completion assembled from them so far. `first` is its first content.

    Reasoning renews `silence`. Each usage report is passed to `charge`. Text that arrived since the last report,
    reasoning included, is counted in bytes: no tokenizer produces more tokens than a text has bytes.
    """

    __slots__ = ("_charge", "_cost_usd", "_hear", "_model", "_request_id", "_stop_reason", "_texts", "_tier",
                 "_units", "_unreported", "_usage", "chunks", "first", "silence")  # fmt: skip

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
        self._tier: str | None = None
        self._units: Mapping[str, int] | None = None
        self._unreported = 0
        self._model: str | None = None
        self._stop_reason: str | None = None
        self._request_id: str | None = None

    async def next_text(self) -> str | None:
        """The next content, or None when the provider has finished. Processes pings and reports on the way."""
        async for chunk in self.chunks:
            self._take_in(chunk)
            if chunk.text:
                if not chunk.reasoning:
                    self._texts.append(chunk.text)
                    return chunk.text
                self.silence.renew()
                if not self._texts:
                    # The limit on an attempt exists to end an attempt that does not answer. A model that sends
                    # reasoning is answering, and may think for longer than any attempt should take. From here on the
                    # wait for its first content ends only by silence, or by the guard's own alarm at the call's
                    # deadline.
                    self.silence.whole_until = NEVER
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
        self._tier = chunk.tier or self._tier
        self._units = chunk.units or self._units
        self._model = chunk.model or self._model
        self._stop_reason = chunk.stop_reason or self._stop_reason
        self._request_id = chunk.request_id or self._request_id

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def _take_report(self, chunk: CompletionChunk, usage: Usage) -> None:
        self._usage = usage if self._usage is None else self._usage.grown(usage)
        # A report that covers the text so far replaces the count in bytes. Anthropic's first report does not: it counts
        # one output token before anything is written.
        if chunk.output_counted and usage.output_tokens:
            self._unreported = 0
        self._charge.report(self._usage, input_counted=chunk.input_counted)

    def completion(self) -> Completion:
        """The result so far. If the reported usage is incomplete, an upper bound is returned, marked as an estimate."""
        return Completion(
            text=self.text,
            model=self._model or self._charge.model,
            usage=self._usage_so_far(),
            stop_reason=self._stop_reason,
            request_id=self._request_id,
            cost_usd=self._cost_usd,
            tier=self._tier,
            units=self._units,
        )

    def _usage_so_far(self) -> Usage:
        usage = self._usage or Usage()
        if not usage.read_tokens:
            usage = replace(usage, input_tokens=self._charge.input_tokens_max, estimated=True)
        if self._unreported:
            # Each byte may be a token, so counting bytes overestimates English text about fourfold. The cap keeps that
            # within the hold: the provider cannot bill more than `max_tokens`. The `max` below covers a provider that
            # reported more than was requested: a reported count is never lowered.
            written = min(usage.output_tokens + self._unreported, self._charge.request.max_tokens)
            usage = replace(usage, output_tokens=max(written, usage.output_tokens), estimated=True)
        return usage


class AnswerStream(GuardedStream[StreamedCompletion]):
    """`async for chunk in stream:` yields `Chunk`s; afterwards `stream.answer` is the whole `Answer`.

    Leaving early (`break`, `aclose()`, cancellation) closes the connection and settles what was used. `aclose()` may be
    called from another task.

    Before the first content it raises the same errors as a query. Later it raises `StreamTruncated` with
    `partial_text`. Reading on after an error raises a `ServiceFailed` that names the first error.
    """

    def __init__(
        self, service: str, start: Callable[[], Awaitable[Begun[StreamedCompletion]]], deadlines: Deadlines
    ) -> None:
        super().__init__(service, deadlines)
        self._start = start
        self._begun: Begun[StreamedCompletion] | None = None
        self.answer: Answer | None = None

    def __aiter__(self) -> AnswerStream:
        return self

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Chunk:
        self._take_turn()
        held = self._held
        try:
            if held is None:
                text: str | None = (await self._begin()).scope.value.first
            else:
                text = await self._wait(held, held.scope.value.next_text())
        except BaseException as error:
            self._note_failure(error)
            raise
        finally:
            self._end_turn()
        if text:
            return Chunk(text)
        await self._finish()
        raise StopAsyncIteration

    async def _open(self) -> Held[StreamedCompletion]:
        begun = self._begun = await self._start()
        begun.learn_pace((), None)
        silence = begun.scope.value.silence
        silence.longest_s = begun.service.options.stall_timeout_s
        return Held(begun.guard, begun.scope, silence, begun.guarded.calls)

    async def _finish(self) -> None:
        """Settle a stream that the provider has finished."""
        begun = self._begun
        assert begun is not None
        streamed = begun.scope.value
        self._closed = True
        # `slow=False`, because a long answer is not a slow one: by its length alone every long stream would count as a
        # slow call, and enough of them would open the breaker. `took_s` leaves out the reader's own time between two
        # pieces; otherwise a slow reader would raise the service's latency percentiles.
        self.answer = begun.end(
            streamed.completion(), slow=False, took_s=self._provider_s, away_s=self._away_s
        )
        begun.guarded.measure(begun.guard, self.answer.usage)
        await streamed.chunks.aclose()

    async def _close(self) -> None:
        if self._begun is not None:
            await self._begun.scope.value.chunks.aclose()

    def _settle(self, fault: Fault, silent_s: float = 0.0) -> None:
        self._closed = True
        begun = self._begun
        if begun is None:
            return
        begun.charge.note(begun.scope.value.completion())
        # `billed=True` whatever the error: most errors mean that nothing was billed, and the hold would be released.
        # This stream has already delivered content, so the provider bills for it.
        begun.scope.settle(
            Fault(
                verdict=fault.verdict,
                kind=fault.kind,
                retry_after_s=fault.retry_after_s,
                billed=True,
                failure=fault.met,
            ),
            took_s=silent_s,
        )
        begun.watched.broke(None if fault.kind is Kind.CANCELLED else fault.kind)

    def _partial_text(self) -> str:
        return "" if self._begun is None else self._begun.scope.value.text

    def __del__(self) -> None:
        # `break` in an `async for` does not close the iterator, so a stream can be dropped while it is open. The
        # scope's own `__del__` would end the permit but book the whole hold: only the stream knows what arrived.
        if self._closed or self._begun is None:
            return
        loop = self._begun.guarded.deadlines.loop
        if loop is not None and loop.is_running():
            # The stream is not closed immediately: the garbage collector may run this in any thread, and in the middle
            # of a settlement whose half-changed purse it would then change as well. The callback's reference keeps the
            # stream alive.
            with suppress(RuntimeError):  # the loop was closed a moment ago
                loop.call_soon_threadsafe(self._settle, CANCELLED)
        else:
            self._settle(CANCELLED)


async def open_stream(
    one: AIService, charge: QueryCharge, scope: Scope[StreamedCompletion]
) -> StreamedCompletion:
    """Send the request and wait for the first content. Closes the connection on any error.

    Reasoning counts as a sign of life. Each piece, reasoning or content, must arrive within the first-token timeout
    after the one before it. The first piece must also arrive within the attempt timeout.
    """
    departure.set(charge.departure)
    options = one.options
    silence = Silence(one.service.deadlines, one.service.clock, scope)
    guard = one.service.guard(charge.model)

    def hear(paces: tuple[Pace, ...]) -> None:
        learn_pace(one.service, guard, scope.permit, charge, paces, None)

    streamed = StreamedCompletion(one.provider.stream(charge.request), charge, silence, hear)
    silence.longest_s = options.first_token_timeout_s
    silence.whole_until = scope.permit.given_at + options.attempt_timeout_s
    try:
        with silence:
            streamed.first = await streamed.next_text() or ""
    except BaseException as error:
        # The generator holds the HTTP connection. If it were left to the garbage collector, the connection would stay
        # open, and the provider would go on generating an answer that is billed and that no one reads.
        await streamed.chunks.aclose()
        if silence.expired:
            raise ServiceTimeout(options.name, "no content arrived in time", kind=Kind.TIMEOUT) from error
        raise
    return streamed
