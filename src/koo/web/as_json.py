"""A view as JSON: what the numbers are called and which there are, `koo.monitoring` alone decides."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(content: Any) -> bytes:
    """On one line. JSON knows no infinity, and a view that fails for one number would hide all others: it is null."""
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
