"""The result of each part of the fleet proof: one section of its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One section: its title, its lines (figures, tables), and what does not hold."""

    title: str
    lines: Sequence[str]
    found: Sequence[str] = field(default=())
