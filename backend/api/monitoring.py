"""Monitoring: the state of everything, as functions and as a FastAPI router.

    health = await get_system_health()           overall_health, database, ai_services, timestamp
    overview = await get_monitoring_dashboard()  summary, database, ai_services, alerts, timestamp
    alerts = await get_system_alerts()           alerts, alert_count, timestamp

    app.include_router(router, prefix="/api/v1")

The functions need no request and no running server. `overall_health` is `unhealthy` if the database refuses calls or
every configured AI service does, `degraded` if any part is not healthy, and otherwise `healthy`.

The router serves `/monitoring/...`; its errors are `application/problem+json`. Its routes enforce the same access rules
as those of `koo serve`: see docs/security.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from koo import get_monitoring_dashboard, get_system_alerts, get_system_health, platform

if TYPE_CHECKING:
    from fastapi import APIRouter

    router: APIRouter

__all__ = ["get_monitoring_dashboard", "get_system_alerts", "get_system_health", "router"]


def __getattr__(name: str) -> Any:
    if name != "router":
        raise AttributeError(f"module 'api.monitoring' has no attribute {name!r}")
    from koo.web import (
        monitoring_router,
    )  # imported late: a program that serves no HTTP need not load FastAPI

    globals()[name] = monitoring_router(platform)
    return globals()[name]
