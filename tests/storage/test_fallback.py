"""Money while the store is unreachable: purses last until they are used up; then a set budget refuses and a default one
continues.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any, TypeVar

import pytest

from koo.options import DAY_S
from koo.policies.purse import Hold, Refusal
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore
from koo.testing.polling import until
from tests.storage.support import (
    CLAUDE,
    Place,
    Refused,
    SetClock,
    entries_of,
    hold,
    impatient,
    know,
    numbers,
    pico,
    seen,
    settle,
    spend,
    usd,
)

T = TypeVar("T")


class Outage:
    """A store on a file that another process can lock, which makes the store unreachable."""

    def __init__(self, place: Place, *, is_default: bool = True, limit: str = "1.00") -> None:
        self.place = place
        self.clock = SetClock()
        self.changes: list[str | None] = []
        self.store = impatient(place.url, 0.4, clock=self.clock)
        self.store.watch(self.changes.append)
        know(self.store, limit, is_default=is_default)

    async def begin(self) -> None:
        self.locker = sqlite3.connect(self.place.file, isolation_level=None)
        while True:  # the store itself needs the lock too
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
        await numbers(self.store)
        assert self.store.ledger.view(CLAUDE).scope == "shared"
        return seen(self.store)


def at_once(asked: Coroutine[Any, Any, T]) -> T:
    """The result of `asked`, which must not wait for anything."""
    try:
        asked.send(None)
    except StopIteration as done:
        given: T = done.value
        return given
    finally:
        asked.close()
    raise AssertionError("it waited")


def with_outage(place: Place, test: Callable[[Outage], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        outage = Outage(place, **options)
        await outage.store.open()
        await test(outage)
        await outage.store.close()

    asyncio.run(main())


def test_without_the_store_a_set_budget_refuses_immediately(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        with pytest.raises(Refused) as refused:
            at_once(hold(outage.store, "0.05"))
        assert refused.value.why is Refusal.AWAY
        await outage.end()
        await hold(outage.store, "0.05")

    with_outage(sqlite, test, is_default=False)


def test_without_the_store_free_calls_and_unlimited_budgets_continue(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        know(outage.store, None, "service/unlimited")
        await outage.begin()
        settle(outage.store, at_once(hold(outage.store, "0")), "0.01")
        settle(outage.store, at_once(hold(outage.store, "3.00", "service/unlimited")), "2.00")
        await outage.end()
        assert await outage.numbers() == usd("0.01")
        assert await numbers(outage.store, "service/unlimited") == usd("2.00")

    with_outage(sqlite, test, is_default=False)


def test_without_the_store_a_set_budget_spends_its_purse_before_it_refuses(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        first = await hold(outage.store, "0.50")
        await outage.begin()
        outage.store.ledger.shrink(first, pico("0.10"))
        settle(outage.store, at_once(hold(outage.store, "0.25")), "0.20")
        at_once(hold(outage.store, "0.20"))
        with pytest.raises(Refused):
            at_once(hold(outage.store, "0.01"))
        settle(outage.store, first, "0.10")
        await outage.end()
        assert await outage.numbers() == usd("0.30", "0.20")
        assert sqlite.booked() == (pico("0.50"), pico("0.30"))

    with_outage(sqlite, test, is_default=False)


def test_without_the_store_a_default_budget_continues_from_the_last_known_numbers(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        store = outage.store
        other = SqlStore(sqlite.url, clock=outage.clock)
        know(other)
        await spend(other, "0.40", "0.50")
        await other.close()
        await hold(store, "0.30")
        await store.ledger.refresh()
        await outage.begin()
        assert store.ledger.view(CLAUDE).scope == "this process"
        assert seen(store) == usd("0.40", "0.30")
        settled, released = (at_once(hold(store, "0.10")) for _ in range(2))
        assert seen(store) == usd("0.40", "0.50")
        with pytest.raises(Refused):
            at_once(hold(store, "0.11"))
        settle(store, settled, "0.05")
        store.ledger.release(released)
        assert seen(store) == usd("0.45", "0.30")
        at_once(hold(store, "0.25"))
        await outage.end()
        assert await outage.numbers() == usd("0.45", "0.55")

    with_outage(sqlite, test)


def test_waiting_callers_are_decided_immediately_when_the_store_is_lost(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        know(outage.store, "1.00", "budget/set")
        first = await hold(outage.store, "0.80")
        other = sqlite3.connect(sqlite.file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = [
            asyncio.create_task(hold(outage.store, "0.20")),
            asyncio.create_task(hold(outage.store, "0.20", CLAUDE, "budget/set")),
        ]
        default, explicit = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(default, Hold)
        assert isinstance(explicit, Refused) and explicit.why is Refusal.AWAY
        other.close()
        await until(lambda: outage.store.trouble is None)
        settle(outage.store, first, "0.80")
        assert await outage.numbers() == usd("0.80", "0.20")

    with_outage(sqlite, test)


def test_spending_during_an_outage_is_reported_with_its_entries_when_the_store_is_back(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        store = outage.store
        before = await hold(store, "0.10")
        await outage.begin()
        settled, released, running = (at_once(hold(store, amount)) for amount in ("0.05", "0.05", "0.20"))
        settle(store, before, "0.01")
        settle(store, settled, "0.02")
        store.ledger.release(released)
        await outage.end()
        assert await outage.numbers() == usd("0.03", "0.20")
        settle(store, running, "0.15")
        assert await outage.numbers() == usd("0.18")
        entries = await entries_of(store, outage.clock.day)
        assert [entry.amount_usd for entry in entries] == [Decimal(one) for one in ("0.01", "0.02", "0.15")]
        assert sqlite.booked() == (pico("0.18"), pico("0.18"))

    with_outage(sqlite, test)


def test_a_second_outage_starts_with_the_spending_of_the_first(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        settle(outage.store, at_once(hold(outage.store, "0.60")), "0.60")
        await outage.end()
        await outage.store.ledger.refresh()
        other = SqlStore(sqlite.url, clock=outage.clock)
        know(other)
        await spend(other, "0.20", "0.20")
        await other.close()
        await outage.store.ledger.refresh()
        await outage.begin()
        assert seen(outage.store) == usd("0.80")
        with pytest.raises(Refused):
            at_once(hold(outage.store, "0.30"))
        at_once(hold(outage.store, "0.20"))
        await outage.end()
        assert await outage.numbers() == usd("0.80", "0.20")

    with_outage(sqlite, test)


def test_a_store_lost_again_before_the_first_write_grants_no_money_twice(
    sqlite: Place,
) -> None:
    async def test(outage: Outage) -> None:
        await outage.begin()
        at_once(hold(outage.store, "0.70"))
        outage.store.ledger.store_changed("still unreachable")
        with pytest.raises(Refused):
            at_once(hold(outage.store, "0.40"))
        await outage.end()
        assert await outage.numbers() == usd("0", "0.70")

    with_outage(sqlite, test)


def test_a_day_that_begins_during_an_outage_has_its_whole_budget(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        other = SqlStore(sqlite.url, clock=outage.clock)
        know(other)
        await spend(other, "0.50", "0.50")
        await other.close()
        await outage.store.ledger.refresh()
        await outage.begin()
        late = at_once(hold(outage.store, "0.50"))
        outage.clock.now += DAY_S
        early = at_once(hold(outage.store, "1.00"))
        settle(outage.store, late, "0.40")
        await outage.end()
        assert await outage.numbers() == usd("0", "1.00")
        settle(outage.store, early, "1.00")
        assert await outage.numbers() == usd("1.00")
        rows = sqlite.sql("SELECT booked, spent FROM koo_treasuries ORDER BY period")
        assert rows == [(pico("0.90"), pico("0.90")), (pico("1.00"), pico("1.00"))]

    with_outage(sqlite, test)


def test_losing_and_finding_the_store_is_reported_once_each(sqlite: Place) -> None:
    async def test(outage: Outage) -> None:
        running = asyncio.create_task(outage.store.ledger.run())
        await outage.begin()
        for _ in range(3):
            settle(outage.store, at_once(hold(outage.store, "0.01")), "0.01")
        await outage.end()
        await until(lambda: len(outage.changes) == 2)
        assert outage.changes[0] is not None and outage.changes[1] is None
        await until(lambda: sqlite.booked() == (pico("0.03"), pico("0.03")))
        running.cancel()

    with_outage(sqlite, test)


def test_a_grant_that_the_database_rejects_is_refused_without_an_outage(shared: Place) -> None:
    async def main() -> None:
        store = shared.sql_store()
        await store.open()
        shared.forbid_more_than("0.10")
        with pytest.raises(Refused) as refused:
            await hold(store, "0.50")
        assert refused.value.why is Refusal.AWAY
        assert store.trouble is None and store.ledger.view(CLAUDE).scope == "shared"
        await store.executor.stop()

    asyncio.run(main())


def test_a_store_that_was_never_available_does_not_stop_calls(sqlite: Place) -> None:
    async def main() -> None:
        sqlite.file.parent.write_text("not a folder")
        outage = Outage(sqlite)
        know(outage.store, "1.00", "budget/set")
        given = await hold(outage.store, "0.05")
        assert outage.store.ledger.view(CLAUDE).scope == "this process"
        with pytest.raises(Refused):
            await hold(outage.store, "0.05", CLAUDE, "budget/set")
        settle(outage.store, given, "0.02")
        sqlite.file.parent.unlink()
        await until(lambda: outage.store.trouble is None)
        assert await outage.numbers() == usd("0.02")
        await outage.store.close()

    asyncio.run(main())


def test_a_process_started_without_the_store_later_reports_its_requests_and_reads_the_others(
    sqlite: Place,
) -> None:
    async def main() -> None:
        other = SqlStore(sqlite.url, clock=SetClock())
        know(other, None, "requests/claude")
        theirs = other.ledger.purses.budgets["requests/claude"]
        other.ledger.count(theirs, theirs.purse.key.period, 100)
        await other.close()
        outage = Outage(sqlite)
        store = outage.store
        know(store, None, "requests/claude")
        budget = store.ledger.purses.budgets["requests/claude"]
        await outage.begin()
        store.ledger.count(budget, budget.purse.key.period, 5)
        assert store.ledger.counted_elsewhere(budget, budget.purse.key.period) == 0
        await outage.end()
        await store.ledger.refresh()
        assert store.ledger.counted_elsewhere(budget, budget.purse.key.period) == 100
        assert sqlite.booked("requests/claude") == (105, 105)
        await store.close()

    asyncio.run(main())
