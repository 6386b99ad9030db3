"""The gateway takes a query and returns an answer, or raises the reason why each service did not answer.

It decides the order of the services and what is sent to each of them: model, length limit, price. The guard handles
retries, deadlines, limits and breakers. The provider decides what an error means. The charge handles money; the guard
has it hold the worst case before each attempt.

Each service gets a share of the query's time: what is left, divided by the number of services that may still be called.
Its attempts, pauses and waits all end with its share, so a service that hangs leaves the next one enough time. The last
service gets everything that is left.

Rules for moving to the next service:

- A caller's mistake ends the query, because the next service would only repeat the error. The exception is a prompt
  that is too long for one service: it goes to services that can read more (`abilities.py`).
- A refusal (open breaker, limit, budget, unknown price) moves on immediately. A budget may name the service to use
  instead.
- A failure moves on after its retries.
- A cancellation settles what was spent and propagates.

Whole and streamed answers begin in the same way. A whole answer is complete as soon as it has begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TypeVar
from weakref import WeakSet

from koo.ai.abilities import LONG_CHARACTERS, TOO_LONG, check_room, is_too_long_for
from koo.ai.budgets import Budgets
from koo.ai.checking import check
from koo.ai.conversations import Conversations
from koo.ai.lists import Lists, outcome_of
from koo.ai.model_price import ModelPrice
from koo.ai.models import may_think_unseen
from koo.ai.open_answer import Begun
from koo.ai.pricing import Prices
from koo.ai.providers.base import Completion, Request
from koo.ai.providers.faults import transport_error
from koo.ai.query_charge import QueryCharge, Terms
from koo.ai.service import AIService
from koo.ai.stream import AnswerStream, StreamedCompletion, open_stream
from koo.ai.types import Answer, Query
from koo.ai.watching import UNWATCHED, Watch
from koo.clock import Clock
from koo.deadlines import Deadlines, ends_at
from koo.errors import (
    AllServicesFailed,
    CallerMistake,
    ExternalServiceError,
    Kind,
    PriceUnknown,
    ServiceRefused,
    UnknownService,
    name_of,
)
from koo.http.client import ClosedHere
from koo.http.connector import departure
from koo.logs.calls import CallLog
from koo.options import ServiceOptions
from koo.scope import Scope

MOVES_ON = {Kind.PRICE_UNKNOWN, Kind.NOT_CONFIGURED, *TOO_LONG}
"""Mistakes of the operator, or mistakes that matter only at this service: another service may well answer."""

COST_USD_MAX = Decimal(1_000_000)
"""The most that a ledger can hold for one call."""

T = TypeVar("T", Completion, StreamedCompletion)
Ask = Callable[[AIService, QueryCharge, Scope[T]], Awaitable[T]]
"""One attempt at a service. It returns the whole answer, or the first content of a streamed one."""


def ask_whole(one: AIService, charge: QueryCharge, _: Scope[Completion]) -> Awaitable[Completion]:
    """Send the request and wait for the whole answer."""
    departure.set(charge.departure)
    return one.provider.complete(charge.request)


class Gateway:
    """Calls the configured services. `services` is keyed by name, `budgets` hold the cost, `calls` logs failures."""

    def __init__(
        self,
        services: Mapping[str, AIService],
        *,
        budgets: Budgets,
        prices: Prices,
        deadlines: Deadlines,
        clock: Clock,
        calls: CallLog | None = None,
    ) -> None:
        self.services = services
        self._budgets = budgets
        self._prices = prices
        self._deadlines = deadlines
        self._clock = clock
        self._calls = calls or CallLog(clock)
        self._conversations = Conversations(clock.monotonic)
        self._lists = Lists(services, self.query)
        self._streams: WeakSet[AnswerStream] = WeakSet()
        self.fell_back: Counter[str] = Counter()
        """How many answers came from a fallback, counted by the service that was called first."""
        self.watch: Watch = UNWATCHED
        self.served: Callable[[Sequence[str], str], object] = lambda guards, service: None
        """Called when a fallback answers, with the guards of the services that refused or failed before it."""

    # ── public methods ────────────────────────────────────────────────────────────────────────────────────────

    async def query(self, query: Query) -> Answer:
        """Call `query.service`, then each service of `query.fallback` until one answers.

        Raises `UnknownService` or `InvalidRequest` before anything is sent. If all services fail, raises
        `AllServicesFailed`, or the `ExternalServiceError` itself if there was only one service.
        """
        begun = await self._begin(query, ask_whole)
        completion = begun.scope.value
        answer = begun.end(completion)
        begun.learn_pace(completion.pace, completion.usage)
        return answer

    def stream(self, query: Query, before: Callable[[], Awaitable[object]] | None = None) -> AnswerStream:
        """Like `query`, but streamed. Nothing is sent before the first `anext`, which awaits `before` first.

        A fallback is possible only until the first content arrives.
        """

        async def start() -> Begun[StreamedCompletion]:
            if before is not None:
                await before()
            return await self._begin(query, open_stream)

        stream = AnswerStream(name_of(query.service), start, self._deadlines)
        self._streams.add(stream)
        return stream

    async def cut_streams(self) -> None:
        """Book what the open streams have used, because koo is about to close their connections."""
        # This is a copy, because each `cut` awaits. A stream that is opened during that time would change the set while
        # it is iterated; that raises RuntimeError, and the remaining streams would not be booked.
        for stream in tuple(self._streams):
            await stream.cut(transport_error(stream.service, ClosedHere("answer")))

    async def query_many(self, queries: Sequence[Query]) -> list[Answer | ExternalServiceError]:
        """Run many queries, each as soon as its service has a free slot. See `koo.ai.lists`.

        Returns an answer or an error for each query, in order.
        """
        if ends_at.get() <= self._clock.monotonic():
            # The deadline has already passed. While this task waited for a task group, the deadline would cancel it and
            # all queries with it, and the caller would get one TimeoutError instead of a list. If they are called one
            # after another, each query is refused without suspending, and every entry of the list is its own error.
            return [await outcome_of(self.query, query) for query in queries]
        return await self._lists.ask_all(queries)

    # ── trying the services in order ──────────────────────────────────────────────────────────────────────────

    async def _begin(self, query: Query, ask: Ask[T]) -> Begun[T]:
        """Call the services in order until one of them begins to answer within the query's deadline."""
        try:
            services = self._choose(query)
        except CallerMistake as error:
            self._calls.failed(name_of(query.service), "query", error, error.kind, 0)
            raise
        began_at = self._clock.monotonic()
        deadline, outer = began_at + (query.timeout_s or services[0].options.timeout_s), ends_at.get()
        # What it means to exceed a deadline depends on who set it. koo's own deadline comes from an option, so a
        # service that exceeds it has failed. The caller's deadline says nothing about the service: if it counted as a
        # failure, callers with short timeouts would open the breaker for everyone else.
        is_ours = query.timeout_s is None and deadline < outer
        deadline = min(deadline, outer)
        failures: list[ExternalServiceError] = []
        guards: list[str] = []  # the guards of the services that failed or refused
        too_long_for = 0
        try:
            for place, one in enumerate(services, start=1):
                left_s = deadline - self._clock.monotonic()
                # The first service is called even without time left: its guard refuses and counts the call, and that
                # refusal is what the caller gets. Ending the loop before it would leave no error to raise.
                if failures and left_s <= 0:
                    raise AllServicesFailed(
                        f"no service could answer in time; {one.options.name} was not called", failures
                    )
                # `model` names a model of the first service. At a fallback it would be an unknown model or, worse, a
                # different one with the same name, so each fallback uses its own default.
                asked = replace(query, model=None) if failures else query
                # Without shares, a first service that hangs would use up the whole deadline, and its fallback, which
                # exists for exactly that case, would never be called. Unconfigured services get no share: they refuse
                # immediately. A service that ends early leaves the rest of its share to those after it.
                later = _askable(services, place)
                share_s, ours = _share(query, one, left_s / (1 + later), is_ours)
                try:
                    charge = self._prepare(one, asked)
                    if too_long_for or len(query.prompt) >= LONG_CHARACTERS:
                        check_room(one, charge.model, len(query.prompt), too_long_for)
                    # A free call has nothing to hold, so it keeps working while the state store is unreachable.
                    guard, paid = one.service.guard(charge.model), None if charge.price.free else charge
                    # The scope is made here and passed in, not returned by `begin`: a streaming attempt needs its
                    # permit while it runs, to renew a probe's lease whenever the model reasons.
                    scope: Scope[T] = Scope(guard, streams=ask is open_stream)
                    with self.watch(one.options, charge.request, ask is open_stream) as watched:
                        await guard.begin(
                            ask, one, charge, scope, charge=paid, on_limit=query.on_limit, scope=scope,
                            timeout_s=share_s, is_ours=ours, has_next=later > 0,
                        )  # fmt: skip
                except ExternalServiceError as error:
                    # Inserting into the list that this loop iterates is safe here: `place` is the index of the next
                    # service, so the inserted one comes next and none is skipped or repeated.
                    services[place:place] = self._instead(error, services)
                    self._note(error, services[place:] if self._clock.monotonic() < deadline else ())
                    if len(services) == 1 or (left_s <= 0 and not failures):
                        raise
                    if _ends_the_query(error):
                        _add_reasons(error, failures)
                        raise
                    failures.append(error)
                    guards.append(one.service.guard(_model(one, asked)).breaker.name)
                    if error.kind in TOO_LONG:
                        too_long_for = max(too_long_for, is_too_long_for(one, _model(one, asked), error))
                else:
                    if failures:
                        self._note_fallback(services[0], guards, one)
                    return Begun(one, guard, charge, scope, began_at, watched)
            # A prompt that is too long for every service is the caller's mistake, not an outage. A caller that retries
            # after `AllServicesFailed` would keep sending what can never succeed.
            if all(error.kind in TOO_LONG for error in failures):
                _add_reasons(failures[0], failures[1:])
                raise failures[0]
            raise AllServicesFailed("no service could answer", failures)
        finally:
            # Each error's traceback refers to this frame, and the frame refers to this list, which contains the error.
            # Without the clear this cycle would keep every prompt in these frames alive until the garbage collector
            # happens to run. The raised group has its own copy of the list.
            failures.clear()

    def _note_fallback(self, first: AIService, guards: Sequence[str], one: AIService) -> None:
        """Record that the answer comes from a service other than the one that was called first."""
        self.fell_back[first.options.name] += 1
        self.served(guards, one.options.name)

    def _note(self, error: ExternalServiceError, later: Sequence[AIService]) -> None:
        """Log that a service did not answer, and which service is next."""
        then = f"{later[0].options.name} is called next" if later and not _ends_the_query(error) else ""
        self._calls.failed(error.service, "query", error, error.kind, error.attempts, then)

    # ── before anything is sent ───────────────────────────────────────────────────────────────────────────────

    def _choose(self, query: Query) -> list[AIService]:
        """The services to call, in order. Raises `UnknownService` or `InvalidRequest`."""
        first = self.find(query.service)
        check(query)
        if not query.fallback:
            return [first]
        return [first, *(self.find(name) for name in dict.fromkeys(query.fallback) if name != query.service)]

    def _instead(self, error: ExternalServiceError, services: Sequence[AIService]) -> list[AIService]:
        """The service that a refusing budget names as its replacement, unless the query already includes it."""
        name = error.instead if isinstance(error, ServiceRefused) else None
        one = self.services.get(name) if name is not None else None
        return [one] if one is not None and one not in services else []

    def find(self, name: str) -> AIService:
        """The service with this name. Raises `UnknownService`, which lists the known names."""
        service = self.services.get(name) if isinstance(name, str) else None
        if service is None:
            known = ", ".join(sorted(self.services))
            raise UnknownService(name_of(name), f"no such service; known services: {known}")
        return service

    def _prepare(self, one: AIService, query: Query) -> QueryCharge:
        """Build the request for a service and its charge. Raises `CallerMistake` or `PriceUnknown`."""
        options = one.options
        # Check again before refusing: a missing package or model file may have been installed since koo started.
        if one.service.obstacle and one.look():
            raise CallerMistake(options.name, one.service.obstacle, kind=Kind.NOT_CONFIGURED)
        model = _model(one, query)
        request = Request(
            prompt=query.prompt,
            model=model,
            max_tokens=query.max_tokens or options.max_tokens,
            system=query.system,
            temperature=query.temperature,
        )
        return QueryCharge(
            one.service,
            self._budgets,
            one.provider,
            request,
            self._price(options, model),
            _terms(query),
            # Perplexity's count includes its search results, which differ each time. A count from one answer is not an
            # upper bound for the next prompt.
            conversations=None if options.kind == "perplexity" else self._conversations,
            thinks_unseen=may_think_unseen(options, model),
        )

    def _price(self, options: ServiceOptions, model: str) -> ModelPrice:
        price = self._prices.find(options, model)
        if price is None:
            reason = (
                f"the price of model {model[:80]!r} is unknown, so its cost cannot be limited; set AI_SERVICES__"
                f"{options.name.upper()}__PRICE_AS to a model of the same price, or __INPUT_PRICE and __OUTPUT_PRICE"
            )
            raise PriceUnknown(options.name, reason)
        return price


