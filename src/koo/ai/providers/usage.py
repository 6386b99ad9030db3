"""Tokens by class from what vendors report under many different names.

One rule decides in all cases of doubt: the computed cost must not be below the bill. If several fields name the same
thing, the largest number counts. Cache tokens are part of the prompt's count, unless they exceed it: then the vendor
counts them separately. What the total has beyond the prompt is output, and so is reasoning that exceeds the reported
output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from koo.ai.types import Usage

Count = int | float | None
"""Some vendors write 12.0, and promised fields may be missing."""


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
    # Vendors of the OpenAI format include cached tokens in the prompt's count, gateways in front of Anthropic do not.
    # Nothing in the response says which. But a part cannot be larger than its whole, so a negative rest means that
    # they are counted separately.
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
    """A reported token count as an int; 0 if it is missing, negative or not finite."""
    if type(told) is int:
        return max(0, told)
    return max(0, math.ceil(told)) if told is not None and math.isfinite(told) else 0


def _most(counts: Iterable[Count]) -> int:
    most = 0
    for told in counts:
        if told:  # most fields are missing
            most = max(most, count_of(told))
    return most
