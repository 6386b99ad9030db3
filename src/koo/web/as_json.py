"""A view as JSON. `koo.monitoring` alone decides which numbers exist and how they are named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(content: Any) -> bytes:
    """Encode on one line. JSON has no infinity; it becomes null, because one such number must not hide all others."""
    try:
        return _dumped(content)
    except ValueError:
        return _dumped(_finite(content))


def _dumped(content: Any) -> bytes:
    return json.dumps(
        content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str
    ).encode()


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
