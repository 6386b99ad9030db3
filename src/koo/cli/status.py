"""`koo status`: what the running server says about itself, and what of it is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from koo.cli.client import ask
from koo.cli.tables import COLOURS, Column, coloured, put_table, put_words
from koo.cli.terminal import HEALTH_EXITS, Exit, put, put_json, run_async
from koo.cli.words import latency, moment, plainly, seconds_of, span, time_in, usd, when
from koo.monitoring.shapes import (
    WINDOWS,
    Budget,
    DatabaseHealth,
    DatabaseServer,
    LastError,
    RunOut,
    ServiceHealth,
    SystemHealth,
)

SERVICES = (
    Column("service"),
    Column("state", coloured=True),
    Column("breaker"),
    *(Column(head, right=True) for head in ("requests", "failed", "p95", "spent today")),
)
BUDGETS = (
    Column("budget"),
    Column("period"),
    *(Column(head, right=True) for head in ("spent", "held", "left", "unsettled")),
    Column("used up at this pace"),
)


def status(url: str | None, *, as_json: bool) -> Exit:
    """Everything at a glance; the exit code says it too."""
    asked, health = run_async(ask(url, "/monitoring/health", SystemHealth))
    if as_json:
        put_json(health)
    else:
        _show(asked, health)
    return HEALTH_EXITS.get(health["overall_health"], Exit.FAILED)


def _show(url: str, health: SystemHealth) -> None:
    now = seconds_of(health["timestamp"]) or 0.0
    # The word says what works, the colour what is wrong: the worst alert's.
    severity = health.get("severity")
    style = COLOURS.get(severity or health["overall_health"], "")
    put_words(f"koo at {url}:", coloured(health["overall_health"], style))
    _put_database(health["database"], now)
    services = health["ai_services"]["services"]
    put("")
    put_table(SERVICES, [[name, *_service_cells(view)] for name, view in services.items()])
    if health["ai_services"]["budgets"]:
        put("")
        put_table(BUDGETS, [_budget_cells(budget, now) for budget in health["ai_services"]["budgets"]])
    for name, view in services.items():
        if words := _why(view, now):
            put_words(coloured(f"{name}: {words}", "yellow"))
    if severity or health["overall_health"] != "healthy":
        put("what to do: koo alerts")


def _put_database(view: DatabaseHealth, now: float) -> None:
    pool = view["pool_status"]
    words = [_server(view.get("server"))]
    # Of a probe that failed the time says how soon it was refused, and would read as if the database were quick.
    if view["response_time_ms"] is not None and view["error"] is None:
        words.append(f"{latency(view['response_time_ms'] / 1000)},")
    words.append(f"{pool['active_connections']} of {pool['max_connections']} connections in use")
    words += [f"({condition})" for condition in view["conditions"]]
    # The line says already whose reason it is.
    why = view["reason"] or view["error"] or ""
    again = f"; its probe is answered since {when(since)}" if (since := view.get("answers_since")) else ""
    if why:
        error = _last_error(view.get("last_error"), why, now)
        next_ = _again(seconds_of(view["circuit_breaker"]["next_attempt"]), now)
        words.append(f"— {plainly(why, now)}{error}{again}{next_}")
    # Its state follows from several probes. After the first that failed, "healthy" would contradict the alert.
    is_silent = view["state"] == "healthy" and view["error"] is not None
    state = coloured("no answer", "red") if is_silent else coloured(view["state"])
    put_words("database:", state, *filter(None, words))


def _server(server: DatabaseServer | None) -> str:
    """Which one it is: "on db.example:5432/shop,", or "in app.db,"."""
    if server is None:
        return ""
    name = server["name"] or ""
    if server["host"] is None:
        return f"in {name}," if name else ""
    port = "" if server["port"] is None else f":{server['port']}"
    return f"on {server['host']}{port}{'/' if name else ''}{name},"


def _service_cells(view: ServiceHealth) -> list[str]:
    if not view["configured"]:
        return ["not configured" if _is_local(view) else "no key", "", "", "", "", ""]
    metrics, budget = view["metrics"], view["rate_limits"]["daily_budget"]
    limit = "" if budget["limit"] is None else f" of {usd(budget['limit'])}"
    return [
        view["state"],
        view["health"]["circuit_breaker_state"],
        str(metrics["total_requests"]),
        str(metrics["failed_requests"]),
        latency(metrics["p95"]) if metrics["p95"] > 0 else "",
        f"{usd(budget['spent'])}{limit}",
    ]


def _why(view: ServiceHealth, now: float) -> str:
    """What is wrong with a service, and when it is asked again; empty where nothing is."""
    if not view["reason"] or not (view["configured"] or _is_local(view)):
        return ""
    at = next_attempt(view)
    again = _again(at, now)
    if at is None and view["state"] == "circuit_open":
        again = "; next attempt after an unbilled check that succeeds, or a reset"
    return plainly(view["reason"], now) + _last_error(view.get("last_error"), view["reason"], now) + again


def _last_error(error: LastError | None, reason: str, now: float) -> str:
    """What broke, as far as the reason does not say it already."""
    if error is None:
        return ""
    at = seconds_of(error["at"])
    ago = "" if at is None else f", {span(now - at)} ago"
    sentence = "" if error["sentence"] in reason else f": {error['sentence']}"
    return f"; last error {error['kind']}{sentence}{ago}"


def _again(at: float | None, now: float) -> str:
    return "" if at is None else f"; next attempt {moment(at, now)}"


def next_attempt(view: ServiceHealth) -> float | None:
    """When this service will be asked again, as the page says it; None while it is, or where no time is known."""
    if view["state"] == "circuit_open":
        return seconds_of(view["health"]["next_attempt"])
    if view["state"] != "rate_limited":
        return None
    named = time_in(view["reason"])
    return max(_ends_of_what_is_full(view), default=None) if named is None else named


def _ends_of_what_is_full(view: ServiceHealth) -> Iterator[float]:
    limits = view["rate_limits"]
    budget = limits["daily_budget"]
    ends = [limits[window]["resets_at"] for window in WINDOWS if limits[window]["remaining"] == 0]
    if budget["remaining"] is not None and Decimal(budget["remaining"]) <= 0:
        ends.append(budget["resets_at"])
    return (at for at in map(seconds_of, ends) if at is not None)


def _is_local(view: ServiceHealth) -> bool:
    """It needs no key: what it lacks is in its reason."""
    return view["configuration"].get("kind") == "local"


def _budget_cells(budget: Budget, now: float) -> list[str]:
    amounts = [budget["spent"], budget["reserved"], budget["remaining"], budget["unsettled"]]
    shown = ["" if amount is None else usd(amount) for amount in amounts]
    return [budget["title"], budget["period"], *shown, _run_out(budget["runs_out"])]


def _run_out(runs_out: RunOut | None) -> str:
    if runs_out is None:
        return ""
    earliest, latest = when(runs_out["earliest"]), runs_out["latest"]
    range_ = f"{earliest} to {when(latest)}" if latest else f"{earliest} or not before it resets"
    return f"{range_}, then {runs_out['then']}"
