"""Helpers for the messages of findings."""

from __future__ import annotations


def count(number: int, one: str, many: str) -> str:
    """ "1 notice is", "2 notices are"."""
    return f"{number} {one if number == 1 else many}"


def say(what: str, why: str) -> str:
    """A sentence with its reason, if it has one."""
    return f"{what}: {why}" if why else what
