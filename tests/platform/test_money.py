"""The platform's work for money each second: alerts, forecasts, deletion of old entries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from koo.budget_options import BudgetOptions
from koo.events import ProcessRenamed, StoreForgot
from koo.platform import Platform
from koo.policies.treasury import LIVES_MS
from koo.storage.postings import book
from koo.storage.store import SqlStore
from koo.testing.providers import FakeAnthropic
from koo.upkeep import SWEEP_EVERY_TICKS, KeepTime
from tests.storage.support import Place, entries_of, hold
from tests.storage.test_spending import posting
from tests.web.serving import claude, platform

Work = Callable[[FakeAnthropic, Platform], Awaitable[None]]


def with_platform(folder: Path, work: Work, **more: Any) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake, platform(folder, claude(fake), **more) as koo:
            await work(fake, koo)

    asyncio.run(main())


async def step(koo: Platform, times: int = 1) -> set[str]:
    """The findings after this many seconds."""
    await koo.parts.store.ledger.refresh()
    keeper = KeepTime(koo.parts)
    for _ in range(times):
        await keeper.step()
    return {f"{alert['kind']}:{alert['component']}" for alert in koo.active_alerts()}


def test_an_operators_budget_raises_an_alert_under_its_own_name(tmp_path: Path) -> None:
    async def work(fake: FakeAnthropic, koo: Platform) -> None:
        budget = koo.parts.budgets.of("claude", "claude-sonnet-5-5")[1]
        assert await step(koo) == set()
        held = koo.parts.store.ledger.hold((budget,), 1) or await koo.parts.store.ledger.wait(
            (budget,), 4_600_000_000_000, asyncio.get_running_loop().time() + 5, is_patient=False
        )
        assert not isinstance(held, tuple)
        assert await step(koo) == {"budget_at_90:budget:month"}
        koo.parts.store.ledger.release(held)
        await step(koo)
        assert [alert["phase"] for alert in koo.active_alerts()] == ["recovering"]

    month = BudgetOptions(name="month", limit_usd=Decimal(5), period="month")
    with_platform(tmp_path, work, budgets=(month,))


def test_lost_store_data_and_money_held_by_dead_processes_raise_alerts(tmp_path: Path) -> None:
    async def work(fake: FakeAnthropic, koo: Platform) -> None:
        koo.events.publish(StoreForgot("state store", "0.5"))
        koo.events.publish(ProcessRenamed("state store"))
        assert await step(koo) == {"store_forgot:state_store", "process_renamed:state_store"}
        dead = SqlStore(koo.options.state_url)
        dead.ledger.budget("service/claude", 10**13)
        await hold(dead, "0.25")
        await dead.ledger.beat()
        await dead.executor.stop()
        place = Place("sqlite", koo.options.state_url)
        name = dead.ledger.purses.name
        place.sql(f"UPDATE koo_processes SET seen_ms = seen_ms - {LIVES_MS + 1000} WHERE name = '{name}'")
        assert "money_unsettled:state_store" in await step(koo)
        done = await koo.write_off(None, by="ada")
        assert [one["process"] for one in done["written_off"]] == [name]
        assert "money_unsettled:state_store" not in await step(koo)

    with_platform(tmp_path, work)


def test_the_ledger_deletes_entries_older_than_its_days(tmp_path: Path) -> None:
    async def work(fake: FakeAnthropic, koo: Platform) -> None:
        store = koo.parts.store
        assert isinstance(store, SqlStore)
        day = int(koo.parts.clock.wall() // 86_400)
        kept = [posting(1, day - 100), posting(2, day - 101)]
        await store.executor.run(lambda tx: book(tx, kept, "p"))
        await step(koo, SWEEP_EVERY_TICKS)
        assert [one.id for one in await entries_of(store, day - 100)] == ["1"]
        assert await entries_of(store, day - 101) == []

    with_platform(tmp_path, work, ledger_days=100)
