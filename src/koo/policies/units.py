"""Limits per minute or hour for a fleet: the store's half. It decides what is leased, over its rows, without I/O.

"60 a minute" is never 61 for all processes together. A process leases a block of units and hands them out itself, so
most calls need no trip to the store. A unit is in one of three places:

    room        limit − occupied − out
    out         leased to a process that has not reported yet whether it was used
    occupied    used; it leaves the window a whole period after its use was reported, or, if it never was, a whole
                period after its lease ended

A process reports totals that only grow within a lease: `used`, and `back` (returned unused). The larger number wins, so
a lost reply or a repeated message does no harm. The store does not wait for a lease that has ended: its outstanding
units count as used at its last moment. A process that returns within the period reports what it did not use, and starts
a new lease. It counts a lease from its own request, and 2 % short (`hand.py`). So the two clocks must agree on the
length of a second, but not on the time of day.

Units that were used while the store was unreachable are reported as `over`. Other processes may have used some too and
not have reported them. So the first report stops all grants of that limit for as long as processes take to find the
store again, plus a beat.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEASE_MS = 1_000
"""The usual length of a lease. Units that are idle in one process return to the store within a second or two, and a
killed process blocks its units no longer than that."""
LEASES_A_PERIOD = 60
"""A lease is at most a sixtieth of the period: an unreported unit counts as used at the end of its lease, so it may
leave the window late by a whole lease."""
LEASE_MS_MAX = 10_000
"""The longest lease, for a distant store or a thousand processes. With a longer one, units would be idle in one process
while others refuse calls."""
BUCKETS = 60
"""Sub-buckets of a period: the same resolution as in a single process (`limiter.py`)."""
SPREAD_MS = 10
"""How much later each further process sends its next request. So all processes that wait for a unit send a hundred
messages a second together, whether they are a hundred or a thousand."""
FREEZE_MS = 6_000
"""Processes find a returned store within five seconds; a second later each has reported what it used without it."""
LIMIT_STANDS_MS = 5_000
"""After a limit was last reported, this long passes before a higher one is accepted (the reason is in
`treasury.py`)."""


@dataclass(slots=True)
class Window:
    """One limit's row. `occupied`: pairs of a sub-bucket's number and the units used in it, oldest first.

    `serial`: the number of the last lease; `limit_at_ms`: when a process last reported this limit.
    """

    limit: int = 0
    limit_at_ms: int = 0
    serial: int = 0
    frozen_until_ms: int = 0
    occupied: list[tuple[int, int]] = field(default_factory=list)

    def add(self, at_ms: int, units: int, bucket_ms: int) -> None:
        """Count `units` that were used at `at_ms` or earlier."""
        if units <= 0:
            return
        bucket = at_ms // bucket_ms
        # The list is searched from its end, where nearly every report belongs. A lapsed lease, or use without the
        # store, belongs further back. If it were appended, it would stay in the window up to a period too long.
        for place in range(len(self.occupied), -1, -1):
            if place and self.occupied[place - 1][0] == bucket:
                self.occupied[place - 1] = (bucket, self.occupied[place - 1][1] + units)
                return
            if not place or self.occupied[place - 1][0] < bucket:
                self.occupied.insert(place, (bucket, units))
                return

    def take_out(self, units: int) -> None:
        """Remove `units` that were reported as used, but were not."""
        # It is no longer known when they were reported, so the oldest units are removed. An unused unit then stays in
        # the window in place of an older, used one, and leaves it no earlier than the used one should. If the youngest
        # were removed, the unused unit would take the place of a later use, and leave before a period has passed since
        # that use.
        while units > 0 and self.occupied:
            units -= self._take_from(0, units)

    def take_out_of(self, at_ms: int, units: int, bucket_ms: int) -> None:
        """Remove `units` that were counted at `at_ms`, but were never used."""
        for place, (bucket, _) in enumerate(self.occupied):
            if bucket == at_ms // bucket_ms:
                self._take_from(place, units)
                return

    def _take_from(self, place: int, units: int) -> int:
        bucket, count = self.occupied[place]
        if units < count:
            self.occupied[place] = (bucket, count - units)
            return units
        del self.occupied[place]
        return count

    def roll(self, now_ms: int, bucket_ms: int) -> None:
        """Drop the sub-buckets that have left the window."""
        # `BUCKETS` full sub-buckets and the current one stay: a unit used at the end of a sub-bucket must not leave
        # before a whole period has passed for it too.
        first = now_ms // bucket_ms - BUCKETS
        while self.occupied and self.occupied[0][0] < first:
            del self.occupied[0]

    @property
    def used(self) -> int:
        """How many units are in the window."""
        return sum(count for _, count in self.occupied)


@dataclass(slots=True)
class Lease:
    """One process's lease of one limit. The totals are of this lease only; `serial` tells it from earlier ones.

    `number`: that of the last message that changed it. `lapsed`: the units that were counted as used when the lease
    ended without a report.
    """

    serial: int
    number: int
    until_ms: int
    granted: int = 0
    used: int = 0
    undone: int = 0
    back: int = 0
    lapsed: int = 0

    @property
    def out(self) -> int:
        """Outstanding units: neither reported as used yet nor returned."""
        return 0 if self.lapsed else self.granted - self.used - self.back


@dataclass(frozen=True, slots=True)
class Told:
    """One process's report about one limit, and its request.

    `number` grows with each message. `granted`: the total of its lease, as far as the process has received it. `over`:
    units used without a lease since the last reply, as pairs of how long ago (ms) and how many. `undone`: units that
    were reported as used, but were not; reported only once, so that a lost reply cannot take them back twice. `need`:
    how many units the first waiting caller lacks; `want`: how many all waiting callers and the calls expected next lack
    together. `window`: how many this process used in the last period, for a store that has lost its rows. `lease_ms`:
    the shortest lease that suits the trip to the store. `clears`: an operator has reset the limit.
    """

    name: str
    period_ms: int
    limit: int
    number: int
    serial: int = 0
    granted: int = 0
    used: int = 0
    undone: int = 0
    back: int = 0
    over: tuple[tuple[int, int], ...] = ()
    need: int = 0
    want: int = 0
    window: int = 0
    lease_ms: int = 0
    clears: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """The store's reply about one limit. `granted` is the total of the lease `serial`, which lasts for `lease_ms`.

    Over all processes, `used` units of `limit` are in the window and `out` are on lease. `free_in_ms`: after how long
    to request an unmet need again. `frozen_ms`: for how long nothing is granted, because the store was unreachable or
    has lost rows. `processes`: how many are in the fleet; `sharing`: how many of them use this limit now.
    """

    name: str
    limit: int
    serial: int
    granted: int
    lease_ms: int
    used: int
    out: int
    processes: int
    sharing: int
    free_in_ms: int = 0
    frozen_ms: int = 0


@dataclass(slots=True)
class Rows:
    """The rows that one message about one limit touches.

    `own`: this process's lease. `lapsed`: leases of other processes that have just ended. `others`: how many other
    processes have a lease; `others_out`: their outstanding units. `processes`: how many processes are in the fleet.
    """

    window: Window
    own: Lease | None = None
    lapsed: list[Lease] = field(default_factory=list)
    others: int = 0
    others_out: int = 0
    processes: int = 1


def bucket_ms_of(period_ms: int) -> int:
    """The length of a sub-bucket: how precisely the window records when a unit was used."""
    return max(1, period_ms // BUCKETS)


def receive(rows: Rows, told: Told, now_ms: int) -> Grant:
    """Process a process's report about a limit, and decide what it is granted; changes `rows`."""
    window, bucket_ms = rows.window, bucket_ms_of(told.period_ms)
    # The network may deliver a message twice, or after a newer one. Such a message is answered, but grants nothing: its
    # reply may never be read, and the units would be out for a lease.
    is_repeated = rows.own is not None and told.number <= rows.own.number
    # The order matters. Ended leases come first, so that this process's report can correct what was assumed about its
    # own. Then the report is processed, which frees the returned units, and only then the decision is made about the
    # room that is left.
    _lapse(rows, now_ms, bucket_ms)
    _take_told(rows, told, now_ms, bucket_ms, is_repeated=is_repeated)
    _take_limit(window, told, now_ms)
    if told.clears:
        window.occupied.clear()
    window.roll(now_ms, bucket_ms)
    own = rows.own
    units = 0 if is_repeated or now_ms < window.frozen_until_ms else _fitting(rows, told)
    lease_ms = _lease_ms(rows, told)
    free_in_ms = _free_in_ms(rows, told, now_ms, bucket_ms) if units < told.need else 0
    # The lease's row also remembers the message's number. A message that requests or undoes something needs the row
    # even if it was granted nothing: if it arrives a second time, it must be recognised, or it would be granted or
    # undone twice.
    is_known = bool(told.want or told.undone)
    if own is None and (units or is_known):
        window.serial += 1
        own = rows.own = Lease(window.serial, told.number, now_ms)
    if own is not None:
        own.granted += units
        # The lease never becomes shorter: if this reply is lost, the process goes on with the lease that it has, and
        # the store must not count its units as used before that one ends. A process that was granted nothing still
        # counts as one that shares the limit until its next request.
        lasts_ms = lease_ms if own.out else max(lease_ms, free_in_ms)
        own.until_ms = max(own.until_ms, now_ms + lasts_ms)
        own.undone += 0 if is_repeated else told.undone
        if not own.out and not is_known:
            rows.own = None
    return Grant(
        name=told.name,
        limit=window.limit,
        serial=0 if own is None else own.serial,
        granted=0 if own is None else own.granted,
        lease_ms=lease_ms,
        used=window.used,
        out=rows.others_out + (0 if own is None else own.out),
        processes=max(rows.processes, rows.others + 1),
        sharing=rows.others + 1,
        free_in_ms=free_in_ms,
        frozen_ms=max(0, window.frozen_until_ms - now_ms),
    )


