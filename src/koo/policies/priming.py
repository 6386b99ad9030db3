"""Priming: if many other processes have a breaker open, one failure in this process is enough to open its own.

A breaker never opens on the reports of other processes alone, because one sick node would shut out the healthy ones.
But when a provider is down, thirty processes need not each lose five calls to find out. So if at least three processes
have a guard's breaker open, and they are at least half of the processes that use the guard, the breakers of the others
are primed, including those of processes that start later. The first successful probe ends the priming: from then on, an
open breaker no longer counts as evidence.
"""

from __future__ import annotations

from koo.policies.fleet import Opinion

PROCESSES_MIN = 3
"""Two processes may share a machine, a network or a wrong setting; three are unlikely to fail for a local reason."""


def is_primed(down: int, concerned: int) -> bool:
    """Whether the other breakers are primed: of the `concerned` processes that use the guard, `down` have it open."""
    return down >= PROCESSES_MIN and 2 * down >= concerned


def why_primed(opinion: Opinion | None) -> str:
    """Why a breaker is primed, for people; empty if it is not primed."""
    if opinion is None or not is_primed(opinion.down, opinion.concerned):
        return ""
    return f"{opinion.down} of {opinion.concerned} processes have it open"
