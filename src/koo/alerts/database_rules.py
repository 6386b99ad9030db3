"""Findings about the database: it refuses calls, does not answer, or has a condition such as `saturated`."""

from __future__ import annotations

from collections.abc import Iterator

from koo.alerts.findings import Finding
from koo.alerts.service_rules import find_in_breaker, incident_of, refuses
from koo.alerts.words import count, say
from koo.monitoring.shapes import AlertData, DatabaseHealth

DATABASE = "database"


def find_in_database(view: DatabaseHealth) -> Iterator[Finding]:
    """All findings about the database."""
    breaker = view["circuit_breaker"]
    yield from find_in_breaker(DATABASE, "the database", breaker)
    if refuses(breaker):
        message = say("calls to the database are refused", view["reason"])
        if view["answers_since"] is not None:
            message += f"; it has answered its probe since {view['answers_since'][:19]} UTC"
        data: AlertData = {**_about(view), "refuses": "every scope", "next_attempt": breaker["next_attempt"]}
        data.update(incident_of(breaker))
        yield Finding("database_unavailable", DATABASE, message, data)
    elif breaker["state"] != "half_open" or breaker["override"] == "metrics_only":
        # While recovery is being tested, the engine keeps the existing alert open (`kept_by`). A weaker finding here
        # would take its place in the middle of the outage.
        yield from _calls_pass(view)
    for condition in view["conditions"]:
        yield _condition(condition, view)


def _calls_pass(view: DatabaseHealth) -> Iterator[Finding]:
    """A database whose probe fails is unavailable. One that only fails from time to time is unhealthy."""
    if view["error"]:
        message = say("the database does not answer", view["error"])
        yield Finding("database_unavailable", DATABASE, message, _about(view))
    elif view["state"] == "unhealthy":
        message = say("the database is unhealthy, but calls still pass", view["reason"])
        yield Finding("database_unhealthy", DATABASE, message, _about(view))


def _condition(condition: str, view: DatabaseHealth) -> Finding:
    kind, pool = f"database_{condition}", view["pool_status"]
    if condition == "saturated":
        waiting = count(pool["waiting"], "caller is", "callers are")
        message = f"{_all(pool['max_connections'])} in use and {waiting} waiting"
        return Finding(kind, DATABASE, _with_holders(message, view), _turned_away(view))
    if condition == "leaking":
        message = f"{count(pool['overdue'], 'scope has', 'scopes have')} held a connection for too long"
        return Finding(kind, DATABASE, _with_holders(message, view))
    if condition == "commit_unknown":
        message = "a connection was lost during COMMIT: check whether the transaction was written"
        return Finding(kind, DATABASE, message)
    if condition == "markers_unusable":
        message = (
            "DB_EXACTLY_ONCE=marker, but the table koo_markers cannot be used: run `koo doctor` to see why"
        )
        return Finding(kind, DATABASE, message, {"refuses": "every scope except those with readonly=True"})
    if condition == "paused":
        return Finding(kind, DATABASE, f"the database is paused by {view['operator']}")
    if condition == "draining":
        message = f"the database is drained by {view['operator']}"
        return Finding(kind, DATABASE, message, {"refuses": "new scopes"})
    return Finding(kind, DATABASE, f"the database is {condition.replace('_', ' ')}")


def _all(connections: int) -> str:
    return "the only connection is" if connections == 1 else f"all {connections} connections are"


def _turned_away(view: DatabaseHealth) -> AlertData:
    away = view["pool_status"]["turned_away"]
    return {"refuses": "scopes that get no connection in time", "turned_away": away} if away else {}


def _with_holders(message: str, view: DatabaseHealth) -> str:
    pool = view["pool_status"]
    if pool["turned_away"]:
        message += f", {count(pool['turned_away'], 'was', 'were')} turned away"
    return message + (f"; held by {', '.join(pool['held_by'])}" if pool["held_by"] else "")


def _about(view: DatabaseHealth) -> AlertData:
    """The database's server and its last error."""
    return {
        "server": view["server"],
        "last_error": view["last_error"],
        "answers_since": view["answers_since"],
    }
