"""One cause, one alert: a finding that is only a lesser face of another one of its component becomes part of it.

If a breaker is open, the service cannot be called, and its calls failed before: three findings that are all true, and
one alert. Which kind is part of which is in the table (`part_of`); it is applied here. The greater finding lists in
`also` what it stands for, and has the numbers of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from koo.alerts.findings import Finding
from koo.alerts.kinds import KINDS
from koo.monitoring.shapes import AlertData


def absorb(found: Iterable[Finding]) -> list[Finding]:
    """The findings that stand for themselves, in their order, each with the lesser ones of its component."""
    components: dict[str, dict[str, Finding]] = {}
    for finding in found:
        components.setdefault(finding.component, {}).setdefault(finding.kind, finding)
    return [one for findings in components.values() for one in _absorb(findings)]


def _absorb(findings: dict[str, Finding]) -> list[Finding]:
    """Of one component, by kind."""
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
    """The kind that stands for this one: the first of its `part_of` that holds, and so on from there."""
    # A finding that is not enough to begin an alert must not hide one that is.
    part_of = KINDS[kind].part_of if kind in KINDS else ()
    greater = next((name for name in part_of if name in findings and findings[name].begins), None)
    return kind if greater is None else _whole(greater, findings)


def _with_parts(finding: Finding, parts: list[Finding]) -> Finding:
    if not parts:
        return finding
    data = AlertData()
    for part in parts:
        data.update(part.data)
    data.update(finding.data)
    data["also"] = [part.kind for part in parts]
    return replace(finding, data=data)
