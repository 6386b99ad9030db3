"""Which alerts hold now: a pure function of the numbers that are shown.

Each rule is a few lines over one part of the system's health. The thresholds are the promised ones. A rule says what
is wrong, where, and with which numbers; when an alert begins and ends is the engine's (`koo.alerts.engine`).

A component's name never changes while the process lives: a service's default model is `ai:claude`, the others are
`ai:claude/model`. If the first were renamed when a second model appears, its alert would end and start again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from koo.alerts.kinds import severity_of
from koo.events import Severity
from koo.monitoring.shapes import (
    WINDOWS,
    AlertData,
    BreakerStatus,
    Budget,
    BudgetMoney,
    DatabaseHealth,
    ModelStatus,
    RunOut,
    ServiceHealth,
)

ERROR_RATE_MAX = 0.10
CALLS_MIN = 20
GOES_ON = 0.5
"""An alert of a rate goes on down to this share of the threshold and of the calls with which it began. Otherwise a rate
that stays about the threshold begins and ends an alert with each call."""
APPROACHING = 0.80
BUDGET_STEPS = ((Decimal("0.95"), "budget_at_95"), (Decimal("0.90"), "budget_at_90"))
"""Further shares of a budget, the highest first: each is an alert of its own, so that it begins when it is reached."""

REFUSED = ("open", "forced_open")
STORE = "state_store"
UNSETTLED = "money_unsettled"
BUDGET = "budget:"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that holds now. `kind` and `component` identify it; `message` may change while it lasts.

    `begins` False: enough to go on, not enough to begin with. A rule whose numbers swing around a threshold finds with
    True above it, and with False between it and a lower one, so that an alert does not begin and end with each swing.
    """

    kind: str
    component: str
    message: str
    data: AlertData = field(default_factory=AlertData)
    begins: bool = True

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return severity_of(self.kind)

    @property
    def fingerprint(self) -> str:
        """The same for as long as the same thing is wrong with the same part."""
        return f"{self.kind}:{self.component}"


def find(
    database: DatabaseHealth | None,
    services: Mapping[str, ServiceHealth],
    budgets: Sequence[Budget] = (),
) -> list[Finding]:
    """Everything that holds in the views of the database (None: it is not in use), the services and the budgets."""
    findings = list(_database(database)) if database is not None else []
    configured = [service for service in services.values() if service["configured"]]
    for service in configured:
        findings.extend(_service(service))
    for budget in budgets:
        title = budget["title"]
        findings.extend(_budget(f"{BUDGET}{title}", f"the {budget['period']}'s budget {title!r}", budget))
    findings.extend(_unsettled(configured, budgets))
    findings.extend(_local_budgets(configured))
    return findings


# ── a breaker ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _breaker(component: str, breaker: BreakerStatus) -> Iterator[Finding]:
    reason = breaker["reason"]
    if breaker["state"] in REFUSED:
        message = _say("the circuit breaker is open", reason)
        yield Finding("circuit_open", component, message, {"next_attempt": breaker["next_attempt"]})
    elif breaker["state"] == "half_open":
        yield Finding("circuit_recovering", component, _say("recovery is being tested", reason))


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


def _database(view: DatabaseHealth) -> Iterator[Finding]:
    breaker = view["circuit_breaker"]
    yield from _breaker("database", breaker)
    if breaker["state"] in REFUSED:
        why = _error(view) or view["reason"]
        yield Finding("database_unavailable", "database", _say("the database is refused", why))
    elif breaker["state"] != "half_open":
        # While recovery is being tested, the engine keeps the alert that there is.
        yield from _calls_pass(view)
    for condition in view["conditions"]:
        message = f"the database is {condition.replace('_', ' ')}"
        yield Finding(f"database_{condition}", "database", message)


def _calls_pass(view: DatabaseHealth) -> Iterator[Finding]:
    """A database whose probe gets no answer is not there; one that fails now and then is, and is watched closely."""
    if view["error"]:
        message = _say("the database does not answer", _error(view))
        yield Finding("database_unavailable", "database", message)
    elif view["state"] == "unhealthy":
        message = _say("the database is unhealthy, calls still pass", view["reason"])
        yield Finding("database_unhealthy", "database", message)


def _error(view: DatabaseHealth) -> str:
    """What the probe met; the sentence of the alert says already whom it is about."""
    return (view["error"] or "").removeprefix("database: ")


# ── a service ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _service(view: ServiceHealth) -> Iterator[Finding]:
    name = view["service_name"]
    component = f"ai:{name}"
    models = list(view["models"].items())
    for place, (model, breaker) in enumerate(models):
        yield from _breaker(f"{component}/{model}" if place else component, breaker)
    if _is_down([breaker for _, breaker in models]):
        yield Finding("service_down", component, _say(f"{name} cannot be asked", view["reason"]))
    yield from _performance(view, component)
    yield from _limits(view, component)


