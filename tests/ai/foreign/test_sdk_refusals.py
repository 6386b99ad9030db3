"""A refusal of a gateway or another vendor, raised by a vendor's own SDK, has the same kind as in koo."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anthropic
import openai
import pytest

from koo.ai.foreign.vendors import classify_sdk
from koo.errors import ExternalServiceError
from tests.ai.odd_refusals import MADE_AT, ROWS
from tests.ai.odd_server import OddServer
from tests.ai.oddities import Oddity

UNPACKED_BY_NONE = {"br", "zstd", "x-gzip"}
"""The SDKs' own clients may read other encodings than koo does."""
MESSAGES: Any = [{"role": "user", "content": "Capital of France?"}]


async def ask_openai(server: OddServer, *, streamed: bool) -> None:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
        create: Any = client.chat.completions.create
        await create(model="m", messages=MESSAGES, stream=streamed)


async def ask_anthropic(server: OddServer) -> None:
    base_url = server.base_url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key="k", max_retries=0) as client:
        await client.messages.create(model="m", max_tokens=10, messages=MESSAGES)


def raised(oddity: Oddity) -> Exception:
    async def main() -> Exception:
        async with OddServer(oddity) as server:
            try:
                if oddity.format == "anthropic":
                    await ask_anthropic(server)
                else:
                    await ask_openai(server, streamed=oddity.streamed)
            except Exception as error:
                return error
        raise AssertionError("nothing was raised")

    return asyncio.run(main())


@pytest.mark.parametrize(
    "oddity",
    [row for row in ROWS if row.headers.get("content-encoding") not in UNPACKED_BY_NONE],
    ids=lambda row: row.name,
)
def test_a_refusal_raised_by_the_sdk_has_the_same_kind_as_in_koo(oddity: Oddity) -> None:
    fault = classify_sdk(raised(oddity), "svc")
    assert fault is not None and isinstance(fault.error, ExternalServiceError)
    assert fault.kind is oddity.kind and fault.billed is False
    if "retry-after" in oddity.headers:
        since_s = time.time() - MADE_AT
        assert fault.retry_after_s is not None and 3590 - since_s <= fault.retry_after_s <= 3600
