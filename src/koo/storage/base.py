"""What must outlive the process or be shared, as protocols: money, day counts, what operators did, what happened.

Two rules for every store. A hold is durable before `hold` returns, and `settled + held <= limit` at every instant,
whoever else writes. Everything else may be written a moment later, and losing it errs on the safe side: a hold whose
settlement was lost is booked at its bound by the sweeper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Allowance:
    """A service's daily budget: `limit_usd` a UTC day; None is no limit. `explicit`: somebody set it."""

    limit_usd: Decimal | None
    explicit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRequest:
    """The worst case of one attempt. The hold ends by itself `lease_s` seconds later: then it is booked whole."""

    service: str
    model: str
    amount_usd: Decimal
    allowance: Allowance
    lease_s: float
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Money put aside. It belongs to its UTC `day` (days since 1970), also when it is settled after midnight."""

    id: str
    service: str
    day: int
    amount_usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What an attempt cost in the end.

    `source`: "reported" by the provider, price "table", "configured" price, or "estimate". Unit prices are USD per
    million tokens, by class, as JSON-ready strings; `price_version` names the table.
    """

    amount_usd: Decimal
    source: str
    model: str
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    unit_prices: dict[str, str] = field(default_factory=dict)
    price_version: str = ""


@dataclass(frozen=True, slots=True)
class BudgetView:
    """The last known numbers of one service and day; `as_of` is wall seconds, `scope` "shared" or "this process"."""

    day: int
    spent_usd: Decimal
    held_usd: Decimal
    as_of: float
    scope: str = "shared"


class Ledger(Protocol):
    """Money, held before the call and settled after it. `durable`: `hold` waits for a write."""

    durable: bool

    async def hold(self, request: HoldRequest) -> Hold:
        """Put the worst case aside, durably. Raises `BudgetExceeded` (until the next day) or `StoreUnavailable`."""
        ...

    def settle(self, hold: Hold, bill: Bill) -> None:
        """Book what it cost. Never waits and never raises; written a moment later. A second end of a hold is ignored.

        A bill above its hold is booked whole: the day is then overspent and refuses further holds.
        """
        ...

    def release(self, hold: Hold) -> None:
        """Nothing was billed. Never waits and never raises."""
        ...

    def view(self, service: str) -> BudgetView:
        """The last view of today's numbers, without I/O."""
        ...

    async def sweep(self) -> list[Hold]:
        """Book what dead processes left, at its bound; gives the holds that were booked."""
        ...

    async def flush(self) -> None:
        """Wait until everything said so far is written."""
        ...


class Quotas(Protocol):
    """How many requests a service had today, so that a day's limit survives a restart."""

    async def used_today(self, service: str) -> int: ...

    def add(self, service: str, day: int, count: int) -> None:
        """`count` may be negative (a refund). Written a moment later."""
        ...


class StoreUnavailable(Exception):
    """The state store cannot be read or written now; says why, without a DSN."""
