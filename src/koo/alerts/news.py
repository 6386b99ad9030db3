"""Momentary events of the state store, kept as an alert for as long as a person needs to see it.

A rule looks at numbers that hold now. That a store forgot, or that this process's name belonged to another one, is over
within seconds, but its consequence for money is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

from koo.alerts.findings import Finding
from koo.alerts.money_rules import STORE, UNSETTLED
from koo.clock import Clock
from koo.events import Event, ProcessRenamed, StoreForgot, StoreFound

KEPT_S = 3600.0
"""An hour after the last time: long enough to be woken, and to look."""
SETTLES_S = 20.0
"""A store that was away has heard from no process. Until each has reported again, all others look dead."""


class StoreNews:
    """Receives the store's events; `findings` are those that still matter."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._forgotten_usd = Decimal(0)
        self._forgot_until = self._renamed_until = self._settles_at = 0.0

    def on_event(self, event: Event) -> None:
        """Record an event."""
        now = self._clock.monotonic()
        if isinstance(event, StoreForgot):
            if now >= self._forgot_until:
                self._forgotten_usd = Decimal(0)
            self._forgotten_usd += Decimal(event.forgotten_usd)
            self._forgot_until = now + KEPT_S
        elif isinstance(event, ProcessRenamed):
            self._renamed_until = now + KEPT_S
        elif isinstance(event, StoreFound):
            self._settles_at = now + SETTLES_S

    def add_to(self, found: Iterable[Finding]) -> list[Finding]:
        """Current findings, beside what rules found in the numbers; money is unsettled only if the store is sure."""
        is_settling = self._clock.monotonic() < self._settles_at
        sure = [one for one in found if not (is_settling and one.kind == UNSETTLED)]
        return [*sure, *self.findings()]

    def findings(self) -> Iterator[Finding]:
        """What is still worth a look."""
        now = self._clock.monotonic()
        if now < self._forgot_until:
            message = (
                f"the state store is older than what was reported to it: {self._forgotten_usd:f} USD that this process "
                "had booked was not known there, and is booked again; what processes that are gone had spent since "
                "that copy was made is lost to the budgets, which may be overspent by it"
            )
            yield Finding("store_forgot", STORE, message, {"amount": f"{self._forgotten_usd:f}"})
        if now < self._renamed_until:
            message = (
                "another process spoke to the state store under this one's name: a machine was copied while it ran, or "
                "this process was written off; it continues under another name, and what it held is booked twice"
            )
            yield Finding("process_renamed", STORE, message)
