"""One example of each answer, as the description of the API shows it. A test holds each to its model."""

from __future__ import annotations

from typing import Any

NOW = "2026-11-23T14:02:11.204000+00:00"
MIDNIGHT = "2026-11-24T00:00:00+00:00"

BREAKER: dict[str, Any] = {
    "name": "database",
    "state": "closed",
    "override": "none",
    "reason": "",
    "consecutive_failures": 0,
    "failure_threshold": 5,
    "success_threshold": 2,
    "recovery_timeout": 60.0,
    "window": {"calls": 12, "failures": 0, "slow": 0},
    "opened_at": None,
    "next_attempt": None,
    "times_opened": 0,
    "stale_results": 0,
    "running": 0,
}
POOL: dict[str, Any] = {
    "size": 10,
    "active_connections": 1,
    "idle_connections": 3,
    "overflow_connections": 0,
    "waiting": 0,
    "max_connections": 30,
    "utilization": 0.033,
}
METRICS: dict[str, Any] = {
    "total_requests": 128,
    "successful_requests": 125,
    "failed_requests": 3,
    "refused_requests": 0,
    "success_rate": 0.98,
    "average_response_time": 1.21,
    "error_counts": {"overloaded": 3},
    "p50": 1.02,
    "p95": 2.41,
    "p99": 2.98,
}
_LIMIT = {"used": 3, "limit": 60, "remaining": 57, "resets_at": NOW}
LIMITS: dict[str, Any] = {
    "requests_per_minute": _LIMIT,
    "requests_per_hour": {**_LIMIT, "limit": 1000, "remaining": 997},
    "requests_per_day": {"used": 128, "limit": 10000, "remaining": 9872, "resets_at": MIDNIGHT},
    "daily_budget": {
        "spent": "1.2043",
        "reserved": "0.0614",
        "limit": "10",
        "remaining": "8.7343",
        "resets_at": MIDNIGHT,
        "currency": "USD",
        "scope": "shared",
        "as_of": NOW,
    },
}
SERVICE: dict[str, Any] = {
    "service_name": "claude",
    "state": "healthy",
    "configured": True,
    "reason": "",
    "health": {
        "circuit_breaker_state": "closed",
        "failure_count": 3,
        "success_count": 125,
        "last_failure": NOW,
        "last_success": NOW,
        "next_attempt": None,
    },
    "metrics": METRICS,
    "rate_limits": LIMITS,
    "configuration": {"kind": "anthropic", "model": "claude-sonnet-5-5", "has_key": True, "timeout": 120.0},
    "last_updated": NOW,
}
SERVICES: dict[str, Any] = {
    "overall_health": "healthy",
    "healthy_services": 1,
    "total_services": 1,
    "services": {"claude": SERVICE},
    "timestamp": NOW,
}
DATABASE: dict[str, Any] = {
    "healthy": True,
    "state": "healthy",
    "conditions": [],
    "response_time_ms": 0.8,
    "circuit_breaker": BREAKER,
    "pool_status": POOL,
    "last_health_check": NOW,
    "error": None,
}
POOL_METRICS: dict[str, Any] = {
    "pool_status": POOL,
    "connection_metrics": {"opened": 4, "closed": 0},
    "response_times": {"p50": 0.001, "p95": 0.004, "p99": 0.009},
    "errors": {},
    "circuit_breaker": BREAKER,
}
DATABASE_STATUS: dict[str, Any] = {**DATABASE, **POOL_METRICS}
SYSTEM: dict[str, Any] = {
    "overall_health": "healthy",
    "database": DATABASE,
    "ai_services": SERVICES,
    "timestamp": NOW,
}
ALERT: dict[str, Any] = {
    "type": "warning",
    "component": "ai:claude",
    "message": "84% of today's budget of 10 USD is spent or held",
    "timestamp": NOW,
    "kind": "budget_approaching",
    "active": True,
    "ended_at": None,
    "data": {"resets_at": MIDNIGHT},
}
CHECK: dict[str, Any] = {
    "service_name": "claude",
    "healthy": True,
    "state": "healthy",
    "error": None,
    "response_time_ms": 212.4,
    "last_updated": NOW,
}
QUERY: dict[str, Any] = {
    "service": "claude",
    "prompt": "What is the capital of France?",
    "system": "Answer in one word.",
    "max_tokens": 50,
    "timeout_s": 20.0,
    "fallback": ["local"],
}
ANSWER: dict[str, Any] = {
    "response": "Paris.",
    "service": "claude",
    "model": "claude-sonnet-5-5",
    "usage": {
        "input_tokens": 21,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "output_tokens": 4,
        "reasoning_tokens": 0,
        "total_tokens": 25,
        "estimated": False,
    },
    "cost": "0.000082",
    "cost_source": "table",
    "attempts": 1,
    "latency_s": 0.83,
    "stop_reason": "end_turn",
    "timestamp": NOW,
}
FAILURE: dict[str, Any] = {
    "success": False,
    "service": "openai",
    "error": "openai: our limit of 60 requests a minute is reached; try again in 12 s",
    "kind": "rate_limited",
    "status": 429,
    "retry_after_s": 11.7,
    "attempts": 0,
}
