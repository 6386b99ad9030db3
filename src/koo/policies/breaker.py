"""The circuit breaker: rules R1 to R13 of the semantics, without a clock, dice or `await`.

    CLOSED ── failures in a row, or too large a share ──▶ OPEN
    OPEN ── its time is over, or a database answers again ──▶ HALF_OPEN
    HALF_OPEN ── enough probes succeed ──▶ CLOSED
    HALF_OPEN ── a probe fails, hangs, or too many are inconclusive ──▶ OPEN, for longer

Each change of phase raises the generation, and a permit carries the generation in which it was granted. So a late
result changes nothing: without this fence one old success would close a breaker that has just opened, and one old
failure would open one that has just closed.

In HALF_OPEN a permit is a lease with an end. Without the end one hung probe would keep the breaker half open forever. A
lease past its end is a failed probe, whether the clock finds it or the probe's own late result.

`override` is the operator's, and independent of the phases: FORCED_OPEN refuses, DISABLED and METRICS_ONLY admit
everything. A call that passes only because of an override gets a permit outside all generations: it is counted, and
moves nothing.

Times are monotonic seconds, passed in. `draw` returns a number in [0, 1), and is called only when a trip needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from koo.errors import Failure, describe_s
from koo.events import CircuitClosed, CircuitHalfOpened, CircuitOpened, CircuitPrimed, Event, OverrideSet
from koo.openings import Act, Rule
from koo.options import NEVER, BreakerOptions
from koo.policies.diary import PROBES, Diary
from koo.policies.opening_times import HINT_S_MAX, IDLE_RECOVERIES, OPEN_JITTER, UNIT_S
from koo.policies.overrides import ITS_TIME_WAS_OVER, failed_probes, in_a_row, why_forced
from koo.policies.permit import OUTSIDE, Permit
from koo.policies.phases import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    NONE,
    OPEN,
    TRANSITIONS,
    Override,
    Phase,
    Trigger,
)
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, Verdict
from koo.policies.window import Window

__all__ = [
    "CLOSED", "DISABLED", "FORCED_OPEN", "HALF_OPEN", "METRICS_ONLY", "NONE", "OPEN", "TRANSITIONS",
    "Breaker", "Draw", "Override", "Phase", "Trigger",
]  # fmt: skip

Draw = Callable[[], float]


class Breaker:
    """One breaker. `happened` collects events, for the caller to publish after the step, outside this section.

    `early_s`: how long an opening lasts before checks that ask what calls would ask may end it. Only a database has
    such checks: an unbilled one of an AI service shows that it can be reached, not that it answers. `early_at`: when
    that is expected, as the checks go. `cause`: what opened it; `reason`: the same, with the last error. `last_error`:
    what the last failed call or check met, written by its guard before settling; a success does not clear it.
    `act` set the override, until `act_ends_at`. `refused`: calls that it refused; `passed`: that it would have refused.
    `incident`: the record of its last opening, which the recorder writes here.
    """

    __slots__ = (
        "_by_failures", "_counted_serial", "_guess_s", "_idle_since", "_newest", "_older", "_probes",
        "_resting", "_serial", "act", "act_ends_at", "cause", "closed_at", "closed_by", "consecutive", "diary",
        "early_at", "early_s", "generation", "happened", "incident", "inconclusive", "last_error", "lease_s",
        "leases", "name", "ok", "open_for_s", "opened_at", "options", "override", "passed", "phase", "primed",
        "probes_max", "reason", "refused", "slow_s", "stale", "streak", "threshold", "trips", "window",
    )  # fmt: skip

    act: Act | None
    closed_at: float
    closed_by: Trigger | None
    leases: list[Permit]
    _counted_serial: int
    _resting: dict[Permit, float]

    def __init__(self, name: str, options: BreakerOptions, slow_s: float, now: float) -> None:
        self.name, self.options = name, options
        self.slow_s = slow_s
        self.lease_s = options.lease_s
        self.early_s = self.act_ends_at = NEVER
        self.primed, self.threshold = "", options.failure_threshold
        self.probes_max = options.probe_concurrency
        self.phase = CLOSED
        self.override, self.act = NONE, None
        self.generation = self.refused = self.passed = 0
        self.diary = Diary()
        self.window = Window(options.window_s, options.window_buckets, now)
        self.streak = self.stale = self.trips = 0
        self.reason = self.cause = self.incident = ""
        self._by_failures, self._probes = False, 0
        self.last_error: Failure | None = None
        self.opened_at = self.open_for_s = self._guess_s = 0.0
        self._newest: Permit | None = None  # of the running ones; kept apart, because most calls run alone
        self._older: dict[int, Permit] = {}  # by serial, so the oldest come first
        self.happened: list[Event] = []
        self._serial = 0
        self.closed_by = None
        self._begin(now)
        self._be_closed(now)

    # ── admission ─────────────────────────────────────────────────────────────────────────────────────────────

    def refuses(self, now: float) -> bool:
        """Whether `admit` would refuse. Takes and changes nothing."""
        if self.override is not NONE:
            return self.override is FORCED_OPEN
        if self.phase is CLOSED:
            return False
        return (self.phase is OPEN and now < self.opens_until()) or not self._has_lease()

    def admit(self, now: float, draw: Draw) -> Permit | None:
        """A permit, or None: then `refusal` says why and when to come back."""
        generation = self.generation
        if self.phase is not CLOSED or self.override is not NONE:
            gate = self._gate(now, draw)
            if gate is None:
                return None
            generation = gate
        self._serial = serial = self._serial + 1
        permit = Permit(generation, serial, now)
        newest = self._newest
        if newest is not None:
            self._older[newest.serial] = newest
        self._newest = permit
        if self.phase is HALF_OPEN and generation != OUTSIDE:
            self._lend(permit, now)
            self.leases.append(permit)
            self._idle_since = now
        return permit

    def _gate(self, now: float, draw: Draw) -> int | None:
        """The generation to admit under when it is not simply closed; None refuses."""
        # The operator's word comes before the tick: a call that is refused or admitted whatever the phase must not be
        # what trips or half opens the breaker. METRICS_ONLY comes last, because there the breaker carries on as if it
        # decided, and only its refusal is not enforced: decided before the tick, it would never test recovery.
        if self.override is FORCED_OPEN:
            return None
        if self.override is DISABLED:
            return OUTSIDE
        self.tick(now, draw)
        if self.phase is CLOSED or (self.phase is HALF_OPEN and self._has_lease()):
            return self.generation
        self.passed += self.override is METRICS_ONLY
        return OUTSIDE if self.override is METRICS_ONLY else None

    def refusal(self, now: float) -> tuple[str, float]:
        """Why it refuses, and in how many seconds to come back."""
        if self.override is FORCED_OPEN:
            # Its end is noticed with a tick; without one, no time would be true.
            return f"the circuit was {why_forced(self.act)}", max(self.act_ends_at - now, 0.0) + UNIT_S
        # Without a unit of the fleet's, another process probes, and a unit may come with the next beats.
        least_s = 0.0 if self.probes_max else UNIT_S
        if self.phase is OPEN:
            wait_s = min(self.opens_until(), self.early_at) - now
            return f"the circuit is open after {self.reason}", max(least_s, wait_s)
        ends = (self._resting.get(permit, permit.lease_ends_at) for permit in self.leases)
        ends_at = min(ends, default=now)
        return f"recovery is being tested after {self.reason}", max(least_s, ends_at - now)

    def opens_until(self) -> float:
        """When an open breaker begins to test recovery, in monotonic seconds."""
        return self.opened_at + self.open_for_s

    # ── settlement ────────────────────────────────────────────────────────────────────────────────────────────

    def settle(
        self, permit: Permit, verdict: Verdict, slow: bool, now: float, draw: Draw, hint_s: float = 0.0
    ) -> bool:
        """End a permit; False if it had ended before, or came too late to count.

        A NEUTRAL call that is `slow` was cut short by its caller's deadline when it was already slow: it counts as a
        slow call, not in the row. Otherwise a hung backend behind short deadlines would never be seen.
        """
        if permit.settled:
            return False
        permit.settled = True
        if permit is self._newest:
            self._newest = None
        else:
            del self._older[permit.serial]
        if permit.generation != self.generation:
            self.stale += permit.generation != OUTSIDE
            return False
        if self.phase is not CLOSED:
            if permit.is_over(now):
                self._fail_probe(True, now, draw, hint_s)
            else:
                self._settle_probe(permit, verdict, now, draw, hint_s)
        elif verdict is SUCCESS:
            self.consecutive = 0
            self.window.record(False, slow, now)
            if self.streak:
                self._heal_streak(now)
            if slow:
                self.diary.note(now, now - permit.given_at, "slow")
                self._trip_if_due(now, draw, hint_s)
        elif verdict is FAILURE:
            in_row = self._count_failure(permit)
            self.window.record(True, slow, now)
            self.diary.note(now, now - permit.given_at, "failed", self.last_error, in_row)
            self._trip_if_due(now, draw, hint_s)
        elif slow and verdict is NEUTRAL:
            self.window.record(False, True, now)
            self.diary.note(now, now - permit.given_at, "cut")
            self._trip_if_due(now, draw, hint_s)
        return True

    def _count_failure(self, permit: Permit) -> int:
        """One reset that hits fifty running calls is one step (the others: 0); five failures in succession are five.

        By serial number, not by time: two events in one tick of the clock have an order too.
        """
        if permit.serial > self._counted_serial:
            self.consecutive += 1
            self._counted_serial = self._serial
            return self.consecutive
        return 0

    def count_outage(self, in_row: bool, now: float, draw: Draw) -> None:
        """A failure that another breaker saw on the same host: the rate counts all, the row only what was a step there.

        One reset that hits fifty calls of ten models is one step for each of them, not ten or fifty.
        """
        if self.phase is CLOSED and (self.override is NONE or self.override is METRICS_ONLY):
            if in_row:
                self.consecutive += 1
                self._counted_serial = self._serial
            self.window.record(True, False, now)
            self.diary.note(now, 0.0, "failed_elsewhere", self.last_error, self.consecutive if in_row else 0)
            self._trip_if_due(now, draw, 0.0)

    @property
    def marks(self) -> int:
        """Grows with each failure that is a step: one more in the row, or past a threshold."""
        return self.consecutive + self.trips

    def _heal_streak(self, now: float) -> None:
        if now - self.closed_at >= self.options.streak_heals_after_s:
            self.streak -= 1
            self.closed_at = now

    def _trip_if_due(self, now: float, draw: Draw, hint_s: float) -> None:
        cause, rule = self._why_trip(now)
        if rule is not None:
            self.cause, self._by_failures, self._probes = cause, rule != "slow_rate", 0
            self._trip(Trigger.TRIPPED, rule, self._with_last(cause), now, draw, hint_s)

    def _why_trip(self, now: float) -> tuple[str, Rule | None]:
        """Why it has to open, and by which rule; None if it need not."""
        options, window = self.options, self.window
        # One old failure, with no calls after it, does not confirm what others see now.
        if self.consecutive >= self.threshold and window.failures:
            meanwhile = f" while {self.primed}" if self.primed else ""
            return in_a_row(self.consecutive) + meanwhile, "failures_in_a_row"
        hung = len(self._hung(now))
        calls, slow = window.calls + hung, window.slow + hung
        if calls < options.calls_min:
            return "", None
        if window.failures >= options.failure_rate * calls:
            return f"{window.failures} failures in {calls} calls", "failure_rate"
        if slow >= options.slow_rate * calls:
            return f"{slow} slow calls of {calls} ({describe_s(self.slow_s)} or longer)", "slow_rate"
        return "", None

    def _with_last(self, what: str, joint: str = ", the last: ") -> str:
        failure = self.last_error if self._by_failures else None
        return what if failure is None else f"{what}{joint}{failure.brief}"

    @property
    def given(self) -> int:
        """How many permits were ever granted; the last one has this serial number."""
        return self._serial

    @property
    def running(self) -> int:
        """How many permits have not ended."""
        return len(self._older) + (self._newest is not None)

    def _running(self) -> Iterator[Permit]:
        """The permits that have not ended, the oldest first."""
        yield from self._older.values()
        if self._newest is not None:
            yield self._newest

    def _hung(self, now: float) -> list[float]:
        """How long calls have run that are already slow: they count before they end, since some never do."""
        lasted_s = []
        for permit in self._running():
            if permit.kept:
                continue
            if now - permit.given_at < self.slow_s:
                break
            if permit.generation == self.generation:
                lasted_s.append(now - permit.given_at)
        return lasted_s

    def _settle_probe(self, permit: Permit, verdict: Verdict, now: float, draw: Draw, hint_s: float) -> None:
        failure = self.last_error if verdict is not SUCCESS else None
        self.diary.note(now, now - permit.given_at, PROBES.get(verdict, "inconclusive"), failure)
        self._take_back(permit)
        if verdict is SUCCESS:
            self.ok += 1
            if self.ok >= self.options.success_threshold:
                self._close(Trigger.PROBES_SUCCEEDED, now)
        elif verdict is FAILURE:
            self._fail_probe(False, now, draw, hint_s)
        else:
            self._count_inconclusive(now, draw, hint_s)

    def _count_inconclusive(self, now: float, draw: Draw, hint_s: float = 0.0) -> None:
        self.inconclusive += 1
        if self.inconclusive >= self.options.inconclusive_max:
            reason = f"{self.cause}, then {self.inconclusive} probes without a verdict"
            reason = self._with_last(reason, "; the last error: ")
            self._trip(Trigger.PROBES_SAID_NOTHING, "probes_inconclusive", reason, now, draw, hint_s)

    # ── leases ────────────────────────────────────────────────────────────────────────────────────────────────

    def _has_lease(self) -> bool:
        taken = len(self.leases)
        return taken < self.probes_max and self.ok + taken < self.options.success_threshold

    def renew(self, permit: Permit, now: float) -> None:
        """A stream's chunk arrived, or its reader asks for the next one: the probe is alive."""
        if self.phase is HALF_OPEN and permit.generation == self.generation:
            self._resting.pop(permit, None)
            self._lend(permit, now)

    def rest(self, permit: Permit, now: float) -> None:
        """It is the stream's reader's turn: that time is not the other side's silence, so the lease stands still.

        A reader that stays away for a whole lease gives the slot back without a verdict; otherwise a stream that is
        never read to its end would keep the breaker half open forever. The stream itself goes on.
        """
        if self.phase is HALF_OPEN and permit.generation == self.generation:
            permit.lease_ends_at = permit.shadow_ends_at = NEVER
            self._resting[permit] = now + self.lease_s

    def _take_back(self, permit: Permit) -> None:
        self.leases.remove(permit)
        self._resting.pop(permit, None)

    def _give_up_resting(self, now: float, draw: Draw) -> None:
        """Take back the slots of absent readers; one by one, because the last of them may trip."""
        for permit in [permit for permit, until in self._resting.items() if now >= until]:
            if permit in self._resting:
                self._take_back(permit)
                permit.generation = OUTSIDE
                self.diary.note(now, now - permit.given_at, "inconclusive")
                self._count_inconclusive(now, draw)

    def _lift_leases(self) -> None:
        """What runs now is no longer a probe: without this, the end of its lease would still cut it off."""
        for permit in self.leases:
            permit.lease_ends_at = NEVER

    def _lend(self, permit: Permit, now: float) -> None:
        ends_at = now + self.lease_s
        if self.override is NONE:
            permit.lease_ends_at = ends_at
        else:
            permit.shadow_ends_at = ends_at

    # ── transitions ───────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float, draw: Draw) -> None:
        """What time alone brings about; called by the monitor and by `admit`, never when the state is only read."""
        if now >= self.act_ends_at:
            self.set_override(NONE, ITS_TIME_WAS_OVER)
        if self.phase is OPEN:
            if now >= self.opens_until():
                self._test_recovery(Trigger.TIME_WAS_OVER, now)
        elif self.phase is HALF_OPEN:
            if any(permit.is_over(now) for permit in self.leases):
                self._fail_probe(True, now, draw, 0.0)
            elif self._resting:
                self._give_up_resting(now, draw)
        else:
            self.window.roll(now)
            self._trip_if_due(now, draw, 0.0)

    def end_early(self, now: float) -> bool:
        """After good checks that asked what calls would ask: test recovery now, if it has been open long enough."""
        if self.phase is not OPEN or now - self.opened_at < self.early_s:
            return False
        self._test_recovery(Trigger.ANSWERED, now)
        return True

    def hear_of_success(self, now: float) -> bool:
        """A probe of another process succeeded: test recovery now, except while the server's own wait lasts."""
        if self.phase is not OPEN or self.open_for_s > self._guess_s:
            return False
        self._test_recovery(Trigger.ANSWERED_ELSEWHERE, now)
        return True

    def prime(self, why: str) -> None:
        """So many other processes have it open that one failure of its own opens it; empty: no longer."""
        if why and not self.primed and self.phase is CLOSED:
            self.happened.append(CircuitPrimed(self.name, why))
        self.primed, self.threshold = why, 1 if why else self.options.failure_threshold

    def _test_recovery(self, trigger: Trigger, now: float) -> None:
        self._enter(trigger)
        self._idle_since = now
        self.diary.clear()
        self.happened.append(CircuitHalfOpened(self.name, trigger.value))

    def close_idle(self, now: float) -> bool:
        """After a good check of a service without calls: close, if it has been idle long enough."""
        idle = now - self._idle_since >= IDLE_RECOVERIES * self.options.recovery_s
        if self.phase is not HALF_OPEN or self.leases or not idle:
            return False
        self._close(Trigger.STAYED_IDLE, now)
        return True

    def _fail_probe(self, hung: bool, now: float, draw: Draw, hint_s: float) -> None:
        for permit in self.leases:
            if permit.is_over(now):
                self.diary.note(now, now - permit.given_at, "hung")
        self.streak += 1
        self._probes += 1
        self._by_failures = self._by_failures or not hung
        probes = failed_probes(self._probes, hung)
        # "A failed probe" alone would not show the cause.
        joint = "; the last error: " if hung else ", the last: "
        reason = self._with_last(f"{self.cause}, then {probes}", joint)
        self._trip(Trigger.PROBE_FAILED, "probe_hung" if hung else "probe_failed", reason, now, draw, hint_s)

    def _trip(self, trigger: Trigger, rule: Rule, reason: str, now: float, draw: Draw, hint_s: float) -> None:
        options = self.options
        # The exponent is bounded before the power: an overflow here would be an error in the middle of an outage.
        backoff_s = min(options.recovery_s * 2.0 ** min(self.streak, 30), options.open_s_max)
        self._guess_s = max(backoff_s, options.recovery_s) * (1.0 + OPEN_JITTER * draw())
        self.opened_at = now
        self.open_for_s = max(self._guess_s, min(hint_s, HINT_S_MAX))
        self.reason = reason
        self.trips += 1
        trip = self.diary.trip(rule, now, self, self._hung(now))
        self._enter(trigger)
        met, shadow = self.last_error if self._by_failures else None, self.override is METRICS_ONLY
        self.happened.append(CircuitOpened(self.name, reason, self.open_for_s, met, trip, shadow))

    def skip(self, by_s: float) -> None:
        """The clock missed `by_s` seconds (suspend): they count towards the server's wait, not our own guess."""
        self.open_for_s = max(self._guess_s, self.open_for_s - by_s)

    def _close(self, trigger: Trigger, now: float, act: Act | None = None) -> None:
        probes = self.diary.all(now) if self.phase is HALF_OPEN else ()
        self.closed_by = None if self.phase is CLOSED else trigger
        self._lift_leases()
        self._enter(trigger)
        self._be_closed(now)
        self.happened.append(CircuitClosed(self.name, trigger is Trigger.RESET, trigger.value, probes, act))

    def _be_closed(self, now: float) -> None:
        self.closed_at = now
        self.consecutive = 0
        self._counted_serial = self._serial
        self.window.clear(now)
        self.diary.clear()

    def _enter(self, trigger: Trigger) -> None:
        self.phase = TRANSITIONS[self.phase, trigger]
        self._begin(self._idle_since)

    def _begin(self, idle_since: float) -> None:
        """A new generation: every permit granted before is void."""
        self.generation += 1
        self.leases, self._resting = [], {}
        self.early_at = NEVER
        self.ok = self.inconclusive = 0
        self._idle_since = idle_since

    def forget_running(self) -> None:
        """In a forked child: running calls are the parent's. They never end here, and would be counted as hung."""
        self._newest, self._older, self.leases = None, {}, []

    # ── the operator ──────────────────────────────────────────────────────────────────────────────────────────

    def set_override(self, override: Override, act: Act | None = None, ends_at: float = NEVER) -> None:
        """Let an operator decide, until `ends_at`; calls that are running now no longer count."""
        self.override, self.act, self.act_ends_at = override, act, ends_at
        self._lift_leases()
        self._begin(self._idle_since)
        self.happened.append(OverrideSet(self.name, override.value, act))

    def reset(self, now: float, act: Act | None = None) -> None:
        """An operator declares it well: closed, no override, all failures forgotten."""
        self.override, self.streak = NONE, 0
        self.act, self.act_ends_at = None, NEVER
        self.prime("")
        self._close(Trigger.RESET, now, act)
