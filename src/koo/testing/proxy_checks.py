"""Refuses faults that are misspelt or could never occur: the proxy would break nothing, and the test would pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from koo.testing.misspelt import did_you_mean

CommitCut = Literal["before", "at", "after", "hold"]
Side = Literal["client", "server"]
Toward = Literal["client", "server", "both"]
NUMBERS = ("delay_s", "jitter_s", "bytes_per_s", "cut_after_bytes")


def check_word(name: str, value: object, allowed: object) -> None:
    """Raise ValueError for a word that is not allowed."""
    words = get_args(allowed)
    if value not in words:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, words))}")


def check_attribute(known: Mapping[str, object], name: str, value: object) -> None:
    """Raise AttributeError for a misspelt public attribute, and ValueError for a wrong value."""
    if name not in known and (meant := did_you_mean(name, known)):
        raise AttributeError(f"FaultProxy has no {name!r}{meant}")
    if name == "toward":
        check_word("toward", value, Toward)
    elif name in NUMBERS and isinstance(value, int | float) and not value >= 0:
        raise ValueError(f"{name} is {value!r}; expected 0 or more")
