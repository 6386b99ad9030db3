"""Two services with fake servers for the gateway's tests: `koo.testing.World`, and access to its internals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from koo import testing
from koo.ai.budgets import Budgets
from koo.ai.gateway import Gateway
from koo.ai.types import Answer, Query
from koo.deadlines import Deadlines
from koo.events import EventBus
from koo.guard import Guard
from koo.options import BreakerOptions, PlatformOptions, ServiceOptions
from koo.platform import Platform
from koo.testing.providers import FakeAnthropic, FakeOpenAI, FakeProvider


@dataclass
class World:
    """Two services, `claude` and `openai`, each with a fake server."""

    there: testing.World
    claude: FakeAnthropic
    openai: FakeOpenAI

    @property
    def gateway(self) -> Gateway:
        return self.there.platform.parts.gateway

    @property
    def budgets(self) -> Budgets:
        return self.there.platform.parts.budgets

    @property
    def events(self) -> EventBus:
        return self.there.platform.events

    @property
    def deadlines(self) -> Deadlines:
        return self.there.platform.deadlines

    async def ask(self, prompt: str = "What is the capital of France?", **options: Any) -> Answer:
        options.setdefault("service", "claude")
        return await self.there.platform.query(Query(prompt=prompt, **options))

    def guard(self, service: str = "claude") -> Guard:
        return self.gateway.services[service].service.default_guard

    def nothing_is_taken(self) -> testing.Settled:
        """No call holds a slot, a permit or money."""
        return self.there.settled()

    def spent_usd(self, service: str = "claude") -> Decimal:
        return self.there[service].spent_usd


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    """`options` are those of both services."""
    options.setdefault("breaker", BreakerOptions(failure_threshold=5))
    claude, openai = FakeAnthropic(), FakeOpenAI()
    services = (
        ServiceOptions(name="claude", kind="anthropic", model="claude-sonnet-5-5", **options),
        ServiceOptions(name="openai", kind="openai", model="gpt-6.1-terra", **options),
    )
    async with among_fakes(services, claude=claude, openai=openai) as there:
        yield World(there, claude, openai)


@asynccontextmanager
async def among_fakes(
    services: tuple[ServiceOptions, ...], *, strict: bool = True, **fakes: FakeProvider
) -> AsyncIterator[testing.World]:
    """A world of these services that replaces no other platform of this process. Its prices are loaded."""
    options = PlatformOptions(services=services)
    async with testing.World(options, instead_of=Platform(options), fakes=fakes, strict=strict) as there:
        await there.platform.parts.load_prices()
        yield there


def run(test: Callable[[World], Awaitable[None]], **options: Any) -> None:
    """Run a test in its own world."""

    async def main() -> None:
        async with world(**options) as here:
            await test(here)

    asyncio.run(main())
