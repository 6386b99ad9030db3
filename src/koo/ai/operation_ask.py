"""The most that an SDK's call can cost, read from its arguments before anything is sent.

A call that passes its model and its prompt under the SDKs' usual names is taken at its word. Everything that is passed
counts as prompt (`operation_prompt.py`), at one token per byte: no tokenizer produces more tokens than a text has
bytes.

Some input has a length that the arguments do not show: what is stored at the vendor (an earlier answer, a file, a
cache), the results of the vendor's own tools, and anything that is not text. A call with such input counts as reading
the model's whole context window. A call that does not limit its answer counts as writing the model's longest answer.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache, partial
from typing import NamedTuple, cast

from koo.ai.model_price import TIERS, ModelPrice, factor_of, tier_of
from koo.ai.operation_prompt import Reading, fields_of, is_given, read_prompt
from koo.ai.pricing import SEARCHES_MAX
from koo.ai.providers.transport import FRAMING_TOKENS, bound_text
from koo.ai.usage_names import get, items, module_of
from koo.policies.money import EXACT

SDKS = ("openai", "anthropic", "google", "perplexity", "groq", "cerebras", "together", "mistralai")
WRAPPERS = ("langchain", "llama_index")
"""Libraries whose objects contain the model's name and the limit on the answer's length."""
PLAIN_STEPS = ("langchain_core.prompts", "langchain_core.output_parsers")
"""Steps of a chain that add nothing to the prompt except their own texts."""
FREE_ACTS = frozenset({
    "cancel", "compute_tokens", "content", "count_tokens", "delete", "get", "input_items", "list", "retrieve", "update",
    "upload",
})  # fmt: skip
"""Methods of an SDK's client that no vendor bills."""
LOOP = "tool_runner"
"""The method of anthropic's SDK that sends a request for each turn of a conversation, so no worst case is known."""
FREE_OWNERS = ("Moderations", "Files")

PROMPTS = ("messages", "input", "contents", "prompt", "content", "file")
TOKENS = (
    "max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens", "max_tokens_to_sample",
)  # fmt: skip
ANSWERS = ("n", "candidate_count", "candidateCount", "best_of", "number_of_images")
SETTINGS = ("config", "generation_config", "generationConfig", "extra_body")
"""Arguments that contain further arguments. If one is given twice, the last wins, as it does on the wire."""
ELSEWHERE = (
    "previous_response_id", "conversation", "cached_content", "cachedContent", "container", "mcp_servers",
    "web_search_options", "plugins", "context_management",
)  # fmt: skip
"""Arguments that add to the prompt what is stored at the vendor, or what the vendor's tools find."""
OWN_TOOLS = re.compile(
    r"function|custom|(bash|text_editor|computer|memory)_\d+|computer_use_preview|local_shell|apply_patch"
)
"""Tools that the caller runs. The vendor runs all others, and their results enter the prompt without being shown."""
SEARCHES_ITSELF = re.compile(r"sonar|.*-(search|online|deep-research)(-|$)")
"""Models that search the web even if the call does not offer them the tool."""
GOOGLES_OWN = ("function_declarations", "functionDeclarations")

WINDOW_UNKNOWN = 1_050_000
"""The largest context window of these vendors' models in November 2026. It stands in for a model whose window is not in
the price table."""

LONGEST: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), tokens)
    for pattern, tokens in (
        (r"gpt-4\.1", 32_768),
        (r"(chat)?gpt-4o|gpt-5(\.\d)?-chat|gpt-audio|gpt-realtime", 16_384),
        (r"gpt-4-32k", 32_768),
        (r"gpt-4-(turbo|vision|0125|1106)|gpt-3\.5", 4096),
        (r"gpt-4(-|$)", 8192),
        (r"(gpt|chatgpt)-image|gpt-5(\.\d)?-image", 32_768),
        (r"o1-preview", 32_768),
        (r"o1-mini", 65_536),
        (r"o[134](-|$)", 100_000),
        (r"gpt-5-pro", 272_000),
        (r"gpt-[56]", 128_000),
        (r"gemini-(1|2\.0|pro|flash)", 8192),
        (r"gemini-", 65_536),
        (r"claude-3-[0-5]|claude-3-(opus|sonnet|haiku)", 8192),
        (r"claude-", 128_000),
    )
)
"""The longest answer of each model, for calls without a limit (the vendors' model pages, November 2026)."""
LONGEST_UNKNOWN = 272_000
"""The largest of these, for a model whose name matches none of them."""


