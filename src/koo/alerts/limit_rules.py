"""Findings about koo's own limits on requests and tokens: nearly reached, and reached."""

from __future__ import annotations

from collections.abc import Iterator

from koo.alerts.findings import Finding
from koo.monitoring.shapes import LIMITS, TOKENS, WINDOWS, AlertData, LimitName, RateLimit, ServiceHealth

APPROACHING = 0.80
"""A documented promise, as is the same share of a budget."""


def find_in_limits(view: ServiceHealth, component: str) -> Iterator[Finding]:
    """The limits that are at least four fifths used, and those that are reached, so that calls are refused or wait."""
    reached = _reached(view)
    for key in LIMITS:
        limit = view["rate_limits"][key]
        most = limit["limit"]
        if most is None or (limit["used"] < APPROACHING * most and key not in reached):
            continue
        message = f"{limit['used']} of {most} {key.replace('_', ' ')} are used"
        data: AlertData = {"resets_at": limit["resets_at"], "share": limit["used"] / most if most else 1.0}
        yield Finding(f"limit_approaching_{key}", component, message, data)
        if key in reached:
            refuses: AlertData = {
                **data,
                "refuses": f"calls to {view['service_name']} {_while_full(key)}",
            }
            message = f"koo's limit of {most} {key.replace('_', ' ')} is reached: calls are refused or wait"
            yield Finding(f"limit_reached_{key}", component, message, refuses)


def _reached(view: ServiceHealth) -> set[LimitName]:
    """The limits that refuse calls."""
    # The numbers alone would miss two cases. A call may need more tokens than are left of a limit that is not full. And
    # under a limit per minute, a request becomes free each second and is taken immediately, so this check may find one
    # free while every caller is refused. So the refusals of the last half minute decide too.
    if view["rate_limits"][TOKENS]["refuses"]:
        return {TOKENS}
    limits: dict[LimitName, RateLimit] = {
        key: view["rate_limits"][key] for key in WINDOWS if view["rate_limits"][key]["limit"] is not None
    }
    full = {key for key, limit in limits.items() if limit["remaining"] == 0}
    if not full and limits and "rate_limited" in view["metrics"]["refusing"]:
        return {max(limits, key=lambda key: _share(limits[key]))}
    return full


def _while_full(key: LimitName) -> str:
    return "that need more tokens than are left" if key == TOKENS else "until a request is free"


def _share(limit: RateLimit) -> float:
    return limit["used"] / limit["limit"] if limit["limit"] else 1.0
