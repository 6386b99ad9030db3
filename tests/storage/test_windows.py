"""A fleet's limits: the same random world gets the same replies in memory, SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from koo.policies.units import Grant, Told
from koo.storage.sql import SqlBackend, make_backend, read_url
from koo.storage.transaction import Transaction
from koo.storage.windows import MemoryWindows, receive_in
from tests.policies.unit_world import World
from tests.storage.support import PATIENCE_S, Place

NOW_MS = 5_000_000


class SqlWindows:
    """Limits in a database, on a separate connection."""

    def __init__(self, backend: SqlBackend) -> None:
        self.backend = backend

    def receive(self, process: str, told: Sequence[Told], now_ms: int) -> list[Grant]:
        results: list[list[Grant]] = []
        self.backend.transact(
            lambda tx: results.append(receive_in(tx, process, told, 0, now_ms)), exclusive=True
        )
        return results[-1]

    def rows(self, table: str) -> list[tuple[object, ...]]:
        results: list[list[tuple[object, ...]]] = []
        self.backend.transact(lambda tx: results.append(tx.rows(f"SELECT * FROM {table}")), exclusive=False)
        return results[-1]


@pytest.fixture
def store(shared: Place) -> Iterator[SqlWindows]:
    backend = make_backend(read_url(shared.url, Path()), PATIENCE_S)
    yield SqlWindows(backend)
    backend.close()


class Recorded(MemoryWindows):
    """Limits in memory that record every reply."""

    def __init__(self, other: SqlWindows) -> None:
        super().__init__()
        self.other = other

    def receive(self, process: str, told: Sequence[Told], now_ms: int) -> list[Grant]:
        self.processes = 0  # a database counts the processes on its roll call, and here there are none
        expected = super().receive(process, told, now_ms)
        assert self.other.receive(process, told, now_ms) == expected
        return expected


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_world_gets_the_same_replies_over_a_database_as_in_memory(
    store: SqlWindows, seed: int
) -> None:
    world = World(60, 4, 2.0, seconds=70, seed=seed, store=Recorded(store)).run()
    assert len(world.trips) > 100 and world.worst <= 60


def test_a_processs_limits_share_one_message(store: SqlWindows) -> None:
    told = [Told("hour/x", 3_600_000, 100, 1, need=1, want=5), Told("minute/x", 60_000, 3, 1, need=1, want=5)]
    assert [grant.granted for grant in store.receive("a", told, NOW_MS)] == [5, 3]
    assert [grant.granted for grant in store.receive("b", told, NOW_MS)] == [5, 0]
    assert len(store.rows("koo_leases")) == 4


def test_units_requested_at_the_same_time_are_never_granted_twice(shared: Place) -> None:
    granted, threads = list[int](), list[threading.Thread]()

    def ask(number: int) -> None:
        backend = make_backend(read_url(shared.url, Path()), PATIENCE_S)
        windows = SqlWindows(backend)
        for turn in range(1, 13):
            (grant,) = windows.receive(
                f"p{number}-{turn}", [Told("minute/x", 60_000, 40, turn, need=1, want=1)], NOW_MS
            )
            granted.append(grant.granted)
        backend.close()

    for number in range(5):
        threads.append(threading.Thread(target=ask, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(granted) == 60 and sum(granted) == 40


def test_a_process_on_the_roll_counts_even_if_it_uses_nothing(store: SqlWindows) -> None:
    def add(tx: Transaction) -> None:
        for name in ("a", "b", "c"):
            tx.run(
                """INSERT INTO koo_fleet (process, ledger, host, worker, pid, version, label, started_ms, seen_ms,
                     beat_ms, beats, in_flight) SELECT :name, '', '', '', 1, '', '', 0, {clock_ms}, 1000, 1, 0""",
                {"name": name, "wall_ms": NOW_MS},
            )

    store.backend.transact(add, exclusive=True)
    results: list[list[Grant]] = []
    told = [Told("minute/x", 60_000, 3, 1)]
    store.backend.transact(lambda tx: results.append(receive_in(tx, "a", told, NOW_MS)), exclusive=True)
    assert results[-1][0].processes == 3


def test_the_lease_of_a_process_that_never_returns_is_deleted_once_it_is_useless(store: SqlWindows) -> None:
    store.receive("a", [Told("minute/x", 60_000, 3, 1, need=1, want=2)], NOW_MS)
    store.receive("b", [Told("minute/x", 60_000, 3, 1)], NOW_MS + 5_000)
    (lease,) = store.rows("koo_leases")
    assert lease[-1] == 2
    (grant,) = store.receive(
        "a", [Told("minute/x", 60_000, 3, 2, serial=1, granted=2, used=1, back=1)], NOW_MS + 9_000
    )
    assert grant.used == 1 and store.rows("koo_leases") == []
