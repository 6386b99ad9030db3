"""A streamed answer: an object with an end, not a generator.

A generator that held a timeout across its `yield` would cancel its consumer's own awaits. So each wait for the next
piece has its own bound, and nothing is armed while the consumer has the turn.

Until the first piece of content the guard may repeat; from then on nothing is repeated. One permit lasts for the whole
stream. It ends in exactly one way: at the provider's own end (success), with an error (its kind tells), or because the
consumer walked away (neutral). Each time, what was used is settled: what the provider billed does not grow smaller by
somebody's leaving.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from koo.ai.errand import Errand
from koo.ai.providers.base import CompletionChunk, Provider, Request
from koo.ai.types import Answer, Chunk, Usage
from koo.deadlines import Alarm, Deadlines
from koo.errors import ExternalServiceError, Kind, ServiceTimeout, StreamTruncated
from koo.guard import Guard, Scope
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, Fault

TOKEN_BYTES_MIN = 1
"""No tokenizer makes more tokens of a text than it has UTF-8 bytes."""

Source = AsyncGenerator[CompletionChunk, None]


class Flow:
    """The pieces of one attempt, and what they say about its cost."""

    __slots__ = ("_cost_usd", "_pieces", "cost_source", "final", "first", "model", "parts", "pieces", "request_id",
                 "stop_reason", "usage")  # fmt: skip

    def __init__(self, pieces: Source) -> None:
        self.pieces = pieces
        self.first = ""
        self.parts: list[str] = []
        self.usage: Usage | None = None
        self._cost_usd: Any = None
        self.final = False
        self.model: str | None = None
        self.stop_reason: str | None = None
        self.request_id: str | None = None

    async def next_text(self) -> str | None:
        """The next content, or None at the provider's own end; pings and reports are taken in on the way."""
        async for piece in self.pieces:
            self._take_in(piece)
            if piece.text and not piece.reasoning:
                self.parts.append(piece.text)
                return piece.text
            if piece.final:
                break
        self.final = True
        return None

    def _take_in(self, piece: CompletionChunk) -> None:
        self.usage = piece.usage or self.usage
        self._cost_usd = piece.cost_usd if piece.cost_usd is not None else self._cost_usd
        self.model = piece.model or self.model
        self.stop_reason = piece.stop_reason or self.stop_reason
        self.request_id = piece.request_id or self.request_id

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def note(self, errand: Errand, bound_input_tokens: int) -> None:
        """Tell the errand what was used: the provider's word, or an upper bound where the stream broke off."""
        usage = self.usage
        if usage is None or not self.final:
            known = usage or Usage(input_tokens=bound_input_tokens)
            written = max(known.output_tokens, len(self.text.encode()) // TOKEN_BYTES_MIN)
            usage = Usage(
                input_tokens=known.input_tokens,
                cache_read_tokens=known.cache_read_tokens,
                cache_write_tokens=known.cache_write_tokens,
                output_tokens=written,
                reasoning_tokens=known.reasoning_tokens,
                estimated=True,
            )
        errand.note(usage, self._cost_usd)


class AnswerStream:
    """`async for chunk in stream:` gives `Chunk`s; afterwards `stream.answer` is the whole `Answer`.

    Leaving early (`break`, `aclose()`, cancellation) closes the connection and settles what was used. Raises
    `ExternalServiceError`: before the first content as a query does, later `StreamTruncated` with `partial_text`.
    """

    def __init__(self, start: Callable[[AnswerStream], Awaitable[None]]) -> None:
        self._start = start
        self._begun = self._closed = False
        self.answer: Answer | None = None
        self._scope: Scope[Flow] | None = None
        # Set by the gateway when it has begun:
        self._errand: Errand
        self._guard: Guard
        self._deadlines: Deadlines
        self._stall_s: float
        self._bound_input_tokens: int
        self._began_at: float
        self._request: Request

    def __aiter__(self) -> AnswerStream:
        return self

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.aclose()

    async def __anext__(self) -> Chunk:
        if self._closed:
            raise StopAsyncIteration
        if not self._begun:
            self._begun = True
            await self._start(self)
            assert self._scope is not None
            if self._scope.value.first:
                return Chunk(self._scope.value.first)
            return await self._finish()
        text = await self._next()
        return Chunk(text) if text is not None else await self._finish()

    # ── the life of a stream ──────────────────────────────────────────────────────────────────────────────────

    def begin(
        self, scope: Scope[Flow], errand: Errand, guard: Guard, deadlines: Deadlines, stall_s: float,
        request: Request, bound_input_tokens: int, began_at: float,
    ) -> None:  # fmt: skip
        """The gateway has the first piece: from here the stream is on its own."""
        self._scope, self._errand, self._guard, self._deadlines = scope, errand, guard, deadlines
        self._stall_s, self._request = stall_s, request
        self._bound_input_tokens, self._began_at = bound_input_tokens, began_at

    async def _next(self) -> str | None:
        scope, guard = self._scope, self._guard
        assert scope is not None
        stalls_at = guard.now() + self._stall_s
        alarm = Alarm(self._deadlines, min(stalls_at, scope.deadline, scope.permit.lease_ends_at))
        try:
            with alarm:
                text = await scope.value.next_text()
        except BaseException as error:
            await self._fail(error, alarm)
            raise
        scope.renew()
        return text

    async def _finish(self) -> Chunk:
        scope, errand = self._scope, self._errand
        assert scope is not None
        flow = scope.value
        flow.note(errand, self._bound_input_tokens)
        self._closed = True
        # A long answer is not a slow one: what counts as slow is the time to the first content, which `begin` saw.
        scope.settle(None, slow=False)
        self.answer = Answer(
            text=flow.text,
            service=self._guard.name,
            model=flow.model or self._request.model,
            usage=errand.usage or Usage(),
            cost_usd=errand.cost_usd,
            cost_source=errand.cost_source,
            attempts=scope.attempts,
            latency_s=self._guard.now() - self._began_at,
            stop_reason=flow.stop_reason,
            request_id=flow.request_id,
        )
        await flow.pieces.aclose()
        raise StopAsyncIteration

    async def _fail(self, error: BaseException, alarm: Alarm) -> None:
        """Settle, close, and raise what the consumer should see in place of `error`, if that is another."""
        scope = self._scope
        assert scope is not None
        fault, seen = self._judge(error, alarm)
        await self._end(fault)
        if seen is not None:
            raise seen from error

    def _judge(self, error: BaseException, alarm: Alarm) -> tuple[Fault, ExternalServiceError | None]:
        assert self._scope is not None
        name, partial = self._guard.name, self._scope.value.text
        seen: ExternalServiceError
        if alarm.expired and alarm.when >= self._scope.deadline:
            seen = ServiceTimeout(name, "the deadline passed in the middle of the stream", kind=Kind.DEADLINE)
            fault = Fault(verdict=NEUTRAL, kind=Kind.DEADLINE)
        elif alarm.expired:
            seen = StreamTruncated(name, "the stream fell silent", kind=Kind.STALLED)
            fault = Fault(verdict=FAILURE, kind=Kind.STALLED)
        elif isinstance(error, ExternalServiceError):
            seen = StreamTruncated(
                name, f"the stream broke off: {error.reason}", error.retry_after_s, kind=error.kind
            )
            fault = self._guard.judge(error)
        else:
            return self._guard.judge(error), None
        seen.attempts = self._scope.attempts
        seen.partial_text = partial
        return fault, seen

    async def _end(self, fault: Fault) -> None:
        scope = self._scope
        self._closed = True
        if scope is None:
            return
        scope.value.note(self._errand, self._bound_input_tokens)
        # A stream that was answered has been billed, whatever its end.
        scope.settle(
            Fault(verdict=fault.verdict, kind=fault.kind, retry_after_s=fault.retry_after_s, billed=True)
        )
        await scope.value.pieces.aclose()

    async def aclose(self) -> None:
        """Walk away: the provider stops, what was used is settled, and the breaker learns nothing from it."""
        if not self._closed:
            await self._end(CANCELLED)

    def __del__(self) -> None:
        # `break` in an `async for` closes nothing: without this the permit and the hold would stay until their end.
        if not self._closed and self._scope is not None:
            self._closed = True
            self._scope.value.note(self._errand, self._bound_input_tokens)
            self._scope.settle(CANCELLED)


async def open_flow(
    provider: Provider, request: Request, deadlines: Deadlines, first_by: float, service: str
) -> Flow:
    """Ask, and wait for the first content until `first_by`; on any error the connection is closed."""
    flow = Flow(provider.stream(request))
    alarm = Alarm(deadlines, first_by)
    try:
        with alarm:
            flow.first = await flow.next_text() or ""
    except BaseException as error:
        await flow.pieces.aclose()
        if alarm.expired:
            raise ServiceTimeout(service, "no content came in time", kind=Kind.TIMEOUT) from error
        raise
    return flow
