"""The breaker's rules that are easier told than explored: one small story each.

Each takes the module that holds the breaker, so that `test_mutants` can tell the story to a broken one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from koo.events import CircuitClosed, CircuitHalfOpened, CircuitOpened, CircuitPrimed, OverrideSet
from koo.openings import Act
from koo.options import BreakerOptions
from koo.policies.breaker import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    NONE,
    OPEN,
    Breaker,
)
from koo.policies.permit import Permit
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED, Verdict

Rule = Callable[[Any], None]
RULES: dict[str, Rule] = {}


def rule(story: Rule) -> Rule:
    RULES[story.__name__] = story
    return story


def no_jitter() -> float:
    return 0.0


def make(module: Any, now: float = 0.0, slow_s: float = 30.0, **options: Any) -> Breaker:
    made: Breaker = module.Breaker("claude", BreakerOptions(**options), slow_s, now)
    return made


def admitted(breaker: Breaker, now: float) -> Permit:
    permit = breaker.admit(now, no_jitter)
    assert permit is not None
    return permit


def run_one(breaker: Breaker, verdict: Verdict, now: float, slow: bool = False) -> None:
    assert breaker.settle(admitted(breaker, now), verdict, slow, now, no_jitter)


def opened(module: Any, **options: Any) -> Breaker:
    breaker = make(module, **options)
    for _ in range(breaker.options.failure_threshold):
        run_one(breaker, FAILURE, 0.0)
    assert breaker.phase is OPEN
    return breaker


@rule
def five_failures_one_after_another_open_it_even_in_one_tick_of_the_clock(module: Any) -> None:
    breaker = make(module)
    for _ in range(4):
        run_one(breaker, FAILURE, 0.0)
    assert breaker.phase is CLOSED
    run_one(breaker, FAILURE, 0.0)
    assert breaker.phase is OPEN and breaker.reason == "5 failures in a row"


@rule
def one_reset_that_hits_fifty_running_calls_is_one_step_in_the_row_and_fifty_in_the_rate(module: Any) -> None:
    breaker = make(module, calls_min=1000)
    permits = [admitted(breaker, 0.0) for _ in range(50)]
    for permit in permits:
        breaker.settle(permit, FAILURE, False, 0.0, no_jitter)
    assert breaker.phase is CLOSED and breaker.consecutive == 1 and breaker.window.failures == 50


@rule
def a_reset_that_hits_all_models_of_a_host_is_one_step_for_each(module: Any) -> None:
    here, there = make(module, calls_min=1000), make(module, calls_min=1000)
    mine, theirs = ([admitted(breaker, 0.0) for _ in range(9)] for breaker in (here, there))
    for ours, other, permits in ((here, there, mine), (there, here, theirs)):
        for permit in permits:
            marks = ours.marks
            ours.settle(permit, FAILURE, False, 0.0, no_jitter)
            other.count_outage(ours.marks > marks, 0.0, no_jitter)
    assert (here.consecutive, there.consecutive) == (1, 1)
    assert (here.window.failures, there.window.failures) == (18, 18)


@rule
def five_outages_that_another_model_met_one_after_another_open_it(module: Any) -> None:
    here, there = make(module), make(module)
    for _ in range(5):
        marks = here.marks
        run_one(here, FAILURE, 0.0)
        there.count_outage(here.marks > marks, 0.0, no_jitter)
    assert here.phase is OPEN and there.phase is OPEN


@rule
def half_of_twenty_calls_failing_opens_it(module: Any) -> None:
    breaker = make(module)
    for n in range(19):
        run_one(breaker, SUCCESS if n % 2 else FAILURE, 0.1 * n)
    assert breaker.phase is CLOSED
    run_one(breaker, FAILURE, 2.0)
    assert breaker.phase is OPEN and breaker.reason == "11 failures in 20 calls"


@rule
def slow_successes_alone_open_it(module: Any) -> None:
    breaker = make(module)
    for _ in range(19):
        run_one(breaker, SUCCESS, 0.0, slow=True)
    assert breaker.phase is CLOSED
    run_one(breaker, SUCCESS, 0.0, slow=True)
    assert breaker.phase is OPEN and "slow" in breaker.reason


@rule
def twenty_calls_that_hang_open_it_before_any_of_them_ends(module: Any) -> None:
    breaker = make(module)
    for _ in range(20):
        admitted(breaker, 0.0)
    breaker.tick(29.9, no_jitter)
    assert breaker.phase is CLOSED
    breaker.tick(30.0, no_jitter)
    assert breaker.phase is OPEN and "slow" in breaker.reason


@rule
def streams_that_have_their_answer_are_not_hung_however_long_their_reader_takes(module: Any) -> None:
    breaker = make(module)
    for _ in range(20):
        admitted(breaker, 0.0).kept = True
    breaker.tick(300.0, no_jitter)
    assert breaker.phase is CLOSED


@rule
def deadlines_that_cut_slow_calls_short_are_seen_by_the_rate_and_not_by_the_row(module: Any) -> None:
    breaker = make(module)
    for _ in range(19):
        run_one(breaker, NEUTRAL, 0.0, slow=True)
    assert breaker.phase is CLOSED and breaker.consecutive == 0
    run_one(breaker, NEUTRAL, 0.0, slow=True)
    assert breaker.phase is OPEN


@rule
def what_is_throttled_or_cancelled_is_not_seen_at_all(module: Any) -> None:
    breaker = make(module, calls_min=1)
    for verdict in (NEUTRAL, THROTTLED):
        for _ in range(100):
            run_one(breaker, verdict, 0.0, slow=verdict is THROTTLED)
    assert breaker.phase is CLOSED and breaker.consecutive == 0 and breaker.window.calls == 0


@rule
def a_late_success_does_not_close_it_and_a_late_failure_does_not_open_it(module: Any) -> None:
    breaker = make(module)
    late = [admitted(breaker, 0.0) for _ in range(3)]
    for _ in range(5):
        run_one(breaker, FAILURE, 0.0)
    assert not breaker.settle(late[0], SUCCESS, False, 1.0, no_jitter)
    assert breaker.phase is OPEN and breaker.stale == 1
    breaker.tick(60.0, no_jitter)
    assert not breaker.settle(late[1], FAILURE, False, 61.0, no_jitter)
    assert breaker.phase is HALF_OPEN and breaker.stale == 2
    run_one(breaker, SUCCESS, 62.0)
    run_one(breaker, SUCCESS, 62.0)
    assert not breaker.settle(late[2], FAILURE, False, 63.0, no_jitter)
    assert breaker.phase is CLOSED and breaker.consecutive == 0 and breaker.window.calls == 0


@rule
def a_permit_settles_once(module: Any) -> None:
    breaker = make(module)
    permit = admitted(breaker, 0.0)
    assert breaker.settle(permit, FAILURE, False, 0.0, no_jitter)
    for _ in range(9):
        assert not breaker.settle(permit, FAILURE, False, 0.0, no_jitter)
    assert breaker.consecutive == 1 and not breaker.running


@rule
def open_refuses_with_the_reason_and_the_time(module: Any) -> None:
    breaker = opened(module)
    assert breaker.admit(59.9, no_jitter) is None and breaker.refuses(59.9)
    assert breaker.refusal(59.0) == ("the circuit is open after 5 failures in a row", 1.0)


@rule
def when_the_time_is_over_the_same_caller_goes_on_as_a_probe(module: Any) -> None:
    breaker = opened(module)
    assert not breaker.refuses(60.0)
    probe = breaker.admit(60.0, no_jitter)
    assert probe is not None and breaker.phase is HALF_OPEN
    assert breaker.refuses(60.0) and breaker.admit(60.0, no_jitter) is None
    assert breaker.refusal(70.0) == ("recovery is being tested after 5 failures in a row", 20.0)


@rule
def two_probes_that_succeed_close_it_with_an_empty_window(module: Any) -> None:
    breaker = opened(module)
    run_one(breaker, SUCCESS, 60.0)
    assert breaker.phase is HALF_OPEN
    run_one(breaker, SUCCESS, 62.0)
    assert breaker.phase is CLOSED and breaker.window.calls == 0 and breaker.consecutive == 0


@rule
def a_dashboard_without_traffic_sees_the_test_begin(module: Any) -> None:
    breaker = opened(module)
    assert not breaker.refuses(1000.0) and breaker.phase is OPEN, "looking changes nothing"
    breaker.tick(1000.0, no_jitter)
    assert breaker.phase is HALF_OPEN


@rule
def a_cancelled_probe_gives_its_slot_back_and_ten_of_them_open_it_as_before(module: Any) -> None:
    breaker = opened(module)
    for n in range(9):
        run_one(breaker, NEUTRAL if n % 2 else THROTTLED, 60.0)
        assert breaker.phase is HALF_OPEN and not breaker.leases and not breaker.refuses(60.0)
    run_one(breaker, NEUTRAL, 60.0)
    assert breaker.phase is OPEN and breaker.streak == 0 and breaker.open_for_s == 60.0


@rule
def a_failed_probe_opens_it_for_twice_as_long_up_to_ten_minutes(module: Any) -> None:
    breaker, now = opened(module), 60.0
    for open_for_s in (120.0, 240.0, 480.0, 600.0, 600.0):
        run_one(breaker, FAILURE, now)
        assert breaker.phase is OPEN and breaker.open_for_s == open_for_s
        now += open_for_s


@rule
def a_streak_of_thousands_does_not_overflow(module: Any) -> None:
    breaker = opened(module)
    breaker.streak = 5000
    run_one(breaker, FAILURE, 60.0)
    assert breaker.open_for_s == 600.0


@rule
def a_hung_probe_loses_its_lease_and_counts_as_failed(module: Any) -> None:
    breaker = opened(module)
    hung = admitted(breaker, 60.0)
    assert hung.lease_ends_at == 90.0
    assert breaker.admit(89.9, no_jitter) is None and breaker.phase is HALF_OPEN
    assert breaker.admit(90.0, no_jitter) is None and breaker.phase is OPEN and breaker.open_for_s == 120.0
    assert not breaker.settle(hung, SUCCESS, False, 91.0, no_jitter)
    assert breaker.phase is OPEN and breaker.stale == 1
    assert breaker.admit(210.0, no_jitter) is not None, "and it can still recover"


@rule
def a_success_after_the_end_of_its_lease_is_a_failure_whoever_looks_first(module: Any) -> None:
    breaker = opened(module)
    probe = admitted(breaker, 60.0)
    breaker.settle(probe, SUCCESS, False, 90.0, no_jitter)
    assert (
        breaker.phase is OPEN
        and breaker.streak == 1
        and breaker.reason == "5 failures in a row, then a hung probe"
    )


@rule
def each_piece_of_content_renews_a_streams_lease(module: Any) -> None:
    breaker = opened(module)
    stream = admitted(breaker, 60.0)
    for now in (80.0, 100.0, 120.0):
        breaker.renew(stream, now)
        breaker.tick(now + 29.0, no_jitter)
        assert breaker.phase is HALF_OPEN and stream.lease_ends_at == now + 30.0
    breaker.tick(150.0, no_jitter)
    assert breaker.phase is OPEN


@rule
def an_owner_who_bounds_a_probe_himself_may_say_until_when(module: Any) -> None:
    breaker = opened(module)
    probe = admitted(breaker, 60.0)
    probe.lease_ends_at = 500.0
    breaker.tick(499.0, no_jitter)
    assert breaker.phase is HALF_OPEN
    breaker.tick(500.0, no_jitter)
    assert breaker.phase is OPEN


@rule
def a_reader_who_is_away_fails_no_probe(module: Any) -> None:
    breaker = opened(module)
    stream = admitted(breaker, 60.0)
    for now in (61.0, 95.0):
        breaker.rest(stream, now)
        breaker.tick(now + 29.0, no_jitter)
        assert breaker.phase is HALF_OPEN and breaker.refusal(now)[1] == 30.0
        breaker.renew(stream, now + 29.0)
        assert stream.lease_ends_at == now + 59.0
        breaker.tick(now + 31.0, no_jitter)
        assert breaker.leases == [stream], "its reader is back"
    breaker.settle(stream, SUCCESS, False, 130.0, no_jitter)
    assert breaker.ok == 1 and breaker.leases == []


@rule
def a_reader_who_stays_away_gives_the_slot_back(module: Any) -> None:
    """Without a verdict: others may probe, and whatever becomes of the stream counts nowhere."""
    breaker = opened(module)
    stream = admitted(breaker, 60.0)
    breaker.rest(stream, 61.0)
    assert breaker.refuses(90.0)
    breaker.tick(91.0, no_jitter)
    assert breaker.phase is HALF_OPEN and breaker.inconclusive == 1 and breaker.streak == 0
    other = admitted(breaker, 91.0)
    assert stream.generation != breaker.generation
    assert not breaker.settle(stream, FAILURE, False, 92.0, no_jitter)
    breaker.settle(other, SUCCESS, False, 93.0, no_jitter)
    assert breaker.phase is HALF_OPEN and breaker.ok == 1 and stream.lease_ends_at == float("inf")


@rule
def readers_who_all_stay_away_open_it_again_in_the_end(module: Any) -> None:
    breaker = opened(module, inconclusive_max=2, probe_concurrency=2)
    for _ in range(2):
        breaker.rest(admitted(breaker, 60.0), 61.0)
    breaker.tick(91.0, no_jitter)
    assert breaker.phase is OPEN and breaker.streak == 0
    assert breaker.reason == "5 failures in a row, then 2 probes without a verdict"


@rule
def what_an_operator_does_cuts_no_probe(module: Any) -> None:
    """What runs is no probe any more, so its lease must not end it."""
    for act in ("reset", "override"):
        breaker = opened(module)
        probe = admitted(breaker, 60.0)
        assert probe.lease_ends_at == 90.0
        breaker.reset(70.0) if act == "reset" else breaker.set_override(DISABLED)
        assert probe.lease_ends_at == float("inf"), act


@rule
def a_late_streams_content_renews_nothing(module: Any) -> None:
    breaker = make(module)
    stream = admitted(breaker, 0.0)
    breaker.renew(stream, 10.0)
    assert stream.lease_ends_at == float("inf"), "a call that is no probe has no lease"
    for _ in range(5):
        run_one(breaker, FAILURE, 10.0)
    probe = admitted(breaker, 70.0)
    breaker.renew(stream, 95.0)
    breaker.tick(100.0, no_jitter)
    assert breaker.phase is OPEN and probe.lease_ends_at == 100.0


@rule
def a_long_service_known_to_be_slow_gets_a_longer_lease(module: Any) -> None:
    breaker = opened(module)
    breaker.lease_s = 55.0
    assert admitted(breaker, 60.0).lease_ends_at == 115.0


@rule
def jitter_only_lengthens(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    breaker.settle(admitted(breaker, 0.0), FAILURE, False, 0.0, lambda: 1.0)
    assert breaker.open_for_s == 72.0


@rule
def a_servers_word_is_not_capped_by_our_caps_but_by_a_month(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    breaker.settle(admitted(breaker, 0.0), FAILURE, False, 0.0, no_jitter, 86_400.0)
    assert breaker.open_for_s == 86_400.0
    breaker.reset(0.0)
    breaker.settle(admitted(breaker, 0.0), FAILURE, False, 0.0, no_jitter, 1e9)
    assert breaker.open_for_s == 31 * 86_400.0
    breaker.reset(0.0)
    breaker.settle(admitted(breaker, 0.0), FAILURE, False, 0.0, no_jitter, 1.0)
    assert breaker.open_for_s == 60.0, "and a short one does not shorten"


@rule
def ten_minutes_of_health_take_one_from_the_streak(module: Any) -> None:
    breaker = opened(module)
    run_one(breaker, FAILURE, 60.0)
    run_one(breaker, FAILURE, 180.0)
    run_one(breaker, SUCCESS, 420.0)
    run_one(breaker, SUCCESS, 420.0)
    assert breaker.phase is CLOSED and breaker.streak == 2
    run_one(breaker, SUCCESS, 1019.0)
    assert breaker.streak == 2
    run_one(breaker, SUCCESS, 1020.0)
    run_one(breaker, SUCCESS, 1021.0)
    assert breaker.streak == 1
    for now in (1100.0, 1110.0, 1120.0, 1130.0, 1140.0):
        run_one(breaker, FAILURE, now)
    assert breaker.phase is OPEN and breaker.open_for_s == 120.0, "what is left of the streak still counts"


@rule
def checks_end_an_opening_early_only_where_they_may(module: Any) -> None:
    breaker = opened(module)
    assert not breaker.end_early(59.0) and breaker.refusal(1.0)[1] == 59.0
    breaker.early_s = 3.0
    assert breaker.refusal(1.0)[1] == 59.0, "as long as it is not answered"
    breaker.early_at = 3.5
    assert breaker.refusal(1.0)[1] == 2.5, "callers do not wait for a minute beside a database that is back"
    assert not breaker.end_early(2.9) and breaker.phase is OPEN
    assert breaker.end_early(3.0) and breaker.phase is HALF_OPEN
    assert not breaker.end_early(4.0)
    run_one(breaker, FAILURE, 4.0)
    assert breaker.phase is OPEN and breaker.opens_until() == 124.0, "a test that fails is what it always was"


@rule
def a_good_check_closes_it_where_nobody_has_called_for_three_recoveries(module: Any) -> None:
    breaker = opened(module)
    breaker.tick(60.0, no_jitter)
    assert not breaker.close_idle(239.9) and breaker.phase is HALF_OPEN
    assert breaker.close_idle(240.0) and breaker.phase is CLOSED
    assert not breaker.close_idle(1000.0)


@rule
def a_good_check_closes_nothing_while_probes_come(module: Any) -> None:
    breaker = opened(module)
    run_one(breaker, NEUTRAL, 200.0)
    assert not breaker.close_idle(240.0)
    running = admitted(breaker, 379.0)
    assert not breaker.close_idle(380.0 + 1000.0) and breaker.leases == [running]


@rule
def an_operators_act_fences_running_calls(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    permit = admitted(breaker, 0.0)
    breaker.reset(0.0)
    assert not breaker.settle(permit, FAILURE, False, 0.0, no_jitter) and breaker.phase is CLOSED
    permit = admitted(breaker, 0.0)
    breaker.set_override(FORCED_OPEN)
    assert not breaker.settle(permit, FAILURE, False, 0.0, no_jitter) and breaker.phase is CLOSED
    assert breaker.refuses(0.0) and breaker.admit(0.0, no_jitter) is None
    assert "operator" in breaker.refusal(0.0)[0]


@rule
def a_reset_forgets_the_streak_and_takes_an_override_back(module: Any) -> None:
    breaker = opened(module)
    run_one(breaker, FAILURE, 60.0)
    breaker.set_override(FORCED_OPEN)
    breaker.reset(61.0)
    assert (breaker.phase, breaker.override, breaker.streak) == (CLOSED, NONE, 0)


@rule
def disabled_lets_everything_through_and_learns_nothing(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    breaker.set_override(DISABLED)
    permit = admitted(breaker, 0.0)
    assert not breaker.settle(permit, FAILURE, False, 0.0, no_jitter)
    breaker.count_outage(True, 0.0, no_jitter)
    assert breaker.phase is CLOSED and breaker.consecutive == 0 and breaker.stale == 0


@rule
def metrics_only_counts_and_reports_and_never_refuses(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    breaker.set_override(METRICS_ONLY)
    run_one(breaker, FAILURE, 0.0)
    assert breaker.phase is OPEN and not breaker.refuses(0.0)
    outside = admitted(breaker, 0.0)
    assert breaker.passed == 1, "so many it would have refused"
    assert not breaker.settle(outside, SUCCESS, False, 0.0, no_jitter), (
        "one that it would have refused changes nothing"
    )
    assert breaker.phase is OPEN
    breaker.set_override(NONE)
    assert breaker.refuses(0.0)


@rule
def an_operators_word_ends_at_its_time_and_a_refusal_tells_no_time_where_it_has_none(module: Any) -> None:
    breaker = make(module)
    breaker.set_override(FORCED_OPEN)
    assert breaker.refusal(5.0)[1] == float("inf")
    breaker.set_override(FORCED_OPEN, Act("ada", "a drill", 1_000_000.0), 10.0)
    breaker.tick(9.0, no_jitter)
    assert breaker.refuses(9.0) and breaker.refusal(9.0) == (
        "the circuit was forced open by ada: a drill; until 1970-01-12T13:46:40Z",
        2.0,  # with the tick that ends it
    )
    breaker.tick(10.0, no_jitter)
    assert (breaker.override, breaker.refuses(10.0)) == (NONE, False)
    breaker.set_override(METRICS_ONLY, ends_at=20.0)
    breaker.reset(15.0)
    breaker.set_override(FORCED_OPEN)
    breaker.tick(20.0, no_jitter)
    assert breaker.refuses(20.0), "the end of an earlier word ends no later one"


@rule
def metrics_only_cuts_no_probe_short_and_gives_it_up_all_the_same(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    breaker.set_override(METRICS_ONLY)
    run_one(breaker, FAILURE, 0.0)
    probe = admitted(breaker, 60.0)
    assert breaker.leases == [probe] and probe.lease_ends_at == float("inf")
    breaker.tick(90.0, no_jitter)
    assert breaker.phase is OPEN and breaker.streak == 1


@rule
def events_tell_what_happened_in_order_and_leave_publishing_to_the_caller(module: Any) -> None:
    breaker = opened(module)
    run_one(breaker, FAILURE, 60.0)
    breaker.tick(180.0, no_jitter)
    run_one(breaker, SUCCESS, 180.0)
    run_one(breaker, SUCCESS, 180.0)
    breaker.set_override(DISABLED)
    breaker.reset(181.0)
    assert breaker.happened == [
        CircuitOpened("claude", "5 failures in a row", 60.0),
        CircuitHalfOpened("claude"),
        CircuitOpened("claude", "5 failures in a row, then a failed probe", 120.0),
        CircuitHalfOpened("claude"),
        CircuitClosed("claude"),
        OverrideSet("claude", "disabled"),
        CircuitClosed("claude", by_operator=True),
    ]


@rule
def others_prime_a_breaker_and_a_reset_undoes_it(module: Any) -> None:
    """One failure of its own opens it then, and says why that was enough."""
    breaker = make(module)
    breaker.prime("3 of 4 processes have it open")
    breaker.prime("4 of 5 processes have it open")
    assert breaker.phase is CLOSED
    assert breaker.happened == [CircuitPrimed("claude", "3 of 4 processes have it open")]
    breaker.happened = []
    run_one(breaker, FAILURE, 0.0)
    why = "1 failure in a row while 4 of 5 processes have it open"
    assert breaker.phase is OPEN and breaker.reason == why
    breaker.prime("4 of 4 processes have it open")
    assert breaker.happened == [CircuitOpened("claude", why, 60.0)]
    breaker.reset(1.0)
    for _ in range(4):
        run_one(breaker, FAILURE, 1.0)
    assert breaker.phase is CLOSED and not breaker.primed


@rule
def a_failure_from_before_it_was_primed_opens_it_with_the_next_second_if_it_is_young(module: Any) -> None:
    for age_s, phase in ((10.0, OPEN), (300.0, CLOSED)):
        breaker = make(module)
        run_one(breaker, FAILURE, 0.0)
        breaker.prime("3 of 4 processes have it open")
        assert breaker.phase is CLOSED
        breaker.tick(age_s, no_jitter)
        assert breaker.phase is phase


@rule
def without_a_unit_a_caller_is_told_to_come_back_after_the_next_beat(module: Any) -> None:
    breaker = opened(module)
    breaker.probes_max = 0
    assert breaker.admit(60.0, no_jitter) is None and breaker.phase is HALF_OPEN
    assert breaker.refusal(60.0) == ("recovery is being tested after 5 failures in a row", 1.0)
    breaker.probes_max = 1
    assert not breaker.refuses(60.0)
