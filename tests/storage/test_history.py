"""History in the store: the rows of all processes are read together, merged, and deleted when they are old."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

from koo.options import DAY_S
from koo.policies.samples import Sample, Span
from koo.spans import Mark
from koo.storage.history import FIVE_MINUTES_S, KEPT_S, MARKS_MAX, MINUTE_S
from koo.storage.store import SqlStore
from tests.storage.support import NOON_S, Place, SetClock, bill, hold

NOON = int(NOON_S)
CLAUDE: Span = {"ai:claude": Sample("healthy", successes=3, latency={4: 3}, used=2)}


def with_stores(place: Place, test: Callable[[SqlStore, SqlStore, SetClock], Awaitable[None]]) -> None:
    """Two processes on one store."""

    async def main() -> None:
        clock = place.clock()
        one, other = place.sql_store(clock, "100"), place.sql_store(clock, "100")
        await test(one, other, clock)
        await one.close()
        await other.close()

    asyncio.run(main())


def rows(place: Place) -> int:
    return int(place.sql("SELECT count(*) FROM koo_history")[0][0])


def test_the_rows_of_all_processes_are_read_as_one_history(shared: Place) -> None:
    async def test(one: SqlStore, other: SqlStore, _: SetClock) -> None:
        await one.history.write([(MINUTE_S, NOON, CLAUDE)])
        await other.history.write(
            [(MINUTE_S, NOON, CLAUDE), (MINUTE_S, NOON + MINUTE_S, {"ai:claude": Sample("circuit_open")})]
        )
        spans = await one.history.read(MINUTE_S, NOON, NOON + 120, MINUTE_S)
        assert spans == {
            NOON: {"ai:claude": Sample("healthy", successes=6, latency={4: 6}, used=4)},
            NOON + MINUTE_S: {"ai:claude": Sample("circuit_open")},
        }

    with_stores(shared, test)


def test_longer_spans_are_built_from_consecutive_spans(shared: Place) -> None:
    async def test(one: SqlStore, _: SqlStore, __: SetClock) -> None:
        for minute in range(4):
            await one.history.write([(MINUTE_S, NOON + minute * MINUTE_S, CLAUDE)])
        spans = await one.history.read(MINUTE_S, NOON, NOON + 240, 120)
        assert [(at, span["ai:claude"].successes, span["ai:claude"].used) for at, span in spans.items()] == [
            (NOON, 6, 2),
            (NOON + 120, 6, 2),
        ]

    with_stores(shared, test)


def test_writing_a_span_again_replaces_only_the_process_own_row(shared: Place) -> None:
    async def test(one: SqlStore, other: SqlStore, _: SetClock) -> None:
        await other.history.write([(FIVE_MINUTES_S, NOON, CLAUDE)])
        for successes in (1, 5):
            await one.history.write([(FIVE_MINUTES_S, NOON, {"ai:claude": Sample("healthy", successes)})])
        spans = await other.history.read(FIVE_MINUTES_S, NOON, NOON + 300, FIVE_MINUTES_S)
        assert spans[NOON]["ai:claude"].successes == 8

    with_stores(shared, test)


def test_after_an_hour_the_rows_of_several_processes_are_merged_without_changing_the_result(
    shared: Place,
) -> None:
    async def test(one: SqlStore, other: SqlStore, clock: SetClock) -> None:
        for store in (one, other):
            await store.history.write([(MINUTE_S, NOON, CLAUDE), (FIVE_MINUTES_S, NOON, CLAUDE)])
        before = await one.history.read(MINUTE_S, NOON, NOON + 60, MINUTE_S)
        assert not await one.history.prune(NOON + 3600)
        assert rows(shared) == 4, "rows are not merged before their hour is over"
        await asyncio.gather(one.history.prune(NOON + 3601), other.history.prune(NOON + 3601))
        assert rows(shared) == 2
        assert await one.history.read(MINUTE_S, NOON, NOON + 60, MINUTE_S) == before
        await other.history.write([(MINUTE_S, NOON, CLAUDE)])  # from a process that reports late
        await one.history.prune(NOON + 3601)
        spans = await one.history.read(MINUTE_S, NOON, NOON + 60, MINUTE_S)
        assert rows(shared) == 2 and spans[NOON]["ai:claude"].successes == 9

    with_stores(shared, test)


def test_rows_of_a_minute_are_kept_for_two_days_and_rows_of_five_minutes_for_thirty(shared: Place) -> None:
    async def test(one: SqlStore, _: SqlStore, __: SetClock) -> None:
        assert (KEPT_S[MINUTE_S], KEPT_S[FIVE_MINUTES_S]) == (2 * DAY_S, 30 * DAY_S)
        for step_s, kept_s in KEPT_S.items():
            await one.history.write([(step_s, NOON - kept_s - 1, CLAUDE), (step_s, NOON - kept_s, CLAUDE)])
        await one.history.prune(NOON)
        assert rows(shared) == 2

    with_stores(shared, test)


def test_the_historys_spending_is_read_from_the_ledger(shared: Place) -> None:
    async def test(one: SqlStore, _: SqlStore, clock: SetClock) -> None:
        noon = int(clock.wall())
        one.ledger.settle(await hold(one, "0.05"), "claude", bill("0.02"))
        clock.advance(MINUTE_S)
        one.ledger.settle(await hold(one, "0.05"), "claude", bill("0.01"))
        await one.ledger.refresh()
        spent = await one.history.spent(noon, noon + 120, MINUTE_S)
        usd = {at - noon: Decimal(amount) / 10**12 for (_, at), amount in spent.items()}
        assert usd == {0: Decimal("0.02"), MINUTE_S: Decimal("0.01")}
        assert await one.history.spent(noon - 60, noon, MINUTE_S) == {}

    with_stores(shared, test)


def test_an_unreadable_row_does_not_hide_the_others(shared: Place) -> None:
    async def test(one: SqlStore, _: SqlStore, __: SetClock) -> None:
        await one.history.write([(MINUTE_S, NOON, CLAUDE)])
        shared.sql(
            "INSERT INTO koo_history VALUES (60, "
            f'{NOON}, \'newer\', \'{{"ai:claude": ["well", "many"], "ai:b": ["healthy", 1]}}\')'
        )
        spans = await one.history.read(MINUTE_S, NOON, NOON + 60, MINUTE_S)
        assert spans[NOON] == CLAUDE | {"ai:b": Sample("healthy", 1)}

    with_stores(shared, test)


# ── marks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_processes_of_a_deploy_record_one_mark(shared: Place) -> None:
    async def test(one: SqlStore, other: SqlStore, _: SetClock) -> None:
        for at, text in enumerate(["1.0", "1.0", "1.1", "1.1"]):
            stores = (one, other)
            await asyncio.gather(
                *(store.history.mark_change(Mark(NOON + at * 60, "deploy", "koo", text)) for store in stores)
            )
        marks = await one.history.marks(NOON, NOON + 300, limit=10)
        assert [(mark.at, mark.text) for mark in marks] == [(NOON, "1.0"), (NOON + 120, "1.1")]

    with_stores(shared, test)


def test_the_same_mark_from_several_processes_is_shown_once(shared: Place) -> None:
    async def test(one: SqlStore, other: SqlStore, _: SetClock) -> None:
        for store, at in ((one, 0.0), (other, 1.5), (one, 4.0), (other, 60.0)):
            await store.history.mark([Mark(NOON + at, "circuit", "ai:claude", "opened")])
        marks = await one.history.marks(NOON, NOON + 300, limit=10)
        assert [mark.at - NOON for mark in marks] == [0.0, 60.0]

    with_stores(shared, test)


def test_marks_are_limited_in_age_and_number(sqlite: Place) -> None:
    async def test(one: SqlStore, _: SqlStore, __: SetClock) -> None:
        old = Mark(NOON - 31 * DAY_S, "act", "database", "paused")
        await one.history.mark(
            [old, *(Mark(NOON + n, "act", "ai:a", f"act {n}") for n in range(MARKS_MAX + 10))]
        )
        await one.history.prune(NOON)
        assert sqlite.sql("SELECT count(*), min(at_ms) FROM koo_marks") == [
            (MARKS_MAX + 1, (NOON + 9) * 1000)
        ]
        newest = await one.history.marks(NOON, NOON + 10**6, limit=2)
        assert [mark.at - NOON for mark in newest] == [MARKS_MAX + 8, MARKS_MAX + 9]

    with_stores(sqlite, test)
