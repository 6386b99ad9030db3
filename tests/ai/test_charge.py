"""The money of one call: held within the deadline, and booked with the caller's tag and metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal

import pytest

from koo.ai.budgets import Budgets
from koo.ai.operation_money import Money
from koo.ai.operations import execute
from koo.ai.registration import compose, read_options
from koo.ai.service import Service
from koo.deadlines import Deadlines
from koo.errors import BudgetExceeded, Kind
from koo.policies.treasury import Beat
from koo.policies.treasury import Reply as BeatAnswer
from koo.storage.exchanges import MemoryExchange
from koo.storage.ledger import Ledger
from koo.storage.memory import MemoryLedger
from koo.storage.postings import Posting
from koo.testing.clock import VirtualClock, run_virtual
from tests.ai.virtual import VirtualWorld, words


class SlowExchange(MemoryExchange):
    """A store that responds slowly."""

    def __init__(self, clock: VirtualClock, answers_after_s: float) -> None:
        super().__init__(clock)
        self.answers_after_s = answers_after_s

    async def send(self, beat: Beat, postings: Sequence[Posting], *, is_asked: bool) -> BeatAnswer:
        await asyncio.sleep(self.answers_after_s)
        return await super().send(beat, postings, is_asked=is_asked)


async def a_query(ledger: Ledger, ran: list[str]) -> None:
    world = VirtualWorld(ledger)
    try:
        await world.ask(timeout_s=0.5)
    finally:
        ran += ["sent"] * world.first.asked


async def a_stream(ledger: Ledger, ran: list[str]) -> None:
    world = VirtualWorld(ledger)
    world.first.chunks = words("a", pause_s=0.0)
    try:
        await anext(world.stream(timeout_s=0.5))
    finally:
        ran += ["sent"] * world.first.asked


async def an_own_operation(ledger: Ledger, ran: list[str]) -> None:
    options = {"timeout_s": 0.5, "max_cost_usd": 1, "daily_budget": 10}
    service = Service(
        "own", read_options(options), default_model=None, clock=VirtualClock(), deadlines=Deadlines(),
        classify=compose(None, "own"), allowance=Money(options).allowance,
    )  # fmt: skip
    budgets = Budgets(ledger)
    budgets.add_service("own", service.allowance)
    beats = asyncio.create_task(ledger.run())

    async def operation() -> None:
        ran.append("sent")

    try:
        await execute(service, Money(options), budgets, operation, (), {})
    finally:
        beats.cancel()


def held_pico(ledger: Ledger) -> int:
    """The sum of what all budgets hold now."""
    return sum(ledger.standing(name).held for name in ledger.purses.budgets)


@pytest.mark.parametrize("call", [a_query, a_stream, an_own_operation])
def test_a_ledger_that_does_not_respond_does_not_delay_the_deadline(
    call: Callable[[Ledger, list[str]], Awaitable[None]],
) -> None:
    """The call ends at its deadline, nothing is sent, and nothing stays held."""

    async def main() -> None:
        clock, ran = VirtualClock(), list[str]()
        ledger = Ledger(SlowExchange(clock, answers_after_s=2.0), clock)
        began = clock.monotonic()
        with pytest.raises(BudgetExceeded) as caught:
            await call(ledger, ran)
        assert clock.monotonic() - began == pytest.approx(0.5)
        assert caught.value.kind == Kind.DEADLINE and "before the deadline" in str(caught.value)
        assert ran == [] and held_pico(ledger) == 0
        await asyncio.sleep(5.0)
        assert held_pico(ledger) == 0, "no call holds what the late response granted"

    run_virtual(main)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_callers_tag_and_metadata_go_to_the_ledger(streamed: bool) -> None:
    async def main() -> None:
        ledger = MemoryLedger(VirtualClock())
        world = VirtualWorld(ledger)
        world.first.chunks = words("a", pause_s=0.0)
        if streamed:
            async for _ in world.stream(tag="nightly", metadata={"team": "blue"}):
                pass
        else:
            await world.ask(tag="nightly", metadata={"team": "blue"})
        await ledger.refresh()
        (posting,) = ledger.exchange.postings.values()
        assert posting.bill.tag == "nightly" and posting.bill.metadata == {"team": "blue"}

    run_virtual(main)


def test_a_bill_is_the_reported_usage_at_the_price_of_its_model() -> None:
    async def main() -> None:
        world = VirtualWorld()
        answer = await world.ask()
        assert answer.cost_usd == world.spent_usd == (10 * Decimal(3) + 5 * Decimal(15)) / 1_000_000
        assert answer.cost_source == "configured"

    run_virtual(main)
