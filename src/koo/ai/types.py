"""The gateway's input and output; nothing here knows a vendor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from koo.passage import OnLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question to one service.

    `max_tokens` bounds the answer and is always sent (None: the service's default). `timeout_s` is the deadline of the
    whole query. `fallback` names services that are called in order when `service` refuses or fails. `on_limit="wait"`
    queues within the deadline for our limits too, "refuse" never waits. `max_cost_usd` is the most that one attempt may
    cost in the worst case: a dearer one is refused. `clamp` lowers `max_tokens` to what that and the budgets leave room
    for, never below the provider's minimum (1, OpenAI 16); `Answer.clamped` says so. `tag` and `metadata` are the
    caller's own, for the ledger; they are never sent to the provider.
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
    """Tokens by class. The four paid classes are disjoint, however the vendor counts.

    `input_tokens` were read fresh; `reasoning_tokens` are a part of `output_tokens`. `estimated` marks numbers that
    the provider did not send (a stream that broke off).
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    @property
    def read_tokens(self) -> int:
        """All tokens read: fresh, from the cache, and into it."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    @property
    def total_tokens(self) -> int:
        """All tokens read and written."""
        return self.read_tokens + self.output_tokens

    def grown(self, later: Usage) -> Usage:
        """This report and a later one of the same answer: counts never shrink, though a class may become another."""
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

    `cost_usd` is exact (a Decimal); `cost_source` says whether the provider reported it, a price table or an operator's
    setting priced it, or it is an estimate. `attempts` are calls that left for the service, `latency_s` the whole
    query, without the time of a stream's reader. `stop_reason` is the provider's own word ("end_turn", "stop",
    "max_tokens", "refusal", ...). `max_tokens` is the longest answer that was requested; `clamped`: lower than the
    query's, so that it fitted (`Query.clamp`).
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
