"""Stores treasuries, in memory or in rows of a database. `policies/treasury.py` makes the decisions.

A beat is one transaction. The rows it touches are locked in a fixed order and loaded, `receive` decides, and the
changes are written back. The lock must come before the decision: a decision made from rows that were read without a
lock would be applied to newer rows, and could grant the same money twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from koo.policies.money import TOTAL_PICO_MAX
from koo.policies.treasury import (
    ENDED,
    LIVES_MS,
    Beat,
    Key,
    ProcessRow,
    Reply,
    Rows,
    Standing,
    Totals,
    Treasury,
    keys_of,
    opened,
    receive,
    standing_of,
)
from koo.storage.transaction import Row, Transaction, as_rows, picked

Values = tuple[str | int, ...]

UNBOUNDED = -1
"""Stored in a database for a budget without a limit. NULL would need a special case in every comparison."""


class Treasuries(Protocol):
    """All treasuries of one store."""

    def receive(self, beat: Beat, now_ms: int, beat_ms: int, *, is_asked: bool = False) -> Reply:
        """Process a beat, completely or not at all. With `is_asked`, the reply has the standings of its budgets."""
        ...

    def write_off(self, process: str) -> dict[Key, int]:
        """Free what a process was granted and has not spent, and reject its later beats. Returns what was freed."""
        ...


class MemoryTreasuries:
    """Treasuries in memory; they end with the process."""

    def __init__(self) -> None:
        self.treasuries: dict[Key, Treasury] = {}
        self.purses: dict[tuple[Key, str], Totals] = {}
        self.processes: dict[str, ProcessRow] = {}
        self.seen_ms: dict[str, int] = {}
        self.frozen_until_ms = 0

    def receive(self, beat: Beat, now_ms: int, beat_ms: int, *, is_asked: bool = False) -> Reply:
        """Process a beat."""
        keys = keys_of(beat, now_ms)
        rows = Rows(
            process=self.processes.setdefault(beat.process, ProcessRow()),
            treasuries={key: self._treasury(key) for key in sorted(keys)},
            purses={
                key: self.purses[key, beat.process] for key in keys if (key, beat.process) in self.purses
            },
            frozen_until_ms=self.frozen_until_ms,
        )
        answer = receive(rows, beat, now_ms, beat_ms)
        self.frozen_until_ms = rows.frozen_until_ms
        self.purses.update({(key, beat.process): row for key, row in rows.purses.items()})
        self.seen_ms[beat.process] = now_ms
        if beat.is_last and answer.is_you:
            self._end(beat.process, keys)
        return replace(answer, standings=self.standings(_asked(answer, keys, is_asked), now_ms))

    def _end(self, process: str, keys: Iterable[Key]) -> None:
        for key in keys:
            purse = self.purses.pop((key, process), None)
            if purse is not None:
                self.purses.setdefault((key, ENDED), Totals()).take_in(purse)

    def standings(self, keys: Iterable[Key], now_ms: int) -> dict[Key, Standing]:
        """The standings of these budgets."""
        found: dict[Key, Standing] = {}
        for key in keys:
            rows = [
                (self._lives(name, now_ms), row) for (one, name), row in self.purses.items() if one == key
            ]
            living, dead = [row for lives, row in rows if lives], [row for lives, row in rows if not lives]
            found[key] = standing_of(self.treasuries[key], living, dead)
        return found

    def _lives(self, process: str, now_ms: int) -> bool:
        return self.seen_ms.get(process, 0) >= now_ms - LIVES_MS and not self.processes[process].closed

    def _treasury(self, key: Key) -> Treasury:
        if key not in self.treasuries:
            earlier = [one for one in self.treasuries if one.budget == key.budget and one.period < key.period]
            self.treasuries[key] = opened(self.treasuries[max(earlier)] if earlier else None)
        return self.treasuries[key]

    def write_off(self, process: str) -> dict[Key, int]:
        """Free what a process was granted and has not spent."""
        freed: dict[Key, int] = {}
        for (key, name), row in self.purses.items():
            if name == process and row.net > row.spent:
                freed[key] = row.net - row.spent
                row.back += freed[key]
                self.treasuries[key].booked -= freed[key]
        self.processes[process] = ProcessRow(closed=True)
        return freed


def _added(column: str) -> str:
    """The SQL that adds one row's column to another's; a sum beyond the column's range becomes its maximum."""
    return f"""{column} = CASE WHEN koo_purses.{column} > {TOTAL_PICO_MAX} - excluded.{column} THEN {TOTAL_PICO_MAX}
        ELSE koo_purses.{column} + excluded.{column} END"""


