"""Reads usage and cost from the result of any SDK: `read_report`, and `Meter` for streams.

No SDK is imported. A result is read by the names that vendors and wrappers use (`usage_names.py`), whether it is a
mapping, a pydantic object or anything else. Nothing here raises: a result that was paid for must not be lost because
its usage has an unexpected form.

`Meter` receives each piece of a streamed answer. Vendors send running totals, so counts grow and never shrink.
LangChain's pieces report only what is new, so their counts are added up. Only the report that the vendor sends when it
has finished is complete: a stream that is left earlier has reported less than its bill.

One stream may contain several answers: an agent's loop yields a message for each of its turns. The vendor's id tells
them apart, and each is billed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import reduce
from typing import NamedTuple

from koo.ai.model_price import tier_of
from koo.ai.operation_prompt import fields_of
from koo.ai.providers.loose import NOT_JSON, loads
from koo.ai.providers.transport import bound_text
from koo.ai.providers.usage import is_amount, with_upstream
from koo.ai.types import Usage
from koo.ai.usage_names import (
    Path,
    at,
    count,
    get,
    items,
    module_of,
    names_of,
    says_something,
    units_of,
    usage_of,
)
from koo.policies.money import EXACT

NO_UNITS: Mapping[str, int] = {}
PLACES = ("usage", "usage_metadata", "usageMetadata")
"""The attributes of a result that may contain its usage."""
INSIDE = (
    "message", "response", "_raw_response", "raw", "snapshot", "chunk", "context_wrapper", "http_response"
)  # fmt: skip
"""Attributes in which streams and wrappers store the vendor's own answer: Anthropic's `message_start`, the last events
of Responses, instructor, LlamaIndex, the stream helpers of openai's SDK, openai-agents, raw responses."""
MODELS: tuple[Path, ...] = (
    ("model",), ("model_version",), ("modelVersion",), ("model_name",), ("response_metadata", "model_name"),
    ("response", "model_name"),
)  # fmt: skip
ORDINARY = ("standard", "default", "auto")
EVENTS = ("message_", "content_block_", "ping", "response.", "error")
"""The first part of the event types of Anthropic and Responses."""
DEPTH_MAX = 3
MEMBERS_MAX = 10_000
"""The most members of a list that are read; a longer list is not a batch of paid calls."""


class Report(NamedTuple):
    """The usage and cost in a result, or in a piece of a streamed one.

    `usage` is by disjoint classes. `units` are counts with a separate price, keyed by the price table's names
    ("cache_write_1h", "output_audio", "web_searches", ...). `cost_usd` is the cost that the provider reports, `tier`
    the service tier or speed of the answer. `is_whole`: nothing that is billed is missing. `is_last`: the vendor will
    send no further report. `adds`: the counts are only those since the previous piece.
    """

    usage: Usage
    model: str | None = None
    cost_usd: Decimal | None = None
    tier: str | None = None
    units: Mapping[str, int] = NO_UNITS
    is_whole: bool = True
    is_last: bool = True
    adds: bool = False
    answer_id: str | None = None


class Meter:
    """Combines what the pieces of a stream report about its bill. A whole answer is one piece."""

    __slots__ = ("_by_id", "_current")

    def __init__(self) -> None:
        self._by_id: dict[str | None, Report] = {}
        self._current: str | None = None

    @property
    def reports(self) -> list[Report]:
        """One report for each answer, in the order of their first pieces."""
        return list(self._by_id.values())

    def take(self, piece: object) -> None:
        """Read one piece. Most pieces report nothing."""
        found = read_report(piece)
        if found is None:
            return
        # A piece without an id continues the current answer. If that has no id yet, the first id that comes is its own.
        answer_id = found.answer_id or self._current
        before = self._by_id.pop(None, None) or self._by_id.get(answer_id)
        # Reports are combined, because the last one alone may be incomplete: Anthropic counts the input in its first
        # event and the output in its last one.
        self._by_id[answer_id] = found if before is None else _joined(before, found)
        self._current = answer_id


def read_report(told: object) -> Report | None:
    """Read the usage and cost in a result, a piece of one, or a usage object; None if it has neither. Never raises.

    A list or a tuple is a batch: its members' counts are added up.
    """
    with suppress(Exception):
        if isinstance(told, (list, tuple)) and not hasattr(told, "_fields"):
            return _batch(told)
        found = _find(told, DEPTH_MAX)
        if found is not None:
            return _report(*found)
        if says_something(told):
            return _report(told, None)
    return None


# ── finding the usage ─────────────────────────────────────────────────────────────────────────────────────────────────


