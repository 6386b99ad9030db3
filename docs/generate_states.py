"""Write `docs/states.md` from the breaker and the reported states: `python -m docs.generate_states`.

The transitions come from the breaker's own table. To find out which calls pass in each phase, and which state users see
in each situation, this module puts a real breaker into that state and reads the result. Only the descriptions are
written by hand. `tests/policies/test_states_document.py` fails if the page is out of date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from koo.options import BreakerOptions
from koo.policies.breaker import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    NONE,
    OPEN,
    TRANSITIONS,
    Breaker,
    Override,
    Phase,
)
from koo.policies.reported import DatabaseState, Evidence, ServiceState, database_state, service_state
from koo.policies.verdict import FAILURE, SUCCESS, Verdict

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "states.md"

DATABASE_MEANING = {
    DatabaseState.HEALTHY: "normal operation",
    DatabaseState.UNHEALTHY: "errors were detected; calls still pass",
    DatabaseState.CIRCUIT_OPEN: "too many failures; calls are refused immediately",
    DatabaseState.DEGRADED: "recovery is being tested; a limited number of calls pass",
}
SERVICE_MEANING = {
    ServiceState.HEALTHY: "normal operation",
    ServiceState.DEGRADED: "some calls fail or are slow, or recovery is being tested, or one model is refused",
    ServiceState.UNHEALTHY: "the error rate is high; calls still pass",
    ServiceState.CIRCUIT_OPEN: "calls are refused because of failures or a refused key (see `reason`)",
    ServiceState.RATE_LIMITED: "a limit, quota or budget is used up: koo's or the provider's",
}
OVERRIDE_MEANING = {
    NONE: "the breaker decides",
    FORCED_OPEN: "refuse everything until the override is removed",
    DISABLED: "let everything pass and ignore the results",
    METRICS_ONLY: "count and report, but never refuse; used to try out a breaker",
}


# ── a breaker in a given state ────────────────────────────────────────────────────────────────────────────────────


def no_jitter() -> float:
    return 0.0


def after(verdicts: Iterable[Verdict] = (), *, phase: Phase = CLOSED, slow: bool = False) -> Breaker:
    """A breaker with default options in `phase`, which has then seen these verdicts."""
    breaker = Breaker("model", BreakerOptions(), 30.0, 0.0)
    if phase is not CLOSED:
        settle(breaker, [FAILURE] * breaker.options.failure_threshold, False)
    if phase is HALF_OPEN:
        breaker.tick(breaker.opens_until(), no_jitter)
    settle(breaker, verdicts, slow)
    assert breaker.phase is phase
    return breaker


def settle(breaker: Breaker, verdicts: Iterable[Verdict], slow: bool) -> None:
    for verdict in verdicts:
        permit = breaker.admit(0.0, no_jitter)
        assert permit is not None
        breaker.settle(permit, verdict, slow, 0.0, no_jitter)


def what_passes(phase: Phase, override: Override) -> str:
    """Which of two calls pass in this phase, and which results count."""
    breaker = after(phase=phase)
    breaker.set_override(override)
    now = breaker.opened_at
    permits = [breaker.admit(now, no_jitter) for _ in range(2)]
    counts = [permit is not None and permit.generation == breaker.generation for permit in permits]
    if permits[0] is None:
        return "refused"
    if permits[1] is None:
        return "probes pass, one at a time"
    if counts == [True, False]:
        return "all pass, probes count"
    return "all pass and count" if all(counts) else "all pass, none count"


# ── what users see ────────────────────────────────────────────────────────────────────────────────────────────────

WELL = [SUCCESS] * 16
Facts = dict[str, str]
SITUATIONS: list[tuple[str, Callable[[], Evidence], Facts]] = [
    ("no calls yet", lambda: Evidence(after()), {}),
    ("one call in ten failed", lambda: Evidence(after([FAILURE, *[SUCCESS] * 9])), {}),
    ("few calls, half of them failed", lambda: Evidence(after([SUCCESS, FAILURE])), {}),
    (
        "three failures in a row, with a threshold of five",
        lambda: Evidence(after([*WELL, *[FAILURE] * 3])),
        {},
    ),
    (
        "three health checks failed, and no call succeeded since",
        lambda: Evidence(after(), checks_failed=3),
        {},
    ),
    (
        "three in ten of many calls failed",
        lambda: Evidence(after([*[FAILURE, FAILURE, SUCCESS] * 4, *WELL[:12]])),
        {},
    ),
    (
        "three calls in a row reached their callers' deadlines",
        lambda: Evidence(after(), cuts=3),
        {},
    ),
    ("half of many calls were slow", lambda: Evidence(half_slow()), {}),
    ("the breaker is open", lambda: Evidence(after(phase=OPEN)), {}),
    ("recovery is being tested", lambda: Evidence(after(phase=HALF_OPEN)), {}),
    ("a limit, a budget or the provider's pause applies", lambda: Evidence(after()), {"limited": "a limit"}),
    (
        "the same, while recovery is being tested",
        lambda: Evidence(after(phase=HALF_OPEN)),
        {"limited": "a limit"},
    ),
    ("the key was refused", lambda: Evidence(after()), {"key_blocked": "the key"}),
    ("the key was refused for one model", lambda: Evidence(after()), {"model_blocked": "the key"}),
    ("another of its models is open", lambda: Evidence(after()), {"others": "open"}),
]


def half_slow() -> Breaker:
    breaker = after([SUCCESS] * 10, slow=True)
    settle(breaker, [SUCCESS] * 10, False)
    return breaker


def seen(evidence: Evidence, facts: Facts) -> tuple[str, str]:
    """The states that a database and a service report; a database has no limits, keys or models."""
    others = [Evidence(after(phase=OPEN))] if facts.get("others") else []
    rest = {name: why for name, why in facts.items() if name != "others"}
    service = service_state(evidence, others, **rest)[0].value
    return "–" if facts else f"`{database_state(evidence)[0].value}`", f"`{service}`"


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def table(*rows: Iterable[str]) -> str:
    head, *rest = [list(row) for row in rows]
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def diagram() -> str:
    arrows = [
        f"    {was.name} --> {to.name}: {trigger.value}"
        for (was, trigger), to in TRANSITIONS.items()
        if was is not to
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> CLOSED", *arrows, "```"])


def page() -> str:
    """The whole document."""
    overrides = list(Override)
    passes = [
        [f"`{phase.value}`", *(what_passes(phase, override) for override in overrides)] for phase in Phase
    ]
    return f"""\
