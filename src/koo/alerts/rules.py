"""Which alerts hold now: a pure function of the numbers that everybody sees.

Each rule is a few lines over one part of the system's health. The thresholds are the promised ones. A rule says what
is wrong, where, and with which numbers; when an alert begins and ends is the engine's (`koo.alerts.engine`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

Severity = Literal["critical", "warning", "info"]

ERROR_RATE_MAX = 0.10
CALLS_MIN = 20
APPROACHING = 0.80

View = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that holds now. `kind` and `component` identify it; `message` may change while it lasts."""

    severity: Severity
    kind: str
    component: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The same for as long as the same thing is wrong with the same part."""
        return f"{self.kind}:{self.component}"


def find(database: View | None, services: Mapping[str, View]) -> list[Finding]:
    """Everything that holds in the views of the database (None: it is not in use) and of the services."""
    findings = list(_database(database)) if database is not None else []
    for service in services.values():
        if service["configured"]:
            findings.extend(_service(service))
    return findings


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


def _database(view: View) -> Iterator[Finding]:
    state, reason = view["state"], view.get("error") or view.get("reason") or ""
    breaker = view.get("circuit_breaker") or {}
    if state == "circuit_open":
        yield _circuit_open("database", breaker)
        yield Finding("critical", "database_unavailable", "database", _say("the database is refused", reason))
    elif state == "degraded":
        yield _recovering("database", breaker)
    elif not view["healthy"]:
        yield Finding(
            "critical", "database_unavailable", "database", _say("the database does not answer", reason)
        )
    for condition in view.get("conditions", ()):
        message = f"the database is {str(condition).replace('_', ' ')}"
        yield Finding("warning", f"database_{condition}", "database", message)


def _circuit_open(component: str, breaker: View) -> Finding:
    message = _say("the circuit breaker is open", str(breaker.get("reason") or ""))
    return Finding(
        "critical", "circuit_open", component, message, {"next_attempt": breaker.get("next_attempt")}
    )


def _recovering(component: str, breaker: View) -> Finding:
    message = _say("recovery is being tested", str(breaker.get("reason") or ""))
    return Finding("warning", "circuit_recovering", component, message)


# ── a service ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _service(view: View) -> Iterator[Finding]:
    name = view["service_name"]
    component = f"ai:{name}"
    breakers = view["models"]
    for model, breaker in breakers.items():
        part = f"{component}/{model}" if len(breakers) > 1 else component
        if breaker["state"] in ("open", "forced_open"):
            yield _circuit_open(part, breaker)
        elif breaker["state"] == "half_open":
            yield _recovering(part, breaker)
    if view["state"] == "circuit_open" and _all_refused(view):
        yield Finding("critical", "service_down", component, _say(f"{name} cannot be asked", view["reason"]))
    yield from _performance(view, component)
    yield from _limits(view, component)


def _all_refused(view: View) -> bool:
    """No model of it can be asked: all breakers are open, or the key is refused (then its breakers need not be)."""
    states = [breaker["state"] for breaker in view["models"].values()]
    opened = [state in ("open", "forced_open") for state in states]
    return all(opened) or not any(opened)


def _performance(view: View, component: str) -> Iterator[Finding]:
    recent = view["metrics"]["recent"]
    calls, slow_s = recent["calls"], view["configuration"].get("slow_call")
    if calls < CALLS_MIN:
        return
    error_rate = 1.0 - view["metrics"]["success_rate"]
    p95 = view["metrics"]["p95"]
    if error_rate >= ERROR_RATE_MAX:
        message = f"{error_rate:.0%} of the last {calls} calls failed"
        yield Finding("warning", "degraded_performance", component, message, {"error_rate": error_rate})
    elif slow_s is not None and p95 > slow_s:
        message = f"one call in twenty takes longer than {p95:.1f} s"
        yield Finding("warning", "degraded_performance", component, message, {"p95": p95})


def _limits(view: View, component: str) -> Iterator[Finding]:
    limits = view["rate_limits"]
    for key in ("requests_per_minute", "requests_per_hour", "requests_per_day"):
        limit = limits[key]
        if limit["limit"] and limit["used"] >= APPROACHING * limit["limit"]:
            message = f"{limit['used']} of {limit['limit']} {key.replace('_', ' ')} are used"
            yield Finding(
                "warning", f"limit_approaching_{key}", component, message, {"resets_at": limit["resets_at"]}
            )
    budget = limits["daily_budget"]
    if budget["limit"] is None:
        return
    total, used = Decimal(budget["limit"]), Decimal(budget["spent"]) + Decimal(budget["reserved"])
    if total > 0 and used >= Decimal(str(APPROACHING)) * total:
        message = f"{used / total:.0%} of today's budget of {total} USD is spent or held"
        yield Finding("warning", "budget_approaching", component, message, {"resets_at": budget["resets_at"]})
    if budget["scope"] != "shared" and budget.get("store_lost"):
        message = "the state store cannot be reached: the budget holds for this process only"
        yield Finding("warning", "budget_local", component, message)


def _say(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
