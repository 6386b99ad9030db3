"""Makes one alert of findings that have one cause: a lesser finding becomes part of a greater one of its component.

If a breaker is open, the service cannot be called, and its calls failed before. These three findings are all true, and
they are one alert. The table of kinds says which kind is part of which (`part_of`), and this module applies it. The
greater finding lists its parts in `also` and has the data of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from koo.alerts.findings import Finding
from koo.alerts.kinds import KINDS
from koo.monitoring.shapes import AlertData


def absorb(found: Iterable[Finding]) -> list[Finding]:
    """The findings that become separate alerts, in order, each with the lesser findings that it includes."""
    components: dict[str, dict[str, Finding]] = {}
    for finding in found:
        components.setdefault(finding.component, {}).setdefault(finding.kind, finding)
    return [one for findings in components.values() for one in _absorb(findings)]


def _absorb(findings: dict[str, Finding]) -> list[Finding]:
    """Like `absorb`, for the findings of one component, by kind."""
    parts: dict[str, list[Finding]] = {}
    for kind, finding in findings.items():
        whole = _whole(kind, findings)
        if whole != kind:
            parts.setdefault(whole, []).append(finding)
    absorbed = {part.kind for lesser in parts.values() for part in lesser}
    return [
        _with_parts(finding, parts.get(kind, []))
        for kind, finding in findings.items()
        if kind not in absorbed
    ]


def _whole(kind: str, findings: dict[str, Finding]) -> str:
    """The outermost kind found that includes this one, by way of `part_of`; the kind itself if none does."""
    # The search continues upwards, because "unhealthy" is part of "circuit open", which is part of "service down". If
    # it stopped at the first step, a part of a part would be missing from the listed alert's `also`.
    #
    # A finding that is too weak to begin an alert (`begins`) must not hide one that is strong enough, or neither would
    # be shown.
    part_of = KINDS[kind].part_of if kind in KINDS else ()
    greater = next((name for name in part_of if name in findings and findings[name].begins), None)
    return kind if greater is None else _whole(greater, findings)


def _with_parts(finding: Finding, parts: list[Finding]) -> Finding:
    if not parts:
        return finding
    # The greater finding's own data is applied last, so that its values win where a part has the same key.
    data = AlertData()
    for part in parts:
        data.update(part.data)
    data.update(finding.data)
    data["also"] = [part.kind for part in parts]
    return replace(finding, data=data)
