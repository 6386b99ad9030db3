"""Pauses between attempts, and the budget that bounds the load they add."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koo.options import RetryOptions
from koo.policies.backoff import pause_s
from koo.policies.retry_budget import RetryBudget

DRAWS = st.floats(0.0, 1.0, exclude_max=True)


@given(attempt=st.integers(1, 100_000), draw=DRAWS, base_s=st.floats(0.001, 3600), cap_s=st.floats(0.001, 1e6),
       multiplier=st.floats(1.0, 100.0))  # fmt: skip
@settings(deadline=None, max_examples=300)
def test_a_pause_is_between_zero_and_the_cap(
    attempt: int, draw: float, base_s: float, cap_s: float, multiplier: float
) -> None:
    """This holds for any number of attempts: in other libraries, an exponent that overflowed has become a negative
    sleep.
    """
    options = RetryOptions(base_s=base_s, cap_s=cap_s, multiplier=multiplier)
    pause = pause_s(options, attempt, lambda: draw)
    assert 0.0 <= pause <= min(cap_s, base_s * multiplier ** min(attempt - 1, 30))


@pytest.mark.parametrize(
    ("attempt", "most"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (6, 30.0), (5000, 30.0)]
)
def test_full_jitter_covers_the_whole_growing_range(attempt: int, most: float) -> None:
    assert pause_s(RetryOptions(), attempt, lambda: 1.0) == most
    assert pause_s(RetryOptions(), attempt, lambda: 0.25) == most / 4
    assert pause_s(RetryOptions(), attempt, lambda: 0.0) == 0.0


@given(attempt=st.integers(1, 50), draw=DRAWS, hint_s=st.floats(0.01, 1e6))
def test_the_pause_is_at_least_the_servers_hint_and_little_longer(
    attempt: int, draw: float, hint_s: float
) -> None:
    pause = pause_s(RetryOptions(), attempt, lambda: draw, hint_s)
    assert hint_s <= pause <= max(30.0, 1.05 * hint_s)


class Successes:
    """A guard's count of successes."""

    def __init__(self) -> None:
        self.first_successes = 0


def budget_of(*earners: Successes, **options: float) -> RetryBudget:
    budget = RetryBudget(RetryOptions(**options), 0.0)  # type: ignore[arg-type]
    for earner in earners:
        budget.join(earner)
    return budget


def test_an_empty_bucket_refuses_and_refills_by_a_tenth_per_success_and_one_per_second() -> None:
    guard = Successes()
    budget = budget_of(guard)
    assert sum(budget.take(0.0) for _ in range(100)) == 20, "it holds twenty and starts full"
    guard.first_successes = 9
    assert not budget.take(0.0)
    guard.first_successes = 10
    assert budget.take(0.0), "ten successes earn one repeat"
    assert sum(budget.take(3.0) for _ in range(100)) == 3, "one per second"


def test_all_guards_of_a_dependency_earn_for_one_bucket_including_removed_ones() -> None:
    one, other = Successes(), Successes()
    budget = budget_of(one, other, budget_tokens=1000, budget_per_s=0)
    while budget.take(0.0):
        pass
    one.first_successes, other.first_successes = 10, 20
    assert sum(budget.take(0.0) for _ in range(100)) == 3
    budget.leave(other)
    assert not budget.take(0.0)
    one.first_successes = 20
    assert sum(budget.take(0.0) for _ in range(100)) == 1


def test_a_repeat_that_was_never_made_returns_its_token() -> None:
    budget = budget_of(budget_tokens=1)
    assert budget.take(0.0) and not budget.take(0.0)
    budget.give_back()
    budget.give_back()
    assert budget.take(0.0) and not budget.take(0.0), "it never exceeds its size"


def test_a_bucket_of_size_zero_allows_no_repeat() -> None:
    guard = Successes()
    budget = budget_of(guard, budget_tokens=0)
    guard.first_successes = 10**9
    assert not budget.take(1e9)


@given(
    steps=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 50), st.integers(0, 30)), max_size=50),
    tokens=st.floats(0.0, 40.0),
    share=st.floats(0.0, 1.0),
    floor=st.floats(0.0, 3.0),
)
@settings(deadline=None, max_examples=200)
def test_repeats_never_exceed_the_share_of_successes_plus_the_floor_plus_the_bucket(
    steps: list[tuple[float, int, int]], tokens: float, share: float, floor: float
) -> None:
    """This is checked for every stretch of time, not only from the beginning."""
    guard, now, granted = Successes(), 0.0, 0
    budget = budget_of(guard, budget_tokens=tokens, budget_per_success=share, budget_per_s=floor)
    marks = [(0.0, 0, 0)]
    for step_s, succeeded, wanted in steps:
        now, guard.first_successes = now + step_s, guard.first_successes + succeeded
        granted += sum(budget.take(now) for _ in range(wanted))
        for at, had, before in marks:
            assert (
                granted - before <= tokens + share * (guard.first_successes - had) + floor * (now - at) + 1e-6
            )
        assert budget.tokens >= 0.0
        marks.append((now, guard.first_successes, granted))