OPEN_PROCESS = """INSERT INTO koo_processes (name, number, token, closed, seen_ms)
    VALUES (:process, 0, '', 0, 0) ON CONFLICT (name) DO NOTHING"""
# This returns everything that is needed before the treasuries are locked. It is one statement, because each statement
# is a round trip.
LOCK_PROCESS = """SELECT number, token, closed, forgotten, (SELECT frozen_until_ms FROM koo_schema),
        coalesce({now_ms}, {clock_ms})
    FROM koo_processes WHERE name = :process {for_update}"""
SAVE_PROCESS = """UPDATE koo_processes SET number = :number, token = :token, closed = :closed,
    forgotten = :forgotten, seen_ms = :now_ms WHERE name = :process"""
# A new period begins with the limit of the period before it. If it began with the limit of the first process to report,
# one that runs with an older, higher limit could be granted money at midnight that the current limit forbids.
#
# ORDER BY makes all processes insert in one order. Two that open the same periods in different orders would each wait
# for a row that the other has inserted, and the database would abort one of them.
OPEN_TREASURIES = """INSERT INTO koo_treasuries
        (budget, period, limit_amount, limit_at_ms, booked, spent, recall_at_ms)
    SELECT k.budget, k.period, coalesce(b.limit_amount, -1), coalesce(b.limit_at_ms, 0), 0, 0, 0
    FROM ({keys}) k LEFT JOIN koo_treasuries b ON b.budget = k.budget AND b.period =
        (SELECT max(e.period) FROM koo_treasuries e WHERE e.budget = k.budget AND e.period < k.period)
    WHERE NOT EXISTS (SELECT 1 FROM koo_treasuries t WHERE t.budget = k.budget AND t.period = k.period)
    ORDER BY k.budget, k.period
    ON CONFLICT (budget, period) DO NOTHING"""
LOCK_TREASURIES = """SELECT t.budget, t.period, t.limit_amount, t.limit_at_ms, t.booked, t.spent, t.recall_at_ms,
        p.granted, p.back, p.spent, p.over_granted, p.held
    FROM koo_treasuries t JOIN ({keys}) k ON k.budget = t.budget AND k.period = t.period
    LEFT JOIN koo_purses p ON p.budget = t.budget AND p.period = t.period AND p.process = :process
    ORDER BY t.budget, t.period {for_update_of_t}"""
TREASURY = picked(("budget",), ("period", "limit_amount", "limit_at_ms", "booked", "spent", "recall_at_ms"))
SAVE_TREASURIES = f"""UPDATE koo_treasuries SET {", ".join(f"{one} = {TREASURY[one]}" for one in list(TREASURY)[2:])}
    FROM ({{rows}}) r WHERE budget = {TREASURY["budget"]} AND period = {TREASURY["period"]}"""
PURSE = picked(("budget", "process"), ("period", "granted", "back", "spent", "over_granted", "held"))
SAVE_PURSES = f"""INSERT INTO koo_purses ({", ".join(PURSE)}) SELECT {", ".join(PURSE.values())}
    FROM ({{rows}}) r WHERE true
    ON CONFLICT (budget, period, process) DO UPDATE SET
    {", ".join(f"{one} = excluded.{one}" for one in list(PURSE)[3:])}"""
# This does the same as `Totals.take_in`. The treasuries are locked, so no other process changes the same row at this
# time.
END_PURSES = f"""INSERT INTO koo_purses ({", ".join(PURSE)})
    SELECT p.budget, '{ENDED}', p.period, p.granted - p.back + p.over_granted, 0, p.spent, 0, 0
    FROM koo_purses p JOIN ({{keys}}) k ON k.budget = p.budget AND k.period = p.period WHERE p.process = :process
    ON CONFLICT (budget, period, process) DO UPDATE SET {_added("granted")}, {_added("spent")}"""
DROP_PURSES = """DELETE FROM koo_purses WHERE process = :process AND EXISTS
    (SELECT 1 FROM ({keys}) k WHERE k.budget = koo_purses.budget AND k.period = koo_purses.period)"""
FREEZE = "UPDATE koo_schema SET frozen_until_ms = :until_ms"
FREED = """SELECT budget, period, granted - back + over_granted - spent FROM koo_purses
    WHERE process = :process AND granted - back + over_granted > spent ORDER BY budget, period"""
FREE_PURSE = """UPDATE koo_purses SET back = back + :amount
    WHERE budget = :budget AND period = :period AND process = :process"""
FREE_TREASURY = (
    "UPDATE koo_treasuries SET booked = booked - :amount WHERE budget = :budget AND period = :period"
)
CLOSE = "UPDATE koo_processes SET closed = 1, number = 0, token = '' WHERE name = :process"


