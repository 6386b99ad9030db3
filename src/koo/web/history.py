"""The history's routes."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from koo.monitoring import history_shapes, live_shapes
from koo.platform import Platform
from koo.web.routing import JsonView, described
from koo.web.times import A_TIME, Time

RANGES_S = {"15m": 900, "1h": 3600, "24h": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}


def add_history(router: APIRouter, platform: Platform) -> None:
    """Add `/monitoring/history` and `/monitoring/saved`."""

    @router.get(
        "/history", summary="History of calls, states and money", **described(history_shapes.History, 422)
    )
    async def get_history(
        range: Annotated[  # noqa: A002 - the name in the URL
            Literal["15m", "1h", "24h", "7d", "30d"] | None,
            Query(description="ending now; default: one hour"),
        ] = None,
        since: Annotated[Time | None, Query(description=A_TIME)] = None,
        until: Annotated[Time | None, Query(description=f"{A_TIME}; default: now")] = None,
        component: Annotated[
            list[str],
            Query(max_length=50, description="database, ai:SERVICE; may be repeated; default: all"),
        ] = [],  # noqa: B006 - FastAPI copies it
        all_processes: Annotated[
            bool, Query(description="use minutes of all processes for the last hour, too")
        ] = False,
    ) -> Response:
        """Calls, failures, latency, state, money and pool in at most 720 spans, and the events in them.

        The last hour covers this process only, in spans of five seconds. Further back it covers all processes on the
        state store: one-minute spans for two days, five-minute spans for thirty.
        """
        return JsonView(
            await platform.history.report(
                range_s=None if range is None else RANGES_S[range],
                since=since,
                until=until,
                components=component,
                all_processes=all_processes,
            )
        )

    @router.get("/saved", summary="What koo saved today", **described(live_shapes.Saved))
    async def get_saved() -> Response:
        """Calls refused immediately, successful retries, responses from a fallback and money not spent, since midnight
        UTC.

        Covers all processes on the state store. While the store is unreachable, shows what was last read.
        """
        return JsonView(await platform.history.saved())
