"""`query_ai` against a server that answers at once, 50 in flight, money in memory, one core for the client.

The server runs in another process. Beside koo: the vendors' own SDKs, with their retries off.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

from koo.ai.assembly import assemble
from koo.ai.gateway import Gateway
from koo.ai.pricing import Prices
from koo.ai.types import Query
from koo.clock import SYSTEM_CLOCK
from koo.deadlines import Deadlines
from koo.http import HttpClient
from koo.options import LimitOptions, PlatformOptions, ServiceOptions
from koo.storage.memory import MemoryLedger
from koo.testing.providers import InstantServer

IN_FLIGHT = 50
CALLS = 3000
ROUNDS = 5
MANY = LimitOptions(per_minute=10**9, per_hour=10**9, per_day=10**9)
MODELS = {"anthropic": "claude-sonnet-5-5", "openai": "gpt-6.1-terra", "openai_compatible": "gpt-6.1-terra"}

Ask = Callable[[], Awaitable[Any]]


async def calls_a_second(ask: Ask, calls: int) -> float:
    """So many calls, fifty at a time."""
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return calls / (time.perf_counter() - began)


def make_ask(gateway: Gateway, service: str) -> Ask:
    query = Query(service=service, prompt="What is the capital of France?", max_tokens=64)
    return lambda: gateway.query(query)


async def make_gateway(urls: dict[str, str], stack: AsyncExitStack) -> Gateway:
    """koo's whole way of a query, with everything on and the ledger in memory."""
    http, deadlines = HttpClient(), Deadlines()
    services = tuple(
        ServiceOptions(
            name=kind,
            kind=kind,  # type: ignore[arg-type]
            model=MODELS[kind],
            base_url=url,
            api_key="sk-bench",
            limits=MANY,
            daily_budget_usd=Decimal(1_000_000),
            input_price=Decimal(1),
            output_price=Decimal(5),
        )
        for kind, url in urls.items()
    )
    options = PlatformOptions(services=services)
    backends = assemble(
        options, http=http, clock=SYSTEM_CLOCK, deadlines=deadlines, publish=lambda event: None
    )
    stack.push_async_callback(http.close)
    ledger, prices = MemoryLedger(SYSTEM_CLOCK), Prices()
    await prices.load()
    return Gateway(backends, ledger=lambda: ledger, prices=prices, deadlines=deadlines, clock=SYSTEM_CLOCK)


async def sdk_asks(urls: dict[str, str], stack: AsyncExitStack) -> dict[str, Ask]:
    """The vendors' SDKs, as their documentation has them."""
    import anthropic
    import openai

    question = [{"role": "user", "content": "What is the capital of France?"}]
    claude = anthropic.AsyncAnthropic(api_key="sk-bench", base_url=urls["anthropic"], max_retries=0)
    gpt = openai.AsyncOpenAI(api_key="sk-bench", base_url=urls["openai_compatible"], max_retries=0)
    stack.push_async_callback(claude.close)
    stack.push_async_callback(gpt.close)
    return {
        "anthropic SDK": lambda: claude.messages.create(
            model=MODELS["anthropic"],
            max_tokens=64,
            messages=question,  # type: ignore[arg-type]
        ),
        "openai SDK": lambda: gpt.chat.completions.create(
            model=MODELS["openai"],
            messages=question,  # type: ignore[arg-type]
            max_completion_tokens=64,
        ),
    }


async def report() -> dict[str, float]:
    """Calls a second of each contender, medians over rounds in random order."""
    async with AsyncExitStack() as stack:
        claude = stack.enter_context(InstantServer("anthropic")).base_url
        gpt = stack.enter_context(InstantServer("openai")).base_url
        chat = stack.enter_context(InstantServer("compatible")).base_url
        urls = {"anthropic": claude, "openai": gpt, "openai_compatible": chat}
        gateway = await make_gateway(urls, stack)
        asks: dict[str, Ask] = {f"koo, {kind}": make_ask(gateway, kind) for kind in urls}
        asks.update(await sdk_asks(urls, stack))
        seen: dict[str, list[float]] = {name: [] for name in asks}
        for _ in range(ROUNDS):
            names = list(asks)
            random.shuffle(names)
            for name in names:
                seen[name].append(
                    await calls_a_second(asks[name], CALLS if name.startswith("koo") else CALLS // 5)
                )
        return {f"{name}, calls a second": statistics.median(rates) for name, rates in seen.items()}
