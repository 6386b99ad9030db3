"""History in the store: for each process, one row per minute and one per five minutes, with all its components.

A process writes only its own rows, so two processes never write the same one. Rows of a minute are kept for two days
and rows of five minutes for thirty. An hour after a span has ended, its rows from several processes are merged into
one; otherwise a month of a hundred processes would fill the disk. Spending is not stored here, because the ledger's
entries have it exactly.

Marks are events at one moment: a breaker opened, an operator acted, another version was deployed, or a process started
with other settings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from koo.options import DAY_S
from koo.policies.samples import Sample, Span, extend, unite
from koo.spans import Mark, Spans
from koo.storage.transaction import Transaction, Transactions

log = logging.getLogger("koo")

MINUTE_S = 60
FIVE_MINUTES_S = 300
STEPS_S = (MINUTE_S, FIVE_MINUTES_S)
KEPT_S = {MINUTE_S: int(2 * DAY_S), FIVE_MINUTES_S: int(30 * DAY_S)}
MERGED_AFTER_S = 3600
"""By then every process has long written its row, so a merged row is rarely merged a second time."""
MERGED_AT_ONCE = 200
"""A small batch, because the ledger's beats wait while one is merged."""
MARKS_MAX = 5000
"""Bounds the table's size if a breaker opens and closes all the time."""
TOGETHER_S = 5.0
"""When several processes open a breaker or start a new version within this time, it is shown as one event."""
DIGESTS = "digests"
"""Marks of this kind contain digests of all settings; only the next process to start reads them."""
NAMED_MAX = 8
ALL = ""
"""Stands in the process column for a row that was merged from several processes."""

WRITE = """INSERT INTO koo_history (step_s, at_s, process, data) VALUES (:step_s, :at_s, :process, :data)
    ON CONFLICT (step_s, at_s, process) DO UPDATE SET data = excluded.data"""
READ = """SELECT at_s, data FROM koo_history
    WHERE step_s = :step_s AND at_s >= :since_s AND at_s < :until_s ORDER BY at_s, process"""
READ_AT_ONCE = 300
"""Spans per transaction: reading them takes some hundredths of a second, in which the ledger waits for the thread."""
SEVERAL = """SELECT step_s, at_s FROM koo_history WHERE at_s < :before_s
    GROUP BY step_s, at_s HAVING count(*) > 1 LIMIT :limit"""
# This reads and deletes in one statement. The database locks each row that it deletes, so of two processes that merge
# the same span at the same time, one gets the rows and the other none. With a SELECT first, a row that its process
# writes between the two statements would be deleted without having been merged.
TAKE = "DELETE FROM koo_history WHERE step_s = :step_s AND at_s = :at_s RETURNING data"
PRUNE = "DELETE FROM koo_history WHERE step_s = :step_s AND at_s < :before_s"
# Added up in two parts for the reason given in `entries.py`.
SPENT = """SELECT service, at_ms / 1000 / :step_s AS span,
      sum(amount / 1000000), sum(amount - amount / 1000000 * 1000000) FROM koo_entries
    WHERE day >= :first_day AND day <= :last_day AND at_ms >= :since_ms AND at_ms < :until_ms
    GROUP BY service, span"""
MARKED = """SELECT at_ms, kind, component, text FROM koo_marks
    WHERE at_ms >= :since_ms AND at_ms < :until_ms AND kind <> 'digests' ORDER BY at_ms DESC LIMIT :limit"""
MARK = """INSERT INTO koo_marks (at_ms, process, kind, component, text)
    VALUES (:at_ms, :process, :kind, :component, :text)"""
LAST_MARK = """SELECT text FROM koo_marks WHERE kind = :kind AND component = :component
    ORDER BY at_ms DESC LIMIT 1"""
PRUNE_MARKS = """DELETE FROM koo_marks WHERE at_ms < :before_ms
    OR at_ms < (SELECT at_ms FROM koo_marks ORDER BY at_ms DESC LIMIT 1 OFFSET :most)"""


