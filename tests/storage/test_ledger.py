"""One specification for every ledger: in memory, in a file and on a server."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

import pytest

from koo.options import DAY_S
from koo.policies.purse import Hold, Refusal
from koo.policies.treasury import LIMIT_STANDS_MS, LIVES_MS
from koo.testing.polling import until
from tests.storage.support import (
    CLAUDE,
    Place,
    Refused,
    SetClock,
    Store,
    bill,
    hold,
    know,
    numbers,
    pico,
    seen,
    settle,
    spend,
    usd,
)

Test = Callable[[Store, SetClock], Coroutine[Any, Any, None]]


def with_store(place: Place, test: Test, limit: str | None = "1.00") -> None:
    """Run a test with a store that has the budget of `claude`, and with the store's clock."""

    async def main() -> None:
        clock = place.clock()
        store = place.store(clock, limit)
        await test(store, clock)
        await store.close()

    asyncio.run(main())


# ── a call ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hold_counts_immediately_and_a_settlement_frees_the_rest(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        given = await hold(store, "0.05")
        assert given.amount == pico("0.05")
        assert seen(store) == usd("0", "0.05")
        settle(store, given, "0.03")
        assert seen(store) == await numbers(store) == usd("0.03")

    with_store(place, test)


def test_a_release_frees_the_whole_hold(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        store.ledger.release(await hold(store, "1.00"))
        assert await numbers(store) == usd("0")
        await hold(store, "1.00")

    with_store(place, test)


@pytest.mark.parametrize("first", ["settle", "release"])
def test_a_hold_ends_once(place: Place, first: str) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        given, _ = await hold(store, "0.05"), await hold(store, "0.02")
        if first == "settle":
            settle(store, given, "0.03")
        else:
            store.ledger.release(given)
        expected = await numbers(store)
        settle(store, given, "0.04")
        store.ledger.release(given)
        settle(store, given, "0.04")
        assert await numbers(store) == expected == usd("0.03" if first == "settle" else "0", "0.02")
        if place.is_shared:
            assert place.sql("SELECT count(*) FROM koo_entries") == [(int(first == "settle"),)]

    with_store(place, test)


def test_a_call_that_cost_nothing_is_booked_as_zero(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        settle(store, await hold(store, "0.05"), "0")
        assert await numbers(store) == usd("0")

    with_store(place, test)


def test_calls_can_spend_the_cap_to_the_last_millionth_but_no_more(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        await hold(store, "0.999999")
        with pytest.raises(Refused):
            await hold(store, "0.000001000001")
        await hold(store, "0.000001")
        assert await numbers(store) == usd("0", "1")

    with_store(place, test)


def test_a_bill_above_its_hold_is_booked_in_full_and_calls_are_refused_for_the_rest_of_the_day(
    place: Place,
) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        settle(store, await hold(store, "0.05"), "2.50")
        assert await numbers(store) == usd("2.50")
        assert store.ledger.view(CLAUDE).above_hold_usd == Decimal("2.45")
        with pytest.raises(Refused):
            await hold(store, "0.01")
        if place.has_own_clock:
            clock.now += DAY_S
            await hold(store, "0.01")

    with_store(place, test)


def test_free_calls_continue_when_the_budget_is_used_up(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        settle(store, await hold(store, "0.05"), "2.50")
        settle(store, await hold(store, "0"), "0")
        assert await numbers(store) == usd("2.50")

    with_store(place, test)


def test_an_unexpected_bill_for_a_free_call_is_booked(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        settle(store, await hold(store, "0"), "0.10")
        assert await numbers(store) == usd("0.10")

    with_store(place, test)


def test_without_a_limit_every_call_is_admitted_and_booked(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        given = await hold(store, "1000")
        assert seen(store) == await numbers(store) == usd("0", "1000")
        settle(store, given, "900")
        assert await numbers(store) == usd("900")

    with_store(place, test, limit=None)


@pytest.mark.parametrize("amount", ["-0.01", "NaN", "Infinity", "1e20"])
def test_a_cost_that_is_not_a_valid_amount_is_booked_at_the_holds_bound(place: Place, amount: str) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        settle(store, await hold(store, "0.05"), amount)
        assert await numbers(store) == usd("0.05")

    with_store(place, test)


def test_lowering_a_hold_frees_the_difference(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        large = await hold(store, "1.00")
        store.ledger.shrink(large, pico("0.30"))
        assert await numbers(store) == usd("0", "0.30")
        await hold(store, "0.70")
        settle(store, large, "0.20")
        assert await numbers(store) == usd("0.20", "0.70")

    with_store(place, test)


def test_each_service_has_its_own_budget(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        know(store, "1.00", "service/openai")
        know(store, "1.00", "service/gemini")
        await hold(store, "1.00", CLAUDE)
        await hold(store, "1.00", "service/openai")
        with pytest.raises(Refused):
            await hold(store, "0.01", CLAUDE)
        assert await numbers(store, "service/gemini") == usd("0")

    with_store(place, test)


def test_a_call_is_held_in_all_its_budgets_or_none_and_the_short_budget_is_named(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        know(store, "0.30", "budget/team")
        await hold(store, "0.20", CLAUDE, "budget/team")
        with pytest.raises(Refused) as refused:
            await hold(store, "0.20", CLAUDE, "budget/team")
        assert (refused.value.why, refused.value.short) == (Refusal.NOT_MET, "budget/team")
        with pytest.raises(Refused) as refused:
            await hold(store, "0.31", CLAUDE, "budget/team")
        assert (refused.value.why, refused.value.short) == (Refusal.NEVER, "budget/team")
        assert await numbers(store) == await numbers(store, "budget/team") == usd("0", "0.20")
        await hold(store, "0.80", CLAUDE)

    with_store(place, test)


def test_money_that_no_call_holds_is_returned_to_the_store_with_the_last_settlement(place: Place) -> None:
    """A script that makes one call and is killed a moment later leaves nothing behind."""

    async def test(store: Store, clock: SetClock) -> None:
        await spend(store, "0.01")
        await store.ledger.refresh()
        if place.is_shared:
            assert place.booked() == (pico("0.01"), pico("0.01"))
        standing = store.ledger.standing(CLAUDE)
        assert (standing.booked, standing.idle) == (pico("0.01"), 0)

    with_store(place, test)


# ── limits and days ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lowered_limit_applies_from_the_next_call_and_a_raised_one_some_beats_later(
    place: Place,
) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        await hold(store, "0.50")
        know(store, "0.55")
        with pytest.raises(Refused):
            await hold(store, "0.10")
        know(store, "0.60")
        with pytest.raises(Refused):
            await hold(store, "0.10")
        if place.has_own_clock:
            clock.now += LIMIT_STANDS_MS / 1000 + 1
            await hold(store, "0.10")

    with_store(place, test)


def test_a_hold_settled_after_midnight_is_booked_on_the_day_before(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        late = await hold(store, "0.80")
        assert store.ledger.view(CLAUDE).resets_at == clock.now + DAY_S / 2
        clock.now += DAY_S / 2
        assert seen(store) == usd("0")
        await hold(store, "1.00")
        settle(store, late, "0.70")
        assert await numbers(store) == usd("0", "1.00")
        if place.is_shared:
            rows = place.sql("SELECT booked, spent FROM koo_treasuries ORDER BY period")
            assert rows == [(pico("0.70"), pico("0.70")), (pico("1"), 0)]
            assert place.sql("SELECT day FROM koo_entries") == [(clock.day - 1,)]

    if place.has_own_clock:
        with_store(place, test)


def test_the_day_follows_the_stores_clock_whatever_this_machines_clock_does(shared: Place) -> None:
    """A clock that is a day ahead does not spend tomorrow's money, and one that is set back does not spend yesterday's
    money twice.
    """

    class Stepping(SetClock):
        ahead_s = 0.0

        def wall(self) -> float:
            return self.now + self.ahead_s

    async def main() -> None:
        clock = Stepping()
        store = shared.store(clock)
        await store.ledger.refresh()
        period = store.ledger.purses.budgets[CLAUDE].purse.key.period
        for clock.ahead_s in (DAY_S, -DAY_S):
            given = store.ledger.hold((store.ledger.purses.budgets[CLAUDE],), 0)
            assert given is not None and given.purses[0].key.period == period
            store.ledger.release(given)
        clock.ahead_s = 0.0
        await store.close()

    asyncio.run(main())


def test_requests_are_counted_on_the_day_they_were_made(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        know(store, None, "requests/claude")
        budget = store.ledger.purses.budgets["requests/claude"]
        today = budget.purse.key.period
        store.ledger.count(budget, today, 3)
        store.ledger.count(budget, today, -1)
        store.ledger.count(budget, today - 1, 5)  # a late count belongs to yesterday
        await store.ledger.refresh()
        standing = store.ledger.standing("requests/claude")
        assert standing.booked == 2
        assert store.ledger.counted_elsewhere(budget, today) == 0
        if place.is_shared:
            rows = place.sql(
                "SELECT period, booked FROM koo_treasuries WHERE budget LIKE 'requests/%' ORDER BY period"
            )
            assert rows == [(today - 1, 5), (today, 2)]
            other = place.store(clock)
            know(other, None, "requests/claude")
            await other.ledger.refresh()
            theirs = other.ledger.purses.budgets["requests/claude"]
            assert other.ledger.counted_elsewhere(theirs, today) == 2
            other.ledger.count(theirs, today, 4)
            await other.close()
            await store.ledger.refresh()
            assert store.ledger.counted_elsewhere(budget, today) == 4

    with_store(place, test)


# ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_newcomer_does_not_take_the_room_of_waiting_callers(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        first = await hold(store, "0.60")
        waiting = asyncio.create_task(hold(store, "0.60"))
        await asyncio.sleep(0)
        budgets = (store.ledger.purses.budgets[CLAUDE],)
        assert store.ledger.hold(budgets, pico("0.01")) is None
        free = store.ledger.hold(budgets, 0)
        assert free is not None, "a free call takes no room"
        store.ledger.release(free)
        store.ledger.release(first)
        assert (await waiting).amount == pico("0.60")

    with_store(place, test)


def test_a_caller_stops_waiting_at_its_deadline_and_holds_nothing(shared: Place) -> None:
    async def main() -> None:
        store = shared.sql_store(shared.clock())
        await store.open()
        gate = threading.Event()
        hanging = asyncio.create_task(store.executor.run(lambda tx: gate.wait()))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await hold(store, "0.05", within_s=0.01)
        gate.set()
        await hanging
        await store.ledger.refresh()
        assert await numbers(store) == usd("0")
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("cancel_after", range(6))
def test_a_caller_that_is_cancelled_while_it_waits_leaves_no_hold_behind(
    place: Place, cancel_after: int
) -> None:
    """This holds for a cancellation before the need was reported, while the store replies, and at the moment of the
    grant.
    """

    async def test(store: Store, clock: SetClock) -> None:
        waiting = [asyncio.create_task(hold(store, "0.01")) for _ in range(20)]
        for _ in range(cancel_after):
            await asyncio.sleep(0)
        if cancel_after == 5:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        given = [one for one in results if isinstance(one, Hold)]
        assert await numbers(store) == (Decimal(0), len(given) * Decimal("0.01"))
        for one in given:
            store.ledger.release(one)
        await store.ledger.beat()
        await store.ledger.beat()
        assert store.ledger.standing(CLAUDE).booked == 0

    with_store(place, test)


def test_a_caller_that_is_cancelled_in_the_same_turn_as_its_grant_leaves_no_hold_behind(
    place: Place,
) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        await store.ledger.refresh()
        second: asyncio.Task[Hold]

        async def first() -> Hold:
            given = await hold(store, "0.01")
            second.cancel()  # both got their replies in one turn, and the other one has not taken its hold yet
            return given

        one = asyncio.create_task(first())
        second = asyncio.create_task(hold(store, "0.01"))
        store.ledger.release(await one)
        with pytest.raises(asyncio.CancelledError):
            await second
        assert await numbers(store) == usd("0")

    with_store(place, test)


def test_waiting_callers_without_a_background_task_trigger_one_beat(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        know(store, "100")
        asyncio_tasks = len(asyncio.all_tasks())
        await asyncio.gather(*(hold(store, "0.01") for _ in range(50)))
        await until(lambda: len(asyncio.all_tasks()) == asyncio_tasks)
        assert await numbers(store) == usd("0", "0.50")

    with_store(place, test, "100")


def test_the_background_task_reports_spending_without_a_request(place: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        running = asyncio.create_task(store.ledger.run())
        given = await hold(store, "0.05")
        settle(store, given, "0.02")
        await until(lambda: not store.ledger.purses.has_news() and store.ledger.purses.flying is None)
        running.cancel()
        if place.is_shared:
            assert place.booked() == (pico("0.02"), pico("0.02"))

    with_store(place, test)


# ── several processes ─────────────────────────────────────────────────────────────────────────────────────────────


def test_idle_money_of_another_process_is_recalled_only_for_a_patient_caller(
    shared: Place,
) -> None:
    async def main() -> None:
        clock = shared.clock()
        rich, poor = shared.store(clock), shared.store(clock)
        await asyncio.gather(rich.ledger.refresh(), poor.ledger.refresh())
        running = [asyncio.create_task(store.ledger.run()) for store in (rich, poor)]
        kept = await hold(rich, "0.01")
        purse = kept.purses[0]
        await hold(rich, "0.60")
        idle = await hold(rich, "0.35")
        purse.pace = (10.0**12, 10.0**12)  # it spends a lot, so free money stays here for the next calls
        rich.ledger.release(idle)
        await rich.ledger.refresh()
        assert purse.room == pico("0.39")
        with pytest.raises(Refused) as refused:
            await hold(poor, "0.30")
        assert refused.value.why is Refusal.NOT_MET
        standing = poor.ledger.standing(CLAUDE)
        assert (standing.idle, standing.processes) == (pico("0.39"), 1)
        assert (await hold(poor, "0.30", is_patient=True)).amount == pico("0.30")
        for task in running:
            task.cancel()
        await rich.close()
        await poor.close()

    asyncio.run(main())


def test_two_stores_on_one_database_share_one_cap_and_see_each_others_spending(shared: Place) -> None:
    async def main() -> None:
        clock = shared.clock()
        one, two = shared.sql_store(clock), shared.sql_store(clock)
        await asyncio.gather(one.open(), two.open())
        shared.forbid_more_than("1.00")
        results = await asyncio.gather(
            *(hold(store, "0.05") for store in (one, two) for _ in range(50)), return_exceptions=True
        )
        held = [result for result in results if isinstance(result, Hold)]
        assert len(held) == 20
        assert {type(result) for result in results} == {Hold, Refused}
        await numbers(one)
        assert await numbers(two) == await numbers(one) == usd("0", "1")
        await one.close()
        await two.close()

    asyncio.run(main())


def test_money_held_by_a_process_that_stops_reporting_becomes_unsettled(shared: Place) -> None:
    async def main() -> None:
        clock = shared.clock()
        dead, alive = shared.store(clock), shared.store(clock)
        settle(dead, await hold(dead, "0.20"), "0.10")
        await hold(dead, "0.30")
        await dead.ledger.beat()
        await alive.ledger.refresh()
        view = alive.ledger.view(CLAUDE)
        assert (view.spent_usd, view.held_usd, view.unsettled_usd) == (*usd("0.10", "0.30"), Decimal(0))
        shared.sql(f"UPDATE koo_processes SET seen_ms = seen_ms - {LIVES_MS + 1000}")
        await alive.ledger.refresh()
        view = alive.ledger.view(CLAUDE)
        assert (view.spent_usd, view.held_usd, view.unsettled_usd) == (*usd("0.10"), Decimal("0.30"))
        with pytest.raises(Refused):
            await hold(alive, "0.61")
        await hold(alive, "0.60")
        await dead.close()
        await alive.close()

    asyncio.run(main())


def test_two_hundred_simultaneous_calls_with_random_costs_and_cancellations_never_exceed_the_cap(
    place: Place,
) -> None:
    """Of 200 calls of up to $0.05 on a budget of $1.00, some are cancelled while they wait and some while they run. The
    database itself rejects any transaction above the cap, and in the end the books equal the sum of all bills.
    """
    rng = random.Random(7)
    billed: list[Decimal] = []
    running: set[int] = set()
    refused = 0

    async def call(store: Store, number: int) -> None:
        nonlocal refused
        try:
            given = await hold(store, "0.05")
        except Refused:
            refused += 1
            return
        running.add(number)
        assert len(running) * Decimal("0.05") + sum(billed) <= 1
        cost = Decimal(rng.randint(100, 500)) / 10_000
        ended = False
        try:
            await asyncio.sleep(rng.random() * 0.02)
            if number % 5 == 0:
                ended = True
                store.ledger.release(given)
        finally:
            running.discard(number)
            if not ended:
                billed.append(cost)
                settle(store, given, str(cost))

    async def test(store: Store, clock: SetClock) -> None:
        await store.open()
        if place.is_shared:
            place.forbid_more_than("1.00")
        tasks = [asyncio.create_task(call(store, number)) for number in range(200)]
        for task in rng.sample(tasks, 80):
            await asyncio.sleep(rng.random() * 0.001)
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        assert await numbers(store) == (sum(billed, Decimal(0)), Decimal(0))
        assert refused > 0 and billed
        await store.ledger.finish()
        if place.is_shared:
            total = int(sum(billed) * 10**12)
            assert place.booked() == (total, total)
            assert place.sql("SELECT count(*), sum(amount) FROM koo_entries") == [(len(billed), total)]

    with_store(place, test)


def test_an_entry_names_its_service_tag_and_process(shared: Place) -> None:
    async def test(store: Store, clock: SetClock) -> None:
        store.ledger.settle(await hold(store), "claude", bill("0.03", tag="nightly"))
        await store.ledger.refresh()
        ((service, tag, process),) = shared.sql("SELECT service, tag, process FROM koo_entries")
        assert (service, tag, process) == ("claude", "nightly", store.ledger.purses.name)

    with_store(shared, test)
