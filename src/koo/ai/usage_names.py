"""Reads the token counts of vendors and wrappers, under all their names, into koo's disjoint classes.

The vendors count in three different ways. Chat completions and Responses include cached tokens in the input count.
Anthropic and Bedrock count them separately. Google counts thoughts separately from the output. An ambiguous name is
read in the way that costs more. A count that is not a number is ignored, and a property that raises counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from koo.ai.providers.usage import Count, count_of, searches_of, usage_from
from koo.ai.types import Usage

Path = tuple[str, ...]


class Names(NamedTuple):
    """The names under which one family of APIs reports its token counts.

    `cached` and `into_cache` are included in `read`; the counts in `beside_…` are separate from it. `also_read` and
    `also_written` are added to `read` and `written`.
    """

    read: str
    written: str
    total: str
    cached: tuple[Path, ...] = ()
    into_cache: tuple[Path, ...] = ()
    reasoning: tuple[Path, ...] = ()
    beside_cached: tuple[Path, ...] = ()
    beside_into_cache: tuple[Path, ...] = ()
    also_read: str = ""
    also_written: str = ""


CHAT = Names(
    "prompt_tokens", "completion_tokens", "total_tokens",
    cached=(
        ("prompt_tokens_details", "cached_tokens"), ("cached_tokens",), ("num_cached_tokens",),
        ("prompt_cache_hit_tokens",), ("cache_read_input_tokens",),
    ),
    into_cache=(
        ("prompt_tokens_details", "cache_write_tokens"), ("prompt_tokens_details", "cache_creation_tokens"),
        ("prompt_tokens_details", "cache_creation_input_tokens"), ("cache_creation_input_tokens",),
    ),
    reasoning=(("completion_tokens_details", "reasoning_tokens"), ("reasoning_tokens",)),
)  # fmt: skip
INPUT = Names(
    "input_tokens", "output_tokens", "total_tokens",
    cached=(
        ("input_tokens_details", "cached_tokens"), ("input_tokens_details", "cache_read_input_tokens"),
        ("input_token_details", "cache_read"),
    ),
    into_cache=(
        ("input_tokens_details", "cache_write_tokens"), ("input_tokens_details", "cache_creation_input_tokens"),
        ("input_token_details", "cache_creation"),
    ),
    reasoning=(
        ("output_tokens_details", "reasoning_tokens"), ("output_tokens_details", "thinking_tokens"),
        ("output_token_details", "reasoning"), ("reasoning_tokens",),
    ),
    beside_cached=(("cache_read_input_tokens",), ("cache_read_tokens",)),
    beside_into_cache=(("cache_creation_input_tokens",), ("cache_write_tokens",)),
)  # fmt: skip
GOOGLE = Names(
    "prompt_token_count", "candidates_token_count", "total_token_count",
    cached=(("cached_content_token_count",),), reasoning=(("thoughts_token_count",),),
    also_read="tool_use_prompt_token_count", also_written="thoughts_token_count",
)  # fmt: skip
GOOGLE_JSON = Names(
    "promptTokenCount", "candidatesTokenCount", "totalTokenCount",
    cached=(("cachedContentTokenCount",),), reasoning=(("thoughtsTokenCount",),),
    also_read="toolUsePromptTokenCount", also_written="thoughtsTokenCount",
)  # fmt: skip
BEDROCK = Names(
    "inputTokens", "outputTokens", "totalTokens",
    beside_cached=(("cacheReadInputTokens",),), beside_into_cache=(("cacheWriteInputTokens",),),
)  # fmt: skip
FAMILIES = (CHAT, INPUT, GOOGLE, GOOGLE_JSON, BEDROCK)
FIRST_NAMES = tuple(name for one in FAMILIES for name in (one.read, one.written))
COUNTED_IN = ("pydantic_ai", "genai_prices")
"""Packages whose usage has the same names as koo's, but includes cached tokens in the input count."""

UNITS: dict[str, tuple[Path, ...]] = {
    "cache_write_1h": (
        ("cache_creation", "ephemeral_1h_input_tokens"), ("cache_write_1h_tokens",),
        ("input_token_details", "ephemeral_1h_input_tokens"),
    ),
    "input_audio": (
        ("prompt_tokens_details", "audio_tokens"), ("input_tokens_details", "audio_tokens"),
        ("input_token_details", "audio"), ("input_audio_tokens",),
    ),
    "output_audio": (
        ("completion_tokens_details", "audio_tokens"), ("output_tokens_details", "audio_tokens"),
        ("output_token_details", "audio"), ("output_audio_tokens",),
    ),
    "input_image": (("prompt_tokens_details", "image_tokens"), ("input_tokens_details", "image_tokens")),
    "output_image": (("output_tokens_details", "image_tokens"),),
    "web_searches": (("server_tool_use", "web_search_requests"), ("num_search_queries",)),
}  # fmt: skip
"""Counts with a separate price on top of their class's, keyed by the price table's names."""
MODALITIES: dict[str, tuple[str, ...]] = {
    "input": ("prompt_tokens_details", "promptTokensDetails", "tool_use_prompt_tokens_details"),
    "output": ("candidates_tokens_details", "candidatesTokensDetails"),
}
"""The attributes in which Google lists its tokens by modality."""
GROUNDINGS = (("grounding_metadata", "web_search_queries"), ("groundingMetadata", "webSearchQueries"))
SEARCHES = {"web_search_call": "web_searches", "file_search_call": "storage_searches"}
"""The searches that an answer of the Responses API lists in its output."""


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def says_something(usage: object) -> bool:
    """Whether the usage has a count under any of the known names."""
    return isinstance(usage, Usage) or any(get(usage, name) is not None for name in FIRST_NAMES)


