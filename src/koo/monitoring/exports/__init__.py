"""Files for operators' tools: rules for Prometheus and a dashboard for Grafana."""

from __future__ import annotations

from importlib.resources import files

RULES = "prometheus-rules.yaml"
DASHBOARD = "grafana-dashboard.json"


def text_of(name: str) -> str:
    """The content of one of these files."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