OTHERS = """SELECT p.budget, p.period, q.seen_ms, q.closed, p.granted, p.back, p.spent, p.over_granted, p.held
    FROM koo_purses p JOIN ({keys}) k ON k.budget = p.budget AND k.period = p.period
    LEFT JOIN koo_processes q ON q.name = p.process
    WHERE p.process <> :process"""


def _asked(answer: Reply, keys: Iterable[Key], is_asked: bool) -> set[Key]:
    """The budgets whose standings the reply contains."""
    return set(keys) if is_asked else {key for key in answer.short if key is not None}


def receive_in(
    tx: Transaction,
    beat: Beat,
    wall_ms: int,
    beat_ms: int,
    *,
    is_asked: bool = False,
    opened: set[Key] | None = None,
    now_ms: int | None = None,
) -> Reply:
    """Process a beat, in a transaction. The time is the store's clock; for a file that is `wall_ms`, or `now_ms`.

    `opened` remembers the treasuries that existed at the last beat, so they need not be opened again.
    """
    process, frozen_until_ms, now_ms, rows, others = _load(tx, beat, wall_ms, now_ms, opened, is_asked)
    rows.process, rows.frozen_until_ms = process, frozen_until_ms
    treasuries = {key: _values(key, row) for key, row in rows.treasuries.items()}
    purses = {key: _purse_values(key, row, beat.process) for key, row in rows.purses.items()}
    answer = receive(rows, beat, now_ms, beat_ms)
    # The name is another process's, or an operator has closed it. Saving the process's row would only renew its
    # `seen_ms`, and a written-off process must not appear to report.
    if not answer.is_you:
        return answer
    if rows.frozen_until_ms != frozen_until_ms:
        tx.run(FREEZE, {"until_ms": rows.frozen_until_ms})
    _save(tx, SAVE_TREASURIES, {key: _values(key, row) for key, row in rows.treasuries.items()}, treasuries)
    _save(
        tx,
        SAVE_PURSES,
        {key: _purse_values(key, row, beat.process) for key, row in rows.purses.items()},
        purses,
    )
    tx.run(SAVE_PROCESS, process_values(beat.process, process, now_ms))
    if beat.is_last:
        for statement in (END_PURSES, DROP_PURSES):
            tx.run(statement, _values_of(beat.process, rows.treasuries))
    asked = _asked(answer, rows.treasuries, is_asked)
    if asked and not is_asked:
        others = tx.later(OTHERS, _values_of(beat.process, asked))
    return replace(answer, standings=_standings(rows, asked, others(), now_ms)) if asked else answer


def _load(
    tx: Transaction, beat: Beat, wall_ms: int, now_ms: int | None, opened: set[Key] | None, is_asked: bool
) -> tuple[ProcessRow, int, int, Rows, Callable[[], list[Row]]]:
    """Lock this process's row, then the rows that its beat touches.

    Returns its row, the end of the store's freeze, the time, the rows, and the purses of other processes if `is_asked`.
    """
    opened = set() if opened is None else opened
    # The process's own row is locked first, so two copies of one process under one name, or a beat and its repetition
    # on a second connection, are decided one after the other. Both would otherwise read the same last token, and the
    # money of one beat would be granted twice.
    locked = tx.later(LOCK_PROCESS, {"process": beat.process, "wall_ms": wall_ms, "now_ms": now_ms})
    # Which treasuries a beat touches depends on the store's clock, which the first statement returns. To save a round
    # trip, the treasuries of the last beat are locked with it: nearly always this beat touches the same ones.
    likely = _Locked(tx, beat.process, opened, is_asked) if opened else None
    process, frozen_until_ms, now_ms, is_new = _process(tx, beat.process, locked(), wall_ms, now_ms)
    keys = keys_of(beat, now_ms)
    rows = None if likely is None else likely.rows()
    # A new process had no row to lock. A copy of it under the same name may have reported between the two statements,
    # so the purses that were read with the missing row do not count.
    if rows is None or likely is None or is_new or keys != opened:
        # Missing treasuries are inserted before any is locked. A process that inserts one while it has locked another
        # could deadlock with a process that does the opposite. At midnight the likely ones are already locked; if two
        # processes deadlock then, the database aborts one transaction, and it is run again.
        tx.run(OPEN_TREASURIES, _values_of(beat.process, keys))
        likely = _Locked(tx, beat.process, keys, is_asked)
        rows = likely.rows()
        assert rows is not None
        opened.clear()
        opened.update(keys)
    return process, frozen_until_ms, now_ms, rows, likely.others


