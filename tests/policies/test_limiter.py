"""koo's own limits: never 61 in any minute, all or nothing, refundable, with exact times of the next free unit."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koo.options import DAY_S
from koo.policies.limiter import Count, DayCount, Limits, SlidingCount

PERIODS = st.sampled_from([60.0, 3600.0])
GAPS = st.one_of(st.just(0.0), st.floats(0.0, 3.0), st.floats(0.0, 90.0))


def minute(limit: int, now: float, period_s: float = 60.0) -> SlidingCount:
    return SlidingCount("requests a minute", limit, period_s, now)


@pytest.mark.parametrize("start", [1000.0, 1000.5, 1017.999, 1059.99, 0.0, 3e6 + 0.1])
def test_the_61st_call_in_any_minute_is_refused(start: float) -> None:
    limits, taken, now = Limits(minute(60, start)), list[float](), start
    while now < start + 400.0:
        if limits.take(now) is None:
            taken.append(now)
        now += 0.37
    assert most_in_a_period(taken, 60.0) <= 60
    assert len(taken) > 55 * 400 / 60, "nearly 60 a minute are admitted"


def most_in_a_period(taken: list[float], period_s: float) -> int:
    """The largest number in any half-open period, wherever it begins; `taken` is in order."""
    most = first = 0
    for last, at in enumerate(taken):
        while taken[first] <= at - period_s:
            first += 1
        most = max(most, last - first + 1)
    return most


@given(gaps=st.lists(GAPS, max_size=80), limit=st.integers(1, 6), start=st.floats(0.0, 1e6), period_s=PERIODS)
@settings(deadline=None, max_examples=300)
def test_no_period_admits_more_units_than_its_limit(
    gaps: list[float], limit: int, start: float, period_s: float
) -> None:
    limits, now, taken = Limits(minute(limit, start, period_s)), start, list[float]()
    for gap in gaps:
        now += gap * period_s / 60.0
        if limits.take(now) is None:
            taken.append(now)
    assert most_in_a_period(taken, period_s) <= limit


@given(
    steps=st.lists(st.tuples(GAPS, st.none() | st.integers(0, 60)), max_size=60),
    limit=st.integers(1, 5),
    start=st.floats(0.0, 1e6),
)
@settings(deadline=None, max_examples=200)
def test_refunds_return_what_was_taken_and_no_more(
    steps: list[tuple[float, int | None]], limit: int, start: float
) -> None:
    """With refunds, real use never exceeds the limit, and the count is never less than real use."""
    count, now, kept = minute(limit, start), start, list[float]()
    limits = Limits(count)
    for gap, refunded in steps:
        now += gap
        if limits.take(now) is None:
            kept.append(now)
        if kept and refunded is not None:
            limits.refund(kept.pop(refunded % len(kept)))
        assert most_in_a_period(sorted(kept), 60.0) <= limit
        limits.roll(now)
        least = sum(at > now - 60.0 for at in kept)
        most = sum(at > now - 61.0 - 1e-6 for at in kept)
        assert least <= count.used <= most


@given(
    gaps=st.lists(GAPS, min_size=1, max_size=40),
    limit=st.integers(1, 4),
    start=st.floats(0.0, 1e5),
    refunds=st.lists(st.booleans(), min_size=40, max_size=40),
)
@settings(deadline=None, max_examples=200)
def test_resets_at_is_exact(gaps: list[float], limit: int, start: float, refunds: list[bool]) -> None:
    """A unit is usable at that time and not a moment earlier, and a refunded unit is not promised."""
    count, now, kept = minute(limit, start), start, list[float]()
    limits = Limits(count)
    for gap, refund in zip(gaps, refunds, strict=False):
        now += gap
        if limits.take(now) is None:
            kept.append(now)
        if refund and len(kept) > 1:
            limits.refund(kept.pop(0))
    count.roll(now)
    at = count.resets_at(now)
    if count.used < limit:
        assert at == now
        return
    assert now < at <= now + 61.0 + 1e-6
    assert limits.take(math.nextafter(at, 0.0)) is count
    assert limits.take(at) is None


def test_a_unit_comes_back_at_most_a_sixtieth_of_the_period_late() -> None:
    count = minute(1, 1000.25)
    limits = Limits(count)
    assert limits.take(1000.25) is None and limits.take(1000.25) is count
    assert count.resets_at(1000.25) == 1061.0


def test_all_limits_are_taken_or_none() -> None:
    short, long, day = minute(10, 0.0), minute(10, 0.0, 3600.0), DayCount("requests a day", 1, 50.0, 7)
    limits = Limits(short, long, day)
    assert limits.take(0.0) is None and limits.take(0.0) is day
    assert (short.used, long.used, day.used) == (1, 1, 1)
    limits.refund(0.0)
    assert (short.used, long.used, day.used) == (0, 0, 0)


def test_a_unit_is_usable_when_every_limit_has_one() -> None:
    short, day = minute(1, 0.0), DayCount("requests a day", 1, 5000.0, 7)
    limits = Limits(short, day)
    assert limits.usable_at(0.0) == 0.0 and limits.full(0.0) is None
    assert limits.take(0.0) is None
    assert limits.usable_at(3.0) == 5000.0 and limits.full(3.0) is day
    day.limit = 2
    assert limits.usable_at(3.0) == 61.0 and limits.full(3.0) is short


def test_a_limit_of_zero_gives_no_time_of_the_next_free_unit() -> None:
    none, short = minute(0, 0.0), minute(1, 0.0)
    limits = Limits(short, none)
    assert limits.take(0.0) is none and short.used == 0
    assert limits.usable_at(1e9) == math.inf and limits.full(0.0) is none


def test_a_refund_after_a_reset_returns_nothing() -> None:
    count = minute(2, 0.0)
    limits = Limits(count)
    limits.take(0.1)
    for one in limits.counts:
        one.clear(0.2)
    limits.refund(0.1)
    assert count.used == 0
    limits.take(0.3)
    limits.roll(10.0)
    limits.refund(0.3)
    limits.refund(0.3)
    assert count.used == 0 and count.resets_at(10.0) == 10.0


def test_an_idle_limit_shows_no_use_after_its_period() -> None:
    count = minute(5, 0.0)
    limits = Limits(count, DayCount("requests a day", 5, 100.0, 1))
    for _ in range(5):
        limits.take(0.0)
    limits.roll(3600.0)
    assert [one.used for one in limits.counts] == [0, 0]


class Plain:
    """The same counts without units granted ahead: every call checks every count."""

    def __init__(self, *counts: Count) -> None:
        self.counts = counts

    def take(self, now: float) -> Count | None:
        for count in self.counts:
            count.roll(now)
        full = next((count for count in self.counts if count.used >= count.limit), None)
        for count in self.counts:
            count.used += full is None
        return full


ACTS = st.sampled_from(
    ["take", "take", "take", "burst", "refund", "look", "ask", "clear", "restore", "day ends"]
)


@given(
    steps=st.lists(st.tuples(GAPS | st.floats(0.0, 4000.0), ACTS, st.integers(0, 999)), max_size=60),
    sizes=st.tuples(*[st.integers(0, 9) | st.integers(250, 600)] * 3),
    start=st.floats(0.0, 1e6),
)
@settings(deadline=None, max_examples=400)
def test_units_granted_ahead_change_no_decision(
    steps: list[tuple[float, str, int]], sizes: tuple[int, int, int], start: float
) -> None:
    """At any moment the counts are the same as if every call had checked each of them."""

    def three() -> tuple[Count, ...]:
        short, long = minute(sizes[0], start), minute(sizes[1], start, 3600.0)
        return short, long, DayCount("requests a day", sizes[2], start + 5000.0, 7)

    limits, plain, now, kept = Limits(*three()), Plain(*three()), start, list[float]()
    for gap, act, pick in steps:
        now += gap
        for _ in range({"take": 1, "burst": pick}.get(act, 0)):
            full, other = limits.take(now), plain.take(now)
            assert (full and full.name) == (other and other.name)
            if full is None:
                kept.append(now)
        if act == "refund" and kept:
            at = kept.pop(pick % len(kept))
            limits.refund(at)
            for count in plain.counts:
                count.refund(at)
        elif act == "ask":
            assert limits.usable_at(now) == Limits(*plain.counts).usable_at(now)
        elif act in ("clear", "restore", "day ends"):
            change(act, limits.counts, pick, now)
            change(act, plain.counts, pick, now)
        if act in ("look", "ask"):
            Limits(*plain.counts).roll(now)
            limits.roll(now)
            assert [count.used for count in limits.counts] == [count.used for count in plain.counts]


def change(act: str, counts: tuple[Count, ...], pick: int, now: float) -> None:
    """Change counts as an operator, a restart or the monitor does."""
    if act == "clear":
        counts[pick % len(counts)].clear(now)
    elif act == "restore":
        # What is restored belongs to today. Added to a day that is over, it would be dropped with that day.
        counts[-1].roll(now)
        counts[-1].used += pick % 10
    elif act == "day ends":
        for day in counts:
            if isinstance(day, DayCount):
                day.roll(now)
                day.anchor(now + pick, day.day)


class Watched(DayCount):
    """A count that records how often any attribute is read."""

    __slots__ = ()
    looks = 0

    def __getattribute__(self, name: str) -> Any:
        Watched.looks += 1
        return super().__getattribute__(name)


def test_a_call_does_not_read_the_counts_while_units_are_left() -> None:
    """Each count read would be a few more cache lines per call, which slows a process with ten thousand guards."""
    limits = Limits(Watched("requests a day", 1000, 50.0, 7))
    assert limits.take(0.0) is None
    before = Watched.looks
    assert all(limits.take(1.0) is None for _ in range(200)) and Watched.looks == before
    assert limits.counts[0].used == 201


# ── the day ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refund_of_yesterdays_unit_does_not_count_today() -> None:
    day = DayCount("requests a day", 1, 50.0, 7)
    limits = Limits(day)
    assert limits.take(49.0) is None and limits.take(49.0) is day and day.resets_at(49.0) == 50.0
    assert limits.take(50.0) is None and day.day == 8
    limits.refund(49.0)
    assert day.used == 1
    limits.refund(50.0)
    assert day.used == 0


def test_after_days_without_calls_only_one_days_units_are_available() -> None:
    day = DayCount("requests a day", 1, 50.0, 7)
    limits = Limits(day)
    now = 50.0 + 3 * DAY_S + 10.0
    assert limits.take(now) is None and limits.take(now) is day
    assert day.day == 11 and day.resets_at(now) == 50.0 + 4 * DAY_S


def test_a_count_continues_after_a_restart() -> None:
    day = DayCount("requests a day", 3, 50.0, 7, used=2)
    limits = Limits(day)
    assert limits.take(0.0) is None and limits.take(0.0) is day


@given(
    steps=st.lists(
        st.tuples(st.floats(0.0, 2.2 * DAY_S), st.floats(-30.0, 30.0), st.booleans()), max_size=30
    ),
    limit=st.integers(1, 3),
)
@settings(deadline=None, max_examples=200)
def test_no_utc_day_admits_more_units_than_its_limit_although_the_clocks_drift(
    steps: list[tuple[float, float, bool]], limit: int
) -> None:
    """Wall time drifts by up to half a minute at each step, and a tick corrects the end of the day."""
    now, drift_s = 5000.0, 0.0
    day = DayCount("requests a day", limit, now + DAY_S, 0)
    limits, taken = Limits(day), dict[int, int]()
    for step_s, by_s, ticks in steps:
        now += step_s
        if ticks:
            drift_s += by_s
            wall = now - 5000.0 + drift_s
            number = int(wall // DAY_S)
            day.roll(now)
            day.anchor(now + (number + 1) * DAY_S - wall, number)
        if limits.take(now) is None:
            taken[day.day] = taken.get(day.day, 0) + 1
    assert max(taken.values(), default=0) <= limit
    assert list(taken) == sorted(taken), "no day returns after its end"


def test_a_clock_set_back_over_midnight_does_not_start_the_day_again() -> None:
    day = DayCount("requests a day", 1, 100.0, 7)
    limits = Limits(day)
    assert limits.take(0.0) is None and limits.counts == (day,)
    day.anchor(50.0, 7)
    day.roll(60.0)
    assert day.day == 8 and limits.take(60.0) is None and limits.counts == (day,)
    day.anchor(100.0, 7)
    assert limits.take(70.0) is day and limits.take(100.0) is day
