"""Which alerts hold now: a pure function of the numbers that are shown.

Each rule is a few lines over one part of the system's health (`service_rules`, `limit_rules`, `money_rules`,
`database_rules`). It says what is wrong, where, with which numbers and what is refused because of it. How much that
matters stands in the table (`kinds`); which of several findings are one cause is decided in `absorbing`; when an alert
begins and when it ends is the engine's.

A component's name never changes while the process lives: a service's default model is `ai:claude`, the others are
`ai:claude/model`. If the first were renamed when a second model appears, its alert would end and start again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from koo.alerts.absorbing import absorb
from koo.alerts.database_rules import find_in_database
from koo.alerts.findings import Finding
from koo.alerts.money_rules import STORE, find_in_budgets
from koo.alerts.service_rules import find_in_service
from koo.monitoring.shapes import Budget, DatabaseHealth, ServiceHealth


def find(
    database: DatabaseHealth | None,
    services: Mapping[str, ServiceHealth],
    budgets: Sequence[Budget] = (),
) -> list[Finding]:
    """Everything that holds in the views of the database (None: it is not in use), the services and the budgets.

    One finding for each cause and component: the lesser faces of a cause are in `data["also"]`.
    """
    configured = [service for service in services.values() if service["configured"]]
    found = list(find_in_database(database)) if database is not None else []
    for service in configured:
        found.extend(find_in_service(service))
    found.extend(find_in_budgets(budgets, configured))
    found.extend(_local_budgets(configured))
    return absorb(found)


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
