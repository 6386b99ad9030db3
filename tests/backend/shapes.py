"""The promised shape of each status: every key with its type.

A shape is a type, a set of words, a list of one shape, a dict of shapes, or a function that checks. `or_none(...)`
allows None. Further keys are allowed; a listed key always exists and always has its type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

Shape = Any


def check(value: Any, shape: Shape, place: str = "it") -> None:
    """Check a value against a shape. Raises AssertionError with the path of the first difference."""
    if isinstance(shape, dict):
        assert type(value) is dict, f"{place} is {type(value).__name__}, not a dict"
        assert shape.keys() <= value.keys(), f"{place} lacks {sorted(shape.keys() - value.keys())}"
        for key, inner in shape.items():
            check(value[key], inner, f"{place}.{key}")
    elif isinstance(shape, list):
        assert type(value) is list, f"{place} is {type(value).__name__}, not a list"
        for number, one in enumerate(value):
            check(one, shape[0], f"{place}[{number}]")
    elif isinstance(shape, set):
        assert type(value) is str and value in shape, f"{place} is {value!r}, none of {sorted(shape)}"
    elif isinstance(shape, type):
        assert type(value) is shape, f"{place} is {value!r}, not {shape.__name__}"
    else:
        assert shape(value), f"{place} is {value!r}"


def or_none(shape: Shape) -> Callable[[Any], bool]:
    """`shape`, or None."""

    def checks(value: Any) -> bool:
        if value is not None:
            check(value, shape, "a value that may be None")
        return True

    return checks


def each(shape: Shape) -> Callable[[Any], bool]:
    """A dict with any keys, whose values have this shape."""

    def checks(value: Any) -> bool:
        assert type(value) is dict
        for name, one in value.items():
            assert type(name) is str
            check(one, shape, name)
        return True

    return checks


def at(value: Any) -> bool:
    """A time: ISO 8601 in UTC with its offset."""
    return type(value) is str and datetime.fromisoformat(value).utcoffset() == timedelta(0)


def money(value: Any) -> bool:
    """An exact amount, as a string without an exponent."""
    return type(value) is str and Decimal(value).is_finite() and "e" not in value.lower()


def ratio(value: Any) -> bool:
    """0 to 1, as a float."""
    return type(value) is float and 0 <= value <= 1


def count(value: Any) -> bool:
    """A whole number from 0."""
    return type(value) is int and value >= 0


def seconds(value: Any) -> bool:
    """A duration."""
    return type(value) is float and math.isfinite(value) and value >= 0


HEALTH = {"healthy", "degraded", "unhealthy"}
BREAKER = {"closed", "open", "half_open", "forced_open", "disabled"}
LAST_ERROR = or_none({"kind": str, "status": or_none(int), "sentence": str, "at": at})
LIMIT = {"used": count, "limit": or_none(int), "remaining": or_none(int), "resets_at": or_none(at)}

SERVICE: dict[str, Shape] = {
    "service_name": str,
    "state": {"healthy", "degraded", "unhealthy", "circuit_open", "rate_limited"},
    "configured": bool,
    "reason": str,
    "last_error": LAST_ERROR,
    "health": {
        "circuit_breaker_state": BREAKER,
        "failure_count": count,
        "success_count": count,
        "last_failure": or_none(at),
        "last_success": or_none(at),
        "next_attempt": or_none(at),
    },
    "metrics": {
        "total_requests": count,
        "successful_requests": count,
        "failed_requests": count,
        "refused_requests": count,
        "success_rate": ratio,
        "average_response_time": seconds,
        "error_counts": each(count),
        "p50": seconds,
        "p95": seconds,
        "p99": seconds,
    },
    "rate_limits": {
        "requests_per_minute": LIMIT,
        "requests_per_hour": LIMIT,
        "requests_per_day": LIMIT,
        "daily_budget": {
            "spent": money,
            "reserved": money,
            "above_hold": money,
            "limit": or_none(money),
            "remaining": or_none(money),
            "resets_at": at,
            "currency": {"USD"},
        },
    },
    "configuration": dict,
    "last_updated": at,
}
SERVICES = {
    "overall_health": HEALTH,
    "healthy_services": count,
    "total_services": count,
    "services": each(SERVICE),
    "timestamp": at,
}
CHECK = {
    "service_name": str,
    "healthy": bool,
    "state": SERVICE["state"],
    "error": or_none(str),
    "response_time_ms": seconds,
    "last_updated": at,
}

DATABASE_BREAKER = {
    "state": BREAKER,
    "reason": str,
    "last_error": LAST_ERROR,
    "failure_count": count,
    "success_count": count,
    "last_failure": or_none(at),
    "last_success": or_none(at),
    "next_attempt": or_none(at),
}
POOL = {
    "size": count,
    "active_connections": count,
    "idle_connections": count,
    "suspect_connections": count,
    "overflow_connections": count,
    "waiting": count,
    "max_connections": count,
    "utilization": ratio,
}
POOL_METRICS = {
    "pool_status": POOL,
    "connection_metrics": dict,
    "response_times": {"average": seconds, "p50": seconds, "p95": seconds, "p99": seconds},
    "errors": {"by_kind": each(count), "total": count, "last_error": or_none(str)},
    "circuit_breaker": DATABASE_BREAKER,
}
DATABASE: dict[str, Shape] = {
    "healthy": bool,
    "state": {"healthy", "unhealthy", "circuit_open", "degraded"},
    "reason": str,
    "last_error": LAST_ERROR,
    "server": {"host": or_none(str), "port": or_none(int), "name": or_none(str)},
    "operator": str,
    "answers_since": or_none(at),
    "conditions": [str],
    "response_time_ms": or_none(seconds),
    "circuit_breaker": DATABASE_BREAKER,
    "pool_status": POOL,
    "last_health_check": or_none(at),
    "error": or_none(str),
}

ALERT = {"type": {"critical", "warning", "info"}, "component": str, "message": str, "timestamp": at}
ALERTS = {"alerts": [ALERT], "alert_count": count, "timestamp": at}
SYSTEM = {"overall_health": HEALTH, "database": DATABASE, "ai_services": SERVICES, "timestamp": at}
DASHBOARD = {
    "summary": {
        "overall_health": HEALTH,
        "database_healthy": bool,
        "ai_services_healthy": lambda text: (
            "/".join(part for part in text.split("/") if part.isdecimal()) == text
        ),
        "active_alerts": count,
        "circuit_breakers_open": count,
    },
    "database": DATABASE,
    "ai_services": SERVICES,
    "alerts": [ALERT],
    "timestamp": at,
}


def check_json(value: Any) -> Any:
    """Like `check`, for a value from HTTP, which contains only types that JSON has."""
    return json.loads(json.dumps(value, allow_nan=False))
