"""What must outlive the process or be shared, as protocols: money, operators' acts, alert episodes.

Money is held in memory against what the store has granted in advance (`policies/purses.py`), so at every instant
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
    """A service's daily budget: `limit_usd` a UTC day; None is no limit. `explicit`: it was set, not a default."""

    limit_usd: Decimal | None
    explicit: bool = False


NO_WORDS: Mapping[str, str] = MappingProxyType({})


class Bill(NamedTuple):
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
    unit_prices: Mapping[str, str] = NO_WORDS
    price_version: str = ""
    tag: str | None = None
    metadata: Mapping[str, str] = NO_WORDS


class How(NamedTuple):
    """How a call that is booked went: seconds from its hold to its end, whether it was "answered" or is "unfinished",
    the id of the request in which it was made, or empty, and which attempt of its call it was; 0: not known.
    """

    took_s: float | None = None
    outcome: str = ""
    request_id: str = ""
    attempt: int = 0


UNTOLD = How()


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """A call was lately refused for lack of money, and `left_usd` of the budget would not cover the same call now.

    `budget`: the name of one that an operator set, with its tag (NAME/TAG); empty: the service's own of the day.
    `title`: the same in a sentence. `resets_at` is wall seconds.
    """

    budget: str
    title: str
    needed_usd: Decimal
    left_usd: Decimal
    resets_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """One budget in its current period, as last known, in USD; times are wall seconds.

    `held_usd` is held by calls that run now. `idle_usd` lies in the purses of processes and can be recalled,
    `unsettled_usd` was granted to processes that no longer report. `scope` is "shared", or "this process" while the
    store is away. `above_hold_usd`: how much this process's bills exceeded what was held for them. `runs_out`: when it
    is used up at the current pace. `shortage`: why the last call that it should cover was refused, for as long as the
    same call would be refused again; `short`: the same in numbers, and for some minutes longer.
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
    """A budget that an operator set; `tag` if it is one of those for each tag."""

    options: BudgetOptions
    tag: str | None
    view: BudgetView


SpendGroup = Literal["day", "service", "model", "tag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was booked in one group, its values in the order of `SpendGroup`; a day is a UTC day.

    `estimated_usd`: the part without usage from the provider; `input_tokens`: read in any way, caches included.
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
    """One booking. `at` is wall seconds, `day` the UTC day whose budget paid; `held_usd` was the worst case.

    `estimated`: the provider sent no usage. `unit_prices` are USD per million tokens, by class, as texts. `tag`
    and `metadata` are the caller's own. `process` is the one that booked it. `took_s`, `outcome`,
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
    """Where a page of bookings ends."""

    at_ms: int
    id: str


class Spending(Protocol):
    """What all processes on one store have booked. Each method raises `StoreUnavailable`."""

    async def latest(self, before: Place, wanted: Mapping[str, str], *, limit: int) -> list[Entry]:
        """Bookings before a place, newest first; `wanted`: only those of a service, a model, a tag."""
        ...

    async def spent(
        self, first_day: int, last_day: int, by: Sequence[SpendGroup], *, limit: int = 10_000
    ) -> list[Spent]:
        """Totals from one UTC day to another, both included. Raises `StoreUnavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class Unsettled:
    """What one process that no longer reports was granted and has not reported as spent; amounts in pico-dollars."""

    process: str
    seen_at: float
    amounts: Mapping[Key, int]


@dataclass(frozen=True, slots=True)
class WriteOff:
    """An operator freed what a process had left, at wall time `at`. `by` and `reason` are the operator's words."""

    process: str
    at: float
    by: str
    reason: str
    amounts: Mapping[Key, int]


class UnsettledMoney(Protocol):
    """What dead processes left behind in all budgets of one store. Each method raises `StoreUnavailable`."""

    async def find(self) -> list[Unsettled]:
        """Of the current day and month, by process."""
        ...

    async def write_off(self, process: str | None, by: str, reason: str) -> list[WriteOff]:
        """Free it for one process, or for all (None); returns what was freed. A living process is left alone."""
        ...

    async def written_off(self, since: float, until: float) -> list[WriteOff]:
        """What operators wrote off between two wall times, oldest first."""
        ...


class Upkeep(Protocol):
    """What the store forgets. Any process may do it, at any time."""

    async def prune(self, before_day: int) -> bool:
        """Forget a little of what ended before that UTC day; True if there may be more.

        Raises `StoreUnavailable`.
        """
        ...


