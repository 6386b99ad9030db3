"""Each vendor's SDK × each failure × each way to koo: kind, requests, pause, permit, breaker and money.

Real SDKs over real sockets. `make prove-own` runs this file with the oldest versions that are supported, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import anthropic
import openai
import perplexity
import pytest
from google import genai
from google.genai import types

from koo import Kind, Platform
from koo.errors import (
    AuthenticationFailed,
    ExternalServiceError,
    InvalidRequest,
    RateLimited,
    ServiceFailed,
    ServiceTimeout,
    StreamTruncated,
)
from koo.options import PlatformOptions
from koo.testing.providers import (
    FakeAnthropic,
    FakeGemini,
    FakeOpenAI,
    FakePerplexity,
    FakeProvider,
    Gate,
    Hang,
    Nothing,
    answer,
    error,
    stream,
)
from koo.testing.providers.script import Step

KEY, PROMPT = "test-key", "Capital of France?"
GEMINI = "gemini-3.8-flash"
Ask = Callable[..., Awaitable[Any]]
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
BOUND, ENOUGH = Decimal("0.10"), "10"


class AgentError(Exception):
    """An error of a framework."""


# ── the SDKs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def openai_sdk(server: FakeProvider) -> AsyncIterator[tuple[Ask, Ask]]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client:

        async def ask(**how: Any) -> Any:
            return await client.chat.completions.create(model="gpt-4.1", messages=MESSAGES, **how)

        yield ask, lambda: ask(stream=True)


@asynccontextmanager
async def anthropic_sdk(server: FakeProvider) -> AsyncIterator[tuple[Ask, Ask]]:
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=server.base_url, max_retries=0) as client:

        async def ask(**how: Any) -> Any:
            return await client.messages.create(
                model="claude-sonnet-5-5", max_tokens=100, messages=MESSAGES, **how
            )

        yield ask, lambda: ask(stream=True)


@asynccontextmanager
async def perplexity_sdk(server: FakeProvider) -> AsyncIterator[tuple[Ask, Ask]]:
    async with perplexity.AsyncPerplexity(api_key=KEY, base_url=server.url, max_retries=0) as client:

        async def ask(**how: Any) -> Any:
            return await client.responses.create(model="perplexity/sonar", input=PROMPT, **how)

        yield ask, lambda: ask(stream=True)


def google_http() -> Any:
    """httpx or httpx2, whichever this version of Google's SDK uses."""
    needs = " ".join(requires("google-genai") or ())
    return import_module("httpx2" if "httpx2" in needs else "httpx")


@asynccontextmanager
async def gemini_sdk(server: FakeProvider) -> AsyncIterator[tuple[Ask, Ask]]:
    # A separate HTTP client, because the SDK would otherwise subclass one of aiohttp's classes, which warns.
    async with google_http().AsyncClient() as transport:
        options = types.HttpOptions(base_url=server.base_url, httpx_async_client=transport)
        client = genai.Client(api_key=KEY, http_options=options).aio
        yield (
            lambda: client.models.generate_content(model=GEMINI, contents=PROMPT),
            lambda: client.models.generate_content_stream(model=GEMINI, contents=PROMPT),
        )
        await client.aclose()


VENDORS: dict[str, tuple[type[FakeProvider], Any]] = {
    "openai": (FakeOpenAI, openai_sdk),
    "anthropic": (FakeAnthropic, anthropic_sdk),
    "perplexity": (FakePerplexity, perplexity_sdk),
    "gemini": (FakeGemini, gemini_sdk),
}


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Wrong:
    """A failure. `then`: the outcome of the next call. `booked`: whether the call may have been answered and is
    booked."""

    step: Step
    raised: type[ExternalServiceError]
    kind: Kind
    failed: bool = True
    booked: bool = False
    then: type[ExternalServiceError] | None = None


THROTTLED = error(429, headers={"retry-after": "300"})
REFUSED = {
    "429": Wrong(THROTTLED, RateLimited, Kind.THROTTLED, failed=False, then=RateLimited),
    "400": Wrong(error(400), InvalidRequest, Kind.INVALID_REQUEST, failed=False),
    "401": Wrong(error(401), AuthenticationFailed, Kind.AUTH, failed=False, then=AuthenticationFailed),
    "500": Wrong(error(500), ServiceFailed, Kind.SERVER_ERROR),
    "529": Wrong(error(529), ServiceFailed, Kind.OVERLOADED),
}  # fmt: skip
CUT = Wrong(Nothing(), ServiceFailed, Kind.CONNECTION, booked=True)
HANG = Wrong(Hang(), ServiceTimeout, Kind.TIMEOUT, booked=True)
IN_STREAM = {
    **REFUSED,
    "cut": Wrong(stream(["a", "b", "c"], cut_after=1), StreamTruncated, Kind.CONNECTION, booked=True),
    "hang": Wrong(stream(["a", "b", "c"], stall_after=1), StreamTruncated, Kind.STALLED, booked=True),
}
PLAIN = {**REFUSED, "cut": CUT, "hang": HANG}
ATTEMPT_S = 0.5


# ── ways to koo ───────────────────────────────────────────────────────────────────────────────────────────────────────


