"""The worst case of an SDK's call, read from its arguments before anything is sent.

A call that names its model and its prompt by the SDKs' usual names is believed. Everything that is passed to it counts
as prompt (`operation_prompt.py`): no tokenizer makes more tokens of a text than it has bytes, in the form that the
tokenizer sees. What is stored at the vendor (an earlier answer, a file, a cache), what its own tools may find, and
anything that is not text counts as all that the model can read at once. An answer without a bound counts as the longest
that the model writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache, partial
from typing import NamedTuple, cast

from koo.ai.model_price import ModelPrice
from koo.ai.operation_prompt import Reading, fields_of, is_given, read_prompt
from koo.ai.pricing import SEARCHES_MAX
from koo.ai.providers.transport import FRAMING_TOKENS, bound_text
from koo.ai.usage_names import get, items, module_of
from koo.ai.usage_price import TIERS
from koo.policies.money import EXACT

SDKS = ("openai", "anthropic", "google", "perplexity", "groq", "cerebras", "together", "mistralai")
WRAPPERS = ("langchain", "llama_index")
"""Libraries whose model objects know model and longest answer themselves."""
PLAIN_STEPS = ("langchain_core.prompts", "langchain_core.output_parsers")
"""Steps of a chain whose texts are all that they add."""
FREE_ACTS = frozenset({
    "cancel", "compute_tokens", "content", "count_tokens", "delete", "get", "input_items", "list", "retrieve", "update",
    "upload",
})  # fmt: skip
"""Acts of an SDK's client that no vendor bills."""
FREE_OWNERS = ("Moderations", "Files")

PROMPTS = ("messages", "input", "contents", "prompt", "content", "file")
TOKENS = (
    "max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens", "max_tokens_to_sample",
)  # fmt: skip
ANSWERS = ("n", "candidate_count", "candidateCount", "best_of", "number_of_images")
SETTINGS = ("config", "generation_config", "generationConfig", "extra_body")
"""Arguments that contain further ones; the last wins, as it does on the wire."""
ELSEWHERE = (
    "previous_response_id", "conversation", "cached_content", "cachedContent", "container", "mcp_servers",
    "web_search_options", "plugins", "context_management",
)  # fmt: skip
"""Arguments that bring what is stored at the vendor, or what its tools find, into the prompt."""
OWN_TOOLS = re.compile(
    r"function|custom|(bash|text_editor|computer|memory)_\d+|computer_use_preview|local_shell|apply_patch"
)
"""Tools that the caller runs; the results of all others enter the prompt unseen."""
SEARCHES_ITSELF = re.compile(r"sonar|.*-(search|online|deep-research)(-|$)")
"""Models that search without being given the tool."""
GOOGLES_OWN = ("function_declarations", "functionDeclarations")

WINDOW_UNKNOWN = 1_050_000
"""The largest context of these vendors' models in November 2026, for a model that the table has no context of."""

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
"""The longest answer of a model if the call sets no bound (the vendors' model pages, November 2026)."""
LONGEST_UNKNOWN = 272_000


class Ask(NamedTuple):
    """A call's worst case by its arguments. `said`: everything passed to it; `answers`: how many it requests."""

    model: str
    said: tuple[object, ...]
    settings: Mapping[str, object]
    output_tokens_max: int
    answers: int


def is_free(operation: object) -> bool:
    """Whether it is an act of an SDK's client that no vendor bills."""
    owner = getattr(operation, "__self__", None)
    if owner is None or module_of(owner) not in SDKS:
        return False
    name = getattr(operation, "__name__", "")
    return name in FREE_ACTS or type(owner).__name__.endswith(FREE_OWNERS)


