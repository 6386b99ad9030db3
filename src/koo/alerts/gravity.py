"""How bad it is altogether: what the overall health and the verdict's colour follow.

What holds now counts, and what is listed as an alert, because a person sees both beside the verdict. An alert that is
pending does not count yet; one whose condition has gone a moment ago counts until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable

from koo.alerts.findings import Finding
from koo.monitoring.overview import Gravity
from koo.monitoring.shapes import Alert, Gravest


def weigh(found: Iterable[Finding], listed: Iterable[Alert]) -> Gravity:
    """The worst severity of both, and whether calls are refused because of any of it."""
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
