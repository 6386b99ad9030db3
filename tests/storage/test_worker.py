"""The store's thread, with a database that behaves as a test requires."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from koo.storage import worker
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore
from koo.storage.transaction import Dialect, Row, Table, Transaction
from koo.testing.polling import until
from tests.storage.support import note_pauses


class Nothing:
    """A transaction without a database."""

    dialect: Dialect = "sqlite"

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        return []

    def later(self, sql: str, values: Mapping[str, Any] | None = None) -> Callable[[], list[Row]]:
        return list

    def run(self, sql: str, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        pass

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        pass


class Fake:
    """A database that is reachable, unreachable, or hangs until it is cut off."""

    def __init__(self) -> None:
        self.is_away = False
        self.hangs = False
        self.taken = threading.Event()
        self.cuts = threading.Event()
        self.closed = threading.Event()
        self.asked = 0

    def transact(self, write: Callable[[Transaction], None], exclusive: bool) -> None:
        self.asked += 1
        self.taken.set()
        if self.hangs:
            self.cuts.wait()
        if self.is_away or self.hangs:
            raise StoreUnavailable("unreachable")
        write(Nothing())

    def cut(self) -> None:
        self.cuts.set()

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    backend = Fake()
    monkeypatch.setattr("koo.storage.sql.make_backend", lambda target, timeout_s: backend)
    return backend


def store() -> SqlStore:
    return SqlStore("sqlite:///nowhere.db", home=Path("/nonexistent"))


def test_an_absent_store_is_tried_after_growing_pauses_which_restart_after_a_real_write(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        shortest_s, longest_s = worker.PAUSE_S_MIN, 8 * worker.PAUSE_S_MIN
        monkeypatch.setattr(worker, "PAUSE_S_MAX", longest_s)
        pauses = note_pauses(monkeypatch)

        def doublings() -> list[int]:
            """The pauses as powers of two of the shortest one. Each pause is shorter by the time already spent."""
            return [math.ceil(math.log2(pause_s / shortest_s)) for pause_s in pauses]

        async def lose() -> None:
            fake.is_away = True
            pauses.clear()
            with pytest.raises(StoreUnavailable):
                await one.executor.run(lambda tx: None)

        async def find() -> None:
            fake.is_away = False
            await until(lambda: one.trouble is None)

        one = store()
        await lose()
        await until(lambda: doublings()[-2:] == [3, 3])
        assert doublings()[:5] == [0, 1, 2, 3, 3]
        await find()
        await lose()
        await until(lambda: len(pauses) > 0)
        assert doublings()[0] == 3, "a store that was found without a write is flapping"
        await find()
        await one.executor.run(lambda tx: None)
        await lose()
        await until(lambda: len(pauses) > 0)
        assert doublings()[0] == 0
        await find()
        await one.close()

    asyncio.run(main())


def test_a_store_in_trouble_is_probed_on_time_even_if_its_queue_is_full(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(worker, "PAUSE_S_MAX", 4 * worker.PAUSE_S_MIN)
        one = store()
        fake.is_away, busy = True, True

        async def ask_again_and_again() -> None:
            while busy:
                with pytest.raises(StoreUnavailable):
                    await one.executor.run(lambda tx: None)

        asking = [asyncio.create_task(ask_again_and_again()) for _ in range(20)]
        await until(lambda: fake.asked >= 5)  # only the first call and the knocks reach a database in trouble
        busy = False
        await asyncio.gather(*asking)
        fake.is_away = False
        await until(lambda: one.trouble is None)
        await one.close()

    asyncio.run(main())


def test_an_available_store_is_not_queried_without_a_job(fake: Fake) -> None:
    async def main() -> None:
        one = store()
        one.executor.start()
        await one.close()
        assert fake.asked == 0 and fake.closed.is_set()

    asyncio.run(main())


def test_a_hung_statement_is_cut_off_by_the_caller_that_waited_for_it(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds if the thread took the job after its caller began to wait, so that it has run for less than the
    timeout.
    """

    async def main() -> None:
        one = store()
        fake.hangs = True
        one.executor.timeout_s = 0.01
        monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: 0.0))
        waiting = asyncio.create_task(one.executor.run(lambda tx: "never"))
        # The loop is blocked until the thread has taken the job; only then does it notice the timeout.
        asyncio.get_running_loop().call_soon(fake.taken.wait)
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await waiting
        assert fake.cuts.is_set()
        fake.hangs = False
        await one.close()

    asyncio.run(main())


def test_a_caller_that_only_waited_in_the_queue_does_not_cut_off_the_running_statement(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        one = store()
        fake.hangs = True
        first = asyncio.create_task(one.executor.run(lambda tx: None))
        await until(lambda: fake.asked == 1)
        one.executor.timeout_s = 0.01
        # the job before it started only just now
        monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: float("-inf")))
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await one.executor.run(lambda tx: None)
        assert not fake.cuts.is_set()
        fake.cut()
        with pytest.raises(StoreUnavailable):
            await first
        fake.hangs = False
        await one.close()

    asyncio.run(main())


def test_a_statement_that_hangs_while_the_store_closes_is_cut_off_too(fake: Fake) -> None:
    async def main() -> None:
        one = store()
        fake.hangs = True
        running = asyncio.create_task(one.executor.run(lambda tx: None))
        await until(lambda: fake.asked == 1)
        one.executor.timeout_s = 0.05
        await one.close()
        assert fake.cuts.is_set()
        await until(fake.closed.is_set)
        with pytest.raises(StoreUnavailable, match="unreachable"):
            await running

    asyncio.run(main())
