"""Limits of a fleet: never exceeded in any period, mostly usable, and each rule is needed for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from koo.options import NEVER
from koo.policies import units
from koo.policies.hand import Hand
from koo.policies.limiter import Limits, SlidingCount
from koo.policies.units import FREEZE_MS, Grant, Lease, Told, Window
from koo.storage.windows import MemoryWindows
from tests.policies.unit_world import World, within, worst

NOW_MS = 5_000_000
Patch = Callable[[pytest.MonkeyPatch], dict[str, Any]]


class Party:
    """Some processes on one store. A test decides when they send messages."""

    def __init__(self, limit: int = 60) -> None:
        self.store = MemoryWindows()
        self.limit = limit
        self.now = 1000.0

    def process(self) -> tuple[Limits, Hand]:
        count = SlidingCount("requests a minute", self.limit, 60.0, self.now)
        count.hand = Hand("minute/x", self.limit, 60.0, lambda: None)
        return Limits(count), count.hand

    def speak(
        self, one: tuple[Limits, Hand], waiting: int = 0, *, name: str = "", heard: bool = True
    ) -> Grant:
        """Send a message and read the reply immediately, or never if the reply is lost (`heard=False`)."""
        limits, in_hand = one
        (count,) = limits.counts
        count.roll(self.now)
        assert isinstance(count, SlidingCount)
        told = in_hand.ask(self.now, count, min(1, waiting), waiting)
        (grant,) = self.store.receive(name or str(id(in_hand)), [told], int(self.now * 1000))
        if heard:
            in_hand.hear(grant, self.now, self.now)
        else:
            in_hand.give_up()
        return grant

    def take(self, one: tuple[Limits, Hand], calls: int) -> int:
        """Make `calls` calls; returns how many found a unit."""
        return sum(one[0].take(self.now) is None for _ in range(calls))

    @property
    def window(self) -> Window:
        return self.store.windows["minute/x"]


# ── one process ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_that_finds_no_unit_waits_for_one_reply_and_the_next_calls_do_not() -> None:
    party = Party()
    one = party.process()
    assert party.take(one, 1) == 0 and one[0].lacks(party.now)
    party.speak(one, 1)
    assert party.take(one, 4) == 4 and party.take(one, 1) == 0


def test_a_lone_process_uses_the_whole_limit_with_few_trips() -> None:
    party = Party()
    one, trips = party.process(), 0
    for _ in range(60):
        while party.take(one, 1) == 0:
            party.speak(one, 1)
            trips += 1
        party.now += 0.05
    assert trips < 20
    party.speak(one, 1)
    assert party.take(one, 1) == 0 and not one[0].lacks(party.now)


def test_a_burst_costs_one_trip() -> None:
    party = Party()
    one = party.process()
    party.speak(one, 60)
    assert party.take(one, 61) == 60


def test_a_reply_without_units_says_when_to_request_again_and_no_message_is_sent_before() -> None:
    party = Party()
    one, other = party.process(), party.process()
    party.speak(one, 60)
    party.take(one, 60)
    party.now += 0.7
    party.speak(one)
    party.speak(other, 1)
    free_at = other[1].shut_until
    assert 60 < free_at - party.now <= 62 and not other[0].lacks(party.now)
    assert other[0].usable_at(party.now) == free_at
    party.now = free_at
    assert other[0].lacks(party.now)
    party.speak(other, 1)
    assert party.take(other, 1) == 1


def test_unused_units_are_returned_when_there_is_no_traffic() -> None:
    party = Party()
    one = party.process()
    party.speak(one, 1)
    party.take(one, 1)
    assert one[1].due_at == pytest.approx(party.now + 0.7)
    for _ in range(4):
        party.now = one[1].due_at
        party.speak(one)
    assert (party.window.used, party.store.leases) == (1, {})
    assert one[1].due_at > party.now + 1, "then no message is sent for a while"


def test_unreported_units_count_as_used_from_the_end_of_their_lease() -> None:
    party = Party()
    one, other = party.process(), party.process()
    party.speak(one, 60)
    party.take(one, 1)
    party.now += 30
    party.speak(other, 1)
    assert party.window.used == 60, "the process was killed, and may have used its units"
    assert other[1].shut_until - party.now == pytest.approx(32, abs=1.1)


def test_a_process_that_returns_reports_what_it_did_not_use() -> None:
    party = Party()
    one = party.process()
    party.speak(one, 60)
    party.take(one, 1)
    party.now += 10  # it was stopped
    party.speak(one)
    assert party.window.used == 1


def test_units_granted_in_a_lost_reply_do_not_count_as_used() -> None:
    party = Party()
    one = party.process()
    party.speak(one, 60, heard=False)
    party.now += 10
    party.speak(one)
    assert party.window.used == 0


def test_a_message_that_arrives_twice_changes_nothing() -> None:
    party = Party()
    one = party.process()
    party.speak(one, 5)
    party.take(one, 3)
    (count,) = one[0].counts
    assert isinstance(count, SlidingCount)
    told = one[1].ask(party.now, count, 1, 5)
    first = party.store.receive("twice", [told], NOW_MS)
    assert party.store.receive("twice", [told], NOW_MS) == first


def test_an_unused_unit_is_returned_whether_or_not_it_was_reported() -> None:
    party = Party()
    one = party.process()
    party.speak(one, 10)
    taken_at = party.now
    party.take(one, 10)
    one[0].refund(taken_at)
    party.now += 0.5
    party.speak(one)
    assert party.window.used == 9
    one[0].refund(taken_at)
    party.speak(one)
    assert party.window.used == 8


def test_an_unused_unit_that_may_have_left_the_window_frees_no_other_one() -> None:
    party = Party(100)
    one = party.process()
    for at_s in range(70):
        party.now = 1000.0 + at_s
        party.speak(one, 1)
        assert party.take(one, 1) == 1
    used = party.window.used
    one[0].refund(1000.0)
    party.speak(one)
    assert party.window.used == used + 1, "the last use is reported now, and no unit was taken back"


def test_the_lower_of_two_limits_applies_immediately_and_the_higher_when_the_lower_is_no_longer_reported() -> (
    None
):
    store = MemoryWindows()
    for at_ms, limit, stands in ((0, 60, 60), (10, 50, 50), (20, 60, 50), (4000, 60, 50), (9100, 60, 60)):
        (grant,) = store.receive("p", [Told("x", 60_000, limit, at_ms)], NOW_MS + at_ms)
        assert grant.limit == stands


def test_a_lease_is_counted_from_its_request_and_ends_two_percent_early() -> None:
    party = Party()
    limits, in_hand = party.process()
    (count,) = limits.counts
    assert isinstance(count, SlidingCount)
    grants = party.store.receive("p", [in_hand.ask(party.now, count, 1, 1)], int(party.now * 1000))
    party.now += 0.5
    in_hand.hear(grants[0], party.now - 0.5, party.now)
    party.now += 0.47
    assert limits.take(party.now) is None
    party.now += 0.02
    assert limits.take(party.now) is not None, "by the store's clock 0.99 s have passed, which may be true"


def test_a_slow_trip_to_the_store_leads_to_a_longer_lease() -> None:
    party = Party()
    limits, in_hand = one = party.process()
    (count,) = limits.counts
    assert isinstance(count, SlidingCount)
    told = in_hand.ask(party.now, count, 1, 1)
    grants = party.store.receive("far", [told], int(party.now * 1000) + 600)
    in_hand.hear(grants[0], party.now, party.now + 1.2)
    party.now += 1.2
    assert party.take(one, 1) == 0 and limits.lacks(party.now), "the lease had ended when the reply arrived"
    (grant,) = party.store.receive("far", [in_hand.ask(party.now, count, 1, 1)], int(party.now * 1000) + 600)
    assert grant.lease_ms == pytest.approx(4800, abs=10)


def test_an_operators_reset_frees_the_whole_limit() -> None:
    party = Party()
    one = party.process()
    party.speak(one, 60)
    assert party.take(one, 61) == 60
    party.speak(one, 1)
    one[0].clear(party.now)
    party.speak(one, 60)
    assert party.take(one, 61) == 60


# ── several ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_rest_of_a_limit_is_divided_among_its_users() -> None:
    party = Party(600)
    first, second = party.process(), party.process()
    party.speak(first, 100)
    party.speak(second, 1000)
    assert second[1].left == 122, "half of the 490 that the first left, divided by two"


def test_a_store_replaced_by_an_older_copy_takes_over_the_lost_use_and_waits_for_all_processes() -> None:
    party = Party()
    one, other = party.process(), party.process()
    party.speak(one, 20)
    party.speak(other, 1)
    party.take(one, 20)
    party.store = MemoryWindows()
    party.speak(one, 1)
    assert party.window.used == 20
    assert party.window.frozen_until_ms == int(party.now * 1000) + FREEZE_MS
    assert party.speak(other, 1).frozen_ms > 0


# ── without the store ──────────────────────────────────────────────────────────────────────────────────────────────


def away(party: Party, one: tuple[Limits, Hand]) -> None:
    one[1].give_up()
    one[1].is_away = True


def test_without_the_store_a_process_uses_its_share_of_four_fifths() -> None:
    party = Party()
    party.store.processes = 4
    one = party.process()
    party.speak(one, 1)
    away(party, one)
    party.now += 1
    assert not one[0].lacks(party.now) and one[1].share == 12
    assert party.take(one, 20) == 12
    assert one[1].is_alone and party.now < one[0].usable_at(party.now) <= party.now + 62


def test_units_in_hand_are_used_before_the_share() -> None:
    party = Party()
    one = party.process()
    party.speak(one, 4)
    away(party, one)
    assert party.take(one, 4) == 4 and not one[1].is_alone


def test_in_the_first_period_a_process_adds_only_its_part_of_the_free_units() -> None:
    party = Party()
    party.store.processes = 4
    one, other = party.process(), party.process()
    party.speak(other, 44)
    party.take(other, 44)
    party.speak(one, 1)
    away(party, one)
    party.now += 1
    assert party.take(one, 20) == 2, "a quarter of the nine that were free"
    assert 60 < one[0].usable_at(party.now) - party.now < 62 and one[0].full(party.now) is not None
    party.now += 62
    assert party.take(one, 20) == 12, "the use of the others has left the window"


def test_use_without_the_store_is_reported_and_nothing_is_granted_until_all_have_reported() -> None:
    party = Party()
    party.store.processes = 2
    one, other = party.process(), party.process()
    for each in (one, other):
        party.speak(each)
        away(party, each)
    party.now += 20
    assert party.take(one, 10) == party.take(other, 10) == 10
    party.now += 10
    for each in (one, other):
        each[1].is_away = False
    grant = party.speak(one, 1)
    assert grant.frozen_ms == FREEZE_MS and party.window.used == 10
    assert party.take(one, 1) == 1, "its share is still in use"
    party.speak(other, 1)
    assert party.window.used == 20
    party.now += FREEZE_MS / 1000
    party.speak(one, 1)
    assert party.take(one, 1) == 1 and not one[1].is_alone
    assert party.window.occupied[0][0] == (1000 + 20), "with the time that has passed since"


# ── a fleet ───────────────────────────────────────────────────────────────────────────────────────────────────────

FLEETS = [(60, 1, 1), (60, 4, 2), (60, 10, 3), (600, 1, 4), (600, 10, 5), (6000, 50, 7)]


@pytest.mark.parametrize(("limit", "processes", "seed"), FLEETS)
def test_a_fleet_with_faults_never_exceeds_its_limit_and_uses_most_of_it(
    limit: int, processes: int, seed: int
) -> None:
    """Messages are lost and repeated, clocks are wrong, two processes are killed, and one is stopped."""
    world = World(limit, processes, limit / 60 * 1.5, seconds=70 if limit > 600 else 240, seed=seed).run()
    assert world.worst <= limit
    assert world.used >= 0.85


def test_50_processes_use_most_of_500_units_a_second_and_never_more() -> None:
    world = World(30_000, 50, 700, seconds=62, seed=8, faults=False).run()
    assert world.worst <= 30_000 and world.used >= 0.85 and world.trips_a_use < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_a_fleet_without_its_store_continues_and_never_exceeds_its_limit(seed: int) -> None:
    world = World(60, 4, 1.5, seconds=300, seed=seed, faults=False, away=(80, 170), lag_s=(0.001, 0.2)).run()
    assert world.worst <= 60
    assert 20 <= within(world.uses, 105, 165) <= 48, "four fifths while the store is unreachable"
    assert within(world.uses, 235, 295) >= 50


@pytest.mark.parametrize("seed", range(3))
def test_a_process_that_alone_is_cut_off_adds_at_most_its_share(seed: int) -> None:
    world = World(60, 4, 1.5, seconds=300, seed=seed, faults=False, cut=(80, 240)).run()
    assert world.worst <= 60 + 12


@pytest.mark.parametrize("seed", range(2))
def test_waiting_callers_are_served_in_order_and_no_process_starves(seed: int) -> None:
    world = World(600, 10, 12, seconds=130, seed=seed, faults=False, waits=True).run()
    uses = [process.uses for process in world.processes]
    assert min(uses) > 0.6 * max(uses) and world.worst <= 600


# ── each rule taken out ───────────────────────────────────────────────────────────────────────────────────────────

RULES_OUT: dict[str, tuple[dict[str, Any], Patch]] = {}


def without(rule: str, **world: Any) -> Callable[[Patch], Patch]:
    def keep(patch: Patch) -> Patch:
        RULES_OUT[rule] = (world, patch)
        return patch

    return keep


@without("units going home leave the hand before they are reported", faults=False)
def _told_first(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    class Changed(Hand):
        def ask(self, *args: Any, **more: Any) -> Told:
            left = self.left
            told = super().ask(*args, **more)
            self.left = left
            return told

    return {"make": Changed}


@without("unreported units count as used")
def _not_told_not_used(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(Lease, "out", property(lambda lease: 0))
    return {}


@without("reported units stay in the window for a whole period", faults=False)
def _short_period(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    true = Window.roll
    patch.setattr(Window, "roll", lambda window, now_ms, bucket_ms: true(window, now_ms + 9000, bucket_ms))
    return {}


@without("only units known to be unused return from an ended lease", seed=11)
def _all_comes_back(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    def take(window: Window, own: Lease, told: Told, now_ms: int, bucket_ms: int) -> Lease | None:
        if own.lapsed:
            window.take_out_of(own.until_ms, own.lapsed, bucket_ms)
            return None
        return true(window, own, told, now_ms, bucket_ms)

    true = units._take_totals
    patch.setattr(units, "_take_totals", take)
    return {}


@without("in the first period without the store only free units are shared", away=(80, 140))
def _share_at_once(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    class Changed(Hand):
        def _share(self, now: float, used: int) -> tuple[int, float]:
            self._cut_at = -1000.0
            return super()._share(now, used)

    return {"make": Changed}


@without("use without the store is reported", away=(80, 140), lag_s=(0.001, 0.3))
def _never_told(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    true = units._take_told

    def take(rows: Any, told: Told, *rest: Any, **more: Any) -> None:
        true(rows, replace(told, over=()), *rest, **more)

    patch.setattr(units, "_take_told", take)
    return {}


@without("nothing is granted until all have reported", away=(80, 170), lag_s=(0.001, 0.5))
def _no_freeze(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(units, "FREEZE_MS", 0)
    return {}


@without("one limit for the fleet and not one for each process", faults=False)
def _each_its_own(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    class Changed(Hand):
        def units(self, now: float, used: int) -> tuple[int, float]:
            return self.limit, NEVER

        def book(self, taken: int) -> None:
            pass

    return {"make": Changed}


@pytest.mark.parametrize("rule", RULES_OUT)
def test_without_the_rule_a_fleet_exceeds_the_limit(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, patch = RULES_OUT[rule]
    options = {"limit": 60, "seed": 1, **options}
    assert any(
        _breaks(options, patch, monkeypatch, seed) for seed in range(options["seed"], options["seed"] + 12)
    )


def _breaks(options: dict[str, Any], patch: Patch, monkeypatch: pytest.MonkeyPatch, seed: int) -> bool:
    options = {**options, "seed": seed}
    limit = options.pop("limit")
    with monkeypatch.context() as patches:
        more = patch(patches)
        world = World(limit, 4, limit / 60 * 3, seconds=190, **options | more).run()
    return bool(world.worst > limit)


def test_the_check_finds_the_busiest_period_wherever_it_begins() -> None:
    assert worst([0.0, 30.0, 59.9, 60.0], 60.0) == 3
