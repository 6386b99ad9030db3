"""Units in hand: a process's half of a fleet-wide limit per minute or hour (`units.py` is the store's half).

A call takes a unit that is in hand without waiting for the store. In the background, used units are reported, units
that are not needed are returned to the store, and more are requested: when few are left, and at the latest at 70 % of
the lease. A call that finds no unit waits for one reply. A reply without units says when the next one is free, and
until then the store is not queried again.

A lease counts from the moment it was requested, and ends 2 % early. So it ends here before the store counts its
outstanding units as used, even if this process's clock is slow and the reply was late. If it lasted any longer, a unit
could be spent here after the store has granted it elsewhere.

While the store is unreachable, units end with their lease. After that, this process may use its share: four fifths of
the limit, divided by the last known number of processes. For one whole period it uses at most what it had already used,
plus its part of what was free, because units used by other processes may still be in the window. All of this use is
reported when the store is back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from koo.options import NEVER
from koo.policies.units import LEASE_MS, LEASES_A_PERIOD, Grant, Told

LEASE_PART = 0.98
"""The part of a lease that is used. Ordinary clocks are right to a hundredth of a percent, but that of a virtual
machine may be off by one percent for a while. Two percent covers one clock that is fast and one that is slow."""
RENEW_PART = 0.7
"""When a lease is renewed, as a part of its length. The rest is the time for a slow reply to arrive."""
FLOAT_MAX = 10
"""A process that uses a limit alone keeps up to this many units although its pace is lower, so that a few calls cost
one trip to the store and not one each."""
FLOAT_PART = 20
"""At most a twentieth of the limit is kept that way: the units in hand of a killed process count as used."""
AWAY_PART = 0.8
"""The part of the limit that processes share while the store is unreachable. The last fifth is for processes that have
started since they were last counted."""
LATE = 61 / 60
"""A whole period, plus the sub-bucket by which a unit may leave the window late."""
TRIPS_A_LEASE = 4
"""A lease should last for at least four trips to the store; if the trips are slower, a longer lease is requested."""
LOST_S = 5.0
"""How long callers wait for an unreachable store. A locked file or a restarting server is back by then; after that
it is unlikely to return soon."""
LOOK_AGAIN_S = 0.1
"""How often a waiting call checks whether a store that has just become unreachable is back."""
LOOK_S = 5.0
"""How often an idle process sends a message, to learn how many processes there are and how much they use."""
LOOKS_A_LOOK = 100
"""With more processes than this, each sends it less often, so that all together send at most 20 messages a second."""


class Uses(Protocol):
    """This process's own use in the last period."""

    used: int

    def ages(self, now: float, units: int) -> list[tuple[float, int]]:
        """The last `units` that were used, newest first: at least how many seconds ago, and how many."""
        ...


