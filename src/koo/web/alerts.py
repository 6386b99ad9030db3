"""Routes for alerts: the list, the history, acknowledgements and silences."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from koo.alert_acts import PAGE_MAX
from koo.clock import SYSTEM_CLOCK
from koo.monitoring import alert_shapes, shapes
from koo.monitoring.guards import now_iso
from koo.monitoring.overview import alerts_view
from koo.platform import Platform
from koo.web import bodies
from koo.web.links import linked
from koo.web.routing import JsonView, described
from koo.web.times import A_TIME, Time


def add_alerts(router: APIRouter, platform: Platform) -> None:
    """Add the routes below `/monitoring/alerts`."""

    @router.get("/alerts", summary="Alerts", **described(shapes.SystemAlerts))
    async def get_alerts(request: Request) -> Response:
        """What is wrong now, most severe first, then what ended within the last fifteen minutes."""
        return JsonView(alerts_view(linked(request, platform.active_alerts()), SYSTEM_CLOCK))

    @router.get("/alerts/history", summary="Past alerts", **described(alert_shapes.AlertHistory, 422, 503))
    async def get_alert_history(
        request: Request,
        since: Annotated[
            Time | None, Query(description=f"{A_TIME}; default: seven days before `until`")
        ] = None,
        until: Annotated[Time | None, Query(description=f"{A_TIME}; default: now")] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="episodes per page")] = 50,
        cursor: Annotated[
            str | None, Query(max_length=100, description="`next_cursor` of the previous page")
        ] = None,
    ) -> Response:
        """Episodes of all processes that fired and overlap the range, the most recently started first."""
        page = await platform.alerts.history(since=since, until=until, limit=limit, cursor=cursor)
        page["episodes"] = linked(request, page["episodes"])
        return JsonView(page)

    _add_acknowledging(router, platform)
    _add_silences(router, platform)


def _add_acknowledging(router: APIRouter, platform: Platform) -> None:
    @router.post(
        "/alerts/{alert}/acknowledge",
        summary="Acknowledge an alert",
        **described(alert_shapes.AlertAct, 404, 413, 422, 503),
    )
    async def acknowledge(request: Request, alert: str, body: bodies.AcknowledgeBody) -> Response:
        """Lasts for a time, or until the alert ends. Until then no process on the same state store sends reminders."""
        view = await platform.alerts.acknowledge(
            alert, by=body.by, for_s=body.for_s, until=body.until, note=body.note
        )
        return _acted("acknowledged", linked(request, [view])[0])

    @router.post(
        "/alerts/{alert}/unacknowledge",
        summary="Withdraw an acknowledgement",
        **described(alert_shapes.AlertAct, 404, 413, 422, 503),
    )
    async def unacknowledge(
        request: Request, alert: str, body: Annotated[bodies.ActBody | None, Body()] = None
    ) -> Response:
        """Reminders resume."""
        said = body or bodies.ActBody()
        view = await platform.alerts.unacknowledge(alert, **said.who)
        return _acted("no longer acknowledged", linked(request, [view])[0])


def _acted(how: str, alert: shapes.Alert) -> Response:
    message = f"{alert['kind']} of {alert['component']} is {how}"
    return JsonView(alert_shapes.AlertAct(message=message, alert=alert, timestamp=now_iso()))


def _add_silences(router: APIRouter, platform: Platform) -> None:
    @router.get("/alerts/silences", summary="Silences", **described(alert_shapes.Silences, 503))
    async def get_silences() -> Response:
        """The active silences, in the order in which they end."""
        silences = await platform.alerts.silences()
        return JsonView(alert_shapes.Silences(silences=silences, timestamp=now_iso()))

    @router.post(
        "/alerts/silences",
        summary="Silence alerts for a time",
        **described(alert_shapes.SilenceAct, 413, 422, 503),
    )
    async def add_silence(body: bodies.SilenceBody) -> Response:
        """Alerts that match kind and component are still listed and recorded, but not sent until the silence ends."""
        silence = await platform.alerts.silence(
            kind=body.kind,
            component=body.component,
            for_s=body.for_s,
            ends_at=body.ends_at,
            by=body.by,
            reason=body.reason,
        )
        return _silenced(f"kind {silence['kind']} of component {silence['component']} is silenced", silence)

    @router.delete(
        "/alerts/silences/{silence}",
        summary="End a silence early",
        **described(alert_shapes.SilenceAct, 404, 413, 422, 503),
    )
    async def end_silence(silence: str, body: Annotated[bodies.ActBody | None, Body()] = None) -> Response:
        """Alerts that are still firing and were not sent are sent now."""
        said = body or bodies.ActBody()
        ended = await platform.alerts.end_silence(silence, **said.who)
        return _silenced("the silence has ended", ended)


def _silenced(message: str, silence: shapes.SilenceView) -> Response:
    return JsonView(alert_shapes.SilenceAct(message=message, silence=silence, timestamp=now_iso()))
