"""The books keep what is needed to check a provider's bill."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from koo.options import DAY_S
from koo.storage.base import Bill
from koo.storage.store import SqlStore
from tests.storage.support import LONG_AFTER_S, NOON_S, Place, SetClock, bill, request


def test_an_entry_keeps_tokens_by_class_unit_prices_and_where_the_price_came_from(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as store:
            hold = await store.ledger.hold(request("0.05", tag="nightly"))
            cost = Bill(
                amount_usd=Decimal("0.000123456789"),
                source="table",
                model="m-2026",
                input_tokens=1,
                cache_read_tokens=2,
                cache_write_tokens=3,
                output_tokens=4,
                reasoning_tokens=5,
                unit_prices={"input": "3", "output": "15"},
                price_version="2026-11",
            )
            store.ledger.settle(hold, cost)
            await store.ledger.flush()
            (entry,) = await store.entries.of_day(clock.day)
            assert (entry.id, entry.at, entry.service, entry.day) == (hold.id, NOON_S, "claude", clock.day)
            assert (entry.amount_usd, entry.held_usd) == (cost.amount_usd, Decimal("0.05"))
            assert (entry.model, entry.source, entry.estimated) == ("m-2026", "table", False)
            assert (entry.input_tokens, entry.cache_read_tokens, entry.cache_write_tokens) == (1, 2, 3)
            assert (entry.output_tokens, entry.reasoning_tokens) == (4, 5)
            assert (entry.unit_prices, entry.price_version) == (cost.unit_prices, "2026-11")
            assert (entry.tag, entry.process) == ("nightly", store.process)

    asyncio.run(main())


def test_an_entry_keeps_the_callers_own_words_also_of_a_hold_that_was_lost(shared: Place) -> None:
    """In letters that any database takes, and cut where somebody hands over a book."""

    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as store:
            words = {"team": "blue", "\ud800": "nul\0", "long": "x" * 10_000}
            settled = await store.ledger.hold(request(tag="nightly", metadata=words))
            store.ledger.settle(settled, bill())
            lost = await store.ledger.hold(request(metadata={"team": "red"}))
            plain = await store.ledger.hold(request())
            clock.now += LONG_AFTER_S
            await store.ledger.sweep()
            entries = {entry.id: entry for entry in await store.entries.of_day(clock.day)}
            assert entries[settled.id].metadata == {**words, "long": "x" * 256}
            assert entries[settled.id].tag == "nightly"
            assert entries[lost.id].metadata == {"team": "red"} and entries[plain.id].metadata == {}

    asyncio.run(main())


def test_token_counts_that_cannot_be_are_kept_as_near_as_a_number_holds(shared: Place) -> None:
    async def main() -> None:
        async with SqlStore(shared.url, clock=SetClock()) as store:
            hold = await store.ledger.hold(request("0.05"))
            cost = Bill(
                amount_usd=Decimal("0.01"), source="table", model="m", input_tokens=-3, output_tokens=2**70
            )
            store.ledger.settle(hold, cost)
            await store.ledger.flush()
            (entry,) = await store.entries.of_day(hold.day)
            assert (entry.input_tokens, entry.output_tokens) == (0, 2**63 - 1)

    asyncio.run(main())


def test_an_estimate_is_marked_and_a_lost_hold_is_one(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as store:
            guessed = await store.ledger.hold(request("0.05"))
            store.ledger.settle(guessed, Bill(amount_usd=Decimal("0.04"), source="estimate", model="m"))
            lost = await store.ledger.hold(request("0.07"))
            clock.now += LONG_AFTER_S
            await store.ledger.sweep()
            entries = {entry.id: entry for entry in await store.entries.of_day(clock.day)}
            assert entries[guessed.id].estimated and entries[lost.id].estimated
            assert (entries[lost.id].amount_usd, entries[lost.id].model) == (Decimal("0.07"), "m")

    asyncio.run(main())


def test_old_entries_are_forgotten_with_their_days_but_never_a_hold(shared: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        async with SqlStore(shared.url, clock=clock) as store:
            store.ledger.settle(await store.ledger.hold(request("0.05")), bill("0.01"))
            await store.ledger.hold(request("0.07", service="openai"))
            clock.now += DAY_S
            store.ledger.settle(await store.ledger.hold(request("0.05")), bill("0.02"))
            await store.ledger.flush()
            await store.entries.prune(clock.day)
            assert [entry.amount_usd for entry in await store.entries.of_day(clock.day)] == [Decimal("0.02")]
            assert await store.entries.of_day(clock.day - 1) == []
            assert shared.sql("SELECT service, day FROM koo_days ORDER BY service, day") == [
                ("claude", clock.day),
                ("openai", clock.day - 1),
            ]

    asyncio.run(main())
