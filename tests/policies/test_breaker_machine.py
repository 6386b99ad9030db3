"""The breaker compared with its model, with real options, driven by hypothesis.

A random walk over single calls hardly ever opens a breaker, and then tests nothing beyond CLOSED. So an outage is a
separate step here, and the tests measure how often each phase is reached.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from koo.options import BreakerOptions
from koo.policies.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, Override, Phase
from koo.policies.permit import Permit
from koo.policies.verdict import FAILURE, SUCCESS, Verdict
from tests.policies.model import EARLY_S, Counts, Model

VERDICTS = st.sampled_from(list(Verdict))
REACHED: Counter[Phase] = Counter()
RUNS: Counter[str] = Counter()


def no_jitter() -> float:
    return 0.0


class Walk(RuleBasedStateMachine):
    """One breaker and its model, which take the same steps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 5000.0
        options = BreakerOptions()
        self.breaker = Breaker("b", options, 10.0, self.now)
        self.breaker.early_s = EARLY_S
        self.model = Model(options, 10.0, self.now)
        self.out: list[tuple[int, Permit]] = []
        self.phases = {CLOSED}

    def counts(self) -> Counts:
        window = self.breaker.window
        return Counts(window.calls, window.failures, window.slow)

    def admit(self) -> bool:
        permit = self.breaker.admit(self.now, no_jitter)
        number = self.model.admit(self.counts())
        assert (permit is None) == (number is None)
        if permit is None or number is None:
            return False
        self.out.append((number, permit))
        return True

    def settle(self, place: int, verdict: Verdict, slow: bool, hint_s: float = 0.0) -> None:
        number, permit = self.out.pop(place % len(self.out))
        mine = self.breaker.settle(permit, verdict, slow, self.now, no_jitter, hint_s)
        assert mine == self.model.settle(number, verdict, slow, hint_s, self.counts())

    @rule(calls=st.integers(1, 30), verdict=VERDICTS, slow=st.booleans())
    def some_calls_one_after_another(self, calls: int, verdict: Verdict, slow: bool) -> None:
        for _ in range(calls):
            if self.admit():
                self.settle(-1, verdict, slow)

    @rule(outcomes=st.lists(st.booleans(), min_size=20, max_size=40))
    def a_partial_outage(self, outcomes: list[bool]) -> None:
        for well in outcomes:
            if self.admit():
                self.settle(-1, SUCCESS if well else FAILURE, False)

    @rule()
    def an_outage_and_its_end(self) -> None:
        for _ in range(5):
            if self.admit():
                self.settle(-1, FAILURE, False)
        if self.breaker.phase is OPEN:
            self.wait(self.breaker.opens_until() - self.now)
            self.admit()
            self.both_agree()

    @rule(calls=st.integers(1, 25))
    def some_calls_begin(self, calls: int) -> None:
        for _ in range(calls):
            self.admit()

    @precondition(lambda self: self.out)
    @rule(
        place=st.integers(0, 99),
        verdict=VERDICTS,
        slow=st.booleans(),
        hint_s=st.sampled_from([0.0, 5.0, 7200.0]),
    )
    def one_ends(self, place: int, verdict: Verdict, slow: bool, hint_s: float) -> None:
        self.settle(place, verdict, slow, hint_s)

    @precondition(lambda self: self.out)
    @rule(verdict=VERDICTS)
    def all_end_at_once(self, verdict: Verdict) -> None:
        while self.out:
            self.settle(0, verdict, False)

    @precondition(lambda self: self.out)
    @rule(place=st.integers(0, 99), keeps=st.booleans())
    def content_comes(self, place: int, keeps: bool) -> None:
        number, permit = self.out[place % len(self.out)]
        self.breaker.renew(permit, self.now)
        self.model.renew(number)
        if keeps:
            permit.kept = self.model.calls[number].kept = True

    @rule(step_s=st.sampled_from([0.5, 1.0, 10.0, 29.0, 30.0, 60.0, 120.0, 600.0]), ticks=st.booleans())
    def time_passes(self, step_s: float, ticks: bool) -> None:
        self.wait(step_s)
        if ticks:
            self.breaker.tick(self.now, no_jitter)
            self.model.tick(self.counts())

    def wait(self, step_s: float) -> None:
        self.now += step_s
        self.model.now = self.now

    @rule(in_row=st.booleans(), times=st.integers(1, 6))
    def another_model_meets_an_outage(self, in_row: bool, times: int) -> None:
        for _ in range(times):
            self.breaker.count_outage(in_row, self.now, no_jitter)
            self.model.outage(in_row, self.counts())

    @rule()
    def a_check_succeeds(self) -> None:
        self.breaker.close_idle(self.now)
        self.model.check_succeeded()

    @rule()
    def a_database_answers(self) -> None:
        self.breaker.end_early(self.now)
        self.model.answered()

    @rule()
    def a_probe_of_another_process_succeeds(self) -> None:
        self.breaker.hear_of_success(self.now)
        self.model.told()

    @rule(is_primed=st.booleans())
    def others_prime_it(self, is_primed: bool) -> None:
        phase = self.breaker.phase
        self.breaker.prime("3 of 4 have it open" if is_primed else "")
        self.model.primed = is_primed
        assert self.breaker.phase is phase, "never because of other processes' reports"

    @rule(units=st.integers(0, 2))
    def the_fleet_hands_out_units(self, units: int) -> None:
        self.breaker.probes_max = self.model.probes_max = units

    @rule(override=st.sampled_from([*Override, Override.NONE, Override.NONE, Override.NONE]))
    def an_operator_decides(self, override: Override) -> None:
        self.breaker.set_override(override)
        self.model.set_override(override)

    @rule()
    def an_operator_resets(self) -> None:
        self.breaker.reset(self.now)
        self.model.reset()

    @invariant()
    def both_agree(self) -> None:
        breaker, model = self.breaker, self.model
        self.phases.add(breaker.phase)
        assert breaker.phase is model.phase
        assert breaker.streak == model.streak
        if breaker.phase is CLOSED:
            assert breaker.consecutive == model.row
            breaker.window.roll(self.now)
            assert not model.forgets(self.counts())
        elif breaker.phase is OPEN:
            assert breaker.opens_until() == model.opens_until
        else:
            assert (breaker.ok, breaker.inconclusive) == (model.ok, model.inconclusive)
            assert len(breaker.leases) == len(model.probes())
        assert breaker.running == len(self.out) == len(model.calls)

    def teardown(self) -> None:
        RUNS["all"] += 1
        REACHED.update(self.phases)


def test_the_breaker_agrees_with_its_model_in_every_phase() -> None:
    RUNS.clear()
    REACHED.clear()
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert REACHED[HALF_OPEN] >= RUNS["all"] / 4, (
        f"{REACHED} of {RUNS}: the phases after OPEN are hardly tested"
    )
