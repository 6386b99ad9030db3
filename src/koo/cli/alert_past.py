"""`koo alerts history`: past and active alerts, one line each in a pipe."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from urllib.parse import urlencode

from koo.cli.client import connect
from koo.cli.tables import Column, put_table
from koo.cli.terminal import CommandFailed, Exit, progress, put, put_json, run_async
from koo.cli.words import duration, in_utc, seconds_of, span, when
from koo.monitoring.alert_shapes import AlertHistory
from koo.monitoring.shapes import Alert

PAST = (
    Column("began", whole=True),
    Column("lasted", whole=True),
    Column("severity", coloured=True),
    Column("component"),
    Column("message"),
    Column("notified"),
    Column("id", whole=True),
)
PAGE = 200
"""Episodes per request."""


def history(since: str, limit: int, url: str | None, *, as_json: bool) -> Exit:
    """Show past and active episodes, newest first, at most `limit`."""
    answer = run_async(_history(_begin(since), limit, url))
    if as_json:
        put_json(answer)
    elif not answer["episodes"]:
        put("no alerts")
    else:
        put_table(PAST, [_past_row(episode) for episode in answer["episodes"]])
    return Exit.OK


def _begin(since: str) -> str:
    """Convert a time or a duration ("how long ago") to ISO 8601."""
    if seconds_of(since) is not None:
        return since
    long = duration(since)
    if long is None:
        sentence = (
            f"--since is {since!r}; give a duration such as 24h or 7d, or a time such as 2026-11-28T14:00Z"
        )
        raise CommandFailed(sentence, Exit.USAGE, "usage")
    return datetime.fromtimestamp(max(0.0, time.time() - long), UTC).isoformat()


async def _history(begin: str, limit: int, url: str | None) -> AlertHistory:
    """Read page after page until there are no more, or enough."""
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            asked = {"since": begin, "limit": str(min(limit, PAGE))}
            answer = await client.get(f"/monitoring/alerts/history?{urlencode(asked)}", AlertHistory)
            while (cursor := answer["next_cursor"]) is not None and len(answer["episodes"]) < limit:
                asked |= {"cursor": cursor, "limit": str(min(limit - len(answer["episodes"]), PAGE))}
                page = await client.get(f"/monitoring/alerts/history?{urlencode(asked)}", AlertHistory)
                answer = {**page, "episodes": [*answer["episodes"], *page["episodes"]]}
    return answer


def _past_row(alert: Alert) -> list[str]:
    began, ended = seconds_of(alert["timestamp"]), seconds_of(alert["ended_at"])
    lasted = "active" if began is None or ended is None else span(ended - began)
    told = alert["notified"]
    notified = when(told["at"]) if told["at"] else told["reason"] or told["state"]
    since, message = when(alert["timestamp"]), in_utc(alert["message"])
    return [since, lasted, alert["type"], alert["component"], message, notified, alert["id"]]
