"""Purses: a process's half of a budget. A call's worst case is held and settled here in memory, without waiting.

    room     granted − back + over − spent − held
    hold     room ≥ bound in every budget that applies, else nothing is held
    settle   held − bound, spent + cost; the part of a cost above its bound is added to `over`, even past the limit
    release  held − bound

An amount that is held without a grant counts as `over` from that moment, and the part that the call did not cost goes
back. So a process killed in the middle of such a call leaves its worst case booked, as with any other call.

A purse keeps what it holds and two beats of spending. If two beats of spending are less than one call's bound, it keeps
no room at all and returns the rest with the last settlement. So a budget that covers only a few calls is decided call
by call, exactly, and a script that makes one call leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from koo.policies.treasury import Key, PeriodKind, Totals


class Purse:
    """What one process may spend of one budget in one period. Amounts are whole pico-dollars, or requests.

    `pace`: spent in each of the last two beats; `marked`: `spent` when the pace was last taken. `bound` and
    `bound_before`: the largest hold since then, and in the beat before. `told`: spent, back, over and held as the store
    has confirmed them. `low`: if there is less room, the purse requests more. `elsewhere`: what other processes had
    spent when that was last read. `above`: by how much the bills here exceeded their holds. `least`: the room that
    always stays here.
    """

    __slots__ = (
        "above", "back", "bound", "bound_before", "budget", "elsewhere", "granted", "held", "key", "least",
        "low", "marked", "over", "pace", "room", "spent", "told",
    )  # fmt: skip

    def __init__(self, budget: Budget, key: Key) -> None:
        self.budget = budget
        self.key = key
        self.granted = self.back = self.spent = self.over = self.held = 0
        self.room = self.elsewhere = self.above = 0
        self.bound = self.bound_before = self.marked = self.low = self.least = 0
        self.pace = (0.0, 0.0)
        self.told = (0, 0, 0, 0)

    def keep(self) -> int:
        """How much room stays here when the rest is returned to the store."""
        # The pace is that of the larger of the last two beats. Otherwise the whole room would be returned after a
        # single quiet beat, and the next call would wait for the store. Room for less than one call's bound cannot
        # cover a call here, but may be what another process lacks, so it is returned too.
        two_beats = max(int(2 * max(self.pace)), self.least)
        return two_beats if two_beats >= max(self.bound, self.bound_before) else 0

    def take_pace(self, beats: float) -> None:
        """Record the pace since the last recording, which was `beats` beats ago."""
        self.pace = (self.pace[1], (self.spent - self.marked) / beats)
        self.marked = self.spent
        self.bound_before, self.bound = self.bound, 0

    def send_back(self, keep: int) -> None:
        """Move everything above `keep` out of the purse, to be reported as `back`."""
        if self.room > keep:
            self.back += self.room - keep
            self.room = keep

    def take_granted(self, granted: int) -> None:
        """Accept the store's total of grants, which only grows."""
        # The total is compared, not added. A reply that arrives twice, or after a newer one, adds no room.
        if granted > self.granted:
            self.room += granted - self.granted
            self.granted = granted

    def totals(self) -> Totals:
        """The totals that a beat reports."""
        return Totals(self.granted, self.back, self.spent, self.over, self.held)

    def has_news(self) -> bool:
        """Whether there is anything to report or to return to the store."""
        # `held` is compared with what was reported, not with zero. Otherwise a call that runs for an hour would cause
        # an hour of beats, each of them a write that changes nothing.
        return self.room > self.least or self.told != (self.spent, self.back, self.over, self.held)

    def is_settled(self) -> bool:
        """Whether everything is reported, and nothing is held or idle."""
        return not self.held and not self.room and not self.has_news()

    def confirm(self, told: Totals) -> None:
        """A beat that reported these totals was answered."""
        # `told` is a copy from when the beat was made. Calls have settled since, and confirming the present totals
        # would mark their cost as reported although the store has never received it. `held` is taken as it is, because
        # it is the only one of the four that also falls.
        spent, back, over, _ = self.told
        self.told = (max(spent, told.spent), max(back, told.back), max(over, told.over), told.held)

    def begin_again(self) -> None:
        """Start over under a new name, with a grant of what is held plus what the store may not have recorded yet."""
        # This process has just learned that another copy of it (a cloned virtual machine) uses its name, or that the
        # name was written off. Both copies have the same numbers in memory, so their room exists twice and could be
        # spent twice. It is given up, and only what has already happened here is reported.
        #
        #   held     its calls are running and will be billed.
        #   unsure   spent since the last answered beat. The store may or may not have recorded it under the old name.
        #            Left out, it could be missing from the books; reported again, it is at worst booked twice.
        #
        # Both are reported as granted, and nothing beyond them, so that no room is left over to spend. What a held call
        # does not cost can then be sent `back` as usual. Unless it was written off, the old name's grant stays booked
        # too. So more than the limit may be booked, but never spent.
        unsure = self.spent - self.told[0]
        self.elsewhere += self.told[0]
        self.granted, self.over = self.held + unsure, 0
        self.back, self.spent, self.marked, self.room = 0, unsure, unsure, 0
        self.told = (0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class Budget:
    """A limit for each period. `limit` None: spending is counted and never refused.

    `is_default`: no user set the limit, so calls may continue in memory while the store is unreachable.
    """

    name: str
    limit: int | None
    kind: PeriodKind = "day"
    is_default: bool = False
    purse: Purse = field(init=False)
    ends_at: float = field(init=False, default=-math.inf)


@dataclass(slots=True, eq=False)
class Hold:
    """A call's worst case, held in all of its purses. `purses` is empty once it is settled or released.

    `without`: the purses that hold it without a grant, because their budget has no limit, or because it is a default
    budget and the store is unreachable.
    """

    purses: tuple[Purse, ...]
    amount: int
    without: tuple[Purse, ...] = ()


class Refusal(Enum):
    """Why a waiter was refused."""

    NEVER = "too little of the limit is left in this period"
    NOT_MET = "other calls hold what is left"
    AWAY = "the state store is unreachable"
    CLOSED = "this process's ledger is closed"


@dataclass(slots=True, eq=False)
class Waiter:
    """A call that found no room. `decided` is called once, with a hold or a refusal.

    `patience`: how many unmet beats it waits for before it is refused; with 1 it waits for one reply, which leaves no
    time for a recall. With more, beats do not count while running calls hold money of the short budget.
    `unmet_at`: when the last unmet beat was counted. `short`: the budget that had no room, once a reply has named it.
    """

    budgets: tuple[Budget, ...]
    amount: int
    patience: int
    decided: Callable[[Hold | Refusal], None]
    unmet: int = 0
    unmet_at: float = -math.inf
    keys: tuple[Key, ...] = ()
    short: Key | None = None