# States

<!-- Written by docs/generate_states.py from the breaker itself: change it there. -->

This page describes the phases of a circuit breaker, the overrides that an operator can set, and the states that koo
reports. The **phase** belongs to the circuit breaker, and only the phase has transitions. The **override** is set by an
operator and applies in every phase. The **reported state** is what users see. koo computes it on each read from the
phase and all other evidence, so it cannot contradict what the gates admit.

## Phases

{diagram()}

{
        table(
            ("in", "when", "to"),
            *(
                (f"`{was.value}`", trigger.value, f"`{to.value}`")
                for (was, trigger), to in TRANSITIONS.items()
            ),
        )
    }

There are no other transitions. Each transition invalidates the permits granted before it, so a late result has no
effect.

## Overrides

{table(("override", "meaning"), *((f"`{one.value}`", OVERRIDE_MEANING[one]) for one in overrides))}

Which calls pass:

{table(("phase", *(f"`{one.value}`" for one in overrides)), *passes)}

"Counts" means that the call's result can move the breaker. Every call is counted in the metrics.

## What a database reports

{table(("state", "meaning"), *((f"`{one.value}`", DATABASE_MEANING[one]) for one in DatabaseState))}

## What an AI service reports

{table(("state", "meaning"), *((f"`{one.value}`", SERVICE_MEANING[one]) for one in ServiceState))}

A service shows `circuit_open` when its default model, or the service as a whole, is refused.

## When

{
        table(
            ("when", "a database reports", "an AI service reports"),
            *((story, *seen(make(), facts)) for story, make, facts in SITUATIONS),
        )
    }

If several apply, the state that matters most for the next call is reported, in this order: refused because of failures
or the key; limited; recovery being tested, or one model refused; the rest.

## Pauses, keys and ramps

* **A pause that the provider requests** (429, `Retry-After`) does not open a breaker. Callers wait for its end if it
  comes before their deadlines; otherwise they are refused, and the refusal says when to try again.
* **A refused key** is blocked: koo sends nothing with it until an unbilled check (after 1 to 15 minutes) succeeds, an
  operator resets it, or a new key is set.
* **After the breaker closes**, the number of concurrent calls starts small and doubles each second up to the limit.
  Callers queue within their deadlines, so the recovered service is not flooded.
"""


def pages() -> dict[Path, str]:
    """Each generated file with its text."""
    return {PAGE: page()}


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
