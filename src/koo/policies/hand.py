"""Units in hand: a process's half of a fleet-wide limit per minute or hour (`units.py` is the store's half).

A call takes a unit that is here, without asking. Behind the calls, what was used is reported, what is not needed goes
home, and more is requested: when the hand runs low, and at 70 % of the lease at the latest. A call that finds nothing
waits for one answer. An answer without units says when the next one is free, and until then the store is not asked.

A lease counts from when it was requested, and 2 % short: this process's clock may be slow and the answer late, and
still the lease ends here before the store counts outstanding units as used. Any longer, and a unit could be spent
twice.

While the store is away, units end with their lease. Then this process may use its share of four fifths of the limit,
divided by the number of processes last known. For one whole period it uses at most what it had used itself by then plus
its part of what was free: what others used may still be in the window. All of it is reported when the store is back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from koo.options import NEVER
from koo.policies.units import LEASE_MS, LEASES_A_PERIOD, Grant, Told

LEASE_PART = 0.98
"""Clocks are right to a hundredth of a percent; a virtual machine's may be off by one percent for a while."""
RENEW_PART = 0.7
"""The rest of a lease is left for the answer to arrive, even a slow one."""
FLOAT_MAX = 10
"""A lone process keeps this many units beyond its use in two leases, so that a few calls cost one trip."""
FLOAT_PART = 20
"""But at most a twentieth of the limit: what a killed process had in hand counts as used."""
AWAY_PART = 0.8
"""The fifth that is left is for processes that started since they were last counted."""
LATE = 61 / 60
"""A unit comes back at most a sixtieth of the period late."""
TRIPS_A_LEASE = 4
"""If a trip to the store takes longer than this part of a lease, a longer lease is requested."""
LOST_S = 5.0
"""A store that was lost is back within this time (its file was locked, a server restarts), or not soon."""
LOOK_AGAIN_S = 0.1
"""How often a call looks whether a store that was just lost is back."""
LOOK_S = 5.0
"""How often an idle process asks how many processes there are, and how much of its limits they use."""
LOOKS_A_LOOK = 100
"""With more processes than this, each asks less often."""


class Uses(Protocol):
    """What this process itself has used in the last period."""

    used: int

    def ages(self, now: float, units: int) -> list[tuple[float, int]]:
        """When the last `units` were used: at least how many seconds ago, and how many, newest first."""
        ...


