"""Guard: the one place where policies meet I/O.

Two faces over one permit: `call` runs a function and repeats it where that is safe and worth it; `begin` and `permit()`
give a scope, for a block or a stream, that its owner ends.

Each attempt goes in through the gates (`Entrance`), runs, and settles: exactly once, whatever happens, by its result,
by an error, by a cancellation (NEUTRAL), or by its own end of time. Between two attempts the policies are asked and
answer; they never call back.
"""

from __future__ import annotations

import random
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from koo.clock import SYSTEM_CLOCK, Clock
from koo.deadlines import Alarm, Deadlines, WrongLoop, ends_at
from koo.errors import Kind, KooError, describe_s
from koo.events import CooldownBegan, Event, KeyBlocked
from koo.gates import DATABASES, LOOK_AGAIN_S, SERVICES, Charge, Entrance, Family, Gates, OnLimit
from koo.options import NEVER, GuardOptions
from koo.policies.backoff import pause_s
from koo.policies.breaker import FORCED_OPEN, OPEN, Override, Permit
from koo.policies.cooldown import Cooldown
from koo.policies.foreign import classify_foreign
from koo.policies.reported import Signs
from koo.policies.retry_budget import RetryBudget
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, SUCCESS, THROTTLED, UNJUDGED, Classify, Fault

__all__ = ["DATABASES", "SERVICES", "Charge", "Family", "Gates", "Guard", "OnLimit", "Scope"]

T = TypeVar("T")
LATENCY_S_MIN = 1.0
"""A repeat is not begun when less than this (or the usual latency, if that is longer) is left of the deadline."""
TELL_AGAIN_S = 1.0
"""A pause that grows by less is no news."""
OVERDUE = Fault(verdict=NEUTRAL, kind=Kind.DEADLINE)
"""The caller's deadline cut the attempt short: nobody's fault, but it may have been slow."""


class Scope(Generic[T]):
    """One permit for the length of a block or a stream; `value` is what `begin`'s operation gave.

    End it with `settle`, or use it as `async with`. `deadline` is in monotonic seconds: no timer of its own spans the
    block, so whoever waits inside bounds each wait with it.
    """

    __slots__ = ("_charge", "_ended", "_guard", "attempts", "deadline", "on_limit", "permit", "value")

    value: T
    permit: Permit

    def __init__(self, guard: Guard, charge: Charge | None, on_limit: OnLimit | None = None) -> None:
        self._guard = guard
        self._charge = charge
        self._ended = True  # nothing is taken yet
        self.on_limit = on_limit
        self.attempts = 1
        self.deadline = 0.0

    async def __aenter__(self) -> Scope[T]:
        guard = self._guard
        if not self._ended:
            raise RuntimeError("this scope is in use: each block needs a permit() of its own")
        self.deadline = min(ends_at.get(), guard.now() + guard.options.timeout_s)
        self._keep(await guard.enter(self._charge, self.deadline, self.on_limit), 1, self.deadline)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.settle(None if error is None else self._guard.judge(error))

    def _keep(self, permit: Permit, attempts: int, deadline: float) -> None:
        self.permit, self.attempts, self.deadline = permit, attempts, deadline
        self._ended = False

    def renew(self) -> None:
        """A piece of content came: a probe that streams is alive."""
        self._guard.breaker.renew(self.permit, self._guard.now())

    def settle(
        self, fault: Fault | None = None, *, slow: bool | None = None, took_s: float | None = None
    ) -> None:
        """End it, once: None is success.

        The scope's own length may be its caller's time: `took_s` is what the other side took of it, and `slow`
        whether that was slow, where it is not simply `took_s` against the option.
        """
        if self._ended:
            return
        self._ended = True
        self._guard.leave(self.permit, self._charge, fault, self.attempts, self._guard.now(), slow, took_s)

    def __del__(self) -> None:
        # Dropped unsettled: without this its permit, its place and its money would stay taken for ever.
        if not self._ended:
            self._guard.abandon(self.permit, self._charge, self.attempts)


