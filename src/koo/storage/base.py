"""Protocols for everything that must outlive the process or be shared: money, operators' acts, alert episodes.

Money is held in memory against amounts that the store has granted in advance (`policies/purses.py`). So at every moment
settled + held ≤ limit, whatever happens to this process or the store. Everything else may be written a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from koo.budget_options import BudgetOptions
from koo.episodes import Episodes, Silences
from koo.notices import Notices
from koo.policies.fleet import Heard, Roll, Told
from koo.policies.forecast import RunOut
from koo.policies.limiter import Limits
from koo.policies.purse import Budget, Hold, Refusal
from koo.policies.token_limit import TokenLimit
from koo.policies.treasury import Key, PeriodKind, Reply, Standing
from koo.spans import PastIncidents, PastSpans


@dataclass(frozen=True, slots=True)
class Allowance:
    """A service's daily budget: `limit_usd` per UTC day, or None for no limit. `explicit` is False for a default."""

    limit_usd: Decimal | None
    explicit: bool = False


NO_WORDS: Mapping[str, str] = MappingProxyType({})


class Bill(NamedTuple):
    """The final cost of an attempt.

    `source`: "reported" by the provider, from the price "table", from a "configured" price, or an "estimate". Unit
    prices are in USD per million tokens, by class, as JSON-ready strings; `price_version` names the table.
    """

    amount_usd: Decimal
    source: str
    model: str
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    unit_prices: Mapping[str, str] = NO_WORDS
    price_version: str = ""
    tag: str | None = None
    metadata: Mapping[str, str] = NO_WORDS


class How(NamedTuple):
    """The course of a booked attempt.

    `took_s` is the time from its hold to its end. `outcome` is "answered" or "unfinished". `request_id` is the id of
    the request in which it was made, if any. `attempt` is its number within its call; 0 if unknown.
    """

    took_s: float | None = None
    outcome: str = ""
    request_id: str = ""
    attempt: int = 0


UNTOLD = How()


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """A call was recently refused for lack of money, and the budget's `left_usd` would not cover the same call now.

    `budget` is the name of a budget that an operator set, with its tag (NAME/TAG). It is empty for the service's own
    daily budget. `title` names it in messages. `resets_at` is in wall seconds.
    """

    budget: str
    title: str
    needed_usd: Decimal
    left_usd: Decimal
    resets_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """One budget in its current period, as last known, in USD. Times are wall seconds.

    `held_usd` is held by running calls. `idle_usd` lies unused in the purses of processes and can be recalled.
    `unsettled_usd` was granted to processes that no longer report. `scope` is "shared", or "this process" while the
    store is unreachable. `above_hold_usd` is how much this process's bills exceeded the amounts held for them.
    `runs_out` is when the budget is used up at the current pace. `shortage` is why the last call on this budget was
    refused, for as long as the same call would be refused again. `short` has the numbers of that refusal, and stays for
    some minutes longer.
    """

    limit_usd: Decimal | None
    spent_usd: Decimal
    held_usd: Decimal
    idle_usd: Decimal
    unsettled_usd: Decimal
    resets_at: float
    as_of: float | None
    scope: str = "shared"
    above_hold_usd: Decimal = Decimal(0)
    runs_out: RunOut | None = None
    shortage: str = ""
    short: Short | None = None


@dataclass(frozen=True, slots=True)
class OwnBudgetView:
    """A budget that an operator set. `tag` is set if the budget applies to each tag separately."""

    options: BudgetOptions
    tag: str | None
    view: BudgetView


