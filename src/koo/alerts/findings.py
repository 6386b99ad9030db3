"""A rule's finding: a condition that holds now."""

from __future__ import annotations

from dataclasses import dataclass, field

from koo.alerts.kinds import severity_of
from koo.events import Severity
from koo.monitoring.shapes import AlertData


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition that holds now. `kind` and `component` identify it; `message` may change while it lasts.

    With `begins=False` a finding is enough to continue an alert but not to begin one. A rule whose numbers vary around
    a threshold sets it to True above the threshold, and to False down to a lower one. Otherwise the alert would begin
    and end each time the number crosses the threshold.
    """

    kind: str
    component: str
    message: str
    data: AlertData = field(default_factory=AlertData)
    begins: bool = True

    @property
    def severity(self) -> Severity:
        """The severity of its kind."""
        return severity_of(self.kind)

    @property
    def fingerprint(self) -> str:
        """The identity of the alert: kind and component."""
        return f"{self.kind}:{self.component}"
