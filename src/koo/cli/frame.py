"""One frame of `koo watch`: the server's last response, its age, and what to do, most severe first.

A frame depends on a response and the time, so the countdown to a next attempt continues while no response arrives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

from koo.cli.fleet import name_of
from koo.cli.reasons import (
    breaker_word,
    database_figures,
    database_state,
    is_forced,
    next_attempt,
    why_database,
    why_service,
)
from koo.cli.status import run_out_words, spent_of
from koo.cli.tables import COLOURS, Column, coloured, table_of
from koo.cli.text import one_line
from koo.cli.words import (
    counted,
    latency,
    moment,
    moment_of,
    percent,
    plainly,
    seconds_of,
    span,
    until,
    usd,
)
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.runbook import runbook
from koo.monitoring.shapes import Alert, Budget, Dashboard, DatabaseHealth, ServiceHealth

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

STALE_S = 10.0
"""An older response is marked as outdated."""
SERVICES = (
    (Column("service", whole=True), 0),
    (Column("state", coloured=True), 0),
    (Column("breaker", whole=True), 110),
    (Column("a minute", right=True), 70),
    (Column("p50", right=True), 100),
    (Column("p95", right=True), 80),
    (Column("failed", right=True), 0),
    (Column("refused", right=True), 100),
    (Column("spent today", right=True), 90),
    (Column("next attempt", whole=True), 0),
)
"""The columns, each with the width of the window from which it is shown."""
ORDER = ("circuit_open", "unhealthy", "rate_limited", "degraded", "healthy")
"""The order of services, most severe first."""
HELD_BY_MAX = 3


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known: the server's last responses, and why there is no newer one (empty if there is).

    `since_s`: seconds since the response's own time. `age_s`: seconds since anything was received.
    """

    url: str
    answer: Dashboard | None
    fleet: FleetStatus | None
    since_s: float = 0.0
    age_s: float = 0.0
    trouble: str = ""


def lines_of(seen: Seen, width: int) -> list[RenderableType]:
    """The frame, starting with the verdict. A short window cuts off the end; a narrow one has fewer columns."""
    answer = seen.answer
    if answer is None:
        return [_line(f"koo at {seen.url}:", coloured(seen.trouble or "connecting…", "yellow"))]
    now = (seconds_of(answer["timestamp"]) or 0.0) + seen.since_s
    services = answer["ai_services"]
    return [
        *_head(seen, answer, now),
        *_alerts(answer, now),
        _line(),
        _services(services["services"], now, width),
        *_unconfigured(services["services"]),
        *_reasons(services["services"], answer["alerts"], now),
        *(_budget(budget) for budget in services["budgets"]),
        _line(),
        *_database(answer["database"], now),
        *_fleet(seen.fleet),
    ]


def _head(seen: Seen, answer: Dashboard, now: float) -> Iterator[Text]:
    summary = answer["summary"]
    verdict = summary["overall_health"]
    style = COLOURS.get(summary.get("severity") or verdict, "")
    alerts = sum(alert["active"] for alert in answer["alerts"])
    yield _line(
        f"koo at {seen.url}:",
        coloured(verdict, f"bold {style}"),
        coloured(f"· {counted(alerts, 'alert')} · {moment_of(now - seen.age_s)}", "dim"),
    )
    if seen.trouble:
        gone = f"{seen.trouble}; the data shown is {span(seen.age_s)} old"
        yield _line(coloured(gone, "reverse yellow"))
    elif seen.age_s >= STALE_S:
        yield _line(coloured(f"no response yet; the data shown is {span(seen.age_s)} old", "reverse yellow"))


def _alerts(answer: Dashboard, now: float) -> Iterator[Text]:
    for alert in answer["alerts"]:
        if not alert["active"]:
            continue
        began = seconds_of(alert["timestamp"])
        lasts = "" if began is None else f", for {span(now - began)}"
        yield _line()
        yield _line(coloured(alert["type"]), f"{alert['component']}: {plainly(alert['message'], now)}{lasts}")
        yield _line(coloured(f"    {_what_next(alert, is_forced(answer, alert['component']), now)}", "dim"))


