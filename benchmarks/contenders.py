"""The contenders of the query benchmark, each used as its documentation recommends.

They are asynchronous and use one client with pooled connections and retries. Each runs in a separate process, some
with the peers' own Python, so only the standard library is imported here before a contender is chosen.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.peers import load

Ask = Callable[[], Awaitable[Any]]
Make = Callable[[str, AsyncExitStack], Awaitable[Ask]]

PROMPT = "What is the capital of France?"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
KEY = "sk-bench"
MAX_TOKENS = 128
CLAUDE, GPT = "claude-sonnet-5-5", "gpt-6.1-terra"
ANTHROPIC, OPENAI, COMPATIBLE = "anthropic", "openai", "openai_compatible"
"""koo's names of the three formats: Messages, Responses, Chat Completions."""
CALLS = "calls a second"
MODELS = {ANTHROPIC: CLAUDE, OPENAI: GPT, COMPATIBLE: GPT}


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to query in one format, with its `figure`. `apart`: it runs in the peers' own environment."""

    who: str
    format: str
    make: Make
    distribution: str | None = None
    apart: bool = False
    figure: str = CALLS

    @property
    def name(self) -> str:
        """The name of its figure."""
        return f"{self.who}: {self.format}, {self.figure}"


def koo(kind: str, *, priced: bool = True) -> Make:
    """The product's own way: a platform with its state store on disk.

    With a price, each call is held in the durable ledger before it is sent. Without one the service is free and needs
    no hold.
    """

    async def make(url: str, stack: AsyncExitStack) -> Ask:
        platform, query = await koo_platform(kind, url, stack, priced=priced)
        return lambda: platform.query(query)

    return make


async def koo_platform(kind: str, url: str, stack: AsyncExitStack, *, priced: bool = True) -> tuple[Any, Any]:
    """A platform with one service, and the query to send."""
    from koo.ai.types import Query
    from koo.options import LimitOptions, PlatformOptions, ServiceOptions
    from koo.platform import Platform

    service = ServiceOptions(
        name="bench",
        kind=kind,  # type: ignore[arg-type]
        model=MODELS[kind],
        base_url=url,
        api_key=KEY,
        limits=LimitOptions(per_minute=10**9, per_hour=10**9, per_day=10**9),
        daily_budget_usd=Decimal(1_000_000) if priced else None,
        input_price=Decimal(1) if priced else Decimal(0),
        output_price=Decimal(5) if priced else Decimal(0),
    )
    home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    platform = await stack.enter_async_context(Platform(PlatformOptions(home=home, services=(service,))))
    return platform, Query(service="bench", prompt=PROMPT, max_tokens=MAX_TOKENS)


MESSAGES_BODY = {"model": CLAUDE, "max_tokens": MAX_TOKENS, "messages": MESSAGES}
RESPONSES_BODY = {"model": GPT, "input": PROMPT, "max_output_tokens": MAX_TOKENS}
CHAT_BODY = {"model": GPT, "messages": MESSAGES, "max_completion_tokens": MAX_TOKENS}


def bare_client(path: str, body: dict[str, Any]) -> Make:
    """The floor: a POST and its decoded response, and nothing else."""

    async def make(url: str, stack: AsyncExitStack) -> Ask:
        import aiohttp
        import msgspec

        headers = {"content-type": "application/json", "x-api-key": KEY, "authorization": f"Bearer {KEY}"}
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers))

        async def ask() -> Any:
            async with session.post(url + path, data=msgspec.json.encode(body)) as answer:
                return msgspec.json.decode(await answer.read())

        return ask

    return make


def pydantic_ai_direct(kind: str) -> Make:
    """pydantic-ai's direct requests, without an agent."""

    async def make(url: str, stack: AsyncExitStack) -> Ask:
        name = "pydantic-ai-slim"
        messages = [load("pydantic_ai", name).ModelRequest.user_text_prompt(PROMPT)]
        request = load("pydantic_ai.direct", name).model_request
        if kind == ANTHROPIC:
            provider = load("pydantic_ai.providers.anthropic", name).AnthropicProvider(
                api_key=KEY, base_url=url
            )
            model = load("pydantic_ai.models.anthropic", name).AnthropicModel(CLAUDE, provider=provider)
        else:
            provider = load("pydantic_ai.providers.openai", name).OpenAIProvider(api_key=KEY, base_url=url)
            models = load("pydantic_ai.models.openai", name)
            kinds = {OPENAI: models.OpenAIResponsesModel, COMPATIBLE: models.OpenAIChatModel}
            model = kinds[kind](GPT, provider=provider)
        settings = {"max_tokens": MAX_TOKENS}
        return lambda: request(model, messages, model_settings=settings)

    return make


def anthropic_sdk(*, aiohttp: bool) -> Make:
    async def make(url: str, stack: AsyncExitStack) -> Ask:
        anthropic = load("anthropic", "anthropic")
        options = {"http_client": anthropic.DefaultAioHttpClient()} if aiohttp else {}
        client = anthropic.AsyncAnthropic(api_key=KEY, base_url=url, **options)
        stack.push_async_callback(client.close)
        return lambda: client.messages.create(model=CLAUDE, max_tokens=MAX_TOKENS, messages=MESSAGES)

    return make


