"""The counts of a guard: for its life, and for the last five minutes."""

from __future__ import annotations

import statistics
from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koo.policies.tally import BOUNDS_S, BUCKET_S, Bucket, Tally
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED

LATENCIES = st.lists(st.floats(0.0001, 119.0), min_size=1, max_size=200)


@given(latencies=LATENCIES, share=st.sampled_from([0.5, 0.95, 0.99]))
@settings(deadline=None, max_examples=200)
def test_a_percentile_falls_into_the_same_histogram_cell_as_the_exact_value(
    latencies: list[float], share: float
) -> None:
    tally = Tally(0.0)
    for latency_s in latencies:
        tally.record_success(latency_s, False, True, 0.0)
    place = min(len(latencies) - 1, max(0, -int(-share * len(latencies) // 1) - 1))
    true = sorted(latencies)[place]
    cell = bisect_left(BOUNDS_S, true)
    low = BOUNDS_S[cell - 1] if cell else 0.0
    assert low <= tally.totals().percentile_s(share) <= BOUNDS_S[cell] + 1e-9
    assert tally.totals().mean_s() == pytest.approx(statistics.fmean(latencies))


@given(latencies=LATENCIES, step_s=st.sampled_from([0.0, 1.0, 40.0]))
@settings(deadline=None, max_examples=100)
def test_recording_many_at_once_equals_recording_one_after_another(
    latencies: list[float], step_s: float
) -> None:
    many, single = Tally(0.0), Tally(0.0)
    for now in (0.0, step_s):
        many.record_successes(latencies, now)
        for latency_s in latencies:
            single.record_success(latency_s, False, True, now)
    views = (many.totals(), single.totals()), (many.recent(step_s), single.recent(step_s))
    for one, other in views:
        assert one.latency == other.latency
        assert one.latency_sum_s == pytest.approx(other.latency_sum_s)
    assert many.first_successes == single.first_successes
    assert many.last_success_at == single.last_success_at


def test_without_any_success_the_latency_is_zero_and_the_rate_is_one() -> None:
    empty = Bucket()
    assert (empty.percentile_s(0.5), empty.mean_s(), empty.success_rate()) == (0.0, 0.0, 1.0)


def test_a_latency_beyond_the_last_bound_is_not_lost() -> None:
    tally = Tally(0.0)
    tally.record_success(500.0, True, True, 0.0)
    assert tally.totals().percentile_s(0.99) >= BOUNDS_S[-1]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 14.9, 15.0, 40.0, 299.0, 1000.0]), st.integers(0, 3)),
        max_size=60,
    )
)
@settings(deadline=None, max_examples=200)
def test_recent_counts_cover_five_minutes_and_totals_cover_everything(steps: list[tuple[float, int]]) -> None:
    now, tally, seen = 1000.0, Tally(1000.0), list[tuple[float, int]]()
    for step_s, verdict in steps:
        now += step_s
        if verdict == SUCCESS:
            tally.record_success(0.1, False, True, now)
        else:
            tally.record_other([FAILURE, NEUTRAL, THROTTLED][verdict - 1], "kind", False, now)
        seen.append((now, [SUCCESS, FAILURE, NEUTRAL, THROTTLED][verdict]))
        for later_s in (0.0, 7.0, 150.0, 301.0, 5000.0):
            recent = tally.recent(now + later_s)
            for one in (SUCCESS, FAILURE, NEUTRAL, THROTTLED):
                least = sum(at > now + later_s - 285.0 and v == one for at, v in seen)
                most = sum(at >= now + later_s - 300.0 and v == one for at, v in seen)
                assert least <= recent.verdicts[one] <= most
        assert tally.totals().verdicts == [sum(v == one for _, v in seen) for one in range(4)]


def test_reading_the_tally_changes_nothing() -> None:
    tally = Tally(0.0)
    tally.record_success(1.0, False, True, 1.0)
    for now in (1.0, 100.0, 10_000.0):
        tally.recent(now)
    assert tally.recent(2.0).verdicts[SUCCESS] == 1


def test_a_neutral_call_does_not_count_for_the_other_side() -> None:
    tally = Tally(0.0)
    tally.record_success(1.0, True, True, 1.0)
    tally.record_other(NEUTRAL, "cancelled", False, 2.0)
    total = tally.totals()
    assert total.answered == 1 and total.success_rate() == 1.0 and total.slow == 1
    assert tally.last_failure_at is None and tally.errors == {"cancelled": 1}
    tally.record_other(THROTTLED, "throttled", False, 3.0)
    assert tally.totals().success_rate() == 0.5 and tally.last_failure_at == 3.0


def test_refusals_are_counted_separately_and_first_successes_feed_the_retry_budget() -> None:
    tally = Tally(0.0)
    tally.record_refusal("circuit_open", 1.0)
    tally.record_refusal("circuit_open", 2.0)
    tally.record_success(1.0, False, False, 1.0)
    assert (tally.refused, tally.refused_at) == ({"circuit_open": 2}, {"circuit_open": 2.0})
    assert sum(tally.totals().verdicts) == 1
    assert tally.first_successes == 0, "a repeat's success earns no repeat"
    tally.record_success(1.0, False, True, 1.0)
    assert tally.first_successes == 1


def test_a_bucket_ends_on_time_even_if_it_is_not_read() -> None:
    tally = Tally(0.0)
    tally.record_success(1.0, False, True, 1.0)
    tally.roll(BUCKET_S)
    assert sum(tally.bucket.verdicts) == 0 and tally.totals().verdicts[SUCCESS] == 1
