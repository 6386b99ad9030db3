"""`koo status` and `koo alerts`: what the running server says about itself."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeVar

from koo.cli.client import connect
from koo.cli.terminal import HEALTH_EXITS, Exit, progress, put, put_json, run_async, visible
from koo.monitoring.shapes import (
    Alert,
    Budget,
    DatabaseHealth,
    RunOut,
    ServiceHealth,
    SystemAlerts,
    SystemHealth,
)

T = TypeVar("T")
COLOURS = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "red",
    "circuit_open": "red",
    "rate_limited": "yellow",
    "critical": "red",
    "warning": "yellow",
    "info": "blue",
}


def status(*, as_json: bool) -> Exit:
    """Everything at a glance; the exit code says it too."""
    url, health = run_async(_get("/monitoring/health", SystemHealth))
    if as_json:
        put_json(health)
    else:
        _show(url, health)
    return HEALTH_EXITS.get(health["overall_health"], Exit.FAILED)


def alerts(*, as_json: bool) -> Exit:
    """What is wrong now, and what has just ended."""
    _, answer = run_async(_get("/monitoring/alerts", SystemAlerts))
    if as_json:
        put_json(answer)
    elif not answer["alerts"]:
        put("no alerts")
    else:
        _show_alerts(answer["alerts"])
    active = {alert["type"] for alert in answer["alerts"] if alert["active"]}
    if "critical" in active:
        return Exit.UNHEALTHY
    return Exit.DEGRADED if "warning" in active else Exit.OK


async def _get(path: str, shape: type[T]) -> tuple[str, T]:
    async with connect() as client:
        with progress(f"asking {client.url}"):
            return client.url, await client.get(path, shape)


def _show(url: str, health: SystemHealth) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"koo at {url}:", _coloured(health["overall_health"]))
    console.print("database:", *_database_words(health["database"]))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("service", "state", "breaker", "requests", "failed", "p95", "spent today"):
        table.add_column(
            head, justify="right" if head in ("requests", "failed", "p95", "spent today") else "left"
        )
    reasons = []
    for name, view in health["ai_services"]["services"].items():
        table.add_row(name, *_service_cells(view))
        if view["reason"] and (view["configured"] or _is_local(view)):
            reasons.append(f"{name}: {view['reason']}")
    console.print()
    console.print(table)
    if health["ai_services"]["budgets"]:
        console.print()
        console.print(_budgets(health["ai_services"]["budgets"]))
    for reason in reasons:
        console.print(reason, markup=False, style="yellow", soft_wrap=True)


def _budgets(budgets: list[Budget]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("budget", "period", "spent", "held", "left", "unsettled", "used up at this pace"):
        table.add_column(head, justify="right" if head in ("spent", "held", "left", "unsettled") else "left")
    for budget in budgets:
        amounts = [_short(budget[key]) for key in ("spent", "reserved", "remaining", "unsettled")]
        table.add_row(
            Text(visible(budget["title"])), budget["period"], *amounts, _run_out(budget["runs_out"])
        )
    return table


def _run_out(runs_out: RunOut | None) -> str:
    if runs_out is None:
        return ""
    latest = runs_out["latest"]
    until = (
        f"{runs_out['earliest'][:16]} to {latest[:16]}"
        if latest
        else f"not before {runs_out['earliest'][:16]}"
    )
    return f"{until}, then {runs_out['then']}"


def _short(amount: str | None) -> str:
    return "" if amount is None else f"{Decimal(amount):.4f}".rstrip("0").rstrip(".")


def _database_words(view: DatabaseHealth) -> list[Any]:
    pool = view["pool_status"]
    words = [_coloured(view["state"])]
    if view["response_time_ms"] is not None:
        words.append(f"{view['response_time_ms']:.1f} ms,")
    words.append(f"{pool['active_connections']} of {pool['max_connections']} connections in use")
    words += [f"({condition})" for condition in view["conditions"]]
    if view["error"]:
        words.append(f"— {view['error']}")
    return words


def _service_cells(view: ServiceHealth) -> list[Any]:
    if not view["configured"]:
        return ["not configured" if _is_local(view) else "no key", "", "", "", "", ""]
    metrics, budget = view["metrics"], view["rate_limits"]["daily_budget"]
    spent = _short(budget["spent"])
    return [
        _coloured(view["state"]),
        view["health"]["circuit_breaker_state"],
        str(metrics["total_requests"]),
        str(metrics["failed_requests"]),
        f"{metrics['p95']:.2f} s" if metrics["total_requests"] else "",
        f"{spent} of {budget['limit']} USD" if budget["limit"] is not None else f"{spent} USD",
    ]


def _is_local(view: ServiceHealth) -> bool:
    """It needs no key: what it lacks is in its reason."""
    return view["configuration"].get("kind") == "local"


def _show_alerts(listed: list[Alert]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("since", "severity", "component", "message"):
        table.add_column(head)
    for alert in listed:
        table.add_row(alert["timestamp"][:19], _coloured(alert["type"]), alert["component"], alert["message"])
    Console(highlight=False).print(table)


def _coloured(word: str) -> Any:
    from rich.text import Text

    return Text(word, style=COLOURS.get(word, ""))
