"""The way in: the gates before a guarded call, and who waits at which of them.

    look at the breaker → key block → cooldown → limits → pace → concurrency → hold money → admit

Whoever refuses gives back what was taken before. Gates that may wait come before the money, because a queue must not
hold money hostage; the breaker is asked last, because a probe's slot that is taken before a gate which then refuses is
a leak. After any wait the clock is read again.

`_take` is the short way, for nearly always: nothing refuses, nobody waits. `_line_up` is the long one.
"""

from __future__ import annotations

import random
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, NoReturn, Protocol

from koo.clock import SYSTEM_CLOCK, Clock
from koo.deadlines import Alarm, Deadlines
from koo.errors import (
    AuthenticationFailed,
    CircuitOpen,
    DatabaseTimeout,
    DatabaseUnavailable,
    Kind,
    KooError,
    PoolSaturated,
    RateLimited,
    ServiceSaturated,
    ServiceTimeout,
)
from koo.events import CircuitClosed, CircuitOpened, Event, log
from koo.options import NEVER, GuardOptions
from koo.policies.breaker import NONE, Breaker, Cue, Permit
from koo.policies.bulkhead import Bulkhead
from koo.policies.cooldown import Cooldown
from koo.policies.key_block import KeyBlocks
from koo.policies.limiter import Limits
from koo.policies.pacer import Pacer
from koo.policies.tally import Tally

OnLimit = Literal["refuse", "wait"]
"""None, the default: wait for a pause that the other side asked for, be refused by our own limits."""
LOOK_AGAIN_S = 1.0
"""Who waits for a time that may come earlier (a limit's unit, the end of a pause) looks at least so often."""
RAMP_FACTOR = 2
"""After closing, so many times the probes that closed it may run at first (rule R16)."""


class Charge(Protocol):
    """Money: each hold ends in exactly one `settle` or `release`.

    `hold` gives None where the money is held at once (in memory), else what has to be awaited (a durable ledger).

    `hold` raises `BudgetExceeded`; where it has to wait, it waits until `deadline` at most. Whatever it raises, a
    cancellation too, it holds nothing then.
    """

    def hold(self, deadline: float) -> Awaitable[None] | None: ...

    def settle(self) -> None: ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Family:
    """The errors with which one kind of dependency refuses."""

    circuit_open: type[KooError]
    limited: type[KooError]
    saturated: type[KooError]
    timeout: type[KooError]
    key_blocked: type[KooError]


SERVICES = Family(CircuitOpen, RateLimited, ServiceSaturated, ServiceTimeout, AuthenticationFailed)
DATABASES = Family(DatabaseUnavailable, PoolSaturated, PoolSaturated, DatabaseTimeout, DatabaseUnavailable)


@dataclass(frozen=True, slots=True)
class Gates:
    """What all guards of one dependency share: a service has one breaker a model, but one key and one limit."""

    limits: Limits = field(default_factory=Limits)
    bulkhead: Bulkhead = field(default_factory=lambda: Bulkhead(1_000_000))
    quota: Cooldown = field(default_factory=Cooldown)
    pacer: Pacer = field(default_factory=Pacer)
    key_blocks: KeyBlocks = field(default_factory=KeyBlocks)
    limit_queue: Bulkhead = field(
        default_factory=lambda: Bulkhead(1)
    )  # one at a time asks a full limit again, in order
    guards: list[Entrance] = field(default_factory=list)

    def invalidate(self) -> None:
        """A gate that is seldom shut may be shut now: each guard has to look at all of them again."""
        for guard in self.guards:
            guard.quiet = False


