"""A vendor's refusal keeps its meaning whatever exception wraps it: real SDKs, real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import tenacity
from pydantic import BaseModel, ValidationError

from koo import Kind, Platform
from koo.errors import AuthenticationFailed, InvalidRequest, RateLimited, ServiceFailed
from koo.options import PlatformOptions
from koo.testing.providers import FakeAnthropic, FakeOpenAI, answer, error

CHAT: Any = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Capital of France?"}]}
Ask = Callable[[], Awaitable[Any]]


class AgentError(Exception):
    """An error of a framework."""


class World:
    """A platform, the vendor's fake server, and its SDK between them."""

    def __init__(self, platform: Platform, server: FakeOpenAI, client: openai.AsyncOpenAI) -> None:
        self.platform = platform
        self.server = server
        self.client = client

    async def fails(self, operation: Ask, times: int = 1) -> list[Exception]:
        errors: list[Exception] = []
        for _ in range(times):
            try:
                await self.platform.execute("svc", operation)
            except Exception as caught:
                errors.append(caught)
        return errors

    @property
    def spent_usd(self) -> Decimal:
        return Decimal(self.platform.service_health("svc")["rate_limits"]["daily_budget"]["spent"])

    @property
    def phase(self) -> str:
        return self.platform.service_health("svc")["health"]["circuit_breaker_state"]

    # ── the wrappers ──────────────────────────────────────────────────────────────────────────────────────────────

    async def plain(self) -> Any:
        return await self.client.chat.completions.create(**CHAT)

    async def from_cause(self) -> Any:
        try:
            return await self.plain()
        except openai.APIError as cause:
            raise AgentError("the model did not answer") from cause

    async def in_handler(self) -> Any:
        try:
            return await self.plain()
        except openai.APIError:
            raise AgentError("the model did not answer")  # noqa: B904 - as many do

    async def in_group(self) -> Any:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(self.plain())

    async def in_small_group(self) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.plain())

    async def group_in_error(self) -> Any:
        try:
            await self.in_group()
        except ExceptionGroup as cause:
            raise AgentError("no agent answered") from cause

    async def by_tenacity(self) -> Any:
        again = tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(1))
        return await again(self.plain)


CLOTHES = [
    World.plain, World.from_cause, World.in_handler, World.in_group, World.group_in_error, World.by_tenacity,
]  # fmt: skip


@asynccontextmanager
async def world(tmp_path: Path, **registered: Any) -> AsyncIterator[World]:
    options = PlatformOptions(state_url=f"sqlite:///{tmp_path}/state.db")
    async with (
        FakeOpenAI() as server,
        Platform(options) as platform,
        openai.AsyncOpenAI(api_key="test-key", base_url=server.base_url, max_retries=0) as client,
    ):
        platform.register_service("svc", daily_budget="0.35", max_cost_usd="0.10", **registered)
        yield World(platform, server, client)


