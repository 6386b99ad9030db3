"""The circuit breaker, without a clock, dice or `await`; `tests/policies/model.py` lists its rules.

    CLOSED ── failures in a row, or too large a share ──▶ OPEN
    OPEN ── its open time is over, or a database answers again ──▶ HALF_OPEN
    HALF_OPEN ── enough probes succeed ──▶ CLOSED
    HALF_OPEN ── a probe fails, hangs, or too many are inconclusive ──▶ OPEN, for longer

Each change of phase raises the generation, and a permit carries the generation in which it was granted. A result from
an older generation changes nothing. Without this fence, one old success would close a breaker that has just opened, and
one old failure would open a breaker that has just closed.

In HALF_OPEN a permit is a lease with an end. Without the end, one hung probe would keep the breaker half open forever.
A probe whose lease has ended has failed. It makes no difference whether the clock or the probe's own late result
reveals it.

An operator sets `override`, which is independent of the phases: FORCED_OPEN refuses every call, DISABLED and
METRICS_ONLY admit every call. A call that passes only because of an override gets a permit outside all generations. It
is counted, but it cannot change the phase.

Times are monotonic seconds, passed in. `draw` returns a number in [0, 1) and is called only when a trip needs one.
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
    """One breaker. `happened` collects events, which the caller publishes after the step, outside the critical section.

    `early_s`: the minimum time before successful checks may end an opening. Only a database has checks that run what a
    call would run. An unbilled check of an AI service shows that the service can be reached, not that it can answer a
    prompt. `early_at`: when the checks are expected to end the opening. `cause`: why it opened; `reason`: the same,
    with the last error. `last_error`: the error of the last failed call or check, set by the guard before it settles
    the call; a success does not clear it. `act`: the operator's act that set the override, in force until
    `act_ends_at`. `refused`: how many calls were refused; `passed`: how many METRICS_ONLY admitted that would have been
    refused. `incident`: the id of the record of its last opening, set by the recorder.
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
        # The running permits. The newest is not in the dictionary: most calls run alone, and then admitting and
        # settling one never touch it. `_older` is in the order of the serials, which `_hung` relies on.
        self._newest: Permit | None = None
        self._older: dict[int, Permit] = {}
        self.happened: list[Event] = []
        self._serial = 0
        self.closed_by = None
        self._begin(now)
        self._be_closed(now)

    # ── admission ─────────────────────────────────────────────────────────────────────────────────────────────

    def refuses(self, now: float) -> bool:
        """Whether `admit` would refuse. Changes nothing."""
        if self.override is not NONE:
            return self.override is FORCED_OPEN
        if self.phase is CLOSED:
            return False
        return (self.phase is OPEN and now < self.opens_until()) or not self._has_lease()

    def admit(self, now: float, draw: Draw) -> Permit | None:
        """A permit, or None if the call is refused: `refusal` then returns why, and when to try again."""
        generation = self.generation
        # A closed breaker without an override admits without a tick: this is the path of nearly every call. The
        # breaker cannot miss a trip here, because a closed one trips when a call settles, and the monitor ticks it for
        # calls that hang and never settle.
        if self.phase is not CLOSED or self.override is not NONE:
            gate = self._gate(now, draw)
            if gate is None:
                return None
            generation = gate
        self._serial = serial = self._serial + 1
        permit = Permit(generation, serial, now)
        # The permit that was the newest moves to `_older` now, before a newer one can, so that the dictionary stays
        # sorted by serial, and therefore by age.
        newest = self._newest
        if newest is not None:
            self._older[newest.serial] = newest
        self._newest = permit
        # Only a real probe takes a slot. A call that an override let through in HALF_OPEN must take none: the slots are
        # for the probes, which METRICS_ONLY still needs to test recovery.
        if self.phase is HALF_OPEN and generation != OUTSIDE:
            self._lend(permit, now)
            self.leases.append(permit)
            self._idle_since = now
        return permit

    def _gate(self, now: float, draw: Draw) -> int | None:
        """The generation to admit a call under if the breaker is not simply closed; None if the call is refused."""
        # FORCED_OPEN and DISABLED are decided before the tick, because the tick may change the phase. A call that the
        # override refuses or admits in any phase must not be the one that trips or half opens the breaker.
        # METRICS_ONLY is decided after the tick: there the breaker works as usual, and only its refusals are not
        # enforced. If it returned before the tick, the breaker would stay open and never test recovery.
        if self.override is FORCED_OPEN:
            return None
        if self.override is DISABLED:
            return OUTSIDE
        self.tick(now, draw)
        # `self.generation` is read after the tick: a tick that moves to HALF_OPEN begins a new one, and a probe
        # granted under the old generation would be dropped as late, whatever its result.
        if self.phase is CLOSED or (self.phase is HALF_OPEN and self._has_lease()):
            return self.generation
        self.passed += self.override is METRICS_ONLY
        return OUTSIDE if self.override is METRICS_ONLY else None

    def refusal(self, now: float) -> tuple[str, float]:
        """Why calls are refused, and in how many seconds to try again (infinite if nothing is known)."""
        if self.override is FORCED_OPEN:
            # The override ends at the first tick after `act_ends_at`, so a caller that returned at that very moment
            # could be refused again. If the override has no end, any time would be wrong, so the result is infinite.
            return f"the circuit was {why_forced(self.act)}", max(self.act_ends_at - now, 0.0) + UNIT_S
        # Without one of the fleet's probe units, this process may not probe at all. A unit can arrive only with a
        # beat, so a wait of 0 s would make every caller return at once and be refused again.
        least_s = 0.0 if self.probes_max else UNIT_S
        if self.phase is OPEN:
            wait_s = min(self.opens_until(), self.early_at) - now
            return f"the circuit is open after {self.reason}", max(least_s, wait_s)
        ends = (self._resting.get(permit, permit.lease_ends_at) for permit in self.leases)
        ends_at = min(ends, default=now)
        return f"recovery is being tested after {self.reason}", max(least_s, ends_at - now)

    def opens_until(self) -> float:
        """When an open breaker starts to test recovery, in monotonic seconds."""
        return self.opened_at + self.open_for_s

    # ── settlement ────────────────────────────────────────────────────────────────────────────────────────────

    def settle(
        self, permit: Permit, verdict: Verdict, slow: bool, now: float, draw: Draw, hint_s: float = 0.0
    ) -> bool:
        """End a permit; False if it had ended before, or if its result came too late to count.

        A NEUTRAL call that is `slow` was cut short by its caller's deadline after it had become slow. It counts as a
        slow call, but not as a failure. Otherwise short deadlines would hide a backend that hangs.
        """
        if permit.settled:
            return False
        # A permit ends before the fence below is checked. A permit of an old generation runs too: if the fence
        # returned first, `running` would count it forever.
        permit.settled = True
        if permit is self._newest:
            self._newest = None
        else:
            del self._older[permit.serial]
        # The fence. Example: fifty calls run when the breaker opens, and end while recovery is being tested. If they
        # were taken for probes, the first failure would double the open time for an outage that may be over, and the
        # success of a call that began before the outage would count towards closing.
        if permit.generation != self.generation:
            self.stale += permit.generation != OUTSIDE
            return False
        # Permits of this generation exist only in CLOSED and HALF_OPEN, so here it is a probe.
        if self.phase is not CLOSED:
            # A result after the end of the lease is a failed probe even if it is a success. The monitor's tick may
            # find the expired lease first or the result may arrive first, and both orders must end in the same phase.
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
        """The number of failures in a row, including this one; 0 if this failure is not counted as a further one."""
        # One connection reset that hits fifty running calls is one step, but five failures in succession are five. So
        # a failure counts only if its call began after the last counted failure: the first of the fifty marks every
        # serial granted so far, and the other forty-nine are at or below the mark. Serial numbers are compared and not
        # times, because on a coarse clock a failure and the next call's start can have the same time.
        if permit.serial > self._counted_serial:
            self.consecutive += 1
            self._counted_serial = self._serial
            return self.consecutive
        return 0

    def count_outage(self, in_row: bool, now: float, draw: Draw) -> None:
        """Count a failure of another breaker's call to the same host. `in_row`: that breaker counted it as a step.

        The failure rate counts all of them, but only steps count as failures in a row. One reset that hits fifty calls
        of ten models is one step for each model, not ten or fifty.
        """
        if self.phase is CLOSED and (self.override is NONE or self.override is METRICS_ONLY):
            if in_row:
                self.consecutive += 1
                # This breaker's own running calls were hit by the same reset: they must not add a second step.
                self._counted_serial = self._serial
            self.window.record(True, False, now)
            self.diary.note(now, 0.0, "failed_elsewhere", self.last_error, self.consecutive if in_row else 0)
            self._trip_if_due(now, draw, 0.0)

    @property
    def marks(self) -> int:
        """A number that grows with each further failure in a row, and with each trip."""
        return self.consecutive + self.trips

    def _heal_streak(self, now: float) -> None:
        # The streak (failed recoveries in succession, which lengthen the next opening) shrinks by one for each period
        # in which the breaker stayed closed. If the first success set it to 0, a backend that fails again every minute
        # would always be retried after the shortest open time.
        if now - self.closed_at >= self.options.streak_heals_after_s:
            self.streak -= 1
            self.closed_at = now

    def _trip_if_due(self, now: float, draw: Draw, hint_s: float) -> None:
        cause, rule = self._why_trip(now)
        if rule is not None:
            self.cause, self._by_failures, self._probes = cause, rule != "slow_rate", 0
            self._trip(Trigger.TRIPPED, rule, self._with_last(cause), now, draw, hint_s)

    def _why_trip(self, now: float) -> tuple[str, Rule | None]:
        """Why the breaker must open, and by which rule; None if it stays closed."""
        options, window = self.options, self.window
        # The failures in a row may be older than the window, because without calls nothing resets their number. For a
        # primed breaker, whose threshold is 1, a single failure an hour ago would then be enough to trip now. It does
        # not confirm what the other processes see at this moment, so at least one failure must be in the window.
        if self.consecutive >= self.threshold and window.failures:
            meanwhile = f" while {self.primed}" if self.primed else ""
            return in_a_row(self.consecutive) + meanwhile, "failures_in_a_row"
        # Calls that hang count while they still run. If a backend accepts connections but never replies, no call
        # settles before its timeout, and until then the window would look idle.
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
        """How many permits have been granted so far; the last one has this serial number."""
        return self._serial

    @property
    def running(self) -> int:
        """How many permits have not ended."""
        return len(self._older) + (self._newest is not None)

    def _running(self) -> Iterator[Permit]:
        """The permits that have not ended, oldest first."""
        yield from self._older.values()
        if self._newest is not None:
            yield self._newest

    def _hung(self, now: float) -> list[float]:
        """For each running call that is already slow, how many seconds it has run."""
        lasted_s = []
        for permit in self._running():
            # A kept permit belongs to a stream that has begun to arrive, or to an open transaction: its length depends
            # on its caller and is not a sign of trouble. It is skipped but does not end the loop, because newer calls
            # that hang come after it.
            if permit.kept:
                continue
            # The oldest comes first: all later permits are younger than this one, so none of them can be slow. Without
            # this `break`, each trip check would walk through every running call.
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
        # The second bound is that no more probes may run than successes are still needed. With two needed, one success
        # and one probe running, a further probe could only add load to a backend that is just recovering.
        taken = len(self.leases)
        return taken < self.probes_max and self.ok + taken < self.options.success_threshold

    def renew(self, permit: Permit, now: float) -> None:
        """Extend a stream's lease: a chunk arrived, or the reader requests the next one, so the probe is alive."""
        if self.phase is HALF_OPEN and permit.generation == self.generation:
            self._resting.pop(permit, None)
            self._lend(permit, now)

    def rest(self, permit: Permit, now: float) -> None:
        """Suspend a stream's lease while its reader is busy with a chunk: that time is not the provider's silence.

        If the reader stays away for a whole lease, the slot is taken back without a verdict, and the stream goes on.
        """
        if self.phase is HALF_OPEN and permit.generation == self.generation:
            permit.lease_ends_at = permit.shadow_ends_at = NEVER
            # It is suspended for one lease only. Otherwise a stream that is never read to its end would occupy its
            # slot forever, and the breaker would stay half open.
            self._resting[permit] = now + self.lease_s

    def _take_back(self, permit: Permit) -> None:
        self.leases.remove(permit)
        self._resting.pop(permit, None)

    def _give_up_resting(self, now: float, draw: Draw) -> None:
        """Take back the slots of readers that have stayed away for a whole lease."""
        for permit in [permit for permit, until in self._resting.items() if now >= until]:
            # This is checked for each one again. One of these inconclusive probes may be the last one allowed and trip
            # the breaker, which empties `leases` and `_resting` in the middle of this loop.
            if permit in self._resting:
                self._take_back(permit)
                # The stream still runs and will settle. As a permit of this generation it would settle as a probe and
                # try to release its slot, which it no longer has.
                permit.generation = OUTSIDE
                self.diary.note(now, now - permit.given_at, "inconclusive")
                self._count_inconclusive(now, draw)

    def _lift_leases(self) -> None:
        """Remove the time limit from running probes, which are about to become ordinary calls."""
        # A guard stops its call when `lease_ends_at` passes. Without this, a call that an operator's reset has turned
        # from a probe into an ordinary call would still be cut off at the end of its lease.
        for permit in self.leases:
            permit.lease_ends_at = NEVER

    def _lend(self, permit: Permit, now: float) -> None:
        # Under METRICS_ONLY the breaker must not affect calls, so `lease_ends_at`, which stops the call, stays
        # infinite. The breaker itself still judges the probe, by `shadow_ends_at`.
        ends_at = now + self.lease_s
        if self.override is NONE:
            permit.lease_ends_at = ends_at
        else:
            permit.shadow_ends_at = ends_at

    # ── transitions ───────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float, draw: Draw) -> None:
        """Make the changes that are due by time alone. Called by the monitor and by `admit`, never by a mere read."""
        # This comes first, because the phase may change in the same tick, under the override that is then in force. If
        # the override ended last, an opening right after METRICS_ONLY would be published as one that refuses nothing.
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
        """Test recovery now, after successful checks that ran what a call would run, if it was open for `early_s`."""
        if self.phase is not OPEN or now - self.opened_at < self.early_s:
            return False
        self._test_recovery(Trigger.ANSWERED, now)
        return True

    def hear_of_success(self, now: float) -> bool:
        """Test recovery now, because a probe in another process succeeded; not while a `Retry-After` lasts."""
        # The open time exceeds koo's own guess only if the server asked for the longer wait. Another process's success
        # says that the guess was too long, but it does not overrule what the server asked of this one.
        if self.phase is not OPEN or self.open_for_s > self._guess_s:
            return False
        self._test_recovery(Trigger.ANSWERED_ELSEWHERE, now)
        return True

    def prime(self, why: str) -> None:
        """Lower the threshold to one failure, because many other processes have it open; an empty `why` restores it."""
        if why and not self.primed and self.phase is CLOSED:
            self.happened.append(CircuitPrimed(self.name, why))
        self.primed, self.threshold = why, 1 if why else self.options.failure_threshold

    def _test_recovery(self, trigger: Trigger, now: float) -> None:
        self._enter(trigger)
        self._idle_since = now
        self.diary.clear()
        self.happened.append(CircuitHalfOpened(self.name, trigger.value))

    def close_idle(self, now: float) -> bool:
        """Close, after a successful check of a service that gets no calls, if it has been idle long enough."""
        # Without calls there are no probes, and a service used once a day would be reported as recovering all day.
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
        # A hung probe has no error: the last error is an earlier one, and must not look like the probe's.
        joint = "; the last error: " if hung else ", the last: "
        reason = self._with_last(f"{self.cause}, then {probes}", joint)
        self._trip(Trigger.PROBE_FAILED, "probe_hung" if hung else "probe_failed", reason, now, draw, hint_s)

    def _trip(self, trigger: Trigger, rule: Rule, reason: str, now: float, draw: Draw, hint_s: float) -> None:
        options = self.options
        # The exponent is bounded before the power is taken: 2.0 ** 1024 raises OverflowError, and with ten minutes per
        # opening an outage gets there in a week. Thirty doublings of one second are 34 years.
        backoff_s = min(options.recovery_s * 2.0 ** min(self.streak, 30), options.open_s_max)
        # `open_s_max` may be set below `recovery_s`, which is the promised minimum. The jitter only lengthens, for the
        # same reason.
        self._guess_s = max(backoff_s, options.recovery_s) * (1.0 + OPEN_JITTER * draw())
        self.opened_at = now
        self.open_for_s = max(self._guess_s, min(hint_s, HINT_S_MAX))
        self.reason = reason
        self.trips += 1
        # The explanation is taken before `_enter`: that begins a new generation, in which no running call counts as
        # hung, so the numbers in the event would not add up to the threshold that was crossed.
        trip = self.diary.trip(rule, now, self, self._hung(now))
        self._enter(trigger)
        met, shadow = self.last_error if self._by_failures else None, self.override is METRICS_ONLY
        self.happened.append(CircuitOpened(self.name, reason, self.open_for_s, met, trip, shadow))

    def skip(self, by_s: float) -> None:
        """The machine was suspended for `by_s` seconds that the clock does not show."""
        # The server meant real time, so the missed seconds shorten its wait. koo's own guess counts only the time in
        # which this process was awake.
        self.open_for_s = max(self._guess_s, self.open_for_s - by_s)

    def _close(self, trigger: Trigger, now: float, act: Act | None = None) -> None:
        # The order matters: the diary is read before `_be_closed` clears it, and the leases are lifted before `_enter`
        # forgets which permits have one.
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
        # A KeyError here is a bug: a trigger was raised in a phase that the table has no transition for.
        self.phase = TRANSITIONS[self.phase, trigger]
        self._begin(self._idle_since)

    def _begin(self, idle_since: float) -> None:
        """Begin a new generation: permits granted before no longer count."""
        self.generation += 1
        self.leases, self._resting = [], {}
        self.early_at = NEVER
        self.ok = self.inconclusive = 0
        self._idle_since = idle_since

    def forget_running(self) -> None:
        """In a forked child: forget the parent's running calls. They never end here, and would be counted as hung."""
        self._newest, self._older, self.leases = None, {}, []

    # ── the operator ──────────────────────────────────────────────────────────────────────────────────────────

    def set_override(self, override: Override, act: Act | None = None, ends_at: float = NEVER) -> None:
        """Set or remove an operator's override, which lasts until `ends_at`; calls running now no longer count."""
        # A new generation begins, although the phase stays: a call admitted under METRICS_ONLY or DISABLED must not
        # trip or close the breaker after the operator has handed control back to it.
        self.override, self.act, self.act_ends_at = override, act, ends_at
        self._lift_leases()
        self._begin(self._idle_since)
        self.happened.append(OverrideSet(self.name, override.value, act))

    def reset(self, now: float, act: Act | None = None) -> None:
        """An operator's reset: closed, no override, all failures forgotten."""
        self.override, self.streak = NONE, 0
        self.act, self.act_ends_at = None, NEVER
        self.prime("")
        self._close(Trigger.RESET, now, act)
