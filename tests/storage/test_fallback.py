"""Money while the shared ledger is away: a budget that somebody set refuses, the default one goes on alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any, TypeVar

import pytest

from koo.errors import BudgetExceeded, ExternalServiceError, ServiceRefused
from koo.events import BillExceededHold, Event, StoreFound, StoreLost
from koo.options import DAY_S
from koo.storage.base import StoreUnavailable
from koo.storage.fallback import GuardedLedger
from koo.storage.store import SqlStore
from tests.storage.support import LONG_AFTER_S, Place, SetClock, bill, impatient, money, request, until, usd

T = TypeVar("T")


class Outage:
    """A guarded ledger over a file that can be taken away: another process keeps it locked."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.clock = SetClock()
        self.events: list[Event] = []
        self.store = impatient(place.url, 0.4, clock=self.clock, linger_s=0.0)
        self.ledger = GuardedLedger(self.store.ledger, self.clock, self.events.append)
        self.store.watch(self.ledger.store_changed)

    async def begin(self) -> None:
        self.locker = sqlite3.connect(self.place.file, isolation_level=None)
        await self.store.ledger.flush()
        while True:  # The store itself wants the lock too.
            try:
                self.locker.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError:
                pass
        with pytest.raises(StoreUnavailable):
            await self.store.executor.run(lambda tx: None)
        assert self.store.trouble is not None

    async def end(self) -> None:
        self.locker.close()
        await until(lambda: self.store.trouble is None)

    async def numbers(self) -> tuple[Decimal, Decimal]:
        await self.ledger.flush()
        await self.ledger.refresh()
        assert self.ledger.view("claude").scope == "shared"
        return money(self.ledger.view("claude"))


def at_once(asked: Coroutine[Any, Any, T]) -> T:
    """What `asked` gives, if it does not wait for anything."""
    try:
        asked.send(None)
    except StopIteration as done:
        given: T = done.value
        return given
    finally:
        asked.close()
    raise AssertionError("it waited")


