"""What every ledger does, in memory, in a file and on a server: one specification for all."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal

import pytest

from koo.errors import BudgetExceeded
from koo.options import DAY_S
from koo.storage.base import Hold
from tests.storage.support import LONG_AFTER_S, Place, SetClock, bill, money, numbers, request, usd


def test_a_hold_is_seen_at_once_and_a_settlement_gives_back_the_rest(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        await store.open()
        hold = await store.ledger.hold(request("0.05"))
        assert (hold.service, hold.amount_usd) == ("claude", Decimal("0.05"))
        assert money(store.ledger.view("claude")) == usd("0", "0.05")
        store.ledger.settle(hold, bill("0.03"))
        assert await numbers(store) == usd("0.03")
        await store.close()

    asyncio.run(main())


def test_a_release_gives_all_back(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        hold = await store.ledger.hold(request("0.05"))
        store.ledger.release(hold)
        assert await numbers(store) == usd("0")
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("first", ["settle", "release"])
def test_a_hold_ends_once(place: Place, first: str) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        hold = await store.ledger.hold(request("0.05"))
        other = await store.ledger.hold(request("0.02"))
        if first == "settle":
            store.ledger.settle(hold, bill("0.03"))
        else:
            store.ledger.release(hold)
        expected = await numbers(store)
        store.ledger.settle(hold, bill("0.04"))
        store.ledger.release(hold)
        store.ledger.settle(hold, bill("0.04"))
        assert await numbers(store) == expected
        assert expected[1] == other.amount_usd
        await store.close()

    asyncio.run(main())


def test_two_ends_said_at_the_same_moment_are_one(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        holds = [await store.ledger.hold(request("0.05")) for _ in range(3)]
        store.ledger.settle(holds[0], bill("0.03"))
        store.ledger.settle(holds[0], bill("0.04"))
        assert await numbers(store) == usd("0.03", "0.10")
        store.ledger.release(holds[1])
        store.ledger.release(holds[1])
        store.ledger.settle(holds[1], bill("0.04"))
        assert await numbers(store) == usd("0.03", "0.05")
        await store.close()

    asyncio.run(main())


def test_what_turned_out_to_cost_nothing_is_booked_as_nothing(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        store.ledger.settle(await store.ledger.hold(request("0.05")), bill("0"))
        assert await numbers(store) == usd("0")
        await store.close()

    asyncio.run(main())


def test_the_cap_is_reached_to_the_last_millionth_and_not_passed(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        await store.ledger.hold(request("0.999999"))
        with pytest.raises(BudgetExceeded):
            await store.ledger.hold(request("0.000001000001"))
        await store.ledger.hold(request("0.000001"))
        assert await numbers(store) == usd("0", "1")
        await store.close()

    asyncio.run(main())


def test_a_refusal_shows_its_arithmetic_and_when_the_next_day_begins(place: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = place.store(clock)
        store.ledger.settle(await store.ledger.hold(request("0.60")), bill("0.60"))
        await store.ledger.flush()
        await store.ledger.hold(request("0.30"))
        with pytest.raises(BudgetExceeded) as refused:
            await store.ledger.hold(request("0.25"))
        assert refused.value.service == "claude"
        assert refused.value.retry_after_s == DAY_S / 2
        assert str(refused.value) == (
            "claude: the day's budget of $1.00 does not cover this call: $0.60 spent, $0.30 held for calls that are "
            "running, up to $0.25 needed; try again in 12 h 0 min"
        )
        await store.close()

    asyncio.run(main())


def test_a_bill_above_its_hold_is_booked_whole_and_refuses_the_rest_of_the_day(place: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = place.store(clock)
        store.ledger.settle(await store.ledger.hold(request("0.05")), bill("2.50"))
        assert await numbers(store) == usd("2.50")
        with pytest.raises(BudgetExceeded):
            await store.ledger.hold(request("0.01"))
        clock.now += DAY_S
        await store.ledger.hold(request("0.01"))
        await store.close()

    asyncio.run(main())


def test_what_costs_nothing_goes_on_when_the_money_is_gone(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        store.ledger.settle(await store.ledger.hold(request("0.05")), bill("2.50"))
        await store.ledger.flush()
        free = await store.ledger.hold(request("0"))
        store.ledger.settle(free, bill("0"))
        assert await numbers(store) == usd("2.50")
        await store.close()

    asyncio.run(main())


def test_a_surprising_bill_for_what_costs_nothing_is_booked_all_the_same(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        store.ledger.settle(await store.ledger.hold(request("0")), bill("0.10"))
        assert await numbers(store) == usd("0.10")
        await store.close()

    asyncio.run(main())


def test_without_a_limit_nothing_is_refused_and_everything_is_booked(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        await store.ledger.hold(request("1000", limit=None))
        assert await numbers(store) == usd("0", "1000")
        await store.close()

    asyncio.run(main())


def test_a_limit_that_is_changed_holds_from_the_next_call_on(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        await store.ledger.hold(request("0.50", limit="1.00"))
        with pytest.raises(BudgetExceeded):
            await store.ledger.hold(request("0.10", limit="0.55"))
        await store.ledger.hold(request("0.10", limit="0.60"))
        await store.close()

    asyncio.run(main())


def test_services_have_money_of_their_own(place: Place) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        await store.ledger.hold(request("1.00", service="claude"))
        await store.ledger.hold(request("1.00", service="openai"))
        with pytest.raises(BudgetExceeded):
            await store.ledger.hold(request("0.01", service="claude"))
        assert money(store.ledger.view("gemini")) == usd("0")
        await store.close()

    asyncio.run(main())


def test_a_hold_settled_after_midnight_belongs_to_yesterday(place: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = place.store(clock)
        late = await store.ledger.hold(request("0.80"))
        clock.now += DAY_S / 2
        assert store.ledger.view("claude").day == clock.day == late.day + 1
        assert money(store.ledger.view("claude")) == usd("0")
        early = await store.ledger.hold(request("1.00"))
        assert early.day == late.day + 1
        store.ledger.settle(late, bill("0.70"))
        await store.ledger.flush()
        assert money(store.ledger.view("claude")) == usd("0", "1.00")
        assert await numbers(store) == usd("0", "1.00")
        await store.close()
        if place.is_shared:
            rows = place.sql("SELECT settled, held FROM koo_days ORDER BY day")
            assert rows == [(700_000_000_000, 0), (0, 10**12)]

    asyncio.run(main())


def test_a_hold_whose_lease_is_over_is_booked_at_its_bound(place: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = place.store(clock)
        lost = await store.ledger.hold(request("0.05", lease_s=60, tag="night"))
        kept = await store.ledger.hold(request("0.02", lease_s=10 * LONG_AFTER_S))
        clock.now += 59
        assert await store.ledger.sweep() == []
        clock.now += LONG_AFTER_S
        assert await store.ledger.sweep() == [lost]
        assert money(store.ledger.view("claude")) == usd("0.05", "0.02")
        assert await numbers(store) == usd("0.05", "0.02")
        assert await store.ledger.sweep() == []
        store.ledger.settle(lost, bill("0.01"))  # Too late: what was booked is never lowered.
        store.ledger.settle(kept, bill("0.02"))
        assert await numbers(store) == usd("0.07")
        await store.close()

    asyncio.run(main())


def test_more_lost_holds_than_one_transaction_takes_are_all_booked(place: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = place.store(clock)
        await asyncio.gather(*(store.ledger.hold(request("0.001", limit=None)) for _ in range(1200)))
        clock.now += LONG_AFTER_S
        assert len(await store.ledger.sweep()) == 1200
        assert await numbers(store) == usd("1.2")
        await store.close()

    asyncio.run(main())


def test_each_hold_counts_as_a_request_of_its_day_and_a_refused_one_does_not(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = shared.sql_store(clock)
        first = await store.ledger.hold(request("0.50"))
        await store.ledger.hold(request("0.50"))
        with pytest.raises(BudgetExceeded):
            await store.ledger.hold(request("0.50"))
        await store.ledger.hold(request("0"))
        store.ledger.release(first)  # It was made, and was refused there.
        assert await store.quotas.used_today("claude") == 3
        store.quotas.add("claude", clock.day, 3)
        store.quotas.add("claude", clock.day, -1)
        store.quotas.add("local", clock.day, 7)
        assert await store.quotas.used_today("claude") == 5
        assert await store.quotas.used_today("local") == 7
        clock.now += DAY_S
        assert await store.quotas.used_today("claude") == 0
        store.quotas.add("claude", clock.day, 2)
        store.quotas.add("claude", clock.day - 1, 5)  # A count that comes late is yesterday's.
        assert await store.quotas.used_today("claude") == 2
        await store.close()

    asyncio.run(main())


def test_more_requests_given_back_than_made_are_none(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = shared.sql_store(clock)
        store.quotas.add("claude", clock.day, 2)
        store.quotas.add("claude", clock.day, -5)
        assert await store.quotas.used_today("claude") == 0
        store.quotas.add("claude", clock.day, 1)
        assert await store.quotas.used_today("claude") == 1
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("amount", ["-0.01", "NaN", "Infinity", "1e20"])
def test_what_is_no_money_is_not_held(place: Place, amount: str) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        with pytest.raises((ValueError, ArithmeticError)):
            await store.ledger.hold(request(amount, limit=None))
        assert await numbers(store) == usd("0")
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("amount", ["-0.01", "NaN", "Infinity", "1e20"])
def test_a_cost_that_is_no_money_is_booked_at_the_holds_bound(place: Place, amount: str) -> None:
    async def main() -> None:
        store = place.store(SetClock())
        store.ledger.settle(await store.ledger.hold(request("0.05")), bill(amount))
        assert await numbers(store) == usd("0.05")
        await store.close()

    asyncio.run(main())


def test_a_hold_that_nobody_gave_ends_nothing(place: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = place.store(clock)
        await store.ledger.hold(request("0.05"))
        store.ledger.settle(Hold("unheard-of", "claude", clock.day, Decimal(1)), bill("1"))
        store.ledger.release(Hold("unheard-of", "openai", clock.day, Decimal(1)))
        assert await numbers(store) == usd("0", "0.05")
        await store.close()

    asyncio.run(main())


def test_two_hundred_calls_at_once_with_random_costs_and_cancellations_never_pass_the_cap(
    place: Place,
) -> None:
    """Of 200 calls of up to $0.05 on $1.00 some are cancelled while they wait and some while they run. Whatever they
    do, the database itself sees no moment above the cap, and in the end the books are the sum of all bills."""
    rng = random.Random(7)
    billed: list[Decimal] = []
    running: set[str] = set()
    refused = 0

    async def call(number: int) -> None:
        nonlocal refused
        store_request = request("0.05")
        try:
            hold = await store.ledger.hold(store_request)
        except BudgetExceeded:
            refused += 1
            return
        running.add(hold.id)
        assert len(running) * Decimal("0.05") + sum(billed) <= 1
        cost = Decimal(rng.randint(100, 500)) / 10_000
        ended = False
        try:
            await asyncio.sleep(rng.random() * 0.02)
            if number % 5 == 0:
                ended = True
                store.ledger.release(hold)
        finally:
            running.discard(hold.id)
            if not ended:
                billed.append(cost)
                store.ledger.settle(hold, bill(str(cost)))

    async def main() -> None:
        await store.open()
        if place.is_shared:
            place.forbid_more_than("1.00")
        tasks = [asyncio.create_task(call(number)) for number in range(200)]
        for task in rng.sample(tasks, 80):
            await asyncio.sleep(rng.random() * 0.001)
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        assert await numbers(store) == (sum(billed, Decimal(0)), Decimal(0))
        assert refused > 0 and billed
        await store.close()
        if place.is_shared:
            assert place.sql("SELECT count(*) FROM koo_holds") == [(0,)]
            assert place.sql("SELECT count(*), sum(amount) FROM koo_entries") == [
                (len(billed), int(sum(billed) * 10**12))
            ]

    store = place.store(SetClock())
    asyncio.run(main())
