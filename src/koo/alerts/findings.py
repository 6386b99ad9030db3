"""A rule's finding: something that holds now."""

from __future__ import annotations

from dataclasses import dataclass, field

from koo.alerts.kinds import severity_of
from koo.events import Severity
from koo.monitoring.shapes import AlertData


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that holds now. `kind` and `component` identify it; `message` may change while it lasts.

    `begins` False: enough to continue an alert, but not to begin one. A rule whose numbers swing around a threshold
    sets True above it, and False between it and a lower one, so that an alert does not begin and end with each swing.
    """

    kind: str
    component: str
    message: str
    data: AlertData = field(default_factory=AlertData)
    begins: bool = True

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return severity_of(self.kind)

    @property
    def fingerprint(self) -> str:
        """The same for as long as the same thing is wrong with the same part."""
        return f"{self.kind}:{self.component}"
