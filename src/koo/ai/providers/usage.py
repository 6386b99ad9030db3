"""Tokens by class from what vendors report under many different names.

One rule decides in all cases of doubt: the computed cost must not be below the bill. If several fields name the same
thing, the largest number counts. Cache tokens are part of the prompt's count, unless they exceed it: then the vendor
counts them separately. Whatever the total has beyond the prompt is output, and so is reasoning that exceeds the
reported output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

import msgspec

from koo.ai.types import Usage
from koo.policies.money import AMOUNT_PICO_MAX, EXACT, from_pico

Count = int | float | None
"""Some vendors write 12.0, and promised fields may be missing."""
COUNT_MAX = 10**9
"""No call has a billion tokens. A larger count is a fault, most often -1 as an unsigned number (4294967295)."""


USD_MAX = from_pico(AMOUNT_PICO_MAX)


class Cost(msgspec.Struct):
    """A reported cost with its parts, as Perplexity sends it."""

    total_cost: Decimal | None = None
    currency: str = "USD"


class CostDetails(msgspec.Struct):
    """OpenRouter's details of a cost."""

    upstream_inference_cost: Decimal | None = None


class CostFields(msgspec.Struct):
    """The fields of a usage that report the cost of the call."""

    cost: Decimal | Cost | None = None
    is_byok: bool | None = None
    cost_details: CostDetails | None = None


class ToolUse(msgspec.Struct):
    """The runs of Anthropic's own tools. Gateways in front of it report them too."""

    web_search_requests: Count = None


def reported_usd(usage: CostFields | None) -> Decimal | None:
    """The cost that the provider reports, if it does."""
    if usage is None or usage.cost is None:
        return None
    cost = usage.cost
    if isinstance(cost, Cost):
        # A cost in another currency cannot be booked; the price table is used in its place.
        if cost.total_cost is None or cost.currency != "USD":
            return None
        cost = cost.total_cost
    if not is_amount(cost):
        return None
    details = usage.cost_details
    return cost if details is None else with_upstream(cost, usage.is_byok, details.upstream_inference_cost)


def with_upstream(cost: Decimal, is_own_key: bool | None, upstream: Decimal | None) -> Decimal:
    """The whole cost of a call through OpenRouter, to which an account may add its own key for a vendor.

    With such a key, `cost` is only OpenRouter's fee, often 0, and the vendor bills `upstream` to the account.
    """
    if upstream is None or not is_amount(upstream) or is_own_key is False:
        return cost
    # Without the account's own key, `upstream` is a part of `cost`. Only older versions leave the flag out.
    return EXACT.add(cost, upstream) if is_own_key else max(cost, upstream)


def is_amount(cost: Decimal) -> bool:
    """Whether the number can be the cost of one call."""
    return cost.is_finite() and 0 <= cost <= USD_MAX


def usage_from(
    *,
    read: Count,
    written: Count,
    total: Count = None,
    cached: Iterable[Count] = (),
    into_cache: Iterable[Count] = (),
    reasoning: Iterable[Count] = (),
) -> Usage:
    """Disjoint token counts. `cached`, `into_cache` and `reasoning` are the values of all fields with that meaning."""
    prompt, answer, sum_of_all = count_of(read), count_of(written), count_of(total)
    from_cache, to_cache, thought = _most(cached), _most(into_cache), _most(reasoning)
    if not prompt:
        prompt = max(0, sum_of_all - answer)
    # Vendors of the OpenAI format include cached tokens in the prompt's count; gateways in front of Anthropic do not.
    # Nothing in the response says which. But a part cannot be larger than its whole, so a negative rest means that they
    # are counted separately.
    fresh = prompt - from_cache - to_cache
    if fresh < 0:
        prompt, fresh = prompt + from_cache + to_cache, prompt
    # Some gateways leave reasoning out of `completion_tokens`, but include it in the total.
    answer = max(answer, sum_of_all - prompt)
    if thought > answer:
        answer += thought
    return Usage(
        input_tokens=fresh,
        cache_read_tokens=from_cache,
        cache_write_tokens=to_cache,
        output_tokens=answer,
        reasoning_tokens=thought,
    )


def count_of(told: Count) -> int:
    """A reported token count as an int; 0 if it is missing, negative or not a possible count."""
    # NaN is not within the limits either.
    return math.ceil(told) if told is not None and 0 <= told <= COUNT_MAX else 0


def web_searches(*counts: Count) -> Mapping[str, int] | None:
    """The units of an answer with that many searches; None without any."""
    searches = _most(counts)
    return {"web_searches": searches} if searches else None


_PAID_BY_PROMPT = re.compile(r"(.*/)?gemini-[12]")


def searches_of(queries: Iterable[object] | None, model: str) -> int:
    """How many of Gemini's search queries are billed: each distinct one, but before Gemini 3 only one for all of them
    (its price page, November 2026)."""
    searches = len({query for query in queries or () if query and isinstance(query, str)})
    return min(searches, 1) if _PAID_BY_PROMPT.match(model) else searches


def _most(counts: Iterable[Count]) -> int:
    most = 0
    for told in counts:
        if told:  # most fields are missing
            most = max(most, count_of(told))
    return most