def _terms(query: Query) -> Terms:
    most = query.max_cost_usd
    return Terms(
        tag=query.tag,
        metadata=query.metadata,
        max_cost_usd=None if most is None else min(Decimal(str(most)), COST_USD_MAX),
        is_clamped=query.clamp,
        is_patient=query.on_limit == "wait",
    )


def _askable(services: Sequence[AIService], place: int) -> int:
    """How many of the services from index `place` on are configured, and so get a share of the time."""
    return sum(one.service.configured for one in services[place:]) if len(services) > place else 0


def _share(query: Query, one: AIService, share_s: float, is_ours: bool) -> tuple[float, bool]:
    """The service's time in seconds, and whether koo set that limit.

    A service's own timeout option applies unless the query sets a timeout.
    """
    if query.timeout_s is None and one.options.timeout_s < share_s:
        return one.options.timeout_s, True
    return share_s, is_ours


def _model(one: AIService, query: Query) -> str:
    return query.model or one.options.model


def _ends_the_query(error: ExternalServiceError) -> bool:
    return isinstance(error, CallerMistake) and error.kind not in MOVES_ON


def _add_reasons(error: ExternalServiceError, others: Sequence[ExternalServiceError]) -> None:
    """Add to a caller's mistake the reasons why the other services did not answer either."""
    for other in others:
        error.add_note(str(other))
