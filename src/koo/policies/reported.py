"""The states that users see. Each is computed from the present values of the policies, and nothing else.

They have no transitions of their own, so they cannot contradict what the guards really admit. The first rule that
applies decides; the tables are in `docs/states.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from koo.errors import Failure
from koo.policies.breaker import CLOSED, DISABLED, FORCED_OPEN, HALF_OPEN, METRICS_ONLY, OPEN, Breaker
from koo.policies.overrides import in_a_row, why_forced

CHECKS_FAILED_MAX = 3
"""Failed checks in a row with which a dependency counts as unhealthy. One may be chance, and two may be a restart."""
CUTS_MAX = 3
"""The same for calls in a row that were cut short by their callers' deadlines."""


class DatabaseState(Enum):
    """The states of a database."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    CIRCUIT_OPEN = "circuit_open"
    DEGRADED = "degraded"


class ServiceState(Enum):
    """The states of an AI service."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    CIRCUIT_OPEN = "circuit_open"
    RATE_LIMITED = "rate_limited"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about one breaker. `checks_failed`: how many health checks have failed in a row.

    `check_error`: the error of the last of them.

    `cuts`: how many calls in a row ended at their callers' deadlines after they had taken longer than usual. These do
    not move the breaker. But a service that hangs must not look healthy just because its callers give up before koo
    would.
    """

    breaker: Breaker
    checks_failed: int = 0
    cuts: int = 0
    check_error: Failure | None = None


LETS_PASS = (DISABLED, METRICS_ONLY)
"""With these overrides a breaker refuses no call in any phase, so its service is never reported as refused."""


def is_open(breaker: Breaker) -> bool:
    """Whether calls are refused: it is open because of failures, or forced open."""
    return breaker.override is FORCED_OPEN or (breaker.phase is OPEN and breaker.override not in LETS_PASS)


def is_testing(breaker: Breaker) -> bool:
    """Whether recovery is being tested."""
    return breaker.phase is HALF_OPEN and breaker.override not in LETS_PASS


def is_unhealthy(evidence: Evidence) -> bool:
    """Whether calls pass although the breaker is close to opening, or would be open if its override let it refuse."""
    breaker = evidence.breaker
    # "Close" is half of the failures in a row that open it, or a failure rate that would open it with more calls. The
    # lower bound of 0 keeps an empty window (0 of 0 calls) from counting as a failure rate.
    options, window = breaker.options, breaker.window
    if breaker.phase is not CLOSED and breaker.override not in LETS_PASS:
        return False
    return (
        2 * breaker.consecutive >= options.failure_threshold
        or evidence.checks_failed >= CHECKS_FAILED_MAX
        or 0 < options.failure_rate * window.calls <= window.failures
    )


def is_troubled(breaker: Breaker) -> bool:
    """Whether the breaker is closed, but has at least half of the failure rate or slow rate that would open it."""
    options, window = breaker.options, breaker.window
    if breaker.phase is not CLOSED or window.calls < options.calls_min:
        return False
    return (
        window.failures >= options.failure_rate / 2 * window.calls
        or window.slow >= options.slow_rate / 2 * window.calls
    )


def database_state(evidence: Evidence) -> tuple[DatabaseState, str]:
    """The state of a database, and the reason."""
    breaker = evidence.breaker
    if is_open(breaker):
        return DatabaseState.CIRCUIT_OPEN, _why_open(breaker)
    if is_testing(breaker):
        return DatabaseState.DEGRADED, f"recovery is being tested after {breaker.reason}"
    if is_unhealthy(evidence):
        return DatabaseState.UNHEALTHY, _why_unhealthy(evidence)
    return DatabaseState.HEALTHY, ""


def service_state(
    default: Evidence,
    others: Sequence[Evidence] = (),
    *,
    key_blocked: str = "",
    limited: str = "",
    model_blocked: str = "",
    some_refused: str = "",
) -> tuple[ServiceState, str]:
    """The state of an AI service, and the reason.

    `default`: the evidence about its default model; `others`: about its other models. The other arguments are reasons,
    empty if they do not apply. `key_blocked`: why the key is refused. `limited`: which limit, budget or cooldown stops
    calls. `model_blocked`: why the key is refused for some model. `some_refused`: how many clients' own keys are
    refused; that does not change the service's state.
    """
    # The order is from the worst to the mildest, as a caller would notice it: no call passes, calls must wait, some
    # calls pass.
    breaker = default.breaker
    if is_open(breaker):
        return ServiceState.CIRCUIT_OPEN, _why_open(breaker)
    if key_blocked:
        return ServiceState.CIRCUIT_OPEN, key_blocked
    if limited:
        return ServiceState.RATE_LIMITED, limited
    if is_testing(breaker):
        return ServiceState.DEGRADED, f"recovery is being tested after {breaker.reason}"
    refused = next((evidence.breaker for evidence in others if is_open(evidence.breaker)), None)
    if refused is not None:
        return ServiceState.DEGRADED, f"{refused.name} is refused: {_why_open(refused)}"
    if model_blocked:
        return ServiceState.DEGRADED, model_blocked
    if is_unhealthy(default):
        return ServiceState.UNHEALTHY, _why_unhealthy(default)
    if default.cuts >= CUTS_MAX:
        reason = f"the last {default.cuts} calls got no answer before their callers' deadlines"
        return ServiceState.UNHEALTHY, reason
    if is_troubled(breaker):
        window = breaker.window
        reason = f"{window.failures} failures and {window.slow} slow of {window.calls} recent calls"
        return ServiceState.DEGRADED, with_last(reason, breaker.last_error if window.failures else None)
    return ServiceState.HEALTHY, some_refused


def _why_open(breaker: Breaker) -> str:
    return why_forced(breaker.act) if breaker.override is FORCED_OPEN else breaker.reason


def _why_unhealthy(evidence: Evidence) -> str:
    if evidence.checks_failed >= CHECKS_FAILED_MAX:
        return with_last(f"{evidence.checks_failed} health checks failed in a row", evidence.check_error)
    breaker = evidence.breaker
    if 2 * breaker.consecutive >= breaker.options.failure_threshold:
        return with_last(in_a_row(breaker.consecutive), breaker.last_error)
    failed = f"{breaker.window.failures} of {breaker.window.calls} recent calls failed"
    return with_last(failed, breaker.last_error)


def with_last(what: str, failure: Failure | None) -> str:
    """A description of what is wrong, with the last failure."""
    return what if failure is None else f"{what}, the last: {failure.brief}"
