"""`koo fleet`: the processes on the state store, and their open breakers, money and differing settings."""

from __future__ import annotations

from koo.cli.client import ask
from koo.cli.tables import Column, coloured, put_table, put_words
from koo.cli.terminal import Exit, put, put_json, run_async, say
from koo.cli.words import counted, seconds_of, span, usd
from koo.monitoring.fleet_shapes import (
    FleetDifference,
    FleetGuard,
    FleetProcess,
    FleetPurse,
    FleetStatus,
    FleetUnits,
)

PROCESSES = (
    Column("process"),
    Column("worker"),
    Column("version"),
    Column("label"),
    *(Column(head, right=True) for head in ("up", "last beat", "in flight")),
    Column(""),
)
GUARDS = (
    Column("guard"),
    Column("open"),
    *(Column(head, right=True) for head in ("for", "being tested", "calls a minute")),
    Column("elsewhere"),
)
PURSES = (
    Column("budget"),
    *(Column(head, right=True) for head in ("limit", "spent", "granted", "held", "idle", "unsettled")),
)


LEASES = (
    Column("limit"),
    *(Column(head, right=True) for head in ("units", "leased", "processes")),
)


def fleet(url: str | None, *, as_json: bool) -> Exit:
    """Print everything as tables; empty ones are left out."""
    _, status = run_async(ask(url, "/monitoring/fleet", FleetStatus))
    if as_json:
        put_json(status)
    else:
        _show(status)
    return Exit.OK


def _show(status: FleetStatus) -> None:
    now = seconds_of(status["timestamp"]) or 0.0
    live = [one for one in status["processes"] if one["state"] == "live"]
    put_words(counted(len(live), "process", "processes"), "on the state store")
    put_table(PROCESSES, [_process(one, now) for one in status["processes"]])
    if status["guards"]:
        put("")
        put_table(GUARDS, [_guard(one, now) for one in status["guards"]])
    purses = [one for one in status["purses"] if one["limit"] is not None]
    if purses:
        put("")
        put_table(PURSES, [_purse(one) for one in purses])
    leases = [one for one in status["leases"] if one["leased"]]
    if leases:
        put("")
        put_table(LEASES, [_lease(one) for one in leases])
    names = {one["id"]: name_of(one) for one in status["processes"]}
    for difference in status["differences"]:
        say(_difference(difference, names))
    if status["leader"] is None:
        say("no leader: each process checks the services itself")
    if not status["state_store"]["reachable"]:
        why = status["state_store"]["reason"]
        put_words(coloured(f"{why}; other processes cannot be seen", "yellow"))


def name_of(one: FleetProcess) -> str:
    """Host and process id, by which people can find the process."""
    return f"{one['host']}:{one['pid']}"


def _process(one: FleetProcess, now: float) -> list[str]:
    # A silent process may have ended right after its last beat.
    seen = now - one["beat_age"] if one["state"] == "silent" else now
    started = seconds_of(one["started_at"]) or seen
    marks = (
        ["leader"] * one["leads"] + ["responding"] * one["answers"] + ["silent"] * (one["state"] == "silent")
    )
    return [
        name_of(one),
        one["worker"],
        one["version"],
        one["label"],
        span(max(0.0, seen - started)),
        f"{span(one['beat_age'])} ago",
        str(one["in_flight"]),
        ", ".join(marks),
    ]


def _guard(one: FleetGuard, now: float) -> list[str]:
    since = seconds_of(one["open_since"])
    return [
        one["name"],
        f"in {one['open']} of {one['processes']}",
        "" if since is None else span(max(0.0, now - since)),
        str(one["half_open"]) if one["half_open"] else "",
        str(one["calls"]),
        "primed: one failure opens it" if one["primed"] else "",
    ]


def _purse(one: FleetPurse) -> list[str]:
    return [
        one["budget"],
        *("" if amount is None else usd(amount) for amount in (one["limit"], one["spent"], one["granted"])),
        *(usd(amount) for amount in (one["held"], one["idle"], one["unsettled"])),
    ]


def _lease(one: FleetUnits) -> list[str]:
    return [one["limit"], str(one["units"]), str(one["leased"]), str(one["processes"])]


def _difference(one: FleetDifference, names: dict[str, str]) -> str:
    groups = " / ".join(
        ", ".join(names.get(process, process) for process in group) for group in one["groups"]
    )
    what = f"{one['section']}.{one['option']}" if one["option"] else one["section"]
    return f"configuration differs: {what}: {groups}"
