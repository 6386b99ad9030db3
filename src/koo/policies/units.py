"""What a limit per minute or hour grants to a fleet: the store's half, decided over its rows, without I/O.

"60 a minute" is never 61 for all processes together. A process leases a block of units and hands them out itself, so
most calls ask the store nothing. A unit is in one of three places:

    room        limit − occupied − out
    out         leased to a process that has not reported what became of it
    occupied    used: leaves the window a whole period after it was reported; unreported, after the end of its lease

A process reports totals that only grow within a lease: `used`, and `back` (sent home unused). The larger number is the
truth, so a lost answer or a repeated message changes nothing. The store does not wait for a lease that has ended: what
is out counts as used at its last moment. A process that returns within the period reports what it did not use, and
starts a new lease. It counts a lease from when it asked, and 2 % short (`hand.py`), so two clocks need to agree on the
length of a second, and never on the time of day.

Units that were used while the store was away are reported as `over`. Other processes may have used some too, and not be
back yet: so the first report stops all grants of that limit for as long as a store takes to be found again, plus a
beat.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEASE_MS = 1_000
"""Units idle in one process come home within a second or two, and a killed one blocks its units no longer."""
LEASES_A_PERIOD = 60
"""A lease is at most this part of the period, because a unit may come back that late."""
LEASE_MS_MAX = 10_000
"""For a distant store, or a thousand processes: longer, and units would lie idle while other processes refuse calls."""
BUCKETS = 60
"""As finely as a single process counts (`limiter.py`)."""
SPREAD_MS = 10
"""A hundred processes that find no unit ask a hundred times a second together, and so do a thousand."""
FREEZE_MS = 6_000
"""A store is found again within five seconds of being back; then each process reports what it used meanwhile."""
LIMIT_STANDS_MS = 5_000
"""How long a reported limit keeps a higher one out."""


@dataclass(slots=True)
class Window:
    """One limit's row. `occupied`: how many units were reported in which sub-bucket of the period, oldest first.

    `serial` numbers leases; `limit_at_ms`: when a process last reported this limit.
    """

    limit: int = 0
    limit_at_ms: int = 0
    serial: int = 0
    frozen_until_ms: int = 0
    occupied: list[tuple[int, int]] = field(default_factory=list)

    def add(self, at_ms: int, units: int, bucket_ms: int) -> None:
        """`units` were used, at `at_ms` at the latest."""
        if units <= 0:
            return
        bucket = at_ms // bucket_ms
        for place in range(len(self.occupied), -1, -1):
            if place and self.occupied[place - 1][0] == bucket:
                self.occupied[place - 1] = (bucket, self.occupied[place - 1][1] + units)
                return
            if not place or self.occupied[place - 1][0] < bucket:
                self.occupied.insert(place, (bucket, units))
                return

    def take_out(self, units: int) -> None:
        """`units` of those reported were never used."""
        # The oldest are removed: a later unit that was not used covers what was really used then. The other way round a
        # unit would come back while the use that it stood for is still in the window.
        while units > 0 and self.occupied:
            units -= self._take_from(0, units)

    def take_out_of(self, at_ms: int, units: int, bucket_ms: int) -> None:
        """`units` of those added for `at_ms` were never used."""
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
        """Forget what has left the window."""
        first = now_ms // bucket_ms - BUCKETS
        while self.occupied and self.occupied[0][0] < first:
            del self.occupied[0]

    @property
    def used(self) -> int:
        """How many units are in the window."""
        return sum(count for _, count in self.occupied)


@dataclass(slots=True)
class Lease:
    """What one process has of one limit. Totals of this lease only; `serial` separates it from the ones before.

    `number`: of the message that changed it last. `lapsed`: units that counted as used when it ended unreported.
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
        """Units whose fate is not known yet."""
        return 0 if self.lapsed else self.granted - self.used - self.back


@dataclass(frozen=True, slots=True)
class Told:
    """What a process reports about one limit, and what it asks for.

    `number` grows with each message. `granted`: of its lease, as far as it knows. `over`: what was used without a lease
    since the last answer, as pairs of how long ago (ms) and how many. `undone`: reported as used, but not used after
    all; reported once, so that a lost answer takes nothing back twice. `need`: what the first waiting caller lacks;
    `want`: what all of them and the next moments lack. `window`: what it used in the last period, for a store that has
    forgotten. `lease_ms`: the shortest lease that its way to the store allows. `clears`: an operator has reset the
    limit.
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
    """The store's answer about one limit. `granted` is the total of the lease `serial`, which lasts for `lease_ms`.

    `used` units of `limit` are in the window and `out` ones on lease, for all processes. `free_in_ms`: when to ask
    again for an unmet need. `frozen_ms`: how long nothing is granted, because the store was away. `processes` are in
    the fleet, and `sharing` of them use this limit now.
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
    """What one message about one limit touches. `own`: this process's lease. `lapsed`: others that have just ended.

    `others`: how many other processes have a lease; `others_out`: how many units. `processes`: how many report at all.
    """

    window: Window
    own: Lease | None = None
    lapsed: list[Lease] = field(default_factory=list)
    others: int = 0
    others_out: int = 0
    processes: int = 1


