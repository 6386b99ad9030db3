"""The same random world gives exactly the same sums in memory, SQLite and PostgreSQL."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from koo.policies.treasury import Ask, Beat, Key, Limit, ProcessRow, Reply, Totals, Treasury
from koo.storage import treasuries
from koo.storage.sql import SqlBackend, make_backend, read_url
from koo.storage.transaction import Dialect, Row, Table, Transaction, as_rows
from koo.storage.treasuries import (
    FREEZE,
    LOCK_TREASURIES,
    OPEN_PROCESS,
    SAVE_PROCESS,
    SAVE_PURSES,
    SAVE_TREASURIES,
    TREASURY,
    UNBOUNDED,
    MemoryTreasuries,
    _purse_values,
    _read,
    _values,
    process_values,
    receive_in,
    write_off_in,
)
from koo.testing.postgres import PostgresServer
from tests.policies.purse_world import Broken, World
from tests.policies.test_purses import KINDS, NOON_MS, RULES_OUT, duel, late
from tests.storage.support import PATIENCE_S, Place

T = TypeVar("T")
KEY = Key("day", 20_000)


class SqlTreasuries:
    """Treasuries in a database, on a separate connection."""

    def __init__(self, backend: SqlBackend) -> None:
        self.backend = backend

    def run(self, work: Callable[[Transaction], T]) -> T:
        results: list[T] = []
        self.backend.transact(lambda tx: results.append(work(tx)), exclusive=True)
        return results[-1]

    def receive(self, beat: Beat, now_ms: int, beat_ms: int, *, is_asked: bool = False) -> Reply:
        return self.run(lambda tx: receive_in(tx, beat, 0, beat_ms, is_asked=is_asked, now_ms=now_ms))

    def write_off(self, process: str) -> dict[Key, int]:
        return self.run(lambda tx: write_off_in(tx, process))

    def rows(self) -> tuple[dict[Key, Treasury], dict[tuple[Key, str], Totals]]:
        return self.run(self.rows_in)

    def rows_in(self, tx: Transaction) -> tuple[dict[Key, Treasury], dict[tuple[Key, str], Totals]]:
        treasuries = tx.rows("SELECT * FROM koo_treasuries")
        purses = tx.rows("SELECT * FROM koo_purses")
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


@pytest.mark.parametrize(("seed", "kind"), [(1, "calm"), (2, "rough"), (3, "wild")])
def test_a_random_world_ends_the_same_over_a_database_as_in_memory(
    store: SqlTreasuries, seed: int, kind: str
) -> None:
    memory = MemoryTreasuries()
    expected = World(seed, kind, memory, beats=90, restores=False).run()
    assert World(seed, kind, store, beats=90, restores=False).run() | {
        "kills": 0,
        "stranded": 0,
    } == expected | {
        "kills": 0,
        "stranded": 0,
    }
    rows, purses = store.rows()
    assert rows == memory.treasuries
    assert purses == memory.purses
    assert sum(row.net for row in purses.values()) == sum(row.booked for row in rows.values()) > 0


def test_data_loss_is_reported_again_if_the_reply_about_it_was_lost(store: SqlTreasuries) -> None:
    beat = Beat("a", 7, "g", "f", {KEY: Totals(granted=30)}, {"day": Limit(100, "day")}, [])
    for _ in range(2):
        answer = store.receive(beat, NOON_MS, 1000)
        assert answer.has_forgotten and answer.forgotten == {KEY: 30}
    beat = Beat("a", 8, "h", "g", {KEY: Totals(granted=30)}, {"day": Limit(100, "day")}, [])
    assert not store.receive(beat, NOON_MS, 1000).has_forgotten


class Rows(MemoryTreasuries):
    """A database's treasuries. All rows are read after each beat, and the world's checks use them."""

    def __init__(self, sql: SqlTreasuries) -> None:
        super().__init__()
        self._sql = sql
        self._seen = self.treasuries

    def receive(self, beat: Beat, now_ms: int, beat_ms: int, *, is_asked: bool = False) -> Reply:
        if self.treasuries is not self._seen:  # the world has replaced it with an older copy
            self._sql.run(self._write)
        answer = self._sql.receive(beat, now_ms, beat_ms, is_asked=is_asked)
        self._sql.run(self._read)
        return answer

    def write_off(self, process: str) -> dict[Key, int]:
        freed = self._sql.write_off(process)
        self._sql.run(self._read)
        return freed

    def _read(self, tx: Transaction) -> None:
        self.treasuries, self.purses = self._sql.rows_in(tx)
        self._seen = self.treasuries
        rows = tx.rows("SELECT name, number, token, closed, forgotten, seen_ms FROM koo_processes")
        self.processes = {
            name: ProcessRow(number, token, bool(closed), _read(forgotten))
            for name, number, token, closed, forgotten, _ in rows
        }
        self.seen_ms = {row[0]: row[5] for row in rows}
        self.frozen_until_ms = tx.rows("SELECT frozen_until_ms FROM koo_schema")[0][0]

    def _write(self, tx: Transaction) -> None:
        for table in ("koo_treasuries", "koo_purses", "koo_processes"):
            tx.run(f"DELETE FROM {table}")
        treasuries = [_values(key, row) for key, row in self.treasuries.items()]
        tx.run(
            f"INSERT INTO koo_treasuries SELECT {', '.join(TREASURY.values())} FROM ({{rows}}) r",
            as_rows(treasuries),
        )
        purses = [_purse_values(key, row, name) for (key, name), row in self.purses.items()]
        tx.run(SAVE_PURSES, as_rows(purses))
        for name, row in self.processes.items():
            values = process_values(name, row, self.seen_ms.get(name, 0))
            tx.run(OPEN_PROCESS, values)
            tx.run(SAVE_PROCESS, values)
        tx.run(FREEZE, {"until_ms": self.frozen_until_ms})


def fault_of(options: dict[str, Any]) -> tuple[int, str]:
    """The first random world that detects the removal of a rule."""
    for seed, kind in itertools.product(range(40), KINDS):
        try:
            World(seed, kind, **options).run()
        except Broken:
            return seed, kind
    raise AssertionError("nothing was found")


OVER_A_FILE = [
    "a chain of tokens",
    "tokens in addition to numbers",
    "locked rows",
    "unneeded room going home",
    "the lowest limit",
    "totals that only grow",
    "a fork's empty purse",
]


@pytest.mark.slow
@pytest.mark.parametrize("rule", OVER_A_FILE)
def test_over_a_file_removing_a_rule_causes_a_fault(
    rule: str, sqlite: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(read_url(sqlite.url, Path()), PATIENCE_S)
    with monkeypatch.context() as patch:
        seed, kind = fault_of(RULES_OUT[rule](patch))
    with monkeypatch.context() as patch:
        options = RULES_OUT[rule](patch)
        with pytest.raises(Broken):
            World(seed, kind, Rows(SqlTreasuries(backend)), **options).run()
    backend.close()


@pytest.mark.parametrize(
    ("rule", "scenario"), [("a grant in all budgets or in none", duel), ("the freeze", late)]
)
def test_over_a_database_removing_a_rule_makes_a_scenario_fail(
    rule: str,
    scenario: Callable[[Callable[[], MemoryTreasuries]], None],
    store: SqlTreasuries,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A random world runs into these cases too rarely."""

    def emptied() -> Rows:
        rows = Rows(store)
        store.run(rows._write)
        return rows

    scenario(emptied)
    RULES_OUT[rule](monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        scenario(emptied)


class Overtaken:
    """A transaction that tries to let another process's whole beat run between its own decision and its writes."""

    dialect: Dialect = "postgresql"

    def __init__(self, tx: Transaction, other: threading.Thread) -> None:
        self._tx = tx
        self._other = other

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        return self._tx.rows(sql, values)

    def later(self, sql: str, values: Mapping[str, Any] | None = None) -> Callable[[], list[Row]]:
        return self._tx.later(sql, values)

    def run(self, sql: str, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> None:
        if sql == SAVE_TREASURIES:
            self._other.start()
            self._other.join(0.5)
        self._tx.run(sql, values)

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        self._tx.add(table, rows)


def ask_at_once(server: PostgresServer) -> tuple[int, int]:
    """Two processes request 60 of 100 at the same moment; returns the booked amount and the purses' amounts."""
    url = server.url("psycopg", server.create_database())
    stores = [SqlTreasuries(make_backend(read_url(url, Path()), PATIENCE_S)) for _ in range(2)]
    beats = [
        Beat(name, 1, name, "", {}, {"day": Limit(100, "day")}, [Ask({KEY: 60}, {KEY: 60}, 60)])
        for name in "ab"
    ]
    for store, name in zip(stores, "cd", strict=True):  # the rows and the connections exist from here on
        store.receive(Beat(name, 1, name, "", {}, {"day": Limit(100, "day")}, []), NOON_MS, 1000)
    other = threading.Thread(target=stores[1].receive, args=(beats[1], NOON_MS, 1000))
    stores[0].run(lambda tx: receive_in(Overtaken(tx, other), beats[0], 0, 1000, now_ms=NOON_MS))
    other.join()
    rows, purses = stores[0].rows()
    for store in stores:
        store.backend.close()
    return rows[KEY].booked, sum(row.net for row in purses.values())


def test_on_a_server_two_simultaneous_processes_are_not_granted_the_same_money(
    postgres18: PostgresServer,
) -> None:
    assert ask_at_once(postgres18) == (60, 60)


def test_on_a_server_without_row_locks_two_simultaneous_processes_are_granted_the_same_money(
    postgres18: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(treasuries, "LOCK_TREASURIES", LOCK_TREASURIES.replace("{for_update_of_t}", ""))
    assert ask_at_once(postgres18) == (60, 120)