def names_of(told: object) -> Names:
    """The family of names that a usage belongs to."""
    for one in FAMILIES:
        if get(told, one.read) is not None:
            return one
    return next((one for one in FAMILIES if get(told, one.written) is not None), CHAT)


def usage_of(told: object) -> Usage:
    """The tokens in any vendor's usage, by disjoint class. A count that cannot be read is 0."""
    if isinstance(told, Usage):
        return told
    names = names_of(told)
    read, written, total = (count(told, (name,)) for name in names[:3])
    read = _sum(read, count(told, (names.also_read,)))
    written = _sum(written, count(told, (names.also_written,)))
    cached, into_cache = _counts(told, names.cached), _counts(told, names.into_cache)
    beside = (_most(told, names.beside_cached), _most(told, names.beside_into_cache))
    # The same name, `cache_read_tokens`, means two things. In most usages it is separate from the input; in these
    # packages it is part of it. If it is read in the wrong way, cached tokens would be billed twice or not at all.
    if module_of(told) in COUNTED_IN:
        cached, into_cache, beside = (*cached, beside[0]), (*into_cache, beside[1]), (0, 0)
    elif names is INPUT:
        beside = (beside[0], max(beside[1], _into_cache_by_age(told)))
    # `usage_from` treats the part of the total that exceeds the input as output that was not reported. A total that
    # includes separate cache tokens exceeds it by those, and they would be billed as output.
    if any(beside):
        total = None
    usage = usage_from(
        read=read, written=written, total=total, cached=cached, into_cache=into_cache,
        reasoning=_counts(told, names.reasoning),
    )  # fmt: skip
    return _with_cache(usage, *beside) if any(beside) else usage


def _with_cache(usage: Usage, cached: int, into_cache: int) -> Usage:
    return Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=max(usage.cache_read_tokens, cached),
        cache_write_tokens=max(usage.cache_write_tokens, into_cache),
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _into_cache_by_age(told: object) -> int:
    """The tokens written to Anthropic's cache, added up from its counts by lifetime (5 minutes, 1 hour)."""
    return sum(
        count_of(count(told, ("cache_creation", name)))
        for name in ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
    )


# ── counts with a separate price ──────────────────────────────────────────────────────────────────────────────────────


def units_of(usage: object, answer: object = None) -> dict[str, int]:
    """Counts with a separate price, keyed by the price table's names."""
    found = {name: most for name, paths in UNITS.items() if (most := _most(usage, paths))}
    for side, places in MODALITIES.items():
        for place in places:
            for kind, tokens in _modalities(get(usage, place)):
                name = f"{side}_{kind}"
                found[name] = found.get(name, 0) + tokens
    for item in items(get(answer, "output")):
        name = SEARCHES.get(str(get(item, "type")), "")
        if name:
            found[name] = found.get(name, 0) + 1
    for one in items(get(answer, "candidates")):
        for grounding, queries in GROUNDINGS:
            model = get(answer, "model_version") or get(answer, "modelVersion")
            if searches := searches_of(items(at(one, (grounding, queries))), str(model)):
                found["web_searches"] = found.get("web_searches", 0) + searches
    return found


def _modalities(details: object) -> Iterator[tuple[str, int]]:
    for one in items(details):
        kind = get(one, "modality")
        word = str(getattr(kind, "value", kind)).lower()
        if word in ("audio", "image", "video"):
            yield word, max(count_of(count(one, ("token_count",))), count_of(count(one, ("tokenCount",))))


# ── reading any object ────────────────────────────────────────────────────────────────────────────────────────────────


def get(thing: object, name: str) -> object:
    """A mapping's value or an object's attribute; None if it is missing or reading it raises."""
    kind: Any = type(thing)  # mypy does not treat a class as hashable
    try:
        # A missing name on a pydantic model raises an AttributeError with a long message. Most names that are tried
        # here are missing, and building those messages would take longer than everything else.
        if _is_plain_model(kind, name):
            if name in thing.__dict__:
                return thing.__dict__[name]
            more = getattr(thing, "__pydantic_extra__", None)
            return None if more is None else more.get(name)
        if isinstance(thing, Mapping):
            return thing.get(name)
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - a property of an application's own class
        return None


@lru_cache(4096)
def _is_plain_model(kind: Any, name: str) -> bool:
    """Whether `kind` is a pydantic class in which this name can only be a field, not a property."""
    return "__pydantic_fields__" in kind.__dict__ and not any(name in vars(base) for base in kind.__mro__)


def at(thing: object, path: Path) -> object:
    """The value at that path, or None."""
    for name in path:
        if thing is None:
            return None
        thing = get(thing, name)
    return thing


def module_of(thing: object) -> str:
    """The top-level package of an object's class."""
    return type(thing).__module__.partition(".")[0]


def count(told: object, path: Path) -> Count:
    """The number at that path, which may be written as text; None for anything else."""
    value = at(told, path) if path[0] else None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, (str, Decimal)):
        with suppress(ValueError, ArithmeticError):
            return float(value)
    return None


def _counts(told: object, paths: tuple[Path, ...]) -> tuple[Count, ...]:
    return tuple([count(told, path) for path in paths])


def _most(told: object, paths: tuple[Path, ...]) -> int:
    return max((count_of(one) for one in _counts(told, paths)), default=0)


def _sum(one: Count, more: Count) -> Count:
    return one if not count_of(more) else count_of(one) + count_of(more)


def items(value: object) -> list[object]:
    """The items of a list or a tuple; an empty list for anything else."""
    return list(value) if isinstance(value, (list, tuple)) else []
