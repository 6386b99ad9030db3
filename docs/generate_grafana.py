"""Write the Grafana dashboard: `python -m docs.generate_grafana`.

Written by hand, ten panels of three kinds would be a thousand lines of JSON. The dashboard is imported through
Grafana's page and through provisioning, so its data source is a variable, and it contains no name of an installation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from koo.monitoring.exports import DASHBOARD

FILE = Path(__file__).parents[1] / "src" / "koo" / "monitoring" / "exports" / DASHBOARD
SOURCE = {"type": "prometheus", "uid": "${source}"}
HERE = 'job=~"$job"'

Query = tuple[str, str]
"""A Prometheus expression and its legend."""

STATES = {
    "healthy": "green",
    "rate_limited": "yellow",
    "degraded": "orange",
    "unhealthy": "red",
    "circuit_open": "dark-red",
}
PANELS: tuple[tuple[str, str, str, tuple[Query, ...]], ...] = (
    (
        "Alerts",
        "stat",
        "short",
        (
            (f'max by (severity) (koo_alerts{{{HERE},severity="critical"}})', "critical"),
            (f'max by (severity) (koo_alerts{{{HERE},severity="warning"}})', "warning"),
        ),
    ),
    (
        "State of services",
        "state-timeline",
        "short",
        tuple(
            (f'max by (service) (koo_service_state{{{HERE},state="{state}"}}) * {number} > 0', "{{service}}")
            for number, state in enumerate(STATES, start=1)
        ),
    ),
    (
        "Calls per second",
        "timeseries",
        "reqps",
        (
            (
                f"sum by (service, outcome) (rate(koo_service_requests_total{{{HERE}}}[$__rate_interval]))",
                "{{service}} {{outcome}}",
            ),
        ),
    ),
    (
        "Refused by koo per second",
        "timeseries",
        "reqps",
        (
            (
                f"sum by (service, reason) (rate(koo_service_refusals_total{{{HERE}}}[$__rate_interval])) > 0",
                "{{service}} {{reason}}",
            ),
        ),
    ),
    (
        "Share of failed calls",
        "timeseries",
        "percentunit",
        (("koo:service_error_ratio:rate5m", "{{service}}"),),
    ),
    (
        "Duration of successful calls, 95th percentile",
        "timeseries",
        "s",
        (("koo:service_duration_seconds:p95_5m", "{{service}}"),),
    ),
    (
        "Spent today",
        "timeseries",
        "currencyUSD",
        ((f"max by (service) (koo_budget_spent_usd{{{HERE}}})", "{{service}}"),),
    ),
    ("Share of the daily budget", "timeseries", "percentunit", (("koo:budget_used_ratio", "{{service}}"),)),
    (
        "Database connections",
        "timeseries",
        "short",
        (
            (f"sum by (state) (koo_database_connections{{{HERE}}})", "{{state}}"),
            (f"sum(koo_database_connections_max{{{HERE}}})", "most"),
            (f"sum(koo_database_waiting{{{HERE}}})", "waiting"),
        ),
    ),
    (
        "Database errors per second",
        "timeseries",
        "reqps",
        ((f"sum by (kind) (rate(koo_database_errors_total{{{HERE}}}[$__rate_interval]))", "{{kind}}"),),
    ),
)


def panel(number: int, title: str, kind: str, unit: str, queries: tuple[Query, ...]) -> dict[str, Any]:
    """One panel: two in a row, each half of the width."""
    return {
        "id": number + 1,
        "title": title,
        "type": kind,
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": number % 2 * 12, "y": number // 2 * 8},
        "fieldConfig": {"defaults": _defaults(kind, unit), "overrides": []},
        "options": {},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(queries)
        ],
    }


def _defaults(kind: str, unit: str) -> dict[str, Any]:
    if kind != "state-timeline":
        return {"unit": unit, "min": 0}
    names = {
        str(number): {"text": state, "color": color, "index": number}
        for number, (state, color) in enumerate(STATES.items(), start=1)
    }
    return {"unit": unit, "mappings": [{"type": "value", "options": names}]}


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    return {
        "id": None,
        "uid": "koo",
        "title": "koo",
        "tags": ["koo"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "job",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": "label_values(koo_build, job)",
                    "includeAll": True,
                    "multi": True,
                    "refresh": 2,
                },
            ]
        },
        "annotations": {"list": []},
        "panels": [panel(number, *one) for number, one in enumerate(PANELS)],
    }


def main() -> None:
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