def openai_sdk(*, responses: bool, aiohttp: bool) -> Make:
    async def make(url: str, stack: AsyncExitStack) -> Ask:
        openai = load("openai", "openai")
        options = {"http_client": openai.DefaultAioHttpClient()} if aiohttp else {}
        client = openai.AsyncOpenAI(api_key=KEY, base_url=url, **options)
        stack.push_async_callback(client.close)
        if responses:
            return lambda: client.responses.create(model=GPT, input=PROMPT, max_output_tokens=MAX_TOKENS)
        return lambda: client.chat.completions.create(
            model=GPT, messages=MESSAGES, max_completion_tokens=MAX_TOKENS
        )

    return make


def litellm(model: str, url: str) -> Any:
    """A router with one deployment named bench."""
    # Otherwise importing it downloads a price table.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    deployment = {"model": model, "api_key": KEY, "api_base": url}
    return load("litellm", "litellm").Router(
        model_list=[{"model_name": "bench", "litellm_params": deployment}], num_retries=2
    )


def litellm_router(model: str) -> Make:
    async def make(url: str, stack: AsyncExitStack) -> Ask:
        router = litellm(model, url)
        return lambda: router.acompletion(model="bench", messages=MESSAGES, max_tokens=MAX_TOKENS)

    return make


TENSORZERO = """
[gateway]
observability.enabled = false
disable_pseudonymous_usage_analytics = true

[models.bench]
routing = ["server"]

[models.bench.providers.server]
type = "{kind}"
model_name = "{model}"
api_base = "{url}/"
api_key_location = "env::BENCH_KEY"

[functions.ask]
type = "chat"

[functions.ask.variants.only]
type = "chat_completion"
model = "bench"
max_tokens = {max_tokens}
retries = {{ num_retries = 2, max_delay_s = 10 }}
"""


def tensorzero_embedded(kind: str, model: str, path: str = "") -> Make:
    async def make(url: str, stack: AsyncExitStack) -> Ask:
        tensorzero = load("tensorzero", "tensorzero")
        os.environ["BENCH_KEY"] = KEY
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "tensorzero.toml"
        config.write_text(
            TENSORZERO.format(kind=kind, model=model, url=url + path, max_tokens=MAX_TOKENS), encoding="utf-8"
        )
        gateway = await tensorzero.AsyncTensorZeroGateway.build_embedded(config_file=str(config))
        await stack.enter_async_context(gateway)
        return lambda: gateway.inference(function_name="ask", input={"messages": MESSAGES})

    return make


KOO, FREE, FLOOR = "koo", "koo, a free service", "aiohttp and msgspec, nothing around them"
SDK, SDK_AIOHTTP = "the vendor's SDK", "the vendor's SDK on aiohttp"
DIRECT = "pydantic-ai, direct requests"
ROUTER, ZERO = "LiteLLM Router", "TensorZero, embedded (archived)"

CONTENDERS = {
    contender.name: contender
    for contender in (
        *(Contender(KOO, kind, koo(kind)) for kind in MODELS),
        *(Contender(FREE, kind, koo(kind, priced=False)) for kind in MODELS),
        Contender(FLOOR, ANTHROPIC, bare_client("/v1/messages", MESSAGES_BODY)),
        Contender(FLOOR, OPENAI, bare_client("/responses", RESPONSES_BODY)),
        Contender(FLOOR, COMPATIBLE, bare_client("/chat/completions", CHAT_BODY)),
        Contender(SDK, ANTHROPIC, anthropic_sdk(aiohttp=False), "anthropic"),
        Contender(SDK, OPENAI, openai_sdk(responses=True, aiohttp=False), "openai"),
        Contender(SDK, COMPATIBLE, openai_sdk(responses=False, aiohttp=False), "openai"),
        Contender(SDK_AIOHTTP, ANTHROPIC, anthropic_sdk(aiohttp=True), "anthropic"),
        Contender(SDK_AIOHTTP, OPENAI, openai_sdk(responses=True, aiohttp=True), "openai"),
        Contender(SDK_AIOHTTP, COMPATIBLE, openai_sdk(responses=False, aiohttp=True), "openai"),
        *(Contender(DIRECT, kind, pydantic_ai_direct(kind), "pydantic-ai-slim") for kind in MODELS),
        Contender(ROUTER, ANTHROPIC, litellm_router(f"anthropic/{CLAUDE}"), "litellm", apart=True),
        Contender(ROUTER, COMPATIBLE, litellm_router(f"openai/{GPT}"), "litellm", apart=True),
        Contender(ZERO, ANTHROPIC, tensorzero_embedded("anthropic", CLAUDE, "/v1"), "tensorzero", apart=True),
        Contender(ZERO, COMPATIBLE, tensorzero_embedded("openai", GPT), "tensorzero", apart=True),
    )
}
