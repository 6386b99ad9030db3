"""Permit: leave to make one call, as a breaker gives it."""

from __future__ import annotations

from koo.options import NEVER

OUTSIDE = -1
"""The generation of a permit that was given only because of an override."""


class Permit:
    """Leave to make one call: in which generation, when, and in HALF_OPEN until when.

    `lease_ends_at` is when a probe is given up, and when its caller has to stop: METRICS_ONLY cuts none short, so there
    it stays infinite and only `shadow_ends_at` counts. `kept`: the other side has answered, and how long the permit
    lasts from here is its caller's affair.
    """

    __slots__ = ("generation", "given_at", "kept", "lease_ends_at", "serial", "settled", "shadow_ends_at")

    shadow_ends_at: float

    def __init__(self, generation: int, serial: int, given_at: float) -> None:
        self.generation = generation
        self.serial = serial
        self.given_at = given_at
        self.lease_ends_at = NEVER
        self.settled = self.kept = False

    def is_over(self, now: float) -> bool:
        """Has this probe's lease run out?"""
        return now >= (self.shadow_ends_at if self.lease_ends_at is NEVER else self.lease_ends_at)
