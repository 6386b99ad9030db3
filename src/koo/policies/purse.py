"""Purses: a process's half of a budget. A call's worst case is held and settled here, in memory, without waiting.

    room     granted − back + over − spent − held
    hold     room ≥ bound in every budget that applies, else nothing is held
    settle   held − bound, spent + cost; a cost above its bound is `over`: booked, whether above the limit or not
    release  held − bound

What is held without a grant is `over` from then on, and what it did not cost goes back: a process killed in the middle
of such a call leaves its worst case booked, as with any other call.

A purse keeps what it holds and two beats of spending; if that is less than one call's bound, it keeps nothing, and goes
home with the last settlement. So a budget that covers only a few calls is decided call by call, exactly, and a script
of one call leaves nothing behind.
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
    has confirmed them. `low`: with less room it asks for more. `elsewhere`: what other processes had spent when last
    read. `above`: how much bills here exceeded what was held for them. `least`: what stays here in any case.
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
        """How much room stays here when the rest is sent home."""
        two_beats = max(int(2 * max(self.pace)), self.least)
        return two_beats if two_beats >= max(self.bound, self.bound_before) else 0

    def take_pace(self, beats: float) -> None:
        """Note what was spent since the last time, `beats` beats ago."""
        self.pace = (self.pace[1], (self.spent - self.marked) / beats)
        self.marked = self.spent
        self.bound_before, self.bound = self.bound, 0

    def send_back(self, keep: int) -> None:
        """Take what is not kept out of the purse."""
        if self.room > keep:
            self.back += self.room - keep
            self.room = keep

    def take_granted(self, granted: int) -> None:
        """Accept the store's total, which only grows."""
        if granted > self.granted:
            self.room += granted - self.granted
            self.granted = granted

    def totals(self) -> Totals:
        """The totals that a beat reports."""
        return Totals(self.granted, self.back, self.spent, self.over, self.held)

    def has_news(self) -> bool:
        """Whether anything is unknown to the store, or should go home."""
        # A call that runs for an hour is reported once: a beat without news would be a write for nothing.
        return self.room > self.least or self.told != (self.spent, self.back, self.over, self.held)

    def is_settled(self) -> bool:
        """Whether the store knows everything about it, and nothing is held or idle."""
        return not self.held and not self.room and not self.has_news()

    def confirm(self, told: Totals) -> None:
        """A beat that reported these totals was answered."""
        spent, back, over, _ = self.told
        self.told = (max(spent, told.spent), max(back, told.back), max(over, told.over), told.held)

    def begin_again(self) -> None:
        """Under a new name, report what is held and what was spent since the last answered beat: as granted, no more.

        The old name's grant stays booked as well, so this may book above the limit. It never spends above it.
        """
        unsure = self.spent - self.told[0]
        self.elsewhere += self.told[0]
        self.granted, self.over = self.held + unsure, 0
        self.back, self.spent, self.marked, self.room = 0, unsure, unsure, 0
        self.told = (0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class Budget:
    """A limit for each period. `limit` None: spending is counted and never refused.

    `is_default`: it was not set, so it may continue in memory while the store is away.
    """

    name: str
    limit: int | None
    kind: PeriodKind = "day"
    is_default: bool = False
    purse: Purse = field(init=False)
    ends_at: float = field(init=False, default=-math.inf)


@dataclass(slots=True, eq=False)
class Hold:
    """A call's worst case, held in all of its purses; in none once it is settled or released.

    `without`: purses that hold it without a grant, because they are only counted, or because their budget is a default
    one and the store is away.
    """

    purses: tuple[Purse, ...]
    amount: int
    without: tuple[Purse, ...] = ()


class Refusal(Enum):
    """Why a waiter was refused."""

    NEVER = "what is spent leaves no room for it"
    NOT_MET = "others hold what is left"
    AWAY = "the store that knows is away"
    CLOSED = "the ledger of this process is closed"


@dataclass(slots=True, eq=False)
class Waiter:
    """A call that found no room. `decided` is called once, with a hold or a refusal.

    `patience`: unmet beats after which it is refused; 1 waits for one answer, and for no recall. `unmet_at`: when the
    last of them was counted. `short`: the budget that had no room, once an answer has named it.
    """

    budgets: tuple[Budget, ...]
    amount: int
    patience: int
    decided: Callable[[Hold | Refusal], None]
    unmet: int = 0
    unmet_at: float = -math.inf
    keys: tuple[Key, ...] = ()
    short: Key | None = None