class Hand:
    """This process's units of one limit; `ring` is called when a message should be sent immediately.

    `left` units may be used until `until` (in monotonic seconds, like all times here). `due_at`: when the next message
    must be sent at the latest. `shut_until`: when a unit may be free again. `is_lent`: units exist, but other processes
    hold them. `is_away`: the store is unreachable; `lost_at`: when it stopped replying. `others`: how many units other
    processes had used or held at `heard_at`. `processes`: how many share the store.
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
        """How many may be taken, and until when. `used`: how many this process used in the last period."""
        if self.left > 0 and now < self.until:
            self._in_share = False
            # The caller uses the units that are returned here without another call. So only two thirds are returned at
            # first. When they are used up, this is called once more, and a message is sent while a third is still left.
            if self.left > self._low:
                return self.left - max(self._low, 0), self.until
            self._low = -1  # ring once; the next reply sets it again
            self.due_at = now
            self._ring()
            return self.left, self.until
        if self.is_away or now < self._frozen_until:
            return self._share(now, used)
        return 0, now

    def _share(self, now: float, used: int) -> tuple[int, float]:
        """How many units this process may use on its own while the store is unreachable."""
        # Two bounds apply: the share, and in the first period also this process's use at the end of its lease plus its
        # part of the units that were free then. The share alone is not enough. If others had just used the whole
        # limit, 0.8 of it would be used again while their use is still in the window.
        if self._cut_at == NEVER:
            # All leases end soon after the store becomes unreachable. Then the free units belong to no process. A lone
            # process may use all of them.
            room = self.limit if self.processes == 1 else self._room // self.processes
            self._cut_at, self._cut_most = now, used + room
        most, until = self.share, NEVER
        if now < self._cut_at + self.period_s * LATE:
            most, until = min(most, self._cut_most), self._cut_at + self.period_s * LATE
        self._in_share = True
        return max(0, most - used), until

    def elsewhere(self, now: float) -> int:
        """How many units other processes have used, by the last reply; 0 if that is older than a period."""
        return self.others if now - self.heard_at < self.period_s else 0

    @property
    def share(self) -> int:
        """How many units per period this process may use while the store is unreachable."""
        return int(self.limit * AWAY_PART / self.processes)

    @property
    def is_alone(self) -> bool:
        """Whether this process now uses its own share, because the store is unreachable."""
        return self._cut_at != NEVER

    @property
    def sentence(self) -> str:
        """A sentence for people: that this process uses its own share, and why."""
        whose = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"the state store is unreachable, so each of {whose} may use its share of four fifths: {self.share}"

    def has(self, units: int, now: float, used: int) -> bool:
        """Whether this many units can be taken together, by a call that needs more than one."""
        # `units` holds back the third that is kept for the time of the next trip. A call that needs several units may
        # use that part too: it cannot take some of them now and the rest later.
        allowed, _ = self.units(now, used)
        return allowed >= units or (not self._in_share and now < self.until and self.left >= units)

    def book(self, units: int) -> None:
        """Book `units` that were taken of those that `units()` allowed."""
        self._spent += units
        if self._in_share:
            self._over += units
        else:
            self.left -= units
            self._used += units

    def refund(self, units: int, taken_at: float) -> None:
        """Give back `units` that were taken at `taken_at` but never used."""
        # They may already have been reported to the store as used. If such a unit were put back into the hand and used
        # later, it would count in the store's window from the first report, and would leave it too early after the real
        # use. So the next message asks the store to take them back instead.
        if taken_at < self._asked_at or self._flying is not None:
            self._undoing.append((units, taken_at))
            self.due_at = min(self.due_at, self._asked_at + RENEW_PART * self._lease_s)
            return
        alone = min(units, self._over)
        self._over -= alone
        self._used -= units - alone
        self.left += units - alone

    def clear(self, used: int | None) -> None:
        """An operator's reset of the limit; `used` is None if another process reports the reset to the store."""
        self._clears = used is not None
        # Uses that were not reported yet are forgotten too. Otherwise they would reach the store after it has emptied
        # its window, and would count in spite of the reset.
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
        """Whether a call that found no unit may wait for a reply."""
        # The store is not queried before a unit can be free: the last reply named that time, and otherwise each of many
        # refused calls would send a message. Waiting for a reply that is already on its way costs nothing.
        return not self.is_away and (self._flying is not None or now >= self.shut_until)

    def comes_home_at(self, now: float) -> float:
        """When units may arrive from other processes, or from a store that has just become unreachable; else
        infinite."""
        if self.lost_at <= now < self.lost_at + LOST_S:
            return max(self.shut_until, now + LOOK_AGAIN_S)
        return self.shut_until if self.is_lent else NEVER

    def lose(self, now: float) -> None:
        """Note that the store did not reply to the message sent at `now`."""
        self.lost_at = min(self.lost_at, now)

    def ask(self, now: float, count: Uses, need: int = 0, waiting: int = 0, *, is_last: bool = False) -> Told:
        """The next message to the store. `need`: the first waiting caller's need; `waiting`: that of all callers.

        `is_last`: this process ends, and keeps no unit.
        """
        self._take_pace(now)
        keep = 0 if is_last else self._keep(waiting)
        # The lease has ended. Its units can no longer be used here, so all are returned, and the number that would have
        # been kept is requested under a new lease.
        if now >= self.until:
            keep, waiting = 0, waiting + keep
        # Returned units leave the hand before they are reported. If they were reported first, one could be used here
        # after the store has granted it to another process.
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
        """How many units to take back that were reported as used but were not."""
        # The list is emptied before the message is sent: if the reply is lost, they are not taken back a second time.
        # The units are then lost for one period at most, which is harmless.
        undoing, self._undoing = self._undoing, []
        # Only units that the store still counts are taken back. It drops a unit one period after the report, and taking
        # back one that it has dropped would free a different one, which was used.
        last_s = self.period_s - 2 * self._lease_s
        return sum(units for units, taken_at in undoing if now - taken_at < last_s)

    def _take_pace(self, now: float) -> None:
        for_s = now - self._marked_at
        if for_s < self._lease_s / 4:
            return  # the use of a moment says little about a whole lease
        pace = (self._spent - self._marked) / for_s if math.isfinite(for_s) else 0.0
        self._pace = (self._pace[1], pace)
        self._marked, self._marked_at = self._spent, now

    def _keep(self, waiting: int) -> int:
        """How many units stay here: enough calls for two leases, and at least a few if no other process shares them."""
        pace = max(self._pace)
        if not pace and not waiting:
            return 0
        keep = int(2 * pace * self._lease_s)
        return keep if self._sharing > 1 else max(keep, min(FLOAT_MAX, self.limit // FLOAT_PART))

    def hear(self, grant: Grant, sent_at: float, now: float) -> None:
        """Process the store's reply to the message that was sent at `sent_at`."""
        # Without a message under way, this is the reply to one that was given up. It is ignored: the reply to the next
        # message carries the same totals.
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
        # Times until something happens count from the arrival of the reply: late by the trip, but never too early.
        # Times until something ends (`until`, the end of a lease) count from the request instead.
        is_short = bool(grant.free_in_ms) and self.left < told.need
        self.shut_until = now + grant.free_in_ms / 1000 if is_short else -NEVER
        self.is_lent = is_short and not grant.frozen_ms and grant.limit - grant.used >= told.need
        self._end_share(grant, sent_at)
        is_soon = self.has_news() or grant.frozen_ms > 0
        look_s = LOOK_S * max(1.0, self.processes / LOOKS_A_LOOK)
        self.due_at = sent_at + (RENEW_PART * self._lease_s if is_soon else look_s)
        # The next message is sent when a third is left. A third of two units is less than one, so then there is no
        # early message, and `due_at` decides alone.
        self._low = self.left // 3 if self.left > 2 else -1

    def _take_granted(self, grant: Grant, told: Told, sent_at: float) -> None:
        if grant.serial != self._serial:
            # The store has ended the lease that was reported, and has counted its outstanding units as used. Those
            # that are still in hand here must not be used any more.
            self._begin_lease(grant.serial)
        else:
            self._told = told.used
        self.left += grant.granted - self._granted
        self._granted = grant.granted
        self._lease_s = grant.lease_ms / 1000
        self.until = sent_at + self._lease_s * LEASE_PART

    def _end_share(self, grant: Grant, sent_at: float) -> None:
        """End this process's own share, or time its end if the store is frozen."""
        # The store is back, but grants nothing until every process has reported. Until then this process goes on with
        # its share. It stops one lease earlier, so that its last uses are reported before the store grants again.
        if grant.frozen_ms:
            self._frozen_until = sent_at + grant.frozen_ms / 1000 * LEASE_PART - self._lease_s
        else:
            self._frozen_until = -NEVER
            self._cut_at = NEVER

    def has_news(self) -> bool:
        """Whether there is anything to report or to return."""
        is_untold = self._used > self._told or self._over > 0 or bool(self._undoing)
        return self.left > 0 or is_untold or self._clears

    def give_up(self) -> None:
        """Give up a message that was not answered. The next one reports the same totals, or larger ones."""
        self._flying = None

    def begin_again(self) -> None:
        """In a forked child, or under a new name: drop the units in hand, which belong to another process."""
        self._flying = None
        self._begin_lease(0)
        self._over = 0
        self.until = self.due_at = -NEVER
