"""Purses and treasuries: each rule, and a random world that finds a fault if a rule is removed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from koo.policies import treasury
from koo.policies.purse import Budget, Hold, Purse, Refusal, Waiter
from koo.policies.purses import PATIENCE, Purses
from koo.policies.treasury import (
    DAY_MS,
    ENDED,
    FREEZE_MS,
    LIMIT_STANDS_MS,
    Ask,
    Beat,
    Key,
    Met,
    Reply,
    Rows,
    Totals,
    Treasury,
    period_at,
    starts_ms,
)
from koo.storage import treasuries
from koo.storage.treasuries import MemoryTreasuries
from tests.policies.purse_world import BEAT_MS, BOUND, Broken, World

NOON_MS = 20_000 * DAY_MS + DAY_MS // 2
KINDS = ("calm", "rough", "wild")


class Party:
    """Some processes on one store, whose beats are answered immediately when `turn` is called."""

    def __init__(self, make: Callable[[], MemoryTreasuries] = MemoryTreasuries, **limits: int | None) -> None:
        self.store = make()
        self.now_ms = NOON_MS
        self.words = map(str, itertools.count(1))
        self.limits = limits

    def process(self, **limits: int | None) -> Purses:
        purses = Purses(
            lambda: next(self.words), beat_s=1.0, wall_ms=self.now_ms, now=self.now, ring=lambda: None
        )
        for name, limit in (self.limits | limits).items():
            purses.add(Budget(name, limit), self.now)
        return purses

    @property
    def now(self) -> float:
        return self.now_ms / 1000

    def turn(self, *processes: Purses, after_ms: int = BEAT_MS) -> None:
        """One beat later, send each process's beat and pass it the reply."""
        self.now_ms += after_ms
        for purses in processes:
            self.speak(purses)

    def speak(self, purses: Purses) -> Reply:
        answer = self.store.receive(purses.beat(self.now), self.now_ms, BEAT_MS)
        purses.hear(answer, self.now)
        return answer

    def ask(self, purses: Purses, amount: int, *names: str, patience: int = PATIENCE) -> list[Hold | Refusal]:
        """Wait for a hold; the decision is added to the list."""
        decided: list[Hold | Refusal] = []
        budgets = tuple(purses.budgets[name] for name in names or self.limits)
        purses.wait(Waiter(budgets, amount, patience, decided.append))
        return decided

    def row(self, name: str) -> Treasury:
        return self.store.treasuries[Key(name, period_at("day", self.now_ms))]


def held(decided: list[Hold | Refusal]) -> Hold:
    (hold,) = decided
    assert isinstance(hold, Hold)
    return hold


# ---- one process ---------------------------------------------------------------------------------------------------


def test_a_purse_starts_empty_and_a_call_waits_for_one_reply() -> None:
    party = Party(day=100)
    purses = party.process()
    assert purses.hold((purses.budgets["day"],), 10, party.now) is None
    decided = party.ask(purses, 10)
    party.turn(purses)
    assert held(decided).amount == 10
    assert party.row("day").booked == 10


def test_the_unspent_part_of_a_single_call_is_returned_with_its_settlement() -> None:
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 10)
    party.turn(purses)
    purses.settle(held(decided), 3)
    party.turn(purses, after_ms=1)
    assert (party.row("day").booked, party.row("day").spent) == (3, 3)
    assert not purses.has_news()


def test_a_released_call_leaves_nothing_booked() -> None:
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 10)
    party.turn(purses)
    purses.release(held(decided))
    party.turn(purses, after_ms=1)
    assert (party.row("day").booked, party.row("day").spent) == (0, 0)


