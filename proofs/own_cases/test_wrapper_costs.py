"""Bills of wrappers of the vendors' SDKs are booked: under a built-in name with a budget, and by usage."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from koo import Platform, PriceUnknown
from koo.options import PlatformOptions, ServiceOptions
from koo.testing.providers import FakeOpenAI, answer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some warn when they are imported
    import agents
    import instructor
    import litellm
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_openai import ChatOpenAI

pytestmark = pytest.mark.filterwarnings("ignore")
ASK: Any = {
    "model": "gpt-4.1",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "Capital of France?"}],
}
CITY = '{"name": "Paris"}'


class City(BaseModel):
    name: str


class World:
    """A platform whose `openai` has a budget that was set, and a server that bills the table's prices of gpt-4.1."""

    def __init__(self, platform: Platform, server: FakeOpenAI) -> None:
        self.platform, self.server = platform, server
        self.address: dict[str, Any] = {"base_url": server.base_url, "api_key": "test-key", "max_retries": 0}
        self.client = openai.AsyncOpenAI(**self.address)

    def langchain(self, **more: Any) -> ChatOpenAI:
        return ChatOpenAI(model="gpt-4.1", max_tokens=50, **self.address, **more)

    def spent_usd(self, name: str = "openai") -> Decimal:
        return Decimal(self.platform.service_health(name)["rate_limits"]["daily_budget"]["spent"])


def run(folder: Path, work: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        service = ServiceOptions(
            name="openai",
            kind="openai",
            model="gpt-4.1",
            api_key="k",
            daily_budget_usd=Decimal(5),
            budget_is_explicit=True,
        )
        options = PlatformOptions(services=(service,), state_url=f"sqlite:///{folder / 'koo-state.db'}")
        async with (
            FakeOpenAI(input_price=Decimal(2), output_price=Decimal(8)) as server,
            Platform(options) as platform,
        ):
            world = World(platform, server)
            await work(world)
            await world.client.close()

    asyncio.run(main())


async def by_langchain(world: World) -> None:
    await world.platform.execute("openai", world.langchain().ainvoke, "Capital of France?")


async def by_langchain_with_tools(world: World) -> None:
    model = world.langchain().bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    await world.platform.execute("openai", model.ainvoke, "Capital of France?")


async def by_langchain_batch(world: World) -> None:
    await world.platform.execute("openai", world.langchain().abatch, ["Capital of France?", "And of Spain?"])


async def by_langchain_chain(world: World) -> None:
    chain = ChatPromptTemplate.from_template("Capital of {country}?") | world.langchain()
    await world.platform.execute("openai", chain.ainvoke, {"country": "France"})


async def by_langchain_stream(world: World) -> None:
    model = world.langchain(stream_usage=True)
    async for _ in world.platform.execute_stream("openai", model.astream, "Capital of France?"):
        pass


async def by_instructor(world: World) -> None:
    client = instructor.from_openai(world.client, mode=instructor.Mode.JSON)
    world.server.script(answer("nonsense"), answer(CITY))
    create = client.chat.completions.create
    await world.platform.execute("openai", create, response_model=City, max_retries=2, **ASK)


async def by_litellm(world: World) -> None:
    ask = {**ASK, "model": "openai/gpt-4.1", "api_base": world.server.base_url, "api_key": "test-key"}
    await world.platform.execute("openai", litellm.acompletion, num_retries=0, **ask)


WRAPPERS = [
    by_langchain, by_langchain_with_tools, by_langchain_batch, by_langchain_chain, by_langchain_stream,
    by_instructor, by_litellm,
]  # fmt: skip


@pytest.mark.parametrize("ask", WRAPPERS, ids=lambda ask: ask.__name__)
def test_the_bill_is_booked_in_the_services_budget(
    tmp_path: Path, ask: Callable[[World], Awaitable[None]]
) -> None:
    async def work(world: World) -> None:
        await ask(world)
        assert world.spent_usd() == world.server.billed_usd > 0

    run(tmp_path, work)


def test_a_chain_that_returns_only_the_text_is_booked_at_no_less_than_its_bill(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        chain = (
            ChatPromptTemplate.from_template("Capital of {country}?") | world.langchain() | StrOutputParser()
        )
        await world.platform.execute("openai", chain.ainvoke, {"country": "France"})
        assert world.spent_usd() >= world.server.billed_usd > 0

    run(tmp_path, work)


def test_an_agent_is_refused_under_a_built_in_name_and_booked_at_its_maximum_under_its_own(
    tmp_path: Path,
) -> None:
    async def work(world: World) -> None:
        agents.set_tracing_disabled(True)
        model = agents.OpenAIChatCompletionsModel(model="gpt-4.1", openai_client=world.client)
        agent = agents.Agent(name="geographer", model=model)
        with pytest.raises(PriceUnknown):
            await world.platform.execute("openai", agents.Runner.run, agent, "Capital of France?")
        world.platform.register_service("agent", daily_budget=5, max_cost_usd=0.5, cost_usd="usage")
        await world.platform.execute("agent", agents.Runner.run, agent, "Capital of France?")
        assert world.spent_usd("agent") == Decimal("0.5")

    run(tmp_path, work)
