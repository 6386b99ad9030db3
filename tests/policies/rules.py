"""The breaker's rules that are easier to show in a small story than to explore.

Each story takes the module of the breaker as an argument, so that `test_breaker.py` can run it on a mutant.
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
def five_failures_in_succession_open_it_even_within_one_tick_of_the_clock(module: Any) -> None:
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
def five_failures_of_another_model_on_the_same_host_in_succession_open_it(module: Any) -> None:
    here, there = make(module), make(module)
    for _ in range(5):
        marks = here.marks
        run_one(here, FAILURE, 0.0)
        there.count_outage(here.marks > marks, 0.0, no_jitter)
    assert here.phase is OPEN and there.phase is OPEN


@rule
def failures_in_half_of_twenty_calls_open_it(module: Any) -> None:
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
def a_stream_that_has_begun_is_not_hung_even_if_its_reader_is_slow(module: Any) -> None:
    breaker = make(module)
    for _ in range(20):
        admitted(breaker, 0.0).kept = True
    breaker.tick(300.0, no_jitter)
    assert breaker.phase is CLOSED


@rule
def a_slow_call_cut_short_by_its_deadline_counts_in_the_slow_rate_and_not_in_the_row(module: Any) -> None:
    breaker = make(module)
    for _ in range(19):
        run_one(breaker, NEUTRAL, 0.0, slow=True)
    assert breaker.phase is CLOSED and breaker.consecutive == 0
    run_one(breaker, NEUTRAL, 0.0, slow=True)
    assert breaker.phase is OPEN


@rule
def throttled_and_cancelled_calls_do_not_count(module: Any) -> None:
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
def an_open_breaker_refuses_with_the_reason_and_the_time_to_wait(module: Any) -> None:
    breaker = opened(module)
    assert breaker.admit(59.9, no_jitter) is None and breaker.refuses(59.9)
    assert breaker.refusal(59.0) == ("the circuit is open after 5 failures in a row", 1.0)


@rule
def after_the_open_time_the_next_caller_is_a_probe(module: Any) -> None:
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
def a_tick_begins_the_test_of_recovery_without_traffic(module: Any) -> None:
    breaker = opened(module)
    assert not breaker.refuses(1000.0) and breaker.phase is OPEN, "reading changes nothing"
    breaker.tick(1000.0, no_jitter)
    assert breaker.phase is HALF_OPEN


@rule
def a_cancelled_probe_gives_its_slot_back_and_ten_of_them_open_it_for_no_longer(module: Any) -> None:
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
    assert breaker.admit(210.0, no_jitter) is not None, "it can still recover"


@rule
def a_success_after_the_end_of_its_lease_is_a_failure_in_either_order(module: Any) -> None:
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
def an_owner_may_set_the_end_of_its_probe(module: Any) -> None:
    breaker = opened(module)
    probe = admitted(breaker, 60.0)
    probe.lease_ends_at = 500.0
    breaker.tick(499.0, no_jitter)
    assert breaker.phase is HALF_OPEN
    breaker.tick(500.0, no_jitter)
    assert breaker.phase is OPEN


@rule
def an_absent_reader_does_not_fail_the_probe(module: Any) -> None:
    breaker = opened(module)
    stream = admitted(breaker, 60.0)
    for now in (61.0, 95.0):
        breaker.rest(stream, now)
        breaker.tick(now + 29.0, no_jitter)
        assert breaker.phase is HALF_OPEN and breaker.refusal(now)[1] == 30.0
        breaker.renew(stream, now + 29.0)
        assert stream.lease_ends_at == now + 59.0
        breaker.tick(now + 31.0, no_jitter)
        assert breaker.leases == [stream], "its reader has returned"
    breaker.settle(stream, SUCCESS, False, 130.0, no_jitter)
    assert breaker.ok == 1 and breaker.leases == []


@rule
def a_reader_that_stays_away_gives_the_slot_back(module: Any) -> None:
    """No verdict is counted: another call may probe, and the stream's result no longer counts."""
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
def enough_readers_that_stay_away_open_it_again(module: Any) -> None:
    breaker = opened(module, inconclusive_max=2, probe_concurrency=2)
    for _ in range(2):
        breaker.rest(admitted(breaker, 60.0), 61.0)
    breaker.tick(91.0, no_jitter)
    assert breaker.phase is OPEN and breaker.streak == 0
    assert breaker.reason == "5 failures in a row, then 2 probes without a verdict"


