"""`koo status`: what the running server reports about itself, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from koo.cli.client import connect
from koo.cli.reasons import (
    breaker_word,
    database_figures,
    database_state,
    is_local,
    why_database,
    why_koo,
    why_service,
)
from koo.cli.tables import COLOURS, Column, coloured, put_table, put_words
from koo.cli.terminal import HEALTH_EXITS, CommandFailed, Exit, progress, put, put_json, run_async
from koo.cli.words import latency, seconds_of, usd, when
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.shapes import (
    BreakerStatus,
    Budget,
    DatabaseHealth,
    RunOut,
    ServiceHealth,
    SystemHealth,
)

SERVICES = (
    Column("service"),
    Column("state", coloured=True),
    Column("breaker"),
    *(Column(head, right=True) for head in ("requests", "failed", "refused", "p95", "spent today")),
)
OVERRIDES = {
    "forced_open": "forced open by an operator: every call is refused",
    "disabled": "disabled by an operator: every call passes and nothing is counted",
    "metrics_only": "in shadow: it counts but refuses nothing",
}
COUNTS_OF_ONE = "requests, failed, refused and p95 cover one process of {}; money covers all (koo fleet)"
BUDGETS = (
    Column("budget"),
    Column("period"),
    *(Column(head, right=True) for head in ("spent", "held", "left", "unsettled")),
    Column("used up at this pace"),
)


def status(url: str | None, *, as_json: bool) -> Exit:
    """Show everything at a glance; the exit code reflects the verdict."""
    asked, health, processes = run_async(_ask(url))
    if as_json:
        put_json(health)
    else:
        _show(asked, health, processes)
    return HEALTH_EXITS.get(health["overall_health"], Exit.FAILED)


async def _ask(url: str | None) -> tuple[str, SystemHealth, int]:
    """Return the server's URL, its health, and how many processes share its state store (0: unknown)."""
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            health = await client.get("/monitoring/health", SystemHealth)
            try:
                fleet = await client.get("/monitoring/fleet", FleetStatus)
            except CommandFailed:  # the health that is known matters more than this count
                return client.url, health, 0
    return client.url, health, sum(one["state"] == "live" for one in fleet["processes"])


def _show(url: str, health: SystemHealth, processes: int) -> None:
    now = seconds_of(health["timestamp"]) or 0.0
    # The word is the overall health. The colour is that of the most severe alert.
    severity = health.get("severity")
    style = COLOURS.get(severity or health["overall_health"], "")
    verdict = coloured(health["overall_health"], style)
    put_words(f"koo at {url}:", verdict, coloured(f"at {when(health['timestamp'])}", "dim"))
    _put_database(health["database"], now)
    services = health["ai_services"]["services"]
    put("")
    put_table(SERVICES, [[name, *_service_cells(view)] for name, view in services.items()])
    if processes > 1:
        # Without this line, the counts seem to fall whenever another worker responds.
        put_words(coloured(COUNTS_OF_ONE.format(processes), "dim"))
    if health["ai_services"]["budgets"]:
        put("")
        put_table(BUDGETS, [_budget_cells(budget, now) for budget in health["ai_services"]["budgets"]])
    for name, view in services.items():
        if words := why_service(view, now):
            # A service that is not configured is not a fault.
            put_words(coloured(f"{name}: {words}", "yellow" if view["configured"] else "dim"))
    for sentence in _overrides(health):
        put_words(coloured(sentence, "yellow"))
    for sentence in why_koo(health.get("koo")):
        put_words(coloured(sentence, "yellow"))
    if severity or health["overall_health"] != "healthy":
        put("what to do: koo alerts")


def _overrides(health: SystemHealth) -> Iterator[str]:
    """Yield operators' overrides: a breaker that is forced open or in shadow must not look like a normal one."""
    breakers: list[BreakerStatus] = [health["database"]["circuit_breaker"]]
    for view in health["ai_services"]["services"].values():
        breakers += view["models"].values()
    for one in breakers:
        words = OVERRIDES.get(one["override"])
        if words is not None:
            said = one.get("operator", "")  # an older server has no such key
            yield f"{one['name']}: {words}" + (f" ({said})" if said else "")


def _put_database(view: DatabaseHealth, now: float) -> None:
    state, why = database_state(view), why_database(view, now)
    shown = coloured(state, "red") if state == "no answer" else coloured(state)
    put_words("database:", shown, database_figures(view), *([f"— {why}"] if why else []))


def _service_cells(view: ServiceHealth) -> list[str]:
    if not view["configured"]:
        return ["not configured" if is_local(view) else "no key", *[""] * 6]
    metrics = view["metrics"]
    return [
        view["state"],
        breaker_word(view),
        str(metrics["total_requests"]),
        str(metrics["failed_requests"]),
        str(metrics["refused_requests"]),
        latency(metrics["p95"]) if metrics["p95"] > 0 else "",
        spent_of(view),
    ]


def spent_of(view: ServiceHealth) -> str:
    """Today's spending and the limit, such as "$0.42 of $10.00"."""
    budget = view["rate_limits"]["daily_budget"]
    limit = "" if budget["limit"] is None else f" of {usd(budget['limit'])}"
    return f"{usd(budget['spent'])}{limit}"


def _budget_cells(budget: Budget, now: float) -> list[str]:
    amounts = [budget["spent"], budget["reserved"], budget["remaining"], budget["unsettled"]]
    shown = ["" if amount is None else usd(amount) for amount in amounts]
    return [budget["title"], budget["period"], *shown, run_out_words(budget["runs_out"])]


def run_out_words(runs_out: RunOut | None) -> str:
    """Return when a budget is used up and what happens then; empty if it is not used up."""
    if runs_out is None:
        return ""
    earliest, latest = when(runs_out["earliest"]), runs_out["latest"]
    range_ = f"{earliest} to {when(latest)}" if latest else f"{earliest} or not before it resets"
    return f"{range_}, then {runs_out['then']}"
