"""Connects each platform's services and database to the process's SDK, as soon as there is one.

It checks for an SDK when a platform opens, and each second after that, so the SDK may be set up later than koo.
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
    """The instruments of a process: one of each for all its platforms, because there is one SDK."""

    def __init__(self) -> None:
        self._sdk = NO_SDK
        self._queries: Queries | None = None
        self._pools: Pools | None = None

    def look(self, parts: Parts) -> None:
        """Measure this platform with the SDK, if there is one."""
        sdk = find_sdk()
        if sdk != self._sdk:
            self._take(sdk)
        parts.gateway.watch = self._queries or UNWATCHED
        if self._pools is not None and parts.database_in_use is not None:
            self._pools.look(parts.database_in_use)

    def _take(self, sdk: Sdk) -> None:
        # They are imported only now: most processes have no SDK and need not spend memory on these modules.
        from koo.telemetry.pools import Pools
        from koo.telemetry.queries import Queries

        meter = sdk.meter
        self._sdk = sdk
        self._queries = None if sdk == NO_SDK else Queries(sdk)
        self._pools = None if meter is None else Pools(meter)


LOOKOUT = Lookout()


def look(parts: Parts) -> None:
    """Measure this platform with the process's SDK, if it has one."""
    LOOKOUT.look(parts)


def finish(parts: Parts) -> None:
    """Measure the platform's last second, because it is closing."""
    look(parts)
    if parts.database_in_use is not None:
        parts.database_in_use.metrics.fold(parts.clock.monotonic())
