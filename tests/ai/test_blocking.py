"""koo recognises blocking operations before it calls them, and calls those that may be awaitable."""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import time
import urllib.request
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import anthropic
import httpx
import openai
import perplexity
import pytest
import requests
from google import genai
from sqlalchemy.orm import Session

from koo.ai import callees
from koo.ai.blocking import IN_THREAD, called_by, instead_of, is_async

GPT = openai.OpenAI(api_key="k")
AGPT = openai.AsyncOpenAI(api_key="k")
CLAUDE = anthropic.Anthropic(api_key="k")
ACLAUDE = anthropic.AsyncAnthropic(api_key="k")
GEMINI = genai.Client(api_key="k")


async def ask() -> str:
    return "Paris."


def through(function: Callable[..., Any]) -> Callable[..., Any]:
    """An application's own way to make a blocking function awaitable."""

    @functools.wraps(function)
    def awaitable(*args: Any) -> Any:
        return asyncio.to_thread(function, *args)

    return awaitable


class Own:
    """An application's class: `fetch` returns the coroutine of `afetch`."""

    def fetch(self) -> Any:
        return self.afetch()

    async def afetch(self) -> str:
        return "Paris."

    async def __call__(self) -> str:
        return "Paris."


BLOCKING: dict[str, tuple[Any, str]] = {
    "chat": (GPT.chat.completions.create, "openai.AsyncOpenAI"),
    "responses": (GPT.responses.create, "openai.AsyncOpenAI"),
    "models": (GPT.models.list, "openai.AsyncOpenAI"),
    "raw": (GPT.chat.completions.with_raw_response.create, "openai.AsyncOpenAI"),
    "partial": (functools.partial(GPT.responses.create, model="m"), "openai.AsyncOpenAI"),
    "anthropic": (CLAUDE.messages.create, "anthropic.AsyncAnthropic"),
    "perplexity": (perplexity.Perplexity(api_key="k").responses.create, "perplexity.AsyncPerplexity"),
    "gemini": (GEMINI.models.generate_content, "its `aio`"),
    "httpx get": (httpx.Client().get, "httpx.AsyncClient"),
    "httpx send": (httpx.Client().send, "httpx.AsyncClient"),
    "requests": (requests.get, IN_THREAD),
    "session of requests": (requests.Session().post, IN_THREAD),
    "urllib": (urllib.request.urlopen, IN_THREAD),
    "in C": (time.sleep, IN_THREAD),
    "session of SQLAlchemy": (Session().execute, IN_THREAD),
}


@pytest.mark.parametrize("name", BLOCKING)
def test_a_blocking_operation_is_recognised_and_its_alternative_named(name: str) -> None:
    operation, instead = BLOCKING[name]
    assert instead in instead_of(called_by(operation)) and not is_async(operation)


AWAITED: dict[str, Any] = {
    "async def": ask,
    "partial": functools.partial(ask),
    "plain": lambda: asyncio.sleep(0),
    "chat": AGPT.chat.completions.create,
    "responses": AGPT.responses.create,
    "raw": AGPT.chat.completions.with_raw_response.create,
    "streaming response": AGPT.chat.completions.with_streaming_response.create,
    "stream": AGPT.chat.completions.stream,
    "pages": AGPT.models.list,
    "anthropic": ACLAUDE.messages.create,
    "stream of anthropic": ACLAUDE.messages.stream,
    "gemini": GEMINI.aio.models.generate_content,
    "httpx": httpx.AsyncClient().get,
    "an SDK in a separate thread": through(GPT.responses.create),
    "requests in a separate thread": through(requests.get),
    "returns a coroutine": Own().fetch,
    "own method": Own().afetch,
    "own object": Own(),
    "mock": Mock(),
    "method of a mock": Mock().fetch,
    "magic mock": MagicMock(),
    "async mock": AsyncMock(),
    "in C": len,
}


@pytest.mark.parametrize("name", AWAITED)
def test_an_operation_that_may_be_awaitable_is_called(name: str) -> None:
    assert instead_of(called_by(AWAITED[name])) == ""


@pytest.mark.parametrize(
    "name", ["async def", "partial", "own method", "own object", "responses", "async mock"]
)
def test_an_async_function_runs_on_the_loop_even_under_a_name_for_threads(name: str) -> None:
    assert is_async(AWAITED[name])


LIBRARY = """
async def acompletion(): ...
def completion(): ...
class Model:
    def invoke(self): ...
    async def ainvoke(self): ...
    def complete(self): ...
    async def complete_async(self): ...
    def run_sync(self): ...
    async def run(self): ...
    @classmethod
    def make(cls): ...
    @classmethod
    async def make_async(cls): ...
    def alone(self): ...
"""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A third-party package, installed as `pip` would install it."""
    made = ModuleType("halfway")
    made.__file__ = "/python/site-packages/halfway/__init__.py"
    exec(LIBRARY, made.__dict__)
    monkeypatch.setitem(sys.modules, "halfway", made)
    return made


def test_a_library_function_with_an_asynchronous_variant_blocks(library: Any) -> None:
    model = library.Model()
    found = [
        instead_of(called_by(one))
        for one in (library.completion, model.invoke, model.complete, model.run_sync, library.Model.make)
    ]
    assert [one.partition(",")[0] for one in found] == [
        "use halfway.acompletion", "use its ainvoke", "use its complete_async", "use its run", "use its make_async",
    ]  # fmt: skip
    assert instead_of(model.alone) == "" and instead_of(model.ainvoke) == ""


def test_another_librarys_asynchronous_client_is_not_a_variant(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LlamaIndex's `OpenAI` is in a module that imports openai's `AsyncOpenAI`."""
    monkeypatch.setattr(library, "AsyncModel", openai.AsyncOpenAI, raising=False)
    assert instead_of(library.Model().alone) == ""


def test_a_part_of_a_namespace_package_counts_as_a_library(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "halfway.parts", library)
    monkeypatch.setitem(sys.modules, "halfway", ModuleType("halfway"))
    parts: dict[str, Any] = {"__name__": "halfway.parts"}
    exec(LIBRARY, parts)
    assert "complete_async" in instead_of(parts["Model"]().complete)


def test_remembering_an_object_does_not_keep_it_alive() -> None:
    client = openai.OpenAI(api_key="k")
    callee, method, instead = callees.look(client.responses.create)
    assert "AsyncOpenAI" in instead and callees.look(client.responses.create)[0] is callee
    client.close()
    ref = callee.ref
    assert ref is not None and ref() is client.responses
    del client, method
    gc.collect()
    assert ref() is None
