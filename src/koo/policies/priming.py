"""Priming: what many other processes have found makes one failure of a process's own enough.

A breaker never opens on others' word alone: one sick node would poison the healthy ones. But if a provider is down,
thirty processes need not each learn it with five failed calls. So when at least three processes have a guard's breaker
open, and at least half of all that it concerns, the other processes' breakers are primed, including those that start
later. The first success of a recovery test ends it: a process whose breaker is open then no longer counts.
"""

from __future__ import annotations

from koo.policies.fleet import Opinion

PROCESSES_MIN = 3
"""Two may share a machine, a network or a wrong setting."""


def is_primed(down: int, concerned: int) -> bool:
    """Whether `down` processes, of `concerned` ones that called it lately or have it open, prime the others."""
    return down >= PROCESSES_MIN and 2 * down >= concerned


def why_primed(opinion: Opinion | None) -> str:
    """The reason that a primed breaker shows; empty if it is not primed."""
    if opinion is None or not is_primed(opinion.down, opinion.concerned):
        return ""
    return f"{opinion.down} of {opinion.concerned} processes have it open"