def _lapse(rows: Rows, now_ms: int, bucket_ms: int) -> None:
    """Count the outstanding units of leases that have ended as used, at the last moment of their lease."""
    # The process may have used them until then without ever reporting it. If they were counted earlier, they would
    # leave the window before a whole period has passed since that use.
    leases = [*rows.lapsed]
    if rows.own is not None and rows.own.until_ms <= now_ms:
        leases.append(rows.own)
    for lease in leases:
        out = lease.out
        rows.window.add(lease.until_ms, out, bucket_ms)
        lease.lapsed += out


def _take_told(rows: Rows, told: Told, now_ms: int, bucket_ms: int, *, is_repeated: bool) -> None:
    window, own = rows.window, rows.own
    if told.serial > window.serial:
        # The process has a newer lease than the store ever granted, so the store is an older copy of itself. What the
        # window has lost is known only to the processes, each of which reports its own use of the last period. Nothing
        # is granted until all of them have had the time to do so.
        window.add(now_ms, told.window, bucket_ms)
        window.serial = told.serial
        window.frozen_until_ms = now_ms + FREEZE_MS
    elif own is not None and not is_repeated:
        rows.own = _take_totals(window, own, told, now_ms, bucket_ms)
    if not is_repeated:
        window.take_out(told.undone)
    # `over` is counted even if the message is repeated, and is reported again after a lost reply. So it may be counted
    # twice, which refuses some calls for one period. If it were left out, the limit could be exceeded.
    for ago_ms, units in told.over:
        window.add(now_ms - ago_ms, units, bucket_ms)
    # One freeze per outage. If each report began one, the processes that return one after another would stop the
    # grants again and again.
    if told.over and now_ms >= window.frozen_until_ms + FREEZE_MS:
        window.frozen_until_ms = now_ms + FREEZE_MS


