"""A vendor's refusal inside the errors of agent and structured-output libraries, over real sockets."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from koo.errors import AuthenticationFailed, InvalidRequest, Kind, RateLimited, ServiceFailed
from koo.testing.providers import FakeOpenAI, answer, error, nothing
from tests.platform.test_wrapped_refusals import CHAT, World, world

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some warn when they are imported
    import agents
    import dspy
    import instructor
    import litellm
    from agents import OpenAIChatCompletionsModel, Runner
    from langchain_openai import ChatOpenAI
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

pytestmark = pytest.mark.filterwarnings("ignore")
Ask = Callable[[], Awaitable[Any]]


class City(BaseModel):
    name: str


def by_instructor(one: World) -> Ask:
    client = instructor.from_openai(one.client, mode=instructor.Mode.JSON)
    return lambda: client.chat.completions.create(response_model=City, max_retries=1, **CHAT)


def by_pydantic_ai(one: World) -> Ask:
    agent = Agent(
        OpenAIChatModel("gpt-4.1", provider=OpenAIProvider(openai_client=one.client)), output_type=City
    )
    return lambda: agent.run("Capital of France?")


def by_agents(one: World) -> Ask:
    agents.set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel(model="gpt-4.1", openai_client=one.client)
    agent = agents.Agent(name="geographer", model=model, output_type=City)
    return lambda: Runner.run(agent, "Capital of France?")


def by_langchain(one: World) -> Ask:
    model = ChatOpenAI(model="gpt-4.1", base_url=one.server.base_url, api_key="test-key", max_retries=0)
    return lambda: model.with_structured_output(City).ainvoke("Capital of France?")


def by_litellm(one: World) -> Ask:
    about = {"api_base": one.server.base_url, "api_key": "test-key", "max_retries": 0}
    return lambda: litellm.acompletion("openai/gpt-4.1", messages=CHAT["messages"], **about)


def by_dspy(one: World) -> Ask:
    about = {"api_base": one.server.base_url, "api_key": "test-key", "num_retries": 0, "cache": False}
    model = dspy.LM("openai/gpt-4.1", **about)

    async def ask() -> Any:
        with dspy.context(lm=model):
            return await dspy.Predict("question -> population: int").acall(question="Paris?")

    return ask


LIBRARIES = [by_instructor, by_pydantic_ai, by_agents, by_langchain, by_litellm, by_dspy]
STRUCTURED = [by_instructor, by_pydantic_ai, by_agents, by_langchain, by_dspy]
each = pytest.mark.parametrize("library", LIBRARIES, ids=lambda one: one.__name__)


def tried(
    tmp_path: Path, library: Callable[[World], Ask], check: Callable[[World, Ask], Awaitable[None]]
) -> None:
    async def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            async with world(tmp_path, max_retries=0) as one:
                await check(one, library(one))

    asyncio.run(main())


@each
def test_a_throttled_call_pauses_as_long_as_requested(library: Any, tmp_path: Path) -> None:
    async def check(one: World, ask: Ask) -> None:
        one.server.default = error(429, "rate_limit_error", headers={"retry-after": "300"})
        errors = await one.fails(ask, times=6)
        first = errors[0]
        assert {type(caught) for caught in errors} == {RateLimited} and len(one.server.queries) == 1
        assert isinstance(first, RateLimited) and first.kind is Kind.THROTTLED
        assert 300 <= (first.retry_after_s or 0) <= 315, "callers do not all return at the same moment"
        assert one.phase == "closed" and one.spent_usd == 0

    tried(tmp_path, library, check)


@each
def test_a_used_up_quota_is_not_a_rate_limit(library: Any, tmp_path: Path) -> None:
    async def check(one: World, ask: Ask) -> None:
        one.server.default = error(429, "insufficient_quota", code="insufficient_quota")
        [caught] = await one.fails(ask)
        assert isinstance(caught, RateLimited) and caught.kind is Kind.QUOTA

    tried(tmp_path, library, check)


@each
def test_a_mistake_moves_no_breaker_and_a_refused_key_blocks_calls(library: Any, tmp_path: Path) -> None:
    async def check(one: World, ask: Ask) -> None:
        one.server.default = error(400, "invalid_request_error")
        assert {type(caught) for caught in await one.fails(ask, times=6)} == {InvalidRequest}
        assert one.phase == "closed" and one.spent_usd == 0
        one.server.forget()
        one.server.default = error(401, "invalid_request_error", code="invalid_api_key")
        assert {type(caught) for caught in await one.fails(ask, times=3)} == {AuthenticationFailed}
        assert len(one.server.queries) == 1

    tried(tmp_path, library, check)


@each
def test_a_server_failure_counts_for_the_breaker(library: Any, tmp_path: Path) -> None:
    async def check(one: World, ask: Ask) -> None:
        one.server.default = error(500, "server_error")
        assert {type(caught) for caught in await one.fails(ask, times=5)} == {ServiceFailed}
        assert one.phase == "open"

    tried(tmp_path, library, check)


@each
def test_a_broken_connection_keeps_its_hold(library: Any, tmp_path: Path) -> None:
    async def check(one: World, ask: Ask) -> None:
        one.server.default = nothing()
        await one.fails(ask, times=5)
        assert one.spent_usd == Decimal("0.30"), "as much as the budget holds"

    tried(tmp_path, library, check)


@pytest.mark.parametrize("text", ["no JSON", '{"name": "Par'])
@pytest.mark.parametrize("library", STRUCTURED, ids=lambda one: one.__name__)
def test_a_paid_answer_that_cannot_be_used_is_booked_and_is_not_an_outage(
    library: Any, text: str, tmp_path: Path
) -> None:
    async def check(one: World, ask: Ask) -> None:
        one.server.default = answer(text, stop_reason="length" if text.startswith("{") else "stop")
        await one.fails(ask, times=5)
        assert one.spent_usd == Decimal("0.30") and one.phase == "closed"

    tried(tmp_path, library, check)


@pytest.mark.parametrize("library", [by_instructor, by_langchain], ids=lambda one: one.__name__)
def test_the_error_of_a_cut_answer_says_which_limit_to_raise(library: Any, tmp_path: Path) -> None:
    async def check(one: World, ask: Ask) -> None:
        one.server.default = answer('{"name": "Par', stop_reason="length")
        [caught] = await one.fails(ask)
        assert isinstance(caught, InvalidRequest) and "raise max_tokens" in str(caught)

    tried(tmp_path, library, check)


def test_a_paid_answer_before_a_refusal_is_paid(tmp_path: Path) -> None:
    """instructor repeats the request if an answer does not fit."""

    async def main() -> None:
        async with world(tmp_path, max_retries=0) as one:
            server: FakeOpenAI = one.server
            server.script(answer("no JSON"), error(429, "rate_limit_error", headers={"retry-after": "300"}))
            client = instructor.from_openai(one.client, mode=instructor.Mode.JSON)
            ask = lambda: client.chat.completions.create(response_model=City, max_retries=3, **CHAT)  # noqa: E731
            [caught] = await one.fails(ask)
            assert isinstance(caught, RateLimited) and len(server.bills) == 1
            assert one.spent_usd == Decimal("0.10")

    asyncio.run(main())
