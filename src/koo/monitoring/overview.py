"""Builds the combined views: all services, the system, its alerts, and the overview that the page shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from koo.clock import Clock
from koo.monitoring.guards import now_iso
from koo.monitoring.own_shapes import KooHealth
from koo.monitoring.shapes import (
    Alert,
    BreakerStatus,
    Budget,
    Dashboard,
    DatabaseHealth,
    Gravest,
    OverallHealth,
    ServiceHealth,
    ServicesHealth,
    Summary,
    SystemAlerts,
    SystemHealth,
)


def services_view(
    services: Mapping[str, ServiceHealth], clock: Clock, budgets: Sequence[Budget] = ()
) -> ServicesHealth:
    """All services. Those without a key are listed but not counted."""
    configured = [view for view in services.values() if view["configured"]]
    return {
        "overall_health": services_health(configured),
        "healthy_services": sum(view["state"] == "healthy" for view in configured),
        "total_services": len(configured),
        "services": dict(services),
        "budgets": list(budgets),
        "timestamp": now_iso(clock),
    }


def services_health(configured: Sequence[ServiceHealth]) -> OverallHealth:
    """unhealthy if every configured service refuses calls, degraded if any is not healthy, otherwise healthy."""
    states = {view["state"] for view in configured}
    if states and states <= {"circuit_open", "rate_limited"}:
        return "unhealthy"
    return "healthy" if states <= {"healthy"} else "degraded"


# ── everything together ───────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=16)
def digest_of_home(home: Path) -> str:
    """A digest by which a command recognises a server of the same folder, without the server revealing the folder."""
    return blake2b(os.fsencode(home.resolve()), digest_size=8, person=b"koo home").hexdigest()


class Gravity(NamedTuple):
    """The worst current severity (None if nothing is wrong), and whether calls are refused because of it."""

    severity: Gravest | None = None
    refuses: bool = False


def system_view(
    database: DatabaseHealth, services: ServicesHealth, koo: KooHealth, gravity: Gravity, clock: Clock
) -> SystemHealth:
    """`overall_health`, its severity, and the parts that it is derived from."""
    overall = _overall(database, services, gravity)
    return {
        "overall_health": overall,
        "severity": _severity(overall, gravity),
        "database": database,
        "ai_services": services,
        "koo": koo,
        "timestamp": now_iso(clock),
    }


def _overall(database: DatabaseHealth, services: ServicesHealth, gravity: Gravity) -> OverallHealth:
    """The overall health by the documented rule. In addition, it is never "healthy" while anything is critical or
    refuses calls."""
    health = services["overall_health"]
    if database["state"] == "circuit_open" or health == "unhealthy":
        return "unhealthy"
    is_well = is_database_healthy(database) and health == "healthy"
    return "healthy" if is_well and not gravity.refuses and gravity.severity != "critical" else "degraded"


def _severity(overall: OverallHealth, gravity: Gravity) -> Gravest | None:
    """The colour of the verdict. It is never milder than an alert listed below it, or than the verdict's own word."""
    if overall == "unhealthy" or gravity.severity == "critical":
        return "critical"
    return "warning" if overall == "degraded" else gravity.severity


def is_database_healthy(database: DatabaseHealth) -> bool:
    """Whether both its guard and its last probe consider it healthy."""
    return database["healthy"] and database["state"] == "healthy"


def alerts_view(alerts: list[Alert], clock: Clock) -> SystemAlerts:
    """The alerts and their number."""
    return {"alerts": alerts, "alert_count": len(alerts), "timestamp": now_iso(clock)}


def dashboard_view(health: SystemHealth, alerts: list[Alert]) -> Dashboard:
    """Everything that the overview shows."""
    return {
        "summary": _summary(health, alerts),
        "database": health["database"],
        "ai_services": health["ai_services"],
        "alerts": alerts,
        "timestamp": health["timestamp"],
    }


def _summary(health: SystemHealth, alerts: list[Alert]) -> Summary:
    services = health["ai_services"]
    breakers: list[BreakerStatus] = [health["database"]["circuit_breaker"]]
    for service in services["services"].values():
        breakers += service["models"].values()
    return {
        "overall_health": health["overall_health"],
        "severity": health["severity"],
        "database_healthy": is_database_healthy(health["database"]),
        "ai_services_healthy": f"{services['healthy_services']}/{services['total_services']}",
        "active_alerts": sum(alert["active"] for alert in alerts),
        "circuit_breakers_open": sum(breaker["state"] in ("open", "forced_open") for breaker in breakers),
    }
