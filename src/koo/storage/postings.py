"""A call's final cost, as the next beat carries it to the store."""

from __future__ import annotations

import itertools
import json
import os
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from koo.storage.base import UNTOLD, Bill, How
from koo.storage.transaction import Table, Transaction

TEXT_MAX = 256
INTEGER_MAX = 2**63 - 1

# The id is unique, and inserting an existing one does nothing. So an entry that is sent again, because the connection
# was lost during COMMIT and the first transaction may or may not have happened, is still booked exactly once.
ENTRIES = Table(
    "koo_entries",
    "id",
    ("id", "service", "model", "source", "unit_prices", "price_version", "tag", "process", "metadata",
     "outcome", "request"),
    (
        "at_ms", "day", "amount", "bound", "estimated", "input_tokens", "cache_read_tokens", "cache_write_tokens",
        "output_tokens", "reasoning_tokens", "took_ms", "attempt",
    ),
)  # fmt: skip


class Posting(NamedTuple):
    """One entry of the ledger. Amounts are in pico-dollars; `bound` is the amount last held for the call."""

    id: str
    at_ms: int
    service: str
    day: int
    amount: int
    bound: int
    bill: Bill
    how: How = UNTOLD


class Ids:
    """Ids for entries: unique across processes and machines, ascending within one process."""

    __slots__ = ("_next", "_pid", "_prefix")

    def __init__(self) -> None:
        self._pid = 0
        self._prefix = ""
        self._next = itertools.count(1)

    def new(self) -> str:
        """The next id."""
        # A forked child has a copy of this object and would draw the ids that its parent draws next. Both processes'
        # entries would then have the same id, and the second one would be dropped as already written.
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._prefix = secrets.token_hex(8)
        return f"{self._prefix}{next(self._next):012x}"


def book(tx: Transaction, postings: Sequence[Posting], process: str) -> None:
    """Write entries, in a transaction."""
    if not postings:
        return
    # All calls to one model share one mapping of prices. Serialising it once per call would take half of this
    # function's time. The objects are alive in `postings` for as long as their `id()` is used as a key.
    prices = {
        id(unit_prices): unit_prices for unit_prices in (posting.bill.unit_prices for posting in postings)
    }
    texts = {one: json.dumps(dict(unit_prices), default=str) for one, unit_prices in prices.items()}
    rows = [_columns(posting, process, texts[id(posting.bill.unit_prices)]) for posting in postings]
    tx.add(ENTRIES, rows)


def _columns(posting: Posting, process: str, unit_prices: str) -> Sequence[str | int | None]:
    """A row in the order of the columns of `ENTRIES`."""
    id_, at_ms, service, day, amount, bound, bill, how = posting
    return (
        id_,
        service,
        _cut(bill.model),
        _cut(bill.source),
        unit_prices,
        _cut(bill.price_version),
        None if bill.tag is None else _cut(bill.tag),
        process,
        json.dumps({word: str(said)[:TEXT_MAX] for word, said in bill.metadata.items()})
        if bill.metadata
        else "{}",
        how.outcome or None,
        _cut(how.request_id) or None,
        at_ms,
        day,
        amount,
        bound,
        int(bill.source == "estimate"),
        _fit(bill.input_tokens),
        _fit(bill.cache_read_tokens),
        _fit(bill.cache_write_tokens),
        _fit(bill.output_tokens),
        _fit(bill.reasoning_tokens),
        None if how.took_s is None else round(how.took_s * 1000),
        how.attempt or None,
    )


def _cut(said: str) -> str:
    """Make a text fit its column: PostgreSQL rejects NUL, and both databases reject a lone surrogate."""
    # A model name, tag or request id may come from a provider or a caller. One character that the database rejects
    # would cost the entry.
    if said.isascii() and len(said) <= TEXT_MAX and "\0" not in said:
        return said
    return said[:TEXT_MAX].replace("\0", "").encode(errors="replace").decode()


def _fit(tokens: int) -> int:
    # A provider may report any number, and one outside a 64-bit integer would make the database reject the entry.
    return tokens if 0 <= tokens <= INTEGER_MAX else max(0, min(int(tokens), INTEGER_MAX))
