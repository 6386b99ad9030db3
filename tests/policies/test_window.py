"""The window: which calls it counts, and when it drops them."""

from __future__ import annotations

import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from koo.policies.window import Window

STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.9, 3.0, 3.1, 29.0, 30.0, 33.0, 400.0]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=60,
)


@given(steps=STEPS, buckets=st.sampled_from([2, 3, 10, 30]))
@settings(deadline=None, max_examples=200)
def test_the_window_counts_recent_calls_and_drops_old_ones(
    steps: list[tuple[float, bool, bool]], buckets: int
) -> None:
    """Calls younger than the window less one bucket all count; calls older than the window do not."""
    now, bucket_s = 1000.0, 30.0 / buckets
    window = Window(30.0, buckets, now)
    seen: list[tuple[float, bool, bool]] = []
    for step_s, failed, slow in steps:
        now += step_s
        window.record(failed, slow, now)
        seen.append((now, failed, slow))
        young = [one for one in seen if one[0] > now - (30.0 - bucket_s) + 1e-9]
        old = [one for one in seen if one[0] > now - 30.0 - 1e-9]
        assert len(young) <= window.calls <= len(old)
        assert sum(one[1] for one in young) <= window.failures <= sum(one[1] for one in old)
        assert sum(one[2] for one in young) <= window.slow <= sum(one[2] for one in old)
        assert now < window.rolls_at <= now + bucket_s + 1e-9
        assert len(pickle.dumps(window)) < 500 + 20 * buckets, "it does not grow"


@given(steps=STEPS, at=st.lists(st.sampled_from([0.0, 1.0, 3.0, 17.0, 100.0]), max_size=10))
@settings(deadline=None, max_examples=100)
def test_rolling_in_between_makes_no_difference(
    steps: list[tuple[float, bool, bool]], at: list[float]
) -> None:
    """A tick rolls the window between calls; the counts are the same without it."""
    now, one, other = 0.0, Window(30.0, 10, 0.0), Window(30.0, 10, 0.0)
    for index, (step_s, failed, slow) in enumerate(steps):
        if step_s >= 30.0:
            continue  # after a whole window without a call the buckets start at that call, wherever it is
        now += step_s
        if index < len(at):
            one.roll(now)
        for window in (one, other):
            window.record(failed, slow, now)
        assert (one.calls, one.failures, one.slow) == (other.calls, other.failures, other.slow)


def test_the_window_drops_one_bucket_at_a_time() -> None:
    window = Window(30.0, 10, 0.0)
    for second in range(30):
        window.record(True, False, float(second))
    assert window.failures == 30
    window.record(False, False, 30.0)
    assert (window.calls, window.failures) == (28, 27)
    window.record(False, False, 300.0)
    assert (window.calls, window.failures) == (1, 0)


def test_a_cleared_window_is_empty() -> None:
    window = Window(30.0, 10, 0.0)
    window.record(True, True, 5.0)
    window.clear(17.0)
    assert (window.calls, window.failures, window.slow, window.rolls_at) == (0, 0, 0, 20.0)
    window.record(True, False, 20.0)
    assert (window.calls, window.failures) == (1, 1)