class Entrance:
    """The gates of one guarded dependency: a database host, or one model of an AI service.

    `name` appears in errors and metrics. `gates` are shared by the guards of one service. `publish` takes events.
    Nothing here belongs to an event loop until the first call.
    """

    __slots__ = (
        "_bulkhead",
        "_deadlines",
        "_draw",
        "_limits",
        "_monotonic",
        "_publish",
        "_sleep",
        "_wall",
        "breaker",
        "cooldown",
        "family",
        "gates",
        "model",
        "name",
        "options",
        "quiet",
        "tally",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        options: GuardOptions,
        *,
        deadlines: Deadlines,
        gates: Gates | None = None,
        model: str | None = None,
        family: Family = SERVICES,
        clock: Clock = SYSTEM_CLOCK,
        draw: Callable[[], float] = random.random,
        publish: Callable[[Event], None] | None = None,
    ) -> None:
        now = clock.monotonic()
        self.name = name
        self.model = model
        self.options = options
        self.family = family
        self.gates = gates or Gates(bulkhead=Bulkhead(options.concurrency_max))
        self.gates.guards.append(self)
        self._limits, self._bulkhead = (
            self.gates.limits,
            self.gates.bulkhead,
        )  # at hand: every call takes from them
        self.breaker = Breaker(
            name if model is None else f"{name}/{model}", options.breaker, options.slow_s, now
        )
        self.cooldown = Cooldown()
        self.quiet = False  # no cooldown, key block, pace or queue: whoever brings one invalidates
        self.tally = Tally(now)
        self._deadlines = deadlines
        self._monotonic = clock.monotonic
        self._sleep = clock.sleep
        self._wall = clock.wall
        self._draw = draw
        self._publish = publish

    def now(self) -> float:
        """Monotonic seconds of this guard's clock."""
        return self._monotonic()

    def count_outage(self, in_row: bool, now: float) -> None:
        """The host that all models share could not be reached: it counts here too."""
        self.breaker.count_outage(in_row, now, self._draw)
        if self.breaker.happened:
            self._publish_steps()

    # ── the gates ─────────────────────────────────────────────────────────────────────────────────────────────

    async def enter(self, charge: Charge | None, deadline: float, on_limit: OnLimit | None = None) -> Permit:
        """Through all gates, waiting where that is allowed. Raises a refusal, and then nothing stays taken."""
        now = self._monotonic()
        if now >= deadline:
            self._refuse(self.family.timeout, "the deadline had passed before the call", None, Kind.DEADLINE)
        if self.breaker.refuses(now):
            self._refuse_open(now)
        taken_at = now if self._take(now) else await self._line_up(deadline, on_limit)
        holding = None if charge is None else self._hold(charge, deadline, taken_at)
        return await self._admit_held(charge, holding, taken_at)

    def _hold(self, charge: Charge, deadline: float, taken_at: float) -> Awaitable[None] | None:
        try:
            return charge.hold(deadline)
        except BaseException as error:
            self._unpaid(error, taken_at)
            raise

    async def _admit_held(
        self, charge: Charge | None, holding: Awaitable[None] | None, taken_at: float
    ) -> Permit:
        """Wait until the money is held, and then through the last gate."""
        if holding is not None:
            try:
                await holding
            except BaseException as error:
                self._unpaid(error, taken_at)
                raise
        return self._admit(taken_at, charge, self._monotonic())

    def _unpaid(self, error: BaseException, taken_at: float) -> None:
        self._give_back(taken_at)
        if isinstance(error, KooError):
            self.tally.record_refusal(error.kind)

    def _take(self, now: float) -> bool:
        """A place and a unit of each limit at once, if no gate refuses or waits; else nothing is taken."""
        if not self.quiet and not self._is_free(now):
            return False
        if self._limits.take(now) is not None:
            return False
        if self._bulkhead.take():
            return True
        self._limits.refund(now)
        return False

    def _is_free(self, now: float) -> bool:
        """Is no gate shut that seldom is? Once all is quiet nobody looks again until one invalidates that."""
        gates, cooldown = self.gates, self.cooldown
        if (
            now < cooldown.until
            or now < gates.quota.until
            or gates.key_blocks
            or gates.pacer.interval_s
            or gates.limit_queue.used
        ):
            return False
        self.quiet = not (cooldown.level or gates.quota.level)
        return True

    async def _line_up(self, deadline: float, on_limit: OnLimit | None) -> float:
        """Gate by gate; gives when the limits' units were taken, for their refund.

        While a caller waited at a later gate, an earlier one may have closed: a hundred callers in line for a place
        must not run into the pause that the provider has asked for meanwhile. Then it begins again.
        """
        while True:
            self._look()
            await self._wait_for_cooldown(deadline, on_limit)
            taken_at = await self._take_limits(deadline, on_limit)
            cell = False
            try:
                cell = await self._pace(deadline, on_limit)
                await self._take_place(deadline, on_limit)
            except BaseException:
                self._limits.refund(taken_at)
                if cell:
                    self.gates.pacer.give_back()
                raise
            now = self._monotonic()
            # The unit moves to the time of the call: counted when the wait began, it would free another one too early,
            # and let 61 calls out within a minute.
            self._limits.refund(taken_at)
            if not self._is_closed(now) and self._limits.take(now) is None:
                return now
            self._bulkhead.give_back()

    def _is_closed(self, now: float) -> bool:
        """Would one of the gates that come before the limits refuse or wait?"""
        gates = self.gates
        return (
            self.breaker.refuses(now)
            or now < self.cooldown.until
            or now < gates.quota.until
            or (bool(gates.key_blocks) and gates.key_blocks.find(self.model, now) is not None)
        )

    def _admit(self, taken_at: float, charge: Charge | None, now: float) -> Permit:
        """The last gate. Whatever waited before it, the breaker is asked about now."""
        permit = self.breaker.admit(now, self._draw)
        if self.breaker.happened:
            self._publish_steps()
        if permit is None:
            self._give_back(taken_at)
            if charge is not None:
                charge.release()
            self._refuse_open(now)
        return permit

    def _give_back(self, taken_at: float) -> None:
        self._bulkhead.give_back()
        self._limits.refund(taken_at)

    def _look(self) -> None:
        """Refuse early, before anything is taken or waited for."""
        now = self._monotonic()
        if self.breaker.refuses(now):
            self._refuse_open(now)
        blocks = self.gates.key_blocks
        block = blocks.find(self.model, now) if blocks else None
        if block is not None:
            wait_s = min(block.until, block.check_at) - now
            self._refuse(self.family.key_blocked, block.reason, max(wait_s, 0.0), Kind.KEY_REFUSED)

    async def _wait_for_cooldown(self, deadline: float, on_limit: OnLimit | None) -> None:
        while True:
            now = self._monotonic()
            quota = self.gates.quota
            cooldown = quota if quota.until > self.cooldown.until else self.cooldown
            if now >= cooldown.until:
                return
            wait_s = cooldown.until - now
            passes = cooldown.kind is Kind.THROTTLED or on_limit == "wait"
            if on_limit == "refuse" or not passes or cooldown.until >= deadline:
                self._refuse(self.family.limited, cooldown.reason, wait_s, cooldown.kind)
            # An operator's reset ends it earlier, and wakes nobody.
            await self._sleep(min(wait_s, LOOK_AGAIN_S))

    async def _take_limits(self, deadline: float, on_limit: OnLimit | None) -> float:
        """One unit of each limit; gives when it was taken, for the refund."""
        limits, queue = self._limits, self.gates.limit_queue
        now = self._monotonic()
        # Whoever comes while somebody waits takes no unit from under his nose, whether he would wait himself or not.
        if not queue.used and limits.take(now) is None:
            return now
        if (
            on_limit != "wait"
            or limits.usable_at(now) >= deadline
            or not await self._stand_in(queue, deadline)
        ):
            self._refuse_limit()
        self.gates.invalidate()
        try:
            while limits.take(now := self._monotonic()) is not None:
                usable_at = limits.usable_at(now)
                if usable_at >= deadline:
                    self._refuse_limit()
                # A refund may bring a unit earlier, and wakes nobody.
                await self._sleep(min(usable_at - now, LOOK_AGAIN_S))
            return now
        finally:
            queue.give_back()

    async def _pace(self, deadline: float, on_limit: OnLimit | None) -> bool:
        """Wait for a cell of the pacer; True if one was booked."""
        now = self._monotonic()
        pacer = self.gates.pacer
        wait_s = pacer.wait_s(now)
        if not pacer.interval_s:
            return False
        if wait_s and (on_limit == "refuse" or now + wait_s >= deadline):
            self._refuse(
                self.family.limited, "the provider's limit is nearly used up", wait_s, Kind.COOLING_DOWN
            )
        pacer.take(now)
        if wait_s:
            try:
                await self._sleep(wait_s)
            except BaseException:
                pacer.give_back()
                raise
        return True

    async def _take_place(self, deadline: float, on_limit: OnLimit | None) -> None:
        bulkhead = self._bulkhead
        ramping = bulkhead.cap < bulkhead.limit
        if ramping:
            bulkhead.widen(self._monotonic())
        if bulkhead.take():
            return
        if on_limit == "refuse" or bulkhead.limit == 0:
            self._refuse_place(f"{bulkhead.used} calls are running and {len(bulkhead.line)} wait")
        if ramping and not bulkhead.line:
            get_running_loop().call_at(bulkhead.widens_at, self._widen)
        if not await self._stand_in(bulkhead, deadline):
            self._refuse_place("the deadline passed while waiting for a free place")

    def _widen(self) -> None:
        """Time widens a ramp: somebody has to wake those who wait for it."""
        bulkhead = self._bulkhead
        bulkhead.widen(self._monotonic())
        if bulkhead.line and bulkhead.cap < bulkhead.limit:
            get_running_loop().call_at(bulkhead.widens_at, self._widen)

    async def _stand_in(self, bulkhead: Bulkhead, deadline: float) -> bool:
        """Wait for a slot, first come first served; False if the deadline passed before."""
        if bulkhead.take():
            return True
        if len(bulkhead.line) >= self.options.queue_max:
            self._refuse_place(f"{len(bulkhead.line)} callers wait already")
        waiter = get_running_loop().create_future()
        bulkhead.line.append(waiter)
        try:
            with Alarm(self._deadlines, deadline):
                await waiter
        except BaseException as error:
            bulkhead.leave(waiter, granted=waiter.done() and not waiter.cancelled())
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    # ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse(self, error: type[KooError], reason: str, wait_s: float | None, kind: Kind) -> NoReturn:
        self.tally.record_refusal(kind)
        # A fresh one each time: a shared exception grows its traceback without end.
        raise error(self.name, reason, wait_s, kind=kind)

    def _refuse_open(self, now: float) -> NoReturn:
        reason, wait_s = self.breaker.refusal(now)
        self._refuse(self.family.circuit_open, reason, wait_s, Kind.CIRCUIT_OPEN)

    def _refuse_place(self, reason: str) -> NoReturn:
        self._refuse(self.family.saturated, reason, None, Kind.SATURATED)

    def _refuse_limit(self) -> NoReturn:
        """Which limit, and when it is usable again; where only others wait before it: soon."""
        limits, now = self._limits, self._monotonic()
        full = limits.full(now)
        if full is None:
            self._refuse(
                self.family.limited, "others wait for our limit already", LOOK_AGAIN_S, Kind.RATE_LIMITED
            )
        usable_at = limits.usable_at(now)
        wait_s = None if usable_at == NEVER else usable_at - now
        reason = f"our limit of {full.limit} {full.name} is reached"
        self._refuse(self.family.limited, reason, wait_s, Kind.RATE_LIMITED)

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────────

    def _publish_steps(self) -> None:
        """Publish what the breaker did, after its state is set; and what follows from it for the other gates."""
        breaker = self.breaker
        happened, breaker.happened = breaker.happened, []
        for event in happened:
            if isinstance(event, CircuitOpened):
                breaker.lease_s = self._lease_s()
            elif (
                isinstance(event, CircuitClosed)
                and breaker.override is NONE
                and breaker.closed_by is not None
            ):
                alone = breaker.closed_by is Cue.STAYED_IDLE  # nobody has tried it: one at first
                few = 1 if alone else RAMP_FACTOR * self.options.breaker.success_threshold
                self._bulkhead.narrow(few, self._monotonic())
            self._emit(event)

    def _emit(self, event: Event) -> None:
        if self._publish is None:
            return
        try:
            self._publish(event)
        except Exception:  # noqa: BLE001 - whoever listens must not keep a permit, a place or a hold
            log.exception("could not publish %s", type(event).__name__)

    def _lease_s(self) -> float:
        """A probe runs long enough for a slow model's honest answer, and no longer than an attempt."""
        usual_s = 2 * self.tally.totals().percentile_s(0.99)
        return min(self.options.attempt_timeout_s, max(self.options.breaker.lease_s, usual_s))
