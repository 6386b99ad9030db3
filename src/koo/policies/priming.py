"""Priming: what many others have found out makes one failure of a process's own enough.

A breaker never opens by others' word: one sick node would poison the well ones. But where a provider is down, thirty
processes need not each learn it with five failed calls. So where at least three processes have a guard's breaker open,
and at least half of all that it concerns, the breakers of the others are primed, and those of processes that start
later. The first success that recovery is tested with ends it: a process whose breaker is open no longer counts then.
"""

from __future__ import annotations

from koo.policies.fleet import Opinion

PROCESSES_MIN = 3
"""Two may share a machine, a network, a wrong setting."""


def is_primed(down: int, concerned: int) -> bool:
    """Do so many, of so many that called it lately or have it open, prime the others?"""
    return down >= PROCESSES_MIN and 2 * down >= concerned


def why_primed(opinion: Opinion | None) -> str:
    """In words, which its breaker shows; empty where it is not primed."""
    if opinion is None or not is_primed(opinion.down, opinion.concerned):
        return ""
    return f"{opinion.down} of {opinion.concerned} processes have it open"
