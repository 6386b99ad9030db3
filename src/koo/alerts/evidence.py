"""Checks whether this process has enough evidence to end an earlier process's alert that it does not find.

A process that has just started finds nothing, because it knows nothing. So each kind states what must be known first
(`Evidence`), and this module checks it. It is used only for restored alerts that this process has not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from koo.alerts.kinds import KINDS, UNKNOWN
from koo.monitoring.shapes import DatabaseHealth, ServiceHealth

CALLS_MIN = 20
"""The number of calls that a rule about rates requires."""
REMEMBERED_S = 300.0
"""The time that rates look back. After it this process knows as much as the earlier one did."""
CHECKED_FOR_S = 60.0
"""An unbilled check shows that a service can be reached, not that it can answer. A failing call would show up within
this time."""
SUCCESSES_MIN = 2
"""The number of successes that closes a half-open breaker."""
SETTLED_S = 5.0
"""The time for several beats of the ledger, which fetch the budgets' state from the store."""


@dataclass(frozen=True, slots=True)
class Looks:
    """This process's knowledge `up_s` seconds after its start. `database` is None if no database is in use.

    `checked` names the services whose last unbilled check passed. `store_up_s` is how long the state store has been
    reachable, or None while it is unreachable.
    """

    database: DatabaseHealth | None
    services: Mapping[str, ServiceHealth]
    checked: frozenset[str]
    up_s: float
    store_up_s: float | None

    def __call__(self, kind: str, component: str) -> bool:
        """Whether an alert of this kind that is not found for this component is really over."""
        evidence = KINDS.get(kind, UNKNOWN).evidence
        # The condition belonged to the earlier process itself (its pool, its file descriptors) and ended with it.
        if evidence == "own":
            return True
        # The store's first reply is not enough, because its knowledge of a budget arrives with the beats after it.
        # Until then a budget that is used up looks untouched here.
        if evidence == "store":
            return self.store_up_s is not None and self.store_up_s >= SETTLED_S
        if evidence == "recent" and self.up_s >= REMEMBERED_S:
            return True
        if component == "database":
            return evidence == "answer" and self._database_answered()
        # A service that this process does not have cannot give evidence; waiting for it would keep the alert for a day.
        service = self.services.get(component.removeprefix("ai:").partition("/")[0])
        if service is None:
            return True
        if evidence == "recent":
            return service["metrics"]["recent"]["calls"] >= CALLS_MIN
        return self._answered(service)

    def _database_answered(self) -> bool:
        # The probe runs what callers would run, so one result is enough.
        view = self.database
        return view is not None and view["last_health_check"] is not None and view["error"] is None

    def _answered(self, service: ServiceHealth) -> bool:
        # Either calls have succeeded, the last one after the last failure, or the unbilled check passes. The check
        # alone is weak: a provider that lists its models may still fail every completion. So it counts only when calls
        # have had a minute to fail.
        health = service["health"]
        success, failure = health["last_success"], health["last_failure"]
        called = health["success_count"] >= SUCCESSES_MIN and success is not None
        if called and (failure is None or (success is not None and success > failure)):
            return True
        return service["service_name"] in self.checked and self.up_s >= CHECKED_FOR_S
