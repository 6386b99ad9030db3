"""Links from responses to the runbook: from alerts and from refusals."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request

from koo.errors import Cause, DatabaseError, Kind, KooError
from koo.monitoring.runbook import PREFIX, runbook_path, runbooks
from koo.monitoring.shapes import Alert

_FAILED = (
    Kind.CONNECTION,
    Kind.TIMEOUT,
    Kind.OVERLOADED,
    Kind.SERVER_ERROR,
    Kind.BAD_ANSWER,
    Kind.TRUNCATED_STREAM,
    Kind.STALLED,
    Kind.CONFLICT,
    Kind.UNKNOWN,
)
OF_SERVICES: dict[Kind, str] = {
    **dict.fromkeys(_FAILED, "degraded_performance"),
    Kind.CIRCUIT_OPEN: "service_down",
    Kind.KEY_REFUSED: "service_down",
    Kind.AUTH: "service_down",
    Kind.PERMISSION: "key_refused",
    Kind.SATURATED: "service_saturated",
    Kind.COOLING_DOWN: "provider_limit_reached",
    Kind.THROTTLED: "provider_limit_reached",
    Kind.QUOTA: "quota_used_up",
    Kind.BILLING: "quota_used_up",
    Kind.ALL_FAILED: "service_down",
    Kind.STORE_UNAVAILABLE: "store_unavailable",
    Kind.OUT_OF_RESOURCES: "out_of_resources",
}
OF_DATABASES: dict[Kind, str] = {
    Kind.CIRCUIT_OPEN: "database_unavailable",
    Kind.CONNECTION: "database_unavailable",
    Kind.TIMEOUT: "database_unavailable",
    Kind.AUTH: "database_unavailable",
    Kind.OVERLOADED: "database_unavailable",
    Kind.SATURATED: "database_saturated",
    Kind.DRAINING: "database_draining",
    Kind.DEADLINE: "database_slow",
    Kind.CONTENTION: "database_slow",
    Kind.READ_ONLY: "database_read_only",
    Kind.OUTCOME_UNKNOWN: "database_commit_unknown",
    Kind.OUT_OF_RESOURCES: "out_of_resources",
}
OF_CAUSES: dict[Cause, str] = {
    Cause.REQUESTS_PER_MINUTE: "limit_reached_requests_per_minute",
    Cause.REQUESTS_PER_HOUR: "limit_reached_requests_per_hour",
    Cause.REQUESTS_PER_DAY: "limit_reached_requests_per_day",
    Cause.TOKENS_PER_MINUTE: "limit_reached_tokens_per_minute",
    Cause.BUDGET_USED_UP: "budget_used_up",
    Cause.BUDGET_TOO_SMALL: "budget_too_small",
}


def runbook_of(error: KooError, base: str) -> str | None:
    """Return the runbook's path for an error, or None if no alert covers it."""
    table = OF_DATABASES if isinstance(error, DatabaseError) else OF_SERVICES
    kind = table.get(error.kind, "") if error.cause is None else OF_CAUSES[error.cause]
    return runbook_path(kind, base) if kind in runbooks() else None


def base_of(request: Request) -> str:
    """Return the path prefix of koo's routes as a client sees it: a proxy's path, a mount's, the API prefix."""
    prefix = getattr(request.app.state, "koo_prefix", PREFIX) if "app" in request.scope else PREFIX
    return f"{request.scope.get('root_path', '')}{prefix}"


def linked(request: Request, alerts: Iterable[Alert]) -> list[Alert]:
    """Return the same alerts with links to this server's own runbook, wherever it is mounted."""
    base = base_of(request)
    return [{**alert, "runbook": runbook_path(alert["kind"], base)} for alert in alerts]