@rule
def an_operators_act_stops_no_probe(module: Any) -> None:
    """A running call is no longer a probe then, so the end of its lease must not stop it."""
    for act in ("reset", "override"):
        breaker = opened(module)
        probe = admitted(breaker, 60.0)
        assert probe.lease_ends_at == 90.0
        breaker.reset(70.0) if act == "reset" else breaker.set_override(DISABLED)
        assert probe.lease_ends_at == float("inf"), act


@rule
def content_of_a_late_stream_renews_no_lease(module: Any) -> None:
    breaker = make(module)
    stream = admitted(breaker, 0.0)
    breaker.renew(stream, 10.0)
    assert stream.lease_ends_at == float("inf"), "a call that is not a probe has no lease"
    for _ in range(5):
        run_one(breaker, FAILURE, 10.0)
    probe = admitted(breaker, 70.0)
    breaker.renew(stream, 95.0)
    breaker.tick(100.0, no_jitter)
    assert breaker.phase is OPEN and probe.lease_ends_at == 100.0


@rule
def a_service_known_to_be_slow_gets_a_longer_lease(module: Any) -> None:
    breaker = opened(module)
    breaker.lease_s = 55.0
    assert admitted(breaker, 60.0).lease_ends_at == 115.0


@rule
def jitter_only_lengthens(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    breaker.settle(admitted(breaker, 0.0), FAILURE, False, 0.0, lambda: 1.0)
    assert breaker.open_for_s == 72.0


@rule
def a_servers_hint_is_capped_at_a_month_and_not_by_our_own_caps(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    breaker.settle(admitted(breaker, 0.0), FAILURE, False, 0.0, no_jitter, 86_400.0)
    assert breaker.open_for_s == 86_400.0
    breaker.reset(0.0)
    breaker.settle(admitted(breaker, 0.0), FAILURE, False, 0.0, no_jitter, 1e9)
    assert breaker.open_for_s == 31 * 86_400.0
    breaker.reset(0.0)
    breaker.settle(admitted(breaker, 0.0), FAILURE, False, 0.0, no_jitter, 1.0)
    assert breaker.open_for_s == 60.0, "a short hint does not shorten the open time"


@rule
def ten_minutes_closed_shorten_the_streak_by_one(module: Any) -> None:
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
    assert breaker.phase is OPEN and breaker.open_for_s == 120.0, "the rest of the streak still counts"


@rule
def successful_checks_end_an_opening_early_only_if_allowed(module: Any) -> None:
    breaker = opened(module)
    assert not breaker.end_early(59.0) and breaker.refusal(1.0)[1] == 59.0
    breaker.early_s = 3.0
    assert breaker.refusal(1.0)[1] == 59.0, "until a check succeeds"
    breaker.early_at = 3.5
    assert breaker.refusal(1.0)[1] == 2.5, "callers do not wait a minute for a database that is back"
    assert not breaker.end_early(2.9) and breaker.phase is OPEN
    assert breaker.end_early(3.0) and breaker.phase is HALF_OPEN
    assert not breaker.end_early(4.0)
    run_one(breaker, FAILURE, 4.0)
    assert breaker.phase is OPEN and breaker.opens_until() == 124.0, (
        "a failed probe lengthens the open time as always"
    )


@rule
def a_successful_check_closes_it_after_three_recovery_times_without_calls(module: Any) -> None:
    breaker = opened(module)
    breaker.tick(60.0, no_jitter)
    assert not breaker.close_idle(239.9) and breaker.phase is HALF_OPEN
    assert breaker.close_idle(240.0) and breaker.phase is CLOSED
    assert not breaker.close_idle(1000.0)


@rule
def a_successful_check_does_not_close_it_while_probes_run(module: Any) -> None:
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
def a_reset_clears_the_streak_and_removes_an_override(module: Any) -> None:
    breaker = opened(module)
    run_one(breaker, FAILURE, 60.0)
    breaker.set_override(FORCED_OPEN)
    breaker.reset(61.0)
    assert (breaker.phase, breaker.override, breaker.streak) == (CLOSED, NONE, 0)


@rule
def disabled_admits_every_call_and_counts_none(module: Any) -> None:
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
    assert breaker.passed == 1, "one call would have been refused"
    assert not breaker.settle(outside, SUCCESS, False, 0.0, no_jitter), (
        "a call that would have been refused changes nothing"
    )
    assert breaker.phase is OPEN
    breaker.set_override(NONE)
    assert breaker.refuses(0.0)


@rule
def an_override_ends_at_its_time_and_without_one_a_refusal_names_no_time(module: Any) -> None:
    breaker = make(module)
    breaker.set_override(FORCED_OPEN)
    assert breaker.refusal(5.0)[1] == float("inf")
    breaker.set_override(FORCED_OPEN, Act("ada", "a drill", 1_000_000.0), 10.0)
    breaker.tick(9.0, no_jitter)
    assert breaker.refuses(9.0) and breaker.refusal(9.0) == (
        "the circuit was forced open by ada: a drill; until 1970-01-12T13:46:40Z",
        2.0,  # one second more, for the tick that ends it
    )
    breaker.tick(10.0, no_jitter)
    assert (breaker.override, breaker.refuses(10.0)) == (NONE, False)
    breaker.set_override(METRICS_ONLY, ends_at=20.0)
    breaker.reset(15.0)
    breaker.set_override(FORCED_OPEN)
    breaker.tick(20.0, no_jitter)
    assert breaker.refuses(20.0), "the end of an earlier override does not end a later one"


@rule
def metrics_only_stops_no_probe_but_judges_it_by_its_lease(module: Any) -> None:
    breaker = make(module, failure_threshold=1)
    breaker.set_override(METRICS_ONLY)
    run_one(breaker, FAILURE, 0.0)
    probe = admitted(breaker, 60.0)
    assert breaker.leases == [probe] and probe.lease_ends_at == float("inf")
    breaker.tick(90.0, no_jitter)
    assert breaker.phase is OPEN and breaker.streak == 1


@rule
def events_are_collected_in_order_for_the_caller_to_publish(module: Any) -> None:
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
def other_processes_prime_a_breaker_and_a_reset_undoes_it(module: Any) -> None:
    """One failure of its own then opens it, and the reason says why one was enough."""
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
def a_recent_failure_from_before_the_priming_opens_it_at_the_next_tick(module: Any) -> None:
    for age_s, phase in ((10.0, OPEN), (300.0, CLOSED)):
        breaker = make(module)
        run_one(breaker, FAILURE, 0.0)
        breaker.prime("3 of 4 processes have it open")
        assert breaker.phase is CLOSED
        breaker.tick(age_s, no_jitter)
        assert breaker.phase is phase


@rule
def without_a_unit_a_caller_is_told_to_return_after_the_next_beat(module: Any) -> None:
    breaker = opened(module)
    breaker.probes_max = 0
    assert breaker.admit(60.0, no_jitter) is None and breaker.phase is HALF_OPEN
    assert breaker.refusal(60.0) == ("recovery is being tested after 5 failures in a row", 1.0)
    breaker.probes_max = 1
    assert not breaker.refuses(60.0)
