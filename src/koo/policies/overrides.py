"""Phrases for people that breakers and states share: overrides, failures in a row, failed probes."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from koo.openings import Act

ITS_TIME_WAS_OVER = Act(reason="it expired")
BY_RESET = "until it is reset"
SHADOW_BY_HAND = "until it is turned off or reset"


def in_a_row(failures: int) -> str:
    """ "5 failures in a row"."""
    return f"{failures} failure{'s' * (failures != 1)} in a row"


def failed_probes(count: int, hung: bool) -> str:
    """ "3 failed probes", "a hung probe"."""
    return f"{count} failed probes" if count > 1 else f"a {'hung' if hung else 'failed'} probe"


@lru_cache(maxsize=64)  # formatted for each refused call, it would cost as much as the rest of the refusal
def why_forced(act: Act | None) -> str:
    """ "forced open by ada@desk: the provider is repairing it; until 2026-11-29T20:10:00Z"."""
    return f"forced open by {said_of(act)}"


def said_of(act: Act | None, by_hand: str = BY_RESET) -> str:
    """ "ada@desk: the provider is repairing it; until 2026-11-29T20:10:00Z"; "an operator" if the act has no name."""
    act = act or Act()
    by, reason = act.by or "an operator", f": {act.reason}" if act.reason else ""
    return f"{by}{reason}" + (f"; {ends_of(act, by_hand)}" if act.words or act.until is not None else "")


def ends_of(act: Act, by_hand: str = BY_RESET) -> str:
    """ "until 2026-11-29T20:10:00Z"; `by_hand` if only an operator ends it."""
    if act.until is None:
        return by_hand
    return f"until {datetime.fromtimestamp(act.until, UTC):%Y-%m-%dT%H:%M:%SZ}"
