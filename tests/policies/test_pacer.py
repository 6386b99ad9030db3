"""The pacer sends as many calls as the provider's headers allow, and no more."""

from __future__ import annotations

import pytest

from koo.policies.pacer import PILOTS_DOUBLE_AFTER_S, Pacer
from koo.policies.provider_limit import LOOK_S_MAX
from tests.policies.limit_left import LimitLeft


def told(*limits: LimitLeft) -> Pacer:
    """A pacer that received these limits at second 0, in the response to its last call."""
    pacer = Pacer()
    pacer.learn(limits, 1, 1, 0.0)
    return pacer


def burst(pacer: Pacer, now: float) -> int:
    """Send calls while none has to wait. Returns their number."""
    count = 0
    while not pacer.wait_s(now):
        pacer.take(now)
        pacer.use()
        count += 1
    return count


def times(pacer: Pacer, calls: int, now: float = 0.0) -> list[float]:
    """The times at which these calls are sent if only the pacer delays them."""
    seen = []
    for _ in range(calls):
        now += pacer.wait_s(now)
        pacer.take(now)
        pacer.use()
        seen.append(now)
    return seen


# ── what is left ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_but_the_last_twentieth_of_what_is_left_may_be_sent_immediately() -> None:
    pacer = told(LimitLeft(100, 55, 60.0))
    assert burst(pacer, 0.0) == 50 + 1, "including the first of the spread ones"
    assert pacer.wait_s(0.0) == pytest.approx(60.0 / 5)


def test_the_last_twentieth_is_spread_over_the_time_until_the_limit_is_full() -> None:
    assert times(told(LimitLeft(200, 10, 50.0)), 4) == [0.0, 5.0, 10.0, 15.0]


def test_a_caller_behind_others_gets_its_shortest_possible_wait() -> None:
    pacer = told(LimitLeft(200, 10, 50.0))
    assert [pacer.wait_s(0.0, ahead) for ahead in range(4)] == [0.0, 5.0, 10.0, 15.0]
    assert pacer.wait_s(0.0, 10) == pytest.approx(51.0), "nothing is free before the limit is full"


def test_an_idle_spread_limit_does_not_save_up_calls() -> None:
    pacer = told(LimitLeft(200, 10, 50.0))
    pacer.take(0.0)
    assert times(pacer, 2, now=30.0) == [30.0, pytest.approx(30.0 + 20.0 / 9)]


def test_an_unused_cell_is_returned() -> None:
    pacer = told(LimitLeft(200, 10, 50.0))
    pacer.take(0.0)
    assert pacer.wait_s(0.0) == 5.0
    pacer.give_back()
    assert pacer.wait_s(0.0) == 0.0


def test_a_used_up_limit_admits_nothing_until_one_second_after_it_is_full() -> None:
    """Dates in headers are whole seconds."""
    pacer = told(LimitLeft(50, 0, 30.0))
    assert pacer.wait_s(0.0) == 31.0 and pacer.wait_s(20.0) == 11.0
    assert pacer.wait_s(31.0) == 0.0


def test_calls_sent_after_the_answered_one_are_subtracted() -> None:
    pacer = Pacer()
    pacer.learn([LimitLeft(50, 49, 60.0)], serial=1, sent=40, now=2.0)
    assert burst(pacer, 2.0) < 10 + 1


def test_calls_without_a_cell_are_counted_on_demand() -> None:
    pacer = told(LimitLeft(50, 20, 60.0))
    pacer.count(21)
    assert pacer.wait_s(0.0) == 61.0, "twenty were sent since, and none of them took a cell"


def test_cells_taken_but_not_used_yet_are_subtracted() -> None:
    """A call may wait for money after it has taken a cell and before it is sent."""
    pacer = Pacer()
    for _ in range(30):
        pacer.take(0.0)
    pacer.learn([LimitLeft(50, 40, 60.0)], serial=1, sent=1, now=1.0)
    assert burst(pacer, 1.0) <= 10


def test_a_response_to_an_earlier_call_is_ignored() -> None:
    pacer = Pacer()
    pacer.learn([LimitLeft(50, 0, 60.0)], serial=50, sent=50, now=1.0)
    pacer.learn([LimitLeft(50, 49, 60.0)], serial=1, sent=50, now=9.0)
    assert pacer.wait_s(9.0) == 53.0


def test_a_slow_response_does_not_move_the_end_of_a_window() -> None:
    """A server may count the seconds from the call's arrival."""
    pacer = Pacer()
    pacer.learn([LimitLeft(50, 1, 60.0)], serial=1, sent=1, now=0.0)
    pacer.learn([LimitLeft(50, 0, 55.0)], serial=2, sent=2, now=15.0, took_s=10.0)
    assert pacer.wait_s(15.0) == 46.0
    pacer.learn([LimitLeft(50, 0, 60.0)], serial=3, sent=3, now=61.0, took_s=0.5)
    assert pacer.wait_s(61.0) == 61.0, "a new window has a new end"


# ── several limits ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tightest_limit_decides() -> None:
    loose, tight = LimitLeft(1000, 990, 60.0, "requests"), LimitLeft(60, 3, 60.0, "output-tokens")
    for limits in ((loose, tight), (tight, loose)):
        assert times(told(*limits), 3) == pytest.approx([0.0, 20.0, 40.0])


def test_a_limit_that_one_response_does_not_name_still_counts() -> None:
    pacer = told(LimitLeft(60, 0, 60.0, "tokens"))
    pacer.learn([LimitLeft(1000, 990, 60.0, "requests")], 2, 2, 1.0)
    assert pacer.wait_s(1.0) == 60.0


# ── how limits are refilled ───────────────────────────────────────────────────────────────────────────────────────────


