"""What koo brings for the tools that operators have: rules for Prometheus, a dashboard for Grafana."""

from __future__ import annotations

from importlib.resources import files

RULES = "prometheus-rules.yaml"
DASHBOARD = "grafana-dashboard.json"


def text_of(name: str) -> str:
    """One of these files."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
