"""`koo alerts`: what is wrong now and what has just ended, one line an alert in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from koo.cli.client import ask
from koo.cli.tables import Column, coloured, put_table, put_words
from koo.cli.terminal import Exit, put, put_json, run_async, say
from koo.cli.words import when
from koo.monitoring.shapes import Alert, SystemAlerts

COLUMNS = (
    Column("since", whole=True),
    Column("severity", coloured=True),
    Column("component"),
    Column("message"),
    Column("state"),
    Column("id"),
)


def alerts(url: str | None, *, as_json: bool) -> Exit:
    """What is wrong now, and what has just ended."""
    server, answer = run_async(ask(url, "/monitoring/alerts", SystemAlerts))
    listed = answer["alerts"]
    if as_json:
        put_json(answer)
    elif not listed:
        put("no alerts")
    else:
        _put(listed)
        _say_what_to_do(server, listed)
    return _exit_of(listed)


def _put(listed: Sequence[Alert]) -> None:
    """A table for a pipe; its rows would be torn to pieces in a window of eighty columns."""
    if not sys.stdout.isatty():
        put_table(COLUMNS, [_row(alert) for alert in listed])
        return
    for alert in listed:
        put_words(coloured(alert["type"]), f"{alert['component']}: {alert['message']}")
        put_words(
            coloured(
                f"    {state_of(alert)}, since {when(alert['timestamp'])}, id {alert.get('id', '')}", "dim"
            )
        )


def _row(alert: Alert) -> list[str]:
    # A server of an earlier version has neither a phase nor an id.
    since = when(alert["timestamp"])
    return [since, alert["type"], alert["component"], alert["message"], state_of(alert), alert.get("id", "")]


def state_of(alert: Alert) -> str:
    """How far an alert is, and what an operator said of it: "firing, acknowledged by ada@host"."""
    words: list[str] = [alert.get("phase") or ("firing" if alert["active"] else "resolved")]
    if acknowledged := alert.get("acknowledged"):
        words.append(f"acknowledged by {acknowledged['by']}")
    if silence := alert.get("silenced"):
        words.append(f"silenced by {silence['by']} until {when(silence['ends_at'])}")
    # A server of an earlier version does not say it.
    if alert["active"] and alert.get("notified", {}).get("state") == "no_channel":
        words.append("not sent: no channel")
    return ", ".join(words)


def _say_what_to_do(server: str, listed: Sequence[Alert]) -> None:
    """To standard error: a pipe gets the alerts and nothing else."""
    paths = {alert["kind"]: alert.get("runbook") for alert in listed if alert["active"]}
    for kind, path in paths.items():
        if path:
            say(f"what to do about {kind}: {server}{path}")


def _exit_of(listed: Sequence[Alert]) -> Exit:
    active = {alert["type"] for alert in listed if alert["active"]}
    if "critical" in active:
        return Exit.UNHEALTHY
    return Exit.DEGRADED if "warning" in active else Exit.OK
