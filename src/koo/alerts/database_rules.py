"""What is wrong with the database: it refuses, does not answer, or has a condition beside its state."""

from __future__ import annotations

from collections.abc import Iterator

from koo.alerts.findings import Finding
from koo.alerts.service_rules import REFUSED, find_in_breaker, incident_of
from koo.alerts.words import say
from koo.monitoring.shapes import AlertData, DatabaseHealth

DATABASE = "database"


def find_in_database(view: DatabaseHealth) -> Iterator[Finding]:
    """Everything that holds for it."""
    breaker = view["circuit_breaker"]
    yield from find_in_breaker(DATABASE, "the database", breaker)
    if breaker["state"] in REFUSED:
        message = say("the database is refused", view["error"] or view["reason"])
        if view["answers_since"] is not None:
            message += f"; it answers its probe since {view['answers_since'][:19]} UTC"
        data: AlertData = {**_about(view), "refuses": "every scope", "next_attempt": breaker["next_attempt"]}
        data.update(incident_of(breaker))
        if breaker["override"] == "metrics_only":
            data["refuses"] = ""
        yield Finding("database_unavailable", DATABASE, message, data)
    elif breaker["state"] != "half_open":
        # While recovery is being tested, the engine keeps the existing alert.
        yield from _calls_pass(view)
    for condition in view["conditions"]:
        yield _condition(condition, view)


def _calls_pass(view: DatabaseHealth) -> Iterator[Finding]:
    """A database whose probe gets no answer is gone; one that fails now and then is not, and is watched closely."""
    if view["error"]:
        message = say("the database does not answer", view["error"])
        yield Finding("database_unavailable", DATABASE, message, _about(view))
    elif view["state"] == "unhealthy":
        message = say("the database is unhealthy, calls still pass", view["reason"])
        yield Finding("database_unhealthy", DATABASE, message, _about(view))


def _condition(condition: str, view: DatabaseHealth) -> Finding:
    kind, pool = f"database_{condition}", view["pool_status"]
    if condition == "saturated":
        message = f"all {pool['max_connections']} connections are in use and {pool['waiting']} callers wait"
        return Finding(kind, DATABASE, _with_holders(message, view), _turned_away(view))
    if condition == "leaking":
        message = f"{pool['overdue']} scopes have held their connection for too long"
        return Finding(kind, DATABASE, _with_holders(message, view))
    if condition == "commit_unknown":
        message = "a connection was lost during COMMIT: check whether the transaction was written"
        return Finding(kind, DATABASE, message)
    if condition == "markers_unusable":
        message = "DB_EXACTLY_ONCE=marker, but the table koo_markers cannot be used: `koo doctor` says why"
        return Finding(kind, DATABASE, message, {"refuses": "every scope but those with readonly=True"})
    data: AlertData = {"refuses": "new scopes"} if condition == "draining" else {}
    return Finding(kind, DATABASE, f"the database is {condition.replace('_', ' ')}", data)


def _turned_away(view: DatabaseHealth) -> AlertData:
    away = view["pool_status"]["turned_away"]
    return {"refuses": "scopes that find no connection in time", "turned_away": away} if away else {}


def _with_holders(message: str, view: DatabaseHealth) -> str:
    pool = view["pool_status"]
    if pool["turned_away"]:
        message += f", {pool['turned_away']} were turned away"
    return message + (f"; held by {', '.join(pool['held_by'])}" if pool["held_by"] else "")


def _about(view: DatabaseHealth) -> AlertData:
    """Which database it is, and what failed."""
    return {
        "server": view["server"],
        "last_error": view["last_error"],
        "answers_since": view["answers_since"],
    }