def _what_next(alert: Alert, forced: bool, now: float) -> str:
    """When the component is tried again, what an operator has done about the alert, and what to do."""
    data = alert["data"]
    words = []
    error = data.get("last_error")
    if error is not None and not forced and error["sentence"] not in alert["message"]:
        words.append(f"last error {error['kind']}: {error['sentence']}")
    for key, what in (("next_attempt", "next attempt"), ("resets_at", "available again")):
        # The message already contains when an operator's override ends, and nothing is tried then.
        at = None if forced else data.get(key)
        if isinstance(at, str) and (seconds := seconds_of(at)) is not None:
            words.append(f"{what} {moment(seconds, now)}")
    if acknowledged := alert.get("acknowledged"):
        words.append(f"{acknowledged['by']} is working on it")
    if silence := alert.get("silenced"):
        words.append(f"silenced by {silence['by']}")
    if runbook(alert["kind"]) is not None:
        words.append(f"what to do: koo runbook {alert['kind']}")
    return "; ".join(words)


def _sorted(services: dict[str, ServiceHealth]) -> list[tuple[str, ServiceHealth]]:
    configured = [(name, view) for name, view in services.items() if view["configured"]]
    return sorted(configured, key=lambda one: ORDER.index(one[1]["state"]) if one[1]["state"] in ORDER else 0)


def _services(services: dict[str, ServiceHealth], now: float, width: int) -> RenderableType:
    fits = [width >= wide for _, wide in SERVICES]
    columns = [column for column, _ in compress(SERVICES, fits)]
    return table_of(columns, [list(compress(_row(*one, now), fits)) for one in _sorted(services)])


def _row(name: str, view: ServiceHealth, now: float) -> list[str]:
    metrics = view["metrics"]
    recent = metrics["recent"]
    calls, at = recent["calls"], next_attempt(view)
    return [
        name,
        view["state"],
        breaker_word(view),
        _rate(calls * 60 / recent["window_s"]) if recent["window_s"] else "",
        latency(metrics["p50"]) if metrics["p50"] > 0 else "",
        latency(metrics["p95"]) if metrics["p95"] > 0 else "",
        percent(recent["failed"] / calls) if calls else "",
        str(metrics["refused_requests"]),
        spent_of(view),
        "" if at is None else until(at, now),
    ]


def _rate(a_minute: float) -> str:
    return f"{a_minute:.1f}" if 0 < a_minute < 10 else f"{a_minute:,.0f}"


def _unconfigured(services: dict[str, ServiceHealth]) -> Iterator[Text]:
    names = [name for name, view in services.items() if not view["configured"]]
    if names:
        yield _line(coloured(f"not configured: {', '.join(names)}", "dim"))


def _reasons(services: dict[str, ServiceHealth], alerts: Sequence[Alert], now: float) -> Iterator[Text]:
    """Yield the reasons of services without an alert; an alert would already contain them."""
    said = {alert["component"].partition("/")[0] for alert in alerts if alert["active"]}
    for name, view in _sorted(services):
        if f"ai:{name}" not in said and (words := why_service(view, now)):
            yield _line(coloured(f"{name}: {words}", "yellow"))


def _budget(budget: Budget) -> Text:
    limit = "" if budget["limit"] is None else f" of {usd(budget['limit'])}"
    pace = run_out_words(budget["runs_out"])
    ends = f"; used up at this pace {pace}" if pace else ""
    return _line(
        f"budget {budget['title']}: {usd(budget['spent'])}{limit} spent this {budget['period']}{ends}"
    )


def _database(view: DatabaseHealth, now: float) -> Iterator[Text]:
    state = database_state(view)
    shown = coloured(state, "red") if state == "no answer" else coloured(state)
    yield _line("database:", shown, database_figures(view))
    if why := why_database(view, now):
        yield _line(coloured(f"    {why}", "yellow"))
    for holder in view["pool_status"]["held_by"][:HELD_BY_MAX]:
        yield _line(coloured(f"    held by {holder}", "dim"))


def _fleet(fleet: FleetStatus | None) -> Iterator[Text]:
    if fleet is None:
        return
    live = [one for one in fleet["processes"] if one["state"] == "live"]
    silent = [name_of(one) for one in fleet["processes"] if one["state"] == "silent"]
    words = [counted(len(live), "process", "processes")]
    words += [f"{name} is silent" for name in silent]
    words += [
        f"{one['name']} open in {one['open']} of {one['processes']}" for one in fleet["guards"] if one["open"]
    ]
    words += [f"configuration differs: {counted(n, 'option')}" for n in [len(fleet["differences"])] if n]
    if fleet["leader"] is None:
        words.append("no leader")
    yield _line(f"fleet: {', '.join(words)}")


def _line(*words: str | Text) -> Text:
    from rich.text import Text

    return Text(" ").join(
        [word if isinstance(word, Text) else Text(one_line(word)) for word in words if word]
    )