def _find(told: object, depth: int) -> tuple[object, object] | None:
    """The usage, and the answer that contains it."""
    if told is None or isinstance(told, (str, int, float, type)):
        return None
    # The object's own usage comes before everything nested in it. The usage of a wrapper such as pydantic-ai's result
    # covers all calls of a run; that of the answer inside covers only the last one.
    for name in PLACES:
        usage = get(told, name)
        # In some versions of pydantic-ai it is a method; in others a property, whose value warns if it is called.
        if callable(usage) and module_of(told) == "pydantic_ai" and not says_something(usage):
            usage = _called(usage)
        if usage is not None and says_something(usage):
            return usage, told
    # A raw HTTP response has its usage only in the body. Depth 0, because a vendor's JSON document has no wrappers.
    body = told if isinstance(told, bytes) else get(told, "content")
    if isinstance(body, bytes):
        document = loads(body)
        return None if document is NOT_JSON else _find(document, 0)
    for name in INSIDE if depth else ():
        inner = get(told, name)
        found = None if inner is None or inner is told else _find(inner, depth - 1)
        if found is not None:
            return found
    return None


def _called(method: Callable[[], object]) -> object:
    """The result of pydantic-ai's method `usage`."""
    with suppress(Exception):
        return method()
    return None


# ── the content of a piece ────────────────────────────────────────────────────────────────────────────────────────────


def tokens_in(piece: object) -> int | None:
    """The most tokens in a piece of a stream, including reasoning and tool calls; None if its form is unknown."""
    said = _said_in(piece)
    return None if said is None else 1 + sum(map(bound_text, _texts(said, DEPTH_MAX * 2)))


def _texts(said: object, depth: int) -> Iterator[str]:
    if isinstance(said, str):
        yield said
    elif said is not None and depth and not isinstance(said, (int, float)):
        inner = said if isinstance(said, list) else [value for _, value in fields_of(said)]
        for one in inner:
            yield from _texts(one, depth - 1)


def _said_in(piece: object) -> list[object] | None:
    if isinstance(piece, str):
        return [piece]
    if get(piece, "object") == "chat.completion.chunk":
        return [get(choice, "delta") for choice in items(get(piece, "choices"))]
    kind = get(piece, "type")
    if isinstance(kind, str) and kind.startswith(EVENTS):
        return [get(piece, "delta"), get(piece, "content_block")]
    if module_of(piece) == "google":
        return [get(one, "content") for one in items(get(piece, "candidates"))]
    if module_of(piece).startswith("langchain"):
        return [get(piece, "content"), get(piece, "tool_call_chunks"), get(piece, "additional_kwargs")]
    return None


# ── the report ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _report(told: object, answer: object) -> Report:
    usage, times = usage_of(told), _times_asked(answer)
    adds = module_of(answer).startswith("langchain")
    return Report(
        # google-genai may make several requests for one call, and reports the usage of the last one. That has read the
        # most, so all of them together cost at most as many times its cost. The sum is marked as incomplete.
        usage=usage if times == 1 else added_up([usage] * times),
        model=_model_of(answer),
        cost_usd=_cost_of(told),
        tier=_tier_of(told, answer),
        units=NO_UNITS if isinstance(told, Usage) else units_of(told, answer),
        is_whole=times == 1 and _is_whole(usage, told),
        is_last=_is_last(answer),
        adds=adds,
        answer_id=None if adds else _id_of(answer),
    )


def _times_asked(answer: object) -> int:
    """How many requests google-genai made for an answer. Its usage is that of the last request, the longest one."""
    turns = items(get(answer, "automatic_function_calling_history"))
    return 1 + sum(get(turn, "role") == "model" for turn in turns)


def _is_whole(usage: Usage, told: object) -> bool:
    # Input without output usually means that the report came too early: a call that read something wrote something. If
    # it were booked as complete, the more expensive half would be missing.
    if usage.output_tokens or not usage.read_tokens:
        return usage.read_tokens > 0 and not usage.estimated
    # Embeddings have no output: their usage has a total and no output count.
    names = names_of(told)
    return get(told, names.written) is None and bool(count(told, (names.total,)))


def _model_of(answer: object) -> str | None:
    for path in MODELS:
        model = at(answer, path)
        if isinstance(model, str) and model:
            return model
    return None


def _cost_of(told: object) -> Decimal | None:
    """The cost, which OpenRouter and Perplexity report."""
    cost = get(told, "cost")
    if not isinstance(cost, (int, float, str, Decimal)):
        cost = get(cost, "total_cost") if get(cost, "currency") in (None, "USD") else None
    amount, is_own_key = _amount(cost), get(told, "is_byok")
    if amount is None:
        return None
    upstream = _amount(at(told, ("cost_details", "upstream_inference_cost")))
    return with_upstream(amount, is_own_key if isinstance(is_own_key, bool) else None, upstream)


def _amount(cost: object) -> Decimal | None:
    if not isinstance(cost, (int, float, str, Decimal)) or isinstance(cost, bool):
        return None
    with suppress(ArithmeticError):
        amount = Decimal(str(cost))
        return amount if is_amount(amount) else None
    return None


