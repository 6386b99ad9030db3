"""What each part of the proof of the fleet returns: one section of its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One section: its title, the lines below it (figures, tables), and what does not hold."""

    title: str
    lines: Sequence[str]
    found: Sequence[str] = field(default=())
