"""The ledger's entries contain everything that is needed to check a provider's invoice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

import pytest

from koo.bookings import NEWEST
from koo.storage import base
from koo.storage.base import Bill, Entry
from koo.storage.postings import Ids
from koo.storage.store import SqlStore
from tests.storage.support import Place, SetClock, bill, entries_of, hold, numbers, pico, usd


def with_store(place: Place, test: Callable[[SqlStore, SetClock], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = place.clock()
        store = place.sql_store(clock, "100")
        await test(store, clock)
        await store.close()

    asyncio.run(main())


async def booked(store: SqlStore, *costs: Bill, amount: str = "0.05") -> list[Entry]:
    """Today's entries after calls with these bills."""
    for cost in costs:
        given = await hold(store, amount)
        day = given.purses[0].key.period
        store.ledger.settle(given, "claude", cost)
    await store.ledger.refresh()
    return await entries_of(store, day)


def test_an_entry_keeps_tokens_by_class_unit_prices_and_the_source_of_the_price(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
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
            tag="nightly",
        )
        (entry,) = await booked(store, cost)
        assert (entry.at, entry.service) == (clock.now, "claude")
        assert (entry.amount_usd, entry.held_usd) == (cost.amount_usd, Decimal("0.05"))
        assert (entry.model, entry.source, entry.estimated) == ("m-2026", "table", False)
        assert (entry.input_tokens, entry.cache_read_tokens, entry.cache_write_tokens) == (1, 2, 3)
        assert (entry.output_tokens, entry.reasoning_tokens) == (4, 5)
        assert (entry.unit_prices, entry.price_version) == (cost.unit_prices, "2026-11")
        assert (entry.tag, entry.process) == ("nightly", store.ledger.purses.name)

    with_store(shared, test)


def test_an_entry_keeps_the_callers_tag_and_metadata(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        words = {"team": "blue", "\ud800": "nul\0", "long": "x" * 10_000}
        entries = await booked(store, bill(metadata=words), bill())
        assert [entry.metadata for entry in entries] == [{**words, "long": "x" * 256}, {}]

    with_store(shared, test)


def test_characters_that_a_database_rejects_are_removed_from_an_entrys_texts(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        (entry,) = await booked(store, bill(tag="a\0b\ud800c" + "x" * 1000))
        assert entry.tag is not None and entry.tag.startswith("ab?cxxx") and len(entry.tag) <= 256

    with_store(shared, test)


def test_impossible_token_counts_are_limited_to_what_a_column_can_store(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        cost = Bill(
            amount_usd=Decimal("0.01"), source="table", model="m", input_tokens=-3, output_tokens=2**70
        )
        (entry,) = await booked(store, cost)
        assert (entry.input_tokens, entry.output_tokens) == (0, 2**63 - 1)

    with_store(shared, test)


def test_an_estimate_is_marked(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        (entry,) = await booked(store, Bill(amount_usd=Decimal("0.04"), source="estimate", model="m"))
        assert entry.estimated

    with_store(shared, test)


def test_an_entry_that_the_store_rejects_blocks_no_money_and_no_other_entry(
    shared: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        await store.open()
        shared.sql("CREATE UNIQUE INDEX no_such_price ON koo_entries (model)")
        one = Bill(amount_usd=Decimal("0.03"), source="table", model="one")
        other = Bill(amount_usd=Decimal("0.02"), source="table", model="other")
        entries = await booked(store, one, one, other)
        assert sorted(entry.model for entry in entries) == ["one", "other"]
        assert store.ledger.dropped == 1 and store.trouble is None
        assert "the ledger lost an entry of claude, but its money is counted" in caplog.text
        assert await numbers(store) == usd("0.08")
        assert shared.booked() == (pico("0.08"), pico("0.08"))

    with_store(shared, test)


def test_entries_beyond_one_beats_limit_are_sent_with_the_next_beats(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        await store.open()
        for _ in range(1200):
            given = await hold(store, "0")
            store.ledger.settle(given, "claude", bill("0"))
        await store.ledger.beat()
        ((written,),) = shared.sql("SELECT count(*) FROM koo_entries")
        assert 0 < written < 1200
        await store.close()
        assert shared.sql("SELECT count(*) FROM koo_entries") == [(1200,)]

    with_store(shared, test)


def test_entries_beyond_the_queues_limit_are_dropped_and_counted_but_their_money_is_booked(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        await store.open()
        monkeypatch.setattr("koo.storage.ledger.POSTINGS_MAX", 3)
        holds = [await hold(store, "0.05") for _ in range(5)]
        for given in holds:
            store.ledger.settle(given, "claude", bill("0.01"))
        assert store.ledger.dropped == 2
        assert "3 ledger entries are waiting and 1 were dropped" in caplog.text
        assert await numbers(store) == usd("0.05")
        assert sqlite.sql("SELECT count(*) FROM koo_entries") == [(3,)]

    with_store(sqlite, test)


def test_a_forked_child_draws_ids_that_its_parent_does_not_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = Ids()
    mine = [ids.new() for _ in range(100)]
    assert mine == sorted(set(mine))
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert ids.new()[:16] != mine[0][:16]


def test_the_latest_entries_are_paged_newest_first_even_within_one_millisecond(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        await booked(store, *(bill("0.01") for _ in range(3)))
        clock.advance(1)
        await booked(store, bill("0.02"))
        pages, before = [], NEWEST
        while page := await store.entries.latest(before, {}, limit=2):
            pages.append([str(one.amount_usd.normalize()) for one in page])
            before = base.Place(round(page[-1].at * 1000), page[-1].id)
        assert pages == [["0.02", "0.01"], ["0.01", "0.01"]]

    with_store(shared, test)


def test_the_latest_entries_can_be_filtered_by_service_model_and_tag(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        one = bill("0.01")
        await booked(store, one, one._replace(model="haiku"), one._replace(tag="team"))
        for wanted, count in (
            ({}, 3),
            ({"service": "claude"}, 3),
            ({"service": "openai"}, 0),
            ({"model": "haiku"}, 1),
            ({"model": one.model, "tag": "team"}, 1),
        ):
            assert len(await store.entries.latest(NEWEST, wanted, limit=10)) == count, wanted

    with_store(shared, test)
