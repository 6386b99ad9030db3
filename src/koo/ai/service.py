"""One AI service: its options, its provider and its guards.

A service has one key, one set of limits and one budget, so it has one set of gates. But it has one breaker for each
model, because an overloaded model says nothing about the other models. Only an outage of the host that they share
spreads from one breaker to the others (`_spread_outage`).

Callers choose model names, so the number of guards is limited. A model that makes room for another leaves its counts
and its pause behind: counters in metrics must not fall, and a pause that the provider asked for must be kept.

The limit on requests per day is the only one that outlives the process. The service keeps the count and the caller
(`Budgets.keep_count`) exchanges it with the state store: this process's own requests go out, those of other processes
come in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from koo.ai.credentials import Credentials
from koo.ai.models import not_configured
from koo.ai.providers.base import Pace, Provider
from koo.ai.threads import Threads
from koo.ai.types import Usage
from koo.clock import Clock, utc_day
from koo.deadlines import Deadlines
from koo.errors import Kind, KooError
from koo.events import Event, KeyUnblocked
from koo.gates import Gates
from koo.guard import Guard
from koo.http.proxies import Proxy
from koo.logs.calls import CallLog
from koo.openings import Act
from koo.options import DAY_S, NEVER, GuardOptions, ServiceOptions
from koo.policies.breaker import CLOSED, Override
from koo.policies.cooldown import Cooldown
from koo.policies.limiter import Count, DayCount, Limits, SlidingCount
from koo.policies.pacer import Pacer
from koo.policies.permit import Permit
from koo.policies.tally import Tally
from koo.policies.token_limit import TokenLimit
from koo.policies.verdict import Classify
from koo.storage.base import Allowance

NO_OVERRIDE = (Override.NONE, None, NEVER)
PAUSES_MAX = 1024
MODELS_MAX = 64
"""The most guards kept. Callers choose model names, so without a limit misspelt names would fill the memory."""
UNSEEN_S_MIN = 2.0
"""A smaller jump of the wall clock is ignored: NTP corrects a clock by less than this from one second to the next."""
SIZES_FADE = 32
"""A large answer's size fades over about this many smaller ones, because the next answer may be large again."""


def make_limits(options: ServiceOptions | GuardOptions, clock: Clock) -> Limits:
    """Make the counts for the limits that are set."""
    now, wall = clock.monotonic(), clock.wall()
    limits = options.limits
    counts: list[Count] = []
    if limits.per_minute is not None:
        counts.append(SlidingCount("requests a minute", limits.per_minute, 60.0, now))
    if limits.per_hour is not None:
        counts.append(SlidingCount("requests an hour", limits.per_hour, 3600.0, now))
    if limits.per_day is not None:
        day = utc_day(wall)
        counts.append(DayCount("requests a day", limits.per_day, now + (day + 1) * DAY_S - wall, day))
    return Limits(*counts)


def make_token_limit(options: ServiceOptions | GuardOptions, clock: Clock) -> TokenLimit | None:
    """Make the limit on tokens; None if it is not set."""
    limit = options.limits.tokens_per_minute
    return None if limit is None else TokenLimit(limit, clock.monotonic())


def guard_options(options: ServiceOptions) -> GuardOptions:
    """The guard options for a service. Queries are idempotent: repeating one changes nothing except the bill."""
    return GuardOptions(
        timeout_s=options.timeout_s,
        attempt_timeout_s=options.attempt_timeout_s,
        slow_s=options.slow_s,
        concurrency_max=options.concurrency_max,
        queue_max=options.queue_length,
        idempotent=True,
        breaker=options.breaker,
        retry=options.retry,
        limits=options.limits,
    )


@dataclass(frozen=True, slots=True)
class AIService:
    """A service that can be called: its guards, its provider, its options, and the proxy in front of the provider."""

    service: Service
    provider: Provider
    options: ServiceOptions
    proxy: Proxy | None = None

    def look(self) -> str:
        """Check again whether the service can be called at all, and return `Service.obstacle`."""
        missing = not_configured(self.options) if not self.options.configured else self.provider.obstacle()
        self.service.obstacle = missing
        return missing