def _tier_of(told: object, answer: object) -> str | None:
    for thing, name in ((told, "speed"), (told, "service_tier"), (answer, "service_tier")):
        tier = get(thing, name)
        if isinstance(tier, str) and tier not in ORDINARY:
            return tier_of(tier, get(told, "inference_geo"))
    return tier_of(None, get(told, "inference_geo"))


def _is_last(answer: object) -> bool:
    """Whether the vendor has finished. For a whole answer this is always true."""
    # A piece of a stream and a whole answer can have the same class and the same names; only the reason for stopping
    # tells them apart. In chat completions the last piece has the usage and no choices at all.
    if get(answer, "type") == "message" and get(answer, "role") == "assistant":
        return get(answer, "stop_reason") is not None  # none in the first message of a stream
    if get(answer, "object") == "chat.completion.chunk":
        choices = get(answer, "choices")
        return not isinstance(choices, list) or not choices or _ends(choices)
    candidates = get(answer, "candidates")
    if isinstance(candidates, list) and candidates:
        return _ends(candidates)
    return get(answer, "status") not in ("in_progress", "queued")


def _id_of(answer: object) -> str | None:
    """The vendor's id of an answer; None if the id may be that of the piece alone."""
    # Some servers give each chunk of an answer another id. Counts are running totals, so if each chunk were taken for
    # an answer, one call would be booked many times. OpenAI's last chunk, with the usage and no choices, is safe.
    # Chunks are recognised by their choices, since some servers leave out `object` or put another name there.
    is_chunk = any(get(choice, "message") is None for choice in items(get(answer, "choices")))
    if is_chunk or (get(answer, "candidates") is not None and not _is_last(answer)):
        return None
    answer_id = get(answer, "id") or get(answer, "response_id")
    return answer_id if isinstance(answer_id, str) else None


def _ends(choices: list[object]) -> bool:
    return any(get(one, name) is not None for one in choices for name in ("finish_reason", "finishReason"))


# ── combining reports ─────────────────────────────────────────────────────────────────────────────────────────────────


def _joined(before: Report, later: Report) -> Report:
    """Combine the reports of two pieces of one answer."""
    adds = later.adds
    usage = _plus(before.usage, later.usage) if adds else before.usage.grown(later.usage)
    units = {name: _of_both(before, later, name) for name in {*before.units, *later.units}}
    costs = [cost for cost in (before.cost_usd, later.cost_usd) if cost is not None]
    return Report(
        usage=usage,
        model=later.model or before.model,
        cost_usd=max(costs, default=None),
        tier=later.tier or before.tier,
        units=units,
        is_whole=usage.read_tokens > 0 and usage.output_tokens > 0 and not usage.estimated,
        # Either one is enough: a piece after the vendor's last report must not make it incomplete again.
        is_last=before.is_last or later.is_last,
        adds=adds,
        answer_id=later.answer_id or before.answer_id,
    )


def _of_both(before: Report, later: Report, name: str) -> int:
    one, other = before.units.get(name, 0), later.units.get(name, 0)
    return one + other if later.adds else max(one, other)


def added_up(usages: Iterable[Usage]) -> Usage:
    """The tokens of several answers."""
    return reduce(_plus, usages)


def _plus(one: Usage, other: Usage) -> Usage:
    return Usage(
        input_tokens=one.input_tokens + other.input_tokens,
        cache_read_tokens=one.cache_read_tokens + other.cache_read_tokens,
        cache_write_tokens=one.cache_write_tokens + other.cache_write_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        reasoning_tokens=one.reasoning_tokens + other.reasoning_tokens,
        estimated=one.estimated or other.estimated,
    )


def _batch(members: list[object] | tuple[object, ...]) -> Report | None:
    """Add up the reports of a batch. A usage that appears in it twice counts once."""
    # instructor returns a pair: the parsed object and the completion that it was parsed from. Both lead to the same
    # usage object, so counting both would book the call twice.
    found = [one for member in members[:MEMBERS_MAX] if (one := _find(member, DEPTH_MAX)) is not None]
    reports = [_report(*one) for one in {id(one[0]): one for one in found}.values()]
    if not reports:
        return None
    total = reports[0]
    for report in reports[1:]:
        one_usd, other_usd = total.cost_usd, report.cost_usd
        total = _joined(total, report._replace(adds=True))._replace(
            # One report has one model, so all usage would be priced as that model's. If the models differ, the result
            # is marked as incomplete, and the hold is booked instead.
            is_whole=total.is_whole and report.is_whole and total.model == report.model,
            cost_usd=None if one_usd is None or other_usd is None else EXACT.add(one_usd, other_usd),
        )
    return total
