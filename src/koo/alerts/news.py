"""What happened to the state store at one instant, kept as an alert for as long as a person needs to see it.

A rule looks at numbers that hold now. That a store forgot, or that this process's name was another's, is over within
seconds, and what it means for money is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from koo.alerts.rules import STORE, Finding
from koo.clock import Clock
from koo.events import Event, ProcessRenamed, StoreForgot

KEPT_S = 3600.0
"""An hour after the last time: long enough to be woken, and to look."""


class StoreNews:
    """Hears of the store's events; `findings` are what holds now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._forgotten_usd = Decimal(0)
        self._forgot_until = self._renamed_until = 0.0

    def on_event(self, event: Event) -> None:
        """Take an event down."""
        now = self._clock.monotonic()
        if isinstance(event, StoreForgot):
            if now >= self._forgot_until:
                self._forgotten_usd = Decimal(0)
            self._forgotten_usd += Decimal(event.forgotten_usd)
            self._forgot_until = now + KEPT_S
        elif isinstance(event, ProcessRenamed):
            self._renamed_until = now + KEPT_S

    def findings(self) -> Iterator[Finding]:
        """What is still worth a look."""
        now = self._clock.monotonic()
        if now < self._forgot_until:
            message = (
                f"the state store is older than what it was told: {self._forgotten_usd:f} USD that this process had "
                "booked was not known there, and is booked again; what processes that are gone had spent since that "
                "copy was made is lost to the budgets, which may be overspent by it"
            )
            yield Finding("store_forgot", STORE, message, {"amount": f"{self._forgotten_usd:f}"})
        if now < self._renamed_until:
            message = (
                "another process spoke to the state store under this one's name: a machine was copied while it ran, or "
                "this process was written off; it goes on under another name, and what it held is booked twice"
            )
            yield Finding("process_renamed", STORE, message)
