"""When nobody knows whether a commit arrived, everything is done again, and nothing is done twice.

The store's backend is made to fail after its commit. That is what a connection looks like that was cut between COMMIT
and its answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from decimal import Decimal

import pytest
from sqlalchemy.exc import OperationalError

from koo.clock import utc_day
from koo.storage.base import Hold, StoreUnavailable
from koo.storage.sql import SqlBackend
from koo.storage.store import SqlStore
from koo.storage.transaction import Transaction
from tests.storage.support import Place, SetClock, bill, numbers, request, until, usd


class Doubt:
    """Makes the next transactions fail after they were committed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.left = 0

    def lose_answers(self, count: int) -> None:
        """The store itself gives up, `count` times."""
        self.left = count
        transact = SqlBackend.transact

        def cut(backend: SqlBackend, write: Callable[[Transaction], None], exclusive: bool) -> None:
            transact(backend, write, exclusive)
            if exclusive and self.left:
                self.left -= 1
                raise StoreUnavailable("cut after the commit")

        self._patch.setattr(SqlBackend, "transact", cut)

    def lose_one_answer_and_go_on(self) -> None:
        """The backend connects again and runs the same once more."""
        self.left = 1
        attempt = SqlBackend._attempt

        def cut(
            backend: SqlBackend, write: Callable[[Transaction], None], exclusive: bool, again: bool
        ) -> None:
            attempt(backend, write, exclusive, again)
            if exclusive and self.left:
                self.left -= 1
                raise OperationalError("COMMIT", None, Exception("lost"), connection_invalidated=True)

        self._patch.setattr(SqlBackend, "_attempt", cut)

    def refuse_after(self, gate: threading.Event) -> None:
        """One transaction waits for the gate and comes to nothing."""
        self.left = 1
        transact = SqlBackend.transact

        def away(backend: SqlBackend, write: Callable[[Transaction], None], exclusive: bool) -> None:
            if exclusive and self.left:
                gate.wait()
                self.left -= 1
                raise StoreUnavailable("away")
            transact(backend, write, exclusive)

        self._patch.setattr(SqlBackend, "transact", away)

    def is_over(self, store: SqlStore) -> Callable[[], bool]:
        return lambda: store.ledger.waiting == 0 and store.trouble is None and self.left == 0


@pytest.fixture
def doubt(monkeypatch: pytest.MonkeyPatch) -> Doubt:
    return Doubt(monkeypatch)


def alone(store: SqlStore, amount: str) -> Hold:
    """A hold that was given while the store was away."""
    hold = Hold(store.ledger._ids.new(), "claude", utc_day(store.clock.wall()), Decimal(amount))
    store.ledger.adopt(hold, request(amount))
    return hold


def test_a_hold_in_doubt_is_refused_and_taken_back_with_its_request(shared: Place, doubt: Doubt) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        kept = await store.ledger.hold(request("0.05"))
        doubt.lose_answers(1)
        results = await asyncio.gather(
            *(store.ledger.hold(request("0.05")) for _ in range(3)), return_exceptions=True
        )
        lost = [result for result in results if isinstance(result, StoreUnavailable)]
        assert lost and len({id(error) for error in lost}) == len(lost)
        given = len(results) - len(lost)
        await until(doubt.is_over(store))
        assert await numbers(store) == (Decimal(0), kept.amount_usd * (1 + given))
        assert await store.quotas.used_today("claude") == 1 + given
        await store.close()

    asyncio.run(main())


def test_settlements_in_doubt_are_booked_once(shared: Place, doubt: Doubt) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        holds = [await store.ledger.hold(request("0.05")) for _ in range(4)]
        doubt.lose_answers(2)
        for hold in holds[:2]:
            store.ledger.settle(hold, bill("0.03"))
        store.ledger.release(holds[2])
        await until(doubt.is_over(store))
        assert await numbers(store) == usd("0.06", "0.05")
        await store.close()

    asyncio.run(main())


def test_what_was_given_while_the_store_was_away_is_booked_once(shared: Place, doubt: Doubt) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        await store.open()
        doubt.lose_answers(1)
        alone(store, "0.10")
        store.ledger.settle(alone(store, "0.20"), bill("0.15"))
        await until(doubt.is_over(store))
        assert await numbers(store) == usd("0.15", "0.10")
        assert await store.quotas.used_today("claude") == 2
        assert store.ledger.dropped == 0
        await store.close()

    asyncio.run(main())


def test_counts_in_doubt_err_on_the_side_that_refuses(shared: Place, doubt: Doubt) -> None:
    async def main() -> None:
        clock = SetClock()
        store = SqlStore(shared.url, clock=clock)
        store.quotas.add("claude", clock.day, 10)
        await store.ledger.flush()
        doubt.lose_answers(1)
        store.quotas.add("claude", clock.day, 3)
        store.quotas.add("claude", clock.day, -2)
        await until(doubt.is_over(store))
        assert await store.quotas.used_today("claude") == 10 + 3 - 2 + 3
        await store.close()

    asyncio.run(main())


def test_a_connection_lost_with_the_answer_is_made_anew_unseen_and_nothing_is_done_twice(
    shared: Place, doubt: Doubt
) -> None:
    async def main() -> None:
        clock = SetClock()
        store = SqlStore(shared.url, clock=clock, timeout_s=20, linger_s=30)
        first = await store.ledger.hold(request("0.05"))
        doubt.lose_one_answer_and_go_on()
        store.ledger.settle(first, bill("0.03"))
        store.quotas.add("claude", clock.day, -1)
        await store.ledger.hold(request("0.10"))
        assert doubt.left == 0 and store.trouble is None
        assert await numbers(store) == usd("0.03", "0.10")
        assert await store.quotas.used_today("claude") == 1
        await store.close()

    asyncio.run(main())


def test_a_hold_whose_answer_was_lost_is_found_again(shared: Place, doubt: Doubt) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock(), timeout_s=20)
        await store.open()
        doubt.lose_one_answer_and_go_on()
        await store.ledger.hold(request("0.60"))
        assert doubt.left == 0 and store.trouble is None
        assert await numbers(store) == usd("0", "0.60")
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_what_the_database_itself_undid_because_of_others_is_done_again(
    shared: Place, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    class Undone(Exception):
        sqlstate = code

    attempt, undone = SqlBackend._attempt, list[object]()

    def undo_once(
        backend: SqlBackend, write: Callable[[Transaction], None], exclusive: bool, again: bool
    ) -> None:
        if exclusive and not undone:
            undone.append(write)
            raise OperationalError("UPDATE", None, Undone())
        attempt(backend, write, exclusive, again)

    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        await store.open()
        monkeypatch.setattr(SqlBackend, "_attempt", undo_once)
        await store.ledger.hold(request("0.60"))
        assert undone and store.trouble is None
        assert await numbers(store) == usd("0", "0.60")
        await store.close()

    asyncio.run(main())


def test_what_waits_is_written_in_the_order_in_which_it_was_said(
    sqlite: Place, doubt: Doubt, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        store = SqlStore(sqlite.url, clock=SetClock())
        await store.open()
        gate = threading.Event()
        doubt.refuse_after(gate)
        store.ledger.settle(alone(store, "0.20"), bill("0.05"))
        running = alone(store, "0.10")
        store.ledger.submit()
        await until(lambda: store.ledger.waiting == 0)
        store.ledger.settle(running, bill("0.06"))
        monkeypatch.setattr("koo.storage.sql_ledger.ACTS_PER_COMMIT", 1)
        gate.set()
        await until(doubt.is_over(store))
        assert await numbers(store) == usd("0.11")
        await store.close()

    asyncio.run(main())
