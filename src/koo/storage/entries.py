"""The bookings, one entry per call that cost something: for reports, and to compare with a provider's invoice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import get_args

from koo.policies.money import from_pico
from koo.storage.base import Entry, Place, SpendGroup, Spent
from koo.storage.executor import Executor
from koo.storage.transaction import Row

AS_THEY_ARE = (
    "id", "service", "day", "model", "source", "input_tokens", "cache_read_tokens", "cache_write_tokens",
    "output_tokens", "reasoning_tokens", "price_version", "tag", "process",
)  # fmt: skip
COLUMNS = (
    "at_ms, amount, bound, estimated, unit_prices, metadata, took_ms, outcome, request, attempt, "
    + ", ".join(AS_THEY_ARE)
)
LATEST = f"""SELECT {COLUMNS} FROM koo_entries
    WHERE (at_ms < :at_ms OR (at_ms = :at_ms AND id < :id)) {{wanted}} ORDER BY at_ms DESC, id DESC LIMIT :limit"""
FILTERS = ("service", "model", "tag")
GROUPS: tuple[SpendGroup, ...] = get_args(SpendGroup)
# Amounts are added up in two parts, micro-dollars and the rest. A sum of pico-dollars would overflow a 64-bit integer
# above nine million dollars, and SQLite raises an error then. Tokens are added up as floats, because a provider may
# report any number.
SPENT = """SELECT {columns}, count(*), sum(estimated), sum(amount / 1000000), sum(amount - amount / 1000000 * 1000000),
      sum(CASE WHEN estimated = 1 THEN amount / 1000000 ELSE 0 END),
      sum(CASE WHEN estimated = 1 THEN amount - amount / 1000000 * 1000000 ELSE 0 END),
      sum(CAST(input_tokens AS DOUBLE PRECISION) + cache_read_tokens + cache_write_tokens),
      sum(CAST(output_tokens AS DOUBLE PRECISION))
    FROM koo_entries WHERE day >= :first AND day <= :last
    GROUP BY {columns} ORDER BY {order} LIMIT :limit"""


class Entries:
    """The bookings of all processes on one store."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def latest(self, before: Place, wanted: Mapping[str, str], *, limit: int) -> list[Entry]:
        """Entries before a position, newest first. `wanted` selects values for the columns in `FILTERS`.

        Raises `StoreUnavailable`.
        """
        conditions = "".join(f" AND {name} = :{name}" for name in FILTERS if name in wanted)
        sql = LATEST.replace("{wanted}", conditions)
        values = {**wanted, "at_ms": before.at_ms, "id": before.id, "limit": limit}
        rows = await self._executor.run(lambda tx: tx.rows(sql, values), exclusive=False)
        return [_entry(row) for row in rows]

    async def spent(
        self, first_day: int, last_day: int, by: Sequence[SpendGroup], *, limit: int = 10_000
    ) -> list[Spent]:
        """Totals from one UTC day to another, both included, grouped by at least one of `GROUPS`.

        Ordered by day, oldest first, then by cost, highest first. Raises `StoreUnavailable`.
        """
        columns = ", ".join(name for name in GROUPS if name in by)
        sql = SPENT.replace("{columns}", columns).replace(
            "{order}",
            f"day, sum(amount / 1000000) DESC, {columns}"
            if "day" in by
            else f"sum(amount / 1000000) DESC, {columns}",
        )
        values = {"first": first_day, "last": last_day, "limit": limit}
        rows = await self._executor.run(lambda tx: tx.rows(sql, values), exclusive=False)
        return [_spent(row, columns.count(",") + 1) for row in rows]


def _spent(row: Row, groups: int) -> Spent:
    calls, estimated, high, low, estimated_high, estimated_low, read, written = row[groups:]
    return Spent(
        group=row[:groups],
        calls=int(calls),
        estimated_calls=int(estimated),
        amount_usd=from_pico(int(high) * 1_000_000 + int(low)),
        estimated_usd=from_pico(int(estimated_high) * 1_000_000 + int(estimated_low)),
        input_tokens=int(read),
        output_tokens=int(written),
    )


def _entry(row: Row) -> Entry:
    at_ms, amount, bound, estimated, prices, metadata, took_ms, outcome, request, attempt, *rest = row
    return Entry(
        at=at_ms / 1000,
        amount_usd=from_pico(amount),
        held_usd=from_pico(bound),
        estimated=bool(estimated),
        unit_prices=json.loads(prices),
        metadata=json.loads(metadata) if metadata else {},
        took_s=None if took_ms is None else took_ms / 1000,
        outcome=outcome or "",
        request_id=request or "",
        attempt=attempt or 0,
        **dict(zip(AS_THEY_ARE, rest, strict=True)),
    )
