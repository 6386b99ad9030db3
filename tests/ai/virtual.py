"""A gateway on virtual time. Only the providers are simulated: they answer from memory when a test lets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from koo.ai.budgets import Budgets
from koo.ai.gateway import Gateway
from koo.ai.pricing import Prices
from koo.ai.providers.base import Completion, CompletionChunk, Provider, Request
from koo.ai.registration import compose
from koo.ai.service import AIService, Service, guard_options
from koo.ai.stream import AnswerStream
from koo.ai.types import Answer, Query, Usage
from koo.budget_options import BudgetOptions
from koo.deadlines import Deadlines
from koo.options import LimitOptions, RetryOptions, ServiceOptions
from koo.storage.base import Allowance
from koo.storage.ledger import Ledger
from koo.storage.memory import MemoryLedger
from koo.testing.clock import VirtualClock

ONCE = RetryOptions(attempts_max=1)
INPUT_TOKENS_MAX = 100

Chunks = list[tuple[float, CompletionChunk]]


def words(*texts: str, pause_s: float) -> Chunks:
    """Content after equal pauses, followed by the provider's own end."""
    usage = Usage(input_tokens=10, output_tokens=len(texts))
    chunks = [(pause_s, CompletionChunk(text=text)) for text in texts]
    return [*chunks, (pause_s, CompletionChunk(final=True, usage=usage))]


class MemoryProvider:
    """Answers "ok" immediately.

    `script` replaces that with an async function for each call; `chunks` are its streams. `asked` counts calls, `open`
    counts streams that have not been closed. `on_asked` is called with each call.
    """

    output_tokens_min = 1

    def __init__(self) -> None:
        self.script: list[Callable[[Request], Awaitable[Completion]]] = []
        self.chunks: Chunks = []
        self.asked = self.open = 0
        self.on_asked: Callable[[], object] = lambda: None

    def bound_input_tokens(self, request: Request) -> int:
        return INPUT_TOKENS_MAX

    async def complete(self, request: Request) -> Completion:
        self._note()
        if self.script:
            return await self.script.pop(0)(request)
        return Completion(text="ok", model=request.model, usage=Usage(input_tokens=10, output_tokens=5))

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        self._note()
        self.open += 1
        try:
            for pause_s, chunk in self.chunks:
                await asyncio.sleep(pause_s)
                yield chunk
        finally:
            self.open -= 1

    def _note(self) -> None:
        self.asked += 1
        self.on_asked()

    async def check(self) -> None: ...

    def obstacle(self) -> str:
        return ""

    async def close(self) -> None: ...


class VirtualWorld:
    """Services `first`, `second` and `third`, at 3 and 15 USD per million tokens. Make it on the virtual loop."""

    def __init__(
        self,
        ledger: Ledger | None = None,
        *,
        own: Sequence[BudgetOptions] = (),
        pilots: int = 0,
        **options: Any,
    ) -> None:
        self.clock = self.make_clock()
        ledger = ledger or MemoryLedger(self.clock)
        self.beats = asyncio.create_task(ledger.run())
        self.first, self.second = self.make_providers()
        self.third = MemoryProvider()
        deadlines, services = Deadlines(), dict[str, AIService]()
        providers = {"first": self.first, "second": self.second, "third": self.third}
        for name, provider in providers.items():
            one = ServiceOptions(
                name=name, kind="openai_compatible", model="m", api_key="k", base_url="http://127.0.0.1:9/v1",
                declared=True,
                **{"limits": LimitOptions(), "input_price": Decimal(3), "output_price": Decimal(15), **options},
            )  # fmt: skip
            service = Service(
                name, guard_options(one), default_model="m", clock=self.clock, deadlines=deadlines,
                classify=compose(None, name), allowance=Allowance(one.daily_budget_usd), pilots=pilots,
            )  # fmt: skip
            services[name] = AIService(service, provider, one)
        self.service = services["first"].service
        self.budgets = Budgets(ledger, own)
        for name, one_service in services.items():
            self.budgets.add_service(name, one_service.service.allowance)
        self.gateway = Gateway(
            services,
            budgets=self.budgets,
            prices=Prices(self.clock),
            deadlines=deadlines,
            clock=self.clock,
        )

    def make_clock(self) -> VirtualClock:
        return VirtualClock()

    def make_providers(self) -> tuple[MemoryProvider, MemoryProvider]:
        return MemoryProvider(), MemoryProvider()

    def provide(self, provider: Provider) -> None:
        """Let this provider answer for `first` from now on."""
        self.gateway.services["first"] = replace(self.gateway.services["first"], provider=provider)  # type: ignore[index]

    async def ask(self, **options: Any) -> Answer:
        return await self.gateway.query(Query(service="first", prompt="Hi", **options))

    def stream(self, **options: Any) -> AnswerStream:
        return self.gateway.stream(Query(service="first", prompt="Hi", **options))

    @property
    def spent_usd(self) -> Decimal:
        return self.budgets.view("first").spent_usd

    def bound_usd(self, max_tokens: int) -> Decimal:
        """The worst case of one attempt."""
        return (3 * Decimal(INPUT_TOKENS_MAX) + 15 * Decimal(max_tokens)) / 1_000_000
