"""Permit: permission to make one call, granted by a breaker."""

from __future__ import annotations

from koo.options import NEVER

OUTSIDE = -1
"""The generation of a permit that was granted only because of an override."""


class Permit:
    """Permission to make one call: of which generation, when, and in HALF_OPEN until when.

    `lease_ends_at` is when a probe is given up, and its caller must stop: METRICS_ONLY cuts no call short, so there it
    stays infinite and only `shadow_ends_at` counts. `kept`: the other side has answered, and how much longer the permit
    lasts is up to its caller.
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
        """Whether this probe's lease has run out."""
        return now >= (self.shadow_ends_at if self.lease_ends_at is NEVER else self.lease_ends_at)
