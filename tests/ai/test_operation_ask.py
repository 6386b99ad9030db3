"""The most that an SDK's call can cost, read from its arguments: no bill is above it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unicodedata import normalize

import anthropic
import openai
import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from koo.ai.model_price import ModelPrice
from koo.ai.operation_ask import Ask, bound_of, is_free, longest_answer, read_ask
from koo.ai.operation_prompt import PICTURE_TOKENS, read_prompt
from koo.ai.pricing import Prices
from koo.ai.types import Usage

MODEL = "gpt-4.1"
WINDOW = 1_000_000


@cache
def price(model: str = MODEL) -> ModelPrice:
    found = Prices().find_anywhere(model)
    assert found is not None
    return found


async def operation(*args: Any, **kwargs: Any) -> None: ...


def ask(*args: Any, call: Callable[..., Any] = operation, **kwargs: Any) -> Ask:
    found = read_ask(call, args, {"model": MODEL, **kwargs})
    assert found is not None
    return found


def bound(*args: Any, call: Callable[..., Any] = operation, **kwargs: Any) -> Decimal:
    found = ask(*args, call=call, **kwargs)
    return bound_of(found, read_prompt(found.said, found.model), price(found.model), lambda: WINDOW).usd


def cost(read: int, written: int = 0, model: str = MODEL) -> Decimal:
    return price(model).cost_usd(Usage(input_tokens=read, output_tokens=written))


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


# ── any prompt ────────────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(max_size=200)
parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=4)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": texts | parts}
    ),
    max_size=5,
)
schemas: st.SearchStrategy[Any] = st.recursive(
    texts | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


def most_tokens(value: Any) -> int:
    """The tokens of the worst possible tokenizer: one for each byte, in whichever of two forms is longer."""
    if isinstance(value, dict):
        return sum(most_tokens(key) + most_tokens(one) for key, one in value.items())
    if isinstance(value, list):
        return sum(map(most_tokens, value))
    if isinstance(value, str):
        forms = (value, normalize("NFKC", value))
        return max(len(form.encode("utf-8", "surrogatepass")) for form in forms)
    return len(str(value)) if not isinstance(value, bool) else 0


@settings(deadline=None)  # The first example imports the table.
@given(messages, st.lists(schemas, max_size=2), st.integers(0, 2000), st.integers(1, 4))
def test_no_bill_is_above_the_bound_of_any_prompt(
    asked: list[dict[str, Any]], tools: list[Any], tokens: int, answers: int
) -> None:
    functions = [{"type": "function", "function": {"name": "f", "parameters": one}} for one in tools]
    read = most_tokens(asked) + most_tokens(functions) + 8 * len(asked)
    assert bound(messages=asked, tools=functions, max_tokens=tokens, n=answers) >= cost(
        read, tokens * answers
    )


@settings(deadline=None)
@given(texts, texts, st.integers(0, 2000))
def test_no_bill_is_above_the_bound_of_googles_objects(prompt: str, system: str, tokens: int) -> None:
    config = types.GenerateContentConfig(
        system_instruction=system, max_output_tokens=tokens, candidate_count=2
    )
    contents = [types.Content(role="user", parts=[types.Part(text=prompt)])]
    found = bound(model="gemini-3.8-flash", contents=contents, config=config)
    assert found >= cost(most_tokens([prompt, system]) + 16, 2 * tokens, "gemini-3.8-flash")


# ── where the arguments are ───────────────────────────────────────────────────────────────────────────────────────────


class City(BaseModel):
    """A schema for answers: a city."""

    name: str


GOOGLES = types.GenerateContentConfig(max_output_tokens=7)


@pytest.mark.parametrize(
    ("arguments", "tokens", "answers"),
    [
        ({"messages": [], "max_tokens": 7}, 7, 1),
        ({"messages": [], "max_completion_tokens": 7, "n": 3}, 7, 3),
        ({"messages": [], "max_tokens": 7, "max_completion_tokens": 9}, 9, 1),
        ({"input": "Hi.", "max_output_tokens": 7}, 7, 1),
        ({"contents": "Hi.", "config": GOOGLES}, 7, 1),
        ({"contents": "Hi.", "config": {"maxOutputTokens": 7, "candidate_count": 2}}, 7, 2),
        ({"messages": [], "max_tokens": openai.NOT_GIVEN}, 32_768, 1),
        ({"messages": [], "max_tokens": None}, 32_768, 1),
        ({"messages": [], "max_tokens": True}, 32_768, 1),
        ({"messages": [], "max_tokens": 7, "extra_body": {"max_tokens": 70}}, 70, 1),
        ({"messages": []}, 32_768, 1),
    ],
)
def test_the_answers_limit_is_read_from_each_sdks_argument(
    arguments: dict[str, Any], tokens: int, answers: int
) -> None:
    found = ask(**arguments)
    assert (found.output_tokens_max, found.answers) == (tokens, answers)


def test_the_arguments_of_a_partial_are_read_too() -> None:
    found = read_ask(partial(operation, model="gpt-4o", max_tokens=5), (), {"messages": user("Hi.")})
    assert found is not None and (found.model, found.output_tokens_max) == ("gpt-4o", 5)


def test_positional_arguments_are_read_by_their_names() -> None:
    async def complete(model: str, messages: list[Any], max_tokens: int = 5) -> None: ...

    found = read_ask(complete, ("gpt-4o", user("Hi.")), {})
    assert found is not None and found.model == "gpt-4o"
    assert "Hi." in read_prompt(found.said, found.model).texts
    assert read_ask(complete, ("gpt-4o",), {"wrong": 1}) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"messages": user("Hi.")},
        {"model": "gpt-4.1"},
        {"model": 4, "messages": user("Hi.")},
        {"model": "gemini-3.8-flash", "contents": "Hi.", "config": {"tools": [operation]}},
        {"model": "claude-sonnet-5-5", "messages": user("Hi."), "fallbacks": [{"model": "claude-opus-5"}]},
    ],
)
def test_a_call_without_model_or_prompt_has_no_known_worst_case(arguments: dict[str, Any]) -> None:
    assert read_ask(operation, (), arguments) is None


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4.1-mini", 32_768),
        ("gpt-4o-2024-08-06", 16_384),
        ("gpt-6.1-terra", 128_000),
        ("gpt-5-pro", 272_000),
        ("o3-mini", 100_000),
        ("openai/o1", 100_000),
        ("models/gemini-3.8-flash", 65_536),
        ("gemini-2.0-flash", 8192),
        ("a-model-of-next-year", 272_000),
    ],
)
def test_an_answer_without_a_limit_counts_as_its_models_longest(model: str, tokens: int) -> None:
    assert longest_answer(model) == tokens
    found = ask(model=model, messages=[])
    assert found.output_tokens_max == tokens


# ── input that is not text ──────────────────────────────────────────────────────────────────────────────────────────

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 200_000}}
CLAUDES = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 200_000}}
GOOGLES_PICTURE = types.Part.from_bytes(data=b"1" * 200_000, mime_type="image/png")


@pytest.mark.parametrize(
    "arguments",
    [
        {"messages": user([PICTURE])},
        {"messages": user([CLAUDES])},
        {"input": user([{"type": "input_image", "image_url": "https://host/1.png"}])},
        {"contents": [GOOGLES_PICTURE]},
        {"contents": [{"inline_data": {"mime_type": "image/png", "data": b"1"}}]},
    ],
    ids=["openai", "anthropic", "responses", "google", "google by mapping"],
)
def test_a_picture_counts_as_the_most_tokens_of_any_vendor_not_as_its_bytes(
    arguments: dict[str, Any],
) -> None:
    found = bound(max_tokens=0, **arguments)
    assert cost(PICTURE_TOKENS) <= found <= cost(PICTURE_TOKENS + 1000)


@pytest.mark.parametrize(
    "arguments",
    [
        {"messages": user([{"type": "file", "file": {"file_id": "file-1"}}])},
        {"messages": user([{"type": "document", "source": {"type": "url", "url": "https://host/1.pdf"}}])},
        {"contents": [types.Part.from_bytes(data=b"1", mime_type="application/pdf")]},
        {"contents": [types.Part.from_uri(file_uri="gs://1.pdf", mime_type="application/pdf")]},
        {"contents": [types.File(uri="https://host/files/1")]},
        {"input": "Hi.", "previous_response_id": "resp_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"messages": user("Hi."), "thread": {"type": "continue", "previous_message_id": "msg_1"}},
        {"contents": "Hi.", "config": types.GenerateContentConfig(cached_content="cachedContents/1")},
        {"messages": iter(user("Hi."))},
        {"messages": user("Hi."), "tools": [{"type": "web_search_20260209", "name": "web_search"}]},
        {"input": "Hi.", "tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"contents": "Hi.", "config": {"tools": [types.Tool(google_search=types.GoogleSearch())]}},
        {"contents": "Hi.", "config": {"tools": [{"url_context": {}}]}},
    ],
)
def test_uncountable_content_counts_as_the_whole_context_window(arguments: dict[str, Any]) -> None:
    assert bound(max_tokens=0, **arguments) >= cost(WINDOW)


@pytest.mark.parametrize(
    "arguments",
    [
        {"messages": user("Hi."), "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": user("Hi."), "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
        {"messages": user("Hi."), "tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"messages": user("Hi."), "response_format": City},
        {
            "contents": "Hi.",
            "config": {"tools": [types.Tool(function_declarations=[types.FunctionDeclaration(name="f")])]},
        },
        {"contents": "Hi.", "config": types.GenerateContentConfig(response_schema=City)},
        {"messages": user([{"type": "document", "source": {"type": "text", "data": "words"}}])},
        {"messages": user("Hi."), "timeout": openai.Timeout(5.0), "temperature": 0.5, "stop": ["."]},
    ],
)
def test_tools_that_the_caller_runs_count_as_text(arguments: dict[str, Any]) -> None:
    assert bound(max_tokens=0, **arguments) < cost(8000)


def test_a_structure_that_contains_itself_is_read_in_finite_time() -> None:
    loop: dict[str, Any] = {"role": "user"}
    loop["content"] = [loop]
    assert bound(messages=[loop], max_tokens=0) >= cost(WINDOW)


def test_token_numbers_instead_of_texts_are_each_counted() -> None:
    tokens = [[100_000] * 8000, [7] * 8000]
    reading = read_prompt({"input": tokens}, "text-embedding-3-small")
    assert reading.tokens >= 16_000 and not reading.is_open


@pytest.mark.parametrize("model", ["sonar", "sonar-pro", "gpt-4o-search-preview", "o3-deep-research"])
def test_a_searching_model_counts_as_reading_its_whole_window(model: str) -> None:
    assert bound(model=model, messages=user("Hi."), max_tokens=0) >= cost(WINDOW, 0, model)


def test_hour_long_caching_and_faster_tiers_are_held_at_their_price() -> None:
    model = "claude-sonnet-5-5"
    kept = {"type": "text", "text": "a" * 10_000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert bound(model=model, messages=user([kept]), max_tokens=0) >= Decimal(4) * 10_000 / 1_000_000
    usual = bound(messages=user("Hi."), max_tokens=100)
    assert bound(messages=user("Hi."), max_tokens=100, service_tier="priority") >= Decimal("2.5") * usual
    usual = bound(model=model, messages=user("Hi."), max_tokens=100)
    assert (
        bound(model=model, messages=user("Hi."), max_tokens=100, inference_geo="us") >= Decimal("1.1") * usual
    )


# ── free methods, and model objects of other libraries ──────────────────────────────────────────────────────────────


def test_free_methods_of_an_sdk_cost_nothing() -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(api_key="k") as gpt, anthropic.AsyncAnthropic(api_key="k") as claude:
            free = (
                gpt.models.list,
                gpt.responses.retrieve,
                gpt.moderations.create,
                claude.messages.count_tokens,
            )
            paid = (
                gpt.chat.completions.create,
                gpt.responses.create,
                claude.messages.create,
                gpt.images.generate,
            )
            assert all(map(is_free, free)) and not any(map(is_free, paid))

    asyncio.run(main())
    assert not is_free(operation)


def langchains(**fields: Any) -> Any:
    class Model(SimpleNamespace):
        async def ainvoke(self, words: str) -> None: ...

    Model.__module__ = "langchain_openai.chat_models.base"
    return Model(**fields)


def test_a_langchain_models_own_settings_are_read() -> None:
    model = langchains(model_name="gpt-4o", max_tokens=7, n=None)
    found = read_ask(model.ainvoke, ("Hi.",), {})
    assert found is not None and (found.model, found.output_tokens_max, found.answers) == ("gpt-4o", 7, 1)
    bound_to = langchains(bound=model, kwargs={"tools": [{"type": "web_search"}], "max_tokens": 9})
    found = read_ask(bound_to.ainvoke, ("Hi.",), {})
    assert found is not None and found.output_tokens_max == 9
    reading = read_prompt(found.said, found.model)
    assert bound_of(found, reading, price("gpt-4o"), lambda: WINDOW).usd >= cost(WINDOW, 0, "gpt-4o")


def of(module: str, **fields: Any) -> Any:
    kind = type("Step", (SimpleNamespace,), {"__module__": module, "ainvoke": operation})
    return kind(**fields)


def test_a_langchain_chain_is_read_if_its_steps_add_only_their_texts() -> None:
    model = of("langchain_openai.chat_models.base", model_name="gpt-4o", max_tokens=7)
    prompt = of("langchain_core.prompts.chat", template="Say it as a pirate: {words}")
    parser = of("langchain_core.output_parsers.string")
    chain = of("langchain_core.runnables.base", steps=[prompt, model, parser])
    found = read_ask(chain.ainvoke, ({"words": "Hi."},), {})
    assert found is not None and (found.model, found.output_tokens_max) == ("gpt-4o", 7)
    assert "Say it as a pirate: {words}" in read_prompt(found.said, "gpt-4o").texts
    retriever = of("langchain_core.runnables.passthrough")
    unclear = of("langchain_core.runnables.base", steps=[retriever, prompt, model])
    assert read_ask(unclear.ainvoke, ("Hi.",), {}) is None
