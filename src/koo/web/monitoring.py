"""Routes under /monitoring: the state of everything, and the reset of the database's breaker."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from koo.monitoring import fleet_shapes, shapes
from koo.monitoring.guards import now_iso
from koo.monitoring.overview import dashboard_view
from koo.platform import LOOK_AGE_MAX_S, Platform
from koo.web import answers, bodies
from koo.web.alerts import add_alerts
from koo.web.audit import KEPT, audit_of
from koo.web.breakers import add_breakers
from koo.web.database_acts import add_database_acts
from koo.web.door import door_of
from koo.web.history import add_history
from koo.web.incidents import add_incidents
from koo.web.links import linked
from koo.web.live_routes import add_live
from koo.web.notices import add_notices
from koo.web.routing import JsonView, described, make_router

log = logging.getLogger("koo.web")


def monitoring_router(platform: Platform, *, protect: bool = True, hosts: Iterable[str] = ()) -> APIRouter:
    """The routes below `/monitoring` for one platform.

    `protect`: whether the rules of `koo.web.security` apply, wherever the router is included. If False, your own
    middleware decides who is allowed. `hosts`: further names of your server, in addition to those in KOO_HOST,
    KOO_URL and KOO_PUBLIC_URL.
    """
    door = door_of(platform, protect, hosts)
    router = make_router("/monitoring", "monitoring", door)
    _add_overview(router, platform)
    add_notices(router, platform)
    add_alerts(router, platform)
    add_history(router, platform)
    add_live(router, platform, door)
    add_incidents(router, platform)
    add_breakers(router, platform)
    _add_fleet(router, platform)
    _add_database(router, platform)
    add_database_acts(router, platform)
    _add_services(router, platform)
    _add_audit(router, platform)
    return router


def _add_audit(router: APIRouter, platform: Platform) -> None:
    @router.get("/audit", summary="Acts and refusals", **described(shapes.AuditLog, 422))
    async def get_audit(limit: Annotated[int, Query(ge=1, le=KEPT)] = 100) -> Response:
        """The last acts and refusals of this process, newest first; the log has all of them."""
        entries = audit_of(platform).entries(limit)
        return JsonView(shapes.AuditLog(entries=entries, timestamp=now_iso()))


def _add_overview(router: APIRouter, platform: Platform) -> None:
    @router.get("/health", summary="State of everything", **described(shapes.SystemHealth))
    async def get_health() -> Response:
        """Always 200, whatever the state; machines should use `/readyz`.

        Probes the database, unless it was probed within the last two seconds.
        """
        return JsonView(await platform.system_health())

    @router.get("/dashboard", summary="Everything for an overview", **described(shapes.Dashboard))
    async def get_dashboard(request: Request) -> Response:
        """The state of everything, its summary, and the alerts."""
        health = await platform.system_health()
        return JsonView(dashboard_view(health, linked(request, platform.active_alerts())))


def _add_fleet(router: APIRouter, platform: Platform) -> None:
    @router.get("/fleet", summary="All processes on the state store", **described(fleet_shapes.FleetStatus))
    async def get_fleet() -> Response:
        """All processes, the leader, in how many of them each guard is open, and which settings differ.

        Always 200. While the state store is unreachable, shows only the responding process.
        """
        return JsonView(await platform.fleet())


def _add_database(router: APIRouter, platform: Platform) -> None:
    @router.get("/database", summary="Database in detail", **described(answers.DatabaseMonitoring))
    async def get_database() -> Response:
        """The database's health, pool, breaker and errors."""
        status = await platform.database.get_detailed_status(max_age_s=LOOK_AGE_MAX_S)
        return JsonView(answers.DatabaseMonitoring(database_monitoring=status, timestamp=now_iso()))

    @router.get("/database/pool-metrics", summary="Connection pool", **described(answers.PoolMetrics))
    async def get_pool_metrics() -> Response:
        """The pool's current numbers. Does not use a connection."""
        metrics = platform.database.get_pool_metrics()
        return JsonView(answers.PoolMetrics(pool_metrics=metrics, timestamp=now_iso()))

    @router.post(
        "/database/health-check", summary="Check the database now", **described(answers.DatabaseCheck)
    )
    async def check_database() -> Response:
        """One probe on a separate connection. Always 200; the response contains the result."""
        await platform.open()
        result = await platform.database.health_check()
        status = await platform.database.get_detailed_status(max_age_s=LOOK_AGE_MAX_S)
        return JsonView(
            answers.DatabaseCheck(health_check_result=result, detailed_status=status, timestamp=now_iso())
        )

    @router.post(
        "/database/reset-circuit-breaker",
        summary="Close the database's breaker",
        **described(answers.DatabaseReset, 413, 422),
    )
    async def reset_database(body: Annotated[bodies.ActBody | None, Body()] = None) -> Response:
        """Closes the breaker here and in all processes on the same state store. The pool and counts are not changed."""
        await platform.open()
        said = body or bodies.ActBody()
        platform.reset_database(**said.who)
        log.warning("the database's circuit breaker was reset %s", said.signature)
        message = f"the database's circuit breaker is closed{platform.parts.sharing.obstacle}"
        state = platform.database.circuit_breaker_state
        return JsonView(answers.DatabaseReset(message=message, new_state=state.value, timestamp=now_iso()))


def _add_services(router: APIRouter, platform: Platform) -> None:
    @router.get("/ai-services", summary="AI services in detail", **described(answers.ServicesMonitoring))
    async def get_services() -> Response:
        """All AI services."""
        return JsonView(
            answers.ServicesMonitoring(ai_services_monitoring=platform.services_health(), timestamp=now_iso())
        )

    @router.get(
        "/ai-services/{service}/metrics",
        summary="One AI service in detail",
        **described(answers.ServiceMonitoring, 404),
    )
    async def get_service_metrics(service: str) -> Response:
        """One AI service: state, counts, limits, money."""
        return JsonView(
            answers.ServiceMonitoring(service_metrics=platform.service_health(service), timestamp=now_iso())
        )
