"""Findings about budgets: the share spent, calls that no longer fit, the forecast, and money of dead processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from koo.alerts.findings import Finding
from koo.monitoring.shapes import AlertData, Budget, BudgetMoney, RunOut, ServiceHealth

BUDGET_STEPS = (
    (Decimal("0.80"), "budget_approaching"),
    (Decimal("0.90"), "budget_at_90"),
    (Decimal("0.95"), "budget_at_95"),
)
"""Each of these shares is a separate alert, so people are notified when it is reached. Only the highest is listed."""
FORECAST_SHARE_MIN = Decimal("0.20")
"""Less than a fifth of a budget says little about the whole day: one expensive hour would raise a false alarm."""
STORE = "state_store"
UNSETTLED = "money_unsettled"
BUDGET = "budget:"


def find_in_day(view: ServiceHealth, component: str) -> Iterator[Finding]:
    """Findings about a service's own daily budget."""
    budget = view["rate_limits"]["daily_budget"]
    yield from _shares(component, "today's budget", budget, "refuse", f"calls to {view['service_name']}")
    if Decimal(budget["above_hold"]) > 0:
        message = (
            f"today's bills exceeded their worst cases by {budget['above_hold']} USD and are booked in full"
        )
        data: AlertData = {"resets_at": budget["resets_at"], "amount": budget["above_hold"]}
        yield Finding("bill_above_hold", component, message, data)


def find_in_budgets(budgets: Sequence[Budget], services: Sequence[ServiceHealth]) -> Iterator[Finding]:
    """Findings about budgets that an operator set, and about refusals for lack of money in any budget."""
    for budget in budgets:
        what = f"the {budget['period']}'s budget {budget['title']!r}"
        component = f"{BUDGET}{budget['title']}"
        yield from _shares(component, what, budget, budget["on_exhausted"], "calls that count against it")
    yield from _shortages(services)
    yield from _unsettled(services, budgets)


def _shares(
    component: str, what: str, budget: BudgetMoney, on_exhausted: str, whom: str
) -> Iterator[Finding]:
    # Spent and held money counts. Idle money in purses does not, because any process that needs it can have it.
    total = Decimal(budget["limit"] or 0)
    if budget["limit"] is None:
        return
    data: AlertData = {"resets_at": budget["resets_at"], "share": 1.0, "runs_out": budget["runs_out"]}
    if total > 0:
        share = (Decimal(budget["spent"]) + Decimal(budget["reserved"])) / total
        data["share"] = float(share)
        yield from _steps(component, f"{share:.0%} of {what} of {total} USD is spent or held", share, data)
    if budget["used_up"] and on_exhausted == "refuse":
        message = f"{what} of {total} USD is used up: calls that cost money are refused until it resets"
        gone: AlertData = {**data, "refuses": f"{whom} that cost money"}
        yield Finding("budget_used_up", component, message, gone)


def _steps(component: str, message: str, share: Decimal, data: AlertData) -> Iterator[Finding]:
    runs_out = data["runs_out"]
    if runs_out is not None:
        message += f"; {_run_out(runs_out)}"
    # Every step that is reached is found, not only the highest: each begins its own alert once, and `absorbing` lists
    # the highest with the others as its parts.
    for reached, kind in BUDGET_STEPS:
        if share >= reached:
            yield Finding(kind, component, message, data)
    if runs_out is not None and runs_out["latest"] is not None and share >= FORECAST_SHARE_MIN:
        yield Finding("budget_forecast", component, message, data)


def _run_out(runs_out: RunOut) -> str:
    earliest, latest = runs_out["earliest"][:16], runs_out["latest"]
    until = f"between {earliest} and {latest[:16]}" if latest is not None else f"no earlier than {earliest}"
    return f"at this pace it is used up {until} UTC, then {runs_out['then']}"


def _shortages(services: Sequence[ServiceHealth]) -> Iterator[Finding]:
    """Budgets whose remainder is too small for the calls that are made, known from their refusals; one per budget."""
    short: dict[str, list[ServiceHealth]] = {}
    for view in services:
        if view["shortage"] is not None:
            short.setdefault(view["shortage"]["component"], []).append(view)
    for component, views in short.items():
        lacks = [view["shortage"] for view in views if view["shortage"] is not None]
        worst, names = lacks[0], [view["service_name"] for view in views]
        message = (
            f"{worst['budget']} does not cover the last call that was refused: up to {worst['needed']} USD needed, "
            f"{worst['left']} USD left; affected: {', '.join(names)}"
        )
        data: AlertData = {
            "refuses": f"calls that may cost more than {worst['left']} USD",
            "resets_at": worst["resets_at"],
            "amount": worst["left"],
            "services": names,
        }
        yield Finding("budget_too_small", component, message, data)


def _unsettled(services: Sequence[ServiceHealth], budgets: Sequence[Budget]) -> Iterator[Finding]:
    # This is one alert for all budgets, because one process that dies leaves money in each of its budgets.
    days = {f"{view['service_name']}'s day": view["rate_limits"]["daily_budget"] for view in services}
    own = {f"the budget {budget['title']!r}": budget for budget in budgets}
    left = {name: Decimal(budget["unsettled"]) for name, budget in [*days.items(), *own.items()]}
    left = {name: amount for name, amount in left.items() if amount > 0}
    if left:
        message = (
            "processes that no longer report were granted money; it stays booked because they may have spent it: "
            + ", ".join(f"{amount:f} USD of {name}" for name, amount in left.items())
        )
        yield Finding(UNSETTLED, STORE, message, {"amount": f"{max(left.values()):f}"})
