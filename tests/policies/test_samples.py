"""Samples add up over time and over processes, keep the worst state, and survive storage unchanged."""

from __future__ import annotations

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.policies.samples import COUNTS, GRAVITY, LEVELS, SAVINGS, Sample, Span, extend, unite
from koo.policies.tally import BOUNDS_S, Bucket

numbers = st.integers(0, 10**9)
samples = st.builds(
    Sample,
    st.sampled_from(sorted(GRAVITY)),
    **dict.fromkeys(COUNTS + LEVELS, numbers),
    latency=st.dictionaries(st.integers(0, len(BOUNDS_S)), st.integers(1, 10**6), max_size=4),
    saved=st.dictionaries(st.sampled_from(SAVINGS), st.integers(1, 10**18), max_size=5),
)


@given(samples)
def test_a_stored_sample_comes_back_unchanged(sample: Sample) -> None:
    assert Sample.unpacked(sample.packed()) == sample


def test_an_idle_minute_takes_almost_no_space() -> None:
    assert Sample("healthy").packed() == ["healthy"]


@pytest.mark.parametrize(
    "values",
    [
        [],
        ["healthy", "x"],
        ["healthy", *[0] * 10, [1]],
        ["healthy", *[0] * 10, 5],
        ["healthy", *[0] * 10, [], ["1"]],
    ],
)
def test_values_that_are_not_a_sample_raise(values: list[object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Sample.unpacked(values)


@given(samples, samples)
def test_a_following_span_adds_counts_and_keeps_the_highest_level(one: Sample, later: Sample) -> None:
    before = deepcopy(one)
    one.follow(later)
    assert one.calls == before.calls + later.calls
    assert one.used == max(before.used, later.used)
    assert GRAVITY[one.state] == max(GRAVITY[before.state], GRAVITY[later.state])
    assert sum(one.latency.values()) == sum(before.latency.values()) + sum(later.latency.values())


@given(samples, samples)
def test_the_levels_of_two_processes_are_added(one: Sample, other: Sample) -> None:
    used, waiting = one.used, one.waiting
    one.join(other)
    assert (one.used, one.waiting) == (used + other.used, waiting + other.waiting)


@given(samples, samples)
def test_the_counts_since_an_earlier_sample_are_the_difference(before: Sample, more: Sample) -> None:
    after = deepcopy(before)
    after.follow(more)
    new = after.since(before)
    assert [getattr(new, name) for name in COUNTS] == [getattr(more, name) for name in COUNTS]
    assert (new.latency, new.saved) == (more.latency, more.saved)


@given(samples, samples)
def test_a_count_that_fell_gives_zero_and_never_less(before: Sample, after: Sample) -> None:
    new = after.since(before)
    assert all(getattr(new, name) >= 0 for name in COUNTS) and all(n > 0 for n in new.latency.values())
    assert all(n > 0 for n in new.saved.values())


def test_the_previous_release_can_read_a_sample_with_savings() -> None:
    """The previous release reads the numbers and the cells by position, and ignores what follows them."""
    packed = Sample("healthy", successes=3, latency={4: 3}, saved={"refused": 7}).packed()
    assert packed[1] == 3 and packed[11] == [4, 3] and len(packed) == 13


def test_a_samples_percentile_equals_the_tallys() -> None:
    bucket = Bucket()
    for cell, count in ((3, 50), (7, 45), (20, 5)):
        bucket.latency[cell] = count
    sample = Sample(successes=100, latency={3: 50, 7: 45, 20: 5})
    assert sample.percentile_s(0.95) == bucket.percentile_s(0.95)
    assert Sample().percentile_s(0.95) is None


def test_spans_are_extended_and_united_by_component() -> None:
    span: Span = {"ai:a": Sample("healthy", successes=1, used=2)}
    extend(span, {"ai:a": Sample("unhealthy", successes=2, used=1), "ai:b": Sample(failures=1)})
    assert span == {"ai:a": Sample("unhealthy", successes=3, used=2), "ai:b": Sample(failures=1)}
    unite(span, {"ai:a": Sample(used=5)})
    assert span["ai:a"].used == 7
