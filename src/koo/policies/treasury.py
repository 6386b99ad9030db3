"""The treasury: the store's half of a budget. It decides what a process is granted, over the store's rows, without I/O.

A budget has one row for each period (a day, a month): the treasury. A process holds and settles against a purse that
the treasury granted it. For each purse, a process reports four totals that only grow: `granted` (changed only by the
store), `back`, `spent` and `over` (changed only by the process). The larger number wins, so a total that arrives twice,
late or not at all does no harm. A treasury keeps one sum:

    booked = Σ (granted − back + over) over all purses,     and at every grant     booked + need ≤ limit

No grant expires. What a dead process was granted stays booked until the process reports again, its period is over, or
an operator writes it off. So no wrong clock, hung process or network partition can break the cap.

The totals travel in beats. A beat has a number, a random token and the previous beat's token, and is sent again
unchanged until it is answered. The chain of tokens separates three cases that look the same by number alone:

    a beat that arrives twice                  its reply was lost: the store replies again
    two copies of a process under one name     the store replies *not you* to the second
    a store replaced by an older copy          it is behind the process: it takes over the larger totals

A store that was behind grants nothing for `FREEZE_MS`: the copy has also lost grants of other processes, which have not
reported them again yet.

The last beat of a process that ends says so, if nothing is held or idle in its purses. They will never report again, so
they are merged into one purse per budget, `ENDED`: a thousand short scripts leave one row, not a thousand.

`receive` is the only entry point. The store loads the rows that a beat touches and locks them in one order, calls
`receive`, and writes them back. So memory, SQLite and PostgreSQL make the same decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Literal, NamedTuple

DAY_MS = 86_400_000
FREEZE_MS = 6_000
"""Processes find a returned store within five seconds; a second later each living one has reported its totals."""
LIMIT_STANDS_MS = 5_000
"""After a limit was last reported, this long passes before a higher one is accepted. In a rolling deployment, processes
with the old and the new setting report in turn, and the lower limit must hold until the last of them has stopped. Five
seconds are more than three beats of a second, or two beats of an idle process."""
LIVES_MS = 10_000
"""A process that has not reported for this long is displayed as dead. Its grants stay booked all the same."""
RECALL_BEATS = 2
"""How many beats a recall stays in force: a process receives it with the reply to one beat, and returns money with the
next beat."""

ENDED = "ended"
"""The name of the one purse into which the purses of all ended processes are merged."""

PeriodKind = Literal["day", "month"]


REQUESTS = "requests/"
"""The beginning of the names of treasuries that count a day's requests. All others hold money."""


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
    """One purse as reported. All numbers only grow, except `held`, which is for display."""

    granted: int = 0
    back: int = 0
    spent: int = 0
    over: int = 0
    held: int = 0

    @property
    def net(self) -> int:
        """The amount that this purse has booked in the treasury."""
        return self.granted - self.back + self.over

    def take_larger(self, told: Totals) -> None:
        """Merge what a process reports. Late and repeated reports do no harm."""
        # `granted` too, although only the store changes it: after the store was replaced by an older copy, the process
        # is the only one that knows the newer grant.
        self.granted = max(self.granted, told.granted)
        self.back = max(self.back, told.back)
        self.spent = max(self.spent, told.spent)
        self.over = max(self.over, told.over)
        self.held = told.held

    def take_in(self, ended: Totals) -> None:
        """Add the purse of an ended process. All that it has booked is added as granted."""
        self.granted += ended.net
        self.spent += ended.spent

    def copy(self) -> Totals:
        """A copy of the numbers as they are now."""
        return Totals(self.granted, self.back, self.spent, self.over, self.held)


@dataclass(slots=True)
class Treasury:
    """A budget's row for one period. `limit` None: spending is counted, and nothing is granted or refused.

    `limit_at_ms`: when a process last reported this limit. `recall_at_ms`: when a waiting call last needed more than
    was left, which recalls idle money.
    """

    limit: int | None = None
    limit_at_ms: int = 0
    booked: int = 0
    spent: int = 0
    recall_at_ms: int = 0


@dataclass(slots=True)
class ProcessRow:
    """A process's last beat. `closed`: an operator wrote the process off, and beats under its name get *not you*.

    `forgotten`: if the store was behind when that beat arrived, what it had lost, by key. It is kept because the reply
    may be lost: when the beat is repeated, the store is up to date and could no longer tell.
    """

    number: int = 0
    token: str = ""
    closed: bool = False
    forgotten: Mapping[Key, int] | None = None


class Limit(NamedTuple):
    """A budget's limit and kind of period, by the settings of one process."""

    amount: int | None
    kind: PeriodKind


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for one set of budgets: all of `need` or nothing, and up to `want`.

    `amount`: the first waiter's bound; `need` is the part of it that its own purses lack. 0 without a waiter.
    """

    need: Mapping[Key, int]
    want: Mapping[Key, int]
    amount: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A process's report and its requests, repeated unchanged until answered. `is_last`: the process ends with it."""

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

    `spent` was billed. `held` is held by running calls. `idle` is room in the purses of living processes, which can be
    recalled. `unsettled` was granted to processes that no longer report, beyond what they reported as spent.
    `processes`: how many living processes have idle room.
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
        # The result is never negative, although a call that is held without a grant makes `held` exceed what was
        # granted.
        idle=max(0, granted - held),
        unsettled=sum(max(0, row.net - row.spent) for row in dead),
        processes=sum(row.net - row.spent > row.held for row in living),
    )