@pytest.mark.parametrize("dressed", CLOTHES, ids=lambda one: one.__name__)
def test_a_throttled_call_pauses_the_service_for_the_requested_time(dressed: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as one:
            one.server.default = error(429, "rate_limit_error", headers={"retry-after": "300"})
            errors = await one.fails(lambda: dressed(one), times=7)
            assert all(type(caught) is RateLimited for caught in errors) and len(errors) == 7
            first, last = errors[0], errors[-1]
            assert isinstance(first, RateLimited) and first.kind is Kind.THROTTLED
            assert first.retry_after_s is not None and 300 <= first.retry_after_s <= 315, (
                "koo's own pause is up to 5 % longer, and an earlier call is refused"
            )
            assert isinstance(last, RateLimited) and last.attempts == 0
            assert first.__cause__ is not None, "the original is available"
            assert len(one.server.queries) <= 2 and one.phase == "closed"
            grouped = "group" in dressed.__name__
            assert one.spent_usd == (Decimal("0.10") if grouped else 0), (
                "other calls of a group may have been answered"
            )

    asyncio.run(main())


@pytest.mark.parametrize("dressed", CLOTHES, ids=lambda one: one.__name__)
def test_a_mistake_does_not_count_for_the_breaker_and_a_refused_key_stops_the_calls(
    dressed: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        async with world(tmp_path) as one:
            one.server.default = error(400, "invalid_request_error")
            assert {type(caught) for caught in await one.fails(lambda: dressed(one), times=2)} == {
                InvalidRequest
            }
            assert one.phase == "closed"
            one.server.forget()
            one.server.default = error(401, "invalid_request_error", code="invalid_api_key")
            errors = await one.fails(lambda: dressed(one), times=3)
            assert {type(caught) for caught in errors} == {AuthenticationFailed}
            assert len(one.server.queries) <= 2, "nothing is sent after that"

    asyncio.run(main())


@pytest.mark.parametrize("dressed", CLOTHES, ids=lambda one: one.__name__)
def test_failures_in_a_row_open_the_circuit(dressed: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, failure_threshold=2) as one:
            one.server.default = error(500, "server_error")
            assert {type(caught) for caught in await one.fails(lambda: dressed(one), times=2)} == {
                ServiceFailed
            }
            assert one.phase == "open"

    asyncio.run(main())


@pytest.mark.parametrize("dressed", [World.from_cause, World.in_handler], ids=lambda one: one.__name__)
def test_a_short_pause_is_waited_for_and_the_call_repeated(dressed: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, retry_base_delay=0.01) as one:
            one.server.script(error(429, "rate_limit_error", headers={"retry-after-ms": "20"}))
            assert await one.fails(lambda: dressed(one)) == []
            assert len(one.server.queries) == 2

    asyncio.run(main())


def test_a_throttled_group_is_repeated_only_if_a_repeat_does_no_harm(tmp_path: Path) -> None:
    """One part of the group may have been carried out."""

    async def main() -> None:
        for idempotent, requests in ((False, 1), (True, 2)):
            async with world(tmp_path, retry_base_delay=0.01, idempotent=idempotent) as one:
                one.server.script(error(429, "rate_limit_error", headers={"retry-after-ms": "20"}))
                errors = await one.fails(one.in_small_group)
                assert len(errors) == 2 - requests == 2 - len(one.server.queries)

    asyncio.run(main())


# ── answers are booked ────────────────────────────────────────────────────────────────────────────────────────────────


class City(BaseModel):
    name: str


async def read_json(one: World) -> Any:
    return json.loads((await one.plain()).choices[0].message.content)


async def validate(one: World) -> Any:
    return City.model_validate_json((await one.plain()).choices[0].message.content)


async def index(one: World) -> Any:
    return (await one.plain()).choices[5]


async def look_up(one: World) -> Any:
    return (await one.plain()).model_dump()["no such key"]


async def misuse(one: World) -> Any:
    return (await one.plain()).choices[0].message.tool_calls[0]


async def read_file(one: World) -> Any:
    await one.plain()
    return Path("/no/such/file").read_text()  # noqa: ASYNC240 - it fails immediately


@pytest.mark.parametrize("read", [read_json, validate, index, look_up, misuse, read_file])
def test_an_unreadable_answer_is_booked(read: Any, tmp_path: Path) -> None:
    """A budget for three calls admits three billed ones, and the breaker does not count them."""

    async def main() -> None:
        async with world(tmp_path) as one:
            errors = await one.fails(lambda: read(one), times=6)
            assert len(errors) == 6 and len(one.server.bills) == 3
            assert one.spent_usd == Decimal("0.30") and one.phase == "closed"

    asyncio.run(main())


def test_an_operation_that_raises_before_it_is_awaited_costs_nothing(tmp_path: Path) -> None:
    def operation() -> Any:
        raise ValueError("an invalid argument")

    async def main() -> None:
        async with world(tmp_path) as one:
            await one.fails(operation, times=6)
            assert one.spent_usd == 0

    asyncio.run(main())


def test_an_answer_cut_by_its_token_limit_names_the_limit_and_is_booked(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as one:
            one.server.default = answer('{"name":"Par', stop_reason="length")

            async def parse() -> Any:
                return await one.client.chat.completions.parse(response_format=City, **CHAT)

            errors = await one.fails(parse, times=6)
            assert isinstance(errors[0], InvalidRequest) and "raise max_tokens" in str(errors[0])
            assert len(one.server.bills) == 3 and one.phase == "closed"

    asyncio.run(main())


def test_a_parser_error_caused_by_a_cut_answer_has_a_note_about_it(tmp_path: Path) -> None:
    """Anthropic's SDK lets pydantic's own error pass. It is raised unchanged, is booked, and does not count for the
    breaker."""

    async def main() -> None:
        async with world(tmp_path) as one, FakeAnthropic() as server:
            server.default = answer('{"name":"Par', stop_reason="max_tokens")

            async def parse() -> Any:
                asked: Any = {"model": "claude-sonnet-5-5", "max_tokens": 10, "messages": CHAT["messages"]}
                async with anthropic.AsyncAnthropic(
                    api_key="test-key", base_url=server.base_url, max_retries=0
                ) as client:
                    return await client.messages.parse(output_format=City, **asked)

            errors = await one.fails(parse, times=6)
            assert isinstance(errors[0], ValidationError) and "raise max_tokens" in errors[0].__notes__[0]
            assert len(server.bills) == 3 and one.phase == "closed"

    asyncio.run(main())
