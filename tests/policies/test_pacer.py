"""The pacer: as many calls as the provider says it allows, and no more."""

from __future__ import annotations

import pytest

from koo.policies.pacer import PILOTS_DOUBLE_AFTER_S, Pacer
from koo.policies.provider_limit import LOOK_S_MAX, LimitLeft


def told(*limits: LimitLeft) -> Pacer:
    """A pacer that heard this at second 0, in the answer to the last of its calls."""
    pacer = Pacer()
    pacer.learn(limits, 1, 1, 0.0)
    return pacer


def burst(pacer: Pacer, now: float) -> int:
    """How many calls leave at once."""
    count = 0
    while not pacer.wait_s(now):
        pacer.take(now)
        pacer.use()
        count += 1
    return count


def times(pacer: Pacer, calls: int, now: float = 0.0) -> list[float]:
    """When calls leave that have nothing to do but wait."""
    seen = []
    for _ in range(calls):
        now += pacer.wait_s(now)
        pacer.take(now)
        pacer.use()
        seen.append(now)
    return seen


# ── what is left ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_left_leaves_at_once_but_for_the_last_twentieth() -> None:
    pacer = told(LimitLeft(100, 55, 60.0))
    assert burst(pacer, 0.0) == 50 + 1, "and the first of those that are spread"
    assert pacer.wait_s(0.0) == pytest.approx(60.0 / 5)


def test_the_last_twentieth_is_spread_over_the_time_until_the_limit_is_full() -> None:
    assert times(told(LimitLeft(200, 10, 50.0)), 4) == [0.0, 5.0, 10.0, 15.0]


def test_a_caller_behind_others_hears_how_long_it_waits_at_least() -> None:
    pacer = told(LimitLeft(200, 10, 50.0))
    assert [pacer.wait_s(0.0, ahead) for ahead in range(4)] == [0.0, 5.0, 10.0, 15.0]
    assert pacer.wait_s(0.0, 10) == pytest.approx(51.0), "there is nothing before the limit is full"


def test_unused_time_is_not_saved_up() -> None:
    pacer = told(LimitLeft(200, 10, 50.0))
    pacer.take(0.0)
    assert times(pacer, 2, now=30.0) == [30.0, pytest.approx(30.0 + 20.0 / 9)]


def test_an_unused_cell_goes_back() -> None:
    pacer = told(LimitLeft(200, 10, 50.0))
    pacer.take(0.0)
    assert pacer.wait_s(0.0) == 5.0
    pacer.give_back()
    assert pacer.wait_s(0.0) == 0.0


def test_nothing_left_is_nothing_until_the_limit_is_full_and_a_second_more() -> None:
    """Dates in headers are whole seconds."""
    pacer = told(LimitLeft(50, 0, 30.0))
    assert pacer.wait_s(0.0) == 31.0 and pacer.wait_s(20.0) == 11.0
    assert pacer.wait_s(31.0) == 0.0


def test_calls_that_left_after_the_one_that_was_answered_are_taken_off() -> None:
    pacer = Pacer()
    pacer.learn([LimitLeft(50, 49, 60.0)], serial=1, sent=40, now=2.0)
    assert burst(pacer, 2.0) < 10 + 1


def test_calls_on_the_short_way_are_counted_on_demand() -> None:
    pacer = told(LimitLeft(50, 20, 60.0))
    pacer.count(21)
    assert pacer.wait_s(0.0) == 61.0, "twenty have left since, and none of them booked a cell"


def test_cells_that_are_booked_and_not_used_yet_are_taken_off_what_an_answer_says() -> None:
    """A call may wait for money between its cell and its departure."""
    pacer = Pacer()
    for _ in range(30):
        pacer.take(0.0)
    pacer.learn([LimitLeft(50, 40, 60.0)], serial=1, sent=1, now=1.0)
    assert burst(pacer, 1.0) <= 10


def test_an_answer_to_an_earlier_call_says_nothing_new() -> None:
    pacer = Pacer()
    pacer.learn([LimitLeft(50, 0, 60.0)], serial=50, sent=50, now=1.0)
    pacer.learn([LimitLeft(50, 49, 60.0)], serial=1, sent=50, now=9.0)
    assert pacer.wait_s(9.0) == 53.0


def test_a_slow_answer_does_not_move_the_end_of_a_window() -> None:
    """A server may have counted the seconds when the call arrived there."""
    pacer = Pacer()
    pacer.learn([LimitLeft(50, 1, 60.0)], serial=1, sent=1, now=0.0)
    pacer.learn([LimitLeft(50, 0, 55.0)], serial=2, sent=2, now=15.0, took_s=10.0)
    assert pacer.wait_s(15.0) == 46.0
    pacer.learn([LimitLeft(50, 0, 60.0)], serial=3, sent=3, now=61.0, took_s=0.5)
    assert pacer.wait_s(61.0) == 61.0, "but a new window has a new end"


# ── several limits ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tightest_limit_decides() -> None:
    loose, tight = LimitLeft(1000, 990, 60.0, "requests"), LimitLeft(60, 3, 60.0, "output-tokens")
    for limits in ((loose, tight), (tight, loose)):
        assert times(told(*limits), 3) == pytest.approx([0.0, 20.0, 40.0])


def test_a_limit_that_one_answer_does_not_name_is_still_there() -> None:
    pacer = told(LimitLeft(60, 0, 60.0, "tokens"))
    pacer.learn([LimitLeft(1000, 990, 60.0, "requests")], 2, 2, 1.0)
    assert pacer.wait_s(1.0) == 60.0