class SqlHistory:
    """The history of all processes on one store. Each method raises `StoreUnavailable`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def write(self, spans: Iterable[tuple[int, int, Span]]) -> None:
        """Write this process's spans: seconds, start in wall seconds, samples. Writing a span again replaces it."""
        packed = [{"step_s": step_s, "at_s": at_s, "data": _packed(span)} for step_s, at_s, span in spans]

        def work(tx: Transaction) -> None:
            # The name is read inside the transaction, because a process gets it when its store is opened.
            tx.run(WRITE, [{**row, "process": self._transactions.process} for row in packed])

        if packed:
            await self._transactions.run(work)

    async def read(self, step_s: int, since_s: int, until_s: int, every_s: int) -> Spans:
        """All processes' spans, combined into `every_s` seconds (a multiple of `step_s`) and keyed by their start."""
        spans: Spans = {}
        # A slice is rounded up to whole result spans. A span that was cut by two slices would be returned by both,
        # and the second half would replace the first.
        slice_s = -(-READ_AT_ONCE * step_s // every_s) * every_s
        for begin_s in range(since_s - since_s % every_s, until_s, slice_s):
            values = {
                "step_s": step_s,
                "since_s": max(since_s, begin_s),
                "until_s": min(until_s, begin_s + slice_s),
            }
            spans |= await self._transactions.run(partial(_read, values, every_s), exclusive=False)
        return spans

    async def spent(self, since_s: int, until_s: int, every_s: int) -> dict[tuple[str, int], int]:
        """The booked amounts in pico-dollars, by service and start of the span."""
        values = {
            "step_s": every_s,
            "since_ms": since_s * 1000,
            "until_ms": until_s * 1000,
            # `day` is the day whose budget paid. A call that ran over midnight was paid by the previous day's.
            "first_day": int(since_s // DAY_S) - 1,
            "last_day": int(until_s // DAY_S),
        }
        rows = await self._transactions.run(lambda tx: tx.rows(SPENT, values), exclusive=False)
        return {
            (service, int(span) * every_s): int(high) * 1_000_000 + int(low)
            for service, span, high, low in rows
        }

    async def mark(self, marks: Sequence[Mark]) -> None:
        """Record events."""

        def work(tx: Transaction) -> None:
            tx.run(MARK, [_mark_row(mark, self._transactions.process) for mark in marks])

        await self._transactions.run(work)

    async def mark_change(self, mark: Mark) -> None:
        """Record an event unless the last mark of its kind and component has the same text."""

        def work(tx: Transaction) -> None:
            # Only one process does this at a time: fifty workers that start with a new version would otherwise all find
            # the old mark, and record the same change fifty times.
            tx.rows("{latecomers_wait}")
            if [(mark.text,)] != tx.rows(LAST_MARK, {"kind": mark.kind, "component": mark.component}):
                tx.run(MARK, _mark_row(mark, self._transactions.process))

        await self._transactions.run(work)

    async def mark_settings(self, at: float, component: str, digests: Mapping[str, str]) -> None:
        """Record which settings differ from those of the process that started last, if any differ."""
        told = json.dumps(digests, separators=(",", ":"), sort_keys=True)

        def work(tx: Transaction) -> None:
            tx.rows("{latecomers_wait}")
            before = tx.rows(LAST_MARK, {"kind": DIGESTS, "component": component})
            if before == [(told,)]:
                return
            marks = [Mark(at, DIGESTS, component, told)]
            if before:
                marks.append(Mark(at, "settings", component, _changed(json.loads(before[0][0]), digests)))
            tx.run(MARK, [_mark_row(mark, self._transactions.process) for mark in marks])

        await self._transactions.run(work)

    async def marks(self, since: float, until: float, *, limit: int) -> list[Mark]:
        """The events from one wall time to another, oldest first; if there are more than `limit`, the newest ones."""
        values = {"since_ms": int(since * 1000), "until_ms": int(until * 1000), "limit": limit}
        rows = await self._transactions.run(lambda tx: tx.rows(MARKED, values), exclusive=False)
        return _together(
            Mark(at_ms / 1000, kind, component, text) for at_ms, kind, component, text in rows[::-1]
        )

    async def prune(self, now_s: float) -> bool:
        """Delete what is too old and merge spans of several processes. Returns True if there may be more to merge."""

        def work(tx: Transaction) -> bool:
            for step_s, kept_s in KEPT_S.items():
                tx.run(PRUNE, {"step_s": step_s, "before_s": int(now_s) - kept_s})
            before_ms = int((now_s - KEPT_S[FIVE_MINUTES_S]) * 1000)
            tx.run(PRUNE_MARKS, {"before_ms": before_ms, "most": MARKS_MAX})
            several = tx.rows(SEVERAL, {"before_s": int(now_s) - MERGED_AFTER_S, "limit": MERGED_AT_ONCE})
            for step_s, at_s in several:
                _merge(tx, step_s, at_s)
            return len(several) == MERGED_AT_ONCE

        return await self._transactions.run(work)


def _merge(tx: Transaction, step_s: int, at_s: int) -> None:
    taken = tx.rows(TAKE, {"step_s": step_s, "at_s": at_s})
    span: Span = {}
    for (data,) in taken:
        unite(span, _unpacked(data))
    if taken:
        tx.run(WRITE, {"step_s": step_s, "at_s": at_s, "process": ALL, "data": _packed(span)})


def _read(values: Mapping[str, int], every_s: int, tx: Transaction) -> Spans:
    """Read one slice of time. Unpacking it takes too long for the event loop, so it runs in the store's thread."""
    at_once: Spans = {}
    for at_s, data in tx.rows(READ, values):
        if at_s in at_once:
            unite(at_once[at_s], _unpacked(data))
        else:
            at_once[at_s] = _unpacked(data)
    spans: Spans = {}
    for at_s, span in at_once.items():
        begin = at_s - at_s % every_s
        if begin in spans:
            extend(spans[begin], span)
        else:
            spans[begin] = span
    return spans


def _packed(span: Span) -> str:
    return json.dumps({name: sample.packed() for name, sample in span.items()}, separators=(",", ":"))


def _unpacked(data: str) -> Span:
    span: Span = {}
    for name, values in json.loads(data).items():
        try:
            span[name] = Sample.unpacked(values)
        except (ValueError, TypeError, IndexError):
            log.debug("a sample of %s in the state store could not be read", name)
    return span


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """A text such as "changed: ai_services.claude.model, koo.token", which contains no values."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return f"changed: {', '.join(names[:NAMED_MAX])}{more}"


def _mark_row(mark: Mark, process: str) -> dict[str, str | int]:
    return {
        "at_ms": int(mark.at * 1000),
        "process": process,
        "kind": mark.kind,
        "component": mark.component,
        "text": mark.text,
    }


def _together(marks: Iterable[Mark]) -> list[Mark]:
    """Drop marks that repeat what another process reported at the same time."""
    kept: list[Mark] = []
    last: dict[tuple[str, str, str], float] = {}
    for mark in marks:
        what = (mark.kind, mark.component, mark.text)
        if mark.at - last.get(what, float("-inf")) > TOGETHER_S:
            kept.append(mark)
            last[what] = mark.at
    return kept
