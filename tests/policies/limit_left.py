"""A provider's limit as its answer's headers tell it, with a name for each number."""

from __future__ import annotations

from typing import NamedTuple


class LimitLeft(NamedTuple):
    """`remaining` of `limit` calls are left, and it is full again in `resets_in_s`. None: the provider does not say."""

    limit: float | None
    remaining: float | None
    resets_in_s: float | None
    resource: str = "requests"
