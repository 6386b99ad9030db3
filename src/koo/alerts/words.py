"""How a finding puts what it found."""

from __future__ import annotations


def say(what: str, why: str) -> str:
    """A sentence with its reason, where there is one."""
    return f"{what}: {why}" if why else what