def _process(
    tx: Transaction, name: str, found: list[Row], wall_ms: int, now_ms: int | None
) -> tuple[ProcessRow, int, int, bool]:
    values = {"process": name, "wall_ms": wall_ms, "now_ms": now_ms}
    is_new = not found
    if is_new:
        tx.run(OPEN_PROCESS, values)
        found = tx.rows(LOCK_PROCESS, values)
    number, token, closed, forgotten, frozen_until_ms, at_ms = found[0]
    return ProcessRow(number, token, bool(closed), _read(forgotten)), frozen_until_ms, at_ms, is_new


def process_values(name: str, row: ProcessRow, now_ms: int) -> dict[str, object]:
    """What `SAVE_PROCESS` writes."""
    forgotten = (
        "" if row.forgotten is None else json.dumps([[*key, amount] for key, amount in row.forgotten.items()])
    )
    return {
        "process": name,
        "number": row.number,
        "token": row.token,
        "closed": int(row.closed),
        "forgotten": forgotten,
        "now_ms": now_ms,
    }


def _read(forgotten: str) -> dict[Key, int] | None:
    if not forgotten:
        return None
    return {Key(budget, period): amount for budget, period, amount in json.loads(forgotten)}


class _Locked:
    """Some treasuries, locked in a fixed order, with this process's purses, and the others' if `is_asked`."""

    def __init__(self, tx: Transaction, process: str, keys: set[Key], is_asked: bool) -> None:
        values = _values_of(process, keys)
        self._keys = keys
        self._found = tx.later(LOCK_TREASURIES, values)
        # They are read after the lock, so that no other beat can change them in between, but in the same round trip.
        self.others = tx.later(OTHERS, values) if is_asked else list

    def rows(self) -> Rows | None:
        """Wait for the rows; None if some are missing, because the store was replaced since the last beat."""
        found = self._found()
        if len(found) < len(self._keys):
            return None
        rows = Rows(process=ProcessRow())
        for budget, period, limit, limit_at_ms, booked, spent, recall_at_ms, *totals in found:
            key = Key(budget, period)
            rows.treasuries[key] = Treasury(
                None if limit == UNBOUNDED else limit, limit_at_ms, booked, spent, recall_at_ms
            )
            if totals[0] is not None:
                rows.purses[key] = Totals(*totals)
        return rows


def _values_of(process: str, keys: Iterable[Key]) -> dict[str, object]:
    return {"process": process, "keys": json.dumps(sorted(keys))}


def _standings(rows: Rows, keys: set[Key], others: list[Row], now_ms: int) -> dict[Key, Standing]:
    living = {key: [rows.purses[key]] if key in rows.purses else [] for key in keys}
    dead: dict[Key, list[Totals]] = {key: [] for key in keys}
    for budget, period, seen_ms, closed, *totals in others:
        lives = not closed and seen_ms is not None and seen_ms >= now_ms - LIVES_MS
        (living if lives else dead)[Key(budget, period)].append(Totals(*totals))
    return {key: standing_of(rows.treasuries[key], living[key], dead[key]) for key in keys}


def _values(key: Key, row: Treasury) -> Values:
    limit = UNBOUNDED if row.limit is None else row.limit
    return (*key, limit, row.limit_at_ms, _fit(row.booked), _fit(row.spent), row.recall_at_ms)


def _purse_values(key: Key, row: Totals, process: str) -> Values:
    amounts = (row.granted, row.back, row.spent, row.over, row.held)
    return (key.budget, process, key.period, *map(_fit, amounts))


def _fit(amount: int) -> int:
    # The amount is capped at the column's maximum. A beat that the database rejects would be sent again, unchanged,
    # forever.
    return min(amount, TOTAL_PICO_MAX)


def _save(tx: Transaction, sql: str, now: Mapping[Key, Values], before: Mapping[Key, Values]) -> None:
    changed = [values for key, values in now.items() if values != before.get(key)]
    if changed:
        tx.run(sql, as_rows(changed))


def write_off_in(tx: Transaction, process: str) -> dict[Key, int]:
    """Free what a process was granted and has not spent, in a transaction."""
    values = {"process": process}
    # Locking the row first orders the write-off against a late beat of that process. If the beat comes first, its
    # spending is no longer free. If it comes second, it finds the name closed and is answered "not you". Without this
    # order, the same money could be freed here and reported as spent by the beat.
    _process(tx, process, tx.rows(LOCK_PROCESS, {**values, "wall_ms": 0, "now_ms": None}), 0, None)
    freed = {Key(budget, period): amount for budget, period, amount in tx.rows(FREED, values)}
    for key, amount in freed.items():
        one = {"budget": key.budget, "period": key.period, "process": process, "amount": amount}
        tx.run(FREE_TREASURY, one)
        tx.run(FREE_PURSE, one)
    tx.run(CLOSE, values)
    return freed
