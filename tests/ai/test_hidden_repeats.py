"""Retries that a library makes within one attempt: koo finds them in the error, and says how to switch them off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import requests
import tenacity
from google import genai
from google.genai import types
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from koo import ExternalServiceError, Platform, PlatformOptions
from koo.ai.hidden_repeats import repeats_in
from koo.testing.providers import FakeAnthropic, FakeGemini, FakeOpenAI, FakeProvider, error

PROMPT: dict[str, Any] = {"messages": [{"role": "user", "content": "Capital of France?"}]}
Ask = Callable[[str], Awaitable[object]]


async def ask_gpt(url: str) -> object:
    async with openai.AsyncOpenAI(api_key="test-key", base_url=url, max_retries=2) as client:
        return await client.chat.completions.create(model="gpt-4.1", **PROMPT)


async def ask_gpt_once(url: str) -> object:
    async with openai.AsyncOpenAI(api_key="test-key", base_url=url, max_retries=0) as client:
        return await client.chat.completions.create(model="gpt-4.1", **PROMPT)


async def ask_claude(url: str) -> object:
    url = url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(api_key="test-key", base_url=url, max_retries=1) as client:
        return await client.messages.create(model="claude-sonnet-5-5", max_tokens=10, **PROMPT)


async def ask_gemini(url: str) -> object:
    async with httpx2.AsyncClient() as transport:
        options = types.HttpOptions(
            base_url=url.removesuffix("/v1"),
            httpx_async_client=transport,
            retry_options=types.HttpRetryOptions(attempts=3, initial_delay=0.001, max_delay=0.002),
        )
        client = genai.Client(api_key="test-key", http_options=options).aio
        try:
            return await client.models.generate_content(model="gemini-3-flash", contents="Capital?")
        finally:
            await client.aclose()


async def ask_within_another_error(url: str) -> object:
    try:
        return await ask_gpt(url)
    except openai.APIError as error:
        raise RuntimeError("the agent gave up") from error


async def ask_in_a_group(url: str) -> object:
    async with asyncio.TaskGroup() as group:
        return group.create_task(ask_gpt(url))


@tenacity.retry(stop=tenacity.stop_after_attempt(3))
async def ask_by_tenacity(url: str) -> object:
    return await ask_gpt_once(url)


@tenacity.retry(stop=tenacity.stop_after_attempt(3), reraise=True)
async def ask_by_tenacity_quietly(url: str) -> object:
    return await ask_gpt_once(url)


def read_page(url: str) -> object:
    with requests.Session() as session:
        retry = Retry(
            total=2, backoff_factor=0, status_forcelist=[500], raise_on_status=False, allowed_methods=None
        )
        session.mount("http://", HTTPAdapter(max_retries=retry))
        answer = session.post(
            f"{url}/chat/completions",
            json={"model": "gpt-4.1", **PROMPT},
            headers={"Authorization": "Bearer test-key"},
        )
        answer.raise_for_status()
        return answer


async def ask_by_requests(url: str) -> object:
    return await asyncio.to_thread(read_page, url)


def failing(fake: type[FakeProvider]) -> FakeProvider:
    """A server whose every response is a 500."""
    return fake(default=error(500, "server_error"))


@pytest.mark.parametrize(
    ("ask", "fake", "said"),
    [
        (ask_gpt, FakeOpenAI, "openai retries calls by itself (2 times).*its client's max_retries=0"),
        (ask_claude, FakeAnthropic, "anthropic retries calls by itself (1 times).*max_retries=0"),
        (ask_gemini, FakeGemini, "google retries calls by itself (2 times).*HttpRetryOptions(attempts=1)"),
        (ask_within_another_error, FakeOpenAI, "openai retries calls by itself (2 times)"),
        (ask_in_a_group, FakeOpenAI, "openai retries calls by itself (2 times)"),
        (ask_by_tenacity, FakeOpenAI, "tenacity retries calls by itself (2 times).*stop_after_attempt(1)"),
        (ask_by_tenacity_quietly, FakeOpenAI, "tenacity retries calls by itself (2 times)"),
        (
            ask_by_requests,
            FakeOpenAI,
            "requests retries calls by itself (2 times).*HTTPAdapter(max_retries=0)",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_librarys_hidden_retries_are_reported_once_with_its_own_option(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ask: Ask, fake: type[FakeProvider], said: str
) -> None:
    async def main(server: FakeProvider) -> None:
        async with Platform(PlatformOptions(state_url=f"sqlite:///{tmp_path}/state.db")) as platform:
            platform.register_service(ask.__name__)
            for _ in range(2):
                with pytest.raises((ExternalServiceError, Exception)):
                    await platform.execute(ask.__name__, ask, server.base_url)

    caplog.set_level(logging.WARNING)
    with failing(fake) as server:
        asyncio.run(main(server))
    lines = [one.getMessage() for one in caplog.records if "retries calls by itself" in one.getMessage()]
    assert len(lines) == 1 and lines[0].startswith(f"{ask.__name__}: ")
    assert all(part in lines[0] for part in said.split(".*")), lines[0]


def test_a_library_that_does_not_retry_causes_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(server: FakeProvider) -> None:
        async with Platform(PlatformOptions(state_url=f"sqlite:///{tmp_path}/state.db")) as platform:
            platform.register_service("once", idempotent=True, retry_base_delay=0.001)
            with pytest.raises(ExternalServiceError):
                await platform.execute("once", ask_gpt_once, server.base_url)
            assert len(server.queries) == 4, "koo's own retries are not attributed to the library"

    with failing(FakeOpenAI) as server:
        asyncio.run(main(server))
    assert "by itself" not in caplog.text


def made_in(module: str, **fields: object) -> Exception:
    """An exception of a library that is not installed here, with the attributes that the library's own code sets."""
    made: Exception = type("LibraryError", (Exception,), {"__module__": module})("failed")
    vars(made).update(fields)
    return made


KEPT: dict[str, tuple[Exception, dict[str, int]]] = {
    "instructor": (made_in("instructor.core.exceptions", n_attempts=3), {"instructor": 2}),
    "instructor, once": (made_in("instructor.retry", n_attempts=1), {}),
    "LiteLLM": (made_in("litellm.exceptions", num_retries=2), {"litellm": 2}),
    "botocore": (
        made_in("botocore.exceptions", response={"ResponseMetadata": {"RetryAttempts": 4}}),
        {"botocore": 4},
    ),
    "botocore, uncounted": (made_in("botocore.exceptions", response={"ResponseMetadata": {}}), {}),
    "botocore, empty": (made_in("botocore.exceptions", response={}), {}),
    "first request": (made_in("groq", request=SimpleNamespace(headers={"x-stainless-retry-count": "0"})), {}),
    "no number": (made_in("groq", request=SimpleNamespace(headers={"x-stainless-retry-count": "many"})), {}),
    "other things": (made_in("own", num_retries="2x", n_attempts=None, request=5, response=5), {}),
    "nothing": (ValueError("wrong"), {}),
}


@pytest.mark.parametrize("name", KEPT)
def test_retry_counts_in_libraries_errors_are_read(name: str) -> None:
    error, repeats = KEPT[name]
    assert repeats_in(error) == repeats


def test_circular_errors_and_raising_properties_do_no_harm() -> None:
    class Odd(Exception):
        @property
        def request(self) -> object:
            raise RuntimeError("not set")

    one, other = Odd(), Odd()
    one.__cause__, other.__cause__ = other, one
    assert repeats_in(one) == {}
