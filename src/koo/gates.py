"""The gates before a guarded call: they take, wait, return and refuse.

    check the breaker → key block → cooldown → limits → pace → bulkhead → hold money → admit

A service has one key, one limit and one set of slots for all its models, so the guards of those models share these
gates. Each model has its own breaker, cooldown and counts, which the gates reach through `Guarded`.

A gate that refuses returns what the gates before it took, in the same step. Gates that may wait come before the money,
because a queued call must not tie up budget that another call could spend. The breaker is checked first and its permit
taken last. The check comes first so that a call that it will refuse takes no unit and joins no queue. The permit comes
last because a probe's lease would leak if a later gate refused. An earlier gate may shut while a call waits at a later
one. So after any wait the clock is read again, and a call that has passed the last queue starts over if an earlier gate
would now refuse it.

`take` is the fast path: it takes everything without waiting, or nothing. `take_in_turn` is the slow path, gate by gate.

Four of the gates are rarely shut (the service's quota, a blocked key, pacing, the queue for a limit). `quiet` is True
while all four are open and have no state to clear, so the fast path checks a single flag. A method here shuts each of
them and clears the flag; the first call that finds all four open sets it again.
"""

from __future__ import annotations

import random
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import NoReturn, Protocol

from koo.callbacks import outlive
from koo.clock import SYSTEM_CLOCK, Clock
from koo.deadlines import Alarm, Deadlines
from koo.errors import Cause, Kind, KooError
from koo.events import CooldownBegan, Event, KeyBlocked, KeyUnblocked
from koo.limit_gate import take_limits
from koo.options import NEVER, GuardOptions
from koo.passage import LOOK_AGAIN_S, Passage
from koo.policies.breaker import Breaker, Draw
from koo.policies.bulkhead import Bulkhead
from koo.policies.cooldown import Cooldown
from koo.policies.key_block import KeyBlock, KeyBlocks
from koo.policies.limiter import Limits
from koo.policies.pacer import PILOT_LOOK_S, Pacer
from koo.policies.retry_budget import RetryBudget
from koo.policies.tally import Tally
from koo.policies.verdict import Fault
from koo.refusals import OURS, SERVICES, Family

KEY_CHECK_S = 2.0
"""An unbilled check of a refused key starts within a second of its due time, and usually ends within another."""
WAITED_S = 0.1
"""If its money took longer than this to hold, a call has waited for it."""
NEWS_S = 1.0
"""A pause extended by less than this is not published again: each call of a burst moves the end a little."""

is_fed: ContextVar[bool] = ContextVar("koo_is_fed", default=False)
"""True for the queries of a list, which starts no more of them than there are slots. The limit on the queue's length
does not apply to them: a list would otherwise have its own queries refused."""


class Guarded(Protocol):
    """The part of a guard that the gates use. Each model has its own."""

    breaker: Breaker
    cooldown: Cooldown
    pacer: Pacer
    tally: Tally
    model: str | None


