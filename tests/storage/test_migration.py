"""A store that an older koo wrote is upgraded with its money and its counts."""

from __future__ import annotations

import asyncio

import pytest

from koo.storage import schema
from koo.storage.store import SqlStore
from tests.storage.support import CLAUDE, Place, Refused, hold, know, numbers, pico, seen, usd


def test_what_was_spent_held_and_counted_before_purses_is_known_after_the_upgrade(
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


def test_processes_that_upgrade_at_the_same_moment_wait_for_one_another(shared: Place) -> None:
    async def main() -> None:
        stores = [shared.sql_store() for _ in range(4)]
        await asyncio.gather(*(store.open() for store in stores))
        assert [store.trouble for store in stores] == [None] * 4
        for store in stores:
            await store.close()

    asyncio.run(main())
