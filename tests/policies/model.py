"""A second breaker, written from the rules alone: slow and simple, with lists, to compare the real one with.

It keeps everything that has happened and computes its state from that. Only the counts of the window are passed in:
`test_window.py` tests when buckets are dropped, and `forgets` checks their bounds here. The rules, to which all tests
of the breaker refer:

    R1   A permit carries the generation in which it was granted. A result of an older generation changes nothing.
    R2   A permit settles once.
    R4   CLOSED: a success ends the failures in a row. After a long healthy time the streak shrinks by one.
    R5   CLOSED opens after a number of failures in a row, or if the window has enough calls and too large a share of
         them failed or were slow. Neutral and throttled calls do not count.
    R6   Running calls that are already slow count, as calls and as slow.
    R7   The open time is the recovery time, doubled for each opening of the streak up to a maximum. Jitter only
         lengthens it, and it is never shorter than the server's hint.
    R8   OPEN refuses until its time is over. Then the next admission or tick begins HALF_OPEN; reading changes nothing.
    R9   HALF_OPEN admits a limited number of probes at a time, and no more than the successes that it still needs. A
         probe has a lease, and has failed when the lease ends.
    R10  HALF_OPEN: enough successes close it, with an empty window.
    R11  HALF_OPEN: a failure opens it again, and the streak grows by one.
    R12  HALF_OPEN: a neutral or throttled probe returns its slot. Too many of them open it again, with the same streak.
    R13  An operator's act begins a new generation and ends all leases; a reset closes the breaker. A call that passes
         only by an override changes nothing.
    R15  A stream's silences count, and its reader's time does not. A reader that stays away for the length of a lease
         gives the probe's slot back.
    R17  Each change of phase is an event.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from koo.options import BreakerOptions
from koo.policies.breaker import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    NONE,
    OPEN,
    Override,
    Phase,
)
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, Verdict

EARLY_S = 1.0
"""The minimum length of an opening before a check may end it, in these tests."""


@dataclass
class Counts:
    """The counts of the window."""

    calls: int = 0
    failures: int = 0
    slow: int = 0


@dataclass
class Call:
    """A running call. `counts_in`: the number of the generation in which its result counts; None if it never does."""

    number: int
    counts_in: int | None
    given_at: float
    lease_ends_at: float | None = None
    kept: bool = False


@dataclass
class Model:
    """The rules R1 to R13, with `draw` = 0."""

    options: BreakerOptions
    slow_s: float
    now: float
    lease_s: float = 0.0
    phase: Phase = CLOSED
    override: Override = NONE
    life: int = 0
    row: int = 0
    row_counted_at: int = 0
    streak: int = 0
    primed: bool = False
    probes_max: int = 0
    asked: bool = False
    ok: int = 0
    inconclusive: int = 0
    opened_at: float = 0.0
    opens_until: float = 0.0
    healthy_since: float = 0.0
    idle_since: float = 0.0
    numbers: int = 0
    calls: dict[int, Call] = field(default_factory=dict)
    seen: list[tuple[float, bool, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lease_s = self.options.lease_s
        self.probes_max = self.options.probe_concurrency
        self.healthy_since = self.idle_since = self.now

    def clone(self) -> Model:
        new = Model.__new__(Model)
        new.__dict__.update(self.__dict__)
        new.calls = {number: Call(**call.__dict__) for number, call in self.calls.items()}
        new.seen = list(self.seen)
        return new

    def key(self) -> tuple[object, ...]:
        """The relevant part of the state."""
        options, now, life = self.options, self.now, self.life
        rest: tuple[object, ...]
        if self.phase is CLOSED:
            healthy_s = min(now - self.healthy_since, options.streak_heals_after_s) if self.streak else 0.0
            rest = (self.row, healthy_s)
        elif self.phase is OPEN:
            rest = (max(self.opens_until - now, 0.0), min(now - self.opened_at, EARLY_S), self.asked)
        else:
            rest = (self.ok, self.inconclusive, min(now - self.idle_since, 3 * options.recovery_s))
        calls = []
        for call in self.calls.values():
            if call.counts_in != life:
                calls.append((0.0, 0.0))
            elif call.lease_ends_at is not None:
                calls.append((1.0, max(call.lease_ends_at - now, 0.0)))
            else:
                hung_s = -1.0 if call.kept else min(now - call.given_at, self.slow_s)
                calls.append((2.0 + (call.number > self.row_counted_at), hung_s))
        fleet = self.primed, self.probes_max
        return self.phase, self.override, self.streak, fleet, rest, sorted(calls).__repr__()

    # ── admission ─────────────────────────────────────────────────────────────────────────────────────────────

    def probes(self) -> list[Call]:
        """The running probes."""
        if self.phase is not HALF_OPEN:
            return []
        return [call for call in self.calls.values() if call.counts_in == self.life]

    def has_room(self) -> bool:
        running = len(self.probes())
        return running < self.probes_max and self.ok + running < self.options.success_threshold

    def admit(self, counts: Counts) -> int | None:
        """The number of the call, or None if it is refused."""
        if self.override is FORCED_OPEN:
            return None
        counts_in: int | None = None
        if self.override is not DISABLED:
            if self.phase is not CLOSED or self.override is METRICS_ONLY:
                self.tick(counts)
            passes = self.phase is CLOSED or (self.phase is HALF_OPEN and self.has_room())
            if not passes and self.override is not METRICS_ONLY:
                return None
            counts_in = self.life if passes else None
        self.numbers += 1
        call = Call(self.numbers, counts_in, self.now)
        if self.phase is HALF_OPEN and counts_in is not None:
            call.lease_ends_at = self.now + self.lease_s
            self.idle_since = self.now
        self.calls[call.number] = call
        return call.number

    # ── settlement ────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, number: int, verdict: Verdict, slow: bool, hint_s: float, counts: Counts) -> bool:
        """End a call; returns whether its result counts."""
        call = self.calls.pop(number, None)
        if call is None or call.counts_in != self.life:
            return False
        if self.phase is CLOSED:
            self.settle_closed(call, verdict, slow, hint_s, counts)
        elif call.lease_ends_at is not None and self.now >= call.lease_ends_at:
            self.fail_probe(hint_s)
        elif verdict is SUCCESS:
            self.ok += 1
            if self.ok >= self.options.success_threshold:
                self.close()
        elif verdict is FAILURE:
            self.fail_probe(hint_s)
        else:
            self.inconclusive += 1
            if self.inconclusive >= self.options.inconclusive_max:
                self.open(hint_s)
        return True

    def settle_closed(self, call: Call, verdict: Verdict, slow: bool, hint_s: float, counts: Counts) -> None:
        if verdict is SUCCESS:
            self.row = 0
            self.seen.append((self.now, False, slow))
            if self.streak and self.now - self.healthy_since >= self.options.streak_heals_after_s:
                self.streak -= 1
                self.healthy_since = self.now
        elif verdict is FAILURE:
            if call.number > self.row_counted_at:
                self.row += 1
                self.row_counted_at = self.numbers
            self.seen.append((self.now, True, slow))
        elif verdict is NEUTRAL and slow:
            self.seen.append((self.now, False, True))
        else:
            return
        if (verdict is FAILURE or slow) and self.is_due(counts):
            self.open(hint_s)

    def outage(self, in_row: bool, counts: Counts) -> None:
        if self.phase is CLOSED and self.override in (NONE, METRICS_ONLY):
            self.row += in_row
            if in_row:
                self.row_counted_at = self.numbers
            self.seen.append((self.now, True, False))
            if self.is_due(counts):
                self.open(0.0)

    def hung(self) -> int:
        return sum(
            call.counts_in == self.life and not call.kept and self.now - call.given_at >= self.slow_s
            for call in self.calls.values()
        )

    def is_due(self, counts: Counts) -> bool:
        """True if the breaker must open by rules R5 and R6."""
        options, hung = self.options, self.hung()
        # Only with a failure in the window: an old failure does not confirm what other processes see now.
        if self.row >= (1 if self.primed else options.failure_threshold) and counts.failures:
            return True
        calls = counts.calls + hung
        if calls < options.calls_min:
            return False
        return (
            counts.failures / calls >= options.failure_rate
            or (counts.slow + hung) / calls >= options.slow_rate
        )

    def forgets(self, counts: Counts) -> str:
        """The error of the window, which dropped a recent call or kept an old one. Empty if the window is right."""
        options = self.options
        bucket_s = options.window_s / options.window_buckets
        old = [one for one in self.seen if one[0] > self.now - options.window_s]
        young = [one for one in self.seen if one[0] > self.now - (options.window_s - bucket_s)]
        for name, place in (("calls", None), ("failures", 1), ("slow", 2)):
            least, most = (
                sum(True if place is None else bool(one[place]) for one in some) for some in (young, old)
            )
            has = getattr(counts, name)
            if not least <= has <= most:
                return f"{has} {name}, not {least} to {most}"
        return ""

    # ── time, and the operator ────────────────────────────────────────────────────────────────────────────────

    def tick(self, counts: Counts) -> None:
        if self.phase is OPEN and self.now >= self.opens_until:
            self.phase = HALF_OPEN
            self.begin_life()
            self.idle_since = self.now
        elif self.phase is HALF_OPEN:
            ends = [call.lease_ends_at for call in self.probes() if call.lease_ends_at is not None]
            if any(end <= self.now for end in ends):
                self.fail_probe(0.0)
        elif self.phase is CLOSED and self.is_due(counts):
            self.open(0.0)

    def renew(self, number: int) -> None:
        call = self.calls[number]
        if call.lease_ends_at is not None and call.counts_in == self.life and self.phase is HALF_OPEN:
            call.lease_ends_at = self.now + self.lease_s

    def check_succeeded(self) -> None:
        idle = self.now - self.idle_since >= 3 * self.options.recovery_s
        if self.phase is HALF_OPEN and not self.probes() and idle:
            self.close()

    def answered(self) -> None:
        if self.phase is OPEN and self.now - self.opened_at >= EARLY_S:
            self.phase = HALF_OPEN
            self.begin_life()
            self.idle_since = self.now

    def told(self) -> None:
        """A probe in another process succeeded."""
        if self.phase is OPEN and not self.asked:
            self.phase = HALF_OPEN
            self.begin_life()
            self.idle_since = self.now

    def set_override(self, override: Override) -> None:
        self.override = override
        self.begin_life()

    def reset(self) -> None:
        self.override = NONE
        self.streak = 0
        self.primed = False
        self.close()

    # ── transitions ───────────────────────────────────────────────────────────────────────────────────────────

    def fail_probe(self, hint_s: float) -> None:
        self.streak += 1
        self.open(hint_s)

    def open(self, hint_s: float) -> None:
        guess_s = self.options.recovery_s
        for _ in range(self.streak):
            guess_s = min(guess_s * 2, max(self.options.open_s_max, self.options.recovery_s))
        self.opened_at = self.now
        self.asked = hint_s > guess_s
        self.opens_until = self.now + max(guess_s, min(hint_s, 31 * 86_400.0))
        self.phase = OPEN
        self.begin_life()

    def close(self) -> None:
        self.phase = CLOSED
        self.begin_life()
        self.row = 0
        self.row_counted_at = self.numbers
        self.healthy_since = self.now
        self.seen.clear()

    def begin_life(self) -> None:
        self.life += 1
        self.ok = self.inconclusive = 0
