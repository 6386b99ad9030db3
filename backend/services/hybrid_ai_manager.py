"""Queries to AI services, and the state of the services.

    response = await query_ai("claude", "What is the capital of France?", fallback=["local"])
    print(response, response.cost_usd)

    async for chunk in stream_ai("claude", "Count to three."):
        print(chunk, end="")

Every error that a query raises on purpose is an `ExternalServiceError`. The status and reset functions are synchronous.
"""

from __future__ import annotations

from koo import (
    ExternalServiceError,
    get_ai_service_health,
    get_all_ai_services_health,
    hybrid_ai_manager,
    perform_ai_health_check,
    query_ai,
    query_multiple_ai,
    reset_ai_service_errors,
    reset_all_ai_services_errors,
    stream_ai,
)

__all__ = [
    "ExternalServiceError",
    "get_ai_service_health",
    "get_all_ai_services_health",
    "hybrid_ai_manager",
    "perform_ai_health_check",
    "query_ai",
    "query_multiple_ai",
    "reset_ai_service_errors",
    "reset_all_ai_services_errors",
    "stream_ai",
]
