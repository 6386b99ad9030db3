"""The table of alert kinds, one row each.

A rule (`koo.alerts.rules`) says what is wrong. This table says how much it matters, how long it must hold, which other
alert already covers it and how its end is announced. `docs/alerts.md` says, under the kind's name, what a person should
do about it (`koo.monitoring.runbook`).

Severity depends on what happens to calls. critical: every call of the component is refused or fails now. warning: some
are, or a threshold is close. `pending_s` says how soon a person is notified, which is a separate question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from koo.events import Severity

Evidence = Literal["own", "answer", "recent", "store"]
"""What a new process must know before it may end an earlier process's alert that it does not find.

* "own": nothing. The condition belonged to the earlier process.
* "answer": the dependency has answered a probe, an unbilled check or calls.
* "recent": enough recent calls, or as much time as the rule looks back.
* "store": the state store has answered.
"""


@dataclass(frozen=True, slots=True)
class Ending:
    """The info alert that is listed when an alert of this kind ends. The ends of other kinds are not news."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class AlertKind:
    """The properties of all alerts of a kind.

    `pending_s` is how long the condition must hold before the alert fires, `recovering_s` how long it must be gone
    before the alert ends. `part_of` names greater kinds of the same component: while one of them holds, this one is
    not a separate alert but is listed in that one's `also`. `inhibited_by` names kinds of this component or of one
    that it depends on: while one of them is open, this one is listed but sends no notification. `kept_by` names kinds
    of the same component that keep this one open, because they are neither its end nor a new beginning. For
    `evidence` see `Evidence`.
    """

    severity: Severity
    title: str
    pending_s: float = 0.0
    recovering_s: float = 0.0
    part_of: tuple[str, ...] = ()
    inhibited_by: tuple[str, ...] = ()
    kept_by: tuple[str, ...] = ()
    ending: Ending | None = None
    evidence: Evidence = "own"


DATABASE_GONE = ("database_unavailable",)
STORE_GONE = ("store_unavailable",)
SERVICE_GONE = ("service_down", "key_refused", "circuit_open", "circuit_recovering")
"""The kinds of a service whose calls do not get through. They include the failed and slow calls that came before."""
_RECOVERY = ("circuit_recovering",)
_CIRCUIT_CLOSED = Ending("circuit_closed", "the circuit breaker is closed again")
_REQUESTS_FREE = Ending("limit_available", "koo's limit has room again")
_BUDGET_FREE = Ending("budget_available", "the budget covers calls again")
_BUDGET_STEPS = ("budget_used_up", "budget_too_small", "budget_at_95", "budget_at_90", "budget_approaching")
"""A budget's kinds, the worst first. Each includes the ones after it."""

