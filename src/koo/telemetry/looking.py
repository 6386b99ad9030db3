"""Who is measured: each platform's services and database, as soon as the process has an SDK.

Looked for when a platform opens, and each second after that, so an SDK may be set up later than koo is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from koo.ai.watching import UNWATCHED
from koo.composition import Parts
from koo.telemetry.sdk import NO_SDK, Sdk, find_sdk

if TYPE_CHECKING:
    from koo.telemetry.pools import Pools
    from koo.telemetry.queries import Queries


class Lookout:
    """The instruments of a process: one of each for all its platforms, as there is one SDK."""

    def __init__(self) -> None:
        self._sdk = NO_SDK
        self._queries: Queries | None = None
        self._pools: Pools | None = None

    def look(self, parts: Parts) -> None:
        """Let what is there measure this platform; nothing where there is no SDK."""
        sdk = find_sdk()
        if sdk != self._sdk:
            self._take(sdk)
        parts.gateway.watch = self._queries or UNWATCHED
        if self._pools is not None and parts.database_in_use is not None:
            self._pools.look(parts.database_in_use)

    def _take(self, sdk: Sdk) -> None:
        # Only now: a process without an SDK, which most are, has no use for their memory.
        from koo.telemetry.pools import Pools
        from koo.telemetry.queries import Queries

        meter = sdk.meter
        self._sdk = sdk
        self._queries = None if sdk == NO_SDK else Queries(sdk)
        self._pools = None if meter is None else Pools(meter)


LOOKOUT = Lookout()


def look(parts: Parts) -> None:
    """Let the process's SDK, if it has one, measure this platform."""
    LOOKOUT.look(parts)


def finish(parts: Parts) -> None:
    """The platform closes: measure what its last second had."""
    look(parts)
    if parts.database_in_use is not None:
        parts.database_in_use.metrics.fold(parts.clock.monotonic())