def read_ask(operation: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Ask | None:
    """What a call says of its worst case; None if it does not name its model and its prompt. Never raises."""
    with suppress(Exception):
        return _read(operation, args, kwargs)
    return None


def _read(operation: object, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Ask | None:
    for _ in range(5):
        if not isinstance(operation, partial):
            break
        args, kwargs, operation = (*operation.args, *args), {**operation.keywords, **kwargs}, operation.func
    known = _of_owner(getattr(operation, "__self__", None), kwargs)
    if known is None and args and "model" not in kwargs:
        args, kwargs = (
            (),
            inspect.signature(cast("Callable[..., object]", operation))
            .bind_partial(*args, **kwargs)
            .arguments,
        )
    said, settings = known or ([], {})
    settings = {**settings, **_settings(kwargs)}
    model = settings.get("model")
    if not isinstance(model, str) or not model or _runs_functions(settings):
        return None
    if known is None and not any(name in settings for name in PROMPTS):
        return None
    return Ask(
        model=model,
        said=(args, kwargs, said),
        settings=settings,
        output_tokens_max=max(_numbers(settings, TOKENS), default=longest_answer(model)),
        answers=max([1, *_numbers(settings, ANSWERS)]),
    )


def _settings(kwargs: Mapping[str, object]) -> dict[str, object]:
    """The arguments and those inside them, without what is not given."""
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
"""What an object that knows its model says beside a call's arguments, and its settings."""


def _of_owner(owner: object, kwargs: Mapping[str, object]) -> Known | None:
    """The settings of an object that knows its model itself; None for any other."""
    package = module_of(owner)
    if package.startswith(WRAPPERS):
        return _of_wrapper(owner)
    return _of_google(owner, kwargs) if package == "google" else None


def _of_wrapper(owner: object) -> Known:
    """A model object of LangChain or LlamaIndex, and what is bound to it; or a chain (`prompt | model | parser`).

    A chain's step of another kind may bring anything into the prompt: then no model is assumed.
    """
    steps = items(get(owner, "steps"))
    said = [one for one in steps if type(one).__module__.startswith(PLAIN_STEPS)]
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
    """A chat of google-genai, or a model or a chat of the library before it."""
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
    """Whether google-genai calls the caller's functions itself, and so asks several times, and reports the last."""
    afc = settings.get("automatic_function_calling")
    if get(afc, "disable"):
        return False
    config = settings.get("config")
    return config is not None and any(callable(tool) for tool in items(get(config, "tools")))


@lru_cache(1024)
def longest_answer(model: str) -> int:
    """The most tokens that a model writes without a bound."""
    name = model.rpartition("/")[2].lower()
    return next((tokens for pattern, tokens in LONGEST if pattern.match(name)), LONGEST_UNKNOWN)


# ── the worst case ────────────────────────────────────────────────────────────────────────────────────────────────────


class Bound(NamedTuple):
    """The most that a call can cost, and the most tokens that it can read and write."""

    usd: Decimal
    read: int
    written: int = 0


def bound_of(ask: Ask, reading: Reading, price: ModelPrice, window: Callable[[], int | None]) -> Bound:
    """Never less than the bill of a call; `window` says how many tokens its model reads at once, if that is known."""
    has_tools = _has_open_tools(ask.settings) or SEARCHES_ITSELF.match(ask.model) is not None
    read = FRAMING_TOKENS + reading.tokens + sum(map(bound_text, reading.texts))
    if reading.is_open or has_tools:
        read = max(read, window() or WINDOW_UNKNOWN)
    written = ask.output_tokens_max * ask.answers
    if is_given(prediction := ask.settings.get("prediction")):
        written += sum(map(bound_text, read_prompt(prediction, ask.model).texts))
    more, cost = price.more_usd, price.bound_usd(read, written)
    if more:
        dearer = [more[name] for name in more if name.startswith("output_")]
        cost = EXACT.fma(written, max(dearer, default=Decimal(0)), cost)
        dearer = [more[name] for name in more if name.startswith("input_") and reading.has_media]
        dearer += [more[name] for name in more if name == "cache_write_1h" and reading.keeps_1h]
        cost = EXACT.fma(read, max(dearer, default=Decimal(0)), cost)
        searches = [more[name] for name in more if name.endswith("_searches") and has_tools]
        cost = EXACT.fma(SEARCHES_MAX, max(searches, default=Decimal(0)), cost)
    tiers = [
        TIERS[one] for name in ("service_tier", "speed") if (one := str(ask.settings.get(name))) in TIERS
    ]
    return Bound(EXACT.multiply(cost, max(tiers)) if tiers else cost, read, written)


def _has_open_tools(settings: Mapping[str, object]) -> bool:
    """Whether the vendor runs a tool itself, or adds what is stored there."""
    if any(name in settings for name in ELSEWHERE) or isinstance(settings.get("prompt"), Mapping):
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
