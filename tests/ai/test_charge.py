"""The money of one call: held within the deadline, booked with the caller's own words, whatever is called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

import pytest

from koo.ai.operations import Money, compose, execute, read_options
from koo.ai.service import Service
from koo.deadlines import Deadlines
from koo.errors import BudgetExceeded, Kind
from koo.storage.base import Hold, HoldRequest
from koo.storage.memory import MemoryLedger
from koo.testing.clock import VirtualClock, run_virtual
from tests.ai.virtual import VirtualWorld, words


class SlowLedger(MemoryLedger):
    """A store that takes its time."""

    def __init__(self, clock: VirtualClock, holds_after_s: float) -> None:
        super().__init__(clock)
        self.holds_after_s = holds_after_s
        self.requests: list[HoldRequest] = []

    async def hold(self, request: HoldRequest) -> Hold:
        self.requests.append(request)
        await asyncio.sleep(self.holds_after_s)
        return await super().hold(request)


async def a_query(ledger: SlowLedger, ran: list[str]) -> None:
    world = VirtualWorld(ledger)
    try:
        await world.ask(timeout_s=0.5)
    finally:
        ran += ["sent"] * world.first.asked


async def a_stream(ledger: SlowLedger, ran: list[str]) -> None:
    world = VirtualWorld(ledger)
    world.first.chunks = words("a", pause_s=0.0)
    try:
        await anext(world.stream(timeout_s=0.5))
    finally:
        ran += ["sent"] * world.first.asked


async def an_own_operation(ledger: SlowLedger, ran: list[str]) -> None:
    options = {"timeout_s": 0.5, "max_cost_usd": 1, "daily_budget": 10}
    service = Service(
        "own", read_options(options), default_model=None, clock=VirtualClock(), deadlines=Deadlines(),
        classify=compose(None, "own"), allowance=Money(options).allowance,
    )  # fmt: skip

    async def operation() -> None:
        ran.append("sent")

    await execute(service, Money(options), ledger, operation, (), {})


@pytest.mark.parametrize("call", [a_query, a_stream, an_own_operation])
def test_a_ledger_that_does_not_answer_outlives_no_deadline(
    call: Callable[[SlowLedger, list[str]], Awaitable[None]],
) -> None:
    """The call ends at its deadline, nothing is sent, and nothing stays held."""

    async def main() -> None:
        clock, ran = VirtualClock(), list[str]()
        ledger = SlowLedger(clock, holds_after_s=2.0)
        began = clock.monotonic()
        with pytest.raises(BudgetExceeded) as caught:
            await call(ledger, ran)
        assert clock.monotonic() - began == pytest.approx(0.5)
        assert caught.value.kind == Kind.DEADLINE and "before the deadline" in str(caught.value)
        assert ran == [] and ledger.view(ledger.requests[0].service).held_usd == 0

    run_virtual(main)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_callers_own_words_go_to_the_ledger(streamed: bool) -> None:
    async def main() -> None:
        ledger = SlowLedger(VirtualClock(), holds_after_s=0.0)
        world = VirtualWorld(ledger)
        world.first.chunks = words("a", pause_s=0.0)
        if streamed:
            await anext(world.stream(tag="nightly", metadata={"team": "blue"}))
        else:
            await world.ask(tag="nightly", metadata={"team": "blue"})
        (request,) = ledger.requests
        assert request.tag == "nightly" and request.metadata == {"team": "blue"}

    run_virtual(main)


def test_a_bill_is_what_the_provider_used_at_the_price_of_its_model() -> None:
    async def main() -> None:
        world = VirtualWorld()
        answer = await world.ask()
        assert answer.cost_usd == world.spent_usd == (10 * Decimal(3) + 5 * Decimal(15)) / 1_000_000
        assert answer.cost_source == "configured"

    run_virtual(main)
