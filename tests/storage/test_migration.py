"""A store written by an older koo is upgraded with its money and its counts."""

from __future__ import annotations

import asyncio
import re

import pytest

from koo.storage import schema
from koo.storage.store import SqlStore
from koo.storage.transaction import Transaction
from tests.storage.support import CLAUDE, Place, Refused, hold, know, numbers, pico, seen, usd


def test_an_upgrade_keeps_money_and_counts_from_before_purses(
    shared: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with monkeypatch.context() as older:
            older.setattr(schema, "STEPS", schema.STEPS[:3])
            before = SqlStore(shared.url)
            await before.executor.run(lambda tx: None)
            await before.executor.stop()
        clock = shared.clock()
        shared.sql(
            f"INSERT INTO koo_days VALUES ('claude', {clock.day}, {pico('0.30')}, {pico('0.20')}, 7),"
            f" ('claude', {clock.day - 1}, {pico('0.90')}, 0, 5)"
        )
        store = shared.sql_store(clock)
        know(store, None, "requests/claude")
        await store.open()
        assert seen(store) == usd("0.30")
        assert store.ledger.view(CLAUDE).unsettled_usd * 10**12 == pico("0.20")
        budget = store.ledger.purses.budgets["requests/claude"]
        assert store.ledger.counted_elsewhere(budget, clock.day) == 7
        with pytest.raises(Refused):
            await hold(store, "0.51")
        await hold(store, "0.50")
        assert await numbers(store) == usd("0.30", "0.50")
        await store.close()

    asyncio.run(main())


def test_processes_that_upgrade_at_the_same_moment_wait_for_each_other(shared: Place) -> None:
    async def main() -> None:
        stores = [shared.sql_store() for _ in range(4)]
        await asyncio.gather(*(store.open() for store in stores))
        assert [store.trouble for store in stores] == [None] * 4
        for store in stores:
            await store.close()

    asyncio.run(main())


# ── two versions together ──────────────────────────────────────────────────────────────────────────────────────────

BEFORE_GROWTH = schema.STEPS[:7]
ADDS = re.compile(
    r"CREATE (TABLE|INDEX|UNIQUE INDEX) |INSERT INTO |ALTER TABLE \w+ ADD COLUMN \w+ (.* DEFAULT .*|\w+$)"
)


def test_a_restarted_older_koo_accepts_a_store_to_which_a_newer_one_has_only_added(
    shared: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a rolling upgrade a pod of the old version that is restarted, or reconnects, must not be refused."""

    async def main() -> None:
        newer = shared.sql_store()
        await newer.open()
        with monkeypatch.context() as old:
            old.setattr(schema, "STEPS", BEFORE_GROWTH)
            older = shared.sql_store()
            know(older)
            await older.open()
            await hold(older, "0.10")
            assert older.trouble is None
            await older.close()
        shared.sql("INSERT INTO koo_growth (number) VALUES (99)")  # and this koo is older than another one
        again = shared.sql_store()
        await again.open()
        assert again.trouble is None
        await again.close()
        await newer.close()

    asyncio.run(main())


def test_an_older_store_is_extended_while_its_processes_keep_working(
    shared: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(tx: Transaction) -> int:
        return len(tx.rows("SELECT budget FROM koo_treasuries"))

    async def main() -> None:
        older, newer = SqlStore(shared.url), shared.sql_store()
        with monkeypatch.context() as old:
            old.setattr(schema, "STEPS", BEFORE_GROWTH)
            assert await older.executor.run(count) == 0
        know(newer)
        await newer.open()
        await hold(newer, "0.10")
        assert await older.executor.run(count) > 0
        await older.executor.stop()
        await newer.close()

    asyncio.run(main())


@pytest.mark.parametrize("step", schema.STEPS[len(BEFORE_GROWTH) :])
def test_a_step_that_only_adds_is_a_growth_and_a_growth_only_adds(step: tuple[str, ...]) -> None:
    """Otherwise a koo of the previous release would be refused, or its columns would be missing."""
    assert isinstance(step, schema.Growth) == all(ADDS.match(statement) for statement in step)


@pytest.mark.parametrize(
    ("statement", "adds"),
    [
        ("ALTER TABLE koo_x ADD COLUMN y BIGINT NOT NULL DEFAULT 0", True),
        ("ALTER TABLE koo_x ADD COLUMN y TEXT", True),
        ("ALTER TABLE koo_x ADD COLUMN y TEXT NOT NULL", False),
        ("ALTER TABLE koo_x RENAME TO koo_y", False),
        ("DROP TABLE koo_x", False),
        ("UPDATE koo_x SET y = 1", False),
    ],
)
def test_only_a_step_that_an_older_koo_would_not_notice_is_a_growth(statement: str, adds: bool) -> None:
    assert bool(ADDS.match(statement)) == adds
