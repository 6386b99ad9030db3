"""The result of one check of `koo doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Result = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its subject, what was found, and what to do about it."""

    subject: str
    result: Result
    found: str
    advice: str = ""
