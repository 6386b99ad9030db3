"""Turns momentary events of the state store into findings that last long enough for a person to see them.

A rule looks at current numbers. Data loss in the store, or a name that two processes use, is over within seconds, but
its effect on budgets lasts longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

from koo.alerts.findings import Finding
from koo.alerts.money_rules import STORE, UNSETTLED
from koo.clock import Clock
from koo.events import Event, ProcessRenamed, StoreForgot, StoreFound

KEPT_S = 3600.0
"""A finding lasts for an hour after the last event: long enough for a person to be woken and to look at it."""
SETTLES_S = 20.0
"""While the store was unreachable no process could report. Until each has reported again, all others look dead."""


class StoreNews:
    """Receives the store's events; `findings` returns those that still matter."""

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
        """Add these findings to those of the rules. Unsettled money is left out while processes are still returning."""
        # Just after the store's return every process looks as if it had stopped reporting, and its money would be shown
        # as left behind.
        is_settling = self._clock.monotonic() < self._settles_at
        sure = [one for one in found if not (is_settling and one.kind == UNSETTLED)]
        return [*sure, *self.findings()]

    def findings(self) -> Iterator[Finding]:
        """The events that still matter."""
        now = self._clock.monotonic()
        if now < self._forgot_until:
            message = (
                f"the state store has lost data: {self._forgotten_usd:f} USD that this process had booked were missing "
                "and are booked again; spending by processes that have ended since that copy of the store was made is "
                "missing from the budgets, which may be overspent by that amount"
            )
            yield Finding("store_forgot", STORE, message, {"amount": f"{self._forgotten_usd:f}"})
        if now < self._renamed_until:
            message = (
                "another process used this one's name in the state store: a machine was copied while it ran, or this "
                "process was written off; it continues under another name, and what it held is booked twice"
            )
            yield Finding("process_renamed", STORE, message)
