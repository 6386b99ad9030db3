"""The ledger's bookkeeping: what one transaction does with everything that waits.

The cap must hold whoever else writes, in any process, on any machine. So a transaction first locks the rows of the
days it is about (`koo_days`; in SQLite it has the whole file), and nobody changes money without that lock. Under it:

1. what was ended is taken out of `koo_holds`. A row can be taken out once, so a hold ends once, whoever comes first:
   its owner, its owner again after a lost connection, or the sweeper of another process;
2. new holds are admitted one by one, in the order in which they came, while settled + held + amount ≤ limit;
3. the new totals are written. Up to five hundred acts cost one commit.

Locks are always taken in the same order (days sorted, then holds), so that two processes never wait for each other.

A transaction may be run again when nobody knows whether its commit arrived. Ends do nothing the second time. A hold
that is found again counts as admitted. Counts of requests are not found again: those that add are added twice (which
refuses too early rather than too late), those that give back are not repeated.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from koo.storage.money import TOTAL_PICO_MAX
from koo.storage.transaction import Row, Transaction

Key = tuple[str, int]
"""Service and day."""

LOCK = "SELECT service, day, settled, held, requests FROM koo_days WHERE {where} ORDER BY service, day {{for_update}}"
BEGIN_DAY = """INSERT INTO koo_days (service, day, settled, held, requests) VALUES (:service, :day, 0, 0, 0)
    ON CONFLICT (service, day) DO NOTHING"""
WRITE_DAY = """UPDATE koo_days SET settled = settled + :settled, held = held + :held, requests = requests + :requests
    WHERE service = :service AND day = :day"""
FIND = "SELECT id, service, day, model, amount, tag, metadata, process FROM koo_holds WHERE id IN ({ids})"
DELETE = "DELETE FROM koo_holds WHERE id IN ({ids})"
SEEN = "SELECT id FROM koo_holds WHERE id IN ({ids}) UNION ALL SELECT id FROM koo_entries WHERE id IN ({ids})"
PUT = """INSERT INTO koo_holds (id, service, day, model, amount, lease_ends_ms, tag, metadata, process)
    VALUES (:id, :service, :day, :model, :amount, :lease_ends_ms, :tag, :metadata, :process)"""
BOOK = """INSERT INTO koo_entries (id, at_ms, service, day, model, amount, bound, source, estimated, input_tokens,
      cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, unit_prices, price_version, tag,
      metadata, process)
    VALUES (:id, :at_ms, :service, :day, :model, :amount, :bound, :source, :estimated, :input_tokens,
      :cache_read_tokens, :cache_write_tokens, :output_tokens, :reasoning_tokens, :unit_prices, :price_version, :tag,
      :metadata, :process)"""
EXPIRED = (
    "SELECT id, service, day FROM koo_holds WHERE lease_ends_ms < :now_ms ORDER BY lease_ends_ms LIMIT 500"
)


@dataclass(slots=True, kw_only=True)
class Act:
    """Something that waits to be written, about one service and day. `tried`: it may have been written already."""

    service: str
    day: int
    tried: bool = False

    @property
    def key(self) -> Key:
        return self.service, self.day


@dataclass(slots=True, kw_only=True)
class Put(Act):
    """A hold that is asked for; `limit` None: it must be taken. Somebody may wait for `answer`."""

    id: str
    model: str
    amount: int
    lease_ends_ms: int
    tag: str | None
    metadata: str | None
    limit: int | None = None
    answer: asyncio.Future[Totals | None] | None = None
    admitted: bool = False

    def values(self, process: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "service": self.service,
            "day": self.day,
            "model": self.model,
            "amount": self.amount,
            "lease_ends_ms": self.lease_ends_ms,
            "tag": self.tag,
            "metadata": self.metadata,
            "process": process,
        }


@dataclass(slots=True, frozen=True)
class Booking:
    """What to book for a hold; `amount` None: all of it. `columns`: what the bill knows of the entry."""

    amount: int | None
    columns: dict[str, Any]


LOST = Booking(
    None,
    {
        "model": "",
        "source": "estimate",
        "estimated": 1,
        "input_tokens": 0,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "output_tokens": 0,
        "reasoning_tokens": 0,
        "unit_prices": "{}",
        "price_version": "",
    },
)
"""The booking of a hold whose end never came."""


@dataclass(slots=True, kw_only=True)
class End(Act):
    """A hold's end: with a booking, or released. `uncount`: nobody got the hold, so its request is taken back too."""

    id: str
    booking: Booking | None = None
    uncount: bool = False


@dataclass(slots=True, kw_only=True)
class Count(Act):
    """So many requests more (or less) on that day."""

    count: int


@dataclass(slots=True)
class Totals:
    """One row of `koo_days`, in pico-dollars; `written` is what the row holds."""

    settled: int
    held: int
    requests: int
    written: tuple[int, int, int] = (0, 0, 0)

    def changes(self) -> dict[str, int] | None:
        settled, held, requests = self.written
        if (self.settled, self.held, self.requests) == self.written:
            return None
        # An integer that does not fit would fail the whole transaction, and with it everybody's.
        room = TOTAL_PICO_MAX - settled
        return {
            "settled": min(self.settled - settled, room),
            "held": self.held - held,
            "requests": max(0, self.requests) - requests,
        }