def with_outage(place: Place, test: Callable[[Outage], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        outage = Outage(place)
        await outage.store.open()
        await test(outage)
        await outage.store.close()

    asyncio.run(main())


def test_a_budget_that_somebody_set_refuses_at_once_and_says_why(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        with pytest.raises(ServiceRefused) as refused:
            at_once(outage.ledger.hold(request("0.05", "12.50", explicit=True)))
        error = refused.value
        assert isinstance(error, ExternalServiceError) and not isinstance(error, BudgetExceeded)
        assert error.service == "claude" and error.retry_after_s is not None and error.retry_after_s < 60
        assert (
            "nobody can tell whether the day's budget of $12.50 covers this call, because the state store"
            in str(error)
        )
        await outage.end()
        await outage.ledger.hold(request("0.05", "12.50", explicit=True))

    with_outage(sqlite, test)


@pytest.mark.parametrize(("amount", "limit"), [("0", "1.00"), ("0.05", None)])
def test_what_no_budget_speaks_about_goes_on(sqlite: Place, amount: str, limit: str | None) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        hold = at_once(outage.ledger.hold(request(amount, limit, explicit=True)))
        outage.ledger.settle(hold, bill("0.01"))
        await outage.end()
        assert await outage.numbers() == usd("0.01")

    with_outage(sqlite, test)


def test_the_default_budget_goes_on_at_once_from_the_last_known_numbers_in_this_process(
    sqlite: Place,
) -> None:
    async def test(outage: Outage) -> None:
        outage.ledger.settle(await outage.ledger.hold(request("0.50")), bill("0.40"))
        await outage.ledger.flush()
        await outage.ledger.hold(request("0.30"))
        await outage.begin()
        assert outage.ledger.view("claude").scope == "this process"
        assert money(outage.ledger.view("claude")) == usd("0.40", "0.30")
        settled, released = (at_once(outage.ledger.hold(request("0.10"))) for _ in range(2))
        assert outage.ledger.view("claude").scope == "this process"
        assert money(outage.ledger.view("claude")) == usd("0.70", "0.20")
        with pytest.raises(BudgetExceeded):
            at_once(outage.ledger.hold(request("0.11")))
        outage.ledger.settle(settled, bill("0.05"))
        outage.ledger.release(released)
        assert money(outage.ledger.view("claude")) == usd("0.75")
        at_once(outage.ledger.hold(request("0.25")))
        at_once(outage.ledger.hold(request("1.00", service="openai")))
        await outage.end()

    with_outage(sqlite, test)


def test_what_was_held_and_spent_meanwhile_is_booked_when_the_store_is_back(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        before = await outage.ledger.hold(request("0.10"))
        await outage.begin()
        settled = at_once(outage.ledger.hold(request("0.05", tag="meanwhile")))
        released = at_once(outage.ledger.hold(request("0.05")))
        running = at_once(outage.ledger.hold(request("0.20")))
        outage.ledger.settle(before, bill("0.01"))
        outage.ledger.settle(settled, bill("0.02"))
        outage.ledger.release(released)
        await outage.end()
        assert await outage.numbers() == usd("0.03", "0.20")
        outage.ledger.settle(running, bill("0.15"))
        assert await outage.numbers() == usd("0.18")
        assert await outage.store.quotas.used_today("claude") == 4
        (entry,) = [entry for entry in await outage.store.entries.of_day(outage.clock.day) if entry.tag]
        assert (entry.id, entry.amount_usd, entry.model) == (settled.id, Decimal("0.02"), "m-1")

    with_outage(sqlite, test)


def test_a_bill_above_its_hold_is_booked_whole_published_and_shown(sqlite: Place) -> None:
    """Whether the store is there or away; what was within its hold, or is no money, is no news."""

    async def test(outage: Outage) -> None:
        ledger = outage.ledger
        ledger.settle(await ledger.hold(request("0.05")), bill("0.05"))
        ledger.settle(await ledger.hold(request("0.05")), bill("NaN"))
        assert outage.events == [] and ledger.view("claude").above_hold_usd == 0
        ledger.settle(await ledger.hold(request("0.05")), bill("0.20"))
        assert outage.events == [BillExceededHold("claude", "0.20", "0.05")]
        assert ledger.view("claude").above_hold_usd == Decimal("0.15")
        assert await outage.numbers() == usd("0.30")
        await outage.begin()
        ledger.settle(at_once(ledger.hold(request("0.10"))), bill("0.11"))
        assert BillExceededHold("claude", "0.11", "0.10") in outage.events
        assert ledger.view("claude").above_hold_usd == Decimal("0.16")
        assert ledger.view("openai").above_hold_usd == 0
        await outage.end()
        assert await outage.numbers() == usd("0.41")
        outage.clock.now += DAY_S
        assert ledger.view("claude").above_hold_usd == 0, "a new day begins"

    with_outage(sqlite, test)


def test_a_second_outage_begins_with_what_was_spent_in_the_first(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        outage.ledger.settle(at_once(outage.ledger.hold(request("0.60"))), bill("0.60"))
        await outage.end()
        await outage.ledger.flush()
        other = SqlStore(sqlite.url, clock=outage.clock)
        other.ledger.settle(await other.ledger.hold(request("0.20")), bill("0.20"))
        await other.close()
        await outage.ledger.refresh()
        await outage.begin()
        assert money(outage.ledger.view("claude")) == usd("0.80")
        with pytest.raises(BudgetExceeded):
            at_once(outage.ledger.hold(request("0.30")))
        at_once(outage.ledger.hold(request("0.20")))
        await outage.end()
        assert await outage.numbers() == usd("0.80", "0.20")

    with_outage(sqlite, test)


def test_a_store_that_is_lost_again_before_anything_was_written_hands_out_no_money_twice(
    sqlite: Place,
) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        at_once(outage.ledger.hold(request("0.70")))
        outage.ledger.store_changed("it is away, as before")
        with pytest.raises(BudgetExceeded):
            at_once(outage.ledger.hold(request("0.40")))
        await outage.end()
        assert await outage.numbers() == usd("0", "0.70")

    with_outage(sqlite, test)


def test_a_day_that_ends_during_an_outage_begins_with_all_its_money(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        late = at_once(outage.ledger.hold(request("1.00")))
        outage.clock.now += DAY_S
        at_once(outage.ledger.hold(request("1.00")))
        outage.ledger.settle(late, bill("0.90"))
        await outage.end()
        assert await outage.numbers() == usd("0", "1.00")
        rows = sqlite.sql("SELECT settled, held FROM koo_days ORDER BY day")
        assert rows == [(900_000_000_000, 0), (0, 10**12)]

    with_outage(sqlite, test)


def test_nothing_is_swept_while_the_store_is_away_and_everything_after(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        await outage.ledger.hold(request("0.10"))
        await outage.begin()
        at_once(outage.ledger.hold(request("0.20")))
        outage.clock.now += LONG_AFTER_S
        assert at_once(outage.ledger.sweep()) == []
        assert money(outage.ledger.view("claude")) == usd("0.30")
        await outage.end()
        await outage.ledger.flush()
        assert sorted(hold.amount_usd for hold in await outage.ledger.sweep()) == [
            Decimal("0.1"),
            Decimal("0.2"),
        ]
        assert await outage.numbers() == usd("0.30")

    with_outage(sqlite, test)


def test_losing_and_finding_the_store_is_told_once_each(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        for _ in range(3):
            at_once(outage.ledger.hold(request("0.01")))
        await outage.end()
        await until(lambda: len(outage.events) == 2)
        lost, found = outage.events
        assert isinstance(lost, StoreLost) and isinstance(found, StoreFound)
        assert "budgets that somebody set refuse" in lost.reason

    with_outage(sqlite, test)


def test_a_hold_that_the_database_does_not_take_is_refused_and_is_no_outage(shared: Place) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        ledger = GuardedLedger(store.ledger)
        await store.open()
        shared.forbid_more_than("0.10")
        with pytest.raises(ServiceRefused, match="does not take this: IntegrityError"):
            await ledger.hold(request("0.50"))
        assert store.trouble is None and ledger.view("claude").scope == "shared"
        await ledger.hold(request("0.05"))
        await store.close()

    asyncio.run(main())


def test_a_store_that_was_never_there_is_no_reason_not_to_work(sqlite: Place) -> None:
    async def main() -> None:
        sqlite.file.parent.write_text("not a folder")
        outage = Outage(sqlite)
        hold = await outage.ledger.hold(request("0.05"))
        assert outage.ledger.view("claude").scope == "this process"
        with pytest.raises(ServiceRefused):
            await outage.ledger.hold(request("0.05", explicit=True))
        outage.ledger.settle(hold, bill("0.02"))
        sqlite.file.parent.unlink()
        await until(lambda: outage.store.trouble is None)
        assert await outage.numbers() == usd("0.02")
        await outage.store.close()

    asyncio.run(main())
