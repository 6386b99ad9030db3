"""The day's money in memory: the cap is never passed, no hold ends twice, each cent is in the books of its own day."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from koo.options import DAY_S
from koo.policies.budget import Budget, Held

BEGIN_S = 5_000.0
TODAY = 20_000


def budget(limit: str | None = "1.00", settled: str = "0") -> Budget:
    return Budget(None if limit is None else Decimal(limit), BEGIN_S + DAY_S, TODAY, Decimal(settled))


def held(budget: Budget, amount: str, now: float = BEGIN_S) -> Held:
    hold = budget.hold(Decimal(amount), now)
    assert hold is not None
    return hold


def numbers(budget: Budget) -> tuple[object, ...]:
    return budget.today.number, budget.today.settled_usd, budget.today.held_usd


def test_twenty_holds_of_five_cents_fill_a_dollar_and_the_next_is_refused() -> None:
    money = budget()
    for _ in range(20):
        held(money, "0.05")
    assert money.hold(Decimal("0.05"), BEGIN_S) is None
    assert numbers(money) == (TODAY, 0, 1)


def test_a_refused_hold_takes_nothing() -> None:
    money = budget()
    assert money.hold(Decimal("1.000001"), BEGIN_S) is None
    held(money, "1.00")


def test_a_settlement_gives_back_what_was_held_too_much() -> None:
    money = budget()
    assert money.settle(held(money, "1.00"), Decimal("0.40"))
    assert numbers(money) == (TODAY, Decimal("0.40"), 0)
    assert money.hold(Decimal("0.61"), BEGIN_S) is None
    held(money, "0.60")


def test_a_release_gives_all_back() -> None:
    money = budget()
    assert money.release(held(money, "1.00"))
    assert numbers(money) == (TODAY, 0, 0)


@pytest.mark.parametrize("first", ["settle", "release"])
def test_the_second_end_of_a_hold_books_nothing(first: str) -> None:
    money = budget()
    hold = held(money, "0.50")
    if first == "settle":
        money.settle(hold, Decimal("0.25"))
    else:
        money.release(hold)
    before = numbers(money)
    assert not money.settle(hold, Decimal("0.50"))
    assert not money.release(hold)
    assert numbers(money) == before


def test_a_bill_above_its_hold_is_booked_whole_and_refuses_further_holds() -> None:
    money = budget()
    money.settle(held(money, "0.50"), Decimal("3.00"))
    assert numbers(money) == (TODAY, Decimal("3.00"), 0)
    assert money.hold(Decimal("0.01"), BEGIN_S) is None


def test_what_costs_nothing_goes_on_when_the_money_is_gone() -> None:
    money = budget(settled="3.00")
    assert money.hold(Decimal(0), BEGIN_S) is not None


def test_without_a_limit_everything_fits() -> None:
    money = budget(limit=None)
    held(money, "1000000")
    held(money, "1000000")


def test_a_hold_settled_after_midnight_is_booked_to_the_day_in_which_it_was_made() -> None:
    money = budget()
    late = held(money, "0.80", BEGIN_S + DAY_S - 1)
    yesterday = money.today
    held(money, "0.10", BEGIN_S + DAY_S)  # Today begins with this.
    assert money.settle(late, Decimal("0.70"))
    assert (yesterday.settled_usd, yesterday.held_usd) == (Decimal("0.70"), Decimal(0))
    assert numbers(money) == (TODAY + 1, 0, Decimal("0.10"))


def test_the_day_ends_at_midnight_not_a_moment_later() -> None:
    money = budget(settled="1.00")
    assert money.hold(Decimal("0.01"), BEGIN_S + DAY_S - 0.001) is None
    assert money.hold(Decimal("0.01"), BEGIN_S + DAY_S) is not None


def test_days_without_a_call_count_too() -> None:
    money = budget(settled="1.00")
    held(money, "0.01", BEGIN_S + 3.5 * DAY_S)
    assert money.today.number == TODAY + 3
    assert money.rolls_at == BEGIN_S + 4 * DAY_S


def test_a_tick_moves_the_days_end_with_the_wall_clock() -> None:
    money = budget(settled="1.00")
    money.anchor(BEGIN_S + 60, TODAY)  # The wall clock was set forward.
    assert money.hold(Decimal("0.01"), BEGIN_S + 59) is None
    assert money.hold(Decimal("0.01"), BEGIN_S + 60) is not None


def test_a_tick_that_says_it_is_a_later_day_begins_that_day() -> None:
    money = budget(settled="1.00")
    money.anchor(BEGIN_S + 60, TODAY + 2)
    assert numbers(money) == (TODAY + 2, 0, 0)
    assert money.rolls_at == BEGIN_S + 60


def test_a_wall_clock_that_is_set_back_a_day_does_not_hand_out_the_same_money_twice() -> None:
    money = budget(settled="1.00")
    money.anchor(BEGIN_S + 60, TODAY - 1)
    assert numbers(money) == (TODAY, Decimal("1.00"), 0)
    assert money.hold(Decimal("0.01"), BEGIN_S + 61) is None


@pytest.mark.parametrize("amount", ["-0.01", "Infinity", "1e30"])
def test_what_is_no_money_can_be_neither_held_nor_booked(amount: str) -> None:
    money = budget(limit=None)
    with pytest.raises(ValueError, match="cannot be held"):
        money.hold(Decimal(amount), BEGIN_S)
    hold = held(money, "0.10")
    with pytest.raises(ValueError, match="cannot be booked"):
        money.settle(hold, Decimal(amount))
    assert numbers(money) == (TODAY, 0, Decimal("0.10"))
    assert money.release(hold)


def test_nan_is_no_money() -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        budget().hold(Decimal("NaN"), BEGIN_S)


def test_a_programs_own_decimal_context_rounds_no_money_away() -> None:
    money = budget(limit="2.00")
    with localcontext() as context:
        context.prec = 2
        for _ in range(3):
            money.release(held(money, "0.1234"))
            money.settle(held(money, "0.6011"), Decimal("0.6011"))
        assert money.hold(Decimal("0.1968"), BEGIN_S) is None  # 2.0001
        assert money.hold(Decimal("0.1967"), BEGIN_S) is not None
    assert numbers(money) == (TODAY, Decimal("1.8033"), Decimal("0.1967"))


amounts = st.decimals(min_value=0, max_value=2, places=4)


class BudgetModel(RuleBasedStateMachine):
    """Any order of holds, ends, midnights and ticks, beside a list of all holds that is added up anew each time."""

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.limit = Fraction(1)
        self.now = BEGIN_S
        self.budget = budget()
        self.day = TODAY
        self.ends_at = BEGIN_S + DAY_S
        self.made: list[tuple[int, Held]] = []  # all holds ever, with their days
        self.open: set[int] = set()
        self.bills: dict[int, Fraction] = {}
        self.overspent: set[int] = set()

    def sums(self, day: int) -> tuple[Fraction, Fraction]:
        settled = held = Fraction(0)
        for number, (of_day, hold) in enumerate(self.made):
            if of_day == day:
                settled += self.bills.get(number, Fraction(0))
                held += Fraction(hold.amount_usd) if number in self.open else 0
        return settled, held

    @rule(target=holds, amount=amounts)
    def hold(self, amount: Decimal) -> int:
        settled, held = self.sums(self.day)
        fits = settled + held + Fraction(amount) <= self.limit or amount == 0
        hold = self.budget.hold(amount, self.now)
        assert (hold is not None) == fits
        if hold is None:
            return -1
        self.made.append((self.day, hold))
        self.open.add(len(self.made) - 1)
        return len(self.made) - 1

    @rule(number=holds, share=st.fractions(min_value=0, max_value=1, max_denominator=1000))
    def settle(self, number: int, share: Fraction) -> None:
        if number < 0:
            return
        bound = self.made[number][1].amount_usd
        self.book(number, (bound * share.numerator / 1000).quantize(Decimal("0.0001")))

    @rule(number=holds, more=st.decimals(min_value="0.01", max_value=5, places=2))
    def overbill(self, number: int, more: Decimal) -> None:
        if number >= 0 and number in self.open:
            self.overspent.add(self.made[number][0])
            self.book(number, self.made[number][1].amount_usd + more)

    def book(self, number: int, bill: Decimal) -> None:
        bound = self.made[number][1].amount_usd
        if bill > bound:
            self.overspent.add(self.made[number][0])
        assert self.budget.settle(self.made[number][1], bill) == (number in self.open)
        if number in self.open:
            self.open.remove(number)
            self.bills[number] = Fraction(bill)

    @rule(number=consumes(holds))
    def release(self, number: int) -> None:
        if number < 0:
            return
        assert self.budget.release(self.made[number][1]) == (number in self.open)
        self.open.discard(number)

    @rule(hours=st.integers(1, 60))
    def time_passes(self, hours: int) -> None:
        self.now += hours * 3600
        while self.now >= self.ends_at:
            self.day += 1
            self.ends_at += DAY_S
        self.budget.roll(self.now)

    @rule(drift_s=st.integers(-1800, 1800))
    @precondition(lambda self: self.ends_at - self.now > 3600)
    def tick(self, drift_s: int) -> None:
        self.ends_at += drift_s
        self.budget.anchor(self.ends_at, self.day)

    @invariant()
    def the_books_are_the_sum_of_all_holds(self) -> None:
        for day in {of_day for of_day, _ in self.made}:
            mine = next(hold.day for of_day, hold in self.made if of_day == day)
            assert (Fraction(mine.settled_usd), Fraction(mine.held_usd)) == self.sums(day)

    @invariant()
    def settled_and_held_are_never_above_the_limit(self) -> None:
        today = self.budget.today
        assert today.number == self.day
        if self.day not in self.overspent:
            assert today.settled_usd + today.held_usd <= self.limit


TestBudgetModel = BudgetModel.TestCase
TestBudgetModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