@pytest.mark.parametrize(("trip_ms", "calls"), [(0, 40), (BEAT_MS, 80)])
def test_a_purse_keeps_more_if_the_store_is_distant(trip_ms: int, calls: int) -> None:
    """A purse keeps two beats of spending, and a beat includes the trip: otherwise calls would wait for a distant
    store.
    """
    party = Party(day=100_000)
    purses = party.process()
    waiting: list[list[Hold | Refusal]] = []
    for _ in range(6):
        answer = party.store.receive(purses.beat(party.now), party.now_ms, BEAT_MS)
        party.now_ms += trip_ms
        purses.hear(answer, party.now)
        for decided in waiting:
            purses.settle(held(decided), 10)
        waiting = [party.ask(purses, 10) for _ in range(20 * (BEAT_MS + trip_ms) // BEAT_MS)]
        party.now_ms += BEAT_MS
    party.speak(purses)
    held_at_once = 0
    while purses.hold((purses.budgets["day"],), 10, party.now) is not None:
        held_at_once += 1
    assert held_at_once == calls


def test_a_long_call_is_reported_once() -> None:
    """Otherwise a process with one long stream would write ten times a second for nothing."""
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 10)
    party.turn(purses)
    assert purses.has_news(), "it is held"
    party.turn(purses)
    assert not purses.has_news()
    party.turn(purses)
    purses.release(held(decided))
    assert purses.has_news(), "the end of the hold is reported"
    party.turn(purses)
    assert not purses.has_news()


def test_with_room_a_call_is_held_and_settled_without_the_store() -> None:
    party = Party(day=1000)
    purses = party.process()
    budgets = (purses.budgets["day"],)
    for _ in range(3):  # After two beats with twenty calls each, it keeps two beats of spending.
        decided = [party.ask(purses, 10) for _ in range(20)]
        party.turn(purses)
        for one in decided:
            purses.settle(held(one), 5)
    party.turn(purses)
    before = party.store.processes[purses.name].number
    hold = purses.hold(budgets, 10, party.now)
    assert hold is not None
    purses.settle(hold, 5)
    assert party.store.processes[purses.name].number == before
    assert budgets[0].purse.room > 0


def test_a_bill_above_its_bound_is_booked_above_the_limit_and_stops_further_grants() -> None:
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 90)
    party.turn(purses)
    purses.settle(held(decided), 130)
    party.turn(purses)
    assert (party.row("day").booked, party.row("day").spent) == (130, 130)
    refused = party.ask(purses, 1)
    party.turn(purses)
    assert refused == [Refusal.NEVER]


def test_a_smaller_bound_frees_the_difference() -> None:
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 90)
    party.turn(purses)
    hold = held(decided)
    purses.shrink(hold, 20)
    purses.shrink(hold, 50)  # A larger bound changes nothing.
    assert hold.amount == 20
    assert purses.hold((purses.budgets["day"],), 70, party.now) is not None
    purses.settle(hold, 20)
    assert purses.budgets["day"].purse.room == 0


def test_a_call_is_held_in_all_its_budgets_or_in_none() -> None:
    party = Party(day=100, tag=30)
    purses = party.process()
    decided = party.ask(purses, 20, "day", "tag")
    too_much = party.ask(purses, 20, "day", "tag", patience=1)
    party.turn(purses)
    assert held(decided).amount == 20
    party.turn(purses)
    assert too_much == [Refusal.NOT_MET]
    assert party.row("day").booked == 20
    assert purses.budgets["day"].purse.held == 20


def test_a_call_that_can_never_fit_is_refused_immediately_and_recalls_nothing() -> None:
    party = Party(day=100)
    rich, poor = party.process(), party.process()
    decided = party.ask(rich, 40)
    party.turn(rich)
    refused = party.ask(poor, 101)
    party.turn(poor)
    assert refused == [Refusal.NEVER]
    assert party.row("day").recall_at_ms == 0
    assert held(decided).amount == 40


def test_a_waiter_with_a_smaller_need_is_not_refused_with_the_first() -> None:
    party = Party(day=100)
    other, purses = party.process(), party.process()
    party.ask(other, 60)
    party.turn(other)
    large, small = party.ask(purses, 50, patience=1), party.ask(purses, 30, patience=1)
    party.turn(purses)
    assert large == [Refusal.NOT_MET] and small == []
    party.turn(purses)
    assert held(small).amount == 30


