"""`koo alerts`: what is wrong now and what has just ended, one line an alert in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from koo.cli.client import ask
from koo.cli.tables import Column, put_table
from koo.cli.terminal import Exit, put, put_json, run_async
from koo.cli.words import when
from koo.monitoring.shapes import Alert, SystemAlerts

COLUMNS = (
    Column("since", whole=True),
    Column("severity", coloured=True),
    Column("component"),
    Column("message"),
)


def alerts(url: str | None, *, as_json: bool) -> Exit:
    """What is wrong now, and what has just ended."""
    _, answer = run_async(ask(url, "/monitoring/alerts", SystemAlerts))
    if as_json:
        put_json(answer)
    elif not answer["alerts"]:
        put("no alerts")
    else:
        put_table(COLUMNS, [_row(alert) for alert in answer["alerts"]])
    return _exit_of(answer["alerts"])


def _row(alert: Alert) -> list[str]:
    return [when(alert["timestamp"]), alert["type"], alert["component"], alert["message"]]


def _exit_of(listed: Sequence[Alert]) -> Exit:
    active = {alert["type"] for alert in listed if alert["active"]}
    if "critical" in active:
        return Exit.UNHEALTHY
    return Exit.DEGRADED if "warning" in active else Exit.OK
