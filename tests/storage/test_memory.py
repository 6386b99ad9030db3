"""What is particular to the memory's ledger: it follows two clocks, and lends its ids to others."""

from __future__ import annotations

import asyncio
import os
from decimal import Decimal

import pytest

from koo.errors import BudgetExceeded
from koo.options import DAY_S
from koo.storage.base import BudgetView
from koo.storage.memory import Ids, MemoryLedger
from tests.storage.support import SetClock, money, request, usd


class TwoClocks(SetClock):
    """Wall time that somebody sets, beside a monotonic time that goes on."""

    set_forward_s = 0.0

    def wall(self) -> float:
        return self.now + self.set_forward_s


def test_a_sweep_anchors_the_days_end_to_the_wall_clock_again() -> None:
    async def main() -> None:
        clock = TwoClocks()
        ledger = MemoryLedger(clock)
        await ledger.hold(request("1.00"))
        clock.set_forward_s = DAY_S / 2 - 60  # A minute before midnight.
        await ledger.sweep()
        clock.now += 59
        with pytest.raises(BudgetExceeded):
            await ledger.hold(request("0.01"))
        clock.now += 1
        assert (await ledger.hold(request("0.01"))).day == clock.day + 1

    asyncio.run(main())


def test_it_begins_with_what_another_ledger_knew_of_today_and_not_of_yesterday() -> None:
    clock = SetClock()
    ledger = MemoryLedger(clock)
    ledger.start_from("claude", BudgetView(clock.day, Decimal("0.30"), Decimal("0.20"), clock.now))
    ledger.start_from("openai", BudgetView(clock.day - 1, Decimal("0.30"), Decimal("0.20"), clock.now))
    assert money(ledger.view("claude")) == usd("0.50")
    assert money(ledger.view("openai")) == usd("0")


def test_its_day_begins_anew_also_for_one_who_only_looks() -> None:
    async def main() -> None:
        clock = SetClock()
        ledger = MemoryLedger(clock)
        await ledger.hold(request("0.30"))
        clock.now += DAY_S
        assert money(ledger.view("claude")) == usd("0") and ledger.view("claude").day == clock.day

    asyncio.run(main())


def test_ids_are_unique_also_in_a_child_that_goes_on_from_its_parents_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = Ids()
    mine = [ids.new() for _ in range(100)]
    assert mine == sorted(set(mine))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert ids.new()[:16] != mine[0][:16]