class Service:
    """The gates of one service and its guards by model. `default_model` is used for queries that name no model."""

    _opened_before = 0
    """How often the breakers of forgotten models opened."""
    on_new_guard: Callable[[Guard], None] | None = None
    """Called with each guard that is made after the service itself."""

    def __init__(
        self,
        name: str,
        options: GuardOptions,
        *,
        default_model: str | None,
        clock: Clock,
        deadlines: Deadlines,
        classify: Classify,
        publish: Callable[[Event], None] | None = None,
        allowance: Allowance | None = None,
        obstacle: str = "",
        slot_settings: tuple[str, ...] = ("concurrency_max", "queue_max"),
        checkable: bool = False,
        free: bool = False,
        pilots: int = 0,
        in_thread: bool = False,
        credential: str = "",
        credential_of: Callable[..., object] | None = None,
        calls: CallLog | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.default_model = default_model
        self.obstacle = obstacle
        """What is missing before the service can be called, and how to fix it; empty if nothing is missing."""
        self.checkable = checkable
        self.free = free
        self.pilots = pilots
        """How many calls of each model go first, to read the provider's limits from the responses; 0: all at once."""
        self.allowance = allowance or Allowance(None)
        self.clock, self.deadlines = clock, deadlines
        self.calls = calls or CallLog(clock)  # for users' own operations and for streams that broke off
        self._seen_at = clock.monotonic(), clock.wall()
        # A UTC day, and how many of this process's requests on it are stored; the same for other processes' requests.
        self._stored = self._elsewhere = (0, 0)
        self._classify = classify
        self._publish = publish
        self.gates = Gates(
            name,
            options,
            deadlines=deadlines,
            limits=make_limits(options, clock),
            clock=clock,
            publish=publish,
            slot_settings=slot_settings,
        )
        self.tokens = make_token_limit(options, clock)
        self.threads = Threads(name, self.gates.bulkhead, deadlines) if in_thread else None
        """The threads for blocking operations; None if the service runs none."""
        self.gates.key_blocks.by_calls = not checkable
        self.own_credential = credential
        """The digest of the key that koo itself uses; empty for an application's own operation."""
        self.credential_of = credential_of
        """The registration's function from a call's arguments to its credential, if there is one."""
        self.credentials = Credentials(self.gates, self.guard)
        self._guards: dict[str | None, Guard] = {}
        self._forgotten = Tally(clock.monotonic())  # the counts of forgotten models
        self._pauses: dict[str | None, Cooldown] = {}  # the pauses of models that have no guard now
        self._override: tuple[Override, Act | None, float] = NO_OVERRIDE
        self.guard(default_model)

    def guard(self, model: str | None = None) -> Guard:
        """The guard of one model, made on first use."""
        guard = self._guards.get(model)
        return guard if guard is not None else self._make_guard(model)

    def guard_for(self, credential: str, model: str | None = None) -> Guard:
        """The guard of one model for the calls of a credential; "" if the credential is unknown."""
        if not credential or credential == self.own_credential:
            return self.guard(model)
        return self.credentials.guard(credential, model)

    @property
    def configured(self) -> bool:
        """Whether the service can be called at all. If not, it is left out of counts, alerts and the overall health."""
        return not self.obstacle

    @property
    def default_guard(self) -> Guard:
        return self._guards[self.default_model]

    @property
    def guards(self) -> list[Guard]:
        return list(self._guards.values())

    @property
    def tallies(self) -> list[Tally]:
        """The counts of all models, including forgotten ones."""
        return [*(guard.tally for guard in self._guards.values()), self._forgotten]

    @property
    def times_opened(self) -> int:
        """How often the breakers of all models opened, including forgotten ones."""
        return self._opened_before + sum(guard.breaker.trips for guard in self._guards.values())

    def take_over(self, before: Service) -> None:
        """Continue the counts of a registration that this one replaces, because a counter must never fall."""
        now = self.clock.monotonic()
        for tally in before.tallies:
            self._forgotten.take_over(tally, now)
        self._opened_before += before.times_opened
        before._forgotten = self._forgotten
        # Calls of the old registration may still be running, and record their result in their guard's tally. Those
        # tallies have just been added up here; a result recorded there later would be lost.
        for guard in before.guards:
            guard.tally = self._forgotten
            before.credentials.forget(guard.model, self._forgotten)

    def _make_guard(self, model: str | None) -> Guard:
        if len(self._guards) >= MODELS_MAX:
            self._forget_one()
        guard = Guard(self.gates, model=model, classify=self._classify, on_outage=self._spread_outage)
        if self._override is not NO_OVERRIDE:
            guard.set_override(*self._override)
        if self.pilots:
            guard.pacer.send_pilots(self.pilots)
            self.gates.watch_pace(guard.pacer)
        guard.cooldown = self._pauses.pop(model, guard.cooldown)
        self._guards[model] = guard
        if self.on_new_guard is not None:
            self.on_new_guard(guard)
        return guard

    def _spread_outage(self, met_by: Guard, in_row: bool) -> None:
        """Count a failure to reach the host on all other models; `in_row`: it was a new step on its own breaker."""
        # All models share the host. Only failures of the connection spread (`reach` "service"): an error response
        # proves that the host was reached, so it counts for its own model only. Without the spread, each of ten models
        # would have to fail five times before an outage is known to all: fifty callers would wait for a timeout
        # instead of five.
        #
        # One connection reset can end fifty running calls. They are one event, and count as one in the row of each
        # model; otherwise a single reset would open every breaker.
        #
        # Compared by breaker, not by guard: the guards of other credentials share the model's breaker, which has
        # already counted this failure.
        for guard in self.guards:
            if guard.breaker is not met_by.breaker:
                guard.count_outage(in_row, met_by.breaker.last_error)

    def _forget_one(self) -> None:
        """Drop the model that has been idle longest, if possible one whose breaker is closed, but keep its counts."""
        # A model with running calls must stay: they hold permits of its breaker, and a new breaker under the same name
        # would allow as many calls again. If all models are in use, none is dropped; their number is then limited by
        # the number of calls that may run. A model with an open breaker is dropped last, because dropping it also
        # forgets the outage.
        idle = [
            guard
            for guard in self._guards.values()
            if guard.model != self.default_model and not guard.breaker.running
        ]
        if not idle:
            return
        guard = min(idle, key=lambda one: (one.breaker.phase is not CLOSED, one.tally.idle_since))
        now = self.clock.monotonic()
        del self._guards[guard.model]
        self.gates.pacing.discard(guard.pacer)
        self.gates.retry_budget.leave(guard.tally)
        self._forgotten.take_over(guard.tally, now)
        self._opened_before += guard.breaker.trips
        # A caller that is still queuing at the gates has this guard, and will record its result there.
        guard.tally = self._forgotten
        self.credentials.forget(guard.model, self._forgotten)
        if now < guard.cooldown.until:
            self._keep_pause(guard.model, guard.cooldown, now)

    def _keep_pause(self, model: str | None, cooldown: Cooldown, now: float) -> None:
        """Keep the pause of a model without a guard. If there are too many, the longest ones are kept."""
        pauses = self._pauses
        pauses[model] = cooldown
        if len(pauses) > PAUSES_MAX:
            lasting = [(one, pause) for one, pause in pauses.items() if now < pause.until]
            lasting.sort(key=lambda pair: pair[1].until)
            # Half of them are dropped, so that sorting is not repeated for each new pause.
            self._pauses = dict(lasting[-PAUSES_MAX // 2 :])

    def reset(self, act: Act | None = None, *, publish: bool = True) -> None:
        """Clear phases, streaks, cooldowns and key blocks of all models; never money, used limits or counts.

        `publish` is False if another process made the reset: publishing it here would send it back to that process.
        """
        self._override = NO_OVERRIDE
        for guard in self.guards:
            guard.reset(act, is_new=publish)
        self._pauses.clear()
        self.gates.quota.clear()
        unblocked = [*self.credentials.clear()]
        if publish:
            self.unblock_key()
            for event in unblocked:
                self.gates.emit(event)
        else:
            self.gates.key_blocks.clear()

    def set_override(self, override: Override, act: Act | None = None, ends_at: float = NEVER) -> None:
        """Apply an operator's override to all models, including those first used later."""
        self._override = NO_OVERRIDE if override is Override.NONE else (override, act, ends_at)
        for guard in self.guards:
            guard.set_override(override, act, ends_at)

    def pause(self, model: str, for_s: float, kind: Kind, reason: str, credential: str = "") -> None:
        """Pause because another process hit the provider's limit. `model` "" means the whole service.

        `credential` is the one whose limit was hit, if it is not the service's own.
        """
        # The jitter is zero: the process that hit the limit has already added it to `for_s`.
        now = self.clock.monotonic()
        if credential and model:
            self.credentials.guard(credential, model).cooldown.extend(now, for_s, lambda: 0.0, kind, reason)
            return
        if credential:
            self.credentials.gates(credential).pause(now, for_s, lambda: 0.0, kind, reason)
            return
        guard = self._guards.get(model)
        if guard is not None:
            guard.cooldown.extend(now, for_s, lambda: 0.0, kind, reason)
        elif not model:
            self.gates.pause(now, for_s, lambda: 0.0, kind, reason)
        else:
            cooldown = self._pauses.get(model) or Cooldown()
            cooldown.extend(now, for_s, lambda: 0.0, kind, reason)
            self._keep_pause(model, cooldown, now)

    def unblock_key(self) -> None:
        """Lift the key blocks of all models, because an operator says that the key works again."""
        self._publish_unblocked(self.gates.key_blocks.clear())

    def note_check(self, error: KooError | None) -> None:
        """Pass the result of an unbilled check to the guards of all models. A key that passed is unblocked."""
        for guard in self.guards:
            guard.note_check(error)
        if error is None and self.gates.key_blocks:
            self._publish_unblocked(self.gates.key_blocks.lift(self.clock.monotonic()))

    def _publish_unblocked(self, models: Iterable[str | None]) -> None:
        for model in models:
            if self._publish is not None:
                self._publish(KeyUnblocked(self.name, model))

    def tick(self) -> None:
        """Do what is due every second: breakers, override, expired key blocks, and the end of the day's count."""
        self._catch_up()
        for guard in self.guards:
            guard.tick()
        now = self.clock.monotonic()
        if now >= self._override[2]:
            self._override = NO_OVERRIDE
        self._publish_unblocked(self.gates.key_blocks.expire(now))
        for event in self.credentials.tick(now):
            self.gates.emit(event)
        self._anchor_day()

    def _catch_up(self) -> None:
        """Shorten the pauses that a provider asked for by the time that only the wall clock has counted."""
        # The monotonic clock stops while a machine is suspended. After an hour's suspension koo would otherwise stay
        # away for an hour longer than it was asked to. A wall clock that is set back changes nothing. One that is set
        # forward lets one call through too early, which the provider refuses again.
        now, wall = self.clock.monotonic(), self.clock.wall()
        unseen_s = (wall - self._seen_at[1]) - (now - self._seen_at[0])
        self._seen_at = (now, wall)
        if unseen_s < UNSEEN_S_MIN:
            return
        self.gates.quota.skip(unseen_s)
        self.gates.key_blocks.skip(unseen_s)
        self.credentials.skip(unseen_s)
        for guard in self.guards:
            guard.cooldown.skip(unseen_s)
            guard.breaker.skip(unseen_s)
            guard.pacer.skip(unseen_s)

    def learn_pace(
        self,
        guard: Guard,
        paces: Iterable[Pace],
        permit: Permit,
        usage: Usage | None,
        *,
        is_most: bool = False,
    ) -> None:
        """Record what the headers of a response say about the provider's limits.

        `permit` and `usage` are those of the call. `usage` is None while it is unknown; with `is_most` it is only an
        upper bound.
        """
        # Providers count tokens, the pacer counts calls. So each limit and remainder is divided by the size of a call.
        told = []
        for pace in paces:
            size, limit = _size(guard.pacer, pace.resource, usage, is_most), pace.limit
            if size and pace.remaining is not None:
                limit_left = None if limit is None else limit / size
                told.append((limit_left, pace.remaining / size, pace.resets_in_s, pace.resource))
        now = self.clock.monotonic()
        spare = guard.pacer.learn(told, permit.serial, guard.breaker.given, now, now - permit.given_at)
        if spare < self.gates.bulkhead.limit:
            self.gates.watch_pace(guard.pacer)

    def pace_s(self, model: str | None, now: float) -> float:
        """How long a call of a model (None: the default one) has to wait for the provider's own limits, at least."""
        guard = self._guards.get(model or self.default_model)
        return 0.0 if guard is None else guard.pacer.wait_s(now)

    def measure(self, guard: Guard, usage: Usage) -> None:
        """Record how many tokens a streamed answer took, once it has ended."""
        for resource in guard.pacer.resources:
            _size(guard.pacer, resource, usage, is_most=False)

    def forget_parent(self) -> None:
        """In a forked child, drop the running and waiting calls: they are the parent's and will never end here."""
        self.gates.bulkhead.forget()
        self.gates.limit_queue.forget()
        for guard in self.guards:
            guard.breaker.forget_running()
            guard.pacer.line.forget()

    def forget_used(self, *, stored: bool = False) -> None:
        """Reset the used limits to zero, on an operator's request. Money is never reset.

        `stored`: another process made the reset, and has subtracted the day's requests of all processes in the state
        store.
        """
        for count in self.gates.limits.counts:
            if stored and isinstance(count, DayCount):
                # The amount subtracted in the store includes this process's own requests. On the next exchange they
                # will arrive as a negative number of other processes' requests. Expect that number here, or it would be
                # subtracted a second time and the limit would let as many requests through again.
                self._elsewhere = (count.day, self._of(self._elsewhere, count.day) - count.used)
        self.gates.limits.clear(self.clock.monotonic(), is_told=stored)
        if self.tokens is not None:
            self.tokens.clear(self.clock.monotonic(), is_told=stored)

    def _anchor_day(self) -> None:
        """Set the end of the day's count by the wall clock, from which the monotonic clock drifts away."""
        now, wall = self.clock.monotonic(), self.clock.wall()
        day = utc_day(wall)
        for count in self.gates.limits.counts:
            if isinstance(count, DayCount):
                count.roll(now)
                count.anchor(now + (day + 1) * DAY_S - wall, day)

    # ── the day's requests, which outlive the process ─────────────────────────────────────────────────────────

    def take_unstored(self) -> tuple[int, int]:
        """The UTC day, and how many of its requests are not in the state store yet; negative after a refund.

        The caller must store them, because the next call returns only later ones. Returns (0, 0) if requests per day
        are not limited.
        """
        # A count that was last used before midnight still belongs to the previous day, so it is anchored first.
        # Otherwise requests would be stored under a day that is over.
        self._anchor_day()
        count = self.day_count
        if count is None:
            return 0, 0
        # `count.used` includes what other processes reported. If they were stored too, those requests would be counted
        # once by their own process and once by each of the others, and the total would grow with every beat.
        own = count.used - self._of(self._elsewhere, count.day)
        unstored = own - self._of(self._stored, count.day)
        self._stored = (count.day, own)
        return count.day, unstored

    def note_elsewhere(self, day: int, used: int) -> None:
        """Count `used` requests of other processes, and of earlier ones, on that UTC day."""
        # If the count still belongs to the previous day, anchor it first: what is added to that day would be dropped
        # when it ends.
        self._anchor_day()
        count = self.day_count
        if count is not None and count.day == day:
            count.used += used - self._of(self._elsewhere, day)
            self._elsewhere = (day, used)

    def note_day(self, day: int, used: int) -> None:
        """Set the count to the `used` requests of all processes on that UTC day, as the limit's purse reports them."""
        self._anchor_day()
        count = self.day_count
        if count is not None and count.day == day:
            count.used = used

    @staticmethod
    def _of(known: tuple[int, int], day: int) -> int:
        return known[1] if known[0] == day else 0

    @property
    def day_count(self) -> DayCount | None:
        """The count of today's requests; None if they are not limited."""
        return next((count for count in self.gates.limits.counts if isinstance(count, DayCount)), None)


def _size(pacer: Pacer, resource: str, usage: Usage | None, is_most: bool) -> float:
    """How much of a limit a call takes: as much as the last answer, or as the earlier ones if those took more."""
    if "token" not in resource:
        return 1.0
    known = pacer.sizes.get(resource, 0.0)
    if usage is None:
        return known
    tokens = _tokens(resource, usage)
    # An upper bound serves until the first answer, and is not remembered: it is many times too large, and would slow
    # calls down for the next thirty answers.
    if is_most:
        return tokens
    # The size rises immediately and falls slowly. An average would be too small for every second call, and with a size
    # that is too small the pacer sends more calls than the provider's remaining tokens allow.
    pacer.sizes[resource] = size = max(tokens, known + (tokens - known) / SIZES_FADE)
    return size


def _tokens(resource: str, usage: Usage) -> int:
    """How many tokens an answer takes of a limit. Tokens from the provider's cache do not count as input."""
    if resource.startswith("input"):
        return usage.input_tokens + usage.cache_write_tokens
    if resource.startswith("output"):
        return usage.output_tokens
    return usage.total_tokens