def _is_down(models: list[ModelStatus]) -> bool:
    """The default model is refused, and no other one can be asked, but for probes.

    One that tests its recovery lets a probe through now and then: that is no service, and no recovery either. While the
    default model itself does so, the engine keeps the alert that there is.
    """
    refused = [bool(model["key_refused"]) or model["state"] in REFUSED for model in models]
    passes = [not no and model["state"] != "half_open" for no, model in zip(refused, models, strict=True)]
    return refused[0] and not any(passes)


def _performance(view: ServiceHealth, component: str) -> Iterator[Finding]:
    recent, slow_s = view["metrics"]["recent"], view["configuration"]["slow_call"]
    calls, p95 = recent["calls"], view["metrics"]["p95"]
    if calls < CALLS_MIN * GOES_ON:
        return
    # Divided from whole numbers: 1 - 0.9 is less than 0.1, and two failures in twenty would go unseen.
    error_rate = recent["failed"] / calls
    for share in (1.0, GOES_ON):
        begins = share == 1.0 and calls >= CALLS_MIN
        if error_rate >= ERROR_RATE_MAX * share:
            message = f"{error_rate:.0%} of the last {calls} calls failed"
            yield Finding("degraded_performance", component, message, {"error_rate": error_rate}, begins)
            return
        if slow_s is not None and p95 > slow_s * share:
            message = f"one call in twenty takes longer than {p95:.1f} s"
            yield Finding("degraded_performance", component, message, {"p95": p95}, begins)
            return


def _limits(view: ServiceHealth, component: str) -> Iterator[Finding]:
    limits = view["rate_limits"]
    for key in WINDOWS:
        limit = limits[key]
        if limit["limit"] and limit["used"] / limit["limit"] >= APPROACHING:
            message = f"{limit['used']} of {limit['limit']} {key.replace('_', ' ')} are used"
            yield Finding(f"limit_approaching_{key}", component, message, {"resets_at": limit["resets_at"]})
    budget = limits["daily_budget"]
    yield from _budget(component, "today's budget", budget)
    if Decimal(budget["above_hold"]) > 0:
        message = (
            f"bills of today were {budget['above_hold']} USD above their worst cases, and are booked whole"
        )
        yield Finding("bill_above_hold", component, message, {"resets_at": budget["resets_at"]})


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _budget(component: str, what: str, budget: BudgetMoney) -> Iterator[Finding]:
    """What calls have spent or hold counts. What lies idle in purses does not: it is there for whom it is asked."""
    total = Decimal(budget["limit"] or 0)
    share = (Decimal(budget["spent"]) + Decimal(budget["reserved"])) / total if total > 0 else Decimal(0)
    if share < Decimal(str(APPROACHING)):
        return
    message = f"{share:.0%} of {what} of {total} USD is spent or held"
    runs_out = budget["runs_out"]
    if runs_out is not None:
        message += f"; {_run_out(runs_out)}"
    data: AlertData = {"resets_at": budget["resets_at"], "share": float(share), "runs_out": runs_out}
    yield Finding("budget_approaching", component, message, data)
    step = next((kind for reached, kind in BUDGET_STEPS if share >= reached), None)
    if step is not None:
        yield Finding(step, component, message, data)


def _run_out(runs_out: RunOut) -> str:
    earliest, latest = runs_out["earliest"][:16], runs_out["latest"]
    until = (
        f"between {earliest} and {latest[:16]}" if latest is not None else f"at the earliest at {earliest}"
    )
    return f"at this pace it is used up {until} UTC, then {runs_out['then']}"


def _unsettled(services: list[ServiceHealth], budgets: Sequence[Budget]) -> Iterator[Finding]:
    """One process that died leaves money behind in each of its budgets, so this is one alert."""
    days = {f"{view['service_name']}'s day": view["rate_limits"]["daily_budget"] for view in services}
    own = {f"the budget {budget['title']!r}": budget for budget in budgets}
    left = {name: Decimal(budget["unsettled"]) for name, budget in [*days.items(), *own.items()]}
    left = {name: amount for name, amount in left.items() if amount > 0}
    if left:
        message = (
            "processes that no longer report were granted money, which stays booked because it may have been spent: "
            + ", ".join(f"{amount:f} USD of {name}" for name, amount in left.items())
        )
        yield Finding(UNSETTLED, STORE, message, {"amount": f"{max(left.values()):f}"})


# ── the state store ───────────────────────────────────────────────────────────────────────────────────────────────


def _local_budgets(services: list[ServiceHealth]) -> Iterator[Finding]:
    """One store for all services, so one alert: five would say the same thing five times."""
    budgets = {view["service_name"]: view["rate_limits"]["daily_budget"] for view in services}
    names = sorted(
        name
        for name, budget in budgets.items()
        if budget["limit"] is not None and budget["scope"] != "shared"
    )
    if names:
        message = (
            "the state store cannot be reached: default budgets hold for this process only, those that somebody set "
            f"refuse; it concerns {', '.join(names)}"
        )
        yield Finding("budget_local", STORE, message, {"services": names})


def _say(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
