"""What a treasury grants: the store's half of a budget, decided over its rows, without I/O.

A budget has one row for each period (a day, a month): the treasury. A process holds and settles against a purse that
the treasury granted it. For each purse a process reports four totals that only grow: `granted` (moved by the store
only), `back`, `spent` and `over` (moved by the process only). The larger number is the truth, so a total that arrives
twice, late or not at all changes nothing. A treasury has one sum:

    booked = Σ (granted − back + over) over all purses,     and at every grant     booked + need ≤ limit

Nothing comes back by time. What a dead process was granted stays booked until it reports again, its period is over, or
an operator writes it off, so no clock, hang or partition breaks the cap.

The totals travel in beats. A beat has a number, a random token, and the previous token, and is sent again unchanged
until it is answered. The chain separates three cases that look the same by number alone: a beat that arrives twice (the
answer was lost), two copies of one process under one name (the second is answered *not you*), and a store that was
replaced by an older copy of itself (it is behind the process). A store that has forgotten takes the larger totals and
grants nothing for `FREEZE_MS`, because other processes know of grants too, and have not reported them yet.

A process that ends says so with its last beat, if nothing is held or idle in its purses. They have nothing more to
report, and are merged into one purse per budget, `ENDED`: many short scripts leave one row, not one each.

`receive` is the only way in. The store loads the rows that a beat touches, locked in one order, calls it, and writes
them back: the same decisions over memory, SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Literal, NamedTuple

DAY_MS = 86_400_000
FREEZE_MS = 6_000
"""A store is found again within five seconds of being back; then each living process reports its totals in a beat."""
LIMIT_STANDS_MS = 5_000
"""How long a reported limit keeps a higher one out: three beats of a second, or two of an idle process."""
LIVES_MS = 10_000
"""A process that has been silent for this long is presumed dead: only for display, never for the cap."""
RECALL_BEATS = 2
"""A recall reaches a purse with its next beat, and what it sends home travels with the one after that."""

ENDED = "ended"
"""The name of the purse that stands for those of all processes that have ended."""

PeriodKind = Literal["day", "month"]


class Key(NamedTuple):
    """One budget in one period: days since 1970, or months since the year 0."""

    budget: str
    period: int


def period_at(kind: PeriodKind, wall_ms: int) -> int:
    """The UTC day or month at `wall_ms` (milliseconds since 1970)."""
    if kind == "day":
        return wall_ms // DAY_MS
    at = datetime.fromtimestamp(wall_ms / 1000, UTC)
    return at.year * 12 + at.month - 1


def starts_ms(kind: PeriodKind, period: int) -> int:
    """When a period begins, in milliseconds since 1970."""
    if kind == "day":
        return period * DAY_MS
    return int(datetime(period // 12, period % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1000


@dataclass(slots=True)
class Totals:
    """One purse as reported. Each number only grows; `held` alone moves both ways and is for display."""

    granted: int = 0
    back: int = 0
    spent: int = 0
    over: int = 0
    held: int = 0

    @property
    def net(self) -> int:
        """What this purse has booked in the treasury."""
        return self.granted - self.back + self.over

    def take_larger(self, told: Totals) -> None:
        """Merge what a process reports, however late or often."""
        self.granted = max(self.granted, told.granted)
        self.back = max(self.back, told.back)
        self.spent = max(self.spent, told.spent)
        self.over = max(self.over, told.over)
        self.held = told.held

    def take_in(self, ended: Totals) -> None:
        """Add a purse that reports no more: what is booked of it, as granted."""
        self.granted += ended.net
        self.spent += ended.spent

    def copy(self) -> Totals:
        """The numbers as they are now."""
        return Totals(self.granted, self.back, self.spent, self.over, self.held)


@dataclass(slots=True)
class Treasury:
    """A budget's row for one period. `limit` None: spending is counted, and nothing is granted or refused.

    `limit_at_ms`: when a process last reported this limit. `recall_at_ms`: when a need was last not met.
    """

    limit: int | None = None
    limit_at_ms: int = 0
    booked: int = 0
    spent: int = 0
    recall_at_ms: int = 0


@dataclass(slots=True)
class ProcessRow:
    """A process's last beat. `closed`: an operator wrote it off, and its name is no longer answered.

    `forgotten`: what the store had lost when that beat arrived, if it was behind. That answer may be lost too, and the
    repeated beat then finds the store up to date.
    """

    number: int = 0
    token: str = ""
    closed: bool = False
    forgotten: Mapping[Key, int] | None = None


class Limit(NamedTuple):
    """What a process believes a budget's limit to be."""

    amount: int | None
    kind: PeriodKind


