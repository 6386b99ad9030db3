"""The gates before a guarded call: they take, wait, give back and refuse.

    look at the breaker → key block → cooldown → limits → pace → bulkhead → hold money → admit

A service has one key, one limit and one set of places, whatever model is called, so its gates are shared by the guards
of all its models. Breaker, cooldown and counts are each model's own: the gates ask for them through `Guarded`.

A gate that refuses gives back what the gates before it took, in the same step. Gates that may wait come before the
money, because a queue must not hold money hostage. The breaker is looked at first and asked last: first, so that a call
that it will refuse takes no unit and joins no queue; last, because a probe's lease taken before a gate that then
refuses would be a leak. While a call waits at one gate, an earlier one may shut; so after any wait the clock is read
again, and a call that has passed the last queue starts again if an earlier gate would now refuse it.

`take` is the short way: everything at once, without waiting, or nothing. `take_in_turn` is the long one, gate by gate.

Four of the gates are rarely shut (the service's quota, a blocked key, pacing, the queue for a limit). `quiet` is True
while all four are open and have no state to clear, so the short way checks one flag. Each of them is shut through
a method here, which clears the flag; the first call that finds them all open sets it again.
"""

from __future__ import annotations

import random
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import NoReturn, Protocol

from koo.callbacks import outlive
from koo.clock import SYSTEM_CLOCK, Clock
from koo.deadlines import Alarm, Deadlines
from koo.errors import Kind, KooError
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
"""An unbilled check of a refused key starts within a second of its time, and usually has its answer in another."""
NEWS_S = 1.0
"""A pause extended by less is not published again; each call of a burst moves its end a little."""

is_fed: ContextVar[bool] = ContextVar("koo_is_fed", default=False)
"""True for the queries of a list, of which no more are started than there are places: for them no queue is too long.
Otherwise they would be refused because of their own list."""


class Guarded(Protocol):
    """What the gates ask of the guard behind a call: what one model does not share with the others."""

    breaker: Breaker
    cooldown: Cooldown
    pacer: Pacer
    tally: Tally
    model: str | None