# A kind without a pending time notifies immediately, for example because calls are already refused. The others come and
# go in normal operation, and are worth a notice only if they stay. With a recovering time, a number that moves around
# its threshold causes one alert and not many.
KINDS: Mapping[str, AlertKind] = {
    # ── a breaker, a service ──────────────────────────────────────────────────────────────────────────────────
    "service_down": AlertKind(
        "critical",
        "Service down",
        ending=Ending("service_recovered", "the service can be called again"),
        kept_by=_RECOVERY,
        evidence="answer",
    ),
    "circuit_open": AlertKind(
        "critical",
        "Circuit breaker open",
        part_of=("service_down", "database_unavailable"),
        ending=_CIRCUIT_CLOSED,
        kept_by=_RECOVERY,
        evidence="answer",
        inhibited_by=("service_down", "database_unavailable"),
    ),
    "circuit_recovering": AlertKind(
        "warning",
        "Recovery is being tested",
        part_of=("service_down", "key_refused", "database_unavailable"),
        evidence="answer",
        inhibited_by=("circuit_open", "service_down", "database_unavailable"),
    ),
    "key_refused": AlertKind(
        "critical",
        "Key refused",
        part_of=("service_down",),
        ending=Ending("key_accepted", "the key works again"),
        evidence="answer",
        inhibited_by=("service_down",),
    ),
    "client_key_refused": AlertKind(
        "warning", "Clients' keys refused", part_of=("service_down",), evidence="recent"
    ),
    "quota_used_up": AlertKind(
        "critical",
        "The provider's quota is used up",
        ending=Ending("quota_available", "the provider's quota allows calls again"),
        evidence="answer",
    ),
    "provider_limit_reached": AlertKind(
        "warning",
        "The provider limits the request rate",
        # Under load a provider's limit is reached for some seconds, and koo spreads the calls. A limit per minute that
        # still refuses calls after a minute is too low for the traffic.
        pending_s=60.0,
        recovering_s=60.0,
        part_of=("quota_used_up",),
    ),
    "service_unhealthy": AlertKind(
        "warning",
        "Service unhealthy",
        # By then most runs of failures have either ended or opened the breaker, which is an alert of its own.
        pending_s=30.0,
        part_of=(*SERVICE_GONE, "degraded_performance"),
        evidence="answer",
        inhibited_by=SERVICE_GONE,
    ),
    # A burst that fills the queue for a moment, and is then served, does not justify a notification.
    "service_saturated": AlertKind("warning", "Too many calls at once", pending_s=5.0, recovering_s=60.0),
    "degraded_performance": AlertKind(
        "warning",
        "Degraded performance",
        recovering_s=60.0,
        part_of=(*SERVICE_GONE, "quota_used_up"),
        ending=Ending("performance_recovered", "errors and latency are below their thresholds again"),
        evidence="recent",
        inhibited_by=SERVICE_GONE,
    ),
    # ── the database ──────────────────────────────────────────────────────────────────────────────────────────
    "database_unavailable": AlertKind(
        "critical",
        "Database unavailable",
        ending=Ending("database_recovered", "the database is available again"),
        kept_by=_RECOVERY,
        evidence="answer",
    ),
    "database_markers_unusable": AlertKind(
        "critical",
        "COMMIT markers cannot be written",
        ending=Ending("database_markers_usable", "COMMITs have their markers again"),
        evidence="answer",
        inhibited_by=DATABASE_GONE,
    ),
    "database_unhealthy": AlertKind(
        "warning", "Database unhealthy", part_of=DATABASE_GONE, inhibited_by=DATABASE_GONE, evidence="answer"
    ),
    "database_saturated": AlertKind(
        "warning",
        "Connection pool saturated",
        pending_s=5.0,
        recovering_s=30.0,
        part_of=DATABASE_GONE,
        inhibited_by=DATABASE_GONE,
    ),
    "database_slow": AlertKind(
        "warning",
        "Database slow",
        recovering_s=60.0,
        part_of=DATABASE_GONE,
        inhibited_by=DATABASE_GONE,
        evidence="recent",
    ),
    "database_read_only": AlertKind(
        "warning", "Database read-only", part_of=DATABASE_GONE, inhibited_by=DATABASE_GONE, evidence="answer"
    ),
    "database_without_wal": AlertKind(
        "warning",
        "SQLite without its write-ahead log",
        part_of=DATABASE_GONE,
        inhibited_by=DATABASE_GONE,
        evidence="answer",
    ),
    "database_leaking": AlertKind("warning", "Scopes hold connections too long", recovering_s=30.0),
    "database_commit_unknown": AlertKind("warning", "The outcome of a COMMIT is unknown"),
    "database_paused": AlertKind("warning", "Database paused by an operator"),
    "database_draining": AlertKind("warning", "Database draining"),
    # ── limits ────────────────────────────────────────────────────────────────────────────────────────────────
    # Bursts are what a limit per minute is for, and its units are free again within the minute. So it is a warning, and
    # only if it lasts. A limit per hour or day that is reached refuses every call for long, so it is critical.
    "limit_reached_requests_per_minute": AlertKind(
        "warning", "Limit per minute reached", pending_s=60.0, recovering_s=60.0
    ),
    "limit_reached_requests_per_hour": AlertKind(
        "critical", "Limit per hour reached", recovering_s=60.0, ending=_REQUESTS_FREE
    ),
    "limit_reached_requests_per_day": AlertKind(
        "critical", "Limit per day reached", ending=_REQUESTS_FREE, evidence="store"
    ),
    "limit_reached_tokens_per_minute": AlertKind(
        "warning", "Limit on tokens per minute reached", pending_s=60.0, recovering_s=60.0
    ),
    "limit_approaching_requests_per_minute": AlertKind(
        "warning",
        "Limit per minute nearly reached",
        pending_s=60.0,
        recovering_s=60.0,
        part_of=("limit_reached_requests_per_minute",),
    ),
    "limit_approaching_requests_per_hour": AlertKind(
        "warning",
        "Limit per hour nearly reached",
        recovering_s=60.0,
        part_of=("limit_reached_requests_per_hour",),
    ),
    "limit_approaching_requests_per_day": AlertKind(
        "warning",
        "Limit per day nearly reached",
        part_of=("limit_reached_requests_per_day",),
        evidence="store",
    ),
    "limit_approaching_tokens_per_minute": AlertKind(
        "warning",
        "Limit on tokens per minute nearly reached",
        pending_s=60.0,
        recovering_s=60.0,
        part_of=("limit_reached_tokens_per_minute",),
    ),
    # ── money ─────────────────────────────────────────────────────────────────────────────────────────────────
    "budget_used_up": AlertKind("critical", "Budget used up", ending=_BUDGET_FREE, evidence="store"),
    "budget_too_small": AlertKind(
        "critical",
        "Budget too small for some calls",
        part_of=_BUDGET_STEPS[:1],
        ending=_BUDGET_FREE,
        evidence="store",
    ),
    "budget_at_95": AlertKind(
        "warning", "Budget at 95 %", recovering_s=60.0, part_of=_BUDGET_STEPS[:2], evidence="store"
    ),
    "budget_at_90": AlertKind(
        "warning", "Budget at 90 %", recovering_s=60.0, part_of=_BUDGET_STEPS[:3], evidence="store"
    ),
    "budget_approaching": AlertKind(
        "warning", "Budget at 80 %", recovering_s=60.0, part_of=_BUDGET_STEPS[:4], evidence="store"
    ),
    "budget_forecast": AlertKind(
        "warning",
        "Budget will run out before it resets",
        # The forecast is an extrapolation, and a single expensive call moves the last hour's pace, up and later down.
        pending_s=300.0,
        recovering_s=900.0,
        part_of=_BUDGET_STEPS,
        evidence="store",
    ),
    "bill_above_hold": AlertKind("warning", "A bill exceeded its worst case"),
    "money_unsettled": AlertKind(
        "warning", "Money of processes that stopped reporting", inhibited_by=STORE_GONE, evidence="store"
    ),
    # ── the state store ───────────────────────────────────────────────────────────────────────────────────────
    "store_unavailable": AlertKind(
        "critical",
        "State store unreachable",
        ending=Ending("store_recovered", "the state store can be reached again"),
        evidence="store",
        inhibited_by=("disk_full", *DATABASE_GONE),
    ),
    "budget_local": AlertKind(
        "warning",
        "Budgets apply to this process only",
        part_of=STORE_GONE,
        evidence="store",
        inhibited_by=DATABASE_GONE,
    ),
    "store_forgot": AlertKind("warning", "The state store has lost bookings"),
    "process_renamed": AlertKind("warning", "Another process used this one's name"),
    # ── koo itself ────────────────────────────────────────────────────────────────────────────────────────────
    "disk_full": AlertKind(
        "critical",
        "Disk full",
        recovering_s=60.0,
        ending=Ending("disk_has_room", "there is room on the disk again"),
    ),
    "disk_nearly_full": AlertKind("warning", "Disk nearly full", recovering_s=60.0, part_of=("disk_full",)),
    "descriptors_used_up": AlertKind(
        "critical",
        "File descriptors used up",
        recovering_s=60.0,
        ending=Ending("descriptors_available", "file descriptors are available again"),
    ),
    "descriptors_nearly_used_up": AlertKind(
        "warning", "File descriptors nearly used up", recovering_s=60.0, part_of=("descriptors_used_up",)
    ),
    "out_of_resources": AlertKind(
        "warning",
        "Out of descriptors, memory or threads",
        recovering_s=60.0,
        part_of=("descriptors_used_up",),
    ),
    "notification_failing": AlertKind("warning", "Notifications are failing"),
    "monitor_stale": AlertKind("warning", "Background checks have not run"),
}

UNKNOWN = AlertKind("warning", "")
"""A kind that is missing from the table is a warning. It must not raise an error in the middle of an outage."""
ENDINGS: Mapping[str, Ending] = {kind: row.ending for kind, row in KINDS.items() if row.ending is not None}
"""The kinds whose end is announced, with the announcement."""


def severity_of(kind: str) -> Severity:
    """The severity of a kind."""
    return KINDS.get(kind, UNKNOWN).severity
