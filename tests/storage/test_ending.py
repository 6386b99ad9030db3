"""A ledger that ends properly leaves no granted money unspent, at whatever point its store fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress

import pytest

from koo.policies.purse import Budget, Hold, Refusal
from koo.policies.treasury import Beat, Reply
from koo.storage.base import StoreUnavailable
from koo.storage.exchanges import MemoryExchange
from koo.storage.ledger import Ledger
from koo.storage.postings import Posting
from koo.testing.polling import until
from tests.storage.support import CLAUDE, Place, Refused, SetClock, bill, hold, pico, settle

BOUND = pico("0.05")
BEATS = 16
"""More than a run of this has."""


class FailsOnce(MemoryExchange):
    """Loses the reply to one beat, before or after the beat was stored. With `is_cut` the caller is cancelled."""

    def __init__(self, clock: SetClock, fails_at: int, after: bool, is_cut: bool) -> None:
        super().__init__(clock)
        self.beats = 0
        self._fails = fails_at, after, is_cut

    async def send(self, beat: Beat, postings: Sequence[Posting], *, is_asked: bool) -> Reply:
        fails_at, after, is_cut = self._fails
        self.beats += 1
        if self.beats != fails_at:
            return await super().send(beat, postings, is_asked=is_asked)
        if after:
            await super().send(beat, postings, is_asked=is_asked)
        if is_cut:
            raise asyncio.CancelledError
        raise StoreUnavailable("it does not answer")


async def money(ledger: Ledger, budget: Budget) -> Hold | None:
    """Hold a call's money. If its beat fails, the call is cancelled, as by its caller's deadline."""
    given = ledger.hold((budget,), BOUND)
    if given is not None:
        return given
    deadline = ledger.clock.monotonic() + 30
    waiting = asyncio.ensure_future(ledger.wait((budget,), BOUND, deadline, is_patient=True))
    await asyncio.sleep(0)
    try:
        await ledger.beat()
        answer = await waiting
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    return answer if isinstance(answer, Hold) else None


async def live(ledger: Ledger, rng: random.Random) -> list[Hold]:
    """Make some calls, reported and unreported, of which some had to wait; returns those that are still running."""
    budget = ledger.budget(CLAUDE, pico("1.00"))
    running: list[Hold] = []
    for number in range(8):
        with suppress(StoreUnavailable, asyncio.CancelledError):
            given = await money(ledger, budget)
            running.extend([] if given is None else [given])
            if running and rng.random() < 0.7:
                ledger.settle(running.pop(), "claude", bill("0.03"))
            if number % 3 == 2:
                await ledger.beat()
    return running


@pytest.mark.parametrize("is_cut", [False, True], ids=["fails", "is cut"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_ledger_that_ends_leaves_nothing_unsettled_wherever_the_store_fails_once(
    after: bool, is_cut: bool
) -> None:
    """The ledger is ended again once the store is back, and what the first attempt had reported is counted once."""

    async def main(fails_at: int) -> int:
        rng, clock = random.Random(fails_at), SetClock()
        exchange = FailsOnce(clock, fails_at, after, is_cut)
        ledger = Ledger(exchange, clock)
        for given in await live(ledger, rng):
            ledger.settle(given, "claude", bill("0.02"))
        for _ in range(2):
            with suppress(StoreUnavailable, asyncio.CancelledError):
                await ledger.finish()
        treasuries = exchange.treasuries
        assert {row.net - row.spent for row in treasuries.purses.values()} == {0}, fails_at
        assert {one.booked - one.spent for one in treasuries.treasuries.values()} == {0}, fails_at
        assert sum(one.spent for one in treasuries.treasuries.values()) == sum(
            one.amount for one in exchange.postings.values()
        )
        return exchange.beats

    beats = [asyncio.run(main(fails_at)) for fails_at in range(1, BEATS)]
    assert max(beats) < BEATS


def test_a_waiting_call_is_refused_when_its_ledger_ends(sqlite: Place) -> None:
    async def main() -> None:
        rich, poor = sqlite.sql_store(), sqlite.sql_store()
        await rich.open()
        await poor.open()
        given = await hold(rich, "1.00")
        await rich.ledger.beat()
        waiting = asyncio.ensure_future(hold(poor, "0.50", is_patient=True))
        await until(lambda: bool(poor.ledger.purses.waiting))
        await poor.close()
        with pytest.raises(Refused) as refused:
            await waiting
        assert refused.value.why is Refusal.CLOSED
        settle(rich, given, "0.03")
        await rich.close()
        assert sqlite.booked() == (pico("0.03"), pico("0.03"))

    asyncio.run(main())


def test_a_call_that_outlives_its_ledger_is_reported_when_the_ledger_is_reopened(sqlite: Place) -> None:
    async def main() -> None:
        store = sqlite.sql_store()
        await store.open()
        given = await hold(store, "0.50")
        await store.close()
        assert sqlite.booked() == (pico("0.50"), 0)
        settle(store, given, "0.03")
        await store.open()
        await store.close()
        assert sqlite.booked() == (pico("0.03"), pico("0.03"))

    asyncio.run(main())


def test_a_call_after_the_end_of_its_ledger_gets_no_money_and_does_not_reopen_the_store(
    sqlite: Place,
) -> None:
    async def main() -> None:
        store = sqlite.sql_store()
        await store.open()
        await store.close()
        with pytest.raises(Refused) as refused:
            await hold(store, "0.50")
        assert refused.value.why is Refusal.CLOSED and not store.is_open
        await store.open()
        settle(store, await hold(store, "0.50"), "0.03")
        await store.close()
        assert sqlite.booked(CLAUDE) == (pico("0.03"), pico("0.03"))

    asyncio.run(main())
