"""What was booked, one entry for each call that cost something: for reports, and to check a provider's bill against."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from koo.policies.money import from_pico
from koo.storage.executor import Executor
from koo.storage.transaction import Row, Transaction

AS_THEY_ARE = (
    "id", "service", "day", "model", "source", "input_tokens", "cache_read_tokens", "cache_write_tokens",
    "output_tokens", "reasoning_tokens", "price_version", "tag", "process",
)  # fmt: skip
COLUMNS = "at_ms, amount, bound, estimated, unit_prices, metadata, " + ", ".join(AS_THEY_ARE)
OF_DAY = f"SELECT {COLUMNS} FROM koo_entries WHERE day = :day ORDER BY at_ms, id LIMIT :limit OFFSET :offset"
PRUNE = """DELETE FROM koo_entries
    WHERE id IN (SELECT id FROM koo_entries WHERE day < :before ORDER BY day LIMIT 1000)"""
PRUNE_DAYS = """DELETE FROM koo_days WHERE day < :before AND held = 0
    AND NOT EXISTS (SELECT 1 FROM koo_entries WHERE koo_entries.day < :before)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One booking. `at` is wall seconds, `day` the UTC day whose budget paid; `held_usd` was the worst case.

    `estimated`: the provider sent no usage. `unit_prices` are USD per million tokens, by class, as texts. `tag`
    and `metadata` are the caller's own words. `process` is the one that booked it.
    """

    id: str
    at: float
    service: str
    day: int
    model: str
    amount_usd: Decimal
    held_usd: Decimal
    source: str
    estimated: bool
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    unit_prices: dict[str, str]
    price_version: str
    tag: str | None
    metadata: dict[str, str]
    process: str


class Entries:
    """The bookings of all processes on one store."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def of_day(self, day: int, *, limit: int = 1000, offset: int = 0) -> list[Entry]:
        """Those that a UTC day's budget paid, oldest first. Raises `StoreUnavailable`."""
        values = {"day": day, "limit": limit, "offset": offset}
        rows = await self._executor.run(lambda tx: tx.rows(OF_DAY, values), exclusive=False)
        return [_entry(row) for row in rows]

    async def prune(self, before_day: int) -> None:
        """Forget a thousand of the oldest before that day, and days of which nothing is left.

        Little at a time, because no call can hold money meanwhile. Raises `StoreUnavailable`.
        """
        values: dict[str, Any] = {"before": before_day}

        def write(tx: Transaction) -> None:
            tx.run(PRUNE, values)
            tx.run(PRUNE_DAYS, values)

        await self._executor.run(write)


def _entry(row: Row) -> Entry:
    at_ms, amount, bound, estimated, prices, metadata, *rest = row
    return Entry(
        at=at_ms / 1000,
        amount_usd=from_pico(amount),
        held_usd=from_pico(bound),
        estimated=bool(estimated),
        unit_prices=json.loads(prices),
        metadata=json.loads(metadata) if metadata else {},
        **dict(zip(AS_THEY_ARE, rest, strict=True)),
    )
