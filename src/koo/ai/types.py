"""The gateway's input and output, independent of any vendor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from koo.passage import OnLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query to one service.

    `max_tokens` limits the answer and is always sent (None: the service's default). `timeout_s` is the deadline of the
    whole query. `fallback` names the services that are called in order if `service` refuses or fails. With
    `on_limit="wait"` the query also queues for koo's own limits within the deadline; with "refuse" it never waits.

    `max_cost_usd` is the most that one attempt may cost in the worst case; a more expensive attempt is refused. `clamp`
    lowers `max_tokens` to what `max_cost_usd` and the budgets have room for, never below the provider's minimum (1; 16
    at OpenAI), and sets `Answer.clamped`. `tag` and `metadata` are recorded in the ledger and are never sent to the
    provider.
    """

    service: str
    prompt: str = field(repr=False)
    model: str | None = None
    system: str | None = field(default=None, repr=False)
    max_tokens: int | None = None
    temperature: float | None = None
    timeout_s: float | None = None
    fallback: tuple[str, ...] = ()
    on_limit: OnLimit | None = None
    max_cost_usd: Decimal | float | None = None
    clamp: bool = False
    tag: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts by class. The four billed classes are disjoint, whatever the vendor's own way of counting.

    `input_tokens` are input tokens outside the cache. `reasoning_tokens` are a part of `output_tokens`. `estimated`
    marks counts that the provider did not report, for example of a stream that broke off.
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    @property
    def read_tokens(self) -> int:
        """All input tokens: outside the cache, read from it, and written to it."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    @property
    def total_tokens(self) -> int:
        """All input and output tokens."""
        return self.read_tokens + self.output_tokens

    def grown(self, later: Usage) -> Usage:
        """Combine this report with a later one of the same answer. Totals never shrink; classes may change."""
        # The input classes are taken together from one report: a later report may count the same tokens as cached that
        # an earlier one counted as fresh, and the maximum of each class would bill them twice.
        read = later if later.read_tokens >= self.read_tokens else self
        return Usage(
            input_tokens=read.input_tokens,
            cache_read_tokens=read.cache_read_tokens,
            cache_write_tokens=read.cache_write_tokens,
            output_tokens=max(self.output_tokens, later.output_tokens),
            reasoning_tokens=max(self.reasoning_tokens, later.reasoning_tokens),
            estimated=later.estimated,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A service's answer; `str(answer)` is its text.

    `cost_usd` is exact (a Decimal). `cost_source` says where it comes from: the provider's report, the price table, an
    operator's setting, or an estimate. `attempts` is the number of calls to the service. `latency_s` is the time of the
    whole query, without that of a stream's reader. `stop_reason` is the provider's own word ("end_turn", "stop",
    "max_tokens", "refusal", ...). `max_tokens` is the limit that was sent. `clamped` is true if that is lower than the
    query's own (see `Query.clamp`).
    """

    text: str
    service: str
    model: str
    usage: Usage
    cost_usd: Decimal
    cost_source: str = "table"
    attempts: int = 1
    latency_s: float = 0.0
    stop_reason: str | None = None
    request_id: str | None = None
    max_tokens: int | None = None
    clamped: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; `str(chunk)` is its text."""

    text: str

    def __str__(self) -> str:
        return self.text