def drained(limit: float, period_s: float) -> Pacer:
    """A pacer that read the responses of a bucket while a burst emptied it."""
    pacer = Pacer()
    for used in range(1, int(limit) + 1):
        left = LimitLeft(limit, limit - used, used * period_s / limit)
        pacer.learn([left], used, int(limit), 0.0)
    return pacer


def test_a_limit_that_refills_gradually_is_used_as_it_refills() -> None:
    assert times(drained(50.0, 60.0), 3) == pytest.approx([1.2, 2.4, 3.6])


def test_a_window_is_not_mistaken_for_a_bucket() -> None:
    pacer = Pacer()
    for used in range(1, 51):
        pacer.learn([LimitLeft(50, 50 - used, 58.0)], used, 50, 2.0)
    assert pacer.wait_s(2.0) == 59.0


def test_when_a_used_up_limit_should_be_full_one_pilot_is_sent_before_the_others() -> None:
    pacer = told(LimitLeft(50, 0, 30.0))
    pacer.count(1)
    assert not pacer.wait_s(31.0) and not pacer.must_follow(31.0, ended=1)
    pacer.take(31.0)
    pacer.use()
    assert pacer.must_follow(33.0, ended=1), "the response has not arrived yet"
    pacer.learn([LimitLeft(50, 49, 59.0)], serial=2, sent=2, now=33.0)
    assert not pacer.must_follow(33.0, ended=2) and burst(pacer, 33.0) > 40


def test_after_a_quiet_time_a_limit_is_full_without_a_pilot() -> None:
    pacer = told(LimitLeft(50, 0, 30.0))
    assert not pacer.wait_s(100.0) and not pacer.must_follow(100.0, ended=1)
    assert burst(pacer, 100.0) > 40


def test_a_limit_smaller_than_one_usual_call_admits_one_call_when_it_is_full() -> None:
    """After one huge prompt, a call is estimated at more tokens than the whole limit."""
    pacer = told(LimitLeft(0.2, 0.19, 1.0, "tokens"))
    assert [burst(pacer, now) for now in (0.0, 1.1, 2.3)] == [0, 1, 1]


def test_a_limit_that_resets_in_days_is_tested_every_ten_minutes() -> None:
    pacer = told(LimitLeft(1000, 0, 86_400.0))
    assert pacer.wait_s(0.0) == LOOK_S_MAX
    assert times(pacer, 2, now=0.0) == [LOOK_S_MAX, 2 * LOOK_S_MAX]


def test_time_spent_suspended_brings_the_end_of_a_limit_forward() -> None:
    pacer = told(LimitLeft(50, 0, 30.0))
    pacer.skip(20.0)
    assert pacer.wait_s(0.0) == 11.0


# ── incomplete headers ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "absurd",
    [
        LimitLeft(9, None, 1.0),
        LimitLeft(0, 0, 9.0),
        LimitLeft(9, -1, 9.0),
        LimitLeft(9, 1, -1.0),
        LimitLeft(-1, -1, None),
    ],
)
def test_missing_and_absurd_numbers_are_ignored(absurd: LimitLeft) -> None:
    pacer = told(absurd)
    assert not pacer.knows and pacer.wait_s(0.0) == 0.0


def test_a_limit_without_a_reset_time_is_assumed_to_be_per_minute() -> None:
    """Azure names neither the limit nor its end."""
    pacer = told(LimitLeft(None, 40, None))
    assert burst(pacer, 0.0) == 40 - 2 + 1 and pacer.wait_s(0.0) == pytest.approx(30.0)
    assert told(LimitLeft(None, 0, None)).wait_s(0.0) == 61.0


# ── pilots ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def flying(pacer: Pacer, now: float, ended: int = 0) -> int:
    """Send calls while none has to wait and none has returned. Returns their number."""
    count = 0
    while not pacer.must_follow(now, ended) and count < 1000:
        pacer.take(now)
        pacer.use()
        count += 1
    return count


def test_before_the_first_response_a_few_pilots_are_sent_and_their_number_doubles() -> None:
    pacer = Pacer()
    pacer.send_pilots(10)
    assert flying(pacer, 0.0) == 10
    assert flying(pacer, 1.9 * PILOTS_DOUBLE_AFTER_S) == 10 and flying(pacer, 2 * PILOTS_DOUBLE_AFTER_S) == 20


def test_a_failed_pilot_makes_room_for_the_next() -> None:
    pacer = Pacer()
    pacer.send_pilots(10)
    flying(pacer, 0.0)
    assert flying(pacer, 0.0, ended=3) == 3


def test_the_first_response_ends_the_pilots_even_without_limits_in_it() -> None:
    pacer = Pacer()
    pacer.send_pilots(10)
    flying(pacer, 0.0)
    assert pacer.asks
    pacer.learn([], serial=1, sent=10, now=1.0)
    assert not pacer.asks and flying(pacer, 1.0) == 1000


def test_after_a_429_one_pilot_is_sent_and_earlier_responses_are_ignored() -> None:
    pacer = Pacer()
    pacer.send_pilots(10)
    pacer.learn([LimitLeft(50, 49, 60.0)], 1, 30, 1.0)
    pacer.doubt(30)
    pacer.learn([LimitLeft(50, 40, 60.0)], 10, 30, 2.0)
    assert pacer.asks and flying(pacer, 2.0, ended=30) == 1
    pacer.learn([LimitLeft(50, 40, 60.0)], 31, 31, 3.0)
    assert not pacer.asks


def test_without_limit_headers_a_429_starts_no_pilot() -> None:
    """The responses of a user's own operation have no headers, so nothing would end the pilots."""
    pacer = Pacer()
    pacer.doubt(30)
    assert not pacer.asks
