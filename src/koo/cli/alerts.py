"""`koo alerts`: what is wrong now and what has just ended, one line per alert in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from koo.cli.client import ask
from koo.cli.tables import Column, coloured, put_table, put_words
from koo.cli.terminal import Exit, put, put_json, run_async, say
from koo.cli.words import plainly, seconds_of, when
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
    """Show what is wrong now, and what has just ended."""
    server, answer = run_async(ask(url, "/monitoring/alerts", SystemAlerts))
    listed = answer["alerts"]
    if as_json:
        put_json(answer)
    elif not listed:
        put("no alerts")
    else:
        _put(listed, seconds_of(answer["timestamp"]) or time.time())
        _say_what_to_do(server, listed)
    return _exit_of(listed)


def _put(listed: Sequence[Alert], now: float) -> None:
    """Print a table in a pipe. In a window of eighty columns its rows would be broken up."""
    if not sys.stdout.isatty():
        put_table(COLUMNS, [_row(alert, now) for alert in listed])
        return
    for alert in listed:
        put_words(coloured(alert["type"]), f"{alert['component']}: {plainly(alert['message'], now)}")
        put_words(
            coloured(
                f"    {state_of(alert)}, since {when(alert['timestamp'])}, id {alert.get('id', '')}", "dim"
            )
        )


def _row(alert: Alert, now: float) -> list[str]:
    since, message = when(alert["timestamp"]), plainly(alert["message"], now)
    # An older server sends neither a phase nor an id.
    return [since, alert["type"], alert["component"], message, state_of(alert), alert.get("id", "")]


def state_of(alert: Alert) -> str:
    """Return an alert's phase and what operators did about it, such as "firing, acknowledged by ada@host"."""
    words: list[str] = [alert.get("phase") or ("firing" if alert["active"] else "resolved")]
    if acknowledged := alert.get("acknowledged"):
        words.append(f"acknowledged by {acknowledged['by']}")
    if silence := alert.get("silenced"):
        words.append(f"silenced by {silence['by']} until {when(silence['ends_at'])}")
    # An older server does not send this field.
    if alert["active"] and alert.get("notified", {}).get("state") == "no_channel":
        words.append("not sent: no channel")
    return ", ".join(words)


def _say_what_to_do(server: str, listed: Sequence[Alert]) -> None:
    """Print to standard error, so that a pipe receives only the alerts."""
    paths = {alert["kind"]: alert.get("runbook") for alert in listed if alert["active"]}
    for kind, path in paths.items():
        if path:
            say(f"what to do about {kind}: {server}{path}")


def _exit_of(listed: Sequence[Alert]) -> Exit:
    active = {alert["type"] for alert in listed if alert["active"]}
    if "critical" in active:
        return Exit.UNHEALTHY
    return Exit.DEGRADED if "warning" in active else Exit.OK