class Gates:
    """The gates that all guards of one dependency share.

    `name` appears in errors. Without `limits` there are none; without `bulkhead` there are `options.concurrency_max`
    slots. `draw` returns numbers in [0, 1). `publish` receives events. `slot_settings`: the settings' names for
    `concurrency_max` and `queue_max`, quoted in errors. Nothing here is bound to an event loop before the first call.
    """

    __slots__ = (
        "_widens", "bulkhead", "clock", "credential", "deadlines", "draw", "family", "key_blocks", "kin",
        "limit_queue", "limits", "name", "options", "pacing", "publish", "quiet", "quota", "retry_budget",
        "slot_settings",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        options: GuardOptions,
        *,
        deadlines: Deadlines,
        family: Family = SERVICES,
        limits: Limits | None = None,
        bulkhead: Bulkhead | None = None,
        clock: Clock = SYSTEM_CLOCK,
        draw: Draw = random.random,
        publish: Callable[[Event], None] | None = None,
        slot_settings: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.options = options
        self.deadlines = deadlines
        self.family = family
        self.limits = limits if limits is not None else Limits()
        self.bulkhead = bulkhead if bulkhead is not None else Bulkhead(options.concurrency_max)
        self.clock = clock
        self.draw = draw
        self.publish = publish
        self.slot_settings = slot_settings
        self.quota = Cooldown()
        self.retry_budget = RetryBudget(options.retry, clock.monotonic())
        self.pacing: set[Pacer] = set()  # the pacers that may have to delay a call
        self.key_blocks = KeyBlocks()
        # Only the head of the queue retries a full limit; the others wait behind it, in order.
        self.limit_queue = Bulkhead(1)
        self.quiet = False
        # The event loop and the time of the timer for the ramp's next step. A timer ends with its loop.
        self._widens: tuple[AbstractEventLoop, float] | None = None
        # `credential`: a digest of the key, empty for the service's own key. `kin`: the gates of all the service's
        # keys, which share its limits and slots.
        self.credential, self.kin = "", {self}

    # ── the fast path ─────────────────────────────────────────────────────────────────────────────────────────

    def take(self, now: float, paused_until: float) -> bool:
        """Take a unit of each limit and a slot if no gate refuses or has to wait; else take nothing.

        `paused_until` is the end of the model's own cooldown.
        """
        if now < paused_until or not (self.quiet or self._is_open(now)):
            return False
        if self.limits.take(now) is not None:
            return False
        if self.bulkhead.take():
            return True
        self.limits.refund(now)
        return False

    def _is_open(self, now: float) -> bool:
        """True if none of the rarely shut gates is shut; sets `quiet` if there is nothing left to forget."""
        quota = self.quota
        if now < quota.until or self.key_blocks or self.limit_queue.used or self._is_paced(now):
            return False
        # `level` counts guessed pauses in a row, and only a success clears it, through `ease`, which a quiet guard
        # skips. With `quiet` set too early the level would stay, and the first pause of the next incident would be
        # minutes long.
        self.quiet = not quota.level
        return True

    def _is_paced(self, now: float) -> bool:
        """True while a burst that fills all slots could exceed one of the provider's limits."""
        # The fast path does not count calls against the provider's limits. It is therefore open only while counting is
        # not needed: even if every slot is filled before the next response arrives, the limits have room for all those
        # calls. Each response's headers are checked again, and shut the fast path once the room is smaller than that.
        slots = self.bulkhead.limit
        self.pacing = {pacer for pacer in self.pacing if not pacer.allows(slots, now)}
        return bool(self.pacing)

    def give_back(self, taken_at: float) -> None:
        """Return the slot and the units of a call that is not made after all. `taken_at`: when the units were
        taken."""
        self.bulkhead.give_back()
        self.limits.refund(taken_at)

    def take_again(self, guard: Guarded, taken_at: float, now: float) -> bool:
        """After a wait for money: count the units from now on. False, with nothing taken, if a gate has shut meanwhile.

        Otherwise calls that waited minutes for money are sent into a pause, with a refused key or in a full minute.
        """
        self.limits.refund(taken_at)
        is_shut = now < guard.cooldown.until or now < self.quota.until
        if is_shut or self.key_blocks.began_after(taken_at, guard.model) or self.limits.take(now) is not None:
            self.bulkhead.give_back()
            return False
        return True

    def refuse_full(self, guard: Guarded, now: float, deadline: float, on_limit: str | None) -> None:
        """Refuse a call that `take` found no unit for, without the slow path, if no other gate has to be checked."""
        refusal = self.limits.refusal(now)
        if refusal is None or not self.quiet or on_limit == "wait":
            return
        if now >= deadline or now < guard.cooldown.until:
            return
        guard.tally.record_refusal(Kind.RATE_LIMITED, now)
        wait_s = None if refusal[1] == NEVER else refusal[1] - now
        raise self.family.limited(self.name, refusal[0], wait_s, kind=Kind.RATE_LIMITED, cause=refusal[2])

    # ── the slow path ─────────────────────────────────────────────────────────────────────────────────────────

    async def take_in_turn(self, guard: Guarded, passage: Passage) -> float:
        """Pass the gates one by one; returns the time at which the limits' units were taken, needed to refund them.

        Raises an error of `family`, and then nothing stays taken.
        """
        while True:
            taken_at = self.clock.monotonic()
            # A call usually waits for a slot only. With a pool as small as a database's, nearly every call does, and
            # passing every gate again, each in its own coroutine, would cost twice as much as the wait itself.
            for_slot = (
                self.quiet and not self._is_shut(guard, taken_at) and self.limits.take(taken_at) is None
            )
            if not for_slot:
                self.look(guard)
                await self._wait_for_cooldown(guard, passage)
                taken_at = await take_limits(self, guard, passage)
            try:
                if not for_slot:
                    passage.paced = await self._pace(guard, passage)
                await self._take_slot(guard, passage)
            # Units are refunded after a cancellation in the queue too: a unit that is not refunded is missing for the
            # rest of its minute or day.
            except BaseException:
                self.limits.refund(taken_at)
                self.give_back_cell(guard, passage)
                raise
            now = self.clock.monotonic()
            # The unit is moved to the time of the call. If it counted from the start of the wait, it would become free
            # too early: of 60 calls a minute, one that waited 30 s would be forgotten 30 s after it left, and let a
            # 61st out within the same minute. Refund and take are one step, so no other caller can get the unit in
            # between.
            self.limits.refund(taken_at)
            if (
                (self.quiet or not for_slot)
                and not self._is_shut(guard, now)
                and self.limits.take(now) is None
            ):
                if self.key_blocks:
                    self.key_blocks.let_out(guard.model, now)
                return now
            # An earlier gate has shut while this call waited for a slot (the provider asked for a pause, say). Without
            # starting over, a hundred calls queued for slots would all be sent into that pause.
            self.bulkhead.give_back()
            self.give_back_cell(guard, passage)

    def give_back_cell(self, guard: Guarded, passage: Passage) -> None:
        """Return the pacer's cell, if this attempt booked one: the attempt is not made."""
        if passage.paced:
            guard.pacer.give_back()
            passage.paced = False

    def _is_shut(self, guard: Guarded, now: float) -> bool:
        """True if one of the gates before the limits would refuse or wait."""
        return (
            guard.breaker.refuses(now)
            or now < guard.cooldown.until
            or now < self.quota.until
            or (bool(self.key_blocks) and self.key_blocks.refuses(guard.model, now) is not None)
        )

    def look(self, guard: Guarded) -> None:
        """Refuse early, before anything is taken and before any wait."""
        now = self.clock.monotonic()
        if guard.breaker.refuses(now):
            self.refuse_open(guard, now)
        if self.key_blocks and (block := self.key_blocks.refuses(guard.model, now)) is not None:
            wait_s = max(self._ends_at(block) - now, 0.0)
            self.refuse(guard, self.family.key_blocked, block.reason, wait_s, Kind.KEY_REFUSED)

    async def _wait_for_cooldown(self, guard: Guarded, passage: Passage) -> None:
        while True:
            now = self.clock.monotonic()
            quota = self.quota
            cooldown = quota if quota.until > guard.cooldown.until else guard.cooldown
            if now >= cooldown.until:
                return
            wait_s = cooldown.until - now
            passes = cooldown.kind is Kind.THROTTLED or passage.on_limit == "wait"
            if passage.on_limit == "refuse" or not passes or cooldown.until >= passage.deadline:
                self.refuse(guard, self.family.limited, cooldown.reason, wait_s, cooldown.kind)
            # The call sleeps in steps: an operator's reset ends the pause early, but wakes no sleeping call.
            await self.clock.sleep(min(wait_s, LOOK_AGAIN_S))

    async def _pace(self, guard: Guarded, passage: Passage) -> bool:
        """Wait until the provider's own limits have room, and book a cell. Always returns True: a cell was booked."""
        pacer, line, now = guard.pacer, guard.pacer.line, self.clock.monotonic()
        wait_s = self._pace_s(guard, passage, now, len(line.line) + line.used)
        if line.used or wait_s:
            self._check_pace(guard, passage, now, wait_s)
            if not await self.stand_in_line(line, guard, passage.deadline):
                self._refuse_pace(guard, wait_s)
            try:
                while wait_s := self._pace_s(guard, passage, now := self.clock.monotonic(), 0):
                    self._check_pace(guard, passage, now, wait_s)
                    # The call sleeps in steps: the next response may show that there is room sooner, but wakes no
                    # sleeping call.
                    await self.clock.sleep(min(wait_s, LOOK_AGAIN_S))
            finally:
                line.give_back()
        pacer.take(now)
        return True

    def _pace_s(self, guard: Guarded, passage: Passage, now: float, ahead: int) -> float:
        """The least time that a call behind `ahead` others waits, for the provider's limits or for a pilot call."""
        pacer, breaker = guard.pacer, guard.breaker
        pacer.count(breaker.given)
        wait_s = pacer.wait_s(now, ahead)
        # Before the first response the limits are unknown, and a few pilot calls go ahead to learn them. A call that
        # does not wait must not be refused only because the service has never been called before.
        asks = pacer.knows or passage.on_limit != "refuse"
        if asks and pacer.must_follow(now, breaker.given - breaker.running):
            wait_s = max(wait_s, PILOT_LOOK_S)
        return wait_s

    def _check_pace(self, guard: Guarded, passage: Passage, now: float, wait_s: float) -> None:
        if passage.on_limit == "refuse" or now + wait_s >= passage.deadline:
            self._refuse_pace(guard, wait_s)

    def _refuse_pace(self, guard: Guarded, wait_s: float) -> NoReturn:
        reason = "the provider's limit is nearly used up"
        # Everyone waits for the pilot's response, which takes as long as responses usually do.
        if guard.pacer.asks:
            wait_s = max(wait_s, guard.tally.recent(self.clock.monotonic()).percentile_s(0.5), LOOK_AGAIN_S)
        self.refuse(guard, self.family.limited, reason, wait_s, Kind.COOLING_DOWN)

    async def _take_slot(self, guard: Guarded, passage: Passage) -> None:
        bulkhead, until, ahead = self.bulkhead, passage.deadline, passage.ahead
        ramping = bulkhead.cap < bulkhead.limit
        if ramping:
            bulkhead.widen(self.clock.monotonic())
        if bulkhead.take():
            return
        if (passage.on_limit == "refuse" and not is_fed.get()) or bulkhead.limit == 0:
            self._refuse_slot(guard, running(bulkhead))
        if ramping:
            self._widen_later()
        line = self.stand_in(bulkhead, until, ahead) if ahead else self.stand_in_line(bulkhead, guard, until)
        if not await line:
            self._refuse_slot(guard, f"no slot became free before the deadline: {running(bulkhead)}")

    def _widen_later(self) -> None:
        """Set the one timer for the ramp's next step. Without it nothing would wake the calls that wait for it."""
        loop, at = widens = get_running_loop(), self.bulkhead.widens_at
        if widens != self._widens:
            self._widens = widens
            loop.call_at(at, self._widen, widens)

    def _widen(self, widens: tuple[AbstractEventLoop, float]) -> None:
        bulkhead = self.bulkhead
        bulkhead.widen(self.clock.monotonic())
        if widens == self._widens:
            self._widens = None
            if bulkhead.line and bulkhead.cap < bulkhead.limit:
                self._widen_later()

    def stand_in_line(self, bulkhead: Bulkhead, guard: Guarded, deadline: float) -> Awaitable[bool]:
        """Like `stand_in`, but refuses if the queue is full."""
        if (
            len(bulkhead.line) >= self.options.queue_max
            and bulkhead.used >= bulkhead.cap
            and not is_fed.get()
        ):
            self._refuse_slot(guard, full(len(bulkhead.line)))
        return self.stand_in(bulkhead, deadline)

    async def stand_in(self, bulkhead: Bulkhead, deadline: float, ahead: bool = False) -> bool:
        """Wait for a slot, first come first served, or `ahead` of all; False if the deadline passed first."""
        if bulkhead.take():
            return True
        waiter = get_running_loop().create_future()
        (bulkhead.line.appendleft if ahead else bulkhead.line.append)(waiter)
        try:
            with Alarm(self.deadlines, deadline):
                await waiter
        except BaseException as error:
            # `give_back` counts the slot as this waiter's when it sets the future's result, one turn of the loop
            # before the waiter runs. If the cancellation arrives in that turn, the slot must go to the next in the
            # queue. Otherwise it would belong to a call that no longer exists, and after `limit` such calls none would
            # be left.
            bulkhead.leave(waiter, granted=waiter.done() and not waiter.cancelled())
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    # ── what shuts a gate ─────────────────────────────────────────────────────────────────────────────────────

    def apply_fault(self, guard: Guarded, fault: Fault, now: float) -> None:
        """Apply what a failure means for all later calls: a pause, or a block of the key."""
        if fault.block is not None:
            self._heed_refused_key(guard, fault, now)
            return
        # Most rate limits are per model, so a 429 pauses this model only; a quota or unpaid bill pauses the whole
        # service.
        cooldown = self.cooldown_of(guard, fault)
        whole, until = cooldown is self.quota, cooldown.until
        limited = fault.kind is Kind.THROTTLED
        if limited:
            guard.pacer.doubt(guard.breaker.given)
            self.watch_pace(guard.pacer)
        reason = "the provider limits the request rate" if limited else "the provider's quota is used up"
        extend = self.pause if whole else cooldown.extend
        for_s = extend(now, self._asked_s(fault), self.draw, fault.kind, reason)
        if cooldown.until > max(until, now) + NEWS_S or now >= until:
            what = (reason, fault.kind, whole, self.credential, guard.breaker.last_error)
            self.emit(CooldownBegan(guard.breaker.name, for_s, *what))

    def _heed_refused_key(self, guard: Guarded, fault: Fault, now: float) -> None:
        model = guard.model if fault.block == "model" else None
        reason = "the provider refused the key" + (f" for {model}" if model else "")
        asked_s = self._asked_s(fault)
        until = NEVER if fault.until_wall_s is None or asked_s is None else now + asked_s
        if self.block_key(model, reason, now, until):
            again_in_s = min(until, self.key_blocks.by_model[model].check_at) - now
            last = guard.breaker.last_error
            self.emit(KeyBlocked(self.name, reason, model, self.credential, last, again_in_s))

    def cooldown_of(self, guard: Guarded, fault: Fault) -> Cooldown:
        """The cooldown that a fault extends: the whole service's, or the model's own."""
        return self.quota if fault.reach == "service" else guard.cooldown

    def _asked_s(self, fault: Fault) -> float | None:
        """The pause that the provider asked for, in seconds; it may have named a duration or a time of day."""
        if fault.until_wall_s is None:
            return fault.retry_after_s
        return max(fault.until_wall_s - self.clock.wall(), fault.retry_after_s or 0.0)

    def pause(self, now: float, asked_s: float | None, draw: Draw, kind: Kind, reason: str) -> float:
        """Pause all calls of the service (see `Cooldown.extend`); returns for how many seconds."""
        self.quiet = False
        return self.quota.extend(now, asked_s, draw, kind, reason)

    def block_key(self, model: str | None, reason: str, since: float, until: float = NEVER) -> bool:
        """Stop using the key (with a `model`: only for that model); returns False if it is already blocked."""
        self.quiet = False
        return self.key_blocks.set(model, reason, since, until)

    def ease(self, model: str | None, now: float) -> None:
        """After a successful call: let guessed pauses start small again, and unblock a key that was being tested."""
        self.quota.ease()
        if self.key_blocks:
            for one in self.key_blocks.end_by_success(model, now):
                self.emit(KeyUnblocked(self.name, one, self.credential))

    def watch_pace(self, pacer: Pacer) -> None:
        """From now on this pacer may have to delay calls."""
        self.pacing.add(pacer)
        self.quiet = False

    def tick(self, now: float) -> None:
        """Apply the changes that time alone causes."""
        self.limits.roll(now)
        if self.bulkhead.cap < self.bulkhead.limit:
            self.bulkhead.widen(now)

    # ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────

    def refuse(
        self,
        guard: Guarded,
        error: type[KooError],
        reason: str,
        wait_s: float | None,
        kind: Kind,
        cause: Cause | None = None,
    ) -> NoReturn:
        """Count a refusal and raise it; `wait_s`: when to retry, None if unknown."""
        guard.tally.record_refusal(kind, self.clock.monotonic())
        # This makes a new exception each time: each raise of a shared one would add to its traceback, without end.
        refusal = error(self.name, reason, wait_s, kind=kind, cause=cause)
        if wait_s is not None and kind is not Kind.CIRCUIT_OPEN:
            self.tell_wait(guard, refusal)
        if kind not in OURS:
            refusal.last_error = guard.breaker.last_error
        try:
            raise refusal
        finally:
            del refusal  # its traceback refers to this frame, which would refer back to it: a cycle

    def tell_wait(self, guard: Guarded, error: KooError) -> None:
        """Raise the error's `retry_after_s` to the time at which koo itself admits the same call, if that is known."""
        # The gate that refused may not be the one that stays shut longest, and a failed attempt may have shut another.
        # A caller that returned exactly at the earlier time would be refused again.
        now = self.clock.monotonic()
        opens_at = self._others_open_at(guard, now)
        if guard.breaker.refuses(now):
            opens_at = max(opens_at, now + guard.breaker.refusal(now)[1])
        if now < opens_at < NEVER:
            error.retry_after_s = max(error.retry_after_s or 0.0, opens_at - now)

    def _others_open_at(self, guard: Guarded, now: float) -> float:
        """When the last gate behind the breaker opens, in monotonic seconds; ignores gates whose time is unknown."""
        at = max(guard.cooldown.until, self.quota.until, self.limits.full_until)
        if self.pacing:
            at = max(at, now + guard.pacer.wait_s(now))
        if self.key_blocks.by_model and (block := self.key_blocks.refuses(guard.model, now)) is not None:
            at = max(at, self._ends_at(block))
        return at

    def _ends_at(self, block: KeyBlock) -> float:
        """When a repaired key is used again: at the block's known end, after a successful check, or by a call."""
        if block.until != NEVER:  # a block with a known end is not checked
            return block.until
        return block.check_at + (0.0 if self.key_blocks.by_calls else KEY_CHECK_S)

    def refuse_open(self, guard: Guarded, now: float) -> NoReturn:
        """Refuse because of the breaker, with the reason and the time to retry."""
        reason, wait_s = guard.breaker.refusal(now)
        guard.breaker.refused += 1
        until_s = None  # forced open without an end: any time would be wrong
        if wait_s != NEVER:
            others_s = self._others_open_at(guard, now) - now
            until_s = others_s if wait_s < others_s < NEVER else wait_s
        self.refuse(guard, self.family.circuit_open, reason, until_s, Kind.CIRCUIT_OPEN)

    def _refuse_slot(self, guard: Guarded, reason: str) -> NoReturn:
        allowed = (self.options.concurrency_max, self.options.queue_max)
        names = ", ".join(f"{name}={most}" for name, most in zip(self.slot_settings, allowed, strict=False))
        reason += f" (limits: {names})" if names else ""
        self.refuse(guard, self.family.saturated, reason, self._slot_in_s(guard), Kind.SATURATED)

    def _slot_in_s(self, guard: Guarded) -> float | None:
        """When a slot is likely to be free, if calls take as long as the average. None before the first success."""
        bulkhead, total = self.bulkhead, guard.tally.totals()
        if not bulkhead.limit or not total.successes:
            return None
        return max(LOOK_AGAIN_S, total.mean_s() * (len(bulkhead.line) + 1) / bulkhead.limit)

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────────

    def emit(self, event: Event) -> None:
        """Publish one event. A failing listener is only logged: its error would skip the return of a slot or of
        money."""
        try:
            if self.publish is not None:
                self.publish(event)
        except BaseException as error:  # noqa: BLE001 - whatever a listener raises
            outlive(error, f"could not publish {type(event).__name__}")


def full(waiting: int) -> str:
    """That no further call may wait."""
    if not waiting:
        return "no call may wait, because the queue's length is 0"
    return f"the queue is full: {waiting} {'caller is' if waiting == 1 else 'callers are'} already waiting"


def running(bulkhead: Bulkhead) -> str:
    """How full the bulkhead is, as part of a sentence."""
    calls = "1 call is" if bulkhead.used == 1 else f"{bulkhead.used} calls are"
    waiting = len(bulkhead.line)
    return f"{calls} running and {waiting} {'is' if waiting == 1 else 'are'} waiting"
