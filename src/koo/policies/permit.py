"""Permit: permission to make one call, granted by a breaker."""

from __future__ import annotations

from koo.options import NEVER

OUTSIDE = -1
"""The generation of a permit that was granted only because of an override."""


class Permit:
    """Permission to make one call: its generation, when it was granted, and in HALF_OPEN when its lease ends.

    At `lease_ends_at` a probe is given up and its call is stopped. METRICS_ONLY never stops a call, so there
    `lease_ends_at` stays infinite and the breaker judges the probe by `shadow_ends_at`. `kept`: the dependency has
    responded, and the caller decides how much longer the permit lasts (a stream, an open transaction).
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
        """Whether this probe's lease has ended."""
        # `shadow_ends_at` is set only with a lease: reading it on any other permit raises AttributeError, so a call
        # that is not a probe can never be taken for one whose time is over.
        return now >= (self.shadow_ends_at if self.lease_ends_at is NEVER else self.lease_ends_at)