class Guard(Entrance):
    """One guarded dependency. `classify` says what an error means; the rest is said at `Entrance`."""

    __slots__ = ("_classify", "check_failed_at", "checks_failed", "resets", "retry_budget")

    def __init__(
        self,
        name: str,
        options: GuardOptions,
        *,
        deadlines: Deadlines,
        gates: Gates | None = None,
        model: str | None = None,
        family: Family = SERVICES,
        classify: Classify = classify_foreign,
        clock: Clock = SYSTEM_CLOCK,
        draw: Callable[[], float] = random.random,
        publish: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(
            name,
            options,
            deadlines=deadlines,
            gates=gates,
            model=model,
            family=family,
            clock=clock,
            draw=draw,
            publish=publish,
        )
        self._classify = classify
        self.retry_budget = RetryBudget(options.retry, self.now())
        self.resets = 0
        self.checks_failed = 0
        self.check_failed_at = self.now()

    def __repr__(self) -> str:
        breaker, total = self.breaker, self.tally.totals()
        back = f", back in {describe_s(breaker.refusal(self.now())[1])}" if breaker.phase is OPEN else ""
        counts = f"{sum(total.verdicts)} calls, {total.verdicts[FAILURE]} failed"
        return f"<Guard {breaker.name!r} {breaker.phase.value}{back} | {counts}>"

    # ── the two faces ─────────────────────────────────────────────────────────────────────────────────────────

    async def call(  # noqa: PLR0912 - each attempt's way, in one piece: a call more is time on every call
        self,
        operation: Callable[..., Awaitable[T]],
        *args: object,
        charge: Charge | None = None,
        on_limit: OnLimit | None = None,
        timeout_s: float | None = None,
        scope: Scope[T] | None = None,
    ) -> T:
        """Run `operation(*args)` under guard, again where that is safe and worth it.

        Raises what the operation raised (or what the classifier makes of it, `from` the original), or a refusal of
        the guard's family. `on_limit`: None waits for a pause that the other side asked for and is refused by our own
        limits; "wait" queues for both within the deadline, "refuse" waits for neither. With a `scope` a success is
        not settled: the scope keeps the permit.
        """
        now = self._monotonic()
        options, outer = self.options, ends_at.get()
        # Written out, here and below: `min` would be one more call on every call's way.
        deadline = now + (options.timeout_s if timeout_s is None else timeout_s)
        if outer < deadline:  # noqa: PLR1730
            deadline = outer
        attempt = 1
        if self.breaker.refuses(now):
            self._refuse_open(now)
        if now < deadline and self._take(now):
            holding = None if charge is None else self._hold(charge, deadline, now)
            if holding is None:
                permit = self._admit(now, charge, now)
            else:
                permit = await self._admit_held(charge, holding, now)
        else:
            permit = await self.enter(charge, deadline, on_limit)
        while True:
            attempt_ends_at = permit.given_at + options.attempt_timeout_s
            ends_first = deadline if deadline < attempt_ends_at else attempt_ends_at  # noqa: FURB136
            if permit.lease_ends_at < ends_first:  # noqa: PLR1730
                ends_first = permit.lease_ends_at
            alarm = Alarm(self._deadlines, ends_first)
            try:
                with alarm:
                    result = await operation(*args)
            except BaseException as error:  # noqa: BLE001 - a cancellation too must end its permit; it is raised again
                pause = self._fail(permit, charge, error, alarm, attempt, deadline, on_limit)
                permit = await self._enter_again(pause, attempt, charge, deadline, on_limit)
                attempt += 1
            else:
                if scope is not None:
                    permit.kept = True
                    scope._keep(permit, attempt, deadline)
                else:
                    now = self._monotonic()
                    latency_s = now - permit.given_at
                    self._settle_success(permit, latency_s, latency_s >= options.slow_s, attempt, now)
                    if charge is not None:
                        charge.settle()
                return result

    async def _enter_again(
        self, pause_s: float, attempt: int, charge: Charge | None, deadline: float, on_limit: OnLimit | None
    ) -> Permit:
        """Pause, and through all gates once more. A repeat that is never made costs no token."""
        try:
            await self._pause(pause_s)
            permit = await self.enter(charge, deadline, on_limit)
        except BaseException as error:
            self.retry_budget.give_back()
            if isinstance(error, KooError):
                error.attempts = attempt
            raise
        self.tally.retries += 1
        return permit

    async def _pause(self, pause_s: float) -> None:
        """Until the pause is over, or an operator resets: then what it was for is over too."""
        resets, over_at = self.resets, self.now() + pause_s
        while True:
            await self._sleep(min(pause_s, LOOK_AGAIN_S))
            pause_s = over_at - self.now()
            if pause_s <= 0 or self.resets != resets:
                return

    async def begin(
        self,
        operation: Callable[..., Awaitable[T]],
        *args: object,
        charge: Charge | None = None,
        on_limit: OnLimit | None = None,
        timeout_s: float | None = None,
    ) -> Scope[T]:
        """As `call`, but a success keeps its permit: the scope's `value` is the result, and its owner settles it."""
        scope: Scope[T] = Scope(self, charge)
        scope.value = await self.call(
            operation, *args, charge=charge, on_limit=on_limit, timeout_s=timeout_s, scope=scope
        )
        return scope

    def permit(self, charge: Charge | None = None, on_limit: OnLimit | None = None) -> Scope[None]:
        """`async with guard.permit() as scope:` for a block: never repeated, judged by what leaves it."""
        return Scope(self, charge, on_limit)

    # ── settlement ────────────────────────────────────────────────────────────────────────────────────────────

    def _settle_success(self, permit: Permit, latency_s: float, slow: bool, attempt: int, now: float) -> None:
        self._bulkhead.give_back()
        breaker = self.breaker
        breaker.settle(permit, SUCCESS, slow, now, self._draw)
        self.tally.record_success(latency_s, slow, attempt == 1, now)
        if breaker.happened:
            self._publish_steps()
        if not self.quiet:
            self.cooldown.ease()
            self.gates.quota.ease()

    def leave(
        self,
        permit: Permit,
        charge: Charge | None,
        fault: Fault | None,
        attempt: int,
        now: float,
        slow: bool | None = None,
        took_s: float | None = None,
    ) -> None:
        """Settle everything that `enter` took, exactly once: with a success (None) or a fault.

        `took_s` and `slow`: see `Scope.settle`. Money comes last: if its settlement fails, the rest is done.
        """
        latency_s = now - permit.given_at if took_s is None else took_s
        late = latency_s >= self.options.slow_s if slow is None else slow
        if fault is None or fault.verdict is SUCCESS:
            self._settle_success(permit, latency_s, late, attempt, now)
        else:
            self._settle_fault(permit, fault, late, now)
        if charge is not None:
            if fault is None or fault.billed:
                charge.settle()
            else:
                charge.release()

    def abandon(self, permit: Permit, charge: Charge | None, attempt: int) -> None:
        """Settle what nobody will settle any more: neutral, and paid for. From any thread, at any moment."""
        loop = self._deadlines.loop
        if loop is not None and loop.is_running():
            # Not at once: the garbage collector comes in the middle of anything, and in any thread.
            loop.call_soon_threadsafe(lambda: self.leave(permit, charge, CANCELLED, attempt, self.now()))
        else:
            self.leave(permit, charge, CANCELLED, attempt, self.now())

    def _settle_fault(self, permit: Permit, fault: Fault, slow: bool, now: float) -> None:
        verdict, breaker = fault.verdict, self.breaker
        self._bulkhead.give_back()
        # Of neutral ends only the deadline's tells anything about the other side: that it was slow.
        slow = slow and (verdict is FAILURE or fault.kind is Kind.DEADLINE)
        marks = breaker.marks
        counted = breaker.settle(permit, verdict, slow, now, self._draw, fault.retry_after_s or 0.0)
        self.tally.record_other(verdict, fault.kind, slow, now)
        if breaker.happened:
            self._publish_steps()
        if verdict is THROTTLED:
            self._cool_down(fault, now)
        elif fault.block is not None:
            self._block_key(fault, now)
        elif verdict is FAILURE and fault.reach == "service" and counted:
            for peer in tuple(self.gates.guards):
                if peer is not self:
                    peer.count_outage(breaker.marks > marks, now)

    def _cool_down(self, fault: Fault, now: float) -> None:
        cooldown = self._cooldown_of(fault)
        limited = fault.kind is Kind.THROTTLED
        reason = "the provider limits our rate" if limited else "the provider's quota is used up"
        until = cooldown.until
        self.gates.invalidate()
        for_s = cooldown.extend(now, self._asked_s(fault), self._draw, fault.kind, reason)
        if (
            cooldown.until > max(until, now) + TELL_AGAIN_S or now >= until
        ):  # once, not by each call of a burst
            whole = cooldown is self.gates.quota
            self._emit(CooldownBegan(self.breaker.name, for_s, reason, fault.kind, whole))

    def _cooldown_of(self, fault: Fault) -> Cooldown:
        return self.gates.quota if fault.reach == "service" else self.cooldown

    def _asked_s(self, fault: Fault) -> float | None:
        """How long the other side asked us to stay away: in seconds, or as a time of day."""
        if fault.until_wall_s is None:
            return fault.retry_after_s
        return max(fault.until_wall_s - self._wall(), fault.retry_after_s or 0.0)

    def _block_key(self, fault: Fault, now: float) -> None:
        model = self.model if fault.block == "model" else None
        reason = "the provider refused the key" + (f" for {model}" if model else "")
        asked_s = self._asked_s(fault)
        until = NEVER if fault.until_wall_s is None or asked_s is None else now + asked_s
        self.gates.invalidate()
        if self.gates.key_blocks.set(model, fault.kind, reason, now, until):
            self._emit(KeyBlocked(self.name, reason, model))

    # ── between attempts ──────────────────────────────────────────────────────────────────────────────────────

    def judge(self, error: BaseException) -> Fault:
        """What an error means. Total: anything but an Exception is NEUTRAL, and so is a classifier's own failure."""
        if not isinstance(error, Exception):
            return CANCELLED
        if isinstance(error, WrongLoop):
            return UNJUDGED
        try:
            fault = self._classify(error)
        except Exception:  # noqa: BLE001 - a classifier that fails must not keep the permit
            return UNJUDGED
        return fault if isinstance(fault, Fault) else UNJUDGED

    def _judge_attempt(self, error: BaseException, alarm: Alarm, deadline: float) -> Fault:
        """As `judge`; but a timeout of ours is a failure, and the caller's deadline cutting in is nobody's fault."""
        if not alarm.expired:
            # Where the caller's own timeout ends at the same moment, its cancellation wins; the call was as late.
            both = isinstance(error, CancelledError) and self._monotonic() >= deadline
            return OVERDUE if both else self.judge(error)
        if alarm.when >= deadline:
            late = self.family.timeout(
                self.name, "the deadline passed before an answer came", kind=Kind.DEADLINE
            )
            return Fault(verdict=NEUTRAL, kind=Kind.DEADLINE, error=late)
        late = self.family.timeout(self.name, "no answer within the time of an attempt", kind=Kind.TIMEOUT)
        return Fault(verdict=FAILURE, kind=Kind.TIMEOUT, repeatable=True, error=late)

    def _fail(
        self,
        permit: Permit,
        charge: Charge | None,
        error: BaseException,
        alarm: Alarm,
        attempt: int,
        deadline: float,
        on_limit: OnLimit | None,
    ) -> float:
        """Settle a failed attempt; gives the pause before the next one, or raises the real error now."""
        fault = self._judge_attempt(error, alarm, deadline)
        now = self._monotonic()
        self.leave(permit, charge, fault, attempt, now)
        pause, why_not = self._plan_repeat(fault, attempt, deadline, now, on_limit)
        if pause is not None:
            return pause
        real = fault.error or error
        self._explain(real, fault, attempt, why_not, now)
        if real is error:
            raise error
        raise real from error

    def _explain(self, real: BaseException, fault: Fault, attempt: int, why_not: str, now: float) -> None:
        """Write on the error how often was tried, why not again, and when to come back."""
        if isinstance(real, KooError):
            real.attempts = attempt
            if why_not and why_not not in real.reason:  # the same object may be raised twice
                real.reason += f", and is not repeated: {why_not}"
            if fault.verdict is THROTTLED and real.retry_after_s is None:
                real.retry_after_s = self._cooldown_of(fault).until - now
        elif why_not:
            note = f"{self.name}: not repeated after {attempt} attempts: {why_not}"
            if note not in getattr(real, "__notes__", ()):
                real.add_note(note)

    def _plan_repeat(
        self, fault: Fault, attempt: int, deadline: float, now: float, on_limit: OnLimit | None
    ) -> tuple[float | None, str]:
        """The pause before the next attempt, or None and why there is none (empty: nobody would expect one)."""
        retry, breaker = self.options.retry, self.breaker
        throttled = fault.verdict is THROTTLED
        safe = self.options.idempotent or throttled  # what was turned away at the door was not done
        if not fault.repeatable or not safe or attempt >= retry.attempts_max:
            return None, ""
        if throttled and on_limit == "refuse":
            return None, ""
        hint_s = fault.retry_after_s or 0.0
        if hint_s > retry.cap_s and not throttled:
            return None, f"it asks for a pause of {describe_s(hint_s)}"
        pause = pause_s(retry, attempt, self._draw, hint_s)
        if throttled:
            pause = max(pause, self._cooldown_of(fault).until - now)
        if breaker.override is FORCED_OPEN:
            return None, breaker.refusal(now)[0]
        if breaker.refuses(now + pause):
            pause = max(pause, breaker.refusal(now)[1])
        usual_s = max(self.tally.recent(now).percentile_s(0.5), LATENCY_S_MIN)
        if now + pause + usual_s > deadline:
            return None, "the deadline is too near"
        if not self.retry_budget.take(self.tally.first_successes, now):
            return None, "the retry budget is empty"
        return pause, ""

    # ── the monitor and the operator ──────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """What time alone brings about; the monitor calls it about once a second."""
        now = self._monotonic()
        bulkhead = self._bulkhead
        self.breaker.tick(now, self._draw)
        self.tally.roll(now)
        self._limits.roll(now)
        if bulkhead.cap < bulkhead.limit:
            bulkhead.widen(now)
        if self.breaker.happened:
            self._publish_steps()

    def note_check(self, succeeded: bool) -> None:
        """A health check ended. Its success closes a breaker only where nobody has called for long."""
        now = self._monotonic()
        if succeeded:
            self.checks_failed = 0
            self.breaker.close_idle(now)
            if self.breaker.happened:
                self._publish_steps()
        else:
            self.checks_failed += 1
            self.check_failed_at = now

    def signs(self) -> Signs:
        """What speaks about its state; checks that failed before the last success do not."""
        last_success_at = self.tally.last_success_at
        if last_success_at is not None and last_success_at >= self.check_failed_at:
            return Signs(self.breaker)
        return Signs(self.breaker, self.checks_failed)

    def set_override(self, override: Override) -> None:
        """Let an operator decide."""
        self.breaker.set_override(override)
        self._publish_steps()

    def reset(self) -> None:
        """Close the breaker and forget streaks, checks and cooldown; never counts, limits or money."""
        self.breaker.reset(self._monotonic())
        self.cooldown.clear()
        self.resets += 1
        self.checks_failed = 0
        self._publish_steps()