class Met(Enum):
    """How a request was decided. NEVER: in this period it cannot fit even if all idle money were returned."""

    YES = "yes"
    NO = "no"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Reply:
    """The store's reply. `met` is empty for a beat that was answered before. `now_ms` is the store's clock.

    `has_forgotten`: the store was behind this process; `forgotten` is what it had lost, by key.

    `short`: for each unmet request, the key with too little room. `standings`: of the budgets in `short`, and of all if
    the process requested them.
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
    """A new period's row, which starts with the last period's limit."""
    # The limit of the first process to report is not used: in a rolling deployment it may be the higher one, and it
    # would be in force for the first moments of each day.
    return Treasury() if last is None else Treasury(limit=last.limit, limit_at_ms=last.limit_at_ms)


def keys_of(beat: Beat, now_ms: int) -> set[Key]:
    """The keys of the treasuries that a beat touches."""
    keys = set(beat.totals)
    for ask in beat.asks:
        keys |= ask.need.keys()
    keys |= {Key(name, period_at(limit.kind, now_ms)) for name, limit in beat.limits.items()}
    return keys


def receive(rows: Rows, beat: Beat, now_ms: int, beat_ms: int) -> Reply:
    """Process a beat and decide its requests; changes `rows`. `beat_ms`: the time between two beats."""
    process = rows.process
    if process.closed:
        return Reply(beat, is_you=False)
    # This very beat has been processed, and its reply was lost. Its totals and grants are in the rows; deciding its
    # requests again would grant them twice.
    if process.token == beat.token:
        return _answer(rows, beat, now_ms, beat_ms)
    is_behind = process.token != beat.before
    if is_behind and process.number >= beat.number:
        # The row already has a beat with this number or a later one: another copy of the process uses the name. Only
        # the copy that receives this reply takes a new name. The treasury is not frozen, because an ordinary beat that
        # was delayed in the network and arrives after its successor looks the same, and must not stop the whole fleet.
        return Reply(beat, is_you=False)
    # The chain may be broken although the sender's number is ahead: it has replies to beats of which this store has no
    # record. Then the store is an older copy (or the row was lost), and the process's totals are the newer ones.
    forgotten = _take_totals(rows, beat)
    _take_limits(rows, beat, now_ms)
    process.number, process.token = beat.number, beat.token
    process.forgotten = forgotten if is_behind else None
    if is_behind:
        # This process has now reported what it was granted, but the others have not. Their lost grants are missing
        # from `booked`, and room granted on that sum could be spent a second time.
        rows.frozen_until_ms = now_ms + FREEZE_MS
        return _answer(rows, beat, now_ms, beat_ms)
    decided = [_decide(rows, beat, ask, now_ms) for ask in beat.asks]
    return _answer(rows, beat, now_ms, beat_ms, decided)


def _take_totals(rows: Rows, beat: Beat) -> dict[Key, int]:
    """Merge the reported totals; returns by how much each key's booked amount has grown."""
    unknown: dict[Key, int] = {}
    for key, told in beat.totals.items():
        # The treasury's sums are moved by each purse's change, never recalculated: the purses of the other processes
        # are not loaded. So a purse must be merged exactly here, and nowhere else, or the sums drift from the rows.
        row, treasury = rows.purses.setdefault(key, Totals()), rows.treasuries.setdefault(key, Treasury())
        net, spent = row.net, row.spent
        row.take_larger(told)
        treasury.booked += row.net - net
        treasury.spent += row.spent - spent
        if row.net > net:
            unknown[key] = row.net - net
    return unknown


def _take_limits(rows: Rows, beat: Beat, now_ms: int) -> None:
    """Accept a lower limit immediately, and a higher one if the lower was not reported for `LIMIT_STANDS_MS`."""
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
    """Grant one request in all of its budgets, or in none."""
    if now_ms < rows.frozen_until_ms:
        return Met.NO, None
    # All rooms are read before anything is granted. A need of 0 is met even by an overbooked budget: the process has
    # room enough in that purse, and must not be refused for what it does not request.
    room = {key: _room(rows, beat, key, now_ms) for key in sorted(ask.need)}
    short = [key for key, amount in room.items() if amount < ask.need[key] and ask.need[key] > 0]
    if not short:
        for key, amount in room.items():
            _grant(rows, key, max(ask.need[key], min(ask.want[key], amount)))
        return Met.YES, None
    for key in short:
        treasury = rows.treasuries[key]
        if treasury.limit is not None and ask.amount > treasury.limit - treasury.spent:
            # It would not fit even if every purse were returned. A recall would cost each process a trip for nothing.
            return Met.NEVER, key
    # Only a waiting call recalls money. If a purse that wants to top up did so too, two busy processes near the limit
    # would recall each other's purses with every beat.
    if ask.amount:
        for key in short:
            rows.treasuries[key].recall_at_ms = now_ms
    return Met.NO, short[0]


def _room(rows: Rows, beat: Beat, key: Key, now_ms: int) -> int:
    """How much a treasury may still grant."""
    # Nothing for a period that is over, or that has not begun by the store's clock. A process whose clock is a day
    # fast must not spend tomorrow's budget today.
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
    # After the limit was lowered, more may be booked than it allows. Then idle room is recalled even if no caller needs
    # it.
    is_overbooked = treasury.limit is not None and treasury.booked > treasury.limit
    return is_overbooked or treasury.recall_at_ms >= since_ms
