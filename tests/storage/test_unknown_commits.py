"""If the outcome of a COMMIT is unknown, the same beat is sent again, and nothing is booked twice.

The store's backend fails after its commit, as it does when the connection is cut between COMMIT and the server's reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from koo.storage.base import StoreUnavailable
from koo.storage.sql import SqlBackend
from koo.storage.store import SqlStore
from koo.storage.transaction import Transaction
from koo.testing.polling import until
from tests.storage.support import CLAUDE, Place, hold, know, numbers, pico, settle, usd


class Doubt:
    """Makes the next transactions fail after they were committed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.left = 0

    def lose_answers(self, count: int) -> None:
        """Make `count` transactions fail after their commit, without a retry by the backend."""
        self.left = count
        self._cut("transact", lambda: StoreUnavailable("cut after the commit"))

    def lose_one_answer_and_go_on(self) -> None:
        """Make one transaction fail after its commit, so that the backend reconnects and runs it again."""
        self.left = 1
        self._cut(
            "_attempt",
            lambda: OperationalError("COMMIT", None, Exception("lost"), connection_invalidated=True),
        )

    def _cut(self, name: str, error: Callable[[], Exception]) -> None:
        true = getattr(SqlBackend, name)

        def cut(backend: SqlBackend, write: Callable[[Transaction], None], exclusive: bool) -> None:
            true(backend, write, exclusive)
            if exclusive and self.left:
                self.left -= 1
                raise error()

        self._patch.setattr(SqlBackend, name, cut)

    async def is_over(self, store: SqlStore) -> None:
        await until(lambda: store.trouble is None and self.left == 0)
        await store.ledger.beat()


@pytest.fixture
def doubt(monkeypatch: pytest.MonkeyPatch) -> Doubt:
    return Doubt(monkeypatch)


def with_store(place: Place, test: Any) -> None:
    async def main() -> None:
        store = place.sql_store()
        await store.open()
        await test(store)
        await store.close()

    asyncio.run(main())


def test_a_grant_whose_reply_was_lost_is_granted_once_and_returned(shared: Place, doubt: Doubt) -> None:
    """The caller was refused in the meantime, so no call holds the granted money."""

    async def test(store: SqlStore) -> None:
        kept = await hold(store, "0.05")
        doubt.lose_answers(1)
        results = await asyncio.gather(*(hold(store, "0.05") for _ in range(3)), return_exceptions=True)
        assert len([one for one in results if isinstance(one, Exception)]) == 3
        await doubt.is_over(store)
        await store.ledger.beat()
        assert await numbers(store) == usd("0", "0.05")
        assert shared.booked() == (pico("0.05"), 0)
        settle(store, kept, "0.05")

    with_store(shared, test)


def test_settlements_and_entries_are_booked_once_when_a_commit_is_in_doubt(
    shared: Place, doubt: Doubt
) -> None:
    async def test(store: SqlStore) -> None:
        holds = [await hold(store, "0.05") for _ in range(4)]
        for one in holds[:2]:
            settle(store, one, "0.03")
        store.ledger.release(holds[2])
        doubt.lose_answers(2)  # one reply to the beat, and one to the first attempt to find the store again
        with pytest.raises(StoreUnavailable):
            await store.ledger.beat()
        await doubt.is_over(store)
        assert await numbers(store) == usd("0.06", "0.05")
        assert shared.sql("SELECT count(*), sum(amount) FROM koo_entries") == [(2, pico("0.06"))]

    with_store(shared, test)


def test_spending_during_a_beat_in_doubt_is_reported_by_the_next_beat(shared: Place, doubt: Doubt) -> None:
    async def test(store: SqlStore) -> None:
        first, second = await hold(store, "0.05"), await hold(store, "0.05")
        settle(store, first, "0.03")
        doubt.lose_answers(1)
        with pytest.raises(StoreUnavailable):
            await store.ledger.beat()
        settle(store, second, "0.04")
        await doubt.is_over(store)
        assert await numbers(store) == usd("0.07")
        assert shared.sql("SELECT amount FROM koo_entries ORDER BY amount") == [
            (pico("0.03"),),
            (pico("0.04"),),
        ]

    with_store(shared, test)


def test_requests_are_counted_once_when_a_commit_is_in_doubt(shared: Place, doubt: Doubt) -> None:
    async def test(store: SqlStore) -> None:
        know(store, None, "requests/claude")
        budget = store.ledger.purses.budgets["requests/claude"]
        today = budget.purse.key.period
        store.ledger.count(budget, today, 10)
        doubt.lose_answers(1)
        with pytest.raises(StoreUnavailable):
            await store.ledger.beat()
        store.ledger.count(budget, today, 3)
        await doubt.is_over(store)
        await store.ledger.beat()
        assert shared.booked("requests/claude") == (13, 13)

    with_store(shared, test)


def test_a_connection_lost_after_its_commit_is_reopened_and_nothing_is_booked_twice(
    shared: Place, doubt: Doubt
) -> None:
    async def test(store: SqlStore) -> None:
        settle(store, await hold(store, "0.05"), "0.03")
        doubt.lose_one_answer_and_go_on()
        await hold(store, "0.60")
        assert doubt.left == 0 and store.trouble is None
        assert await numbers(store) == usd("0.03", "0.60")
        assert shared.booked() == (pico("0.63"), pico("0.03"))

    with_store(shared, test)


def test_two_simultaneous_callers_send_one_beat_after_the_other_and_lose_no_entry(
    shared: Place,
) -> None:
    async def test(store: SqlStore) -> None:
        know(store, "100")
        for _ in range(20):
            settle(store, await hold(store, "0.05"), "0.01")
            looking = [asyncio.create_task(store.ledger.refresh()) for _ in range(3)]
            await asyncio.sleep(0)
            settle(store, await hold(store, "0.05"), "0.01")
            await asyncio.gather(*looking)
        assert await numbers(store) == usd("0.40")
        assert shared.sql("SELECT count(*) FROM koo_entries") == [(40,)]

    with_store(shared, test)


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_a_transaction_that_the_database_rolled_back_because_of_a_conflict_runs_again(
    shared: Place, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    class Undone(Exception):
        sqlstate = code

    attempt, undone = SqlBackend._attempt, list[object]()

    def undo_once(backend: SqlBackend, write: Callable[[Transaction], None], exclusive: bool) -> None:
        if exclusive and not undone:
            undone.append(write)
            raise OperationalError("UPDATE", None, Undone())
        attempt(backend, write, exclusive)

    async def test(store: SqlStore) -> None:
        monkeypatch.setattr(SqlBackend, "_attempt", undo_once)
        await hold(store, "0.60")
        assert undone and store.trouble is None
        assert await numbers(store) == usd("0", "0.60")
        assert store.ledger.standing(CLAUDE).booked == pico("0.60")

    with_store(shared, test)