def test_early_beats_do_not_use_up_a_callers_patience() -> None:
    """The money that it waits for is recalled from other processes, whose beats come at their usual pace."""
    party = Party(day=100)
    rich, poor = party.process(), party.process()
    decided = party.ask(rich, 60)
    party.turn(rich)
    waits = party.ask(poor, 50)
    for _ in range(2 * PATIENCE):
        party.turn(poor, after_ms=BEAT_MS // 20)
    assert waits == []
    rich.release(held(decided))
    party.turn(rich, poor)
    assert held(waits).amount == 50


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_patient_caller_waits_as_long_as_running_calls_hold_the_money(is_elsewhere: bool) -> None:
    """A long list must not be refused by its own calls while most of the budget is unspent."""
    party = Party(day=100)
    purses = party.process()
    busy = party.process() if is_elsewhere else purses
    running = party.ask(busy, 90)
    party.turn(busy)
    patient, impatient = party.ask(purses, 50), party.ask(purses, 50, patience=1)
    for _ in range(2 * PATIENCE):
        party.turn(busy, purses)
    assert impatient == [Refusal.NOT_MET] and patient == []
    busy.settle(held(running), 10)
    party.turn(busy, purses)
    assert held(patient).amount == 50


def test_a_patient_caller_is_refused_when_running_calls_have_spent_what_it_needs() -> None:
    party = Party(day=100)
    purses = party.process()
    running = party.ask(purses, 90)
    party.turn(purses)
    patient = party.ask(purses, 50)
    purses.settle(held(running), 60)
    party.turn(purses)
    assert patient == [Refusal.NEVER]


def test_a_caller_that_has_left_is_not_in_the_next_request() -> None:
    party = Party(day=100)
    purses = party.process()
    decided: list[Hold | Refusal] = []
    waiter = Waiter((purses.budgets["day"],), 10, PATIENCE, decided.append)
    purses.wait(waiter)
    purses.leave(waiter)
    party.turn(purses)
    assert decided == [] and party.row("day").booked == 0


def test_a_budget_is_removed_only_if_it_was_not_used_in_the_period() -> None:
    """A purse of that name that started at zero would report totals below those that the store has."""
    party = Party(day=100)
    purses = party.process()
    waiter = Waiter((purses.budgets["day"],), 10, PATIENCE, lambda verdict: None)
    purses.wait(waiter)
    assert not purses.forget("day"), "a call is waiting for it"
    beat = purses.beat(party.now)
    purses.leave(waiter)
    assert not purses.forget("day"), "the beat in flight may bring a grant"
    purses.hear(party.store.receive(beat, party.now_ms, BEAT_MS), party.now)
    party.turn(purses)
    assert not purses.forget("day"), "it was granted something, which it has returned"
    party.turn(purses, after_ms=DAY_MS)
    party.turn(purses)
    assert purses.forget("day") and purses.budgets == {}
    party.turn(purses)
    purses.add(Budget("day", 100), party.now)
    decided = party.ask(purses, 10)
    party.turn(purses)
    assert held(decided).amount == 10 and party.row("day").booked == 10


def test_a_budget_without_a_limit_is_never_refused_and_its_spending_is_counted() -> None:
    party = Party(requests=None)
    purses = party.process()
    hold = purses.hold((purses.budgets["requests"],), 5, party.now)
    assert hold is not None
    purses.settle(hold, 4)
    purses.count(purses.budgets["requests"], 20_000, 3)
    party.turn(purses)
    assert (party.row("requests").booked, party.row("requests").spent) == (7, 7)
    purses.count(purses.budgets["requests"], 20_000, -5)  # What was reported is taken back, not forgotten.
    party.turn(purses)
    assert (party.row("requests").booked, party.row("requests").spent) == (2, 7)


def test_a_hold_is_settled_in_the_day_on_which_it_was_made() -> None:
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 10)
    party.turn(purses)
    party.turn(purses, after_ms=DAY_MS)
    assert purses.hold((purses.budgets["day"],), 1, party.now) is None
    purses.settle(held(decided), 7)
    party.turn(purses)
    yesterday = party.store.treasuries[Key("day", 20_000)]
    assert (yesterday.booked, yesterday.spent) == (7, 7)
    assert party.row("day").spent == 0


