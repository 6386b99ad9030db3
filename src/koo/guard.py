"""Guard: the one place where policies meet I/O.

A guard stands before one dependency: a database host, or one model of an AI service. It *has* a breaker, a cooldown and
counts of its own, and asks the gates that it shares with the other models of its service (`koo.gates`).

Each attempt enters through the gates, runs, and settles exactly once, whatever happens: by its result, by an error,
by a cancellation (NEUTRAL), or by the end of its time. Between two attempts the policies are asked and answer; they
never call back. What a failed attempt took is given back before the next one enters: a pause keeps no place, no money.

There are two faces over one permit. `call` runs a function, and runs it again if that is safe and worthwhile. `begin`
and `permit()` return a `Scope` for a block or a stream, whose owner ends it.

Nothing here awaits between two looks at a policy unless it says so, so on one event loop each step is atomic.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NoReturn, TypeVar

from koo.attempt import AlarmOfProbe, explain, fault_of_time, judge, met_by
from koo.deadlines import Alarm, block, ends_at
from koo.errors import Failure, Kind, KooError, describe_s
from koo.events import CircuitClosed, CircuitOpened
from koo.failures import failure_of
from koo.gates import Gates
from koo.openings import Act
from koo.options import NEVER
from koo.passage import LOOK_AGAIN_S, Charge, OnLimit, Passage
from koo.policies.breaker import CLOSED, NONE, OPEN, Breaker, Override, Trigger
from koo.policies.cooldown import Cooldown
from koo.policies.pacer import Pacer
from koo.policies.permit import Permit
from koo.policies.repeat import ANEW_MAX, Repeats
from koo.policies.reported import Evidence
from koo.policies.tally import Tally
from koo.policies.treatment import classify_error
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, SUCCESS, THROTTLED, Classify, Fault
from koo.scope import Scope

__all__ = ["Guard", "Scope"]

T = TypeVar("T")
RAMP_FACTOR = 2
"""After closing, this many times the probes that closed it may run at first (rule R16): more are not known to work."""
CUT_S_MIN, USUAL_CUT = 0.5, 2.0
"""A call cut short by its caller is evidence only if it had lasted this long, and twice as long as calls usually take:
callers in a hurry must not make a healthy service look ill."""


class Guard:
    """One guarded dependency: `gates` with a breaker, a cooldown and counts for one `model` (None: there is only one).

    `classify` says what an error means. `on_outage(guard, in_row)` is called for each counted failure of the host that
    all models of the service share; see `count_outage`.
    """

    __slots__ = (
        "_classify", "_deadlines", "_monotonic", "_on_outage", "_repeats", "breaker", "check_error",
        "check_failed_at", "checks_failed", "cooldown", "gates", "model", "name", "options", "pacer", "resets", "tally",
    )  # fmt: skip

    def __init__(
        self,
        gates: Gates,
        *,
        model: str | None = None,
        classify: Classify = classify_error,
        on_outage: Callable[[Guard, bool], None] | None = None,
    ) -> None:
        options, now = gates.options, gates.clock.monotonic()
        self.gates = gates
        self.model = model
        self.name = gates.name
        self.options = options
        title = gates.name if model is None else f"{gates.name}/{model}"
        self.breaker = Breaker(title, options.breaker, options.slow_s, now)
        self.cooldown = Cooldown()
        self.pacer = Pacer()
        self.tally = Tally(now)
        gates.retry_budget.join(self.tally)
        self._repeats = Repeats(options, self.breaker, self.tally, gates.retry_budget)
        self.resets = 0
        self.checks_failed = 0
        self.check_failed_at = now
        self.check_error: Failure | None = None
        self._classify = classify
        self._on_outage = on_outage
        self._deadlines = gates.deadlines  # these two are kept here, because each call reads them
        self._monotonic: Callable[[], float] = gates.clock.monotonic

    def __repr__(self) -> str:
        breaker, total = self.breaker, self.tally.totals()
        back = f", back in {describe_s(breaker.opens_until() - self.now())}" if breaker.phase is OPEN else ""
        counts = f"{sum(total.verdicts)} calls, {total.verdicts[FAILURE]} failed"
        return f"<Guard {breaker.name!r} {breaker.phase.value}{back} | {counts}>"

    def now(self) -> float:
        """Monotonic seconds of this guard's clock."""
        return self._monotonic()

    # ── the two faces ─────────────────────────────────────────────────────────────────────────────────────────

    async def call(
        self,
        operation: Callable[..., Awaitable[T]],
        *args: object,
        charge: Charge | None = None,
        on_limit: OnLimit | None = None,
        timeout_s: float | None = None,
        is_ours: bool = False,
        has_next: bool = False,
        scope: Scope[T] | None = None,
    ) -> T:
        """Run `operation(*args)` under guard, again if that is safe and worthwhile.

        Raises what the operation raised (or what the classifier makes of it, `from` the original), or a refusal of
        the guard's family. `on_limit`: None waits for a pause that the other side asked for, and is refused by our own
        limits; "wait" queues for both within the deadline, and for an open breaker unless `has_next`; "refuse" waits
        for neither. `timeout_s` is the caller's, unless `is_ours`; without it the option holds, which is ours. With a
        `scope` a success is not settled: the scope keeps the permit.
        """
        now, options = self._monotonic(), self.options
        # `if` instead of `min()`, here and below: two calls of `min` would be a tenth of the guard's overhead.
        deadline, outer = now + (options.timeout_s if timeout_s is None else timeout_s), block.get().until
        is_ours = is_ours or timeout_s is None
        if outer <= deadline:  # or its block is over: then the one around it counts
            is_ours, deadline = deadline < (outer := ends_at.get()) and is_ours, min(deadline, outer)
        if self.breaker.refuses(now):
            self.gates.refuse_open(self, now)
        passage = None
        if now < deadline and self.gates.take(now, self.cooldown.until):
            if charge is None:
                permit = self._admit(now, None, now)
            else:
                permit = await self._pay(charge, deadline, now)
        else:
            self.gates.refuse_full(self, now, deadline, on_limit)
            passage = Passage(charge, deadline, on_limit, is_ours, has_next)
            permit = await self.enter(passage)
        while True:
            # An attempt ends at the earliest of three times. After the deadline its caller is gone. Without the limit
            # of an attempt, one that hangs would use up the time of all its repeats. And a probe whose lease is over
            # has made room for the next one: if it ran on, two probes would hit a backend meant for one.
            until = permit.given_at + options.attempt_timeout_s
            if deadline < until:
                until = deadline
            lasts = permit.lease_ends_at < until or (scope is not None and scope.streams)
            alarm = self._watch(permit, until, deadline, scope) if lasts else Alarm(self._deadlines, until)
            try:
                with alarm:
                    result = await operation(*args)
            except BaseException as error:  # noqa: BLE001 - a cancellation too must end its permit; it is raised again
                passage = passage or Passage(charge, deadline, on_limit, is_ours, has_next)
                pause = self._fail(passage, permit, error, alarm)
                permit = await self._enter_again(passage, pause)
            else:
                if scope is None:
                    self._settle_success(permit, charge, passage is None or passage.attempt == 1)
                    return result
                permit.kept = True
                scope.keep(permit, passage or Passage(charge, deadline, on_limit, is_ours, has_next))
                return result

    async def begin(
        self,
        operation: Callable[..., Awaitable[T]],
        *args: object,
        charge: Charge | None = None,
        on_limit: OnLimit | None = None,
        timeout_s: float | None = None,
        is_ours: bool = False,
        has_next: bool = False,
        scope: Scope[T] | None = None,
    ) -> Scope[T]:
        """As `call`, but a success keeps its permit: the scope's `value` is the result, and its owner settles it.

        `scope`: one that the operation knows already (see `Scope.streams`).
        """
        if scope is None:
            scope = Scope(self)
        scope.value = await self.call(
            operation, *args, charge=charge, on_limit=on_limit, timeout_s=timeout_s, is_ours=is_ours,
            has_next=has_next, scope=scope,
        )  # fmt: skip
        return scope

    def _watch(self, permit: Permit, until: float, deadline: float, scope: Scope[T] | None) -> Alarm:
        """The alarm of an attempt whose end may move: a probe's, or that of a stream, which may think for longer."""
        if scope is not None and scope.streams:
            scope.permit, until = permit, deadline
        return AlarmOfProbe(self._deadlines, permit, until)

    def permit(self, charge: Charge | None = None, on_limit: OnLimit | None = None) -> Scope[None]:
        """`async with guard.permit() as scope:` for a block: never repeated, judged by what leaves it."""
        return Scope(self, Passage(charge, NEVER, on_limit))

    # ── the way in ────────────────────────────────────────────────────────────────────────────────────────────

    async def enter(self, passage: Passage) -> Permit:
        """Pass all gates, waiting where that is allowed. Raises a refusal; then nothing stays taken."""
        gates, charge = self.gates, passage.charge
        now = self._monotonic()
        if now >= passage.deadline:
            self._refuse_late()
        # Before the queues: a call that the breaker will refuse anyway must not stand in them, nor take a unit.
        if self.breaker.refuses(now):
            gates.refuse_open(self, now)
        passage.paced = False  # the cell of an earlier attempt was used
        if not gates.take(now, self.cooldown.until):
            now = await gates.take_in_turn(self, passage)
            if now >= passage.deadline:
                gates.give_back(now)
                gates.give_back_cell(self, passage)
                self._refuse_late()
        try:
            if charge is None:
                permit = self._admit(now, None, now)
            else:
                permit = await self._pay(charge, passage.deadline, now)
        except BaseException:
            gates.give_back_cell(self, passage)
            raise
        if passage.paced:
            self.pacer.use()
        return permit

    def _refuse_late(self) -> NoReturn:
        reason = "the deadline had passed before the call"
        self.gates.refuse(self, self.gates.family.timeout, reason, None, Kind.DEADLINE)

    async def _pay(self, charge: Charge, deadline: float, taken_at: float) -> Permit:
        """Hold the money, then pass the last gate."""
        try:
            await charge.hold(deadline)
        except BaseException as error:
            self.gates.give_back(taken_at)
            if isinstance(error, KooError):
                self.tally.record_refusal(error.kind, self._monotonic())
                if error.retry_after_s is not None:
                    self.gates.tell_wait(self, error)
            raise
        now = self._monotonic()
        if now >= deadline:
            charge.release()
            self.gates.give_back(taken_at)
            self._refuse_late()
        return self._admit(taken_at, charge, now)

    def _admit(self, taken_at: float, charge: Charge | None, now: float) -> Permit:
        """The last gate. Whatever waited before it, the breaker is asked about now."""
        breaker, gates = self.breaker, self.gates
        permit = breaker.admit(now, gates.draw)
        if breaker.happened:
            self._publish_steps()
        if permit is None:
            gates.give_back(taken_at)
            if charge is not None:
                charge.release()
            gates.refuse_open(self, now)
        return permit

    async def _enter_again(self, passage: Passage, pause_s: float | None) -> Permit:
        """Pause, and pass all gates once more. A repeat that is never made costs no token."""
        try:
            if pause_s is not None:
                await self._pause(pause_s)
            permit = await self.enter(passage)
        except BaseException as error:
            if pause_s is not None:
                self.gates.retry_budget.give_back()
            if isinstance(error, KooError):
                explain(self.name, error, passage.attempt, met=passage.met)
            raise
        passage.attempt += 1
        self.tally.retries += pause_s is not None
        return permit

    async def _pause(self, pause_s: float) -> None:
        """Sleep until the pause is over, or an operator resets: then its reason is gone too."""
        resets, over_at = self.resets, self.now() + pause_s
        while True:
            await self.gates.clock.sleep(min(pause_s, LOOK_AGAIN_S))
            pause_s = over_at - self.now()
            if pause_s <= 0 or self.resets != resets:
                return

    # ── settlement ────────────────────────────────────────────────────────────────────────────────────────────

    def _settle_success(
        self,
        permit: Permit,
        charge: Charge | None,
        first: bool,
        slow: bool | None = None,
        took_s: float | None = None,
    ) -> None:
        """`first`: it was the first attempt. The rest as for `leave`."""
        now, breaker, gates, cooldown = self._monotonic(), self.breaker, self.gates, self.cooldown
        if took_s is None:
            took_s = now - permit.given_at
        if slow is None:
            slow = took_s >= self.options.slow_s
        gates.bulkhead.give_back()
        breaker.settle(permit, SUCCESS, slow, now, gates.draw)
        self.tally.record_success(took_s, slow, first, now)
        if breaker.happened:
            self._publish_steps()
        if cooldown.level:
            cooldown.ease()
        if not gates.quiet:
            gates.ease(self.model, now)
        if charge is not None:
            charge.settle()

    def _settle_fault(
        self, permit: Permit, fault: Fault, slow: bool | None = None, took_s: float | None = None
    ) -> None:
        now, verdict, breaker = self._monotonic(), fault.verdict, self.breaker
        if took_s is None:
            took_s = now - permit.given_at
        if slow is None:
            slow = took_s >= self.options.slow_s
        is_cut = fault.kind is Kind.DEADLINE and took_s >= self._cut_s()
        if is_cut:
            self.tally.note_cut(now)
        # A call that its caller cut short must not hide what opened the breaker.
        if verdict is not NEUTRAL or fault.block is not None or (is_cut and breaker.phase is CLOSED):
            self._note_error(fault.met)
        # Of the neutral ends only a deadline's says anything about the other side: that it was slow.
        slow = slow and (verdict is FAILURE or fault.kind is Kind.DEADLINE)
        self.gates.bulkhead.give_back()
        marks = breaker.marks
        counted = breaker.settle(permit, verdict, slow, now, self.gates.draw, fault.retry_after_s or 0.0)
        self.tally.record_other(verdict, fault.kind, slow, now)
        if breaker.happened:
            self._publish_steps()
        if verdict is THROTTLED or fault.block is not None:
            self.gates.apply_fault(self, fault, now)
        # A late result, or one from before a trip, says nothing about the host as it is now. If it spread all the same,
        # the stragglers of one outage would open the other models' breakers after the host has come back.
        elif verdict is FAILURE and fault.reach == "service" and counted and self._on_outage is not None:
            self._on_outage(self, breaker.marks > marks)

    def leave(
        self,
        passage: Passage,
        permit: Permit,
        fault: Fault | None,
        slow: bool | None = None,
        took_s: float | None = None,
    ) -> None:
        """Settle everything that `enter` took, exactly once: with a success (None) or a fault.

        `took_s` and `slow`: see `Scope.settle`. Money comes last: if its settlement fails, the rest is done.
        """
        charge, first = passage.charge, passage.attempt == 1
        if fault is None:
            self._settle_success(permit, charge, first, slow, took_s)
            return
        if fault.verdict is SUCCESS:  # a classifier's word: this error is an answer
            self._settle_success(permit, None, first, slow, took_s)
        else:
            self._settle_fault(permit, fault, slow, took_s)
        if charge is not None:
            if fault.billed:
                charge.settle()
            else:
                charge.release()

    def _cut_s(self) -> float:
        """How long a call must have run, when its caller cuts it short, to say anything about the other side."""
        return max(CUT_S_MIN, USUAL_CUT * self.tally.totals().percentile_s(0.5))

    def abandon(self, passage: Passage, permit: Permit) -> None:
        """Settle a dropped scope: neutral, and paid for. From any thread, at any moment."""
        loop = self._deadlines.loop
        if loop is not None and loop.is_running():
            # Not at once: the garbage collector runs in the middle of anything, and in any thread.
            loop.call_soon_threadsafe(self.leave, passage, permit, CANCELLED)
        else:
            self.leave(passage, permit, CANCELLED)

    def count_outage(self, in_row: bool, failure: Failure | None) -> None:
        """The host that all models share could not be reached, which counts here too; `in_row`: it was a step there."""
        self.breaker.last_error = failure
        self.breaker.count_outage(in_row, self._monotonic(), self.gates.draw)
        if self.breaker.happened:
            self._publish_steps()

    # ── between attempts ──────────────────────────────────────────────────────────────────────────────────────

    def judge(self, error: BaseException) -> Fault:
        """What an error means. Never raises: a non-Exception is NEUTRAL, and so is a classifier's own failure."""
        return judge(self._classify, error)

    def _fail(self, passage: Passage, permit: Permit, error: BaseException, alarm: Alarm) -> float | None:
        """Settle a failed attempt; returns the pause before the next one, or raises the real error now.

        None: it is not a repeat of a failure, but the same call in another form, at once and without a token.
        """
        timeout, now = self.gates.family.timeout, self._monotonic()
        fault = fault_of_time(self.name, timeout, error, alarm, passage, now) or self.judge(error)
        self.leave(passage, permit, fault)
        if fault.anew and passage.anew < ANEW_MAX:
            passage.anew += 1
            return None
        now, pause, why_not = self._monotonic(), None, ""
        paused_until = self.gates.cooldown_of(self, fault).until
        if fault.verdict is not THROTTLED or passage.on_limit != "refuse":
            waits = passage.on_limit == "wait" and not passage.has_next
            pause, why_not = self._repeats.plan(
                fault, passage.attempt - passage.anew, passage.deadline, paused_until, now, self.gates.draw,
                waits_for_breaker=waits,
            )  # fmt: skip
        if pause is not None:
            passage.met = met_by(fault)
            return pause
        real = fault.error or error
        explain(self.name, real, passage.attempt, why_not, passage.met)
        if isinstance(real, KooError) and (fault.verdict is not NEUTRAL or fault.block is not None):
            self.gates.tell_wait(self, real)
        try:
            if real is error:
                raise error
            raise real from error
        finally:
            # The error's traceback keeps this frame, and the frame would keep the error: everything in the callers'
            # frames would stay until the cycle collector runs.
            del error, real, fault

    # ── the monitor and the operator ──────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """What time alone brings about; the monitor calls it about once a second."""
        now = self._monotonic()
        self.breaker.tick(now, self.gates.draw)
        self.tally.roll(now)
        self.gates.tick(now)
        if self.breaker.happened:
            self._publish_steps()

    def note_check(self, error: KooError | None) -> None:
        """A health check ended; None is success, which closes a breaker only after a long time without calls."""
        now = self._monotonic()
        if error is None:
            self.checks_failed = 0
            self.breaker.close_idle(now)
            if self.breaker.happened:
                self._publish_steps()
        else:
            self.checks_failed += 1
            self.check_failed_at = now
            self.check_error = self._note_error(failure_of(error, error.kind))

    def _note_error(self, failure: Failure) -> Failure:
        """Keep what was met, with its time; before the call is settled, so that what follows from it can name it."""
        self.breaker.last_error = noted = replace(failure, at=self.gates.clock.wall())
        return noted

    def evidence(self) -> Evidence:
        """What is known about its state; checks that failed before the last success do not count."""
        last_success_at = self.tally.last_success_at
        cuts = self.tally.cuts_in_row(self._monotonic())
        if last_success_at is not None and last_success_at >= self.check_failed_at:
            return Evidence(self.breaker, cuts=cuts)
        return Evidence(self.breaker, self.checks_failed, cuts, self.check_error)

    def set_override(self, override: Override, act: Act | None = None, ends_at: float = NEVER) -> None:
        """Let an operator decide, until monotonic `ends_at`."""
        self.breaker.set_override(override, act, ends_at)
        self._publish_steps()

    def reset(self, act: Act | None = None) -> None:
        """Close the breaker and forget streaks, checks and cooldown; never counts, limits or money."""
        self.breaker.reset(self._monotonic(), act)
        self.cooldown.clear()
        self.tally.forget_cuts()
        self.resets, self.checks_failed = self.resets + 1, 0
        self._publish_steps()

    def _publish_steps(self) -> None:
        """Publish what the breaker did, after its state is set; and apply what follows from it to probes and places."""
        breaker = self.breaker
        happened, breaker.happened = breaker.happened, []
        for event in happened:
            if isinstance(event, CircuitOpened):
                # Long enough for a slow model's honest answer, as it was when it was last healthy.
                usual_s = max(self.options.breaker.lease_s, 2 * self.tally.healthy().percentile_s(0.99))
                breaker.lease_s = min(self.options.attempt_timeout_s, usual_s)
            elif isinstance(event, CircuitClosed) and breaker.override is NONE and breaker.closed_by:
                self._narrow(breaker.closed_by)
            self.gates.emit(event)

    def _narrow(self, closed_by: Trigger) -> None:
        """Begin the ramp of rule R16; with one call if no probe has tried it."""
        untried = closed_by is Trigger.STAYED_IDLE
        few = 1 if untried else RAMP_FACTOR * self.options.breaker.success_threshold
        self.gates.bulkhead.narrow(few, self._monotonic())
