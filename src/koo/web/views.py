"""Views that put others together: the overview, alerts, and answers as JSON. Nothing here counts for itself."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from koo.ai.types import Answer, Query
from koo.clock import SYSTEM_CLOCK, iso
from koo.errors import ExternalServiceError
from koo.platform import Platform
from koo.web.models import QueryBody
from koo.web.problems import known_s, status_of

OPEN = ("open", "forced_open")


def timestamp() -> str:
    """Now, as all answers say it."""
    now = iso(SYSTEM_CLOCK.wall())
    assert now is not None
    return now


def money(amount: Decimal) -> str:
    """An exact amount, without an exponent and without trailing zeros."""
    text = f"{amount.normalize():f}"
    return text if text != "-0" else "0"


# ── monitoring ────────────────────────────────────────────────────────────────────────────────────────────────────


async def system_health(platform: Platform) -> dict[str, Any]:
    """`overall_health`, `database` (looked at within two seconds), `ai_services`, `timestamp`."""
    return await platform.system_health()


async def system_alerts(platform: Platform) -> dict[str, Any]:
    """`alerts`, the worst first, `alert_count`, `timestamp`."""
    alerts = platform.active_alerts()
    return {"alerts": alerts, "alert_count": len(alerts), "timestamp": timestamp()}


async def dashboard(platform: Platform) -> dict[str, Any]:
    """`summary`, `database`, `ai_services`, `alerts`, `timestamp`."""
    health = await platform.system_health()
    alerts = platform.active_alerts()
    database, services = health["database"], health["ai_services"]
    summary = {
        "overall_health": health["overall_health"],
        "database_healthy": database["healthy"] and database["state"] == "healthy",
        "ai_services_healthy": f"{services['healthy_services']}/{services['total_services']}",
        "active_alerts": sum(alert["active"] for alert in alerts),
        "circuit_breakers_open": _count_open(database, services),
    }
    return {
        "summary": summary,
        "database": database,
        "ai_services": services,
        "alerts": alerts,
        "timestamp": health["timestamp"],
    }


def _count_open(database: Mapping[str, Any], services: Mapping[str, Any]) -> int:
    """Open breakers of the database and of all models."""
    models = [model for service in services["services"].values() for model in service["models"].values()]
    return sum(breaker["state"] in OPEN for breaker in (database["circuit_breaker"], *models))


# ── queries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def query_of(body: QueryBody) -> Query:
    """A question as the gateway takes it."""
    return Query(**{**body.model_dump(), "fallback": tuple(body.fallback)})


def answer_view(answer: Answer) -> dict[str, Any]:
    """An answer in the promised shape."""
    usage = answer.usage
    return {
        "response": answer.text,
        "service": answer.service,
        "model": answer.model,
        "usage": {
            "input_tokens": usage.input_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "output_tokens": usage.output_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "total_tokens": usage.total_tokens,
            "estimated": usage.estimated,
        },
        "cost": money(answer.cost_usd),
        "cost_source": answer.cost_source,
        "attempts": answer.attempts,
        "latency_s": round(answer.latency_s, 6),
        "stop_reason": answer.stop_reason,
        "timestamp": timestamp(),
    }


def error_view(service: str, error: ExternalServiceError) -> dict[str, Any]:
    """Why one of several questions has no answer."""
    return {
        "success": False,
        "service": service,
        "error": str(error),
        "kind": error.kind.value,
        "status": status_of(error),
        "retry_after_s": known_s(error.retry_after_s),
        "attempts": error.attempts,
    }


def batch_view(queries: list[Query], outcomes: list[Answer | ExternalServiceError]) -> dict[str, Any]:
    """A result for each question, and their sums."""
    answers = [one for one in outcomes if isinstance(one, Answer)]
    return {
        "results": [
            {"success": True, **answer_view(one)}
            if isinstance(one, Answer)
            else error_view(query.service, one)
            for query, one in zip(queries, outcomes, strict=True)
        ],
        "total_queries": len(queries),
        "successful_queries": len(answers),
        "failed_queries": len(queries) - len(answers),
        "total_cost": money(sum((answer.cost_usd for answer in answers), Decimal(0))),
        "timestamp": timestamp(),
    }
