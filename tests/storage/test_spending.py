"""Spending over days, money that dead processes left behind, and the deletion of old rows: on a file and on servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from koo.policies.treasury import LIVES_MS, Key
from koo.storage.base import Bill
from koo.storage.past import BATCH
from koo.storage.postings import Posting, book
from koo.storage.store import SqlStore
from tests.storage.support import (
    CLAUDE,
    Place,
    SetClock,
    entries_of,
    hold,
    know,
    numbers,
    pico,
    settle,
    spend,
    usd,
)

INTEGER_MAX = 2**63 - 1


def with_store(place: Place, test: Callable[[SqlStore, SetClock], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = place.clock()
        async with place.sql_store(clock, "100") as store:
            await test(store, clock)

    asyncio.run(main())


def posting(
    number: int,
    day: int,
    amount: str = "1",
    *,
    service: str = "claude",
    model: str = "m",
    tag: str | None = None,
    source: str = "table",
    tokens: int = 10,
) -> Posting:
    cost = Bill(
        amount_usd=Decimal(amount), source=source, model=model, tag=tag, input_tokens=tokens, cache_read_tokens=1,
        cache_write_tokens=1, output_tokens=tokens,
    )  # fmt: skip
    return Posting(str(number), day * 86_400_000, service, day, pico(amount), pico(amount), cost)


async def keep(store: SqlStore, *postings: Posting) -> None:
    await store.executor.run(lambda tx: book(tx, postings, "p"))


# ── what was spent ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_entries_are_added_up_by_day_service_model_and_tag(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        await keep(
            store,
            posting(1, 100, "0.000000000001"),
            posting(2, 100, "2", tag="night"),
            posting(3, 101, "3", source="estimate", model="n"),
            posting(4, 101, "4", service="openai"),
            posting(5, 102, "5"),
            posting(6, 99, "6"),
        )
        (all_days,) = await store.entries.spent(0, 200, ["service", "day"], limit=1)
        assert all_days.group == (99, "claude") and all_days.amount_usd == 6

        rows = await store.entries.spent(100, 101, ["service"])
        assert [(row.group, row.calls, row.amount_usd) for row in rows] == [
            (("claude",), 3, Decimal("5.000000000001")),
            (("openai",), 1, Decimal(4)),
        ]
        claude = rows[0]
        assert (claude.estimated_calls, claude.estimated_usd) == (1, Decimal(3))
        assert (claude.input_tokens, claude.output_tokens) == (36, 30)

        rows = await store.entries.spent(100, 101, ["tag", "model", "day"])
        assert [(row.group, row.amount_usd) for row in rows] == [
            ((100, "m", "night"), 2),
            ((100, "m", None), Decimal("0.000000000001")),
            ((101, "m", None), 4),
            ((101, "n", None), 3),
        ]
        assert await store.entries.spent(103, 200, ["model"]) == []

    with_store(shared, test)


def test_sums_beyond_a_databases_integers_are_exact(shared: Place) -> None:
    """Nine million dollars, and impossible token counts from a provider."""

    async def test(store: SqlStore, clock: SetClock) -> None:
        many = [posting(number, 1, "999999.999999999999", tokens=INTEGER_MAX) for number in range(12)]
        await keep(store, *many)
        (row,) = await store.entries.spent(1, 1, ["day"])
        assert row.amount_usd == 12 * Decimal("999999.999999999999")
        assert row.output_tokens == pytest.approx(12 * INTEGER_MAX)

    with_store(shared, test)


# ── what dead processes left behind ───────────────────────────────────────────────────────────────────────────────────


def test_a_dead_processs_money_is_found_written_off_once_and_recorded_with_the_operator(
    shared: Place,
) -> None:
    async def main() -> None:
        clock = shared.clock()
        dead, alive = shared.sql_store(clock), shared.sql_store(clock)
        know(dead, "5", "budget/team")
        know(dead, "5", "requests/claude")
        settle(dead, await hold(dead, "0.20", CLAUDE, "budget/team"), "0.10")
        await hold(dead, "0.30", CLAUDE, "budget/team")
        await hold(
            dead, "0.30", "requests/claude"
        )  # requests of the day, which are counted in the same table
        await dead.ledger.beat()
        name = dead.ledger.purses.name
        await spend(alive)
        assert await alive.unsettled.find() == [], "the process is alive"
        assert await alive.unsettled.write_off(name, "ada", "") == []

        shared.sql(f"UPDATE koo_processes SET seen_ms = seen_ms - {LIVES_MS + 1000} WHERE name = '{name}'")
        (left,) = await alive.unsettled.find()
        assert left.process == name and left.amounts == {
            Key("budget/team", clock.day): pico("0.30"),
            Key(CLAUDE, clock.day): pico("0.30"),
        }
        assert await alive.unsettled.write_off("another", "ada", "") == []
        (done,) = await alive.unsettled.write_off(name, "ada", "its host is gone")
        assert (done.process, done.by, done.reason, done.amounts) == (
            name,
            "ada",
            "its host is gone",
            left.amounts,
        )
        assert await alive.unsettled.find() == []
        assert await alive.unsettled.write_off(None, "ada", "") == []
        (recorded,) = await alive.unsettled.written_off(0, 1e10)
        assert replace(recorded, at=done.at) == done, "its time there is the store's"
        await numbers(alive)
        assert shared.booked()[0] == pico("0.11"), "reported spending stays spent"
        assert alive.ledger.standing(CLAUDE).unsettled == 0

        # It was alive after all: it continues under another name, and its holds are booked again.
        await dead.ledger.beat()
        assert dead.ledger.purses.name != name
        await dead.ledger.beat()
        assert shared.booked()[0] == pico("0.41")
        await dead.close()
        await alive.close()

    asyncio.run(main())


def test_the_money_of_all_dead_processes_is_written_off_together_and_recorded_separately(
    shared: Place,
) -> None:
    async def main() -> None:
        clock = shared.clock()
        stores = [shared.sql_store(clock) for _ in range(3)]
        for store in stores[:2]:
            await hold(store, "0.25")
            await store.ledger.beat()
        shared.sql(f"UPDATE koo_processes SET seen_ms = seen_ms - {LIVES_MS + 1000}")
        done = await stores[2].unsettled.write_off(None, "ada", "")
        assert {one.process for one in done} == {store.ledger.purses.name for store in stores[:2]}
        # Each can still be found after weeks of other signals.
        clock.now += 8 * 86_400
        await stores[2].signals.publish("reset", "claude")
        assert len(await stores[2].unsettled.written_off(0, 1e10)) == 2
        await hold(stores[2], "1.00")
        for store in stores:
            await store.executor.stop()

    asyncio.run(main())


# ── what the ledger forgets ───────────────────────────────────────────────────────────────────────────────────────────


def test_old_periods_are_deleted_completely_and_current_ones_are_kept(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        store.ledger.budget("budget/month", pico("5"), "month")
        given = await hold(store, "0.05", CLAUDE, "budget/month")
        settle(store, given, "0.02")
        await keep(store, posting(1, clock.day - 400), posting(2, clock.day - 399))
        old = "SELECT {names} FROM {table} WHERE 1 = 1"
        for table in ("koo_treasuries", "koo_purses"):
            assert shared.sql(old.format(names="count(*)", table=table)), (
                "the table must contain rows to keep"
            )
        before = clock.day - 399
        shared.sql(
            "INSERT INTO koo_treasuries VALUES "
            f"('{CLAUDE}', {before - 1}, 5, {before * 86_400_000 - 1}, 7, 7, 0), "
            f"('budget/month', 1, 5, {before * 86_400_000}, 7, 7, 0), "
            f"('service/old', {before - 1}, -1, 0, 7, 7, 0), ('service/new', {before}, -1, 0, 7, 7, 0)"
        )
        for budget, period in ((CLAUDE, before - 1), ("budget/month", 1), ("service/old", before - 1)):
            shared.sql(f"INSERT INTO koo_purses VALUES ('{budget}', {period}, 'gone', 7, 0, 7, 0, 0)")
        shared.sql(
            "INSERT INTO koo_processes (name, number, token, closed, seen_ms) "
            f"VALUES ('gone', 1, '', 0, 1), ('long ago', 1, '', 1, {before * 86_400_000 - 1})"
        )

        assert not await store.past.prune(before)
        await store.ledger.refresh()
        assert [entry.id for entry in await entries_of(store, clock.day - 399)] == ["2"]
        assert await entries_of(store, clock.day - 400) == []
        left = shared.sql("SELECT budget, period FROM koo_treasuries WHERE booked = 7 ORDER BY budget")
        assert left == [("budget/month", 1), ("service/new", before)]
        assert shared.sql("SELECT budget FROM koo_purses WHERE process = 'gone'") == [("budget/month",)]
        assert shared.sql("SELECT name FROM koo_processes WHERE name LIKE '%go%'") == [("gone",)], (
            "a purse refers to it"
        )
        assert await numbers(store) == await numbers(store, "budget/month") == usd("0.02")

    with_store(shared, test)


def test_a_late_report_about_a_deleted_period_changes_no_current_period(
    shared: Place,
) -> None:
    async def main() -> None:
        clock = shared.clock()
        late, old = shared.sql_store(clock), clock.day - 500
        late.ledger.count(late.ledger.purses.budgets[CLAUDE], old, pico("0.30"))
        await late.ledger.beat()
        async with shared.sql_store(clock) as living:
            await spend(living, "0.10")
            await living.ledger.refresh()
            shared.sql(f"UPDATE koo_treasuries SET limit_at_ms = 1 WHERE period = {old}")
            name = late.ledger.purses.name
            shared.sql(f"UPDATE koo_processes SET seen_ms = 1 WHERE name = '{name}'")
            shared.sql(f"DELETE FROM koo_purses WHERE process = '{name}' AND period = {clock.day}")
            await living.past.prune(clock.day - 400)
            assert shared.sql(f"SELECT count(*) FROM koo_purses WHERE period = {old}") == [(0,)]
            assert shared.sql("SELECT count(*) FROM koo_processes") == [(1,)]

            late.ledger.count(late.ledger.purses.budgets[CLAUDE], old, pico("0.05"))
            for _ in range(3):
                await late.ledger.beat()
            assert shared.sql(f"SELECT booked, spent FROM koo_treasuries WHERE period = {old}") == [
                (pico("0.05"), pico("0.05"))
            ]
            assert await numbers(living) == usd("0.10")
            assert shared.booked() == (pico("0.15"), pico("0.15")), "the books equal the sum of the purses"
            await late.close()

    asyncio.run(main())


def test_old_rows_are_deleted_in_small_batches(shared: Place) -> None:
    async def test(store: SqlStore, clock: SetClock) -> None:
        await keep(store, *(posting(number, 1) for number in range(BATCH + 5)))
        assert await store.past.prune(2)
        assert len(await entries_of(store, 1)) == 5
        assert not await store.past.prune(2)
        assert await entries_of(store, 1) == []

    with_store(shared, test)
