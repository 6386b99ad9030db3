"""A streamed answer to a query, piece by piece.

Its turns, its silences and its one end are those of `guarded_stream.py`. Each piece of content or reasoning renews all
timers and a probe's lease; a ping renews none.

Until the first content the guard may repeat; after it nothing is repeated. One permit lasts for the whole stream. It
ends in exactly one way: at the provider's own end (success), with an error (its kind decides), or because the consumer
left (neutral). In each case what was used is booked: leaving does not make the provider's bill smaller.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
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
    """The chunks of one attempt, and the completion that they have become so far. `first` is its first content.

    `silence` is renewed by the model's reasoning. Each usage report is passed to the `charge`. What arrived since the
    last one, reasoning included, is counted in bytes: no tokenizer makes more tokens of a text than that.
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
                    self.silence.whole_until = (
                        NEVER  # it has begun to answer: an attempt's time is for those that have not
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
        """The result; if not everything was reported, its usage is an upper bound, marked as an estimate."""
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
            # A token may be each byte; but there are no more of them than were requested.
            written = min(usage.output_tokens + self._unreported, self._charge.request.max_tokens)
            usage = replace(usage, output_tokens=max(written, usage.output_tokens), estimated=True)
        return usage


class AnswerStream(GuardedStream[StreamedCompletion]):
    """`async for chunk in stream:` yields `Chunk`s; afterwards `stream.answer` is the whole `Answer`.

    Leaving early (`break`, `aclose()`, cancellation) closes the connection and settles what was used; `aclose()` may
    come from another task. Raises `ExternalServiceError`: before the first content as a query does, later
    `StreamTruncated` with `partial_text`; reading on after that raises a `ServiceFailed` that says so.
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
        """The provider's own end."""
        begun = self._begun
        assert begun is not None
        streamed = begun.scope.value
        self._closed = True
        # A long answer is not a slow one: what counts as slow is the time to the first content, which `begin` saw.
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
        # A stream that was answered has been billed, whatever its end.
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
        # `break` in an `async for` closes nothing: without this the permit and the hold would stay until their end.
        if not self._closed and self._begun is not None:
            self._settle(CANCELLED)


async def open_stream(
    one: AIService, charge: QueryCharge, scope: Scope[StreamedCompletion]
) -> StreamedCompletion:
    """Send, and wait for the first content; on any error the connection is closed.

    The model's reasoning is a sign of life: the first one has to come within an attempt's time, and each later one, and
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
    silence.whole_until = scope.permit.given_at + options.attempt_timeout_s
    try:
        with silence:
            streamed.first = await streamed.next_text() or ""
    except BaseException as error:
        await streamed.chunks.aclose()
        if silence.expired:
            raise ServiceTimeout(options.name, "no content came in time", kind=Kind.TIMEOUT) from error
        raise
    return streamed