# ── how limits come back ──────────────────────────────────────────────────────────────────────────────────────────────


def drained(limit: float, period_s: float) -> Pacer:
    """A bucket whose answers were heard while a burst emptied it."""
    pacer = Pacer()
    for used in range(1, int(limit) + 1):
        left = LimitLeft(limit, limit - used, used * period_s / limit)
        pacer.learn([left], used, int(limit), 0.0)
    return pacer


def test_a_limit_that_fills_bit_by_bit_is_used_as_it_fills() -> None:
    assert times(drained(50.0, 60.0), 3) == pytest.approx([1.2, 2.4, 3.6])


def test_a_window_is_not_taken_for_a_bucket() -> None:
    pacer = Pacer()
    for used in range(1, 51):
        pacer.learn([LimitLeft(50, 50 - used, 58.0)], used, 50, 2.0)
    assert pacer.wait_s(2.0) == 59.0


def test_when_a_limit_that_was_used_up_should_be_full_one_call_asks_and_the_others_follow_its_answer() -> (
    None
):
    pacer = told(LimitLeft(50, 0, 30.0))
    pacer.count(1)
    assert not pacer.wait_s(31.0) and not pacer.must_follow(31.0, ended=1)
    pacer.take(31.0)
    pacer.use()
    assert pacer.must_follow(33.0, ended=1), "the answer is not there yet"
    pacer.learn([LimitLeft(50, 49, 59.0)], serial=2, sent=2, now=33.0)
    assert not pacer.must_follow(33.0, ended=2) and burst(pacer, 33.0) > 40


def test_after_a_quiet_time_a_limit_is_full_without_a_pilot() -> None:
    pacer = told(LimitLeft(50, 0, 30.0))
    assert not pacer.wait_s(100.0) and not pacer.must_follow(100.0, ended=1)
    assert burst(pacer, 100.0) > 40


def test_a_limit_smaller_than_one_usual_call_lets_one_leave_when_it_is_full() -> None:
    """After one huge prompt a call is taken for more tokens than the whole limit has."""
    pacer = told(LimitLeft(0.2, 0.19, 1.0, "tokens"))
    assert [burst(pacer, now) for now in (0.0, 1.1, 2.3)] == [0, 1, 1]


def test_a_limit_that_is_said_to_last_for_days_is_looked_at_every_ten_minutes() -> None:
    pacer = told(LimitLeft(1000, 0, 86_400.0))
    assert pacer.wait_s(0.0) == LOOK_S_MAX
    assert times(pacer, 2, now=0.0) == [LOOK_S_MAX, 2 * LOOK_S_MAX]


def test_time_that_the_clock_did_not_see_brings_the_end_forward() -> None:
    pacer = told(LimitLeft(50, 0, 30.0))
    pacer.skip(20.0)
    assert pacer.wait_s(0.0) == 11.0


# ── what is said ──────────────────────────────────────────────────────────────────────────────────────────────────────


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
def test_numbers_that_are_missing_or_absurd_are_ignored(absurd: LimitLeft) -> None:
    pacer = told(absurd)
    assert not pacer.knows and pacer.wait_s(0.0) == 0.0


def test_a_server_that_says_only_how_much_is_left_is_taken_to_count_by_the_minute() -> None:
    """Azure names neither the limit nor its end."""
    pacer = told(LimitLeft(None, 40, None))
    assert burst(pacer, 0.0) == 40 - 2 + 1 and pacer.wait_s(0.0) == pytest.approx(30.0)
    assert told(LimitLeft(None, 0, None)).wait_s(0.0) == 61.0


# ── pilots ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def flying(pacer: Pacer, now: float, ended: int = 0) -> int:
    """How many more may leave, each at once, while none is answered."""
    count = 0
    while not pacer.must_follow(now, ended) and count < 1000:
        pacer.take(now)
        pacer.use()
        count += 1
    return count


def test_before_the_first_answer_a_few_calls_ask_and_double_with_time() -> None:
    pacer = Pacer()
    pacer.send_pilots(10)
    assert flying(pacer, 0.0) == 10
    assert flying(pacer, 1.9 * PILOTS_DOUBLE_AFTER_S) == 10 and flying(pacer, 2 * PILOTS_DOUBLE_AFTER_S) == 20


def test_a_pilot_that_failed_makes_room_for_the_next() -> None:
    pacer = Pacer()
    pacer.send_pilots(10)
    flying(pacer, 0.0)
    assert flying(pacer, 0.0, ended=3) == 3


def test_the_first_answer_ends_it_though_it_says_nothing() -> None:
    pacer = Pacer()
    pacer.send_pilots(10)
    flying(pacer, 0.0)
    assert pacer.asks
    pacer.learn([], serial=1, sent=10, now=1.0)
    assert not pacer.asks and flying(pacer, 1.0) == 1000


def test_after_a_429_one_call_asks_and_answers_to_earlier_calls_say_nothing() -> None:
    pacer = Pacer()
    pacer.send_pilots(10)
    pacer.learn([LimitLeft(50, 49, 60.0)], 1, 30, 1.0)
    pacer.doubt(30)
    pacer.learn([LimitLeft(50, 40, 60.0)], 10, 30, 2.0)
    assert pacer.asks and flying(pacer, 2.0, ended=30) == 1
    pacer.learn([LimitLeft(50, 40, 60.0)], 31, 31, 3.0)
    assert not pacer.asks


def test_without_informative_answers_a_429_raises_no_doubt() -> None:
    """An operation of one's own is never heard, so nothing would end it."""
    pacer = Pacer()
    pacer.doubt(30)
    assert not pacer.asks
