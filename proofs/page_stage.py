"""States of the page for its pictures: a world with some minutes of history, in which various things go wrong.

Time is skipped between calls; the calls themselves are real, to fakes that take as long as real providers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from koo.errors import KooError
from koo.testing import World
from koo.web import create_app
from tests.web.serving import Client, served

SETTINGS = {
    "ANTHROPIC_API_KEY": "sk-ant-0123456789abcdef0123",
    "OPENAI_API_KEY": "sk-0123456789abcdef0123",
    "GEMINI_API_KEY": "gm-0123456789abcdef0123",
    "AI_SERVICES__CLAUDE__DAILY_BUDGET": "25",
    "AI_BUDGETS__MONTH__LIMIT": "200",
    "AI_BUDGETS__MONTH__PERIOD": "month",
    "AI_BUDGETS__SEARCH__LIMIT": "2",
    "AI_BUDGETS__SEARCH__TAG": "search",
    "KOO_VERSION_LABEL": "2026.11-3",
}
STEP_S = 5
TAGS = ("search", "chat", "chat", "mail", None)


class Stage:
    """A world and its callers."""

    def __init__(self, world: World, seed: int = 4) -> None:
        self.world = world
        self.chance = random.Random(seed)

    async def minutes(self, number: float, *, database: bool = True) -> None:
        """Let time pass with traffic: some calls every five seconds."""
        for _ in range(int(number * 60 / STEP_S)):
            await asyncio.gather(*(self._call() for _ in range(self.chance.choice((1, 2, 3, 4)))))
            if database:
                await asyncio.gather(*(self._scope() for _ in range(self.chance.choice((1, 2, 4)))))
            self.world.clock.advance(STEP_S)
            await asyncio.sleep(0.02)

    async def _call(self) -> None:
        name = self.chance.choice(("claude", "claude", "claude", "openai", "gemini"))
        if name not in self.world.services:
            name = "claude"
        try:
            tag = self.chance.choice(TAGS)
            await self.world.ask(
                name, "x" * self.chance.choice((900, 3000, 9000)), fallback=("openai",), tag=tag
            )
        except KooError:
            pass

    async def _scope(self) -> None:
        from sqlalchemy import text

        try:
            async with self.world.platform.database.session_scope() as session:
                await session.execute(text("SELECT 1"))
                await asyncio.sleep(self.chance.uniform(0.002, 0.012))
        except KooError:
            pass


async def healthy(stage: Stage) -> None:
    """All is well."""
    await stage.minutes(12)


async def one_down(stage: Stage) -> None:
    """A provider is overloaded and its breaker has opened; another provider answers instead."""
    await stage.minutes(11)
    stage.world.claude.fails(529)
    await stage.minutes(1)


async def two_outages(stage: Stage) -> None:
    """A provider fails, and the database server is down."""
    await one_down(stage)
    await stage.world.proxy.refuse()
    stage.world.proxy.reset_all()
    for _ in range(8):
        await stage._scope()
    await stage.minutes(0.5)


async def over_budget(stage: Stage) -> None:
    """One service's daily budget is spent."""
    await stage.minutes(12)


STATES: dict[str, Callable[[Stage], Awaitable[None]]] = {
    "healthy": healthy,
    "one-down": one_down,
    "two-outages": two_outages,
    "over-budget": over_budget,
}


@asynccontextmanager
async def staged(state: str, database_url: str | None = None) -> AsyncIterator[tuple[Stage, Client]]:
    """The server of a world in this state. `two-outages` needs a database server."""
    more = {"AI_SERVICES__CLAUDE__DAILY_BUDGET": "0.3"} if state == "over-budget" else {}
    async with World(settings={**SETTINGS, **more}, database_url=database_url, strict=False) as world:
        stage = Stage(world)
        for service in world.services.values():
            service.slow(0.12)
        async with served(create_app(world.platform)) as client:
            await STATES[state](stage)
            yield stage, client
