"""Findings about a service: its key, its breakers, the provider's limits, its errors and latency.

Every state other than `healthy`, and every refusal of the last half minute, has a finding. Otherwise the verdict could
lack a reason, and only callers would notice an outage.
"""

from __future__ import annotations

from collections.abc import Iterator

from koo.alerts.findings import Finding
from koo.alerts.limit_rules import find_in_limits
from koo.alerts.money_rules import find_in_day
from koo.alerts.words import say
from koo.monitoring.shapes import AlertData, BreakerStatus, ModelStatus, Pause, ServiceHealth

ERROR_RATE_MAX = 0.10
CALLS_MIN = 20
"""These two are documented promises. With fewer calls, one or two failures would already be a rate of a tenth."""
GOES_ON = 0.5
"""An alert about a rate continues until the rate, or the number of calls, falls below this share of the threshold that
began it. Otherwise a rate around the threshold would begin and end an alert with each call."""
FAILURES_MIN = 3
"""Fewer failures make a service unhealthy for a while, but do not justify a notification."""
REFUSED = ("open", "forced_open")
QUOTAS = ("quota", "billing")
"""Pauses that a short wait does not end, because the account has no credit left."""


def find_in_service(view: ServiceHealth) -> Iterator[Finding]:
    """All findings about one configured service."""
    component = f"ai:{view['service_name']}"
    yield from _down(view, component)
    yield from _models(view, component)
    yield from _clients(view, component)
    if view["pause"] is not None:
        yield _paused(component, view["service_name"], view["pause"])
    yield from _performance(view, component)
    yield from _state(view, component)
    yield from _refusing(view, component)
    yield from find_in_limits(view, component)
    yield from find_in_day(view, component)


# ── its key and its breakers ──────────────────────────────────────────────────────────────────────────────────────


def find_in_breaker(component: str, whom: str, breaker: BreakerStatus) -> Iterator[Finding]:
    """Findings about a breaker that is not closed. `whom` names what it guards."""
    # In shadow a breaker is open without any effect: an alert would wake people for a trial of a threshold. What is
    # wrong with the service itself is reported by its own state.
    if breaker["override"] == "metrics_only":
        return
    reason = breaker["reason"]
    if breaker["state"] in REFUSED:
        data: AlertData = {
            "refuses": f"every call to {whom}",
            "since": breaker["opened_at"] if breaker["state"] == "open" else None,
            "next_attempt": breaker["next_attempt"],
            "last_error": breaker["last_error"],
            **incident_of(breaker),
        }
        yield Finding("circuit_open", component, say("the circuit breaker is open", reason), data)
    elif breaker["state"] == "half_open":
        message = f"recovery is being tested after {reason}"
        tested: AlertData = {
            "refuses": f"calls to {whom}, except a few that test it",
            "since": breaker["opened_at"],
            "last_error": breaker["last_error"],
            **incident_of(breaker),
        }
        yield Finding("circuit_recovering", component, message, tested)


def incident_of(breaker: BreakerStatus) -> AlertData:
    """The incident that explains why an alert's breaker opened."""
    return {} if breaker["incident"] is None else {"incident": breaker["incident"]}


def refuses(breaker: BreakerStatus) -> bool:
    """Whether the breaker refuses calls. In shadow it does not, whatever its state."""
    return breaker["state"] in REFUSED and breaker["override"] != "metrics_only"


def _down(view: ServiceHealth, component: str) -> Iterator[Finding]:
    name, models = view["service_name"], list(view["models"].values())
    if not _is_down(view, models):
        return
    attempts = [model["key_checked_at"] or model["next_attempt"] for model in models]
    known = [attempt for attempt in attempts if attempt is not None]
    data: AlertData = {
        "refuses": f"every call to {name}",
        "next_attempt": min(known, default=None),
        "last_error": view["last_error"],
        **(incident_of(models[0]) if refuses(models[0]) else {}),
    }
    yield Finding("service_down", component, say(f"{name} cannot be called", view["reason"]), data)


def _is_down(view: ServiceHealth, models: list[ModelStatus]) -> bool:
    """Whether the default model is refused and no other model can be called, except by probes."""
    if _is_refused_to_all(view, models):
        return True
    # A model that tests its recovery admits a probe from time to time, which is not a working service yet, so
    # `half_open` does not pass. If the default model itself is half open, this is False, and the engine keeps the
    # existing alert open until the test has a result (`kept_by`).
    refused = [bool(model["key_refused"]) or refuses(model) for model in models]
    passes = [not no and model["state"] != "half_open" for no, model in zip(refused, models, strict=True)]
    return refused[0] and not any(passes)


def _is_refused_to_all(view: ServiceHealth, models: list[ModelStatus]) -> bool:
    """Whether the keys of all clients of a user's own operation are refused, which no model's own status shows."""
    default = models[0]
    return view["state"] == "circuit_open" and not default["key_refused"] and not refuses(default)


