"""A provider's limit as a response's headers report it, with a name for each number."""

from __future__ import annotations

from typing import NamedTuple


class LimitLeft(NamedTuple):
    """`remaining` of `limit` calls are left; the limit is full again in `resets_in_s`. None if it is unknown."""

    limit: float | None
    remaining: float | None
    resets_in_s: float | None
    resource: str = "requests"
