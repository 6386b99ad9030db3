"""What may look on while services are asked: one object for each service that a query asks.

Telemetry is made of it; the gateway knows no more than this.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from koo.ai.providers.base import Request
from koo.ai.types import Answer
from koo.errors import Kind
from koo.options import ServiceOptions


class Watched(Protocol):
    """One service that is asked. In its block it is asked; an error that leaves the block is the end."""

    def __enter__(self) -> Watched: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def answered(self, answer: Answer, away_s: float) -> None:
        """The answer is whole. `away_s`: for so long a stream's reader had the turn."""
        ...

    def broke(self, kind: Kind | None) -> None:
        """A stream ended early; None: its reader left."""
        ...


class Watch(Protocol):
    """Looks on at all services."""

    def __call__(self, options: ServiceOptions, request: Request, streams: bool) -> Watched: ...


class Unwatched:
    """Nothing looks on."""

    __slots__ = ()

    def __call__(self, options: ServiceOptions, request: Request, streams: bool) -> Unwatched:
        return self

    def __enter__(self) -> Unwatched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def answered(self, answer: Answer, away_s: float) -> None:
        return None

    def broke(self, kind: Kind | None) -> None:
        return None


UNWATCHED = Unwatched()
