"""Helpers for the messages of findings."""

from __future__ import annotations


def say(what: str, why: str) -> str:
    """A sentence with its reason, if it has one."""
    return f"{what}: {why}" if why else what
