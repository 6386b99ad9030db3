"""The interface through which telemetry follows queries: one object for each service that a query calls.

The gateway depends only on these protocols, not on telemetry.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from koo.ai.providers.base import Request
from koo.ai.types import Answer
from koo.errors import Kind
from koo.options import ServiceOptions


class Watched(Protocol):
    """Follows one call of a service. Its block is the call; an error that leaves the block ends it."""

    def __enter__(self) -> Watched: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def answered(self, answer: Answer, away_s: float) -> None:
        """The whole answer has arrived. `away_s` is how long a stream's reader had the turn."""
        ...

    def broke(self, kind: Kind | None) -> None:
        """A stream ended early. `kind` is None if its reader left."""
        ...


class Watch(Protocol):
    """Makes the object that follows a call of a service."""

    def __call__(self, options: ServiceOptions, request: Request, streams: bool) -> Watched: ...


class Unwatched:
    """Follows nothing; used when there is no telemetry."""

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