@dataclass(slots=True)
class Posting:
    """What a transaction came to: the days' totals, and the ends that were the first of their hold (its row by id)."""

    totals: dict[Key, Totals] = field(default_factory=dict)
    ended: dict[str, Row] = field(default_factory=dict)


def post(tx: Transaction, acts: Sequence[Act], process: str, now_ms: int, begun: set[Key]) -> Posting:
    """Do all of `acts` in this transaction. `begun`: days whose row was seen, which this adds to."""
    totals = lock(tx, {act.key for act in acts}, begun)
    posting = Posting(totals)
    puts = [act for act in acts if isinstance(act, Put)]
    ends = [act for act in acts if isinstance(act, End)]
    _put(tx, [put for put in puts if put.limit is None], totals, process)
    _end(tx, ends, posting, process, now_ms)
    for act in acts:
        if isinstance(act, Count) and not ((act.tried or tx.again) and act.count < 0):
            totals[act.key].requests += act.count
    _put(tx, [put for put in puts if put.limit is not None], totals, process)
    _write_days(tx, totals)
    return posting


def lock(tx: Transaction, keys: set[Key], begun: set[Key]) -> dict[Key, Totals]:
    """The totals of these days, which nobody else changes until this transaction ends."""
    _begin_days(tx, keys - begun)
    totals = _lock(tx, keys)
    if missing := keys - totals.keys():  # Somebody emptied the table.
        _begin_days(tx, missing)
        totals |= _lock(tx, missing)
    begun |= keys
    return totals


def _begin_days(tx: Transaction, keys: set[Key]) -> None:
    for service, day in sorted(keys):
        tx.run(BEGIN_DAY, {"service": service, "day": day})


def _lock(tx: Transaction, keys: set[Key]) -> dict[Key, Totals]:
    values: dict[str, Any] = {}
    terms = []
    for number, (service, day) in enumerate(sorted(keys)):
        terms.append(f"(service = :s{number} AND day = :d{number})")
        values |= {f"s{number}": service, f"d{number}": day}
    rows = tx.rows(LOCK.format(where=" OR ".join(terms)), values)
    return {
        (service, day): Totals(settled, held, requests, (settled, held, requests))
        for service, day, settled, held, requests in rows
    }


def _put(tx: Transaction, puts: list[Put], totals: dict[Key, Totals], process: str) -> None:
    tried = [put.id for put in puts if put.tried or tx.again]
    seen = {id_ for (id_,) in tx.rows(SEEN, {"ids": json.dumps(tried)})} if tried else set()
    new = []
    for put in puts:
        today = totals[put.key]
        put.admitted = put.id in seen
        if put.admitted:
            continue
        put.admitted = put.limit is None or today.settled + today.held + put.amount <= put.limit
        if put.admitted:
            today.held += put.amount
            today.requests += 1
            new.append(put.values(process))
    if new:
        tx.run(PUT, new)


def _end(tx: Transaction, ends: list[End], posting: Posting, process: str, now_ms: int) -> None:
    if not ends:
        return
    wanted = {"ids": json.dumps([end.id for end in ends])}
    # Only of the day that was locked: nobody else may be writing that row's totals.
    standing = {(row[0], row[1], row[2]): row for row in tx.rows(FIND, wanted)}
    entries = []
    for end in ends:
        row = standing.pop((end.id, *end.key), None)
        if row is None:
            continue
        posting.ended[end.id] = row
        today = posting.totals[end.key]
        today.held -= row[4]
        today.requests -= end.uncount
        if end.booking is not None:
            entry = _entry(row, end.booking, process, now_ms)
            today.settled += entry["amount"]
            entries.append(entry)
    if posting.ended:
        tx.run(DELETE, {"ids": json.dumps(list(posting.ended))})
    if entries:
        tx.run(BOOK, entries)


def _entry(row: Row, booking: Booking, process: str, now_ms: int) -> dict[str, Any]:
    id_, service, day, model, bound, tag, metadata, _ = row
    own = {
        "id": id_,
        "at_ms": now_ms,
        "service": service,
        "day": day,
        "amount": bound if booking.amount is None else booking.amount,
        "bound": bound,
        "tag": tag,
        "metadata": metadata,
        "process": process,
    }
    return {**booking.columns, "model": booking.columns["model"] or model, **own}


def _write_days(tx: Transaction, totals: dict[Key, Totals]) -> None:
    changed = [
        {"service": service, "day": day, **changes}
        for (service, day), row in totals.items()
        if (changes := row.changes())
    ]
    if changed:
        tx.run(WRITE_DAY, changed)


def sweep(tx: Transaction, process: str, now_ms: int, begun: set[Key]) -> Posting:
    """Book up to five hundred holds whose lease is over, at what they held."""
    expired = tx.rows(EXPIRED, {"now_ms": now_ms})
    if not expired:
        return Posting()
    ends = [End(service=service, day=day, id=id_, booking=LOST) for id_, service, day in expired]
    return post(tx, ends, process, now_ms, begun)


def read_days(tx: Transaction, day: int) -> dict[str, Totals]:
    """The totals of all services on `day`."""
    rows: Iterable[Row] = tx.rows(
        "SELECT service, settled, held, requests FROM koo_days WHERE day = :day", {"day": day}
    )
    return {service: Totals(settled, held, requests) for service, settled, held, requests in rows}
