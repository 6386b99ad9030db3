"""The overall severity, from which the overall health and the colour of the verdict are derived.

Both current findings and listed alerts count, because a person sees both next to the verdict. A pending alert does not
count yet. An alert whose condition is gone counts until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable

from koo.alerts.findings import Finding
from koo.monitoring.overview import Gravity
from koo.monitoring.shapes import Alert, Gravest


def weigh(found: Iterable[Finding], listed: Iterable[Alert]) -> Gravity:
    """The worst severity of all findings and listed alerts, and whether any of them refuses calls."""
    # Findings count although most of them are listed as alerts: a finding whose alert is still pending may already
    # refuse calls, and the overall health must not be "healthy" then.
    holding = [(one.severity, one.data.get("refuses", "")) for one in found if one.begins]
    lasting = [
        (alert["type"], alert["data"].get("refuses", ""))
        for alert in listed
        if alert["active"] and alert["phase"] != "pending"
    ]
    both = [*holding, *lasting]
    severities = {severity for severity, _ in both}
    worst: Gravest | None = "warning" if "warning" in severities else None
    if "critical" in severities:
        worst = "critical"
    return Gravity(worst, any(refuses for _, refuses in both))