def test_a_day_begins_by_the_stores_clock_and_never_before() -> None:
    party = Party(day=100)
    purses = party.process()
    party.turn(purses)
    party.now_ms = 20_001 * DAY_MS - 1
    party.speak(purses)
    assert purses.budgets["day"].purse.key.period == 20_000
    hold = purses.hold_without((purses.budgets["day"],), 1, party.now + 0.002)
    assert hold is None and purses.budgets["day"].purse.key.period == 20_001


def test_a_reply_about_a_day_that_is_over_refuses_no_call() -> None:
    """The beat was sent before midnight, or the machine slept: the new day's money was not requested yet."""
    party = Party(day=100)
    purses = party.process()
    party.turn(purses)
    decided = party.ask(purses, 10, patience=1)
    beat = purses.beat(party.now)
    party.now_ms += DAY_MS
    purses.hear(party.store.receive(beat, party.now_ms, BEAT_MS), party.now)
    assert not decided
    party.turn(purses)
    assert held(decided).purses[0].key.period == 20_001


@pytest.mark.parametrize(
    ("kind", "wall_ms", "period", "begins"),
    [
        ("day", 0, 0, 0),
        ("day", DAY_MS - 1, 0, 0),
        ("day", DAY_MS, 1, DAY_MS),
        ("month", 0, 1970 * 12, 0),
        ("month", 31 * DAY_MS - 1, 1970 * 12, 0),
        ("month", 31 * DAY_MS, 1970 * 12 + 1, 31 * DAY_MS),
        ("month", 365 * DAY_MS - 1, 1970 * 12 + 11, 334 * DAY_MS),
    ],
)
def test_periods_are_utc_days_and_months(kind: Any, wall_ms: int, period: int, begins: int) -> None:
    assert period_at(kind, wall_ms) == period
    assert starts_ms(kind, period) == begins


# ---- the chain of beats --------------------------------------------------------------------------------------------


def test_a_beat_is_sent_again_unchanged_until_it_is_answered() -> None:
    party = Party(day=100)
    purses = party.process()
    party.ask(purses, 10)
    beat = purses.beat(party.now)
    party.ask(purses, 20)
    assert purses.beat(party.now + 9) is beat


def test_a_beat_that_arrives_twice_is_granted_once() -> None:
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 10)
    beat = purses.beat(party.now)
    party.store.receive(beat, party.now_ms, BEAT_MS)  # This reply is lost.
    party.turn(purses)
    assert held(decided).amount == 10
    assert party.row("day").booked == 10


def test_a_second_copy_under_one_name_takes_a_new_name_and_reports_what_it_spent() -> None:
    party = Party(day=100)
    one, two = party.process(), party.process()
    decided = party.ask(one, 30)
    party.turn(one)
    two.name, two._number, two._last_token = one.name, one._number, one._last_token
    two.budgets["day"].purse.granted, two.budgets["day"].purse.room = 30, 30
    hold = two.hold((two.budgets["day"],), 30, party.now)
    assert hold is not None
    party.turn(one)
    name = two.name
    party.turn(two)
    assert two.name != name
    two.settle(hold, 20)
    one.settle(held(decided), 10)
    for _ in range(4):
        party.turn(one, two)
    assert (party.row("day").booked, party.row("day").spent) == (30, 30)


def test_a_process_that_was_written_off_continues_under_a_new_name() -> None:
    party = Party(day=100)
    purses = party.process()
    party.ask(purses, 30)
    party.turn(purses)
    name = purses.name
    assert party.store.write_off(name) == {Key("day", 20_000): 30}
    assert party.row("day").booked == 0
    party.turn(purses)
    party.turn(purses)
    assert purses.name != name
    assert party.row("day").booked == 30  # It is granted again what its running calls hold.


def test_a_store_that_is_an_older_copy_of_itself_grants_nothing_until_all_have_reported() -> None:
    party = Party(day=100)
    one, new = party.process(), party.process()
    party.ask(one, 30)
    party.turn(one)
    party.store = MemoryTreasuries()
    party.now_ms += BEAT_MS
    answer = party.speak(one)
    assert answer.has_forgotten and answer.frozen and answer.forgotten == {Key("day", 20_000): 30}
    waits = party.ask(new, 10)
    party.turn(new, after_ms=FREEZE_MS - 1)
    assert waits == []
    party.turn(new, after_ms=2)
    assert held(waits).amount == 10
    assert party.row("day").booked == 40


