"""The states that users see: the first rule that applies, and never a state that contradicts what is admitted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from koo.options import BreakerOptions
from koo.policies.breaker import DISABLED, FORCED_OPEN, HALF_OPEN, METRICS_ONLY, Breaker, Override
from koo.policies.reported import DatabaseState, Evidence, ServiceState, database_state, service_state
from koo.policies.verdict import FAILURE, SUCCESS, Verdict


def no_jitter() -> float:
    return 0.0


def after(verdicts: str, slow: bool = False) -> Breaker:
    """A breaker after these results: S or F; "o": it has opened; "h": it is testing recovery."""
    breaker = Breaker("db", BreakerOptions(), 30.0, 0.0)
    for letter in verdicts:
        if letter in "oh":
            for _ in range(5):
                settle(breaker, FAILURE, False)
        if letter == "h":
            breaker.tick(60.0, no_jitter)
        if letter in "SF":
            settle(breaker, SUCCESS if letter == "S" else FAILURE, slow)
    return breaker


def settle(breaker: Breaker, verdict: Verdict, slow: bool) -> None:
    permit = breaker.admit(0.0, no_jitter)
    assert permit is not None
    breaker.settle(permit, verdict, slow, 0.0, no_jitter)


DATABASES: list[tuple[str, Callable[[], Evidence], DatabaseState]] = [
    ("nothing happened", lambda: Evidence(after("")), DatabaseState.HEALTHY),
    ("all went well", lambda: Evidence(after("SSSSS")), DatabaseState.HEALTHY),
    ("one of ten failed", lambda: Evidence(after("SSSSSSSSSF")), DatabaseState.HEALTHY),
    ("few calls, and half of them failed", lambda: Evidence(after("SF")), DatabaseState.UNHEALTHY),
    ("the only call failed", lambda: Evidence(after("F")), DatabaseState.UNHEALTHY),
    ("half the row", lambda: Evidence(after("SSSSSSSSFFF")), DatabaseState.UNHEALTHY),
    (
        "less than half of the failures that open it",
        lambda: Evidence(after("SSSSSSSSFF")),
        DatabaseState.HEALTHY,
    ),
    ("three checks failed", lambda: Evidence(after("S"), checks_failed=3), DatabaseState.UNHEALTHY),
    ("two checks failed", lambda: Evidence(after("S"), checks_failed=2), DatabaseState.HEALTHY),
    ("open", lambda: Evidence(after("o"), checks_failed=9), DatabaseState.CIRCUIT_OPEN),
    ("recovery is being tested", lambda: Evidence(after("h"), checks_failed=9), DatabaseState.DEGRADED),
]


@pytest.mark.parametrize(("story", "evidence", "state"), DATABASES, ids=[one[0] for one in DATABASES])
def test_the_reported_state_of_a_database_follows_its_evidence(
    story: str, evidence: Callable[[], Evidence], state: DatabaseState
) -> None:
    seen, why = database_state(evidence())
    assert seen is state
    assert bool(why) == (state is not DatabaseState.HEALTHY), "a state that is not healthy has a reason"


MANY = "S" * 16
HALF_OPEN_TOO = Evidence(after("h"))
SERVICES: list[tuple[str, Callable[[], tuple[ServiceState, str]], ServiceState]] = [
    ("nothing happened", lambda: service_state(Evidence(after(""))), ServiceState.HEALTHY),
    ("open", lambda: service_state(Evidence(after("o")), limited="x"), ServiceState.CIRCUIT_OPEN),
    (
        "the key is refused",
        lambda: service_state(Evidence(after("")), key_blocked="x"),
        ServiceState.CIRCUIT_OPEN,
    ),
    (
        "a limit is reached",
        lambda: service_state(Evidence(after("")), limited="x"),
        ServiceState.RATE_LIMITED,
    ),
    (
        "limited while tested",
        lambda: service_state(Evidence(after("h")), limited="x"),
        ServiceState.RATE_LIMITED,
    ),
    ("recovery is being tested", lambda: service_state(Evidence(after("h"))), ServiceState.DEGRADED),
    (
        "another model is open",
        lambda: service_state(Evidence(after("")), [Evidence(after("o"))]),
        ServiceState.DEGRADED,
    ),
    (
        "another model is being tested",
        lambda: service_state(Evidence(after("")), [HALF_OPEN_TOO]),
        ServiceState.HEALTHY,
    ),
    (
        "a model's key is refused",
        lambda: service_state(Evidence(after("")), model_blocked="x"),
        ServiceState.DEGRADED,
    ),
    ("half the row", lambda: service_state(Evidence(after("SSSSSFFF"))), ServiceState.UNHEALTHY),
    (
        "less than a fifth of many calls failed",
        lambda: service_state(Evidence(after("FFSFFS" + MANY))),
        ServiceState.HEALTHY,
    ),
    (
        "nearly a quarter of many calls failed",
        lambda: service_state(Evidence(after("FFSFFSFFS" + MANY))),
        ServiceState.HEALTHY,
    ),
    (
        "three in ten calls failed",
        lambda: service_state(Evidence(after("FFSFFSFFS" + "S" * 11))),
        ServiceState.DEGRADED,
    ),
    ("a third of a few calls failed", lambda: service_state(Evidence(after("FSSFSS"))), ServiceState.HEALTHY),
]


@pytest.mark.parametrize(("story", "seen", "state"), SERVICES, ids=[one[0] for one in SERVICES])
def test_the_reported_state_of_a_service_follows_its_evidence(
    story: str, seen: Callable[[], tuple[ServiceState, str]], state: ServiceState
) -> None:
    got, why = seen()
    assert got is state
    assert bool(why) == (state is not ServiceState.HEALTHY)


def test_many_slow_calls_show_as_degraded_before_they_open_the_breaker() -> None:
    breaker = after("S" * 10, slow=True)
    for _ in range(10):
        settle(breaker, SUCCESS, False)
    state, why = service_state(Evidence(breaker))
    assert state is ServiceState.DEGRADED and "10 slow of 20" in why


def test_an_override_is_visible_in_the_state() -> None:
    breaker = after("")
    breaker.set_override(FORCED_OPEN)
    assert database_state(Evidence(breaker)) == (DatabaseState.CIRCUIT_OPEN, "forced open by an operator")
    assert service_state(Evidence(breaker))[0] is ServiceState.CIRCUIT_OPEN
    half = after("h")
    assert half.phase is HALF_OPEN
    half.set_override(FORCED_OPEN)
    assert database_state(Evidence(half))[0] is DatabaseState.CIRCUIT_OPEN


@pytest.mark.parametrize("override", [DISABLED, METRICS_ONLY], ids=["disabled", "shadow"])
@pytest.mark.parametrize("story", ["o", "h"])
def test_a_breaker_that_refuses_no_call_reports_no_refusal(story: str, override: Override) -> None:
    breaker = after(story)
    breaker.set_override(override)
    state, why = database_state(Evidence(breaker))
    assert state is DatabaseState.UNHEALTHY and "in a row" in why, (
        "failures from before the override still count"
    )
    assert service_state(Evidence(breaker))[0] is ServiceState.UNHEALTHY
    assert service_state(Evidence(after("")), [Evidence(breaker)]) == (ServiceState.HEALTHY, "")