@dataclass(frozen=True, slots=True)
class Ask:
    """One set of budgets that wants more: all of `need` or nothing, and up to `want`.

    `amount`: the first waiter's bound, of which `need` is what its own purses lack; 0 without a waiter.
    """

    need: Mapping[Key, int]
    want: Mapping[Key, int]
    amount: int


@dataclass(frozen=True, slots=True)
class Beat:
    """What a process reports and asks; sent unchanged until it is answered. `is_last`: its name has ended."""

    process: str
    number: int
    token: str
    before: str
    totals: Mapping[Key, Totals]
    limits: Mapping[str, Limit]
    asks: Sequence[Ask]
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """One budget in one period, over all processes.

    `spent` was billed, `held` is held by calls that run now, `idle` lies in living processes' purses and can be
    recalled. `unsettled` was granted to processes that no longer report, beyond what they reported as spent.
    `processes`: in how many living ones money lies idle.
    """

    limit: int | None = None
    booked: int = 0
    spent: int = 0
    held: int = 0
    idle: int = 0
    unsettled: int = 0
    processes: int = 0


def standing_of(treasury: Treasury, living: Sequence[Totals], dead: Sequence[Totals]) -> Standing:
    """Add up the purses of one budget."""
    held = sum(row.held for row in living)
    granted = sum(row.net - row.spent for row in living)
    return Standing(
        limit=treasury.limit,
        booked=treasury.booked,
        spent=treasury.spent,
        held=held,
        # A call held without a grant, or under a lower limit, is held above what was granted.
        idle=max(0, granted - held),
        unsettled=sum(max(0, row.net - row.spent) for row in dead),
        processes=sum(row.net - row.spent > row.held for row in living),
    )


class Met(Enum):
    """What became of an ask. NEVER: what is spent alone leaves no room for it in this period."""

    YES = "yes"
    NO = "no"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Reply:
    """The store's answer. `met` is empty for a beat that was answered before. `now_ms` is the store's clock.

    `has_forgotten`: the store was behind this process; `forgotten` is what it had lost, by key.

    `short`: for each unmet ask, the key with too little room. `standings`: if the store was asked how its budgets
    stand, and for those in `short`.
    """

    beat: Beat
    is_you: bool = True
    granted: Mapping[Key, int] = field(default_factory=dict)
    met: Sequence[Met] = ()
    short: Sequence[Key | None] = ()
    recalled: frozenset[Key] = frozenset()
    now_ms: int = 0
    frozen: bool = False
    has_forgotten: bool = False
    forgotten: Mapping[Key, int] = field(default_factory=dict)
    standings: Mapping[Key, Standing] = field(default_factory=dict)


@dataclass(slots=True)
class Rows:
    """The rows that one beat touches: every treasury of its keys and limits, and this process's own purses."""

    process: ProcessRow
    treasuries: dict[Key, Treasury] = field(default_factory=dict)
    purses: dict[Key, Totals] = field(default_factory=dict)
    frozen_until_ms: int = 0


def opened(last: Treasury | None) -> Treasury:
    """A new period's row. It starts with the last one's limit, not with that of the first process to report one."""
    return Treasury() if last is None else Treasury(limit=last.limit, limit_at_ms=last.limit_at_ms)


def keys_of(beat: Beat, now_ms: int) -> set[Key]:
    """The treasuries that a beat touches."""
    keys = set(beat.totals)
    for ask in beat.asks:
        keys |= ask.need.keys()
    keys |= {Key(name, period_at(limit.kind, now_ms)) for name, limit in beat.limits.items()}
    return keys


def receive(rows: Rows, beat: Beat, now_ms: int, beat_ms: int) -> Reply:
    """Take a beat in and decide its asks; changes `rows`. `beat_ms`: the time between two beats."""
    process = rows.process
    if process.closed:
        return Reply(beat, is_you=False)
    if process.token == beat.token:
        return _answer(rows, beat, now_ms, beat_ms)
    is_behind = process.token != beat.before
    if is_behind and process.number >= beat.number:
        # Another process spoke under this name. Only the copy that reads this changes its name: freezing the treasury
        # here would freeze an honest process whose beat was repeated late.
        return Reply(beat, is_you=False)
    forgotten = _take_totals(rows, beat)
    _take_limits(rows, beat, now_ms)
    process.number, process.token = beat.number, beat.token
    process.forgotten = forgotten if is_behind else None
    if is_behind:
        rows.frozen_until_ms = now_ms + FREEZE_MS
        return _answer(rows, beat, now_ms, beat_ms)
    decided = [_decide(rows, beat, ask, now_ms) for ask in beat.asks]
    return _answer(rows, beat, now_ms, beat_ms, decided)


