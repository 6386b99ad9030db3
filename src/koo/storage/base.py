"""What must outlive the process or be shared, as protocols: money, day counts, operators' acts, alert episodes.

Two rules for every store. A hold is durable before `hold` returns, and `settled + held <= limit` at every instant,
whichever processes write. Everything else may be written a moment later, and losing it errs on the safe side: a hold
whose settlement was lost is booked at its bound by the sweeper.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol

from koo.events import Severity


@dataclass(frozen=True, slots=True)
class Allowance:
    """A service's daily budget: `limit_usd` a UTC day; None is no limit. `explicit`: an operator set it."""

    limit_usd: Decimal | None
    explicit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRequest:
    """The worst case of one attempt. The hold ends by itself `lease_s` seconds later: then it is booked whole.

    `tag` and `metadata` are the caller's own words for the entry; texts are cut at 256 characters.
    """

    service: str
    model: str
    amount_usd: Decimal
    allowance: Allowance
    lease_s: float
    tag: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


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
    """The last known numbers of one service and day; `as_of` is wall seconds, `scope` "shared" or "this process".

    `above_hold_usd` is by how much this process's bills of the day were above what was held for them.
    """

    day: int
    spent_usd: Decimal
    held_usd: Decimal
    as_of: float
    scope: str = "shared"
    above_hold_usd: Decimal = Decimal(0)


class Ledger(Protocol):
    """Money, held before the call and settled after it."""

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


class SharedLedger(Ledger, Protocol):
    """A ledger in a store that can be away."""

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used now, as a sentence without a DSN; None: nothing is known against it."""
        ...

    def adopt(self, hold: Hold, request: HoldRequest) -> None:
        """Take a hold that was given elsewhere, without asking whether it fits. Never waits and never raises."""
        ...

    async def refresh(self) -> None:
        """Read today's numbers anew. Raises `StoreUnavailable`."""
        ...


class Quotas(Protocol):
    """How many requests a service had today, so that a day's limit survives a restart."""

    async def used_today(self, service: str) -> int:
        """Requests of all processes on this UTC day. Raises `StoreUnavailable`."""
        ...

    def add(self, service: str, day: int, count: int) -> None:
        """`count` may be negative (a refund). Written a moment later."""
        ...


SignalKind = Literal["reset", "limits", "override", "cooldown", "latch"]
"""As stored, so that processes of other versions on the same store understand: a blocked key is a "latch"."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One act: what was done (`kind`) to what (`target`), by which `process`, when (`at` in wall seconds).

    `id` grows; `payload` is what the kind needs to know, as it was given.
    """

    id: int
    at: float
    process: str
    kind: str
    target: str
    payload: dict[str, Any]


class Signals(Protocol):
    """The acts of all processes on one store."""

    async def publish(self, kind: SignalKind, target: str, payload: dict[str, Any] | None = None) -> int:
        """Tell all other processes; returns the signal's number. Raises `StoreUnavailable`."""
        ...

    async def latest(self) -> list[Signal]:
        """The last act of each kind on each target, oldest first. Raises `StoreUnavailable`."""
        ...

    def follow(self, cursor: int | None = None) -> AsyncGenerator[Signal, None]:
        """Acts of other processes after number `cursor` (None: from now on), as they come, without end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One alert from its beginning to its end. `type` is its severity; times are wall seconds, None: it lasts.

    `fingerprint` is its kind and its component: two alerts with the same one are the same alert.
    """

    fingerprint: str
    type: Severity
    component: str
    message: str
    started_at: float
    ended_at: float | None = None
    data: Mapping[str, object] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The rule that found it."""
        return self.fingerprint.partition(":")[0]


@dataclass(frozen=True, slots=True)
class OrphanedEpisode:
    """An episode that lasts and whose `owner` has not renewed its lease: that process closed or died."""

    episode: Episode
    owner: str


class Episodes(Protocol):
    """The episodes of all processes on one store. Each method raises `StoreUnavailable`."""

    async def save(self, *episodes: Episode) -> None:
        """Write them as this process's own, under a new lease; one with the same beginning is replaced."""
        ...

    async def load_recent(self, since: float) -> list[Episode]:
        """Those of all processes that last, or ended at or after wall time `since`, oldest first."""
        ...

    async def load_orphaned(self) -> list[OrphanedEpisode]:
        """Those that last and that no living process renews, oldest first."""
        ...

    async def take(self, orphaned: list[OrphanedEpisode]) -> list[Episode]:
        """Make them this process's own; returns those that no other process took first."""
        ...

    async def release(self) -> None:
        """Let other processes take over this one's episodes at once."""
        ...

    async def expire(self, before: float) -> None:
        """End those whose lease ended before wall time `before`."""
        ...

    async def prune(self, before: float) -> None:
        """Forget those that ended before wall time `before`."""
        ...


class Store(Protocol):
    """One process's door to what it shares. It belongs to one event loop at a time."""

    @property
    def process(self) -> str:
        """The name of this process among those on the store; a new one each time it is opened."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used now, as a sentence; None: nothing is known against it."""
        ...

    @property
    def ledger(self) -> SharedLedger: ...

    @property
    def quotas(self) -> Quotas: ...

    @property
    def signals(self) -> Signals: ...

    @property
    def episodes(self) -> Episodes: ...

    def watch(self, changed: Callable[[str | None], None]) -> None:
        """Call `changed` on the loop when the store is lost (with the reason) and when it is back (with None)."""
        ...

    async def open(self) -> None:
        """Connect and read today's numbers. Raises `StoreUnavailable`, and goes on trying."""
        ...

    async def close(self) -> None:
        """Write what waits, as far as the store lets us. It may be opened again."""
        ...


class StoreUnavailable(Exception):
    """The state store cannot be read or written now; says why, without a DSN."""
