"""Whether an answer is exactly of its shape: no key too few, none too many, each of its type."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter


def check_exactly(answer: Any, shape: Any) -> None:
    """Raises pydantic's ValidationError, which names each key that is missing, unknown or of another type."""
    _adapter(shape).validate_python([answer])


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    # In a list: a shape takes no configuration of its own, but inherits that of what it is in.
    return TypeAdapter(list[shape], config=ConfigDict(extra="forbid", strict=True))