def _take_totals(window: Window, own: Lease, told: Told, now_ms: int, bucket_ms: int) -> Lease | None:
    """Process the totals of a lease; returns the lease, or None if it is over."""
    own.number = told.number
    if own.until_ms <= now_ms or own.serial != told.serial:
        # It ended without a report, or the reply that granted it was lost. All of its units were counted as used. Two
        # kinds of them certainly were not: those that the process returned, and those of a grant that it never
        # received. They are taken out of the sub-bucket that they were counted in.
        never_heard = own.granted - (told.granted if own.serial == told.serial else 0)
        unused = max(0, never_heard) + (max(0, told.back - own.back) if own.serial == told.serial else 0)
        window.take_out_of(own.until_ms, min(own.lapsed, unused), bucket_ms)
        return None
    window.add(now_ms, told.used - own.used, bucket_ms)
    own.used = max(own.used, told.used)
    own.back = max(own.back, told.back)
    return own


def _take_limit(window: Window, told: Told, now_ms: int) -> None:
    """Accept a lower limit immediately, and a higher one if the lower was not reported for `LIMIT_STANDS_MS`."""
    is_first = not window.limit_at_ms
    if is_first or told.limit < window.limit or window.limit_at_ms < now_ms - LIMIT_STANDS_MS:
        window.limit, window.limit_at_ms = told.limit, now_ms
    elif told.limit == window.limit:
        window.limit_at_ms = now_ms


def _fitting(rows: Rows, told: Told) -> int:
    """How many units to grant: all that the first caller needs or nothing, and a share of what the process wants."""
    room = rows.window.limit - rows.window.used - rows.others_out - (rows.own.out if rows.own else 0)
    if room < told.need or room <= 0:
        return 0
    share = room
    if rows.others:
        # While much is left, a process gets an equal part of one half. If the first request got everything, the
        # others would wait for a whole lease. When little is left, a process gets its average use in one lease:
        # smaller blocks would cost more trips, and larger ones would be idle here while another process refuses calls.
        processes = rows.others + 1
        block = rows.window.limit * LEASE_MS // told.period_ms // processes
        share = max(block, room // (2 * processes))
    return min(room, max(told.need, min(told.want, share)))


def _lease_ms(rows: Rows, told: Told) -> int:
    """The length of a lease, which grows with the trip to the store and with the number of processes."""
    usual = min(LEASE_MS, max(1, told.period_ms // LEASES_A_PERIOD))
    return max(usual, min(max(told.lease_ms, SPREAD_MS * (rows.others + 1)), LEASE_MS_MAX))


def _free_in_ms(rows: Rows, told: Told, now_ms: int, bucket_ms: int) -> int:
    """After how many milliseconds to send the next request: when enough units have left the window, or may have been
    returned."""
    window = rows.window
    if now_ms < window.frozen_until_ms:
        return window.frozen_until_ms - now_ms
    # What leaves the window is known exactly, so an earlier request is useless. Units on lease to other processes may
    # be returned at any time. Half a lease is a compromise: a longer wait leaves returned units idle, a shorter one
    # costs more messages.
    spread_ms = SPREAD_MS * (rows.others + 1)
    missing = told.need - (window.limit - window.used - rows.others_out)
    at_ms = now_ms + told.period_ms
    for bucket, count in window.occupied:
        missing -= count
        if missing <= 0:
            at_ms = (bucket + BUCKETS + 1) * bucket_ms
            break
    if rows.others_out:
        at_ms = min(at_ms, now_ms + _lease_ms(rows, told) // 2)
    return max(at_ms - now_ms, spread_ms)