def test_a_repeated_beat_reports_the_loss_again_after_a_lost_reply() -> None:
    """When the beat is repeated, the store is already up to date."""
    party = Party(day=100)
    purses = party.process()
    party.ask(purses, 30)
    party.turn(purses)
    party.store = MemoryTreasuries()
    party.store.receive(purses.beat(party.now), party.now_ms, BEAT_MS)  # This reply is lost.
    answer = party.speak(purses)
    assert answer.has_forgotten and answer.forgotten == {Key("day", 20_000): 30}
    assert not party.speak(purses).has_forgotten


# ---- the end of a process ------------------------------------------------------------------------------------------


def end(party: Party, purses: Purses) -> Beat:
    purses.send_home()
    return purses.beat(party.now, is_last=True)


def test_ended_processes_leave_one_purse() -> None:
    party = Party(day=100)
    for _ in range(3):
        purses = party.process()
        decided = party.ask(purses, 10)
        party.turn(purses)
        purses.settle(held(decided), 4)
        beat = end(party, purses)
        party.store.receive(beat, party.now_ms, BEAT_MS)  # This reply is lost.
        assert purses.beat(party.now) is beat
        party.speak(purses)
        assert not purses.may_end(), "it has ended"
    assert party.store.purses == {(Key("day", 20_000), ENDED): Totals(granted=12, spent=12)}
    assert (party.row("day").booked, party.row("day").spent) == (12, 12)


def test_a_process_that_continues_after_its_last_beat_reports_new_totals_under_a_new_name() -> None:
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 10)
    party.turn(purses)
    purses.settle(held(decided), 4)
    name, answer = purses.name, party.store.receive(end(party, purses), party.now_ms, BEAT_MS)
    late = party.ask(purses, 20)  # While the reply is on its way.
    purses.hear(answer, party.now)
    assert purses.name != name and late == []
    party.turn(purses)
    purses.settle(held(late), 5)
    party.turn(purses)
    assert (party.row("day").booked, party.row("day").spent) == (9, 9)


def test_a_process_with_a_running_call_does_not_end() -> None:
    party = Party(day=100)
    purses = party.process()
    decided = party.ask(purses, 10)
    party.turn(purses)
    assert not purses.may_end() and not end(party, purses).is_last
    party.speak(purses)
    purses.release(held(decided))
    assert purses.may_end() and end(party, purses).is_last


def test_a_fork_starts_with_empty_purses_and_its_own_name() -> None:
    party = Party(day=100)
    purses = party.process()
    party.ask(purses, 30)
    party.turn(purses)
    name = purses.name
    purses.empty()
    assert purses.name != name
    assert purses.hold((purses.budgets["day"],), 1, party.now) is None


# ---- limits --------------------------------------------------------------------------------------------------------


def test_a_lower_limit_applies_immediately_and_a_higher_one_when_no_process_reports_the_lower() -> None:
    party = Party(day=100)
    low, high = party.process(day=50), party.process()
    party.turn(high)
    party.turn(low)
    assert party.row("day").limit == 50
    party.turn(high)
    assert party.row("day").limit == 50
    party.turn(high, after_ms=LIMIT_STANDS_MS)
    assert party.row("day").limit == 100


def test_a_new_day_starts_with_the_limit_of_the_day_before() -> None:
    party = Party(day=100)
    low, high = party.process(day=50), party.process()
    party.now_ms = 20_001 * DAY_MS - BEAT_MS // 2
    party.turn(low, after_ms=0)
    party.turn(high)
    assert party.row("day").limit == 50


def test_a_limit_below_the_booked_sum_recalls_idle_money() -> None:
    party = Party(day=100)
    low, high = party.process(day=50), party.process()
    party.ask(high, 60)
    party.turn(high)
    party.turn(low)
    answer = party.store.receive(high.beat(party.now), party.now_ms, BEAT_MS)
    assert answer.recalled == {Key("day", 20_000)}