class Ask(NamedTuple):
    """What a call's arguments request. `said` is everything passed to it, `answers` how many answers it requests."""

    model: str
    said: tuple[object, ...]
    settings: Mapping[str, object]
    output_tokens_max: int
    answers: int


def is_free(operation: object) -> bool:
    """Whether the operation is a method of an SDK's client that no vendor bills."""
    owner = getattr(operation, "__self__", None)
    if owner is None or module_of(owner) not in SDKS:
        return False
    name = getattr(operation, "__name__", "")
    return name in FREE_ACTS or type(owner).__name__.endswith(FREE_OWNERS)


def read_ask(operation: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Ask | None:
    """Read what a call requests; None if its arguments name no model or no prompt. Never raises."""
    with suppress(Exception):
        return _read(operation, args, kwargs)
    return None


def _read(operation: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Ask | None:
    # A partial's arguments count as if they were passed: in the same order, and overridden by those of the call.
    for _ in range(5):
        if not isinstance(operation, partial):
            break
        args, kwargs, operation = (*operation.args, *args), {**operation.keywords, **kwargs}, operation.func
    # SDKs' methods take keywords only. If the model is not among them, the arguments may be positional ones of a
    # library's own function; its signature has their names.
    known = _of_owner(getattr(operation, "__self__", None), kwargs)
    if known is None and args and "model" not in kwargs:
        args, kwargs = (
            (),
            inspect.signature(cast("Callable[..., object]", operation))
            .bind_partial(*args, **kwargs)
            .arguments,
        )
    # What the call passes overrides what the object stores, as in the libraries themselves.
    said, settings = known or ([], {})
    settings = {**settings, **_settings(kwargs)}
    model = settings.get("model")
    if not isinstance(model, str) or not model or _runs_functions(settings):
        return None
    if getattr(operation, "__name__", "") == LOOP or "fallbacks" in settings:
        return None
    if known is None and not any(name in settings for name in PROMPTS):
        return None
    return Ask(
        model=model,
        # Everything counts as prompt, even arguments without a known name. A list of names that reach the prompt would
        # always miss the one that a vendor added last month, and the hold would be too small.
        said=(args, kwargs, said),
        settings=settings,
        # If a call sets two of these names, the larger one counts, because vendors differ in which one they obey.
        output_tokens_max=max(_numbers(settings, TOKENS), default=longest_answer(model)),
        answers=max([1, *_numbers(settings, ANSWERS)]),
    )


def _settings(kwargs: Mapping[str, object]) -> dict[str, object]:
    """The arguments and those nested in them, without the ones that are not given."""
    found = {name: value for name, value in kwargs.items() if is_given(value)}
    for name in SETTINGS:
        inner = found.get(name)
        if inner is not None:
            found.update((key, value) for key, value in fields_of(inner) if is_given(value))
    return found


def _numbers(settings: Mapping[str, object], names: tuple[str, ...]) -> list[int]:
    found = (settings.get(name) for name in names)
    return [value for value in found if isinstance(value, int) and not isinstance(value, bool) and value >= 0]


Known = tuple[list[object], dict[str, object]]
"""What an object that stores its model adds to a call: the texts of its prompt, and its settings."""


def _of_owner(owner: object, kwargs: Mapping[str, object]) -> Known | None:
    """The texts and settings of an object that stores its model; None for any other object."""
    package = module_of(owner)
    if package.startswith(WRAPPERS):
        return _of_wrapper(owner)
    return _of_google(owner, kwargs) if package == "google" else None


def _of_wrapper(owner: object) -> Known:
    """Read a model object of LangChain or LlamaIndex with what is bound to it, or a chain (`prompt | model | parser`).

    A step of any other kind may add anything to the prompt. A chain that has one is treated as a call without a model.
    """
    steps = items(get(owner, "steps"))
    said = [one for one in steps if type(one).__module__.startswith(PLAIN_STEPS)]
    # All steps except one must be plain: that one is the model. With a retriever or a second model in the chain,
    # neither the prompt's length nor the number of calls is known.
    asking = [one for one in steps if not type(one).__module__.startswith(PLAIN_STEPS)]
    owner = asking[0] if len(asking) == 1 else owner
    bound = get(owner, "bound")
    model = owner if bound is None else bound
    found = {name: value for name in (*TOKENS, *ANSWERS) if is_given(value := get(model, name))}
    found["model"] = get(model, "model_name") or get(model, "model")
    more = get(owner, "kwargs") if bound is not None else None
    if isinstance(more, Mapping):
        found.update(_settings(more))
        said.append(more)
    return said, found


def _of_google(owner: object, kwargs: Mapping[str, object]) -> Known | None:
    """Read a chat of google-genai, or a model or chat of google-generativeai, the library that preceded it."""
    inner = get(owner, "model")
    names = [get(one, name) for one in (owner, inner) for name in ("_model", "model_name", "_model_name")]
    model = next((name for name in names if isinstance(name, str)), None)
    if model is None:
        return None
    config = get(owner, "_config") or get(owner, "_generation_config") or get(inner, "_generation_config")
    given = {} if config is None or is_given(kwargs.get("config")) else {"config": config}
    more = ("_curated_history", "history", "_system_instruction", "_tools")
    return [given, *(get(one, name) for one in (owner, inner) for name in more)], {
        **_settings(given),
        "model": model,
    }


def _runs_functions(settings: Mapping[str, object]) -> bool:
    """Whether google-genai will call the caller's functions itself.

    It then sends several requests for one call and reports only the last one's usage, so no worst case is known.
    """
    afc = settings.get("automatic_function_calling")
    if get(afc, "disable"):
        return False
    config = settings.get("config")
    return config is not None and any(callable(tool) for tool in items(get(config, "tools")))


@lru_cache(1024)
def longest_answer(model: str) -> int:
    """The most tokens that a model writes if a call sets no limit."""
    name = model.rpartition("/")[2].lower()
    return next((tokens for pattern, tokens in LONGEST if pattern.match(name)), LONGEST_UNKNOWN)


# ── the worst case ────────────────────────────────────────────────────────────────────────────────────────────────────


class Bound(NamedTuple):
    """The most that a call can cost, and the most tokens that it can read and write."""

    usd: Decimal
    read: int
    written: int = 0


def bound_of(ask: Ask, reading: Reading, price: ModelPrice, window: Callable[[], int | None]) -> Bound:
    """The worst case of a call: its bill is never higher. `window` returns the model's context window, if known."""
    has_tools = _has_open_tools(ask.settings) or SEARCHES_ITSELF.match(ask.model) is not None
    read = FRAMING_TOKENS + reading.tokens + sum(map(bound_text, reading.texts))
    # Input of unknown length cannot exceed the context window. `max` is needed because the texts alone may exceed it:
    # the vendor then refuses the call, but the money is held before that is known.
    if reading.is_open or has_tools:
        read = max(read, window() or WINDOW_UNKNOWN)
    written = ask.output_tokens_max * ask.answers
    # OpenAI bills rejected tokens of a predicted output as if the model had written them, in addition to its answer.
    if is_given(prediction := ask.settings.get("prediction")):
        written += sum(map(bound_text, read_prompt(prediction, ask.model).texts))
    # Audio, images, one-hour caching and searches cost more than their token class. It is not known how many of the
    # tokens will be of such a kind, so all of them are charged at the most expensive kind that this call can use.
    more, cost = price.more_usd, price.bound_usd(read, written)
    if more:
        dearer = [more[name] for name in more if name.startswith("output_")]
        cost = EXACT.fma(written, max(dearer, default=Decimal(0)), cost)
        dearer = [more[name] for name in more if name.startswith("input_") and reading.has_media]
        dearer += [more[name] for name in more if name == "cache_write_1h" and reading.keeps_1h]
        cost = EXACT.fma(read, max(dearer, default=Decimal(0)), cost)
        searches = [more[name] for name in more if name.endswith("_searches") and has_tools]
        cost = EXACT.fma(SEARCHES_MAX, max(searches, default=Decimal(0)), cost)
    tiers = [one for name in ("service_tier", "speed") if (one := str(ask.settings.get(name))) in TIERS]
    tier = tier_of(max(tiers, key=factor_of, default=None), ask.settings.get("inference_geo"))
    return Bound(cost if tier is None else EXACT.multiply(cost, factor_of(tier)), read, written)


def _has_open_tools(settings: Mapping[str, object]) -> bool:
    """Whether the vendor runs a tool itself, or adds stored content to the prompt."""
    if any(name in settings for name in ELSEWHERE) or isinstance(settings.get("prompt"), Mapping):
        return True
    if get(settings.get("thread"), "type") == "continue":
        return True
    return any(not _is_own(tool) for tool in items(settings.get("tools")))


def _is_own(tool: object) -> bool:
    kind = get(tool, "type")
    if isinstance(kind, str):
        return OWN_TOOLS.match(kind) is not None
    if callable(tool) or get(tool, "input_schema") is not None:
        return True
    given = [name for name, value in fields_of(tool) if is_given(value)]
    return all(name in (*GOOGLES_OWN, "name", "description", "parameters", "function") for name in given)
