"""The gateway: a query goes in; an answer comes out, or the reason why each service did not answer.

It owns the order of the services, and what each is asked: model, bound, price. Retries, deadlines, limits and breakers
are the guard's; what an error means is the provider's; money is the charge's, which the guard asks for before each
attempt.

Each service has a share of the query's time: what is left, divided by the number of services that may still be called.
Its attempts, pauses and waits all end with its share, so one that hangs leaves the next one its time. The last one has
everything that is left.

The rules of the order. A caller's mistake ends the query: the next service could only repeat it. But a prompt that is
too long for one service goes to those that can read more (`abilities.py`). A refusal (open breaker, limit, budget,
unknown price) moves on at once; a budget may name the service that comes next. A failure moves on after its retries. A
cancellation settles what was spent and is raised on. Whole and streamed answers begin alike; a whole one ends at once.
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
"""Mistakes of the operator, or of the query for this service only: another one may well answer it."""

COST_USD_MAX = Decimal(1_000_000)
"""The most that any ledger holds for one call."""

T = TypeVar("T", Completion, StreamedCompletion)
Ask = Callable[[AIService, QueryCharge, Scope[T]], Awaitable[T]]
"""One attempt at a service: until the whole answer has arrived, or the first content of a streamed one."""


def ask_whole(one: AIService, charge: QueryCharge, _: Scope[Completion]) -> Awaitable[Completion]:
    """Ask, and wait for the whole answer."""
    departure.set(charge.departure)
    return one.provider.complete(charge.request)


class Gateway:
    """Calls configured services. `services` by name; `budgets` hold their cost; `calls` logs failures."""

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
        """Answers of another service, by the one that was asked first."""
        self.watch: Watch = UNWATCHED
        self.served: Callable[[Sequence[str], str], object] = lambda guards, service: None
        """Called where a service answers, with the guards of those that refused or failed before it."""

    # ── the faces ─────────────────────────────────────────────────────────────────────────────────────────────

    async def query(self, query: Query) -> Answer:
        """Ask `query.service`, then each of `query.fallback`.

        Raises `UnknownService` or `InvalidRequest` before anything is sent, the `ExternalServiceError` of the only
        service, or `AllServicesFailed` if there was a choice.
        """
        begun = await self._begin(query, ask_whole)
        completion = begun.scope.value
        answer = begun.end(completion)
        begun.learn_pace(completion.pace, completion.usage)
        return answer

    def stream(self, query: Query, before: Callable[[], Awaitable[object]] | None = None) -> AnswerStream:
        """As `query`, streamed; nothing is sent before the first `anext`, which awaits `before` first.

        Falls back until the first content.
        """

        async def start() -> Begun[StreamedCompletion]:
            if before is not None:
                await before()
            return await self._begin(query, open_stream)

        stream = AnswerStream(name_of(query.service), start, self._deadlines)
        self._streams.add(stream)
        return stream

    async def cut_streams(self) -> None:
        """koo is closing, and with it the connections of open streams: book now what was used of each."""
        for stream in tuple(self._streams):
            await stream.cut(transport_error(stream.service, ClosedHere("answer")))

    async def query_many(self, queries: Sequence[Query]) -> list[Answer | ExternalServiceError]:
        """Each starts as a place comes free; an answer or an error for each, in order. See `koo.ai.lists`."""
        if ends_at.get() <= self._clock.monotonic():
            # With tasks to wait for, the deadline would cancel all of them together.
            return [await outcome_of(self.query, query) for query in queries]
        return await self._lists.ask_all(queries)

    # ── one service after the other ───────────────────────────────────────────────────────────────────────────

    async def _begin(self, query: Query, ask: Ask[T]) -> Begun[T]:
        """Call each service in order, until one begins to answer within the query's deadline."""
        try:
            services = self._choose(query)
        except CallerMistake as error:
            self._calls.failed(name_of(query.service), "query", error, error.kind, 0)
            raise
        began_at = self._clock.monotonic()
        deadline, outer = began_at + (query.timeout_s or services[0].options.timeout_s), ends_at.get()
        is_ours = query.timeout_s is None and deadline < outer
        deadline = min(deadline, outer)
        failures: list[ExternalServiceError] = []
        guards: list[str] = []  # behind which they failed, or that refused
        too_long_for = 0
        try:
            for place, one in enumerate(services, start=1):
                left_s = deadline - self._clock.monotonic()
                if failures and left_s <= 0:
                    break
                asked = replace(query, model=None) if failures else query
                later = _askable(services, place)
                share_s, ours = _share(query, one, left_s / (1 + later), is_ours)
                try:
                    charge = self._prepare(one, asked)
                    if too_long_for or len(query.prompt) >= LONG_CHARACTERS:
                        check_room(one, charge.model, len(query.prompt), too_long_for)
                    guard, paid = one.service.guard(charge.model), None if charge.price.free else charge
                    scope: Scope[T] = Scope(guard, streams=ask is open_stream)
                    with self.watch(one.options, charge.request, ask is open_stream) as watched:
                        await guard.begin(
                            ask, one, charge, scope, charge=paid, on_limit=query.on_limit, scope=scope,
                            timeout_s=share_s, is_ours=ours, has_next=later > 0,
                        )  # fmt: skip
                except ExternalServiceError as error:
                    services[place:place] = self._instead(error, services)
                    self._note(error, services[place:])
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
            if all(error.kind in TOO_LONG for error in failures):
                _add_reasons(failures[0], failures[1:])
                raise failures[0]
            raise AllServicesFailed("no service could answer", failures)
        finally:
            # Each error's traceback keeps this frame, and through this list itself and the other errors.
            failures.clear()

    def _note_fallback(self, first: AIService, guards: Sequence[str], one: AIService) -> None:
        """Another service answers than the one that was asked first."""
        self.fell_back[first.options.name] += 1
        self.served(guards, one.options.name)

    def _note(self, error: ExternalServiceError, later: Sequence[AIService]) -> None:
        """Log that a service did not answer, and which one comes next."""
        then = f"{later[0].options.name} is asked next" if later and not _ends_the_query(error) else ""
        self._calls.failed(error.service, "query", error, error.kind, error.attempts, then)

    # ── before anything is sent ───────────────────────────────────────────────────────────────────────────────

    def _choose(self, query: Query) -> list[AIService]:
        """The services to call, in order. Raises `UnknownService` and `InvalidRequest`."""
        first = self.find(query.service)
        check(query)
        if not query.fallback:
            return [first]
        return [first, *(self.find(name) for name in dict.fromkeys(query.fallback) if name != query.service)]

    def _instead(self, error: ExternalServiceError, services: Sequence[AIService]) -> list[AIService]:
        """The service that a refusing budget names as the next one, unless the query tries it anyway."""
        name = error.instead if isinstance(error, ServiceRefused) else None
        one = self.services.get(name) if name is not None else None
        return [one] if one is not None and one not in services else []

    def find(self, name: str) -> AIService:
        """The service of that name. Raises `UnknownService`, which lists the known ones."""
        service = self.services.get(name) if isinstance(name, str) else None
        if service is None:
            known = ", ".join(sorted(self.services))
            raise UnknownService(name_of(name), f"no such service; known services: {known}")
        return service

    def _prepare(self, one: AIService, query: Query) -> QueryCharge:
        """What the service is asked, and what that may cost. Raises `CallerMistake` and `PriceUnknown`."""
        options = one.options
        # What was missing may have been installed since.
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
            # Perplexity counts the prompt and its search results, which differ from one time to the next.
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
    """How many of the services after the one at `place` can be called at all: they have a share of the time."""
    return sum(one.service.configured for one in services[place:]) if len(services) > place else 0


def _share(query: Query, one: AIService, share_s: float, is_ours: bool) -> tuple[float, bool]:
    """The service's time, and whether its end is ours: no more than its own option, unless the query says a time."""
    if query.timeout_s is None and one.options.timeout_s < share_s:
        return one.options.timeout_s, True
    return share_s, is_ours


def _model(one: AIService, query: Query) -> str:
    return query.model or one.options.model


def _ends_the_query(error: ExternalServiceError) -> bool:
    return isinstance(error, CallerMistake) and error.kind not in MOVES_ON


def _add_reasons(error: ExternalServiceError, others: Sequence[ExternalServiceError]) -> None:
    """Keep on a caller's mistake why each other service did not answer either."""
    for other in others:
        error.add_note(str(other))
