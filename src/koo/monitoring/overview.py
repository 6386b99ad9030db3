"""Everything together: all services in one, the system, its alerts, and the overview that the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from koo.clock import Clock
from koo.monitoring.guards import now_iso
from koo.monitoring.shapes import (
    Alert,
    BreakerStatus,
    Budget,
    Dashboard,
    DatabaseHealth,
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
    """All services in one; those without a key are listed, but outside all counts."""
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
    """unhealthy: every configured service refuses; degraded: some part is not healthy; else healthy."""
    states = {view["state"] for view in configured}
    if states and states <= {"circuit_open", "rate_limited"}:
        return "unhealthy"
    return "healthy" if states <= {"healthy"} else "degraded"


# ── everything together ───────────────────────────────────────────────────────────────────────────────────────────


def system_view(database: DatabaseHealth, services: ServicesHealth, clock: Clock) -> SystemHealth:
    """`overall_health` and what it is made of."""
    health = services["overall_health"]
    overall: OverallHealth = "healthy"
    if database["state"] == "circuit_open" or health == "unhealthy":
        overall = "unhealthy"
    elif not is_database_healthy(database) or health != "healthy":
        overall = "degraded"
    return {
        "overall_health": overall,
        "database": database,
        "ai_services": services,
        "timestamp": now_iso(clock),
    }


def is_database_healthy(database: DatabaseHealth) -> bool:
    """Nothing is wrong with it: neither for its guard nor for the last probe."""
    return database["healthy"] and database["state"] == "healthy"


def alerts_view(alerts: list[Alert], clock: Clock) -> SystemAlerts:
    """The alerts and how many they are."""
    return {"alerts": alerts, "alert_count": len(alerts), "timestamp": now_iso(clock)}


def dashboard_view(health: SystemHealth, alerts: list[Alert]) -> Dashboard:
    """Everything that an overview shows."""
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
        "database_healthy": is_database_healthy(health["database"]),
        "ai_services_healthy": f"{services['healthy_services']}/{services['total_services']}",
        "active_alerts": sum(alert["active"] for alert in alerts),
        "circuit_breakers_open": sum(breaker["state"] in ("open", "forced_open") for breaker in breakers),
    }