def _models(view: ServiceHealth, component: str) -> Iterator[Finding]:
    name = view["service_name"]
    whole = all(model["key_refused"] for model in view["models"].values())
    for place, (model, status) in enumerate(view["models"].items()):
        part = f"{component}/{model}" if place else component
        whom = f"{name}'s model {model}" if len(view["models"]) > 1 else name
        yield from find_in_breaker(part, whom, status)
        if status["key_refused"] and not (whole and place):
            data: AlertData = {
                "refuses": f"every call to {whom}",
                "next_attempt": status["key_checked_at"],
                "last_error": status["last_error"],
            }
            yield Finding("key_refused", part, f"{whom} cannot be called: {status['key_refused']}", data)
        if place and status["pause"] is not None:
            yield _paused(part, whom, status["pause"])


def _clients(view: ServiceHealth, component: str) -> Iterator[Finding]:
    """Clients of a user's own operation whose keys are refused. The finding never identifies them."""
    clients, name = view["clients"], view["service_name"]
    if clients is not None and clients["refused"]:
        whom = f"{clients['refused']} of {clients['known']} clients"
        data: AlertData = {
            "refuses": f"the calls of {whom} to {name}, for one model or for all",
            "clients": clients["refused"],
            "last_error": view["last_error"],
        }
        message = f"the provider refuses the keys of {whom} of {name}; calls with the other keys continue"
        yield Finding("client_key_refused", component, message, data)


def _paused(component: str, whom: str, pause: Pause) -> Finding:
    """The provider limits calls, and has said until when."""
    data: AlertData = {
        "since": pause["since"],
        "resets_at": pause["until"],
        "refuses": f"every call to {whom}",
    }
    message = f"{pause['reason']}, until {pause['until'][:19]}Z"
    if pause["kind"] in QUOTAS:
        return Finding("quota_used_up", component, message, data)
    data["refuses"] = f"calls to {whom} whose deadline comes before then"
    return Finding("provider_limit_reached", component, message, data)


# ── its errors and its latency ────────────────────────────────────────────────────────────────────────────────────


def _performance(view: ServiceHealth, component: str) -> Iterator[Finding]:
    recent, slow_s = view["metrics"]["recent"], view["configuration"]["slow_call"]
    calls, p95 = recent["calls"], view["metrics"]["p95"]
    if calls < CALLS_MIN * GOES_ON:
        return
    # The rate is computed from the two counts and not as 1 - success_rate: in floating point 1 - 0.9 is less than 0.1,
    # and two failures in twenty calls, exactly the threshold, would be missed.
    error_rate = recent["failed"] / calls
    failed: AlertData = {"last_error": view["last_error"]}
    for share in (1.0, GOES_ON):
        begins = share == 1.0 and calls >= CALLS_MIN
        if error_rate >= ERROR_RATE_MAX * share:
            message = f"{error_rate:.0%} of the last {calls} calls failed"
            yield Finding(
                "degraded_performance", component, message, {**failed, "error_rate": error_rate}, begins
            )
            return
        if slow_s is not None and p95 > slow_s * share:
            message = f"one call in twenty takes longer than {p95:.1f} s; slow means {slow_s:g} s or more"
            yield Finding("degraded_performance", component, message, {"p95": p95}, begins)
            return


def _state(view: ServiceHealth, component: str) -> Iterator[Finding]:
    """States for which the rates above have too few calls, or which a short burst of errors caused."""
    data: AlertData = {"last_error": view["last_error"]}
    if view["state"] == "unhealthy":
        message = f"{view['service_name']} is unhealthy, but calls still pass"
        yield Finding(
            "service_unhealthy", component, say(message, view["reason"]), data, not _is_one_failure(view)
        )
    elif view["state"] == "degraded" and not any(_is_ill(model) for model in view["models"].values()):
        yield Finding("degraded_performance", component, view["reason"], data)


def _is_one_failure(view: ServiceHealth) -> bool:
    """Whether one or two failures among few calls are the only reason: a state, but no reason to notify a person."""
    default = next(iter(view["models"].values()))
    return (
        0 < default["window"]["failures"] < FAILURES_MIN
        and 2 * default["consecutive_failures"] < default["failure_threshold"]
    )


def _is_ill(model: ModelStatus) -> bool:
    """Whether the model has a finding of its own, which explains why its service is degraded."""
    is_testing = model["state"] == "half_open" and model["override"] != "metrics_only"
    return bool(model["key_refused"]) or refuses(model) or is_testing


def _refusing(view: ServiceHealth, component: str) -> Iterator[Finding]:
    """Refusals of the last half minute, whose reasons may not hold at this moment but keep returning."""
    name, refusing = view["service_name"], view["metrics"]["refusing"]
    if "saturated" in refusing:
        data: AlertData = {"refuses": f"calls to {name} that get no slot in time"}
        message = f"calls to {name} are refused because too many are running or waiting"
        yield Finding("service_saturated", component, message, data)
    if "cooling_down" in refusing and view["pause"] is None:
        spread: AlertData = {"refuses": f"calls to {name} whose deadline comes before their turn"}
        message = (
            f"the provider's limit is nearly used up: calls to {name} are spread out and some are refused"
        )
        yield Finding("provider_limit_reached", component, message, spread)