class Hand:
    """This process's units of one limit; `ring` is called when the store should be asked at once.

    `left` units until `until` (monotonic seconds, as all times here). `due_at`: when the store must hear from us at the
    latest. `shut_until`: when a unit may be free again. `is_lent`: units exist, but other processes hold them.
    `is_away`: the store cannot be asked; `lost_at`: when it stopped answering. `others`: units that other processes had
    used of the limit, or held, at `heard_at`. `processes`: how many there are.
    """

    __slots__ = (
        "_asked_at", "_back", "_clears", "_cut_at", "_cut_most", "_flying", "_frozen_until", "_granted", "_in_share",
        "_lease_s", "_low", "_marked", "_marked_at", "_number", "_over", "_over_told", "_pace", "_ring", "_room",
        "_serial", "_sharing", "_spent", "_told", "_trip_s", "_undoing", "_used", "due_at", "heard_at",
        "is_away", "is_lent", "left", "limit", "lost_at", "name", "others", "period_s", "processes", "shut_until",
        "until",
    )  # fmt: skip

    def __init__(self, name: str, limit: int, period_s: float, ring: Callable[[], None]) -> None:
        self.name = name
        self.limit = limit
        self.period_s = period_s
        self._ring = ring
        self.left = self.others = self._spent = self._over = self._over_told = self._number = 0
        self.until = self.shut_until = self.heard_at = self._frozen_until = self._asked_at = -NEVER
        self.due_at = -NEVER
        self.lost_at = NEVER
        self.is_away = self.is_lent = self._in_share = self._clears = False
        self.processes = self._sharing = 1
        self._flying: Told | None = None
        self._told = 0  # `used` as last reported to the store
        self._low = -1
        self._lease_s = min(LEASE_MS / 1000, period_s / LEASES_A_PERIOD)
        self._trip_s = 0.0
        self._undoing: list[tuple[int, float]] = []
        self._pace = (0.0, 0.0)
        self._marked, self._marked_at = 0, -NEVER
        self._room = limit
        self._cut_at, self._cut_most = NEVER, 0
        self._begin_lease(0)

    def _begin_lease(self, serial: int) -> None:
        self._serial = serial
        self._granted = self._used = self._back = self._told = self.left = 0

    # ── a call ────────────────────────────────────────────────────────────────────────────────────────────────

    def units(self, now: float, used: int) -> tuple[int, float]:
        """How many may be taken, and until when. `used`: by this process in the last period."""
        if self.left > 0 and now < self.until:
            self._in_share = False
            if self.left > self._low:
                return self.left - max(self._low, 0), self.until
            self._low = -1  # ring once; the answer sets it again
            self.due_at = now
            self._ring()
            return self.left, self.until
        if self.is_away or now < self._frozen_until:
            return self._share(now, used)
        return 0, now

    def _share(self, now: float, used: int) -> tuple[int, float]:
        """What this process may use on its own while the store is away."""
        if self._cut_at == NEVER:
            # Once every lease has ended, the free units belong to no process: a lone process may use them all.
            room = self.limit if self.processes == 1 else self._room // self.processes
            self._cut_at, self._cut_most = now, used + room
        most, until = self.share, NEVER
        if now < self._cut_at + self.period_s * LATE:
            most, until = min(most, self._cut_most), self._cut_at + self.period_s * LATE
        self._in_share = True
        return max(0, most - used), until

    def elsewhere(self, now: float) -> int:
        """How many units other processes have used of the limit, as last heard within the period."""
        return self.others if now - self.heard_at < self.period_s else 0

    @property
    def share(self) -> int:
        """How many units a period this process may use while the store is away."""
        return int(self.limit * AWAY_PART / self.processes)

    @property
    def is_alone(self) -> bool:
        """Whether this process now uses its own share, because the store is away."""
        return self._cut_at != NEVER

    @property
    def sentence(self) -> str:
        """The same in words, for people."""
        whose = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return (
            f"the state store is away, so each of {whose} has its share of four fifths, which is {self.share}"
        )

    def has(self, units: int, now: float, used: int) -> bool:
        """Whether this many units are here at once, for calls that take more than one."""
        allowed, _ = self.units(now, used)
        return allowed >= units or (not self._in_share and now < self.until and self.left >= units)

    def book(self, units: int) -> None:
        """`units` of those that `units()` allowed were taken."""
        self._spent += units
        if self._in_share:
            self._over += units
        else:
            self.left -= units
            self._used += units

    def refund(self, units: int, taken_at: float) -> None:
        """`units` taken at `taken_at` were never used."""
        if taken_at < self._asked_at or self._flying is not None:
            self._undoing.append((units, taken_at))  # they may have been reported to the store already
            self.due_at = min(self.due_at, self._asked_at + RENEW_PART * self._lease_s)
            return
        alone = min(units, self._over)
        self._over -= alone
        self._used -= units - alone
        self.left += units - alone

    def clear(self, used: int | None) -> None:
        """An operator resets the limit; None: another process reports it."""
        self._clears = used is not None
        # Uses that were not reported yet must go too: the store would count them after everything else is forgotten.
        if self._flying is None:
            self._back += self._used - self._told
            self._used = self._told
        else:
            self._undoing.append((self._used - self._told, self._asked_at))
        self._over = self.others = 0
        self.shut_until = -NEVER
        self.due_at = -NEVER
        self._room = self.limit
        self._cut_most = self.limit
        self._ring()

    # ── the store ─────────────────────────────────────────────────────────────────────────────────────────────

    def may_ask(self, now: float) -> bool:
        """Whether a call that found nothing may wait for an answer. Not before a unit can be free."""
        return not self.is_away and (self._flying is not None or now >= self.shut_until)

    def comes_home_at(self, now: float) -> float:
        """When units that other processes hold, or that a store just lost could grant, may be here; else never."""
        if self.lost_at <= now < self.lost_at + LOST_S:
            return max(self.shut_until, now + LOOK_AGAIN_S)
        return self.shut_until if self.is_lent else NEVER

    def lose(self, now: float) -> None:
        """The store did not answer."""
        self.lost_at = min(self.lost_at, now)

    def ask(self, now: float, count: Uses, need: int = 0, waiting: int = 0, *, is_last: bool = False) -> Told:
        """What to report to the store. `need`: of the first waiting caller; `waiting`: of all of them.

        `is_last`: this process ends, and keeps nothing.
        """
        self._take_pace(now)
        keep = 0 if is_last else self._keep(waiting)
        if now >= self.until:
            keep, waiting = 0, waiting + keep
        # Units going home leave the hand before they are reported. Reported first, one could be used here and granted
        # elsewhere as well.
        if self.left > keep:
            self._back += self.left - keep
            self.left = keep
        self._over_told = self._over
        self._number += 1
        self._asked_at = now
        self._flying = Told(
            name=self.name,
            period_ms=int(self.period_s * 1000),
            limit=self.limit,
            number=self._number,
            serial=self._serial,
            granted=self._granted,
            used=self._used,
            undone=self._undone(now),
            back=self._back,
            over=tuple([(int(ago_s * 1000) + 1, units) for ago_s, units in count.ages(now, self._over)]),
            need=max(0, need - self.left),
            want=max(0, waiting + keep - self.left),
            window=count.used,
            lease_ms=int(self._trip_s * TRIPS_A_LEASE * 1000),
            clears=self._clears,
        )
        return self._flying

    def _undone(self, now: float) -> int:
        """Units that were reported as used but were not, if the store still counts them."""
        undoing, self._undoing = self._undoing, []
        # The store forgets a unit one period after it was reported: taking back one it has forgotten would free
        # another.
        last_s = self.period_s - 2 * self._lease_s
        return sum(units for units, taken_at in undoing if now - taken_at < last_s)

    def _take_pace(self, now: float) -> None:
        for_s = now - self._marked_at
        if for_s < self._lease_s / 4:
            return  # a moment's use says nothing about a whole lease
        pace = (self._spent - self._marked) / for_s if math.isfinite(for_s) else 0.0
        self._pace = (self._pace[1], pace)
        self._marked, self._marked_at = self._spent, now

    def _keep(self, waiting: int) -> int:
        """How many units stay here: two leases of calls, and a few more when alone."""
        pace = max(self._pace)
        if not pace and not waiting:
            return 0
        keep = int(2 * pace * self._lease_s)
        return keep if self._sharing > 1 else max(keep, min(FLOAT_MAX, self.limit // FLOAT_PART))

    def hear(self, grant: Grant, sent_at: float, now: float) -> None:
        """The store's answer to the request sent at `sent_at`."""
        told, self._flying = self._flying, None
        if told is None:
            return
        self.lost_at = NEVER
        self._over = max(0, self._over - self._over_told)
        self._clears = self._clears and not told.clears
        self._trip_s = now - sent_at
        self._take_granted(grant, told, sent_at)
        self.processes, self._sharing = grant.processes, grant.sharing
        self._room = max(0, grant.limit - grant.used - grant.out)
        self.others = max(0, grant.used - told.window) + max(0, grant.out - self.left)
        self.heard_at = now
        is_short = bool(grant.free_in_ms) and self.left < told.need
        self.shut_until = now + grant.free_in_ms / 1000 if is_short else -NEVER
        self.is_lent = is_short and not grant.frozen_ms and grant.limit - grant.used >= told.need
        self._end_share(grant, sent_at)
        is_soon = self.has_news() or grant.frozen_ms > 0
        look_s = LOOK_S * max(1.0, self.processes / LOOKS_A_LOOK)
        self.due_at = sent_at + (RENEW_PART * self._lease_s if is_soon else look_s)
        self._low = self.left // 3 if self.left > 2 else -1

    def _take_granted(self, grant: Grant, told: Told, sent_at: float) -> None:
        if grant.serial != self._serial:
            # The store has ended the reported lease, and counts what was out as used: nothing of it remains here.
            self._begin_lease(grant.serial)
        else:
            self._told = told.used
        self.left += grant.granted - self._granted
        self._granted = grant.granted
        self._lease_s = grant.lease_ms / 1000
        self.until = sent_at + self._lease_s * LEASE_PART

    def _end_share(self, grant: Grant, sent_at: float) -> None:
        """Grants begin again when all have reported; a lease before that is the last moment to report."""
        if grant.frozen_ms:
            self._frozen_until = sent_at + grant.frozen_ms / 1000 * LEASE_PART - self._lease_s
        else:
            self._frozen_until = -NEVER
            self._cut_at = NEVER

    def has_news(self) -> bool:
        """Whether there is anything to report, or to send home."""
        is_untold = self._used > self._told or self._over > 0 or bool(self._undoing)
        return self.left > 0 or is_untold or self._clears

    def give_up(self) -> None:
        """The request was not answered: it is sent again, with totals that have grown."""
        self._flying = None

    def begin_again(self) -> None:
        """In a forked child, or under another name: the units in hand belong to another process."""
        self._flying = None
        self._begin_lease(0)
        self._over = 0
        self.until = self.due_at = -NEVER
