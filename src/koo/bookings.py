"""The last calls with a cost, one by one: model, tokens, cost, tag.

They are the ledger's entries of all processes, so their sum is what `spending` reports. They contain no prompt and no
answer, because the ledger never receives one.
"""

from __future__ import annotations

from decimal import Decimal

from koo.clock import Clock, iso
from koo.errors import InvalidRequest, Kind, ServiceRefused
from koo.monitoring.guards import money, now_iso
from koo.monitoring.spend_shapes import BookedCall, BookedCalls
from koo.storage.base import Entry, Place, Store, StoreUnavailable

PAGE_MAX = 500
AWAY_RETRY_S = 5.0
NEWEST = Place(2**62, "")


async def page_of(
    store: Store,
    clock: Clock,
    *,
    service: str | None,
    model: str | None,
    tag: str | None,
    limit: int,
    cursor: str | None,
    is_booked: bool = False,
) -> BookedCalls:
    """A page, newest first; see `HistoryReports.requests`. `is_booked`: only what is already in the store."""
    if not 1 <= limit <= PAGE_MAX:
        raise _mistake(f"limit must be 1 to {PAGE_MAX}")
    before = NEWEST if cursor is None else _place(cursor)
    asked = {"service": service, "model": model, "tag": tag}
    wanted = {name: value for name, value in asked.items() if value is not None}
    try:
        if not is_booked:
            await store.ledger.refresh()
        found = await store.entries.latest(before, wanted, limit=limit + 1)
    except StoreUnavailable as error:
        raise ServiceRefused(
            "spend", str(error), kind=Kind.STORE_UNAVAILABLE, retry_after_s=AWAY_RETRY_S
        ) from error
    page = found[:limit]
    return {
        "requests": [call_view(entry) for entry in page],
        "amount": money(sum((entry.amount_usd for entry in page), Decimal(0))),
        "next_cursor": f"{_ms(page[-1])}-{page[-1].id}" if len(found) > limit else None,
        "timestamp": now_iso(clock),
    }


def call_view(entry: Entry) -> BookedCall:
    """One entry of the ledger, in its public shape."""
    return {
        "id": entry.id,
        "at": iso(entry.at),
        "outcome": entry.outcome,
        "attempt": entry.attempt or None,
        "latency": entry.took_s,
        "request_id": entry.request_id,
        "service": entry.service,
        "model": entry.model,
        "tag": entry.tag,
        "cost": money(entry.amount_usd),
        "cost_source": entry.source,
        "estimated": entry.estimated,
        "held": money(entry.held_usd),
        "input_tokens": entry.input_tokens,
        "cache_read_tokens": entry.cache_read_tokens,
        "cache_write_tokens": entry.cache_write_tokens,
        "output_tokens": entry.output_tokens,
        "reasoning_tokens": entry.reasoning_tokens,
        "metadata": entry.metadata,
        "process": entry.process,
    }


def _ms(entry: Entry) -> int:
    return round(entry.at * 1000)


def _place(cursor: str) -> Place:
    at_ms, _, entry_id = cursor.partition("-")
    if not (at_ms.isascii() and at_ms.isdecimal() and entry_id and len(at_ms) < 19):
        raise _mistake("cursor must be the next_cursor of the previous page")
    return Place(int(at_ms), entry_id)


def _mistake(sentence: str) -> InvalidRequest:
    return InvalidRequest("spend", sentence, kind=Kind.INVALID_REQUEST)