class Gates:
    """The gates that all guards of one dependency share.

    `name` appears in errors. `limits` and `bulkhead` are unlimited and `options.concurrency_max` unless given. `draw`:
    numbers in [0, 1). `publish` receives events. `place_settings`: an operator's names for `concurrency_max` and
    `queue_max`, for errors. Nothing here belongs to an event loop until the first call.
    """

    __slots__ = (
        "bulkhead", "clock", "credential", "deadlines", "draw", "family", "key_blocks", "kin", "limit_queue",
        "limits", "name", "options", "pacing", "place_settings", "publish", "quiet", "quota", "retry_budget",
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
        place_settings: tuple[str, ...] = (),
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
        self.place_settings = place_settings
        self.quota = Cooldown()
        self.retry_budget = RetryBudget(options.retry, clock.monotonic())
        self.pacing: set[Pacer] = set()  # those that may have to hold a call back
        self.key_blocks = KeyBlocks()
        # One call at a time asks a full limit again, the others in order behind it.
        self.limit_queue = Bulkhead(1)
        self.quiet = False
        # A digest, if it is not the service's own; `kin`: the gates of all credentials, which share limits and places.
        self.credential, self.kin = "", {self}

    # ── the short way ─────────────────────────────────────────────────────────────────────────────────────────

    def take(self, now: float, paused_until: float) -> bool:
        """Take a unit of each limit and a place, if no gate refuses or waits; else take nothing.

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
        # A level that is left must see the next success: otherwise the next guess of a pause starts too long.
        self.quiet = not quota.level
        return True

    def _is_paced(self, now: float) -> bool:
        """True while a burst that fills all free places could break one of the provider's limits."""
        # Calls on the short way are not counted against the limits, so it is open only where counting is idle: each
        # answer is checked again, and until the next one no more calls leave than there are places.
        places = self.bulkhead.limit
        self.pacing = {pacer for pacer in self.pacing if not pacer.allows(places, now)}
        return bool(self.pacing)

    def give_back(self, taken_at: float) -> None:
        """The call that took its units at `taken_at` is not made after all."""
        self.bulkhead.give_back()
        self.limits.refund(taken_at)

    def refuse_full(self, guard: Guarded, now: float, deadline: float, on_limit: str | None) -> None:
        """The short way out: refuse a call that `take` found no unit for, if no other gate has to be checked."""
        refusal = self.limits.refusal(now)
        if refusal is None or not self.quiet or on_limit == "wait":
            return
        if now >= deadline or now < guard.cooldown.until:
            return
        guard.tally.record_refusal(Kind.RATE_LIMITED, now)
        wait_s = None if refusal[1] == NEVER else refusal[1] - now
        raise self.family.limited(self.name, refusal[0], wait_s, kind=Kind.RATE_LIMITED)

    # ── the long way ──────────────────────────────────────────────────────────────────────────────────────────

    async def take_in_turn(self, guard: Guarded, passage: Passage) -> float:
        """Pass the gates one by one; returns when the limits' units were taken, for their refund.

        Raises an error of `family`; then nothing stays taken.
        """
        while True:
            taken_at = self.clock.monotonic()
            # The usual reason to wait is a place alone. With a pool as small as a database's nearly every call waits
            # for one, and asking each gate again, each in its own coroutine, costs twice the wait itself.
            for_place = (
                self.quiet and not self._is_shut(guard, taken_at) and self.limits.take(taken_at) is None
            )
            if not for_place:
                self.look(guard)
                await self._wait_for_cooldown(guard, passage)
                taken_at = await take_limits(self, guard, passage)
            try:
                if not for_place:
                    passage.paced = await self._pace(guard, passage)
                await self._take_place(guard, passage)
            except BaseException:
                self.limits.refund(taken_at)
                self.give_back_cell(guard, passage)
                raise
            now = self.clock.monotonic()
            # The unit moves to the time of the call: counted from the start of the wait, it would come back too early,
            # and let 61 calls out within a minute.
            self.limits.refund(taken_at)
            if (
                (self.quiet or not for_place)
                and not self._is_shut(guard, now)
                and self.limits.take(now) is None
            ):
                if self.key_blocks:
                    self.key_blocks.let_out(guard.model, now)
                return now
            # While this call waited for a place, a gate before it has shut (the provider asked for a pause, say). With
            # a hundred calls queued for places, all hundred would run into it.
            self.bulkhead.give_back()
            self.give_back_cell(guard, passage)

    def give_back_cell(self, guard: Guarded, passage: Passage) -> None:
        """An attempt that may have booked a cell of the pacer is not made."""
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
        """Refuse early, before anything is taken or waited for."""
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
            # An operator's reset ends the pause earlier, but wakes no sleeper.
            await self.clock.sleep(min(wait_s, LOOK_AGAIN_S))

    async def _pace(self, guard: Guarded, passage: Passage) -> bool:
        """Wait until the provider's own limits have room; returns True, since a cell was booked."""
        pacer, line, now = guard.pacer, guard.pacer.line, self.clock.monotonic()
        wait_s = self._pace_s(guard, passage, now, len(line.line) + line.used)
        if line.used or wait_s:
            self._check_pace(guard, passage, now, wait_s)
            if not await self.stand_in_line(line, guard, passage.deadline):
                self._refuse_pace(guard, wait_s)
            try:
                while wait_s := self._pace_s(guard, passage, now := self.clock.monotonic(), 0):
                    self._check_pace(guard, passage, now, wait_s)
                    # The next answer may bring the time forward, but wakes no sleeper.
                    await self.clock.sleep(min(wait_s, LOOK_AGAIN_S))
            finally:
                line.give_back()
        pacer.take(now)
        return True

    def _pace_s(self, guard: Guarded, passage: Passage, now: float, ahead: int) -> float:
        """How long a call behind `ahead` others waits at least, for the provider's limits or for a pilot."""
        pacer, breaker = guard.pacer, guard.breaker
        pacer.count(breaker.given)
        wait_s = pacer.wait_s(now, ahead)
        # A call that does not wait must not be refused only because the service has never been called before.
        asks = pacer.knows or passage.on_limit != "refuse"
        if asks and pacer.must_follow(now, breaker.given - breaker.running):
            wait_s = max(wait_s, PILOT_LOOK_S)
        return wait_s

    def _check_pace(self, guard: Guarded, passage: Passage, now: float, wait_s: float) -> None:
        if passage.on_limit == "refuse" or now + wait_s >= passage.deadline:
            self._refuse_pace(guard, wait_s)

    def _refuse_pace(self, guard: Guarded, wait_s: float) -> NoReturn:
        reason = "the provider's limit is nearly used up"
        if guard.pacer.asks:  # the answer that all wait for comes no sooner than answers usually do
            wait_s = max(wait_s, guard.tally.recent(self.clock.monotonic()).percentile_s(0.5), LOOK_AGAIN_S)
        self.refuse(guard, self.family.limited, reason, wait_s, Kind.COOLING_DOWN)

    async def _take_place(self, guard: Guarded, passage: Passage) -> None:
        bulkhead = self.bulkhead
        ramping = bulkhead.cap < bulkhead.limit
        if ramping:
            bulkhead.widen(self.clock.monotonic())
        if bulkhead.take():
            return
        if (passage.on_limit == "refuse" and not is_fed.get()) or bulkhead.limit == 0:
            self._refuse_place(guard, running(bulkhead))
        if ramping and not bulkhead.line:
            get_running_loop().call_at(bulkhead.widens_at, self._widen)
        if not await self.stand_in_line(bulkhead, guard, passage.deadline):
            self._refuse_place(guard, f"no place became free before the deadline: {running(bulkhead)}")

    def _widen(self) -> None:
        """Time alone widens a ramp: without this timer nothing would wake the calls that wait for it."""
        bulkhead = self.bulkhead
        bulkhead.widen(self.clock.monotonic())
        if bulkhead.line and bulkhead.cap < bulkhead.limit:
            get_running_loop().call_at(bulkhead.widens_at, self._widen)

    def stand_in_line(self, bulkhead: Bulkhead, guard: Guarded, deadline: float) -> Awaitable[bool]:
        """As `stand_in`, where the queue is not full."""
        if (
            len(bulkhead.line) >= self.options.queue_max
            and bulkhead.used >= bulkhead.cap
            and not is_fed.get()
        ):
            self._refuse_place(guard, f"the queue is full: {len(bulkhead.line)} callers are waiting already")
        return self.stand_in(bulkhead, deadline)

    async def stand_in(self, bulkhead: Bulkhead, deadline: float) -> bool:
        """Wait for a place, first come first served; False if the deadline passed first."""
        if bulkhead.take():
            return True
        waiter = get_running_loop().create_future()
        bulkhead.line.append(waiter)
        try:
            with Alarm(self.deadlines, deadline):
                await waiter
        except BaseException as error:
            # If it was cancelled in the very step in which it got its place, the next in the queue gets that. Otherwise
            # the place would belong to a call that is gone, and after `limit` such calls none would be left.
            bulkhead.leave(waiter, granted=waiter.done() and not waiter.cancelled())
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    # ── what shuts a gate ─────────────────────────────────────────────────────────────────────────────────────

    def apply_fault(self, guard: Guarded, fault: Fault, now: float) -> None:
        """What an answer asks of all later calls: to pause, or not to use the key."""
        if fault.block is not None:
            self._heed_refused_key(guard, fault, now)
            return
        cooldown = self.cooldown_of(guard, fault)
        whole, until = cooldown is self.quota, cooldown.until
        limited = fault.kind is Kind.THROTTLED
        if limited:
            guard.pacer.doubt(guard.breaker.given)
            self.watch_pace(guard.pacer)
        reason = "the provider limits our rate" if limited else "the provider's quota is used up"
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
        """The pause that a fault belongs to: the whole service's, or the model's own."""
        return self.quota if fault.reach == "service" else guard.cooldown

    def _asked_s(self, fault: Fault) -> float | None:
        """How long the other side asked us to stay away: in seconds, or as a time of day."""
        if fault.until_wall_s is None:
            return fault.retry_after_s
        return max(fault.until_wall_s - self.clock.wall(), fault.retry_after_s or 0.0)

    def pause(self, now: float, asked_s: float | None, draw: Draw, kind: Kind, reason: str) -> float:
        """The whole service asked us to stay away (see `Cooldown.extend`); returns for how many seconds."""
        self.quiet = False
        return self.quota.extend(now, asked_s, draw, kind, reason)

    def block_key(self, model: str | None, reason: str, since: float, until: float = NEVER) -> bool:
        """Send nothing with the key (or, for a `model`, nothing to that); returns False if it is blocked already."""
        self.quiet = False
        return self.key_blocks.set(model, reason, since, until)

    def ease(self, model: str | None, now: float) -> None:
        """A call succeeded: guesses of pauses start small again, and a key that was being tried works."""
        self.quota.ease()
        if self.key_blocks:
            for one in self.key_blocks.end_by_success(model, now):
                self.emit(KeyUnblocked(self.name, one, self.credential))

    def watch_pace(self, pacer: Pacer) -> None:
        """A pacer may have to hold calls back from now on."""
        self.pacing.add(pacer)
        self.quiet = False

    def tick(self, now: float) -> None:
        """What time alone brings about."""
        self.limits.roll(now)
        if self.bulkhead.cap < self.bulkhead.limit:
            self.bulkhead.widen(now)

    # ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────

    def refuse(
        self, guard: Guarded, error: type[KooError], reason: str, wait_s: float | None, kind: Kind
    ) -> NoReturn:
        """Count a refusal and raise it; `wait_s`: when to come back, None if unknown."""
        guard.tally.record_refusal(kind, self.clock.monotonic())
        # A new exception each time: a shared one's traceback would grow without end.
        refusal = error(self.name, reason, wait_s, kind=kind)
        if wait_s is not None and kind is not Kind.CIRCUIT_OPEN:
            self.tell_wait(guard, refusal)
        if kind not in OURS:
            refusal.last_error = guard.breaker.last_error
        try:
            raise refusal
        finally:
            del refusal  # its traceback keeps this frame, and the frame would keep it

    def tell_wait(self, guard: Guarded, error: KooError) -> None:
        """Give an error no earlier time than koo itself admits the same call, as far as that is known."""
        # The gate that refused need not be the one that stays shut longest; and a failed attempt may have shut another.
        # A caller that came back exactly on time would be refused once more.
        now = self.clock.monotonic()
        opens_at = self._others_open_at(guard, now)
        if guard.breaker.refuses(now):
            opens_at = max(opens_at, now + guard.breaker.refusal(now)[1])
        if now < opens_at < NEVER:
            error.retry_after_s = max(error.retry_after_s or 0.0, opens_at - now)

    def _others_open_at(self, guard: Guarded, now: float) -> float:
        """When the last of the gates behind the breaker that know their time opens, in monotonic seconds."""
        at = max(guard.cooldown.until, self.quota.until, self.limits.full_until)
        if self.pacing:
            at = max(at, now + guard.pacer.wait_s(now))
        if self.key_blocks.by_model and (block := self.key_blocks.refuses(guard.model, now)) is not None:
            at = max(at, self._ends_at(block))
        return at

    def _ends_at(self, block: KeyBlock) -> float:
        """When a key that works again is used: at its known end, after the check that finds it so, or by a call."""
        if block.until != NEVER:  # such a block is not checked
            return block.until
        return block.check_at + (0.0 if self.key_blocks.by_calls else KEY_CHECK_S)

    def refuse_open(self, guard: Guarded, now: float) -> NoReturn:
        """The breaker refuses: why, and when to come back."""
        reason, wait_s = guard.breaker.refusal(now)
        guard.breaker.refused += 1
        others_at = self._others_open_at(guard, now)
        if wait_s < others_at - now < NEVER:
            wait_s = others_at - now
        # Forced open without an end: any time would be invented.
        until_s = None if wait_s == NEVER else wait_s
        self.refuse(guard, self.family.circuit_open, reason, until_s, Kind.CIRCUIT_OPEN)

    def _refuse_place(self, guard: Guarded, reason: str) -> NoReturn:
        allowed = (self.options.concurrency_max, self.options.queue_max)
        names = ", ".join(f"{name}={most}" for name, most in zip(self.place_settings, allowed, strict=False))
        reason += f" (limits: {names})" if names else ""
        self.refuse(guard, self.family.saturated, reason, self._place_in_s(guard), Kind.SATURATED)

    def _place_in_s(self, guard: Guarded) -> float | None:
        """When a place is likely to be free: calls end at the pace of an average one. None before the first success."""
        bulkhead, total = self.bulkhead, guard.tally.totals()
        if not bulkhead.limit or not total.successes:
            return None
        return max(LOOK_AGAIN_S, total.mean_s() * (len(bulkhead.line) + 1) / bulkhead.limit)

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────────

    def emit(self, event: Event) -> None:
        """Publish one event; a failing listener is only logged, or it would keep a permit, a place or a hold."""
        try:
            if self.publish is not None:
                self.publish(event)
        except BaseException as error:  # noqa: BLE001 - whatever a listener raises
            outlive(error, f"could not publish {type(event).__name__}")


def running(bulkhead: Bulkhead) -> str:
    """How full it is, in words."""
    calls = "1 call is" if bulkhead.used == 1 else f"{bulkhead.used} calls are"
    waiting = len(bulkhead.line)
    return f"{calls} running and {waiting} {'is' if waiting == 1 else 'are'} waiting"