def _take_totals(rows: Rows, beat: Beat) -> dict[Key, int]:
    """Merge the reported totals; returns what the store had lost, by key."""
    unknown: dict[Key, int] = {}
    for key, told in beat.totals.items():
        row, treasury = rows.purses.setdefault(key, Totals()), rows.treasuries.setdefault(key, Treasury())
        net, spent = row.net, row.spent
        row.take_larger(told)
        treasury.booked += row.net - net
        treasury.spent += row.spent - spent
        if row.net > net:
            unknown[key] = row.net - net
    return unknown


def _take_limits(rows: Rows, beat: Beat, now_ms: int) -> None:
    """A lower limit counts at once; a higher one when the lower was not reported for `LIMIT_STANDS_MS`."""
    for key, treasury in rows.treasuries.items():
        told = beat.limits.get(key.budget)
        if told is None:
            continue
        if _is_lower(told.amount, treasury.limit) or treasury.limit_at_ms < now_ms - LIMIT_STANDS_MS:
            treasury.limit, treasury.limit_at_ms = told.amount, now_ms
        elif told.amount == treasury.limit:
            treasury.limit_at_ms = now_ms


def _is_lower(amount: int | None, limit: int | None) -> bool:
    return amount is not None and (limit is None or amount < limit)


def _decide(rows: Rows, beat: Beat, ask: Ask, now_ms: int) -> tuple[Met, Key | None]:
    """Grant one ask in all of its budgets, or in none."""
    if now_ms < rows.frozen_until_ms:
        return Met.NO, None
    room = {key: _room(rows, beat, key, now_ms) for key in sorted(ask.need)}
    short = [key for key, amount in room.items() if amount < ask.need[key] and ask.need[key] > 0]
    if not short:
        for key, amount in room.items():
            _grant(rows, key, max(ask.need[key], min(ask.want[key], amount)))
        return Met.YES, None
    for key in short:
        treasury = rows.treasuries[key]
        if treasury.limit is not None and ask.amount > treasury.limit - treasury.spent:
            # Recalling every purse for a call that cannot fit would cost each process a trip, for nothing.
            return Met.NEVER, key
    if ask.amount:
        for key in short:
            rows.treasuries[key].recall_at_ms = now_ms
    return Met.NO, short[0]


def _room(rows: Rows, beat: Beat, key: Key, now_ms: int) -> int:
    """What a treasury may still grant: nothing if its period is over, or has not begun by the store's clock."""
    treasury, limit = rows.treasuries.setdefault(key, Treasury()), beat.limits.get(key.budget)
    if limit is None or treasury.limit is None or key.period != period_at(limit.kind, now_ms):
        return 0
    return treasury.limit - treasury.booked


def _grant(rows: Rows, key: Key, amount: int) -> None:
    if amount > 0:
        rows.purses.setdefault(key, Totals()).granted += amount
        rows.treasuries[key].booked += amount


def _answer(
    rows: Rows,
    beat: Beat,
    now_ms: int,
    beat_ms: int,
    decided: Sequence[tuple[Met, Key | None]] = (),
) -> Reply:
    forgotten = rows.process.forgotten
    keys = set(beat.totals).union(*(ask.need for ask in beat.asks))
    since_ms = now_ms - RECALL_BEATS * beat_ms
    return Reply(
        beat=beat,
        granted={key: rows.purses[key].granted for key in keys if key in rows.purses},
        met=[met for met, _ in decided],
        short=[key for _, key in decided],
        recalled=frozenset(
            key for key in keys if key in rows.treasuries and _is_recalled(rows.treasuries[key], since_ms)
        ),
        now_ms=now_ms,
        frozen=now_ms < rows.frozen_until_ms,
        has_forgotten=forgotten is not None,
        forgotten=forgotten or {},
    )


def _is_recalled(treasury: Treasury, since_ms: int) -> bool:
    is_overbooked = treasury.limit is not None and treasury.booked > treasury.limit
    return is_overbooked or treasury.recall_at_ms >= since_ms