def bucket_ms_of(period_ms: int) -> int:
    """How precisely the window knows when a unit was used."""
    return max(1, period_ms // BUCKETS)


def receive(rows: Rows, told: Told, now_ms: int) -> Grant:
    """Take in what a process reports about a limit, and decide what it gets; changes `rows`."""
    window, bucket_ms = rows.window, bucket_ms_of(told.period_ms)
    is_repeated = rows.own is not None and told.number <= rows.own.number
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
    is_known = bool(told.want or told.undone)  # if this message is repeated, its number is known
    if own is None and (units or is_known):
        window.serial += 1
        own = rows.own = Lease(window.serial, told.number, now_ms)
    if own is not None:
        own.granted += units
        # Never shorter than before: if this answer is lost, the process still has the lease that it knows. A process
        # that was granted nothing still counts among those that share, until it is to ask again.
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
    """Leases that have ended unreported: all of their units count as used at the last moment."""
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
        # The store is an older copy of itself. Each process knows its own part of what was lost, and reports it.
        window.add(now_ms, told.window, bucket_ms)
        window.serial = told.serial
        window.frozen_until_ms = now_ms + FREEZE_MS
    elif own is not None and not is_repeated:
        rows.own = _take_totals(window, own, told, now_ms, bucket_ms)
    if not is_repeated:
        window.take_out(told.undone)
    for ago_ms, units in told.over:
        window.add(now_ms - ago_ms, units, bucket_ms)
    # Once per outage: otherwise each late report would stop the other processes again.
    if told.over and now_ms >= window.frozen_until_ms + FREEZE_MS:
        window.frozen_until_ms = now_ms + FREEZE_MS


def _take_totals(window: Window, own: Lease, told: Told, now_ms: int, bucket_ms: int) -> Lease | None:
    """Take in what became of a lease; returns what is left of it."""
    own.number = told.number
    if own.until_ms <= now_ms or own.serial != told.serial:
        # It ended unreported, or the process never heard of it. What it sent home, and what it does not know was
        # granted, was not used.
        never_heard = own.granted - (told.granted if own.serial == told.serial else 0)
        unused = max(0, never_heard) + (max(0, told.back - own.back) if own.serial == told.serial else 0)
        window.take_out_of(own.until_ms, min(own.lapsed, unused), bucket_ms)
        return None
    window.add(now_ms, told.used - own.used, bucket_ms)
    own.used = max(own.used, told.used)
    own.back = max(own.back, told.back)
    return own


def _take_limit(window: Window, told: Told, now_ms: int) -> None:
    """A lower limit counts at once; a higher one when the lower was not reported for `LIMIT_STANDS_MS`."""
    is_first = not window.limit_at_ms
    if is_first or told.limit < window.limit or window.limit_at_ms < now_ms - LIMIT_STANDS_MS:
        window.limit, window.limit_at_ms = told.limit, now_ms
    elif told.limit == window.limit:
        window.limit_at_ms = now_ms


def _fitting(rows: Rows, told: Told) -> int:
    """How many units a process gets: all it needs or nothing, and its share of what it wants."""
    room = rows.window.limit - rows.window.used - rows.others_out - (rows.own.out if rows.own else 0)
    if room < told.need or room <= 0:
        return 0
    share = room
    if rows.others:
        # While much is left, half of it, divided: granting all to the first process that asks would leave the others
        # waiting for a whole lease. When little is left, a lease's own part: smaller blocks would cost more trips,
        # larger ones would lie idle in one hand while another process refuses calls.
        processes = rows.others + 1
        block = rows.window.limit * LEASE_MS // told.period_ms // processes
        share = max(block, room // (2 * processes))
    return min(room, max(told.need, min(told.want, share)))


def _lease_ms(rows: Rows, told: Told) -> int:
    """Long enough for the way to the store, and for the number of processes."""
    usual = min(LEASE_MS, max(1, told.period_ms // LEASES_A_PERIOD))
    return max(usual, min(max(told.lease_ms, SPREAD_MS * (rows.others + 1)), LEASE_MS_MAX))


def _free_in_ms(rows: Rows, told: Told, now_ms: int, bucket_ms: int) -> int:
    """When to ask again: not before this many units have left the window, or may come home from other processes."""
    window = rows.window
    if now_ms < window.frozen_until_ms:
        return window.frozen_until_ms - now_ms
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
