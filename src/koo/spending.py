"""Reports of spending by period and group, and an operator's write-offs.

The ledger's entries are the only source. This process first reports its own pending bookings; other processes report
theirs within a beat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from koo.clock import Clock, iso
from koo.errors import CallerMistake, InvalidRequest, Kind, ServiceRefused
from koo.monitoring.guards import money, now_iso
from koo.monitoring.shapes import Budget
from koo.monitoring.spend_shapes import (
    PeriodAmount,
    Spend,
    SpendRow,
    UnsettledProcess,
    WriteOffs,
    WrittenOff,
)
from koo.options import DAY_S, LEDGER_DAYS_MAX
from koo.policies.money import from_pico
from koo.policies.treasury import Key, period_at
from koo.storage.base import SpendGroup, Spent, Store, StoreUnavailable, Unsettled, WriteOff

log = logging.getLogger("koo")

GROUPS: tuple[SpendGroup, ...] = ("day", "service", "model", "tag")
ROWS_MAX = 10_000
AWAY_RETRY_S = 5.0
EPOCH = date(1970, 1, 1)


class SpendReports:
    """Reports and write-offs through one process. `budgets` returns the state of the budgets that an operator set."""

    def __init__(self, store: Store, clock: Clock, budgets: Callable[[], list[Budget]]) -> None:
        self._store = store
        self._clock = clock
        self._budgets = budgets

    async def report(
        self,
        days: int | None,
        first: date | None,
        last: date | None,
        month: str | None,
        by: Sequence[str],
    ) -> Spend:
        """The spending of a period; see `Platform.spend`."""
        today = datetime.fromtimestamp(self._clock.wall(), UTC).date()
        first, last = period_of(today, days, first, last, month)
        groups = groups_of(by)
        first_day, last_day = (first - EPOCH).days, (last - EPOCH).days
        try:
            await self._store.ledger.refresh()
            spent = await self._store.entries.spent(first_day, last_day, groups, limit=ROWS_MAX + 1)
            unsettled = await self._store.unsettled.find()
            written_off = await self._store.unsettled.written_off(first_day * DAY_S, (last_day + 1) * DAY_S)
        except StoreUnavailable as error:
            raise _away(error) from error
        if len(spent) > ROWS_MAX:
            raise _mistake(f"more than {ROWS_MAX:,} rows; ask for fewer days or fewer groups")
        return {
            "first_day": first.isoformat(),
            "last_day": last.isoformat(),
            "by": list(groups),
            "rows": [_row(groups, one) for one in spent],
            "calls": sum(one.calls for one in spent),
            "amount": money(sum((one.amount_usd for one in spent), Decimal(0))),
            "estimated": money(sum((one.estimated_usd for one in spent), Decimal(0))),
            "currency": "USD",
            "budgets": self._budgets(),
            "unsettled": [_unsettled(one, self._clock.wall()) for one in unsettled],
            "written_off": [_written_off(one) for one in written_off],
            "timestamp": now_iso(self._clock),
        }

    async def write_off(self, process: str | None, by: str, reason: str) -> WriteOffs:
        """Free the money that a process still holds; see `Platform.write_off`."""
        try:
            done = await self._store.unsettled.write_off(process, by, reason)
            if done:
                await self._store.ledger.refresh()
        except StoreUnavailable as error:
            raise _away(error) from error
        if not done and process is not None:
            why = "no process of that name holds money of a current budget, or it still reports"
            raise CallerMistake("write-off", why, kind=Kind.NOT_FOUND)
        views = [_written_off(one) for one in done]
        for one in views:
            log.warning(
                "%s wrote off what process %s held (%s); the bill may exceed the budgets by that amount; reason: %s",
                by,
                one["process"],
                _in_words(one["amounts"]),
                reason or "none given",
            )
        return {"message": _message(views), "written_off": views, "timestamp": now_iso(self._clock)}


# ── checking arguments ────────────────────────────────────────────────────────────────────────────────────────────


def period_of(
    today: date, days: int | None, first: date | None, last: date | None, month: str | None
) -> tuple[date, date]:
    """The first and the last day, inclusive. Raises `InvalidRequest`."""
    if sum((days is not None, first is not None or last is not None, month is not None)) > 1:
        raise _mistake("choose one of `days`, `from` and `to`, or `month`")
    if days is not None:
        if not 1 <= days <= LEDGER_DAYS_MAX:
            raise _mistake(f"days must be a whole number, 1 to {LEDGER_DAYS_MAX}")
        return today - timedelta(days=days - 1), today
    if first is not None or last is not None:
        end = last or today
        begin = first or end.replace(day=1)
        if not EPOCH <= begin <= end:
            raise _mistake("`from` must not be after `to`, nor before 1970")
        return begin, end
    return _month(month, today)


def _month(month: str | None, today: date) -> tuple[date, date]:
    try:
        begin = today.replace(day=1) if month is None else datetime.strptime(month, "%Y-%m").date()  # noqa: DTZ007
    except ValueError:
        raise _mistake("month must be written as 2026-11") from None
    if begin < EPOCH or begin.year > 9998:
        raise _mistake("month must be 1970-01 or later")
    return begin, (begin + timedelta(days=31)).replace(day=1) - timedelta(days=1)


def groups_of(by: Sequence[str]) -> list[SpendGroup]:
    """The groups, in the order of the columns. Raises `InvalidRequest`."""
    wanted = {word.strip() for one in by for word in one.split(",") if word.strip()}
    if not wanted or not wanted <= set(GROUPS):
        raise _mistake(f"by must be one or more of {', '.join(GROUPS)}")
    return [group for group in GROUPS if group in wanted]


def _mistake(reason: str) -> InvalidRequest:
    return InvalidRequest("spend", reason, kind=Kind.INVALID_REQUEST)


def _away(error: StoreUnavailable) -> ServiceRefused:
    return ServiceRefused("state store", str(error), AWAY_RETRY_S, kind=Kind.CONNECTION)


# ── views ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _row(groups: Sequence[SpendGroup], spent: Spent) -> SpendRow:
    row: SpendRow = {
        "calls": spent.calls,
        "amount": money(spent.amount_usd),
        "estimated": money(spent.estimated_usd),
        "estimated_calls": spent.estimated_calls,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
    }
    values = dict(zip(groups, spent.group, strict=True))
    if "day" in values:
        row["day"] = (EPOCH + timedelta(days=int(values["day"] or 0))).isoformat()
    if "service" in values:
        row["service"] = str(values["service"])
    if "model" in values:
        row["model"] = str(values["model"])
    if "tag" in values:
        row["tag"] = None if values["tag"] is None else str(values["tag"])
    return row


def _unsettled(one: Unsettled, wall_s: float) -> UnsettledProcess:
    seen = iso(one.seen_at) if one.seen_at else None
    return {"process": one.process, "last_seen": seen, "amounts": _amounts(one.amounts, wall_s)}


def _written_off(one: WriteOff) -> WrittenOff:
    return {
        "process": one.process,
        "at": iso(one.at),
        "by": one.by,
        "reason": one.reason,
        "amounts": _amounts(one.amounts, one.at),
    }


def _amounts(amounts: Mapping[Key, int], wall_s: float) -> list[PeriodAmount]:
    """`wall_s`: a time within the periods, which distinguishes a month's number from a day's."""
    month = period_at("month", int(wall_s * 1000))
    found: list[PeriodAmount] = []
    for key, amount in sorted(amounts.items()):
        kind, _, name = key.budget.partition("/")
        is_month = key.period == month
        period = (
            f"{month // 12}-{month % 12 + 1:02}"
            if is_month
            else (EPOCH + timedelta(days=key.period)).isoformat()
        )
        budget = f"ai:{name}" if kind == "service" else f"budget:{name}"
        found.append({"budget": budget, "period": period, "amount": money(from_pico(amount))})
    return found


def _in_words(amounts: Sequence[PeriodAmount]) -> str:
    return ", ".join(f"{one['amount']} USD of {one['budget']} in {one['period']}" for one in amounts)


def _message(views: Sequence[WrittenOff]) -> str:
    if not views:
        return "nothing to write off: every process that holds money still reports, or the budget's period is over"
    words = "; ".join(f"{one['process']}: {_in_words(one['amounts'])}" for one in views)
    return f"written off, so each budget may be overspent by its amount: {words}"
