"""The rules for Prometheus and the dashboard for Grafana use only series that koo exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from docs.generate_grafana import FILE, dashboard
from koo.alerts.kinds import KINDS
from koo.monitoring.exports import DASHBOARD, RULES, text_of
from koo.platform import Platform
from koo.web.exposition import NAMES
from koo.web.exposition import text_of as metrics_of
from proofs.monitoring import COMPOSE, write_composed

PROMTOOL = shutil.which("promtool")
STORIES = Path(__file__).with_name("prometheus-rules.test.yaml")
RULES_FILE = FILE.with_name(RULES)
METRIC = re.compile(r"\bkoo[a-z0-9_:]+")


def told() -> set[str]:
    """The names of all exported series."""
    names = set()
    for name, one in NAMES.items():
        if one.kind is HistogramMetricFamily:
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        else:
            names.add(f"{name}_total" if one.kind is CounterMetricFamily else name)
    return names


def recorded() -> set[str]:
    return set(re.findall(r"- record: (\S+)", text_of(RULES)))


def expressions() -> Iterator[str]:
    for panel in json.loads(text_of(DASHBOARD))["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_each_rule_uses_existing_series() -> None:
    asked = re.findall(r"expr: (?:>-)?(.*?)\n *(?:- |keep|for:|labels)", text_of(RULES), re.DOTALL)
    assert len(asked) == len(re.findall("expr:", text_of(RULES))) == 11
    assert {name for part in asked for name in METRIC.findall(part)} <= told() | recorded()


def test_each_panel_uses_existing_series() -> None:
    asked = {name for part in expressions() for name in METRIC.findall(part)}
    assert asked <= told() | recorded()
    assert len(asked) >= 10


def test_the_dashboard_is_the_generated_one_and_names_no_data_source() -> None:
    shown = json.loads(text_of(DASHBOARD))
    assert shown == json.loads(json.dumps(dashboard()))
    assert shown["id"] is None and shown["templating"]["list"][0]["type"] == "datasource"
    sources = {json.dumps(target["datasource"]) for panel in shown["panels"] for target in panel["targets"]}
    assert sources == {'{"type": "prometheus", "uid": "${source}"}'}


def test_each_kind_of_alert_has_a_series_before_it_fires() -> None:
    """`rate()` and alerting rules miss the first step of a series that did not exist before."""
    text = metrics_of(Platform()).decode()
    for kind, row in KINDS.items():
        assert f'koo_alert_active{{kind="{kind}",severity="{row.severity}"}} 0.0' in text


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
class TestWithPromtool:
    """Prometheus' own tool checks the rules, their tests and the metrics."""

    def ask(self, *words: str, given: str = "") -> Any:
        assert PROMTOOL is not None
        return subprocess.run([PROMTOOL, *words], input=given, capture_output=True, text=True, check=False)

    def test_the_rules_pass_their_promtool_tests(self) -> None:
        done = self.ask("test", "rules", str(STORIES))
        assert done.returncode == 0, done.stdout + done.stderr

    def test_promtool_finds_no_problem_in_the_metrics(self) -> None:
        done = self.ask("check", "metrics", given=metrics_of(Platform()).decode())
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_the_compose_example_has_a_valid_prometheus_configuration_and_says_it_is_untested(
        self, tmp_path: Path
    ) -> None:
        """The configuration is checked with the rules that it mounts, and the other mounted files must exist."""
        written = COMPOSE.read_text()
        mounted = [COMPOSE.parent / path for path in re.findall(r"- \./(\S+?):\S+:ro", written)]
        assert "# This file has not been tested" in written and len(mounted) == 2
        assert [path for path in mounted if not path.is_file()] == []
        done = self.ask("check", "config", str(write_composed(tmp_path)))
        assert done.returncode == 0 and "SUCCESS: 1 rule files found" in done.stdout, (
            done.stdout + done.stderr
        )

    def test_the_panels_expressions_are_valid_promql(self, tmp_path: Path) -> None:
        lines = ["groups:", "  - name: panels", "    rules:"]
        for number, one in enumerate(expressions()):
            shown = one.replace("$__rate_interval", "5m").replace("$job", ".+")
            lines += [f"      - record: panel:{number}", f"        expr: {json.dumps(shown)}"]
        rules = tmp_path / "panels.yaml"
        rules.write_text("\n".join(lines))
        done = self.ask("check", "rules", str(rules))
        assert done.returncode == 0, done.stdout + done.stderr
