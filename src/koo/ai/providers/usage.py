"""Tokens by class, from what vendors report; they agree on hardly any name.

One rule for all: a bill must not be too small. Of several names for one thing the largest number counts. Tokens from or
to a cache are part of the prompt's count, unless they exceed it: then they are counted beside it. The total's surplus
over the prompt was written, and so was reasoning that exceeds everything reported as written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from koo.ai.types import Usage

Count = int | float | None
"""Some write 12.0, and not every one that is promised is there."""


def usage_from(
    *,
    read: Count,
    written: Count,
    total: Count = None,
    cached: Iterable[Count] = (),
    into_cache: Iterable[Count] = (),
    reasoning: Iterable[Count] = (),
) -> Usage:
    """Tokens by class, made disjoint. Of `cached`, `into_cache` and `reasoning` each is one name's number."""
    prompt, answer, sum_of_all = count_of(read), count_of(written), count_of(total)
    from_cache, to_cache, thought = _most(cached), _most(into_cache), _most(reasoning)
    if not prompt:
        prompt = max(0, sum_of_all - answer)
    fresh = prompt - from_cache - to_cache
    if fresh < 0:
        prompt, fresh = prompt + from_cache + to_cache, prompt
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
    """A reported count of tokens: 0 for nothing and for less."""
    if type(told) is int:
        return max(0, told)
    return max(0, math.ceil(told)) if told is not None and math.isfinite(told) else 0


def _most(counts: Iterable[Count]) -> int:
    most = 0
    for told in counts:
        if told:  # Most names are not there.
            most = max(most, count_of(told))
    return most