class Ledger(Protocol):
    """Money, held before a call and settled after it; amounts are whole pico-dollars (`policies/money.py`)."""

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used now, as a sentence; None: no trouble is known."""
        ...

    def budget(
        self, name: str, limit: int | None, kind: PeriodKind = "day", *, is_default: bool = False
    ) -> Budget:
        """Know a budget from now on; a limit of None only counts."""
        ...

    def forget(self, name: str) -> bool:
        """Forget a budget, if it was not used in this period."""
        ...

    def hold(self, budgets: tuple[Budget, ...], amount: int) -> Hold | None:
        """Hold a call's worst case in all its budgets, in memory; None if it has to wait."""
        ...

    async def wait(
        self, budgets: tuple[Budget, ...], amount: int, deadline: float, *, is_patient: bool
    ) -> Hold | tuple[Refusal, Key | None]:
        """Wait for the store's answer, and if `is_patient` for what is recalled. Raises TimeoutError."""
        ...

    def shrink(self, hold: Hold, amount: int) -> None:
        """A call's worst case has proved smaller."""
        ...

    def settle(self, hold: Hold, service: str, bill: Bill, how: How = UNTOLD) -> int:
        """Book what a call cost, once; returns it. Never waits and never raises."""
        ...

    def release(self, hold: Hold) -> None:
        """Nothing was billed. Never waits and never raises."""
        ...

    def count(self, budget: Budget, day: int, amount: int) -> None:
        """Count requests of a UTC day; a negative amount takes back."""
        ...

    def counted_elsewhere(self, budget: Budget, day: int) -> int:
        """What other processes, and earlier ones, have counted on that day, as last known."""
        ...

    def standing(self, name: str) -> Standing:
        """How a budget stands, without I/O."""
        ...

    def knows(self, name: str) -> bool:
        """Whether the store has said how this budget stands in this period."""
        ...

    def view(self, name: str) -> BudgetView:
        """As `standing`, for people. Without I/O."""
        ...


class LedgerKeeper(Ledger, Protocol):
    """The ledger as its owner sees it.

    `heard` is called with an answer that gives this process another name, or says that the store has forgotten.
    """

    heard: Callable[[Reply], None]

    @property
    def process(self) -> str:
        """The name under which this process is known to the store."""
        ...

    async def run(self) -> None:
        """Keep the store up to date, until cancelled."""
        ...

    async def refresh(self) -> None:
        """Report what is new, and learn how all budgets stand. Raises `StoreUnavailable`."""
        ...

    async def finish(self) -> None:
        """This process ends: report everything, and send home what no call holds. Raises `StoreUnavailable`."""
        ...


class LimitKeeper(Protocol):
    """Limits that hold for all processes on one store."""

    def share(
        self, limits: Limits, name: str, requests: Budget | None = None, tokens: TokenLimit | None = None
    ) -> None:
        """Make a service's limits fleet-wide; `requests`: the ledger's budget of its requests per day."""
        ...

    def know_processes(self, processes: int) -> None:
        """`processes` are on the store."""
        ...

    async def begin(self) -> None:
        """Learn how the limits stand, before the first call. Raises `StoreUnavailable`."""
        ...

    async def run(self) -> None:
        """Report what was used and ask for more, until cancelled."""
        ...


SignalKind = Literal["reset", "limits", "override", "cooldown", "latch", "write_off"]
"""As stored, so that processes of other versions on the same store understand it: a blocked key is a "latch"."""


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
        """Publish to all other processes; returns the signal's number. Raises `StoreUnavailable`."""
        ...

    async def latest(self) -> list[Signal]:
        """The last act of each kind on each target, oldest first. Raises `StoreUnavailable`."""
        ...


class RollCall(Protocol):
    """Which processes are on the store, and which one leads. Each method raises `StoreUnavailable`."""

    async def beat(self, told: Told, cursor: int | None = None) -> tuple[Heard, list[Signal]]:
        """Report how this process is, and hear of the others; with the signals after number `cursor`."""
        ...

    async def leave(self) -> None:
        """This process ends."""
        ...

    async def read(self) -> Roll:
        """Everything, for people."""
        ...

    async def forget_old(self) -> None:
        """Forget processes that have been silent for a day."""
        ...


class LeadersStore(Protocol):
    """What the leader of the fleet does for all. Each act raises `NotLeading` if another process leads by now."""

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
    """One process's access to what it shares. It belongs to one event loop at a time."""

    @property
    def process(self) -> str:
        """The name of this process among those on the store; a new one each time it is opened."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used now, as a sentence; None: no trouble is known."""
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
        """What only the leader does, in the epoch in which this process leads."""
        ...

    def watch(self, changed: Callable[[str | None], None]) -> None:
        """Call `changed` on the loop when the store is lost (with the reason) and when it is back (with None)."""
        ...

    async def open(self) -> None:
        """Connect and read today's numbers. Raises `StoreUnavailable`, and keeps trying."""
        ...

    async def close(self) -> None:
        """Write what is still waiting, as far as the store allows. It may be opened again."""
        ...


class StoreUnavailable(Exception):
    """The state store cannot be read or written now; says why, without a DSN."""


class NotLeading(Exception):
    """The act was the leader's, and another process leads by now: it is that one's to do."""
