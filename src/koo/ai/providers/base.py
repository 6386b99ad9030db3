"""The interface between the gateway and a vendor: a request, a completion, a stream, and a check that costs nothing.

A vendor's file contains its wire format and its fault table. Retries, limits and money are handled elsewhere. It raises
`ExternalServiceError`s; their `kind` says what happened, and `koo.policies.treatment` what to do about it.

Treat these objects as immutable. They are not frozen because creating a frozen object takes three times as long, and
one is created for each call and for each piece of a stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from koo.ai.types import Usage
from koo.errors import ExternalServiceError


@dataclass(slots=True, kw_only=True)
class Request:
    """One attempt, with all defaults filled in."""

    prompt: str = field(repr=False)
    model: str
    max_tokens: int
    system: str | None = field(default=None, repr=False)
    temperature: float | None = None


@dataclass(slots=True)
class Pace:
    """One of a provider's limits as its headers report it: `remaining` of `limit`, reset in `resets_in_s` seconds."""

    resource: str
    limit: int | None
    remaining: int | None
    resets_in_s: float | None


@dataclass(slots=True, kw_only=True)
class Completion:
    """A complete answer. `cost_usd` is set only if the provider itself reports the cost.

    `tier` is the service tier or speed of the answer, if the provider reports one. `units` are counts with a separate
    price, keyed by the price table's names ("web_searches").
    """

    text: str = field(repr=False)
    model: str
    usage: Usage
    stop_reason: str | None = None
    request_id: str | None = None
    cost_usd: Decimal | None = None
    tier: str | None = None
    units: Mapping[str, int] | None = None
    pace: tuple[Pace, ...] = ()


@dataclass(slots=True, kw_only=True)
class CompletionChunk:
    """A piece of a stream. A piece without `text` (a ping, a usage report) does not reset any timer.

    `usage` and `units` are what the provider has reported up to this piece. `input_counted`: its number of input tokens
    is final; `output_counted`: its number of output tokens covers the text so far. `final` marks the provider's own end
    of the stream. `error` is raised after the piece has been processed.
    """

    text: str = field(default="", repr=False)
    reasoning: bool = False
    model: str | None = None
    usage: Usage | None = None
    input_counted: bool = False
    output_counted: bool = True
    stop_reason: str | None = None
    request_id: str | None = None
    cost_usd: Decimal | None = None
    tier: str | None = None
    units: Mapping[str, int] | None = None
    pace: tuple[Pace, ...] = ()
    final: bool = False
    error: ExternalServiceError | None = None


class Provider(Protocol):
    """One configured service of one vendor. `output_tokens_min` is the smallest `max_tokens` that it accepts."""

    output_tokens_min: int

    def bound_input_tokens(self, request: Request) -> int:
        """An upper bound of the prompt's tokens: never less than the provider bills."""
        ...

    async def complete(self, request: Request) -> Completion:
        """Send once. Raises `ExternalServiceError`."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """Send once and yield the pieces as they arrive.

        Ends after a piece with `final`; raises `StreamTruncated` if the stream ends without one. Closing the generator
        early closes the connection, which makes the provider stop.
        """
        ...

    def obstacle(self) -> str:
        """What this machine lacks to call the service, and what to do about it; "" if nothing is missing."""
        ...

    async def check(self) -> None:
        """Check that the service responds and accepts the key. Never billed. Raises `ExternalServiceError`."""
        ...

    async def close(self) -> None:
        """Release its resources."""
        ...
