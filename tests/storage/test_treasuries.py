"""The same random world over memory, SQLite and PostgreSQL gives the same sums, to the last unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from koo.policies.treasury import Answer, Beat, Key, Totals, Treasury
from koo.storage.sql import SqlBackend, make_backend, read_url
from koo.storage.transaction import Transaction
from koo.storage.treasuries import UNBOUNDED, MemoryTreasuries, receive_in, write_off_in
from tests.policies.purse_world import World
from tests.storage.support import PATIENCE_S, Place

T = TypeVar("T")


class SqlTreasuries:
    """Treasuries in a database, on a connection of their own."""

    def __init__(self, backend: SqlBackend) -> None:
        self.backend = backend

    def run(self, work: Callable[[Transaction], T]) -> T:
        results: list[T] = []
        self.backend.transact(lambda tx: results.append(work(tx)), exclusive=True)
        return results[-1]

    def receive(self, beat: Beat, now_ms: int, beat_ms: int, *, is_asked: bool = False) -> Answer:
        return self.run(lambda tx: receive_in(tx, beat, 0, beat_ms, is_asked=is_asked, now_ms=now_ms))

    def write_off(self, process: str) -> dict[Key, int]:
        return self.run(lambda tx: write_off_in(tx, process))

    def rows(self) -> tuple[dict[Key, Treasury], dict[tuple[Key, str], Totals]]:
        treasuries = self.run(lambda tx: tx.rows("SELECT * FROM koo_treasuries"))
        purses = self.run(lambda tx: tx.rows("SELECT * FROM koo_purses"))
        return (
            {
                Key(budget, period): Treasury(None if limit == UNBOUNDED else limit, *rest)
                for budget, period, limit, *rest in treasuries
            },
            {(Key(budget, period), process): Totals(*rest) for budget, period, process, *rest in purses},
        )


@pytest.fixture
def store(shared: Place) -> Iterator[SqlTreasuries]:
    backend = make_backend(read_url(shared.url, Path()), PATIENCE_S)
    yield SqlTreasuries(backend)
    backend.close()


@pytest.mark.parametrize(("seed", "kind"), [(1, "calm"), (2, "rough"), (3, "wild"), (11, "wild")])
def test_a_world_over_a_database_ends_as_over_memory(store: SqlTreasuries, seed: int, kind: str) -> None:
    memory = MemoryTreasuries()
    expected = World(seed, kind, memory, beats=90, restores=False).run()
    assert World(seed, kind, store, beats=90, restores=False).run() | {
        "kills": 0,
        "stranded": 0,
    } == expected | {
        "kills": 0,
        "stranded": 0,
    }
    treasuries, purses = store.rows()
    assert treasuries == memory.treasuries
    assert purses == memory.purses
    assert sum(row.net for row in purses.values()) == sum(row.booked for row in treasuries.values()) > 0