def test_without_the_store_only_a_default_budget_continues_up_to_its_limit() -> None:
    party = Party(day=100)
    purses = party.process()
    purses.budgets["default"] = purses.add(Budget("default", 100, is_default=True), party.now)
    purses.budgets["default"].purse.elsewhere = 50
    assert purses.hold_without((purses.budgets["day"],), 1, party.now) is None
    first = purses.hold_without((purses.budgets["default"],), 30, party.now)
    assert first is not None
    assert purses.hold_without((purses.budgets["default"],), 30, party.now) is None
    purses.settle(first, 10)
    for _ in range(4):
        party.turn(purses)
    assert (party.row("default").booked, party.row("default").spent) == (10, 10)


def test_a_hold_without_the_store_is_booked_when_reported_and_survives_a_kill() -> None:
    """A call may still run for an hour after the store is back, and its process may be killed in that hour."""
    party = Party(day=100)
    purses, other = party.process(), party.process()
    default = purses.add(Budget("default", 100, is_default=True), party.now)
    hold, longer = (purses.hold_without((default,), amount, party.now) for amount in (60, 30))
    assert hold is not None and longer is not None
    party.turn(purses)
    assert (party.row("default").booked, party.row("default").spent) == (90, 0)
    purses.shrink(hold, 50)
    purses.release(hold)
    party.turn(purses)
    assert (party.row("default").booked, party.row("default").spent) == (30, 0)
    other.add(Budget("default", 100), party.now)
    refused = party.ask(other, 71, "default", patience=1)
    party.turn(other)
    assert refused == [Refusal.NOT_MET], "what the killed process may have been billed is not granted again"


def test_a_released_call_without_a_grant_keeps_its_purse() -> None:
    """Totals only grow. A purse of that name that started at zero would report less than the store has."""
    party = Party(requests=None)
    purses = party.process()
    hold = purses.hold((purses.budgets["requests"],), 5, party.now)
    assert hold is not None
    party.turn(purses)
    purses.release(hold)
    party.turn(purses)
    assert not purses.forget("requests")


# ---- the world, and the world without a rule -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_world_never_spends_above_the_limit(kind: str) -> None:
    for seed in range(6):
        World(seed, kind).run()


def late(make: Callable[[], MemoryTreasuries] = MemoryTreasuries) -> None:
    """An older copy of the store: one process finds it immediately, another after three beats, and a new one sends
    requests in between."""
    party = Party(make, tag=100)
    one, other, new = party.process(), party.process(), party.process()
    for purses in (one, other):
        for _ in range(2):
            party.ask(purses, BOUND)
        party.turn(purses)
    party.store = make()
    party.turn(one)
    decided = [party.ask(new, BOUND) for _ in range(3)]
    for _ in range(3):
        party.turn(one, new)
    party.turn(other)
    if 4 * BOUND + BOUND * sum(bool(one) for one in decided) > 100:
        raise Broken("above the limit, although all processes live and have reported")


def duel(make: Callable[[], MemoryTreasuries] = MemoryTreasuries) -> None:
    """Two processes, each with the last money of one of two budgets, wait for calls that need both budgets."""
    party = Party(make, tag=BOUND + 1, service=BOUND + 1)
    one, other = party.process(), party.process()
    both = []
    for purses, name in ((one, "tag"), (other, "service")):
        decided = party.ask(purses, BOUND, name)
        party.turn(purses)
        both.append(party.ask(purses, BOUND, "tag", "service", patience=1000))
        purses.settle(held(decided), 1)
    for _ in range(20):
        party.turn(one, other)
        if any(both):
            return
    raise Broken("two processes wait for each other")


Patch = Callable[[pytest.MonkeyPatch], dict[str, Any]]
RULES_OUT: dict[str, Patch] = {}


def without(rule: str) -> Callable[[Patch], Patch]:
    def keep(patch: Patch) -> Patch:
        RULES_OUT[rule] = patch
        return patch

    return keep


def receive_by(is_repeat: Callable[[Any, Beat], bool], has_chain: bool = False) -> Any:
    """A store that recognizes beats in another way than by their chain of tokens."""
    true = treasury.receive

    def receive(rows: Rows, beat: Beat, now_ms: int, beat_ms: int) -> Reply:
        process = rows.process
        if not process.closed and not is_repeat(process, beat):
            process.number, process.token = beat.number - 1, beat.before
        elif not process.closed:
            process.token = beat.token
        return true(rows, beat, now_ms, beat_ms)

    return receive