SpendGroup = Literal["day", "service", "model", "tag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The bookings of one group. The group's values are in the order of `SpendGroup`; a day is a UTC day.

    `estimated_usd` is the part for which the provider reported no usage. `input_tokens` includes cached tokens.
    """

    group: tuple[str | int | None, ...]
    calls: int
    estimated_calls: int
    amount_usd: Decimal
    estimated_usd: Decimal
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One booking. `at` is in wall seconds, `day` is the UTC day whose budget paid, `held_usd` was the worst case.

    `estimated` means that the provider reported no usage. `unit_prices` are in USD per million tokens, by class, as
    texts. `tag` and `metadata` are the caller's. `process` is the process that booked it. `took_s`, `outcome`,
    `request_id` and `attempt` are as in `How`.
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
    took_s: float | None = None
    outcome: str = ""
    request_id: str = ""
    attempt: int = 0


class Place(NamedTuple):
    """The end of a page of bookings."""

    at_ms: int
    id: str


class Spending(Protocol):
    """The bookings of all processes on one store. Each method raises `StoreUnavailable`."""

    async def latest(self, before: Place, wanted: Mapping[str, str], *, limit: int) -> list[Entry]:
        """Bookings before a position, newest first. `wanted` selects a service, a model or a tag."""
        ...

    async def spent(
        self, first_day: int, last_day: int, by: Sequence[SpendGroup], *, limit: int = 10_000
    ) -> list[Spent]:
        """Totals from one UTC day to another, both included. Raises `StoreUnavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class Unsettled:
    """Money that a process was granted and has not reported as spent; it no longer reports. In pico-dollars."""

    process: str
    seen_at: float
    amounts: Mapping[Key, int]


@dataclass(frozen=True, slots=True)
class WriteOff:
    """An operator freed a process's unsettled money at wall time `at`. `by` and `reason` are the operator's text."""

    process: str
    at: float
    by: str
    reason: str
    amounts: Mapping[Key, int]


class UnsettledMoney(Protocol):
    """Money that dead processes left in all budgets of one store. Each method raises `StoreUnavailable`."""

    async def find(self) -> list[Unsettled]:
        """The unsettled money of the current day and month, by process."""
        ...

    async def write_off(self, process: str | None, by: str, reason: str) -> list[WriteOff]:
        """Free the money of one process, or of all (None); returns what was freed. A live process is left alone."""
        ...

    async def written_off(self, since: float, until: float) -> list[WriteOff]:
        """Write-offs between two wall times, oldest first."""
        ...


class Upkeep(Protocol):
    """Deletes the store's old rows. Any process may do it at any time."""

    async def prune(self, before_day: int) -> bool:
        """Delete one batch of what ended before that UTC day; returns True if there may be more.

        Raises `StoreUnavailable`.
        """
        ...


class Ledger(Protocol):
    """Money, held before a call and settled after it. Amounts are whole pico-dollars (`policies/money.py`)."""

    @property
    def trouble(self) -> str | None:
        """Why the store is unreachable, as a sentence; None if no trouble is known."""
        ...

    def budget(
        self, name: str, limit: int | None, kind: PeriodKind = "day", *, is_default: bool = False
    ) -> Budget:
        """Register a budget; a limit of None only counts."""
        ...

    def forget(self, name: str) -> bool:
        """Forget a budget that was not used in this period; returns whether it did."""
        ...

    def hold(self, budgets: tuple[Budget, ...], amount: int) -> Hold | None:
        """Hold a call's worst case in all its budgets, in memory; returns None if the call has to wait."""
        ...

    async def wait(
        self, budgets: tuple[Budget, ...], amount: int, deadline: float, *, is_patient: bool
    ) -> Hold | tuple[Refusal, Key | None]:
        """Wait for the store's reply, and if `is_patient` also for held or recalled money. Raises TimeoutError."""
        ...

    def shrink(self, hold: Hold, amount: int) -> None:
        """Lower a hold when the call's worst case turns out smaller."""
        ...

    def settle(self, hold: Hold, service: str, bill: Bill, how: How = UNTOLD) -> int:
        """Book what a call cost, once; returns the amount. Never waits and never raises."""
        ...

    def release(self, hold: Hold) -> None:
        """End a hold for which nothing was billed. Never waits and never raises."""
        ...

    def count(self, budget: Budget, day: int, amount: int) -> None:
        """Count requests of a UTC day; a negative amount takes them back."""
        ...

    def counted_elsewhere(self, budget: Budget, day: int) -> int:
        """How many requests other and earlier processes counted on that day, as last known."""
        ...

    def standing(self, name: str) -> Standing:
        """A budget's standing, without I/O."""
        ...

    def knows(self, name: str) -> bool:
        """Whether the store has reported this budget's standing in this period."""
        ...

    def view(self, name: str) -> BudgetView:
        """A budget's standing for display, without I/O."""
        ...


class LedgerKeeper(Ledger, Protocol):
    """The ledger, with the methods that its owner needs. `heard` is called with a reply that forces this process to
    take another name, or that reports data loss in the store."""

    heard: Callable[[Reply], None]

    @property
    def process(self) -> str:
        """This process's name in the store."""
        ...

    async def run(self) -> None:
        """Keep the store up to date, until cancelled."""
        ...

    async def refresh(self) -> None:
        """Report what is new and read the standings of all budgets. Raises `StoreUnavailable`."""
        ...

    async def finish(self) -> None:
        """Report everything and return what no call holds, because this process ends. Raises `StoreUnavailable`."""
        ...


class LimitKeeper(Protocol):
    """Limits shared by all processes on one store."""

    def share(
        self, limits: Limits, name: str, requests: Budget | None = None, tokens: TokenLimit | None = None
    ) -> None:
        """Make a service's limits fleet-wide. `requests` is the ledger's budget of its requests per day."""
        ...

    def know_processes(self, processes: int) -> None:
        """Set the number of processes on the store."""
        ...

    async def begin(self) -> None:
        """Read the state of the limits before the first call. Raises `StoreUnavailable`."""
        ...

    async def run(self) -> None:
        """Report use and request units, until cancelled."""
        ...


SignalKind = Literal["reset", "limits", "override", "cooldown", "latch", "write_off"]
"""The words that are stored: other versions of koo on the same store read them too. A "latch" is a blocked key."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One act: its `kind`, its `target`, the `process` it came from, and when: `at`, on this machine's clock.

    `id` ascends. `payload` contains the details, which depend on the kind.
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
        """Publish to all other processes; returns the signal's number. Raises `StoreUnavailable`."""
        ...

    async def latest(self) -> list[Signal]:
        """The last act of each kind on each target, oldest first. Raises `StoreUnavailable`."""
        ...


class RollCall(Protocol):
    """The processes on the store, and which one leads. Each method raises `StoreUnavailable`."""

    async def beat(self, told: Told, cursor: int | None = None) -> tuple[Heard, list[Signal]]:
        """Report this process's state; returns the other processes' state and the signals after number `cursor`."""
        ...

    async def leave(self) -> None:
        """Remove this process from the roll, because it ends."""
        ...

    async def read(self) -> Roll:
        """Read the whole roll, for display."""
        ...

    async def forget_old(self) -> None:
        """Delete processes that have been silent for a day."""
        ...


class LeadersStore(Protocol):
    """The store as the fleet's leader uses it. Each act raises `NotLeading` if another process leads by now."""

    @property
    def past(self) -> Upkeep: ...

    @property
    def history(self) -> PastSpans: ...

    @property
    def incidents(self) -> PastIncidents: ...

    @property
    def episodes(self) -> Episodes: ...

    @property
    def silences(self) -> Silences: ...

    @property
    def notices(self) -> Notices: ...

    @property
    def roll_call(self) -> RollCall: ...


class Store(Protocol):
    """One process's access to the shared state. It belongs to one event loop at a time."""

    @property
    def process(self) -> str:
        """This process's name in the store; a new one each time the store is opened."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the store is unreachable, as a sentence; None if no trouble is known."""
        ...

    @property
    def ledger(self) -> LedgerKeeper: ...

    @property
    def leasing(self) -> LimitKeeper: ...

    @property
    def entries(self) -> Spending: ...

    @property
    def unsettled(self) -> UnsettledMoney: ...

    @property
    def past(self) -> Upkeep: ...

    @property
    def history(self) -> PastSpans: ...

    @property
    def incidents(self) -> PastIncidents: ...

    @property
    def signals(self) -> Signals: ...

    @property
    def episodes(self) -> Episodes: ...

    @property
    def silences(self) -> Silences: ...

    @property
    def notices(self) -> Notices: ...

    @property
    def roll_call(self) -> RollCall: ...

    def as_leader(self, epoch: int) -> LeadersStore:
        """The store with the leader's rights, for the epoch in which this process leads."""
        ...

    def watch(self, changed: Callable[[str | None], None]) -> None:
        """Call `changed` on the loop when the store becomes unreachable (with the reason) or is back (with None)."""
        ...

    async def open(self) -> None:
        """Connect and read today's numbers. Raises `StoreUnavailable`, and keeps trying."""
        ...

    async def close(self) -> None:
        """Write what is pending, as far as the store allows. It may be opened again."""
        ...


class StoreUnavailable(Exception):
    """The state store cannot be read or written now. The message says why, without a DSN."""


class NotLeading(Exception):
    """The act belongs to the leader, and another process leads by now."""
