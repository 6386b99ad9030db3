"""Finds the alert conditions that hold now: a pure function of the numbers that are shown.

Each rule is a few lines about one part of the system's health (`service_rules`, `limit_rules`, `money_rules`,
`database_rules`, `own_rules`). It states what is wrong, where, with which numbers, and what is refused because of it.
The table of kinds (`kinds`) has the severities. `absorbing` decides which findings have one cause. The engine decides
when an alert begins and ends.

A component's name never changes while the process lives: a service's default model is `ai:claude`, the others are
`ai:claude/model`. If the first were renamed when a second model appears, its alert would end and start again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from koo.alerts.absorbing import absorb
from koo.alerts.database_rules import find_in_database
from koo.alerts.findings import Finding
from koo.alerts.money_rules import find_in_budgets
from koo.alerts.own_rules import find_in_koo, find_in_store
from koo.alerts.service_rules import find_in_service
from koo.monitoring.own_shapes import KooHealth
from koo.monitoring.shapes import Budget, DatabaseHealth, ServiceHealth


def find(
    database: DatabaseHealth | None,
    services: Mapping[str, ServiceHealth],
    budgets: Sequence[Budget] = (),
    koo: KooHealth | None = None,
) -> list[Finding]:
    """All findings in the views of the database (None if it is not in use), the services, the budgets and koo.

    There is one finding for each cause and component. `data["also"]` names the lesser findings with the same cause.
    """
    configured = [service for service in services.values() if service["configured"]]
    found = list(find_in_database(database)) if database is not None else []
    for service in configured:
        found.extend(find_in_service(service))
    found.extend(find_in_budgets(budgets, configured))
    found.extend(find_in_store(koo["state_store"] if koo is not None else None, configured))
    if koo is not None:
        found.extend(find_in_koo(koo))
    return absorb(found)