@without("a chain of tokens")
def _no_token(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(treasuries, "receive", receive_by(lambda process, beat: False))
    return {}


@without("tokens in addition to numbers")
def _number_alone(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(treasuries, "receive", receive_by(lambda process, beat: process.number == beat.number))
    return {}


@without("a grant in all budgets or in none")
def _some_of_all(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    true = treasury._decide

    def decide(rows: Rows, beat: Beat, ask: Ask, now_ms: int) -> tuple[Met, Key | None]:
        parts = [
            true(rows, beat, Ask({key: ask.need[key]}, {key: ask.want[key]}, ask.amount), now_ms)
            for key in sorted(ask.need)
        ]
        return next((part for part in parts if part[0] is not Met.YES), (Met.YES, None))

    patch.setattr(treasury, "_decide", decide)
    return {}


@without("a need of the first waiter only")
def _needs_of_all(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    class Changed(Purses):
        def _asks(self) -> tuple[list[tuple[Key, ...]], list[Ask]]:
            groups, asks = super()._asks()
            return groups, [Ask(dict(ask.want), ask.want, ask.amount) if ask.amount else ask for ask in asks]

    return {"make": Changed}


@without("locked rows")
def _stale(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Each decision is based on the treasuries as they were a beat ago, and applied to the present ones."""
    true = treasury._room
    seen: dict[Key, tuple[int, int]] = {}

    def room(rows: Rows, beat: Beat, key: Key, now_ms: int) -> int:
        at_ms, amount = seen.get(key, (0, 0))
        if now_ms - at_ms >= BEAT_MS:
            at_ms, amount = seen[key] = now_ms, true(rows, beat, key, now_ms)
        return amount

    patch.setattr(treasury, "_room", room)
    return {}


@without("unneeded room going home")
def _stays(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(Purse, "send_back", lambda self, keep: None)
    return {}


@without("the lowest limit")
def _last_limit(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(treasury, "LIMIT_STANDS_MS", -1)
    return {}


@without("the store's day")
def _own_day(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    class Changed(Purses):
        def hear(self, answer: Reply, now: float, waited_at: float | None = None) -> bool:
            kept = self._store_ms, self._heard_at
            heard = super().hear(answer, now, waited_at)
            self._store_ms, self._heard_at = kept
            for budget in self.budgets.values():
                self._open(budget, now)
            return heard

    true = treasury._room

    def room(rows: Rows, beat: Beat, key: Key, now_ms: int) -> int:
        return true(rows, beat, key, starts_ms(beat.limits[key.budget].kind, key.period))

    patch.setattr(treasury, "_room", room)
    return {"make": Changed}


@without("totals that only grow")
def _not_cumulative(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    def add_up(self: Any, told: Any) -> None:
        self.granted = max(self.granted, told.granted)
        self.back, self.spent, self.over = (
            self.back + told.back,
            self.spent + told.spent,
            self.over + told.over,
        )
        self.held = told.held

    patch.setattr(treasury.Totals, "take_larger", add_up)
    return {}


@without("the recall")
def _no_recall(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(treasury, "_is_recalled", lambda row, since_ms: False)
    return {}


@without("a fork's empty purse")
def _full_fork(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"fork_is_empty": False}


@without("the freeze")
def _no_freeze(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(treasury, "FREEZE_MS", 0)
    return {}


@pytest.mark.parametrize("rule", RULES_OUT)
def test_the_world_finds_a_fault_without_this_rule(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RULES_OUT[rule](monkeypatch)
    for scenario in (late, duel):
        try:
            scenario()
        except (Broken, AssertionError, ValueError):
            return
    for seed, kind in itertools.product(range(40), KINDS):
        try:
            World(seed, kind, **options).run()
        except Broken:
            return
    pytest.fail(f"nothing was found without {rule}")


def test_the_freeze_waits_for_a_late_report_and_two_processes_do_not_block_each_other() -> None:
    late()
    duel()
