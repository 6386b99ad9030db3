"""What the gateway needs of a vendor: one request, one completion, one stream, one unbilled check.

A vendor's file holds its wire format and its fault table, and nothing else: no retry, no limit, no money. It raises
`ExternalServiceError`s whose `kind` says what happened (`koo.policies.treatment` says what follows).

Nothing here is changed after it was made. It is not frozen because making a frozen object costs three times as much,
and these are made for each call and for each piece of a stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from koo.ai.types import Usage
from koo.errors import ExternalServiceError


@dataclass(slots=True, kw_only=True)
class Request:
    """One attempt's worth of work, all defaults filled in."""

    prompt: str = field(repr=False)
    model: str
    max_tokens: int
    system: str | None = field(default=None, repr=False)
    temperature: float | None = None


@dataclass(slots=True)
class Pace:
    """What a provider's headers say about one of its limits: `remaining` of `limit`, full again in `resets_in_s`."""

    resource: str
    limit: int | None
    remaining: int | None
    resets_in_s: float | None


@dataclass(slots=True, kw_only=True)
class Completion:
    """A finished answer. `cost_usd` only if the provider itself reports a price."""

    text: str = field(repr=False)
    model: str
    usage: Usage
    stop_reason: str | None = None
    request_id: str | None = None
    cost_usd: Decimal | None = None
    pace: tuple[Pace, ...] = ()


@dataclass(slots=True, kw_only=True)
class CompletionChunk:
    """A step of a stream. `text` is content; a piece without it (a ping, a usage report) does not renew any timer.

    `usage` is what the provider has reported so far, this piece included. `input_counted`: its count of what was read
    is final; `output_counted`: it counts what was written so far. `final` marks the provider's own end of the stream;
    `error` is raised after the piece has been taken in.
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
    pace: tuple[Pace, ...] = ()
    final: bool = False
    error: ExternalServiceError | None = None


class Provider(Protocol):
    """One configured service of one vendor. `output_tokens_min`: the smallest bound of an answer that it accepts."""

    output_tokens_min: int

    def bound_input_tokens(self, request: Request) -> int:
        """An upper bound of the tokens that the prompt can be counted as: never less than the bill."""
        ...

    async def complete(self, request: Request) -> Completion:
        """Send once. Raises `ExternalServiceError`."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """Send once, and yield the pieces as they arrive.

        Ends after a piece with `final`; raises `StreamTruncated` if the stream ends without one. Closing it early
        closes the connection (so that the provider stops).
        """
        ...

    def obstacle(self) -> str:
        """What is missing on this machine before it can be called, and what to do about it; empty if nothing is."""
        ...

    async def check(self) -> None:
        """Check that it is there and accepts the key. Never billed. Raises `ExternalServiceError`."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...
