"""Whether this process has looked: what must be known before an earlier process's alert may end by not being found.

A process that has just started finds nothing, because it knows nothing. So each kind says what must be known first
(`Evidence`), and this module checks it. It is asked only for restored alerts that have not been found since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from koo.alerts.kinds import KINDS, UNKNOWN
from koo.monitoring.shapes import DatabaseHealth, ServiceHealth

CALLS_MIN = 20
"""As many calls as a rule about rates requires."""
REMEMBERED_S = 300.0
"""As long as rates look back: after that this process knows as much as the earlier one did."""
CHECKED_FOR_S = 60.0
"""An unbilled check shows that a service is there, not that it answers: for this long a call may show that."""
SUCCESSES_MIN = 2
"""As many as close a half-open breaker."""
SETTLED_S = 5.0
"""Some beats of the ledger: what a store knows of budgets arrives with them."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What this process knows by now, after `up_s` seconds. None for a database that is not in use.

    `checked` names the services whose last unbilled check passed. `store_up_s`: how long the state store has been
    there, None while it is away.
    """

    database: DatabaseHealth | None
    services: Mapping[str, ServiceHealth]
    checked: frozenset[str]
    up_s: float
    store_up_s: float | None

    def __call__(self, kind: str, component: str) -> bool:
        """Whether it has looked, so that a kind that is not found for this component does not hold."""
        evidence = KINDS.get(kind, UNKNOWN).evidence
        if evidence == "own":
            return True
        if evidence == "store":
            return self.store_up_s is not None and self.store_up_s >= SETTLED_S
        if evidence == "recent" and self.up_s >= REMEMBERED_S:
            return True
        if component == "database":
            return evidence == "answer" and self._database_answered()
        service = self.services.get(component.removeprefix("ai:").partition("/")[0])
        if service is None:
            return True
        if evidence == "recent":
            return service["metrics"]["recent"]["calls"] >= CALLS_MIN
        return self._answered(service)

    def _database_answered(self) -> bool:
        """Its probe asks what callers would ask."""
        view = self.database
        return view is not None and view["last_health_check"] is not None and view["error"] is None

    def _answered(self, service: ServiceHealth) -> bool:
        health = service["health"]
        success, failure = health["last_success"], health["last_failure"]
        called = health["success_count"] >= SUCCESSES_MIN and success is not None
        if called and (failure is None or (success is not None and success > failure)):
            return True
        return service["service_name"] in self.checked and self.up_s >= CHECKED_FOR_S
