"""Guard: the one place where policies meet I/O.

A guard protects one dependency: a database host, or one model of an AI service. It has its own breaker, cooldown and
counts, and shares its gates with the other models of the same service (`koo.gates`).

Each attempt passes the gates, runs, and settles exactly once: by its result, an error, a cancellation (NEUTRAL) or a
timeout. Between two attempts the guard consults the policies; they never call back. A failed attempt returns everything
it took before the next one enters, so a call that is pausing before a repeat occupies no slot and holds no money.

The guard has two interfaces over one permit. `call` runs a function, and repeats it if that is safe and worthwhile.
`begin` and `permit()` return a `Scope` for a block or a stream, which its owner ends.

Code here does not await between two decisions unless it says so. On one event loop each step is therefore atomic.
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
from koo.gates import WAITED_S, Gates
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
"""After a breaker has closed, the calls that may run at first are this many times the probes that closed it.
Nothing has shown yet that the backend can take more."""
CUT_S_MIN, USUAL_CUT = 0.5, 2.0
"""A call cut short by its caller counts as evidence only if it had run for at least half a second and for twice the
median call. Callers with short deadlines must not make a healthy service look unhealthy."""


class Guard:
    """One guarded dependency: `gates` with a breaker, a cooldown and counts for one `model` (None: there is only one).

    `classify` maps an error to its meaning. `on_outage(guard, in_row)` is called for each counted connection failure to
    the host that all models of the service share; see `count_outage`.
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
        self._deadlines = gates.deadlines  # these two are cached because each call reads them
        self._monotonic: Callable[[], float] = gates.clock.monotonic

    def __repr__(self) -> str:
        breaker, total = self.breaker, self.tally.totals()
        back = f", back in {describe_s(breaker.opens_until() - self.now())}" if breaker.phase is OPEN else ""
        counts = f"{sum(total.verdicts)} calls, {total.verdicts[FAILURE]} failed"
        return f"<Guard {breaker.name!r} {breaker.phase.value}{back} | {counts}>"

    def now(self) -> float:
        """Monotonic seconds of this guard's clock."""
        return self._monotonic()

    # ── the two interfaces ────────────────────────────────────────────────────────────────────────────────────

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
        """Run `operation(*args)` through the guard, and repeat it if that is safe and worthwhile.

        Raises the operation's exception (or the classifier's replacement, `from` the original), or a refusal of the
        guard's family. `on_limit`: None waits for a pause that the provider requested, but koo's own limits refuse the
        call; "wait" queues for both within the deadline, and for an open breaker unless `has_next`; "refuse" waits for
        neither. `timeout_s` is the caller's timeout, unless `is_ours`: then koo set it. Without it koo's own option
        applies. With a `scope` a success is not settled: the scope keeps the permit.
        """
        now, options = self._monotonic(), self.options
        # `if` instead of `min()`, here and below: two calls of `min` would be a tenth of the guard's overhead.
        deadline, outer = now + (options.timeout_s if timeout_s is None else timeout_s), block.get().until
        is_ours = is_ours or timeout_s is None
        # `outer` is the innermost `koo.deadline` around this call. It is -inf (`OVER`) if that block has ended while
        # this task, started inside it, goes on: `ends_at` then finds the next enclosing block that still runs. A tie
        # belongs to the caller, so `<` and not `<=`: koo's deadline would count the cut as a failure of the service.
        if outer <= deadline:
            is_ours, deadline = deadline < (outer := ends_at.get()) and is_ours, min(deadline, outer)
        # An open breaker refuses before anything is taken: during an outage this is the path of almost every call.
        if self.breaker.refuses(now):
            self.gates.refuse_open(self, now)
        # This is the fast path: no gate is shut, so there is nothing to wait for and no `Passage` to allocate. `take`
        # has no await and takes everything or nothing, so no other task can come between the check and the unit.
        permit = passage = None
        if now < deadline and self.gates.take(now, self.cooldown.until):
            permit = self._admit(now, None, now) if charge is None else await self._pay(charge, deadline, now)
        else:
            self.gates.refuse_full(self, now, deadline, on_limit)
        if permit is None:
            passage = Passage(charge, deadline, on_limit, is_ours, has_next)
            permit = await self.enter(passage)
        while True:
            # An attempt ends at the earliest of three times, and each prevents another failure:
            # * The deadline of the whole call. After it no caller waits for the result, but the attempt would still
            # occupy a slot, and its money would stay held.
            # * The attempt timeout. Without it one hanging attempt would use up the time of all its repeats.
            # * A probe's lease. The breaker frees the lease's slot at its end, and admits the next probe. If this one
            #   ran on, two probes would load a recovering backend that was to receive one.
            # The first two are fixed, so a plain alarm on a shared timer is enough. A lease may be renewed or lifted
            # while the attempt runs, so only an attempt that a lease (or a stream) can end gets the alarm that checks
            # again when it rings.
            until = permit.given_at + options.attempt_timeout_s
            if deadline < until:
                until = deadline
            lasts = permit.lease_ends_at < until or (scope is not None and scope.streams)
            alarm = self._watch(permit, until, deadline, scope) if lasts else Alarm(self._deadlines, until)
            try:
                with alarm:
                    result = await operation(*args)
            # From `_admit` on this call owns a permit, a slot, and perhaps held money. Every way out of the `try` (the
            # alarm's TimeoutError too, which `with` raises inside it) must settle them exactly once: `_fail`,
            # `_settle_success` or `scope.keep`. `except Exception` would miss a cancellation. Its probe would then keep
            # the breaker half open until the lease ends, its slot would be gone for the life of the process, and its
            # money would stay held.
            except BaseException as error:  # noqa: BLE001 - a cancellation must settle its permit too; it is raised again
                # A cancellation is NEUTRAL. If it counted as a failure, users who close a page would open the circuit;
                # if it counted as a success, a cancelled probe would close the circuit of a dead backend.
                passage = passage or Passage(charge, deadline, on_limit, is_ours, has_next)
                pause = self._fail(passage, permit, error, alarm)
                permit = await self._enter_again(passage, pause)
            else:
                # There is no await between the result and its settlement: a cancellation delivered there would lose the
                # permit.
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
        """Like `call`, but a success keeps its permit: the scope's `value` is the result, and its owner settles it.

        `scope`: a scope that the operation already has a reference to (see `Scope.streams`).
        """
        if scope is None:
            scope = Scope(self)
        scope.value = await self.call(
            operation, *args, charge=charge, on_limit=on_limit, timeout_s=timeout_s, is_ours=is_ours,
            has_next=has_next, scope=scope,
        )  # fmt: skip
        return scope

    def _watch(self, permit: Permit, until: float, deadline: float, scope: Scope[T] | None) -> Alarm:
        """The alarm of an attempt whose end may move: a probe, or a stream, which may be silent for longer."""
        # A stream bounds its own silences, so the attempt timeout does not apply: a long answer would be cut off in the
        # middle of its content. The scope gets the permit now, because it renews the lease while the operation runs.
        if scope is not None and scope.streams:
            scope.permit, until = permit, deadline
        return AlarmOfProbe(self._deadlines, permit, until)

    def permit(self, charge: Charge | None = None, on_limit: OnLimit | None = None) -> Scope[None]:
        """`async with guard.permit() as scope:` for a block. It is never repeated, and judged by the exception that
        leaves it."""
        return Scope(self, Passage(charge, NEVER, on_limit))

    # ── the way in ────────────────────────────────────────────────────────────────────────────────────────────

    async def enter(self, passage: Passage) -> Permit:
        """Pass all gates, waiting if that is allowed. Raises a refusal, and then nothing stays taken."""
        gates, charge, deadline = self.gates, passage.charge, passage.deadline
        now = self._monotonic()
        if now >= deadline:
            self._refuse_late()
        # The breaker is checked before the queues: a call that the breaker will refuse anyway must not wait in them or
        # take a unit.
        if self.breaker.refuses(now):
            gates.refuse_open(self, now)
        passage.paced = False  # an earlier attempt has used its cell
        if not gates.take(now, self.cooldown.until):
            now = await gates.take_in_turn(self, passage)
            # A slot may be granted in the same turn of the loop in which the deadline passes. Without this check the
            # operation would start with no time left, and perhaps send a request that is billed and never read.
            if now >= deadline:
                gates.give_back(now)
                gates.give_back_cell(self, passage)
                self._refuse_late()
        try:
            permit = self._admit(now, None, now) if charge is None else await self._pay(charge, deadline, now)
        except BaseException:
            gates.give_back_cell(self, passage)
            raise
        if permit is None:
            gates.give_back_cell(self, passage)
            return await self.enter(passage)
        if passage.paced:
            self.pacer.use()
        return permit

    def _refuse_late(self) -> NoReturn:
        reason = "the deadline had passed before the call"
        self.gates.refuse(self, self.gates.family.timeout, reason, None, Kind.DEADLINE)

    async def _pay(self, charge: Charge, deadline: float, taken_at: float) -> Permit | None:
        """Hold the money, then pass the last gate. None if an earlier gate has shut meanwhile: nothing stays taken."""
        # `hold` may wait for the store. A refusal, an error or a cancellation there leaves no money held (see
        # `Charge`), but the slot and the units taken before it are this call's to return: the slot would never come
        # free.
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
        # Most calls find their money at once, and their units count from now anyway.
        if now - taken_at > WAITED_S:
            if not self.gates.take_again(self, taken_at, now):
                charge.release()
                return None
            taken_at = now
        return self._admit(taken_at, charge, now)

    def _admit(self, taken_at: float, charge: Charge | None, now: float) -> Permit:
        """The last gate: the breaker's permit, decided as of now and not as of the start of the wait."""
        # The breaker may have opened while this call waited for a slot or for its money. A permit that was taken
        # earlier would be worse: if a later gate refused the call, its probe's lease would block recovery until it runs
        # out.
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
        """Pause, and pass all gates again. A repeat that is never made costs no token of the retry budget."""
        passage.ahead = pause_s is None
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
        """Sleep until the pause is over, or until an operator resets the guard: then there is no reason left to
        wait."""
        # The call sleeps in steps, because a reset wakes no sleeping call: so callers in a pause of minutes go on
        # within a second of a reset.
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
        """`first`: it was the first attempt. For `slow` and `took_s` see `leave`."""
        # The order matters. The slot comes first: if this success closes the breaker, the ramp starts from the number
        # of calls still running, and this one is not. `give_back` also assigns the slot to the longest waiter, which
        # only wakes on a later turn of the loop; if it were left free until then, a newcomer would take it. Publishing
        # comes after the breaker's state is set, because listeners read it. Money comes last: if its settlement fails,
        # everything else is already returned. A result of an older generation changes nothing here: `breaker.settle`
        # drops it, because it is from before the last trip or recovery. The call is still counted in the tally.
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
        # `last_error` is set before the breaker settles, because a trip quotes it as its reason. While it is not
        # closed, a call that its caller cut short must not replace the error that opened it.
        if verdict is not NEUTRAL or fault.block is not None or (is_cut and breaker.phase is CLOSED):
            self._note_error(fault.met)
        # Among neutral results only a passed deadline says something about the dependency: that it was slow.
        slow = slow and (verdict is FAILURE or fault.kind is Kind.DEADLINE)
        self.gates.bulkhead.give_back()
        marks = breaker.marks
        counted = breaker.settle(permit, verdict, slow, now, self.gates.draw, fault.retry_after_s or 0.0)
        self.tally.record_other(verdict, fault.kind, slow, now)
        if breaker.happened:
            self._publish_steps()
        if verdict is THROTTLED or fault.block is not None:
            self.gates.apply_fault(self, fault, now)
        # Only failures of the shared host spread to the other models (`reach` is "service": no connection could be made
        # or kept). An HTTP 500 from one model says nothing about the next one. The failure must also have counted here:
        # a late result, or one of an older generation, describes the host as it was. If it spread, the stragglers of an
        # outage would open the other models' breakers after the host has recovered. `marks` grows only if this failure
        # added a step to the model's own failures in a row: one reset that hits fifty running calls is one step for
        # each model, not fifty.
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

        `took_s` and `slow`: see `Scope.settle`. Money comes last: if its settlement fails, the rest is already settled.
        """
        charge, first = passage.charge, passage.attempt == 1
        if fault is None:
            self._settle_success(permit, charge, first, slow, took_s)
            return
        if fault.verdict is SUCCESS:  # the classifier counts this error as a success
            self._settle_success(permit, None, first, slow, took_s)
        else:
            self._settle_fault(permit, fault, slow, took_s)
        if charge is not None:
            if fault.billed:
                charge.settle()
            else:
                charge.release()

    def _cut_s(self) -> float:
        """How long a call that its caller cuts short must have run before it is evidence against the dependency."""
        return max(CUT_S_MIN, USUAL_CUT * self.tally.totals().percentile_s(0.5))

    def abandon(self, passage: Passage, permit: Permit) -> None:
        """Settle a dropped scope as neutral and billed. It may be called from any thread, at any moment."""
        loop = self._deadlines.loop
        if loop is not None and loop.is_running():
            # The permit is not settled immediately: the garbage collector calls this in any thread, and between any two
            # bytecodes. In the middle of `breaker.settle` it would change the very state that the interrupted step
            # relies on.
            loop.call_soon_threadsafe(self.leave, passage, permit, CANCELLED)
        else:
            self.leave(passage, permit, CANCELLED)

    def count_outage(self, in_row: bool, failure: Failure | None) -> None:
        """Count the failure of another model to reach the shared host. `in_row`: it counted as a failure in a row
        there."""
        self.breaker.last_error = failure
        self.breaker.count_outage(in_row, self._monotonic(), self.gates.draw)
        if self.breaker.happened:
            self._publish_steps()

    # ── between attempts ──────────────────────────────────────────────────────────────────────────────────────

    def judge(self, error: BaseException) -> Fault:
        """Classify an error. Never raises: a non-Exception is NEUTRAL, and so is a failure of the classifier itself."""
        return judge(self._classify, error)

    def _fail(self, passage: Passage, permit: Permit, error: BaseException, alarm: Alarm) -> float | None:
        """Settle a failed attempt; returns the pause before the next one, or raises the real error now.

        None: the next attempt is not a repeat, because this one was not made, or is the same call in another form. It
        enters immediately and without a token.
        """
        timeout, now = self.gates.family.timeout, self._monotonic()
        fault = fault_of_time(self.name, timeout, error, alarm, passage, now) or self.judge(error)
        # The permit ends before any pause, so that another call can use this attempt's slot in the bulkhead, and
        # another probe its slot in the breaker. Whether to repeat is decided afterwards, because this very failure may
        # have opened the breaker or begun a cooldown.
        self.leave(passage, permit, fault)
        if fault.unmade or (fault.anew and passage.anew < ANEW_MAX):
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
            # The error's traceback refers to this frame, and the frame's variables refer to the error. Without this
            # `del` the cycle would keep everything in the callers' frames (prompts, sessions) until the cycle collector
            # runs.
            del error, real, fault

    # ── the monitor and the operator ──────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Apply the changes that time alone causes; the monitor calls this about once a second."""
        now = self._monotonic()
        self.breaker.tick(now, self.gates.draw)
        self.tally.roll(now)
        self.gates.tick(now)
        if self.breaker.happened:
            self._publish_steps()

    def note_check(self, error: KooError | None) -> None:
        """Record a health check. None is success, which closes a breaker only after a long time without calls."""
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
        """Keep the error with its time. Call it before settling, so that a trip can name the error as its cause."""
        self.breaker.last_error = noted = replace(failure, at=self.gates.clock.wall())
        return noted

    def evidence(self) -> Evidence:
        """The evidence for the reported state. Checks that failed before the last successful call do not count."""
        last_success_at = self.tally.last_success_at
        cuts = self.tally.cuts_in_row(self._monotonic())
        if last_success_at is not None and last_success_at >= self.check_failed_at:
            return Evidence(self.breaker, cuts=cuts)
        return Evidence(self.breaker, self.checks_failed, cuts, self.check_error)

    def set_override(self, override: Override, act: Act | None = None, ends_at: float = NEVER) -> None:
        """Apply an operator's override until `ends_at` (monotonic seconds)."""
        self.breaker.set_override(override, act, ends_at)
        self._publish_steps()

    def reset(self, act: Act | None = None, *, is_new: bool = True) -> None:
        """Close the breaker and forget streaks, checks and cooldown; never counts, limits or money.

        `is_new` is False for an act that another process has published.
        """
        breaker = self.breaker
        was_shut = breaker.phase is CLOSED and breaker.override is NONE
        breaker.reset(self._monotonic(), act)
        if was_shut and not is_new:
            # Nothing ended here. Otherwise each process would log and mark the act again, and one that starts later
            # would do so with the time of its start.
            breaker.happened.clear()
        self.cooldown.clear()
        self.tally.forget_cuts()
        self.resets, self.checks_failed = self.resets + 1, 0
        self._publish_steps()

    def _publish_steps(self) -> None:
        """Publish the breaker's events after its state is set, and adjust the probes' lease and the slots to them."""
        # The list is taken away first: a listener may call the guard again (a reset, say), whose own events would
        # otherwise be published twice.
        breaker = self.breaker
        happened, breaker.happened = breaker.happened, []
        for event in happened:
            if isinstance(event, CircuitOpened):
                # The lease is twice the p99 from the time when the model was last healthy: a shorter lease would fail
                # the probes of a model that is always slow, and its breaker would never close. Calls of the outage
                # itself must not lengthen it.
                usual_s = max(self.options.breaker.lease_s, 2 * self.tally.healthy().percentile_s(0.99))
                breaker.lease_s = min(self.options.attempt_timeout_s, usual_s)
            elif isinstance(event, CircuitClosed) and breaker.override is NONE and breaker.closed_by:
                self._narrow(breaker.closed_by)
            self.gates.emit(event)

    def _narrow(self, closed_by: Trigger) -> None:
        """Begin the ramp, with a single call if no probe has tested the backend."""
        untried = closed_by is Trigger.STAYED_IDLE
        few = 1 if untried else RAMP_FACTOR * self.options.breaker.success_threshold
        self.gates.bulkhead.narrow(few, self._monotonic())
