"""Builds the shapes of incidents from the stored rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from koo.clock import iso
from koo.errors import describe_s
from koo.monitoring import incident_shapes as shapes
from koo.monitoring.history_shapes import HistoryMark
from koo.policies.incidents import BY_OPERATOR, Call, Incident
from koo.policies.overrides import in_a_row
from koo.spans import Kept, Mark

LOST_S = 60.0
"""A live process reports each of its open incidents every few seconds, so after a minute of silence it has gone."""


def component_of(guard: str) -> str:
    """The component of a guard: "ai:claude" for "claude/opus"."""
    service = guard.partition("/")[0]
    return service if service == "database" else f"ai:{service}"


def state_of(kept: Kept, now: float) -> shapes.IncidentWord:
    """The incident's state."""
    # Without "lost", the incident of a process that was killed while its breaker was open would stay open forever,
    # because no other process writes its row.
    incident = kept.incident
    if incident.closed_at is not None:
        return "closed"
    if kept.has_left or now - kept.seen_at > LOST_S:
        return "lost"
    return "recovering" if incident.phase == "half_open" and not incident.is_forced else "open"


def summary_of(parts: Sequence[Kept], now: float) -> shapes.IncidentSummary:
    """The summary of an outage that one or more processes saw. It describes the first part."""
    first = parts[0]
    incident, state = first.incident, state_of(first, now)
    # The end of a lost incident is unknown. Its process's last report is the last moment at which it was surely open.
    ends_at = incident.closed_at or (first.seen_at if state == "lost" else now)
    return {
        "id": incident.id,
        "component": component_of(incident.guard),
        "guard": incident.guard,
        "state": state,
        "shadow": incident.is_shadow,
        "opened_at": iso(incident.opened_at),
        "closed_at": iso(incident.closed_at),
        "lasted_s": max(ends_at - incident.opened_at, 0.0),
        "rule": incident.rule,
        "reason": incident.reason,
        "ended": incident.ended,
        "refused": sum(part.incident.refused for part in parts),
        "processes": len({part.process for part in parts}),
        "process": first.process,
    }


def incident_view(parts: Sequence[Kept], before: Sequence[Mark], now: float) -> shapes.Incident:
    """A complete incident. `parts` is as in `summary_of`; `before` are the events before it."""
    first, summary = parts[0], summary_of(parts, now)
    incident = first.incident
    until = first.seen_at if summary["state"] == "lost" else now
    return {
        **summary,
        "trigger": trigger_of(incident),
        "calls": [_call(one) for one in incident.calls],
        "calls_left_out": incident.calls_left_out,
        "before": [mark_view(mark) for mark in before],
        "refused_for_s": incident.refusing_s(until),
        "passed": incident.passed,
        "fallback": dict(incident.fallback),
        "probes": [_call(one) for one in incident.probes],
        "steps": [{"at": iso(one.at), "what": one.what, "text": one.text} for one in incident.steps],
        "acts": [
            {"at": iso(one.at), "what": one.what, "by": one.by, "reason": one.reason, "until": iso(one.until)}
            for one in incident.acts
        ],
        "left_out": incident.left_out,
        "elsewhere": [_elsewhere(part, now) for part in parts[1:]],
        "last_heard": iso(first.seen_at),
    }


def mark_view(mark: Mark) -> HistoryMark:
    """An event, for display."""
    return {"at": iso(mark.at), "kind": mark.kind, "component": mark.component, "text": mark.text}


def _elsewhere(part: Kept, now: float) -> shapes.IncidentElsewhere:
    incident = part.incident
    return {
        "id": incident.id,
        "process": part.process,
        "state": state_of(part, now),
        "opened_at": iso(incident.opened_at),
        "closed_at": iso(incident.closed_at),
        "reason": incident.reason,
        "refused": incident.refused,
    }


def _call(call: Call) -> shapes.IncidentCall:
    return {
        "at": iso(call.at),
        "duration_s": call.took_s,
        "outcome": call.outcome,
        "kind": call.kind,
        "status": call.status,
        "sentence": call.sentence,
        "in_row": call.in_row,
    }


def trigger_of(incident: Incident) -> shapes.Trigger | None:
    """The counts and thresholds, and the sentence about them; None if an operator forced the breaker open."""
    of = incident.arithmetic
    if not of:
        return None
    calls, slow_s = of["calls"], of["slow_s"]
    return {
        "sentence": sentence_of(incident.rule, of),
        "failures_in_a_row": of["in_row"],
        "failures_in_a_row_max": of["in_row_max"],
        "calls": calls,
        "failures": of["failures"],
        "slow": of["slow"],
        "running_slow": of["running_slow"],
        "calls_min": of["calls_min"],
        "failure_rate": of["failures"] / calls if calls else 0.0,
        "failure_rate_max": of["failure_rate_max"],
        "slow_rate": of["slow"] / calls if calls else 0.0,
        "slow_rate_max": of["slow_rate_max"],
        "window_s": of["window_s"],
        "slow_s": None if slow_s is None or math.isinf(slow_s) else slow_s,
        "primed": of["primed"],
    }


def sentence_of(rule: str, of: dict[str, Any]) -> str:
    """A sentence such as "12 of 20 calls in the last 30 s failed: 60%, and 50% of at least 20 calls open it"."""
    calls, window = of["calls"], describe_s(of["window_s"])
    if rule == "failures_in_a_row":
        primed = f", because {of['primed']}" if of["primed"] else ""
        return f"{in_a_row(of['in_row'])}, and {of['in_row_max']} open it{primed}"
    if rule == "failure_rate":
        shares = f"{_share(of['failures'], calls)}, and {of['failure_rate_max']:.0%}"
        failed = f"{of['failures']} of {calls} calls in the last {window} failed"
        return f"{failed}: {shares} of at least {of['calls_min']} calls open it"
    if rule == "slow_rate":
        running = f" ({of['running_slow']} of them had not ended)" if of["running_slow"] else ""
        shares = f"{_share(of['slow'], calls)}, and {of['slow_rate_max']:.0%}"
        return (
            f"{of['slow']} of {calls} calls in the last {window} took {describe_s(of['slow_s'])} or longer{running}: "
            f"{shares} of at least {of['calls_min']} calls open it"
        )
    if rule == BY_OPERATOR:
        return "an operator forced it open"
    return rule.replace("_", " ")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"
