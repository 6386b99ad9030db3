"""Spans and measurements of queries: one span for each service that a query calls, whatever the number of attempts.

An attempt that failed and was repeated is not an error of the query, so it is only counted in `koo.attempts`. koo's own
refusals are errors: the type is the kind, as in `docs/errors.md`. No span contains a prompt, an answer, a tag or an
address.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from koo.ai.providers.base import Request
from koo.ai.types import Answer
from koo.errors import Kind, KooError
from koo.failures import failure_of
from koo.options import ServiceOptions
from koo.telemetry import names
from koo.telemetry.sdk import Sdk, histogram

if TYPE_CHECKING:
    from opentelemetry.trace import Span

MODELS_MAX = 200
"""The maximum number of model names reported separately: callers and providers may send any number of them."""


class Queries:
    """Watches a gateway's services for one SDK."""

    def __init__(self, sdk: Sdk) -> None:
        self.sdk = sdk
        self.tracer = sdk.tracer
        self._models: set[str] = set()
        meter = sdk.meter
        self.duration = self.first_chunk = self.tokens = None
        if meter is not None:
            self.duration = histogram(
                meter, names.QUERY_DURATION, "s", "How long a service took", names.QUERY_DURATION_S
            )
            self.first_chunk = histogram(
                meter, names.FIRST_CHUNK, "s", "Until a stream's first content", names.FIRST_CHUNK_S
            )
            self.tokens = histogram(meter, names.TOKEN_USAGE, "{token}", "Tokens of a query", names.TOKENS)

    def __call__(self, options: ServiceOptions, request: Request, streams: bool) -> WatchedQuery:
        return WatchedQuery(self, options, request, streams)

    def model(self, name: str) -> str:
        """A model's name, or `_OTHER` if there are too many."""
        if name not in self._models:
            if len(self._models) >= MODELS_MAX:
                return names.OTHER
            self._models.add(name)
        return name


class WatchedQuery:
    """The call of one service. Its span is the current one during the call, so spans created by the call are its
    children."""

    __slots__ = ("_attributes", "_began_at", "_block", "_is_over", "_queries", "_span", "_streams")

    def __init__(self, queries: Queries, options: ServiceOptions, request: Request, streams: bool) -> None:
        self._queries = queries
        self._streams = streams
        self._attributes: dict[str, str | int | float | bool] = {
            names.OPERATION: names.CHAT,
            names.PROVIDER: names.PROVIDERS.get(options.kind, options.name),
            names.REQUEST_MODEL: queries.model(request.model),
            names.SERVICE: options.name,
        }
        self._span = self._start(request)
        self._block: Any = None
        self._began_at = time.monotonic()
        self._is_over = False

    def _start(self, request: Request) -> Span | None:
        tracer = self._queries.tracer
        if tracer is None:
            return None
        from opentelemetry.trace import SpanKind

        asked = {**self._attributes, names.MAX_TOKENS: request.max_tokens}
        if request.temperature is not None:
            asked[names.TEMPERATURE] = request.temperature
        if self._streams:
            asked[names.STREAM] = True
        name = f"{names.CHAT} {self._attributes[names.REQUEST_MODEL]}"
        return tracer.start_span(name, kind=SpanKind.CLIENT, attributes=asked)

    def __enter__(self) -> WatchedQuery:
        if self._span is not None:
            from opentelemetry.trace import use_span

            self._block = use_span(
                self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False
            )
            self._block.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._block is not None:
            # The error is not passed on: an exporter would record its text, which may contain the user's data.
            self._block.__exit__(None, None, None)
        if error is not None:
            self._fail(error)
        elif self._streams:
            self._note_first_chunk()

    def _note_first_chunk(self) -> None:
        took_s = time.monotonic() - self._began_at
        if self._queries.first_chunk is not None:
            self._queries.first_chunk.record(took_s, self._attributes)
        if self._span is not None:
            self._span.set_attribute(names.TIME_TO_FIRST_CHUNK, took_s)

    def answered(self, answer: Answer, away_s: float) -> None:
        """The answer is complete."""
        self._attributes[names.RESPONSE_MODEL] = self._queries.model(answer.model)
        usage, tokens = answer.usage, self._queries.tokens
        if tokens is not None and not usage.estimated:
            tokens.record(usage.read_tokens, {**self._attributes, names.TOKEN_TYPE: "input"})
            tokens.record(usage.output_tokens, {**self._attributes, names.TOKEN_TYPE: "output"})
        if self._span is not None:
            self._span.set_attributes(_said(answer))
        self._end(away_s)

    def broke(self, kind: Kind | None) -> None:
        """A stream ended early. `kind` is None if the stream's reader left, which is not an error."""
        if kind is not None:
            self._attributes[names.ERROR_TYPE] = kind.value
            self._mark(kind.value)
        self._end()

    def _fail(self, error: BaseException) -> None:
        kind = error.kind if isinstance(error, KooError) else Kind.UNKNOWN
        self._attributes[names.ERROR_TYPE] = kind.value if kind is not Kind.UNKNOWN else type(error).__name__
        if self._span is not None:
            self._span.set_attribute(names.ATTEMPTS, getattr(error, "attempts", 0))
        self._mark(failure_of(error, kind).sentence)
        self._end()

    def _mark(self, sentence: str) -> None:
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, sentence))

    def _end(self, away_s: float = 0.0) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._queries.duration is not None:
            took_s = max(0.0, time.monotonic() - self._began_at - away_s)
            self._queries.duration.record(took_s, self._attributes)
        if self._span is not None:
            self._span.set_attributes(self._attributes)
            self._span.end()


def _said(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    said: dict[str, Any] = {
        names.ATTEMPTS: answer.attempts,
        names.COST_USD: float(answer.cost_usd),
        names.INPUT_TOKENS: usage.read_tokens,
        names.OUTPUT_TOKENS: usage.output_tokens,
    }
    if answer.stop_reason is not None:
        said[names.FINISH_REASONS] = [answer.stop_reason]
    parts = {
        names.CACHE_READ: usage.cache_read_tokens,
        names.CACHE_WRITE: usage.cache_write_tokens,
        names.REASONING: usage.reasoning_tokens,
    }
    return said | {name: number for name, number in parts.items() if number}
