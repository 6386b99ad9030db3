"""A gateway over fake providers: everything real but the vendors, and the ledger in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from koo.ai.assembly import assemble
from koo.ai.budgets import Budgets
from koo.ai.gateway import Gateway
from koo.ai.pricing import Prices
from koo.ai.service import AIService
from koo.ai.types import Answer, Query
from koo.clock import SYSTEM_CLOCK
from koo.deadlines import Deadlines
from koo.events import EventBus
from koo.guard import Guard
from koo.http.client import HttpClient
from koo.options import BreakerOptions, BudgetOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.storage.ledger import Ledger
from koo.storage.memory import MemoryLedger
from koo.testing.providers import FakeAnthropic, FakeOpenAI

QUICK = RetryOptions(base_s=0.001, cap_s=0.01)


@dataclass
class World:
    """Two services, `claude` and `openai`, each with a fake server."""

    gateway: Gateway
    claude: FakeAnthropic
    openai: FakeOpenAI
    budgets: Budgets
    events: EventBus
    deadlines: Deadlines

    async def ask(self, prompt: str = "What is the capital of France?", **options: Any) -> Answer:
        options.setdefault("service", "claude")
        return await self.gateway.query(Query(prompt=prompt, **options))

    def guard(self, service: str = "claude") -> Guard:
        return self.gateway.services[service].service.default_guard

    def nothing_is_taken(self) -> bool:
        """No place, no permit, no money is held by anybody."""
        for name, ai_service in self.gateway.services.items():
            gates = ai_service.service.gates
            if gates.bulkhead.used or gates.limit_queue.used or self.budgets.view(name).held_usd:
                return False
            if any(guard.breaker.running or guard.breaker.leases for guard in ai_service.service.guards):
                return False
        return True

    def spent_usd(self, service: str = "claude") -> Decimal:
        return self.budgets.view(service).spent_usd


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    """`options` are those of both services."""
    options.setdefault("retry", QUICK)
    options.setdefault("breaker", BreakerOptions(failure_threshold=5))
    deadlines, events, http = Deadlines(), EventBus(), HttpClient()
    ledger, prices = MemoryLedger(SYSTEM_CLOCK), Prices()
    await prices.load()
    async with FakeAnthropic() as claude, FakeOpenAI() as openai:
        services = (
            ServiceOptions(
                name="claude",
                kind="anthropic",
                model="claude-sonnet-5-5",
                api_key="test-key",
                base_url=claude.base_url,
                **options,
            ),
            ServiceOptions(
                name="openai",
                kind="openai",
                model="gpt-6.1-terra",
                api_key="test-key",
                base_url=openai.base_url,
                **options,
            ),
        )
        ai_services = assemble(
            PlatformOptions(services=services),
            http=http,
            clock=SYSTEM_CLOCK,
            deadlines=deadlines,
            publish=events.publish,
        )
        budgets = budgets_of(ledger, ai_services)
        gateway = Gateway(
            ai_services, budgets=budgets, prices=prices, deadlines=deadlines, clock=SYSTEM_CLOCK
        )
        try:
            async with beating(ledger):
                yield World(gateway, claude, openai, budgets, events, deadlines)
        finally:
            await http.close()


def budgets_of(
    ledger: Ledger, services: Mapping[str, AIService], own: Sequence[BudgetOptions] = ()
) -> Budgets:
    """The daily budgets of services and those of an operator, as `koo.composition` makes them."""
    budgets = Budgets(ledger, own)
    for name, one in services.items():
        budgets.add_service(name, one.service.allowance)
    return budgets


@asynccontextmanager
async def beating(ledger: Ledger) -> AsyncIterator[None]:
    """Beats behind the calls for as long as the block runs."""
    beats = asyncio.create_task(ledger.run())
    try:
        yield
    finally:
        beats.cancel()


def run(test: Callable[[World], Awaitable[None]], **options: Any) -> None:
    """Run a test in a world of its own."""

    async def main() -> None:
        async with world(**options) as here:
            await test(here)

    asyncio.run(main())
