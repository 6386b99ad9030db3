"""The gateway: a query goes in, an answer comes out, or the reason of each service that did not give one.

It owns two things and nothing else: the order of the services that are asked, and the money (held for each attempt,
see `errand`). Retries, deadlines, limits and breakers are the guard's; what an error means is the provider's.

The rules of the order. A caller's mistake ends the query: the next service could only repeat it. A refusal (open
breaker, limit, budget, unknown price) moves on at once. A failure moves on after its retries. A cancellation settles
what was spent and goes on up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from koo.ai.checking import check
from koo.ai.errand import Errand
from koo.ai.models import not_configured
from koo.ai.pricing import ModelPrice, Prices
from koo.ai.providers.base import Provider, Request
from koo.ai.service import Service
from koo.ai.stream import AnswerStream, Flow, open_flow
from koo.ai.types import Answer, Query
from koo.clock import Clock
from koo.deadlines import Deadlines, ends_at
from koo.errors import (
    AllServicesFailed,
    CallerMistake,
    ExternalServiceError,
    Kind,
    PriceUnknown,
    UnknownService,
    name_of,
)
from koo.options import ServiceOptions
from koo.storage.base import Ledger

MOVES_ON = {Kind.PRICE_UNKNOWN, Kind.NOT_CONFIGURED}
"""Mistakes of the operator, not of the query: another service may well answer it."""


@dataclass(frozen=True, slots=True)
class AIService:
    """A service that can be asked: its guards, its wire, its options."""

    service: Service
    provider: Provider
    options: ServiceOptions


class Gateway:
    """Asks configured services. `backends` by name; `ledger` gives the ledger in force now."""

    def __init__(
        self,
        backends: Mapping[str, AIService],
        *,
        ledger: Callable[[], Ledger],
        prices: Prices,
        deadlines: Deadlines,
        clock: Clock,
    ) -> None:
        self.backends = backends
        self._ledger = ledger
        self._prices = prices
        self._deadlines = deadlines
        self._clock = clock

    # ── the faces ─────────────────────────────────────────────────────────────────────────────────────────────

    async def query(self, query: Query) -> Answer:
        """Ask `query.service`, then each of `query.fallback`.

        Raises `UnknownService` or `InvalidRequest` before anything is sent, the one service's own
        `ExternalServiceError`, or `AllServicesFailed` where there was a choice.
        """
        backends = self._choose(query)
        if len(backends) == 1:
            return await self._ask(backends[0], query, query.timeout_s)
        deadline = self._deadline(backends[0], query)
        failures: list[ExternalServiceError] = []
        for backend in backends:
            asked = query if backend is backends[0] else replace(query, model=None)
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                break
            try:
                return await self._ask(backend, asked, left_s)
            except ExternalServiceError as error:
                if isinstance(error, CallerMistake) and error.kind not in MOVES_ON:
                    raise
                failures.append(error)
        raise AllServicesFailed("no service could answer", failures)

    def stream(self, query: Query, before: Callable[[], Awaitable[object]] | None = None) -> AnswerStream:
        """As `query`, streamed; nothing is sent before the first `anext`, which awaits `before` first.

        Falls back until the first content.
        """

        async def start(stream: AnswerStream) -> None:
            if before is not None:
                await before()
            await self._start(stream, query)

        return AnswerStream(start)

    async def query_many(self, queries: Sequence[Query]) -> list[Answer | ExternalServiceError]:
        """All at once; an answer or an error for each, in the same order."""
        tasks = [asyncio.ensure_future(self._settled(query)) for query in queries]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    async def _settled(self, query: Query) -> Answer | ExternalServiceError:
        try:
            return await self.query(query)
        except ExternalServiceError as error:
            return error

    # ── one service ───────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, backend: AIService, query: Query, timeout_s: float | None) -> Answer:
        began_at = self._clock.monotonic()
        request, price = self._prepare(backend, query)
        service = backend.service
        errand = Errand(service, backend.provider, request, price, self._ledger(), query.tag)
        completion = await service.guard(request.model).call(
            errand.run, charge=errand.charge, on_limit=query.on_limit, timeout_s=timeout_s
        )
        return Answer(
            text=completion.text,
            service=service.name,
            model=completion.model,
            usage=completion.usage,
            cost_usd=errand.cost_usd,
            cost_source=errand.cost_source,
            attempts=errand.attempts,
            latency_s=self._clock.monotonic() - began_at,
            stop_reason=completion.stop_reason,
            request_id=completion.request_id,
        )

    async def _start(self, stream: AnswerStream, query: Query) -> None:
        backends = self._choose(query)
        deadline = self._deadline(backends[0], query)
        failures: list[ExternalServiceError] = []
        for backend in backends:
            asked = query if backend is backends[0] else replace(query, model=None)
            try:
                return await self._begin(stream, backend, asked, deadline)
            except ExternalServiceError as error:
                if len(backends) == 1 or (isinstance(error, CallerMistake) and error.kind not in MOVES_ON):
                    raise
                failures.append(error)
        raise AllServicesFailed("no service could answer", failures)

    async def _begin(self, stream: AnswerStream, backend: AIService, query: Query, deadline: float) -> None:
        now = self._clock.monotonic()
        request, price = self._prepare(backend, query)
        options, service = backend.options, backend.service
        errand = Errand(service, backend.provider, request, price, self._ledger(), query.tag)

        async def open_one() -> Flow:
            errand.attempts += 1
            first_by = self._clock.monotonic() + options.first_token_timeout_s
            return await open_flow(backend.provider, request, self._deadlines, first_by, service.name)

        guard = service.guard(request.model)
        scope = await guard.begin(
            open_one, charge=errand.charge, on_limit=query.on_limit, timeout_s=max(deadline - now, 0.001)
        )
        bound = backend.provider.bound_input_tokens(request)
        stream.begin(scope, errand, guard, self._deadlines, options.stall_timeout_s, request, bound, now)

    # ── before anything is sent ───────────────────────────────────────────────────────────────────────────────

    def _choose(self, query: Query) -> list[AIService]:
        """The services to ask, in order. Raises `UnknownService` and `InvalidRequest`."""
        first = self.find(query.service)
        check(query)
        return [first, *(self.find(name) for name in dict.fromkeys(query.fallback) if name != query.service)]

    def find(self, name: str) -> AIService:
        """The backend of that name. Raises `UnknownService`, which lists the known ones."""
        backend = self.backends.get(name) if isinstance(name, str) else None
        if backend is None:
            known = ", ".join(sorted(self.backends))
            raise UnknownService(name_of(name), f"no such service; known are: {known}")
        return backend

    def _deadline(self, backend: AIService, query: Query) -> float:
        timeout_s = query.timeout_s or backend.options.timeout_s
        return min(self._clock.monotonic() + timeout_s, ends_at.get())

    def _prepare(self, backend: AIService, query: Query) -> tuple[Request, ModelPrice]:
        options = backend.options
        if not options.configured:
            raise CallerMistake(options.name, not_configured(options), kind=Kind.NOT_CONFIGURED)
        model = query.model or options.model
        price = self._prices.find(options, model)
        if price is None:
            reason = (
                f"the price of model {model[:80]!r} is unknown, so no budget could hold; set "
                f"AI_SERVICES__{options.name.upper()}__INPUT_PRICE and __OUTPUT_PRICE"
            )
            raise PriceUnknown(options.name, reason)
        request = Request(
            prompt=query.prompt,
            model=model,
            max_tokens=query.max_tokens or options.max_tokens,
            system=query.system,
            temperature=query.temperature,
        )
        return request, price
