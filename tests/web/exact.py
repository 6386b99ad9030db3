"""Checks that a response has exactly its shape: no key is missing, none is extra, each value has its type."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter


def check_exactly(answer: Any, shape: Any) -> None:
    """Raises pydantic's ValidationError, which names each key that is missing, unknown or of another type."""
    _adapter(shape).validate_python([answer])


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    # In a list, because a shape has no separate configuration but inherits that of its container.
    return TypeAdapter(list[shape], config=ConfigDict(extra="forbid", strict=True))
