"""Clients with their own keys under one service name, with the vendors' SDKs and across processes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from koo import AuthenticationFailed, Platform, PlatformOptions, RateLimited
from koo.ai.credentials import digest_of
from koo.errors import Kind
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, FakeOpenAI, error
from tests.platform.test_platform import MODEL, QUESTION, options

CHAT: dict[str, Any] = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Capital of France?"}]}
MESSAGE: dict[str, Any] = {**CHAT, "model": MODEL, "max_tokens": 10}


async def outcome(platform: Platform, client: openai.AsyncOpenAI) -> object:
    try:
        await platform.execute("llm", client.chat.completions.create, **CHAT)
    except (AuthenticationFailed, RateLimited) as error:
        return error.kind
    return "ok"


def test_one_tenants_expired_key_and_anothers_pause_do_not_affect_the_third(tmp_path: Path) -> None:
    async def main(server: FakeOpenAI, other: FakeOpenAI) -> None:
        async with (
            Platform(here(tmp_path)) as platform,
            openai.AsyncOpenAI(api_key="busy-key", base_url=other.base_url, max_retries=0) as busy,
            openai.AsyncOpenAI(api_key="expired", base_url=server.base_url, max_retries=0) as expired,
            openai.AsyncOpenAI(api_key="test-key", base_url=server.base_url, max_retries=0) as good,
        ):
            platform.register_service("llm", timeout_s=5)
            assert [await outcome(platform, expired) for _ in range(2)] == [Kind.AUTH, Kind.KEY_REFUSED]
            other.script(error(429, "rate_limit_error", headers={"retry-after": "60"}))
            assert [await outcome(platform, busy) for _ in range(2)] == [Kind.THROTTLED] * 2
            assert [await outcome(platform, good) for _ in range(3)] == ["ok"] * 3
            assert (len(server.queries), len(other.queries)) == (4, 1)
            view = platform.service_health("llm")
            assert view["state"] == "healthy" and view["reason"].endswith("the keys of 1 of 3 credentials")
            assert "busy-key" not in str(platform.events.recent) and "expired" not in str(view)
            expired.api_key = "test-key"
            assert await outcome(platform, expired) == "ok"

    with FakeOpenAI(strict=False) as server, FakeOpenAI(key="busy-key") as other:
        asyncio.run(main(server, other))


def test_a_clients_key_equal_to_the_services_own_is_treated_as_that_key(tmp_path: Path) -> None:
    async def main(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as platform, AsyncExitStack() as stack:
            own, foreign = [
                await stack.enter_async_context(
                    anthropic.AsyncAnthropic(
                        api_key=key, base_url=server.base_url.removesuffix("/v1"), max_retries=0
                    )
                )
                for key in ("test-key", "expired")
            ]
            with pytest.raises(AuthenticationFailed) as refused:
                await platform.execute("claude", foreign.messages.create, **MESSAGE)
            assert refused.value.kind is Kind.AUTH
            assert platform.service_health("claude")["state"] == "healthy", (
                "the service depends on koo's own key"
            )
            assert (await platform.query(QUESTION)).text
            assert (await platform.execute("claude", own.messages.create, **MESSAGE)).content
            gates = platform.services["claude"].gates
            gates.block_key(None, "the provider refused the key", gates.clock.monotonic())
            with pytest.raises(AuthenticationFailed) as blocked:
                await platform.execute("claude", own.messages.create, **MESSAGE)
            assert blocked.value.kind is Kind.KEY_REFUSED

    with FakeAnthropic(strict=False) as server:
        asyncio.run(main(server))


def test_processes_share_a_tenants_pause_and_refused_key_by_the_keys_digest(tmp_path: Path) -> None:
    async def main(server: FakeOpenAI) -> None:
        async with (
            Platform(here(tmp_path)) as one,
            Platform(here(tmp_path)) as two,
            openai.AsyncOpenAI(api_key="expired", base_url=server.base_url, max_retries=0) as expired,
            openai.AsyncOpenAI(api_key="test-key", base_url=server.base_url, max_retries=0) as good,
        ):
            for platform in (one, two):
                platform.register_service("llm", timeout_s=5)
            await two.parts.sharing.catch_up()
            assert await outcome(one, expired) == Kind.AUTH
            gates = two.services["llm"].credentials.gates(digest_of("expired"))
            await until(lambda: bool(gates.key_blocks))
            asked = len(server.queries)
            assert await outcome(two, expired) == Kind.KEY_REFUSED and len(server.queries) == asked
            assert await outcome(two, good) == "ok"
            server.script(error(429, "rate_limit_error", headers={"retry-after": "60"}))
            assert await outcome(one, good) == Kind.THROTTLED
            busy = two.services["llm"].credentials.gates(digest_of("test-key"))
            await until(lambda: busy.quota.until > busy.clock.monotonic())
            assert await outcome(two, good) == Kind.THROTTLED
            one.reset_service("llm")
            await until(lambda: not gates.key_blocks and busy.quota.until <= busy.clock.monotonic())
        assert b"expired" not in (tmp_path / "state.db").read_bytes()

    with FakeOpenAI(strict=False) as server:
        asyncio.run(main(server))


def here(home: Path) -> PlatformOptions:
    return PlatformOptions(home=home, state_url=f"sqlite:///{home / 'state.db'}")
