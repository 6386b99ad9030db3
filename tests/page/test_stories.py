"""The stories that the page's tests play: as the server produces them today, and in its own shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from koo.monitoring import fleet_shapes, history_shapes, live_shapes, shapes, spend_shapes
from tests.page.stage import STORIES, TOLD, tell
from tests.web.exact import check_exactly

PARTS: dict[str, Any] = {
    "status": live_shapes.LiveStatus,
    "database": shapes.DatabaseHealth,
    "pool": shapes.DatabaseMetrics,
    "service": shapes.ServiceHealth,
    "budgets": list[shapes.Budget],
    "alerts": list[shapes.Alert],
    "fleet": fleet_shapes.FleetStatus,
    "saved": live_shapes.Saved,
}
EVENTS: dict[str, Any] = {
    "point": live_shapes.Point,
    "mark": history_shapes.HistoryMark,
    "request": spend_shapes.BookedCall,
}
ENDS = {
    "healthy": ("healthy", set[str]()),
    "service-down": ("healthy", {"service_down", "service_recovered", "circuit_recovering"}),
    "two-outages": ("unhealthy", {"service_down", "database_unavailable"}),
    "over-budget": ("degraded", {"budget_used_up"}),
    "server-gone": ("healthy", set[str]()),
}


@pytest.mark.parametrize("name", TOLD)
def test_each_story_is_what_the_server_produces_today(name: str) -> None:
    file = STORIES / f"{name}.jsonl"
    assert file.read_text(encoding="utf-8") == tell(name), "stale; make docs writes it again"


@pytest.mark.parametrize("name", TOLD)
def test_each_event_of_a_story_has_its_shape(name: str) -> None:
    lines = [
        json.loads(line) for line in (STORIES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert lines[0]["event"] == "whole" and lines == sorted(lines, key=lambda line: line["at_s"])
    parts: dict[str, Any] = {}
    kinds = set()
    for line in lines:
        data = line["data"]
        if line["event"] in EVENTS:
            check_exactly(data, EVENTS[line["event"]])
        elif line["event"] == "whole":
            parts = dict(data["parts"])
            assert parts.keys() == {"service/claude", "service/openai", "service/local", *PARTS} - {"service"}
        elif line["event"] == "part":
            parts[data["key"]] = data["value"]
        for key, value in parts.items() if line["event"] in ("whole", "part") else ():
            if line["event"] == "whole" or key == data["key"]:
                check_exactly(value, PARTS[key.partition("/")[0]])
        kinds |= {alert["kind"] for alert in parts["alerts"] if alert["phase"] in ("firing", "resolved")}
    verdict, met = ENDS[name]
    assert (parts["status"]["overall_health"], met <= kinds) == (verdict, True), kinds