def from_cause(ask: Ask) -> Ask:
    async def operation() -> Any:
        try:
            return await ask()
        except Exception as cause:
            raise AgentError("the model did not answer") from cause

    return operation


def in_group(ask: Ask) -> Ask:
    async def operation() -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(_as_coroutine(ask))

    return operation


async def _as_coroutine(ask: Ask) -> Any:
    return await ask()


MANNERS: dict[str, Callable[[Ask], Ask]] = {"plain": lambda ask: ask, "cause": from_cause, "group": in_group}


class World:
    """A platform, a vendor's fake server, and its SDK between them; a service for each failure."""

    def __init__(self, platform: Platform, server: FakeProvider, ask: Ask, read: Ask) -> None:
        self.platform = platform
        self.server = server
        self.ask = ask
        self.read = read

    def register(self, name: str) -> None:
        self.platform.register_service(
            name,
            daily_budget=ENOUGH,
            max_cost_usd=str(BOUND),
            max_retries=0,
            failure_threshold=1,
            attempt_timeout_s=ATTEMPT_S if name == "hang" else 30.0,
            concurrency_max=1,
            queue_max=0,
        )

    async def all_of(self, name: str, operation: Ask, *, streamed: bool) -> Any:
        if not streamed:
            return await self.platform.execute(name, operation)
        return [piece async for piece in self.platform.execute_stream(name, operation)]

    def health(self, name: str) -> Any:
        return self.platform.service_health(name)

    def phase(self, name: str) -> str:
        return str(self.health(name)["health"]["circuit_breaker_state"])

    def spent_usd(self, name: str) -> Decimal:
        return Decimal(self.health(name)["rate_limits"]["daily_budget"]["spent"])

    async def goes_wrong(
        self, name: str, wrong: Wrong, operation: Ask, *, streamed: bool, grouped: bool
    ) -> None:
        self.register(name)
        self.server.default, asked = wrong.step, len(self.server.queries)
        with pytest.raises(ExternalServiceError) as caught:
            await self.all_of(name, operation, streamed=streamed)
        seen = caught.value
        assert (type(seen), seen.kind) == (wrong.raised, wrong.kind), name
        assert seen.__cause__ is not None or name == "hang", "the original is available"
        assert len(self.server.queries) - asked <= 1, name
        if name == "429":
            assert seen.retry_after_s is not None and 300 <= seen.retry_after_s <= 315, (
                "with koo's own jitter"
            )
        booked = BOUND if wrong.booked or grouped else Decimal(0)
        if streamed and wrong.booked:
            assert 0 < self.spent_usd(name) <= BOUND, name
        else:
            assert self.spent_usd(name) == booked, name
        assert (self.phase(name) == "open") is wrong.failed, name
        await self.next_call(name, wrong, operation, streamed=streamed)

    async def next_call(self, name: str, wrong: Wrong, operation: Ask, *, streamed: bool) -> None:
        """Make the next call: the permit and the only slot are back, and a pause or a refused key stops it unsent."""
        self.server.default, asked = answer("Paris."), len(self.server.queries)
        if wrong.then is not None:
            with pytest.raises(wrong.then) as caught:
                await self.all_of(name, operation, streamed=streamed)
            assert caught.value.attempts == 0 and len(self.server.queries) == asked, name
        self.platform.reset_service(name)
        await self.all_of(name, operation, streamed=streamed)


@asynccontextmanager
async def world(vendor: str, tmp_path: Path) -> AsyncIterator[World]:
    fake, sdk = VENDORS[vendor]
    options = PlatformOptions(state_url=f"sqlite:///{tmp_path}/state.db")
    async with AsyncExitStack() as stack:
        server = stack.enter_context(fake())
        platform = await stack.enter_async_context(Platform(options))
        ask, read = await stack.enter_async_context(sdk(server))
        yield World(platform, server, ask, read)


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_each_failure_has_its_kind_however_it_reaches_koo(vendor: str, manner: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(vendor, tmp_path) as one:
            operation = MANNERS[manner](one.ask)
            for name, wrong in PLAIN.items():
                await one.goes_wrong(name, wrong, operation, streamed=False, grouped=manner == "group")

    asyncio.run(main())


@pytest.mark.parametrize("vendor", VENDORS)
def test_each_failure_of_a_stream_has_its_kind(vendor: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with world(vendor, tmp_path) as one:
            for name, wrong in IN_STREAM.items():
                await one.goes_wrong(name, wrong, one.read, streamed=True, grouped=False)

    asyncio.run(main())


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_cancelled_call_is_neutral_returns_its_slot_and_is_booked(
    vendor: str, streamed: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        async with world(vendor, tmp_path) as one:
            one.register("svc")
            one.server.default = gate = Gate()
            operation = one.read if streamed else one.ask
            task = asyncio.create_task(one.all_of("svc", operation, streamed=streamed))
            await gate.arrived()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert one.phase("svc") == "closed"
            assert one.spent_usd("svc") == BOUND
            one.server.default = answer("Paris.")
            await one.all_of("svc", operation, streamed=streamed)

    asyncio.run(main())
